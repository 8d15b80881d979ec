"""How each kind of personal data is recognised."""
