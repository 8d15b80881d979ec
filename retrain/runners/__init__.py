"""Where long work of a run is done: in a child process of the daemon, or as a job of a Ray cluster."""
