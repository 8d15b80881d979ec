"""How much work one message may be, whatever its format. It is counted, not timed, so a replay decides the same."""

# In characters of prose, by what it takes to decode, redact and store them.
PART, STRING, DIGIT = 200, 30, 16
# What ids, names and times of an event have.
_FREE_STRINGS, _FREE_DIGITS = 24, 64
LARGEST = 1 + max(STRING // 2, DIGIT)
"""Of one character, at most."""
MOST_LETTERS = 1_000
"""Parts of one message that are kept as dead letters of their own."""

_NOT_DIGITS = bytes(set(range(256)) - set(b"0123456789"))


def work_of(json: bytes) -> int:
    """The work of an event: its characters, and more for the strings and digits in which personal data is sought.

    A string that ends with a backslash counts half: to tell it apart would take as long as to decode the event.
    """
    strings = (json.count(b'"') - json.count(b'\\"')) // 2
    digits = len(json.translate(None, _NOT_DIGITS))
    return len(json) + STRING * max(strings - _FREE_STRINGS, 0) + DIGIT * max(digits - _FREE_DIGITS, 0)


class Budget:
    """What is left for one message.

    Attributes:
        is_over: it is more work than one message may be: no more of it is read.
        refused: parts that are no events.
    """

    def __init__(self, most: int) -> None:
        self._left, self.is_over, self.refused = most, False, 0

    def spend(self, work: int) -> bool:
        """Whether that much was left."""
        self._left -= work
        self.is_over = self._left < 0
        return not self.is_over

    def refuse(self) -> bool:
        """Count a part that is no event. Returns whether it may be a letter of its own."""
        self.refused += 1
        return self.refused <= MOST_LETTERS
