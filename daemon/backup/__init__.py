"""Backup and restore of everything that retuned keeps."""
