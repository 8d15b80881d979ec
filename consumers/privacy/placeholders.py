"""Placeholders such as `<EMAIL_1>`, numbered within one conversation."""

import re
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

KINDS = ("EMAIL", "PHONE", "CARD", "IBAN", "NATIONAL_ID", "IP", "MAC", "KEY", "COOKIE", "NAME")
# Without a limit, one hostile text could push later numbers beyond the length that is recognised as a placeholder.
PLACEHOLDER = re.compile(rf"<({'|'.join(KINDS)})_([1-9][0-9]{{0,8}})>")
_ANY = re.compile(r"<([A-Z]{2,32}+(?:_[A-Z]{1,32}+){0,4}+(?:_\d{1,9}+)?+)>")
PSEUDONYM = re.compile(r"(?<![0-9a-f:])[0-9a-f]{4}:[0-9a-f]{32}(?![0-9a-f])")
SUSPECT = r"_[1-9][0-9]{0,8}>"

MOST_VALUES = 100_000
MOST_EVENTS = 50_000
MOST_CHUNKS = 64


def has_placeholder(text: str) -> bool:
    """Returns whether a text has a placeholder, also one of an app that redacts by itself: `<PERSON>`, `<ADDRESS_2>`.

    What is closed is markup, as in `<CONTEXT>…</CONTEXT>`.
    """
    return any(f"</{name}>" not in text for name in set(_ANY.findall(text)))


def stand_ins(text: str) -> set[str]:
    """Returns the placeholders and the pseudonyms of a text: what stands for something that is not stored."""
    return {match[0] for pattern in (PLACEHOLDER, PSEUDONYM) for match in pattern.finditer(text)}


def unnumbered(text: str) -> str:
    """Replaces `<EMAIL_1>` by `<EMAIL>`, to compare texts of different conversations."""
    return PLACEHOLDER.sub(r"<\1>", text)


class Scope:
    """The numbers of one conversation: the first e-mail address is 1, the second 2, the first phone 1."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._last: dict[str, int] = {}
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        """The number of numbered values; an empty scope counts as one."""
        return len(self._numbers) or 1

    def reserve(self, text: str) -> None:
        """Reserves the numbers of placeholders that are already in a text."""
        for kind, number in PLACEHOLDER.findall(text):
            self._last[kind] = max(self._last.get(kind, 0), int(number))

    def placeholder(self, kind: str, value: str) -> str:
        """Returns the placeholder of a value; only a keyed hash of the value is kept."""
        key = blake2b(f"{kind} {value}".encode("utf-8", "replace"), key=self._secret, digest_size=12).digest()
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._last[kind] = self._last.get(kind, 0) + 1
        return f"<{kind}_{number}>"

    def renumbered(self, text: str, owner: str) -> str:
        """Renumbers the placeholders of a text; each placeholder of an owner gets its own number in this scope."""
        return PLACEHOLDER.sub(lambda match: self.placeholder(match[1], f"{owner}\0{match[2]}"), text)

    @property
    def waits(self) -> bool:
        """Whether `Conversations.number` has to be called before `numbered`."""
        return False

    def numbered(self, text: str) -> str:
        """Returns a text with the final numbers of its placeholders."""
        return text


class Conversations:
    """The scopes of the most recent conversations, in memory; for one thread.

    Bounded by the numbered values of all conversations, and by the events whose conversation is remembered.
    """

    def __init__(self, most_values: int = MOST_VALUES, most_events: int = MOST_EVENTS) -> None:
        self._secret = secrets.token_bytes(32)
        self._scopes: OrderedDict[str, Scope] = OrderedDict()
        self._values, self._most_values, self._most_events = 0, most_values, most_events
        # An Arrow table takes a quarter of the memory of a dictionary, and few look-ups are made.
        self._remembered: Any = None

    def fresh(self) -> Scope:
        """Returns a new scope."""
        return Scope(self._secret)

    def open(self, event_id: str, conversation_id: str | None, *, on_another: bool = False) -> Scope:  # noqa: ARG002
        """Returns the scope of an event, to be passed to `close`; an event without a conversation has its own scope.

        Args:
            on_another: the event is feedback, and the id is that of its interaction, whose conversation may be unknown.
        """
        key = f"event {event_id}" if conversation_id is None else f"conversation {conversation_id}"
        scope = self._scopes.get(key)
        if scope is None:
            scope = self._scopes[key] = self.fresh()
        else:
            self._scopes.move_to_end(key)
            self._values -= len(scope)
        return scope

    def close(self, scope: Scope) -> None:
        """Counts the values of a scope, and drops the least recently used conversations."""
        self._values += len(scope)
        while self._values > self._most_values and len(self._scopes) > 1:
            self._values -= len(self._scopes.popitem(last=False)[1])

    def number(self, scopes: Sequence[Scope]) -> None:
        """Assigns the numbers of events whose scopes wait for them."""

    def remember(self, event_ids: Any, conversation_ids: Any) -> None:
        """Remembers the conversations of interactions, so that feedback on them shares their numbers.

        Args:
            event_ids, conversation_ids: Arrow arrays of strings; null: no conversation.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        new = pa.Table.from_arrays([event_ids, conversation_ids], names=["event", "conversation"])
        new = new.filter(pc.is_valid(conversation_ids))
        known = new if self._remembered is None else pa.concat_tables([self._remembered, new])
        known = known.slice(max(known.num_rows - self._most_events, 0))
        self._remembered = known.combine_chunks() if known["event"].num_chunks > MOST_CHUNKS else known

    def of(self, interaction_ids: Sequence[str]) -> list[str | None]:
        """Returns the conversations of interactions; None: none, or not seen recently."""
        if self._remembered is None:
            return [None] * len(interaction_ids)
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(interaction_ids, pa.string())
        rows = self._remembered.filter(pc.is_in(self._remembered["event"], value_set=wanted)).to_pydict()
        known = dict(zip(rows["event"], rows["conversation"], strict=True))
        return [known.get(name) for name in interaction_ids]
