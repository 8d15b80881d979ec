"""Training of an adapter, in a child process."""
