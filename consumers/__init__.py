"""How do events get in, and never get lost?"""
