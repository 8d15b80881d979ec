"""Compares current requests and answers with those of the reference."""
