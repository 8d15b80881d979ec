"""Training steps in fewer operations, on CPUs."""
