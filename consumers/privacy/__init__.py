"""Replaces personal data and secrets, and hashes users, before anything is stored."""
