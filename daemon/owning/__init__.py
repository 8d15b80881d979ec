"""What it takes to own the model of a workload, and whether that pays: `retuned plan`."""
