"""Messages that are no events: what is kept of one."""

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
from retuned.consumers.warehouse.connection import Warehouse, named_queries, rows_of

QUERIES = named_queries("retuned.consumers.warehouse", "ingest.sql")
PAGE = 200

KEPT_CHARACTERS = 65_536
# What a cut leaves of a card number or a key would not be recognised: the last piece goes too.
CUT_MARGIN = 256

# In text that is no JSON, or has JSON within: the key, however deep the value is nested, and as OpenTelemetry writes an
# attribute; quotes may be escaped.
_USER_ID = re.compile(
    rf"""(\\{{0,8}}"(?:{KEY})\\{{0,8}}"\s{{0,8}}"""
    r"""(?:,\s{0,8}\\{0,8}"value\\{0,8}"\s{0,8})?:(?:[\s\[{:]|\\{0,8}"[^"\\]{0,64}\\{0,8}"\s{0,8}:)*+)"""
    r"""(?:\\{1,8}"[^"\\]*+(?:\\{1,8}")?|"(?:[^"\\]|\\.)*+"?|[\w.+-]++)?"""
)
# What is encoded cannot be looked through where the message is no JSON, or is cut.
_ENCODED = re.compile(r'(\\{0,8}"data_base64\\{0,8}"\s{0,8}:\s{0,8})\\{0,8}"[^"\\]*+(?:\\{0,8}")?')
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
# In whatever else is wrong: where a message names its workload.
_WORKLOAD = re.compile(rb'"workload"\s{0,8}:\s{0,8}"([^"\\]{1,256})"')


@dataclass(frozen=True)
class DeadLetter:
    """A message that is no event, redacted.

    Attributes:
        workload: the one it names, if it does.
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
        """As it goes to the dead-letter topic."""
        return asdict(self)


def dead_letter(record: Record, bad: BadPart, redactor: Redactor, pseudonym: Callable[[str], str]) -> DeadLetter:
    """What is kept of a message, or of a part of one, that is no event. Its detail and payload share their numbers.

    Of a CloudEvent in binary mode, the structured form is kept: a replay has no headers. What cannot be redacted is not
    kept, such as Avro and damaged Protobuf: nothing tells there which text is a user.
    """
    reason = bad.error.reason
    try:
        value = record.value if bad.part is None else bad.part
        scope = redactor.scope(None if value is None else value[:KEPT_CHARACTERS].decode("utf-8", "replace"))
        envelope = binary_envelope(record.headers) if bad.part is None else {}
        payload = None if value is None else _payload(value, envelope, redactor, scope, pseudonym)
        detail = redactor.text(_without_user_ids(bad.error.detail), scope)
        named = _WORKLOAD.search(value or b"", 0, KEPT_CHARACTERS)
        workload = redactor.text(named[1].decode("utf-8", "replace"), scope) if named else None
    except Exception as error:  # noqa: BLE001  (what one message holds must not stop the stream)
        return unredacted(record.topic, record.partition, record.offset, error, reason)
    return DeadLetter(record.topic, record.partition, record.offset, reason, detail, payload, workload)


def unredacted(topic: str, partition: int, offset: int, error: Exception, reason: str = UNFORESEEN) -> DeadLetter:
    """Of a message that cannot be redacted: the error's text might quote it."""
    if isinstance(error, msgspec.ValidationError):  # its text quotes nothing
        detail = f"a number that is nested in it is beyond what is stored ({error}); the message is on the broker alone"
        return DeadLetter(topic, partition, offset, reason, detail, None)
    detail = f"{type(error).__name__} while personal data was looked for; the message is on the broker alone"
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
            # Through the values, so that nothing hides behind JSON's escapes.
            return to_json(redactor.value(_readable(whole), scope, Pseudonyms(pseudonym)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # no JSON: as text
    if not _is_text(value, is_framed):
        return None
    text = value[:KEPT_CHARACTERS].decode("utf-8", "replace")
    text = redactor.text(_without_user_ids(text), scope)
    return text if len(value) <= KEPT_CHARACTERS else text[:-CUT_MARGIN] + "…"


def _is_text(value: bytes, is_framed: bool) -> bool:
    """Whether a message that is no JSON is text: it begins as JSON, or has no control characters.

    In the frame of a schema registry the first alone counts, of objects and arrays: Avro has nothing but text around
    long texts, and its first byte may be a quote.
    """
    begin = value[:64].lstrip(codecs.BOM_UTF8 + b" \t")[:1]
    if begin in (b"{", b"["):
        return True
    return not is_framed and (begin == b'"' or not _CONTROL.search(value))


def _without_user_ids(text: str) -> str:
    """Of a text that is no JSON."""
    return _USER_ID.sub(r'\1"<USER>"', _ENCODED.sub(r'\1"<BASE64>"', text))


def _readable(value: Any) -> Any:
    """The value with nothing in it that hides a user: what is encoded, or nearly JSON."""
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
    """The envelope with its content as `data`, decoded; without it, where that is no text and cannot be redacted."""
    held = {key: item for key, item in envelope.items() if key != "data_base64"}
    try:
        text = base64.b64decode(envelope["data_base64"], validate=True).decode()
    except (TypeError, ValueError):
        return held
    try:
        return held | {"data": msgspec.json.decode(text)}
    except msgspec.DecodeError:
        return held | {"data": text}


def _readable_text(text: str) -> str:
    """A text that may be JSON: envelopes and spans carry events as such."""
    if text.lstrip()[:1] not in ("{", "["):
        return _without_user_ids(text)
    try:
        held = msgspec.json.decode(text)
        clean = _readable(held)
        return text if clean == held else to_json(clean)
    except msgspec.DecodeError:
        return _without_user_ids(text)


def count_dead_letters(warehouse: Warehouse, topic: str) -> int:
    """How many dead letters of a topic there are: those that were replayed or archived are none of them."""
    found = warehouse.row(QUERIES["count_dead_letters"], {"topic": topic})
    assert found is not None
    return int(found["letters"])


def dead_letters(warehouse: Warehouse, limit: int, reason: str | None = None) -> Iterator[dict[str, Any]]:
    """The newest dead letters, newest first: topic, partition, offset, reason, detail, payload, received_at.

    Payloads are read a page at a time, of the warehouse as it was when the first one was asked for.
    """
    with warehouse.cursor() as cursor:
        cursor.begin()  # numbers of rows stay the same in a transaction
        try:
            cursor.execute(QUERIES["newest_dead_letters"], {"limit": limit, "reason": reason})
            found = [row for (row,) in cursor.fetchall()]
            for start in range(0, len(found), PAGE):
                yield from rows_of(cursor.execute(QUERIES["dead_letters"], {"rows": found[start : start + PAGE]}))
        finally:
            cursor.rollback()
