"""Comparison of a new champion with the one before it, in service."""
