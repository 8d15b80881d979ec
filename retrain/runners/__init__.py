"""Runners for long work: a child process of the daemon, or a job on a Ray cluster."""
