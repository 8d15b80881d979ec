"""Erasure: what a person takes back leaves the warehouse, the archive, datasets, caches and reports."""
