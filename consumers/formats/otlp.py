"""Decodes OTLP in protobuf, the default of the collector's Kafka exporter, into the form of OTLP JSON.

Decodes the fields of traces and logs that `otel` reads. Wire format and field numbers are stable:
https://protobuf.dev/programming-guides/encoding/ and https://github.com/open-telemetry/opentelemetry-proto
"""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from retuned.consumers.formats.events import BadEvent
from retuned.consumers.formats.messages import Plain

UNREADABLE = (
    "OTLP protobuf that is damaged or holds metrics. Traces and logs are read as the collector sends them; remove "
    "`metrics` from the exporter that writes to this topic"
)
DEEPEST = 200  # nested messages; a list in a list counts two
# The least mean of bytes per nested message: an attribute is two messages with 20 bytes or more, a number in a list
# one with 4 to 11. Empty messages have 2 bytes, and 5 MB of them would keep the daemon busy for seconds.
SPARSEST = 5
_ALWAYS_READ = 1_000
TOO_MANY = (
    "OTLP protobuf with more empty records, attributes or values than any collector or SDK sends; check the producer "
    "of this topic"
)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}
_WIRES = {"bool": _VARINT, "int": _VARINT, "time": _FIXED64, "double": _FIXED64}  # all others are bytes

# The fields of each message by number: the name in JSON and the type. Brackets mark a repeated field.
_MESSAGES: dict[str, dict[int, tuple[str, str]]] = {
    "AnyValue": {
        1: ("stringValue", "string"), 2: ("boolValue", "bool"), 3: ("intValue", "int"), 4: ("doubleValue", "double"),
        5: ("arrayValue", "ArrayValue"), 6: ("kvlistValue", "KeyValueList"), 7: ("bytesValue", "hex"),
    },
    "ArrayValue": {1: ("values", "[AnyValue]")},
    "KeyValueList": {1: ("values", "[KeyValue]")},
    "KeyValue": {1: ("key", "string"), 2: ("value", "AnyValue")},
    "Resource": {1: ("attributes", "[KeyValue]")},
    "ResourceSpans": {1: ("resource", "Resource"), 2: ("scopeSpans", "[ScopeSpans]")},
    "ScopeSpans": {2: ("spans", "[Span]")},
    "Span": {
        1: ("traceId", "hex"), 2: ("spanId", "hex"), 4: ("parentSpanId", "hex"), 5: ("name", "string"),
        7: ("startTimeUnixNano", "time"), 8: ("endTimeUnixNano", "time"), 9: ("attributes", "[KeyValue]"),
        11: ("events", "[Event]"), 15: ("status", "Status"),
    },
    "Event": {1: ("timeUnixNano", "time"), 2: ("name", "string"), 3: ("attributes", "[KeyValue]")},
    "Status": {2: ("message", "string"), 3: ("code", "int")},
    "ResourceLogs": {1: ("resource", "Resource"), 2: ("scopeLogs", "[ScopeLogs]")},
    "ScopeLogs": {2: ("logRecords", "[LogRecord]")},
    "LogRecord": {
        1: ("timeUnixNano", "time"), 5: ("body", "AnyValue"), 6: ("attributes", "[KeyValue]"), 9: ("traceId", "hex"),
        10: ("spanId", "hex"), 11: ("observedTimeUnixNano", "time"), 12: ("eventName", "string"),
    },
}  # fmt: skip


class _Field(NamedTuple):
    name: str
    type: str
    wire: int
    is_repeated: bool


_FIELDS = {
    message: {
        number: _Field(name, inner := type.strip("[]"), _WIRES.get(inner, _BYTES), inner != type)
        for number, (name, type) in fields.items()
    }
    for message, fields in _MESSAGES.items()
}


class _Damaged(ValueError):
    """The bytes are not protobuf, or not one of these messages."""


def is_protobuf(payload: bytes) -> bool:
    """Whether a message is OTLP in protobuf: only resources (field 1), the first of which has no fields but 1 to 3.

    Traces, logs and metrics share these numbers.
    """
    try:
        first = next(_fields(payload), (0, 0, b""))
        return (
            first[:2] == (1, _BYTES)
            and bool(first[2])
            and all(number in (1, 2, 3) and wire == _BYTES for number, wire, _ in _fields(first[2]))
            and all(number == 1 and wire == _BYTES for number, wire, _ in _fields(payload))
        )
    except _Damaged:
        return False


def decode(payload: bytes) -> Plain:
    """Returns traces or logs in the form of OTLP JSON; times are integers.

    Raises:
        BadEvent: the message is damaged, nested too deeply, mostly empty, or holds neither traces nor logs.
    """
    # The message does not name its signal. A span begins with two ids, a log record with a time or a number.
    for name, signal in (("resourceSpans", "ResourceSpans"), ("resourceLogs", "ResourceLogs")):
        left = iter(range(_ALWAYS_READ + len(payload) // SPARSEST))
        try:
            return {name: [_message(signal, resource, left) for _, _, resource in _fields(payload)]}
        except (_Damaged, UnicodeDecodeError):
            continue
    raise BadEvent("otlp_protobuf", UNREADABLE)


def _message(kind: str, data: bytes, left: Iterator[int], depth: int = 0) -> Plain:
    """Decodes one message with all nested ones. `left` ends at the limit of messages."""
    if depth > DEEPEST:
        raise BadEvent("too_deep", "nested too deeply")
    if next(left, None) is None:
        raise BadEvent("too_many", TOO_MANY)
    fields, message = _FIELDS[kind], dict[str, Any]()
    for number, wire, raw in _fields(data):
        field = fields.get(number)
        if field is None:
            continue
        if wire != field.wire:
            raise _Damaged
        value = _message(field.type, raw, left, depth + 1) if field.type in _FIELDS else _scalar(field.type, raw)
        if field.is_repeated:
            message.setdefault(field.name, []).append(value)
        else:
            message[field.name] = value
    if kind == "Span" and (len(message.get("traceId", "")) != 32 or len(message.get("spanId", "")) != 16):
        raise _Damaged
    return message


def _scalar(type: str, raw: Any) -> Any:
    if type == "string":
        return raw.decode()
    if type == "hex":
        return raw.hex()
    if type == "bool":
        return bool(raw)
    if type == "int":
        return raw - 2**64 if raw >= 2**63 else raw
    value: float | int = struct.unpack("<d" if type == "double" else "<Q", raw)[0]
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yields the number, the wire type and the value of each field: an integer or bytes.

    Raises:
        _Damaged: a field ends beyond the message.
    """
    at, end = 0, len(data)
    while at < end:
        tag, at = data[at], at + 1
        if tag >= 0x80:  # nearly all tags have one byte, and a call for each would take half of the time
            tag, at = _varint(data, at - 1)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES and at < end and data[at] < 0x80:
            size, at = data[at], at + 1
        elif wire == _BYTES:
            size, at = _varint(data, at)
        elif wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        elif wire in _SIZES:
            size = _SIZES[wire]
        else:
            raise _Damaged
        if not number or at + size > end:
            raise _Damaged
        yield number, wire, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns an unsigned 64-bit number and the start of the next field."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise _Damaged
