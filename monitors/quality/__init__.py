"""Measures the current window of a workload."""
