"""How each kind of personal data is recognised, in a copy of the text in which a character has one form."""

from collections.abc import Callable

Mark = Callable[[str, str, str], str]
"""Kind, what tells one value from another, and the text as it stands; returns what stands there instead."""
