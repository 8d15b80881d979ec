"""Targets: the servers, folders and registries that get versions."""
