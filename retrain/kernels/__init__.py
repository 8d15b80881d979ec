"""Rows in one sequence, attention over it, and cross-entropy without logits: training on CPUs."""
