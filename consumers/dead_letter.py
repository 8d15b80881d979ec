"""Messages that are no events: what is kept of one, and when there are too many."""

import re
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from retuned.consumers.dialects import BadPart, binary_envelope
from retuned.consumers.errors import TooManyDeadLetters
from retuned.consumers.events import to_json
from retuned.consumers.kafka import Record
from retuned.consumers.placeholders import Scope
from retuned.consumers.privacy import Redactor
from retuned.consumers.warehouse import MIGRATIONS, Warehouse, named_queries

QUERIES = named_queries(MIGRATIONS, "ingest.sql")

KEPT_CHARACTERS = 65_536
# What a cut leaves of a card number or a key would not be recognised: the last piece goes too.
CUT_MARGIN = 256

# Where the formats that are understood keep the user.
_USERS = ("user_id", "user", "user.id", "enduser.id", "safety_identifier")
_USER_ID = re.compile(rf'("(?:{"|".join(map(re.escape, _USERS))})"\s{{0,8}}:\s{{0,8}})"(?:[^"\\]|\\.)*+"?')


@dataclass(frozen=True)
class DeadLetter:
    """A message that is no event, redacted."""

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    payload: str | None

    @property
    def key(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}"

    def message(self) -> dict[str, Any]:
        """As it goes to the dead-letter topic."""
        return asdict(self)


def dead_letter(record: Record, bad: BadPart, redactor: Redactor, pseudonym: Callable[[str], str]) -> DeadLetter:
    """What is kept of a message, or of a part of one, that is no event. Its detail and payload share their numbers.

    Of a CloudEvent in binary mode, the structured form is kept: a replay has no headers.
    """
    value = record.value if bad.part is None else bad.part
    scope = redactor.scope(None if value is None else value[:KEPT_CHARACTERS].decode("utf-8", "replace"))
    envelope = binary_envelope(record.headers) if bad.part is None else {}
    payload = None if value is None else _payload(value, envelope, redactor, scope, pseudonym)
    reason, detail = bad.error.reason, redactor.text(bad.error.detail, scope)
    return DeadLetter(record.topic, record.partition, record.offset, reason, detail, payload)


def _payload(
    value: bytes, envelope: dict[str, Any], redactor: Redactor, scope: Scope, pseudonym: Callable[[str], str]
) -> str:
    if len(value) <= KEPT_CHARACTERS:
        try:
            plain = msgspec.json.decode(value)
            whole = envelope | {"data": plain} if "specversion" in envelope else plain
            # Through the values, so that nothing hides behind JSON's escapes.
            return to_json(redactor.value(_without_users(whole, pseudonym), scope))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # no JSON: as text
    text = value[:KEPT_CHARACTERS].decode("utf-8", "replace")
    text = redactor.text(_USER_ID.sub(r'\1"<USER>"', text), scope)
    return text if len(value) <= KEPT_CHARACTERS else text[:-CUT_MARGIN] + "…"


def _without_users(value: Any, pseudonym: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_without_users(item, pseudonym) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("key") in _USERS and "value" in value:  # an attribute as OpenTelemetry writes it
        return value | {"value": _all_hashed(value["value"], pseudonym)}
    return {
        key: _all_hashed(item, pseudonym) if key in _USERS else _without_users(item, pseudonym)
        for key, item in value.items()
    }


def _all_hashed(value: Any, pseudonym: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _all_hashed(item, pseudonym) for key, item in value.items()}
    if isinstance(value, list):
        return [_all_hashed(item, pseudonym) for item in value]
    return None if value is None else pseudonym(str(value))


def dead_letters(warehouse: Warehouse, limit: int, reason: str | None = None) -> list[dict[str, Any]]:
    """The newest dead letters, newest first: topic, partition, offset, reason, detail, payload, received_at."""
    return warehouse.rows(QUERIES["dead_letters"], {"limit": limit, "reason": reason})


class DeadLetterLimit:
    """Stops ingestion when most of what comes is no event: better than to throw a whole topic away."""

    def __init__(self, share: float, window: int) -> None:
        self._share, self._last = share, deque[bool](maxlen=window)

    def check(self, events: int, dead: int, example: DeadLetter | None) -> None:
        """Count a batch.

        Raises:
            TooManyDeadLetters: the share over the last window, once that is full, is above the limit.
        """
        self._last.extend([False] * (events - dead) + [True] * dead)
        found = sum(self._last)
        if len(self._last) == self._last.maxlen and found > self._share * len(self._last):
            last = f"; the last one: {example.key}, {example.reason}, {example.detail}" if example else ""
            raise TooManyDeadLetters(
                f"{found} of the last {len(self._last)} messages are no events "
                f"(ingest.dead_letter_share_limit {self._share:g}); they are in dead_letters; "
                f"correct the producer and start again{last}"
            )
