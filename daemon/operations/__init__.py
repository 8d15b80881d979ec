"""The operations of retuned: one object each, from which HTTP, OpenAPI, client and commands are derived."""
