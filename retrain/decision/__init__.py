"""Decides whether a candidate is better than the model in service."""
