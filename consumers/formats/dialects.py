"""Translates other formats into our events. Formats are recognised by content and may be mixed in one topic.

docs/formats.md has tables of the formats, and of which field becomes which. A translation only fills in the fields of
an event; `events` validates them, as it does ours. Messages known to be neither an answer nor feedback are passed over,
with a reason. A message may be an array of events, and events may lie in nested envelopes.
"""

import codecs
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from retuned.consumers.formats import (
    bedrock,
    calls,
    cloudevents,
    helicone,
    langfuse,
    langsmith,
    litellm,
    mlflow,
    native,
    openai,
    otel,
    otlp,
    tensorzero,
    vertex,
)
from retuned.consumers.formats.events import BadEvent, Bounds, Event, Kind, PassedOver, decode, read
from retuned.consumers.formats.messages import Plain
from retuned.consumers.formats.work import MOST_LETTERS, PART, Budget, work_of
from retuned.consumers.kafka.contract import Headers

CONFLUENT_MAGIC = b"\x00"
CONFLUENT_HEADER_BYTES = 5  # the magic byte and the id of the schema
ENVELOPES = 3
TOO_MUCH = (
    "more events, spans or log records, or more strings and digits in them, than one message may hold; {} parts of it "
    "are stored or counted; send fewer at a time (formats.md#bounds)"
)
TOO_MANY_LETTERS = "{} more parts of the message are not events; the first {} have a dead letter each"
SCHEMA_REGISTRY = (
    "Avro or Protobuf with schema {} of a schema registry, which is not supported; write JSON (with or without JSON "
    "Schema) from the producer, or convert the topic, for example with ksqlDB or Kafka Connect"
)

PASSED_OVER = {
    "no_model_call": "spans and log records of other work than calls of a model",
    "other_operation": "steps around an answer: tools, agents, chains, retrievers, embeddings",
    "without_content": "spans without prompt and answer; set OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT in the "
    "app (OpenInference: OPENINFERENCE_HIDE_INPUTS and OPENINFERENCE_HIDE_OUTPUTS to false), if the content is not in "
    "log records beside them",
    "message_alone": "log records of a single message; the span that has all of them is stored",
    "failed_call": "calls of a model that failed: there is no answer",
    "further_choice": "answers beside the first one to the same request (n above 1); the first one is stored",
    "request_alone": "requests without their response: a span or record that is not finished, the input of a batch",
    "no_verdict": "scores and assessments without a value, a comment, or a correction that is a text",
    "withdrawn": "datapoints that were deleted, or replaced by a later version",
    "about_a_trace": "scores of a trace or session as a whole, which name no answer",
}
"""The reasons for which messages are passed over, with their explanations."""

Found = Event | PassedOver
Translated = Iterable[tuple[Kind, Plain] | PassedOver]

# The first match wins, so narrow tests come before wide ones.
FORMATS: tuple[tuple[str, Callable[[Plain], bool], Callable[[Plain], Translated]], ...] = (
    ("LiteLLM", litellm.is_payload, litellm.events),
    ("LangSmith", langsmith.is_run, langsmith.events),
    ("Langfuse", langfuse.is_row, langfuse.events),
    ("MLflow", mlflow.is_trace, mlflow.events),
    ("TensorZero", tensorzero.is_row, tensorzero.events),
    ("Helicone", helicone.is_row, helicone.events),
    ("Bedrock's logs", bedrock.is_log, bedrock.events),
    ("Vertex AI's logs", vertex.is_row, vertex.events),
    ("requests with responses", calls.is_call, calls.events),
    ("OpenTelemetry", otel.is_otel, otel.events),
)


class BadPart(msgspec.Struct, frozen=True):
    """A part of a message that is not a valid event.

    Attributes:
        part: the part as JSON; None if it is the whole message.
    """

    error: BadEvent
    part: bytes | None = None


def decode_any(kind: Kind, payload: bytes | None, headers: Headers, bounds: Bounds) -> list[Found | BadPart]:
    """Decodes one message in any of the formats. Most hold one event; a batch of spans holds many or none.

    Our own format is tried first, so that the others add no cost to it. A message in none of them is reported as an
    invalid event of ours. `kind` is that of the topic, and decides where the content is ambiguous. Every problem with
    the message is an item of the list; nothing is raised.
    """
    try:
        return _decoded(kind, payload, headers, bounds)
    except BadEvent as error:
        return [BadPart(error)]
    except Exception as error:  # noqa: BLE001  (no message may stop the stream)
        return [BadPart(BadEvent.unforeseen(error))]


def _decoded(kind: Kind, payload: bytes | None, headers: Headers, bounds: Bounds) -> list[Found | BadPart]:
    if payload and payload.startswith(CONFLUENT_MAGIC):
        payload = _unframed(payload)
    if payload and payload.startswith(codecs.BOM_UTF8):
        payload = payload[len(codecs.BOM_UTF8) :]
    try:
        return [decode(kind, payload, bounds)]
    except BadEvent as error:
        value = _value(payload, error)
        is_text = error.reason == "not_an_event"
    parts = _translated(kind, value, cloudevents.binary_envelope(headers), bounds)
    return parts if is_text else [_as_json(item, value) for item in parts]


def _as_json(item: Found | BadPart, value: Any) -> Found | BadPart:
    """Keeps the content of a message that was not JSON in its dead letter, to be read, redacted and replayed."""
    return BadPart(item.error, msgspec.json.encode(value)) if isinstance(item, BadPart) and not item.part else item


def _unframed(payload: bytes) -> bytes:
    """Returns the JSON inside the frame of a schema registry.

    Raises:
        BadEvent: the content is not JSON.
    """
    inside = payload[CONFLUENT_HEADER_BYTES:]
    if inside and inside.lstrip()[:1] not in (b"{", b"[", b'"'):
        schema = int.from_bytes(payload[1:CONFLUENT_HEADER_BYTES], "big")
        raise BadEvent("schema_registry", SCHEMA_REGISTRY.format(schema))
    return inside


def _value(payload: bytes | None, error: BadEvent) -> Any:
    """Decodes a message that is not in our own format.

    Raises:
        BadEvent: `error`, if the message cannot be in another format either.
    """
    if payload is None or error.reason not in ("not_json", "not_utf8", "not_an_event"):
        raise error
    if error.reason != "not_an_event":
        if not otlp.is_protobuf(payload):
            raise error
        return otlp.decode(payload)
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise error from None  # our decoder stopped before the end, where the JSON is broken


def foreign(value: Any) -> str | None:
    """Returns the name of the other format that a decoded message looks like; None: `decode_any` reads it as ours."""
    if not isinstance(value, dict):
        return None
    if "specversion" in value:
        return "CloudEvents"
    return next((name for name, fits, _ in FORMATS if fits(value)), None)


def _translated(kind: Kind, value: Any, envelope: Plain, bounds: Bounds) -> list[Found | BadPart]:
    """Returns the parts of a message up to the limit, and a dead letter of the whole message where it has more."""
    value, envelope = _unwrapped(value, envelope)
    budget = Budget(bounds.work)
    if not isinstance(value, list) or not value or openai.are_chunks(value):
        parts = _events(kind, value, envelope, bounds, budget)
    else:
        parts = _events_of_array(kind, value, envelope, bounds, budget)
        bad = [part.error for part in parts if isinstance(part, BadPart)]
        if bad and len(bad) == len(parts):  # not an array of events at all
            return [BadPart(bad[0])]
    if budget.is_over:
        parts.append(BadPart(BadEvent("too_many", TOO_MUCH.format(f"{len(parts):,}"))))
    elif (further := budget.refused - MOST_LETTERS) > 0:
        detail = TOO_MANY_LETTERS.format(f"{further:,}", f"{MOST_LETTERS:,}")
        parts.append(BadPart(BadEvent("too_many", detail)))
    return parts


def _events_of_array(
    kind: Kind, values: list[Any], envelope: Plain, bounds: Bounds, budget: Budget
) -> list[Found | BadPart]:
    """Returns the events of an array, and a dead letter for each invalid item."""
    around = {**envelope, "id": None}  # the id of the envelope identifies none of the items
    parts: list[Found | BadPart] = []
    for value in values:
        if not budget.spend(PART):
            break
        for part in _events(kind, value, around, bounds, budget):
            if isinstance(part, BadPart) and part.part is None:
                part = BadPart(part.error, msgspec.json.encode(value))
            parts.append(part)
    return parts


def _events(kind: Kind, value: Any, envelope: Plain, bounds: Bounds, budget: Budget) -> list[Found | BadPart]:
    """Translates one event, or one batch of spans, until the budget is spent."""
    parts: list[Found | BadPart] = []
    count = 0
    try:
        value, envelope = _unwrapped(value, envelope)
        for item in _recognised(kind, value, envelope):
            count += 1
            part = _event(item, envelope, bounds, budget)
            if budget.is_over:
                return parts
            if part is not None:
                parts.append(part)
        if not count and otel.is_batch(value):
            return [PassedOver("no_model_call")]
        if not count:
            raise BadEvent("not_an_event", "holds no answer and no feedback")
    except BadEvent as bad:
        return [*parts, BadPart(bad)] if budget.refuse() else parts
    if count == 1 and parts and isinstance(parts[0], BadPart):
        return [BadPart(parts[0].error)]
    return parts


def _event(
    item: tuple[Kind, Plain] | PassedOver, envelope: Plain, bounds: Bounds, budget: Budget
) -> Found | BadPart | None:
    """Translates one part within the budget; None if it is invalid and the limit of dead letters is reached."""
    if isinstance(item, PassedOver):
        budget.spend(PART)
        return item
    kind, plain = item
    json = msgspec.json.encode(native.coerced(cloudevents.completed(plain, envelope)))
    if not budget.spend(PART + work_of(json)):
        return None
    try:
        return read(kind, json, bounds)
    except BadEvent as bad:
        return BadPart(bad, json) if budget.refuse() else None


def _unwrapped(value: Any, envelope: Plain) -> tuple[Any, Plain]:
    """Returns the content of nested envelopes, and the attributes of the innermost envelope with any.

    Raises:
        BadEvent: the content of an envelope is not JSON.
    """
    for _ in range(ENVELOPES):
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            value = cloudevents.decoded(value, "JSON in a string")
        elif isinstance(value, dict) and value.keys() == {"schema", "payload"}:  # Kafka Connect's JsonConverter
            value = value["payload"]
        elif cloudevents.is_structured(value):
            envelope, value = value, cloudevents.data(value)
        else:
            break
    return value, envelope


def _recognised(kind: Kind, value: Any, envelope: Plain) -> Translated:
    if openai.are_chunks(value):
        value = {"chunks": value}
    if not isinstance(value, dict):
        raise BadEvent("not_an_event", f"expected an object, got {type(value).__name__}")
    if native.is_feedback(value):
        return [("feedback", value)]
    if native.is_interaction(value) and not litellm.is_payload(value):
        return [("interactions", value)]
    if envelope.get("type") in otel.EVENT_NAMES and "attributes" not in value:  # only its envelope names it
        return otel.events({"name": envelope["type"], "attributes": value})
    for _, fits, events in FORMATS:
        if fits(value):
            return events(value)
    return [(kind, value)]
