"""The two events that apps publish, interactions and feedback: their shape, their decoding, their JSON Schema."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Kind = Literal["interactions", "feedback"]

Identifier = Annotated[str, Meta(min_length=1, max_length=512)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Amount = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Timestamp = Annotated[datetime, Meta(description="ISO 8601 (RFC 3339); without an offset it is UTC.")]


class BadEvent(Exception):
    """A message that is no event. It becomes a dead letter and stops nothing.

    Attributes:
        reason: a code that is counted: empty, too_large, not_utf8, not_json, too_deep, not_an_event or bad_value.
        detail: what was wrong, for a person. It may quote the message.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Interaction(msgspec.Struct, kw_only=True, gc=False):
    """What a model was asked and what it answered. Unknown fields are ignored."""

    id: Annotated[Identifier, Meta(description="Unique; a second event with it is a duplicate.")]
    timestamp: Timestamp
    workload: Annotated[Name, Meta(description="The kind of request: a route, an agent node.")]
    model: Annotated[Name, Meta(description="The model that answered, as it is served.")]
    messages: Annotated[
        list[dict[str, Any]],
        Meta(min_length=1, description="The prompt: objects with `role` and `content`; other fields are kept."),
    ]
    response: Annotated[str, Meta(description="What the model answered.")]
    context: Annotated[list[str], Meta(description="Passages that were retrieved for the answer.")] | None = None
    conversation_id: Identifier | None = None
    user_id: Annotated[Identifier, Meta(description="Stored as a keyed hash.")] | None = None
    latency_seconds: Amount | None = None
    time_to_first_token_seconds: Amount | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cost: Amount | None = None
    finish_reason: Name | None = None
    attributes: Annotated[dict[str, Any], Meta(description="Anything else, by name.")] | None = None


class Feedback(msgspec.Struct, kw_only=True, gc=False):
    """What somebody thought of an answer. It may come before its interaction. Unknown fields are ignored."""

    id: Annotated[Identifier, Meta(description="Unique; a second event with it is a duplicate.")]
    timestamp: Timestamp
    interaction_id: Identifier
    name: Annotated[
        Name,
        Meta(
            description="Reserved: helpful, hallucination, resolved, escalated (boolean); rating (0 to 1); "
            "time_saved_seconds (number); correction, comment (string). Any other name is stored as it is."
        ),
    ]
    value: Annotated[bool | float | int | str, Meta(description="A boolean, a number or a string.")]
    source: Literal["user", "expert", "judge", "app"] = "user"
    user_id: Annotated[Identifier, Meta(description="Stored as a keyed hash.")] | None = None


Event = Interaction | Feedback

_INTERACTION = msgspec.json.Decoder(Interaction)
_FEEDBACK = msgspec.json.Decoder(Feedback)
_TO_JSON = msgspec.json.Encoder()


def decode(kind: Kind, payload: bytes | None, max_bytes: int = 5_000_000) -> Event:
    """One event from the bytes of one message. Timestamps come back as naive UTC.

    Raises:
        BadEvent: it is not one; the reason is a code.
    """
    if not payload:
        raise BadEvent("empty", "the message has no value")
    if len(payload) > max_bytes:
        raise BadEvent("too_large", f"{len(payload)} bytes, the limit is {max_bytes} (ingest.max_event_bytes)")
    event: Event
    try:
        event = _INTERACTION.decode(payload) if kind == "interactions" else _FEEDBACK.decode(payload)
    except msgspec.ValidationError as error:
        raise BadEvent("not_an_event", str(error)) from error
    except msgspec.DecodeError as error:
        raise BadEvent("not_json", str(error)) from error
    except UnicodeDecodeError as error:
        raise BadEvent("not_utf8", f"{error.reason} in a string") from error
    except RecursionError as error:
        raise BadEvent("too_deep", "nested too deeply") from error
    return _checked(event)


def convert(kind: Kind, value: Any) -> Event:
    """One event from decoded JSON, under the same rules as `decode`.

    Raises:
        BadEvent: it is not one; the reason is a code.
    """
    event: Event
    try:
        event = msgspec.convert(value, Interaction) if kind == "interactions" else msgspec.convert(value, Feedback)
    except msgspec.ValidationError as error:
        raise BadEvent("not_an_event", str(error)) from error
    return _checked(event)


def _checked(event: Event) -> Event:
    event.timestamp = _naive_utc(event.timestamp)
    if event.id.isspace():
        raise BadEvent("bad_value", "id: expected more than white space")
    if isinstance(event, Interaction):
        _check_messages(event.messages)
    else:
        _check_value(event.name, event.value)
    return event


def to_json(value: Any) -> str:
    """JSON text of a decoded value."""
    return _TO_JSON.encode(value).decode()


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schemas (draft 2020-12) of both events, made from the code: `interaction` and `feedback`."""
    schemas = {}
    for name, kind in (("interaction", Interaction), ("feedback", Feedback)):
        made = msgspec.json.schema(kind)
        body = made["$defs"][kind.__name__]
        schemas[name] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **body}
    message = {
        "type": "object",
        "properties": {"role": {"type": "string", "minLength": 1}, "content": {"type": ["string", "array", "null"]}},
        "required": ["role"],
    }
    schemas["interaction"]["properties"]["messages"]["items"] = message
    return schemas


def _naive_utc(timestamp: datetime) -> datetime:
    if timestamp.tzinfo is not UTC and timestamp.tzinfo is not None:
        try:
            timestamp = timestamp.astimezone(UTC)
        except OverflowError as error:
            raise BadEvent("bad_value", "timestamp: out of range") from error
    plain = timestamp.replace(tzinfo=None)
    if not 1970 <= plain.year < 2200:
        # A clock was wrong, and one such row would stretch every window over all of history.
        raise BadEvent("bad_value", f"timestamp: {plain.isoformat()} is not between 1970 and 2200")
    return plain


def _check_messages(messages: list[dict[str, Any]]) -> None:
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if type(role) is not str or not role:
            raise BadEvent("bad_value", "messages: each needs a role, a string that is not empty")
        if type(content) is not str and content is not None and type(content) is not list:
            raise BadEvent("bad_value", "messages: content is a string, a list of parts or null")


_BOOLEANS = frozenset({"helpful", "hallucination", "resolved", "escalated"})
_NUMBERS = frozenset({"rating", "time_saved_seconds"})
_STRINGS = frozenset({"correction", "comment"})


def _check_value(name: str, value: bool | float | str) -> None:
    """Reserved names have one type each: a rate over a mix of types would mean nothing."""
    if name in _BOOLEANS:
        fits, expected = isinstance(value, bool), "a boolean"
    elif name in _NUMBERS:
        fits, expected = isinstance(value, int | float) and not isinstance(value, bool), "a number"
        if fits and name == "rating":
            fits, expected = 0 <= float(value) <= 1, "a number from 0 to 1"
    elif name in _STRINGS:
        fits, expected = isinstance(value, str) and bool(value.strip()), "a string that is not empty"
    else:
        return
    if not fits:
        raise BadEvent("bad_value", f"value of {name}: expected {expected}, got {to_json(value)[:100]}")
