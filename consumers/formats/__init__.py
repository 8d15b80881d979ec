"""What an event is, and how other formats become events."""
