"""Placeholders such as `<EMAIL_1>`, and the numbers that keep them apart within one conversation."""

import re
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

KINDS = ("EMAIL", "PHONE", "CARD", "IBAN", "NATIONAL_ID", "IP", "MAC", "KEY", "COOKIE", "NAME")
# A number of any length would let one hostile text push all later ones beyond what is read as a placeholder again.
PLACEHOLDER = re.compile(rf"<({'|'.join(KINDS)})_([1-9][0-9]{{0,8}})>")
SUSPECT = r"_[1-9][0-9]{0,8}>"

MOST_VALUES = 100_000
MOST_EVENTS = 50_000
MOST_CHUNKS = 64


def unnumbered(text: str) -> str:
    """A text with `<EMAIL>` for `<EMAIL_1>`: for comparing texts of different conversations."""
    return PLACEHOLDER.sub(r"<\1>", text)


class Scope:
    """The numbers of one conversation: the first e-mail address is 1, the second 2, the first phone 1."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._last: dict[str, int] = {}
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        """Values with a number; an empty scope counts as one."""
        return len(self._numbers) or 1

    def reserve(self, text: str) -> None:
        """Placeholders that stand in a text already stay as they are: no new value gets their numbers."""
        for kind, number in PLACEHOLDER.findall(text):
            self._last[kind] = max(self._last.get(kind, 0), int(number))

    def placeholder(self, kind: str, value: str) -> str:
        """The placeholder of a value, which is told from others by a keyed hash and not kept."""
        key = blake2b(f"{kind} {value}".encode("utf-8", "replace"), key=self._secret, digest_size=12).digest()
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._last[kind] = self._last.get(kind, 0) + 1
        return f"<{kind}_{number}>"

    def renumbered(self, text: str, owner: str) -> str:
        """A text whose placeholders get numbers of this scope: within one owner each its own."""
        return PLACEHOLDER.sub(lambda match: self.placeholder(match[1], f"{owner}\0{match[2]}"), text)

    @property
    def waits(self) -> bool:
        """Whether something has to be given to `Conversations.number` before `numbered`."""
        return False

    def numbered(self, text: str) -> str:
        """A text with placeholders, with their numbers."""
        return text


class Conversations:
    """The scopes of the conversations that were used last, in memory alone. For one thread.

    Bounded by the values that have numbers, over all conversations, and by the events whose conversation is known.
    """

    def __init__(self, most_values: int = MOST_VALUES, most_events: int = MOST_EVENTS) -> None:
        self._secret = secrets.token_bytes(32)
        self._scopes: OrderedDict[str, Scope] = OrderedDict()
        self._values, self._most_values, self._most_events = 0, most_values, most_events
        # As Arrow keeps them they take a quarter of what they would in a dictionary, and few are ever asked for.
        self._told: Any = None

    def fresh(self) -> Scope:
        """A scope that nothing else shares."""
        return Scope(self._secret)

    def open(self, event_id: str, conversation_id: str | None, *, on_another: bool = False) -> Scope:  # noqa: ARG002
        """The scope of an event; give it back to `close`. Without a conversation the event has a scope of its own.

        Args:
            on_another: it is feedback, and the id that of the interaction, whose conversation may not be known here.
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
        """Count what the scope holds now, and forget the conversations that were not used for longest."""
        self._values += len(scope)
        while self._values > self._most_values and len(self._scopes) > 1:
            self._values -= len(self._scopes.popitem(last=False)[1])

    def number(self, scopes: Sequence[Scope]) -> None:
        """Give the placeholders of these events, whose scopes wait, their numbers."""

    def remember(self, event_ids: Any, conversation_ids: Any) -> None:
        """Which conversation interactions belong to, so that feedback on them shares its numbers.

        Args:
            event_ids, conversation_ids: Arrow arrays of strings, null where there is no conversation.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        new = pa.Table.from_arrays([event_ids, conversation_ids], names=["event", "conversation"])
        new = new.filter(pc.is_valid(conversation_ids))
        told = new if self._told is None else pa.concat_tables([self._told, new])
        told = told.slice(max(told.num_rows - self._most_events, 0))
        self._told = told.combine_chunks() if told["event"].num_chunks > MOST_CHUNKS else told

    def of(self, interaction_ids: Sequence[str]) -> list[str | None]:
        """The conversations of interactions, None for one that has none or was not seen lately."""
        if self._told is None:
            return [None] * len(interaction_ids)
        import pyarrow as pa
        import pyarrow.compute as pc

        asked = pa.array(interaction_ids, pa.string())
        found = self._told.filter(pc.is_in(self._told["event"], value_set=asked)).to_pydict()
        known = dict(zip(found["event"], found["conversation"], strict=True))
        return [known.get(name) for name in interaction_ids]
