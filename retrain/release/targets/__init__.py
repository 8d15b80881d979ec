"""What gets the versions in service."""
