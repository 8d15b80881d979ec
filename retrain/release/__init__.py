"""Versions, their cards, and which of them serves."""
