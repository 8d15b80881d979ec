"""Dead letters: redacted copies of messages that are not events."""

import base64
import codecs
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import msgspec

from retuned.consumers.formats.cloudevents import binary_envelope
from retuned.consumers.formats.dialects import CONFLUENT_HEADER_BYTES, CONFLUENT_MAGIC, BadPart
from retuned.consumers.formats.events import UNFORESEEN, to_json
from retuned.consumers.formats.users import KEY, Pseudonyms
from retuned.consumers.kafka.contract import Record
from retuned.consumers.privacy.placeholders import Scope
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.settings import PrivacySettings
from retuned.consumers.warehouse.connection import Warehouse, named_queries

QUERIES = named_queries("retuned.consumers.warehouse", "ingest.sql")
PAGE = 200

KEPT_CHARACTERS = 65_536
# A truncated card number or key would not be recognised, so the end is removed, too.
CUT_MARGIN = 256

# A user's key and value in text that is not JSON or contains JSON, at any depth, also as an attribute of OpenTelemetry;
# quotes may be escaped.
_USER_ID = re.compile(
    rf"""(\\{{0,8}}"(?:{KEY})\\{{0,8}}"\s{{0,8}}"""
    r"""(?:,\s{0,8}\\{0,8}"value\\{0,8}"\s{0,8})?:(?:[\s\[{:]|\\{0,8}"[^"\\]{0,64}\\{0,8}"\s{0,8}:)*+)"""
    r"""(?:\\{1,8}"[^"\\]*+(?:\\{1,8}")?|"(?:[^"\\]|\\.)*+"?|[\w.+-]++)?"""
)
# Text that was meant to be JSON, the names of fields in it, and everything else between its brackets.
_LIKE_JSON = re.compile(r'\s*+[\[{][\s\[{]*+"')
_FIELD_OR_VALUE = re.compile(r'((?<=[{,])\s{0,64}"[\w. -]{1,64}"\s{0,8}:)|"(?:[^"\\]|\\.)*+"?|[^\s\[\]{}:,"]++')
# The workload that a message names, whatever else is wrong with it.
_WORKLOAD = re.compile(rb'"workload"\s{0,8}:\s{0,8}"([^"\\]{1,256})"')


@dataclass(frozen=True)
class DeadLetter:
    """A redacted message that is not an event.

    Attributes:
        workload: the workload that it names; None: none.
    """

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    payload: str | None
    workload: str | None = None

    @property
    def key(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}"

    def message(self) -> dict[str, Any]:
        """Returns the message for the dead-letter topic."""
        return asdict(self)


def dead_letter(record: Record, bad: BadPart, redactor: Redactor, pseudonym: Callable[[str], str]) -> DeadLetter:
    """Makes a dead letter of a message, or a part of one, with the same placeholders in detail and payload.

    A CloudEvent in binary mode is kept in structured form, because a replay has no headers. Content that cannot be
    redacted is not kept, because users cannot be found in it: of JSON that is broken or too large, the names of fields
    are left; of Avro, damaged Protobuf and other text, nothing.
    """
    reason = bad.error.reason
    try:
        value = record.value if bad.part is None else bad.part
        scope = redactor.scope(None if value is None else value[:KEPT_CHARACTERS].decode("utf-8", "replace"))
        envelope = binary_envelope(record.headers) if bad.part is None else {}
        payload = None if value is None else _payload(reason, value, envelope, redactor, scope, pseudonym)
        detail = redactor.text(_without_user_ids(bad.error.detail), scope)
        match = _WORKLOAD.search(value or b"", 0, KEPT_CHARACTERS)
        workload = redactor.text(match[1].decode("utf-8", "replace"), scope) if match else None
    except Exception as error:  # noqa: BLE001  (the content of a message must not stop the stream)
        return unredacted(record.topic, record.partition, record.offset, error, reason)
    return DeadLetter(record.topic, record.partition, record.offset, reason, detail, payload, workload)


def unredacted(topic: str, partition: int, offset: int, error: Exception, reason: str = UNFORESEEN) -> DeadLetter:
    """Makes a dead letter without content of a message that cannot be redacted; the error's text may quote it."""
    if isinstance(error, msgspec.ValidationError):  # its text quotes nothing
        detail = f"a nested number is out of range ({error}); the message is only on the broker"
        return DeadLetter(topic, partition, offset, reason, detail, None)
    detail = f"{type(error).__name__} during redaction; the message is only on the broker"
    return DeadLetter(topic, partition, offset, reason, detail, None)


def _payload(
    reason: str,
    value: bytes,
    envelope: dict[str, Any],
    redactor: Redactor,
    scope: Scope,
    pseudonym: Callable[[str], str],
) -> str | None:
    if value.startswith(CONFLUENT_MAGIC):
        value = value[CONFLUENT_HEADER_BYTES:]
    value = value.removeprefix(codecs.BOM_UTF8)
    try:
        if reason == "too_large":  # to search all of it would take too long
            raise msgspec.DecodeError
        plain = msgspec.json.decode(value)
        whole = envelope | {"data": plain} if "specversion" in envelope else plain
        # Decoded values are redacted, so that JSON's escapes hide nothing.
        readable, users = _readable(whole), Pseudonyms(pseudonym)
        if len(value) <= KEPT_CHARACTERS:
            return to_json(redactor.value(readable, scope, users))
        # Users are found before the value is cut, because what comes later may show that a name is a user's.
        begin = _beginning(_users_alone().value(readable, scope, users), [KEPT_CHARACTERS])
        return to_json(redactor.value(begin, scope))[:KEPT_CHARACTERS][:-CUT_MARGIN] + "…"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = value[:KEPT_CHARACTERS].decode("utf-8", "replace")
        return redactor.text(_outline(text), scope) if _LIKE_JSON.match(text) else None


@cache
def _users_alone() -> Redactor:
    return Redactor(PrivacySettings(redact=False))


def _beginning(value: Any, room: list[int]) -> Any:
    """Returns the part of a decoded value that comes first; `room` has the number of characters left for it."""
    if room[0] <= 0:
        return None
    if isinstance(value, dict):
        return {key: _beginning(item, room) for key, item in value.items() if _takes(key, room)}
    if isinstance(value, list):
        return [_beginning(item, room) for item in value if room[0] > 0]
    text = value[: room[0]] if isinstance(value, str) else value
    _takes(str(text), room)
    return text


def _takes(text: str, room: list[int]) -> bool:
    """Takes the room of a text and its punctuation. Returns whether any was left."""
    left, room[0] = room[0], room[0] - len(text) - 4
    return left > 0


def _outline(text: str) -> str:
    """Returns broken JSON with the names of its fields alone: whether a value is a user cannot be known."""
    return _FIELD_OR_VALUE.sub(lambda match: match[1] or "…", text)


def _without_user_ids(text: str) -> str:
    """Removes users from text that is not JSON."""
    return _USER_ID.sub(r'\1"<USER>"', text)


def _readable(value: Any) -> Any:
    """Decodes everything in a value that may hide a user: encoded data and JSON in texts. Outlines broken JSON."""
    if isinstance(value, str):
        return _readable_text(value)
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "data_base64" in value:  # of a CloudEvent
        value = _plain(value)
    return {key: _readable(item) for key, item in value.items()}


def _plain(envelope: dict[str, Any]) -> dict[str, Any]:
    """Decodes the data of an envelope in its place; data that is not text cannot be redacted, and is dropped."""
    try:
        data: Any = base64.b64decode(envelope["data_base64"], validate=True).decode()
    except (TypeError, ValueError):
        return {key: item for key, item in envelope.items() if key != "data_base64"}
    with suppress(msgspec.DecodeError):  # else it is a text
        data = msgspec.json.decode(data)
    return dict(("data", data) if key == "data_base64" else (key, item) for key, item in envelope.items())


def _readable_text(text: str) -> str:
    """Decodes a text that may be JSON, in which envelopes and spans carry events."""
    if text.lstrip()[:1] not in ("{", "["):
        return _without_user_ids(text)
    try:
        value = msgspec.json.decode(text)
        readable = _readable(value)
        return text if readable == value else to_json(readable)
    except msgspec.DecodeError:
        return _outline(text) if _LIKE_JSON.match(text) else _without_user_ids(text)


def refused_rows(warehouse: Warehouse, topic: str) -> int:
    """Counts the messages of a topic that have dead letters, without replayed and archived ones."""
    row = warehouse.row(QUERIES["refused_rows"], {"topic": topic})
    assert row is not None
    return int(row["refused"])


def dead_letters(warehouse: Warehouse, limit: int, reason: str | None = None) -> Iterator[dict[str, Any]]:
    """Yields the newest dead letters first: topic, partition, offset, reason, detail, payload, received_at.

    Payloads are read page by page, so that no cursor stays open while a slow client reads. Letters that are gone by
    then are left out.
    """
    newest = warehouse.rows(QUERIES["newest_dead_letters"], {"limit": limit, "reason": reason})
    places = list(dict.fromkeys(tuple(row.values()) for row in newest))  # parts of a message share its place
    for start in range(0, len(places), PAGE):
        topics, partitions, offsets, times = map(list, zip(*places[start : start + PAGE], strict=True))
        page = {"topics": topics, "partitions": partitions, "offsets": offsets, "times": times, "reason": reason}
        found = warehouse.rows(QUERIES["dead_letters"], page)
        yield from found[:limit]
        limit -= len(found[:limit])
