"""Patterns of each kind of personal data, applied to a folded copy of the text (see `folding`)."""

from collections.abc import Callable

Mark = Callable[[str, str, str], str]
"""Takes the kind, the normalized value and the matched text; returns the replacement."""

FIRST = r"(?:(?<![A-Za-z])|(?-i:(?<=[a-z])(?=[A-Z])))"
"""The start of a word, also within a key: `new_password`, `newPassword`."""
GAP = r"(?:[^\w\n]|_){0,3}"
"""The gap between two words, empty in `passportNumber`."""
