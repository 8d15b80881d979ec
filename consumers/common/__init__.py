"""Helpers of several packages: child processes, durable files, texts."""
