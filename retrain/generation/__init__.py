"""Generates the models' answers for an evaluation."""
