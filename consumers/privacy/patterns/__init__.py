"""How each kind of personal data is recognised, in a copy of the text in which a character has one form."""

from collections.abc import Callable

Mark = Callable[[str, str, str], str]
"""Kind, what tells one value from another, and the text as it stands; returns what stands there instead."""

FIRST = r"(?:(?<![A-Za-z])|(?-i:(?<=[a-z])(?=[A-Z])))"
"""Where a word begins, also within a key: `new_password`, `newPassword`."""
GAP = r"(?:[^\w\n]|_){0,3}"
"""What may stand between two words, nothing in `passportNumber`."""
