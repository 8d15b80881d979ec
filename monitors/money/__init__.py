"""What the model gained and cost."""
