"""Rates of a workload's current window."""
