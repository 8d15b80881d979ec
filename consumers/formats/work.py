"""Limits the work that one message may take, in any format. Work is counted, not timed, so replays agree."""

# The cost of each to decode, redact and store, in characters of prose.
PART, STRING, DIGIT = 200, 30, 16
# The strings and digits in the ids, names and times of an event.
_FREE_STRINGS, _FREE_DIGITS = 24, 64
LARGEST = 1 + max(STRING // 2, DIGIT)
"""The most work that one character can take."""
MOST_LETTERS = 1_000
"""The most parts of one message that become dead letters."""

_NOT_DIGITS = bytes(set(range(256)) - set(b"0123456789"))


def work_of(json: bytes) -> int:
    """Returns the work of an event: its characters, plus a charge for strings and digits, which redaction searches.

    A string that ends with a backslash counts half: to recognise it would take as long as decoding the event.
    """
    strings = (json.count(b'"') - json.count(b'\\"')) // 2
    digits = len(json.translate(None, _NOT_DIGITS))
    return len(json) + STRING * max(strings - _FREE_STRINGS, 0) + DIGIT * max(digits - _FREE_DIGITS, 0)


class Budget:
    """The remaining work of one message.

    Attributes:
        is_over: the message takes more work than it may; the rest of it is not read.
        refused: the number of invalid parts.
    """

    def __init__(self, most: int) -> None:
        self._left, self.is_over, self.refused = most, False, 0

    def spend(self, work: int) -> bool:
        """Spends work. Returns whether that much was left."""
        self._left -= work
        self.is_over = self._left < 0
        return not self.is_over

    def refuse(self) -> bool:
        """Counts an invalid part. Returns whether it may become a dead letter."""
        self.refused += 1
        return self.refused <= MOST_LETTERS
