"""Numbers of placeholders that the ingesters of a cluster share: whichever of them has a conversation, they count on.

In an event stands `<EMAIL_01>` for the second value that is found in it until the database has given the number: it is
asked once for a whole batch, before anything of the batch is written.
"""

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from retuned.consumers.cluster.database import Database, Wanted
from retuned.consumers.privacy.placeholders import KINDS, Conversations, Scope
from retuned.consumers.privacy.pseudonyms import UserKeys

# Behind a zero, which begins no number, the place among the values of the event. An app that writes such a thing itself
# gets a placeholder of its own event, or it stays.
_UNNUMBERED = re.compile(rf"<({'|'.join(KINDS)})_0[0-9]{{1,8}}>")


class EventScope(Scope):
    """What is found in one event, and its numbers once they are known.

    Attributes:
        reserved: the highest number of each kind that stands in the texts already.
        values: kind and value of what was found, in the order of appearance.
        placeholders: those with numbers, by those without.
    """

    def __init__(self, event_id: str, conversation_id: str | None, *, on_another: bool) -> None:
        """`on_another`: the event is feedback, and `event_id` the interaction that it is on."""
        super().__init__(b"")
        self.event_id, self.conversation_id, self.on_another = event_id, conversation_id, on_another
        self.values: dict[tuple[str, str], int] = {}
        self.placeholders: Mapping[str, str] = {}

    @property
    def reserved(self) -> dict[str, int]:
        return self._last

    @property
    def waits(self) -> bool:
        return bool(self.values or self._last)

    def placeholder(self, kind: str, value: str) -> str:
        return f"<{kind}_0{self.values.setdefault((kind, value), len(self.values))}>"

    def numbered(self, text: str) -> str:
        return _UNNUMBERED.sub(lambda match: self.placeholders.get(match[0], match[0]), text)


class SharedConversations(Conversations):
    """The scopes of conversations in the database of a cluster. For one thread.

    No number is kept in memory, where it could be out of date: all are asked for with each batch. In the database are
    keyed hashes of ids and values, all of a conversation under the key with which it began; with several keys, it is
    looked for under each. In the hash of a value is its scope: nobody can see that two conversations have one value.
    """

    def __init__(self, database: Database, keys: UserKeys) -> None:
        super().__init__()
        self._database, self._secrets = database, keys.derived("placeholders")

    def open(self, event_id: str, conversation_id: str | None, *, on_another: bool = False) -> EventScope:
        return EventScope(event_id, conversation_id, on_another=on_another)

    def close(self, scope: Scope) -> None:
        """Nothing of it is kept."""

    def number(self, scopes: Sequence[Scope]) -> None:
        """
        Raises:
            StoreUnavailable: the database does not answer.
        """
        events = [scope for scope in scopes if isinstance(scope, EventScope)]
        wanted: dict[Wanted, int] = {}
        taken: dict[tuple[bytes, str], int] = {}
        interactions: dict[bytes, bytes] = {}
        places: list[list[int]] = []
        for event, (secret, scope) in zip(events, self._located(events), strict=True):
            if event.conversation_id is not None:
                interactions[_event_id(secret, event)] = scope
            for kind, number in event.reserved.items():
                taken[scope, kind] = max(taken.get((scope, kind), 0), number)
            found = (Wanted(scope, _hash(secret, f"{kind} {value}", scope), kind) for kind, value in event.values)
            places.append([wanted.setdefault(one, len(wanted)) for one in found])
        # What stands in texts first: none of its numbers is given.
        reserved = [Wanted(scope, b"", kind, number) for (scope, kind), number in taken.items()]
        numbers = self._database.placeholder_numbers([*reserved, *wanted], interactions)[len(reserved) :]
        for event, of_event in zip(events, places, strict=True):
            event.placeholders = {
                event.placeholder(kind, value): f"<{kind}_{numbers[place]}>"
                for (kind, value), place in zip(event.values, of_event, strict=True)
            }

    def _located(self, events: Sequence[EventScope]) -> list[tuple[bytes, bytes]]:
        """The key of each event, and its scope under it."""
        secrets, known = self._secrets, {}
        rotated = len(secrets) > 1
        sought = [one for one in events if rotated or (one.on_another and one.conversation_id is None)]
        if sought:
            ids = dict.fromkeys(_id(secret, event) for event in sought for secret in secrets)
            known = self._database.numbered_scopes(list(ids))
        located = []
        for event in events:
            candidates = [(secret, _id(secret, event)) for secret in secrets]
            secret, id = next((one for one in candidates if one[1] in known), candidates[0])
            located.append((secret, known.get(id, id)))
        return located


def _id(secret: bytes, event: EventScope) -> bytes:
    """What an event is looked for by: its conversation, else itself."""
    if event.conversation_id is None:
        return _event_id(secret, event)
    return _hash(secret, f"conversation {event.conversation_id}")


def _event_id(secret: bytes, event: EventScope) -> bytes:
    return _hash(secret, f"event {event.event_id}")


def _hash(secret: bytes, text: str, scope: bytes = b"") -> bytes:
    return blake2b(text.encode("utf-8", "replace"), key=secret, salt=scope, digest_size=12).digest()
