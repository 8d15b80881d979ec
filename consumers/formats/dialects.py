"""Other people's formats onto ours, recognised by content and mixed in one topic as they come.

docs/formats.md has a table of the formats, and of which field becomes which. A translation only fills in the events of
`events`; there they are checked, as ours are. What is known to be neither an answer nor feedback is passed over, with a
reason. A message may be an array of events, and events may lie in envelopes, one in the other.
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
CONFLUENT_HEADER_BYTES = 5  # the magic byte and the number of the schema
ENVELOPES = 3
TOO_MUCH = (
    "more events, spans or log records, or more strings and digits in them, than one message may hold; {} parts of it "
    "are stored or counted; have its producer send fewer at a time (formats.md#bounds)"
)
TOO_MANY_LETTERS = "{} further parts of the message are no events; the first {} are dead letters of their own"
SCHEMA_REGISTRY = (
    "Avro or Protobuf under schema {} of a schema registry, which is not read; have the producer write JSON (with or "
    "without JSON Schema), or convert the topic, for example with ksqlDB or Kafka Connect"
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
    "about_a_trace": "scores of a trace or session as a whole, which name no answer",
}
"""Why messages are passed over, for a person."""

Found = Event | PassedOver
Translated = Iterable[tuple[Kind, Plain] | PassedOver]

# The first that fits wins, so that a narrow test stands before a wide one.
FORMATS: tuple[tuple[Callable[[Plain], bool], Callable[[Plain], Translated]], ...] = (
    (litellm.is_payload, litellm.events),
    (langsmith.is_run, langsmith.events),
    (langfuse.is_row, langfuse.events),
    (mlflow.is_trace, mlflow.events),
    (tensorzero.is_row, tensorzero.events),
    (helicone.is_row, helicone.events),
    (bedrock.is_log, bedrock.events),
    (vertex.is_row, vertex.events),
    (calls.is_call, calls.events),
    (otel.is_otel, otel.events),
)


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
    except BadEvent as error:
        return [BadPart(error)]
    except Exception as error:  # noqa: BLE001  (what one message holds must not stop the stream)
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
    found = _translated(kind, value, cloudevents.binary_envelope(headers), bounds)
    return found if is_text else [_as_json(item, value) for item in found]


def _as_json(item: Found | BadPart, value: Any) -> Found | BadPart:
    """Of a message that was no JSON, a letter keeps what it held: that can be read, redacted and decoded again."""
    return BadPart(item.error, msgspec.json.encode(value)) if isinstance(item, BadPart) and not item.part else item


def _unframed(payload: bytes) -> bytes:
    """JSON without the frame of a schema registry.

    Raises:
        BadEvent: what it frames is no JSON.
    """
    inside = payload[CONFLUENT_HEADER_BYTES:]
    if inside and inside.lstrip()[:1] not in (b"{", b"[", b'"'):
        schema = int.from_bytes(payload[1:CONFLUENT_HEADER_BYTES], "big")
        raise BadEvent("schema_registry", SCHEMA_REGISTRY.format(schema))
    return inside


def _value(payload: bytes | None, error: BadEvent) -> Any:
    """A message that is no event of ours, decoded.

    Raises:
        BadEvent: `error`, where it is nothing that could be another format.
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
        raise error from None  # ours was refused before its end was read


def is_foreign(value: Any) -> bool:
    """Whether a decoded message is in another format that `decode_any` understands, by its look."""
    return isinstance(value, dict) and ("specversion" in value or any(fits(value) for fits, _ in FORMATS))


def _translated(kind: Kind, value: Any, envelope: Plain, bounds: Bounds) -> list[Found | BadPart]:
    """The parts of a message, as many as one may hold, and a letter that keeps all of it where it holds more."""
    value, envelope = _unwrapped(value, envelope)
    budget = Budget(bounds.work)
    if not isinstance(value, list) or not value or openai.are_chunks(value):
        found = _events(kind, value, envelope, bounds, budget)
    else:
        found = _events_of_array(kind, value, envelope, bounds, budget)
        bad = [part.error for part in found if isinstance(part, BadPart)]
        if bad and len(bad) == len(found):  # no array of events at all
            return [BadPart(bad[0])]
    if budget.is_over:
        found.append(BadPart(BadEvent("too_many", TOO_MUCH.format(f"{len(found):,}"))))
    elif (further := budget.refused - MOST_LETTERS) > 0:
        detail = TOO_MANY_LETTERS.format(f"{further:,}", f"{MOST_LETTERS:,}")
        found.append(BadPart(BadEvent("too_many", detail)))
    return found


def _events_of_array(
    kind: Kind, values: list[Any], envelope: Plain, bounds: Bounds, budget: Budget
) -> list[Found | BadPart]:
    """The events of an array, and a letter for each that is none."""
    around = {**envelope, "id": None}  # the id of the envelope is that of none of them
    found: list[Found | BadPart] = []
    for value in values:
        if not budget.spend(PART):
            break
        for made in _events(kind, value, around, bounds, budget):
            if isinstance(made, BadPart) and made.part is None:
                made = BadPart(made.error, msgspec.json.encode(value))
            found.append(made)
    return found


def _events(kind: Kind, value: Any, envelope: Plain, bounds: Bounds, budget: Budget) -> list[Found | BadPart]:
    """What one event, or one batch of spans, comes to, until the budget is spent."""
    found: list[Found | BadPart] = []
    count = 0
    try:
        value, envelope = _unwrapped(value, envelope)
        for item in _recognised(kind, value, envelope):
            count += 1
            made = _event(item, envelope, bounds, budget)
            if budget.is_over:
                return found
            if made is not None:
                found.append(made)
        if not count and otel.is_batch(value):
            return [PassedOver("no_model_call")]
        if not count:
            raise BadEvent("not_an_event", "holds no answer and no feedback")
    except BadEvent as bad:
        return [*found, BadPart(bad)] if budget.refuse() else found
    if count == 1 and found and isinstance(found[0], BadPart):
        return [BadPart(found[0].error)]
    return found


def _event(
    item: tuple[Kind, Plain] | PassedOver, envelope: Plain, bounds: Bounds, budget: Budget
) -> Found | BadPart | None:
    """One part of a message, paid for; None where it is no event and there are letters enough."""
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
    """What lies in envelopes, and the attributes of the innermost one that has some.

    Raises:
        BadEvent: an envelope holds no JSON.
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
    if envelope.get("type") in otel.EVENT_NAMES and "attributes" not in value:  # named by its envelope alone
        return otel.events({"name": envelope["type"], "attributes": value})
    for fits, events in FORMATS:
        if fits(value):
            return events(value)
    return [(kind, value)]
