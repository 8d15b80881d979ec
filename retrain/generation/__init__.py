"""Answers of models, for evaluation."""
