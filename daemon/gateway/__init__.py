"""The gateway: an OpenAI-compatible proxy that routes by conversation and records answers."""
