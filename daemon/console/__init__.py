"""The console: pages on which people see what needs them, teach, and decide."""
