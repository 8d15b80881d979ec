"""Reads events from Kafka and stores each exactly once."""
