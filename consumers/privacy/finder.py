"""Finds personal data and secrets in a text: the patterns, their order, and the places of matches.

Every pattern runs in time linear in the text: quantifiers are bounded or possessive, and what a pattern cannot check (a
checksum, a date, a country's numbering plan) is checked in Python on one short match. Cheap checks of the whole text
come first, because most texts contain nothing.
"""

import re
from typing import NamedTuple

from retuned.consumers.privacy import placeholders
from retuned.consumers.privacy.folding import fold
from retuned.consumers.privacy.patterns import Mark, accounts, addresses, credentials, national_ids
from retuned.consumers.privacy.patterns.names import load_names
from retuned.consumers.privacy.patterns.phones import Plans, check_regions, replace_phones
from retuned.consumers.settings import PrivacySettings

_NOT_DIGITS = bytes(set(range(256)) - set(b"0123456789"))
# Eight digits close together, which every phone and card number has.
_LONG_NUMBER = re.compile(r"[0-9](?:[ ().\-/ー]{0,3}[0-9]){7}")
# Marks a match until the whole text is searched; it has a fixed length and does not look like text.
_MARK = re.compile("<\x00([\x01-\x08\x0e-\x15]{6})>")
_TO_MARK = str.maketrans("0123456789abcdef", "".join(map(chr, (*range(1, 9), *range(14, 22)))))
_TO_INDEX = {sign: chr(digit) for digit, sign in _TO_MARK.items()}
# A match may hide another one beside it from the first pass.
_MOST_PASSES = 4
# Names of fields, roles and system prompts repeat in every event.
_MOST_REMEMBERED, _LONGEST_REMEMBERED = 2_048, 4_096
_WORD = re.compile(r"[^\W\d_]{2}")
# The kind of matches that stay unchanged.
_KEPT = "KEPT"

CONTACTS = ("EMAIL", "PHONE", "IP")
"""The kinds by which a conversation may be named."""
SUSPECT_CONTACT = "|".join((_LONG_NUMBER.pattern, *addresses.SUSPECT))
"""An RE2 pattern that matches every text in which one of these is found."""

# Matches every text in which something is found, and few others, also if JSON has escaped the text. An RE2 pattern,
# which Arrow applies to whole columns.
_SUSPECT = "|".join(
    (
        SUSPECT_CONTACT,
        *accounts.SUSPECT,
        *national_ids.SUSPECT,
        *credentials.SUSPECT,
        placeholders.SUSPECT,
        r"\\u[0-9A-Fa-f]{4}",  # an escape in JSON within a text may hide anything
    )
)
_SUSPECT_NAME = r"\p{Lu}\p{Ll}"


class Found(NamedTuple):
    """A match: its place in the text, its kind, and its normalized value."""

    start: int
    end: int
    kind: str
    value: str


class Finder:
    """Finds personal data and secrets in texts.

    Attributes:
        suspect: an RE2 pattern that matches every text in which something is found.
    """

    def __init__(self, settings: PrivacySettings, *, machines: bool) -> None:
        """Creates a finder; arguments and errors as for `Redactor`."""
        check_regions(settings.phone_regions)
        self._plans, self._machines = Plans(settings.phone_regions), machines
        self._replace_names = load_names() if settings.redact and settings.names else None
        self.suspect = _SUSPECT + (f"|{_SUSPECT_NAME}" if self._replace_names else "")
        self._harmless: set[tuple[str, str]] = set()
        self._kept: frozenset[tuple[str, str]] = frozenset()
        self._kept = frozenset(value for kept in settings.keep for value in self._values(kept))

    def _values(self, kept: str) -> list[tuple[str, str]]:
        """Returns the kinds and values to keep for a text of privacy.keep.

        A number alone may not be recognised as a phone number without a word such as "tel.", nor a name as a name.
        """
        name = ("NAME", " ".join(kept.casefold().split()))
        return [name, *((found.kind, found.value) for text in (kept, f"tel. {kept}") for found in self.find(text))]

    def begin(self) -> None:
        """Starts another event: expensive checks are limited per event."""
        self._plans.begin()

    def find(self, text: str, before: str = "", after: str = "") -> list[Found]:
        """Returns the matches in a text in order, given the texts before and after it."""
        if (before, text) in self._harmless:
            return []
        copy, places = fold(f"{before}{text}{after}")
        if "\x00" in copy:
            copy = copy.replace("\x00", "\x7f")  # texts must not contain marks
        marked: list[tuple[str, str, str]] = []

        def plain(text: str) -> str:
            return _MARK.sub(lambda match: marked[_index(match)][2], text) if "\x00" in text else text

        def mark(kind: str, value: str, text: str) -> str:
            value, text = plain(value), plain(text)
            # Kept values are marked as well, so that no later pattern searches them.
            marked.append((_KEPT if (kind, value) in self._kept else kind, value, text))
            return f"<\x00{f'{len(marked) - 1:06x}'.translate(_TO_MARK)}>"

        if ">" in copy:
            copy = placeholders.PLACEHOLDER.sub(lambda match: mark(_KEPT, "", match[0]), copy)
        for _ in range(_MOST_PASSES):
            known = len(marked)
            copy = self._marked(copy, mark)
            if len(marked) == known:
                break
        if self._replace_names and _WORD.search(text):
            copy = self._replace_names(copy, mark)
        if not marked:
            if len(text) <= _LONGEST_REMEMBERED:
                if len(self._harmless) == _MOST_REMEMBERED:
                    self._harmless.clear()
                self._harmless.add((before, text))
            return []
        found, shift = [], 0
        for match in _MARK.finditer(copy):
            kind, value, taken = marked[_index(match)]
            start = match.start() + shift
            end = start + len(taken)
            shift += len(taken) - len(match[0])
            if places:
                start, end = places.start(start), places.end(end)
            start, end = max(start - len(before), 0), min(end - len(before), len(text))
            if kind != _KEPT and start < end:
                found.append(Found(start, end, kind, value))
        return found

    def _marked(self, text: str, mark: Mark) -> str:
        """Replaces all matches in a text by marks."""
        text = credentials.replace_credentials(text, text.lower(), mark)
        text = addresses.replace_emails(text, mark)
        digits = len(text.encode("utf-8", "replace").translate(None, _NOT_DIGITS))
        if self._machines and ("::" in text or (digits >= 4 and any(sign in text for sign in ":.-"))):
            text = addresses.replace_machines(text, mark)
        if digits >= 6:
            text = accounts.replace_ibans(text, mark)
            long = digits >= 8 and _LONG_NUMBER.search(text)
            if long:
                text = accounts.replace_cards(text, mark)
            text = national_ids.replace_national_ids(text, mark)
            if long:
                text = replace_phones(text, mark, self._plans)
        return text


def _index(mark: re.Match[str]) -> int:
    return int(mark[1].translate(_TO_INDEX), 16)
