"""Other people's formats onto ours, recognised by content and mixed in one topic as they come.

Understood: OpenAI request/response logs (chat completions, completions, responses), OpenTelemetry GenAI (`otel`),
CloudEvents around any of them (structured and binary), and Confluent's framing. docs/formats.md has a table of which
field becomes which. A translation only fills in the events of `events`; there they are checked, as ours are. What is
known to be neither an answer nor feedback is passed over, with a reason.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from retuned.consumers.formats import cloudevents, openai, otel
from retuned.consumers.formats.events import BadEvent, Bounds, Event, Kind, PassedOver, convert, decode
from retuned.consumers.formats.messages import Plain
from retuned.consumers.kafka.contract import Headers

CONFLUENT_MAGIC = b"\x00"
CONFLUENT_HEADER_BYTES = 5  # the magic byte and the number of the schema
ENVELOPES = 3

PASSED_OVER = {
    "no_model_call": "spans and log records of other work than calls of a model",
    "openinference": "spans of OpenInference (llm.*), which are not understood; have the app send OpenTelemetry GenAI",
    "other_operation": "spans of steps around an answer: tools, agents, embeddings",
    "without_content": "spans without prompt and answer; set OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT in the "
    "app, if they are not in log records beside them",
    "message_alone": "log records of a single message; the span that has all of them is stored",
    "failed_call": "calls of a model that failed: there is no answer",
}
"""Why messages are passed over, for a person."""

Found = Event | PassedOver


class BadPart(msgspec.Struct, frozen=True):
    """What is no event, in a message that may hold several.

    Attributes:
        part: that part alone, as JSON; None when it is the whole message.
    """

    error: BadEvent
    part: bytes | None = None


def decode_any(kind: Kind, payload: bytes | None, headers: Headers, bounds: Bounds) -> list[Found | BadPart]:
    """The events of one message in any of the formats: mostly one; of a batch of spans, many or none.

    Ours is tried first, so that the others cost it nothing. A message in none of them is reported as no event of ours.
    `kind` is what the topic is for; it decides where the content does not. Whatever is wrong with a message is in the
    list, and never raised.
    """
    try:
        return _decoded(kind, payload, headers, bounds)
    except Exception as error:  # noqa: BLE001  (what one message holds must not stop the stream)
        return [BadPart(BadEvent.unforeseen(error))]


def _decoded(kind: Kind, payload: bytes | None, headers: Headers, bounds: Bounds) -> list[Found | BadPart]:
    if payload and payload.startswith(CONFLUENT_MAGIC):
        payload = payload[CONFLUENT_HEADER_BYTES:]
    try:
        return [decode(kind, payload, bounds)]
    except BadEvent as error:
        if payload is not None and error.reason in ("not_json", "not_utf8") and otel.is_protobuf(payload):
            return [BadPart(BadEvent("otlp_protobuf", otel.PROTOBUF))]
        if error.reason != "not_an_event" or payload is None:
            return [BadPart(error)]
        try:
            value = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return [BadPart(error)]  # ours was refused before its end was read
        return list(_translated(value, headers, error, bounds))


def is_foreign(value: Any) -> bool:
    """Whether a decoded message is in another format that `decode_any` understands, by its look."""
    if not isinstance(value, dict):
        return False
    return openai.is_log(value) or "specversion" in value or otel.is_otel(value)


def _translated(value: Any, headers: Headers, error: BadEvent, bounds: Bounds) -> Iterator[Found | BadPart]:
    """`error` says why it is no event of ours; it stands if it is none of anybody's."""
    envelope = cloudevents.binary_envelope(headers)
    try:
        for _ in range(ENVELOPES):
            if not cloudevents.is_structured(value):
                break
            envelope, value = value, cloudevents.data(value)
        found = list(_recognised(value, envelope))
    except BadEvent as bad:
        yield BadPart(bad)
        return
    if not found:  # of OpenTelemetry: no record, or none that is one
        yield PassedOver("no_model_call") if otel.is_otel(value) else BadPart(error)
    for item in found:
        if isinstance(item, PassedOver):
            yield item
            continue
        kind, plain = item
        whole = cloudevents.completed(plain, envelope)
        try:
            yield convert(kind, whole, bounds)
        except BadEvent as bad:
            yield BadPart(bad, msgspec.json.encode(whole) if len(found) > 1 else None)


def _recognised(value: Any, envelope: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    if not isinstance(value, dict):
        return
    if value.keys() >= {"interaction_id", "name"}:
        yield "feedback", value
    elif "messages" in value and isinstance(value.get("response"), str):
        yield "interactions", value
    elif openai.is_log(value):
        yield PassedOver("failed_call") if openai.failed(value) else ("interactions", openai.interaction(value))
    elif envelope.get("type") in otel.EVENT_NAMES and "attributes" not in value:  # named by its envelope alone
        yield from otel.events({"name": envelope["type"], "attributes": value})
    elif otel.is_otel(value):
        yield from otel.events(value)
