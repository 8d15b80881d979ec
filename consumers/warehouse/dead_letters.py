"""Dead letters: redacted copies of messages that are not events."""

import base64
import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from retuned.consumers.formats.cloudevents import binary_envelope
from retuned.consumers.formats.dialects import CONFLUENT_HEADER_BYTES, CONFLUENT_MAGIC, BadPart
from retuned.consumers.formats.events import UNFORESEEN, to_json
from retuned.consumers.formats.users import KEY, Pseudonyms
from retuned.consumers.kafka.contract import Record
from retuned.consumers.privacy.placeholders import Scope
from retuned.consumers.privacy.redactor import Redactor
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
# Encoded data, which cannot be redacted if the message is not JSON or is truncated.
_ENCODED = re.compile(r'(\\{0,8}"data_base64\\{0,8}"\s{0,8}:\s{0,8})\\{0,8}"[^"\\]*+(?:\\{0,8}")?')
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
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
    redacted, such as Avro and damaged Protobuf, is not kept: users cannot be found in it.
    """
    reason = bad.error.reason
    try:
        value = record.value if bad.part is None else bad.part
        scope = redactor.scope(None if value is None else value[:KEPT_CHARACTERS].decode("utf-8", "replace"))
        envelope = binary_envelope(record.headers) if bad.part is None else {}
        payload = None if value is None else _payload(value, envelope, redactor, scope, pseudonym)
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
    value: bytes, envelope: dict[str, Any], redactor: Redactor, scope: Scope, pseudonym: Callable[[str], str]
) -> str | None:
    is_framed = value.startswith(CONFLUENT_MAGIC)
    if is_framed:
        value = value[CONFLUENT_HEADER_BYTES:]
    if len(value) <= KEPT_CHARACTERS:
        try:
            plain = msgspec.json.decode(value)
            whole = envelope | {"data": plain} if "specversion" in envelope else plain
            # Redacts decoded values, so that JSON's escapes hide nothing.
            return to_json(redactor.value(_readable(whole), scope, Pseudonyms(pseudonym)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # not JSON: kept as text
    if not _is_text(value, is_framed):
        return None
    text = value[:KEPT_CHARACTERS].decode("utf-8", "replace")
    text = redactor.text(_without_user_ids(text), scope)
    return text if len(value) <= KEPT_CHARACTERS else text[:-CUT_MARGIN] + "…"


def _is_text(value: bytes, is_framed: bool) -> bool:
    """Whether a message that is not JSON is text: it begins like JSON, or has no control characters.

    In a schema registry's frame, it has to begin like an object or an array: Avro's bytes around long texts may look
    like text, and its first byte may be a quote.
    """
    begin = value[:64].lstrip(codecs.BOM_UTF8 + b" \t")[:1]
    if begin in (b"{", b"["):
        return True
    return not is_framed and (begin == b'"' or not _CONTROL.search(value))


def _without_user_ids(text: str) -> str:
    """Removes users and encoded data from text that is not JSON."""
    return _USER_ID.sub(r'\1"<USER>"', _ENCODED.sub(r'\1"<BASE64>"', text))


def _readable(value: Any) -> Any:
    """Decodes everything in a value that may hide a user: encoded data and JSON in texts."""
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
    """Decodes the data of an envelope; data that is not text cannot be redacted, and is dropped."""
    rest = {key: item for key, item in envelope.items() if key != "data_base64"}
    try:
        text = base64.b64decode(envelope["data_base64"], validate=True).decode()
    except (TypeError, ValueError):
        return rest
    try:
        return rest | {"data": msgspec.json.decode(text)}
    except msgspec.DecodeError:
        return rest | {"data": text}


def _readable_text(text: str) -> str:
    """Decodes a text that may be JSON, in which envelopes and spans carry events."""
    if text.lstrip()[:1] not in ("{", "["):
        return _without_user_ids(text)
    try:
        value = msgspec.json.decode(text)
        readable = _readable(value)
        return text if readable == value else to_json(readable)
    except msgspec.DecodeError:
        return _without_user_ids(text)


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
