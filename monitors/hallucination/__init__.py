"""Checks whether the passages given with a request support its answer."""
