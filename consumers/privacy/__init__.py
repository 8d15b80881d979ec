"""Personal data and secrets are replaced, and users hashed, before anything is stored."""
