"""The numbers of placeholders, shared by the ingesters of a cluster, so that a conversation may move between them.

Until the database has assigned numbers, an event has `<EMAIL_01>` for its second value. The database is asked once for
a whole batch, before the batch is written.
"""

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from retuned.consumers.cluster.database import Database, Wanted
from retuned.consumers.privacy.placeholders import KINDS, Conversations, Scope
from retuned.consumers.privacy.pseudonyms import UserKeys

# A zero, which starts no number, and the index among the event's values. If an app writes such a text itself, it is
# replaced by a placeholder of the same event, or stays.
_UNNUMBERED = re.compile(rf"<({'|'.join(KINDS)})_0[0-9]{{1,8}}>")


class EventScope(Scope):
    """The values of one event, and their numbers once they are known.

    Attributes:
        reserved: the highest number of each kind that is already in the texts.
        values: kind and value of each find, in the order of appearance.
        placeholders: the final placeholders by the provisional ones.
    """

    def __init__(self, event_id: str, conversation_id: str | None, *, on_another: bool) -> None:
        """Creates the scope of an event.

        Args:
            on_another: the event is feedback, and `event_id` the id of its interaction.
        """
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
    """The scopes of conversations in the database of a cluster; for one thread.

    Numbers are not cached, because they could be outdated; each batch asks for all of them. The database has keyed
    hashes of ids and values. A conversation keeps the key with which it began; with several keys, each is looked up.
    The hash of a value includes its scope, so equal values of two conversations are not linkable.
    """

    def __init__(self, database: Database, keys: UserKeys) -> None:
        super().__init__()
        self._database, self._secrets = database, keys.derived("placeholders")

    def open(self, event_id: str, conversation_id: str | None, *, on_another: bool = False) -> EventScope:
        return EventScope(event_id, conversation_id, on_another=on_another)

    def close(self, scope: Scope) -> None:
        """Does nothing: scopes are not kept."""

    def number(self, scopes: Sequence[Scope]) -> None:
        """Assigns the numbers of events.

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
            values = (Wanted(scope, _hash(secret, f"{kind} {value}", scope), kind) for kind, value in event.values)
            places.append([wanted.setdefault(value, len(wanted)) for value in values])
        # Numbers already in texts come first, so that they are not assigned again.
        reserved = [Wanted(scope, b"", kind, number) for (scope, kind), number in taken.items()]
        numbers = self._database.placeholder_numbers([*reserved, *wanted], interactions)[len(reserved) :]
        for event, own in zip(events, places, strict=True):
            event.placeholders = {
                event.placeholder(kind, value): f"<{kind}_{numbers[place]}>"
                for (kind, value), place in zip(event.values, own, strict=True)
            }

    def _located(self, events: Sequence[EventScope]) -> list[tuple[bytes, bytes]]:
        """Returns the key of each event, and its scope under this key."""
        secrets, known = self._secrets, {}
        rotated = len(secrets) > 1
        sought = [event for event in events if rotated or (event.on_another and event.conversation_id is None)]
        if sought:
            ids = dict.fromkeys(_id(secret, event) for event in sought for secret in secrets)
            known = self._database.numbered_scopes(list(ids))
        located = []
        for event in events:
            candidates = [(secret, _id(secret, event)) for secret in secrets]
            secret, id = next((candidate for candidate in candidates if candidate[1] in known), candidates[0])
            located.append((secret, known.get(id, id)))
        return located


def keys_of(keys: UserKeys, interactions: Sequence[str], conversations: Sequence[str]) -> list[bytes]:
    """Returns the look-up keys of interactions and of conversations, under each key of pseudonyms."""
    texts = [*(f"event {id}" for id in interactions), *(f"conversation {id}" for id in conversations)]
    return [_hash(secret, text) for secret in keys.derived("placeholders") for text in texts]


def _id(secret: bytes, event: EventScope) -> bytes:
    """Returns the look-up key of an event: its conversation, else the event itself."""
    if event.conversation_id is None:
        return _event_id(secret, event)
    return _hash(secret, f"conversation {event.conversation_id}")


def _event_id(secret: bytes, event: EventScope) -> bytes:
    return _hash(secret, f"event {event.event_id}")


def _hash(secret: bytes, text: str, scope: bytes = b"") -> bytes:
    return blake2b(text.encode("utf-8", "replace"), key=secret, salt=scope, digest_size=12).digest()
