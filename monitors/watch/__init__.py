"""Compares a new champion or canary in service with the champion before it."""
