"""What several packages need: child processes, durable files, texts."""
