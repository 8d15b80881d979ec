"""The two events that apps publish, interactions and feedback: their fields, decoding and validation."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from retuned.consumers.common.tool_calls import are_calls
from retuned.consumers.formats.messages import LONGEST_INLINE, reasoning_of, with_calls, without_media
from retuned.consumers.formats.users import MAY_NAME_USERS, take_user
from retuned.consumers.formats.work import LARGEST, work_of
from retuned.consumers.settings import IngestSettings

Kind = Literal["interactions", "feedback"]

Identifier = Annotated[str, Meta(min_length=1, max_length=512)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
ModelName = Annotated[str, Meta(min_length=1, max_length=512)]  # a workload's name and a version after it
Amount = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Timestamp = Annotated[datetime, Meta(description="ISO 8601 (RFC 3339); without an offset it is UTC.")]


UNFORESEEN = "internal_error"
_QUOTED = re.compile(r"(?s)\AInvalid enum value .*(?= - at )")
"""The decoder's only message that quotes a value."""


class BadEvent(Exception):
    """A message that is not a valid event. It becomes a dead letter, and the stream continues.

    Attributes:
        reason: the code that is counted: empty, too_large, not_utf8, not_json, too_deep, not_an_event, bad_value,
            otlp_protobuf, schema_registry, too_many; unreadable for a batch that is corrupt on the broker;
            internal_error for an unexpected exception.
        detail: what is wrong, as a sentence without text of the message: people who may not read conversations see it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    @classmethod
    def unforeseen(cls, error: Exception) -> "BadEvent":
        """Wraps an unexpected exception, raised while one event was handled, as the cause."""
        if isinstance(error, RecursionError):
            return cls("too_deep", "nested too deeply")
        bad = cls(UNFORESEEN, f"{type(error).__name__}: {error}")
        bad.__cause__ = error
        return bad


class PassedOver(msgspec.Struct, frozen=True):
    """A message, or a part of one, that is known to be neither an answer nor feedback: it is counted, not stored.

    Attributes:
        reason: a key of `dialects.PASSED_OVER`, which explains it.
    """

    reason: str


NESTED = ("messages", "context", "attributes")
# The reserved names of feedback, by the type of their value.
BOOLEANS = frozenset({"helpful", "hallucination", "resolved", "escalated"})
NUMBERS = frozenset({"rating", "time_saved_seconds"})
STRINGS = frozenset({"correction", "comment"})
RESERVED = BOOLEANS | NUMBERS | STRINGS
BACKSLASH = ord("\\")
CALLS = b"_call"  # tool_calls, or the older function_call
SHADOW_ANSWER = "shadow_answer"
"""The name of feedback with source `app` that holds a candidate's answer, which no user saw. It is no opinion."""


class Message(msgspec.Struct, gc=False):
    """One turn of a prompt. Other fields, such as tool calls, are kept."""

    role: Annotated[str, Meta(min_length=1)]
    content: str | list[Any] | None = None


class Answer(msgspec.Struct, gc=False):
    """An answer as a chat message: with tool calls, or reasoning in its own field. Other fields are ignored."""

    content: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None
    reasoning_content: Any = None
    reasoning: Any = None


class Interaction(msgspec.Struct, kw_only=True, gc=False):
    """A request to a model and its answer. Unknown fields are ignored."""

    # Nested fields are stored as JSON, so they stay JSON here: validated, in UTF-8, without escapes that hide text.
    id: Annotated[Identifier, Meta(description="Unique; a second event with the same id is a duplicate.")]
    timestamp: Timestamp
    workload: Annotated[Name, Meta(description="The kind of request: a route, an agent node.")]
    model: Annotated[ModelName, Meta(description="The name under which the answering model is served.")]
    messages: Annotated[Raw, Meta(description="The prompt: objects with `role` and `content`; other fields are kept.")]
    response: Annotated[str | Answer, Meta(description="The answer of the model.")]
    context: Annotated[Raw | UnsetType, Meta(description="The passages that were retrieved for the answer.")] = UNSET
    tools: Annotated[
        Raw | UnsetType, Meta(description="The tools that the model was offered; stored among the attributes.")
    ] = UNSET
    conversation_id: Identifier | None = None
    user_id: Annotated[Identifier, Meta(description="Stored as a keyed hash.")] | None = None
    latency_seconds: Amount | None = None
    time_to_first_token_seconds: Amount | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cost: Amount | None = None
    finish_reason: Name | None = None
    attributes: Annotated[Raw | UnsetType, Meta(description="Any other values, by name.")] = UNSET


class Feedback(msgspec.Struct, kw_only=True, gc=False):
    """Feedback on an answer. It may arrive before its interaction. Unknown fields are ignored."""

    id: Annotated[Identifier, Meta(description="Unique; a second event with the same id is a duplicate.")]
    timestamp: Timestamp
    interaction_id: Identifier
    name: Annotated[
        Name,
        Meta(
            description="Reserved: helpful, hallucination, resolved, escalated (boolean); rating (0 to 1); "
            "time_saved_seconds (number); comment (string); correction (string, or the JSON that the answer should "
            "have been); shadow_answer (an object, from source app: the answer of a candidate in shadow). Any other "
            "name is stored unchanged."
        ),
    ]
    value: Annotated[
        bool | float | int | str | dict[str, Any] | list[Any],
        Meta(
            description="A boolean, a number or a string; for a correction also an object or an array; for a "
            "shadow_answer, an object with model and response."
        ),
    ]
    source: Literal["user", "expert", "judge", "app"] = "user"
    user_id: Annotated[Identifier, Meta(description="Stored as a keyed hash.")] | None = None


Event = Interaction | Feedback


class Bounds(msgspec.Struct, frozen=True):
    """The limits of an event's values; an event outside them becomes a dead letter. Times are timezone-aware.

    A wrong clock would stretch windows over all of history, and a wrong number would distort every sum.
    """

    first: datetime
    last: datetime
    bytes: int
    tokens: int
    cost: float
    latency_seconds: float
    time_saved_seconds: float
    value: float

    @classmethod
    def of(cls, settings: IngestSettings, now: datetime, *, history: bool = False) -> "Bounds":
        """Returns the limits at `now`, naive UTC; `history` lifts the limit on age, for files of many years."""
        now = now.replace(tzinfo=UTC)
        return cls(
            first=FIRST if history else max(FIRST, now - timedelta(days=settings.max_age_days)),
            last=now + timedelta(seconds=settings.max_ahead_seconds),
            bytes=settings.max_event_bytes,
            tokens=settings.max_tokens,
            cost=settings.max_cost,
            latency_seconds=settings.max_latency_seconds,
            time_saved_seconds=settings.max_time_saved_seconds,
            value=settings.max_feedback_value,
        )

    @property
    def work(self) -> int:
        """The work that one message may take, as `work_of` counts it."""
        return 4 * self.bytes


FIRST = datetime(1990, 1, 1, tzinfo=UTC)
_INTERACTION = msgspec.json.Decoder(Interaction)
_FEEDBACK = msgspec.json.Decoder(Feedback)
_MESSAGES = msgspec.json.Decoder(Annotated[list[Message], Meta(min_length=1)])
_CONTEXT = msgspec.json.Decoder(list[str] | None)
_ATTRIBUTES = msgspec.json.Decoder(dict[str, Raw] | None)
_TOOLS = msgspec.json.Decoder(list[dict[str, Any]] | None)
_TO_JSON = msgspec.json.Encoder()
_AROUND_TEXT = len('{"role":"r","content":""},')


def decode(kind: Kind, payload: bytes | None, bounds: Bounds) -> Event:
    """Decodes one event from the bytes of one message. Its timestamp is timezone-aware.

    Raises:
        BadEvent: the message is not a valid event; the reason is a code.
    """
    if not payload:
        raise BadEvent("empty", "the message has no value")
    if len(payload) > bounds.bytes:
        raise BadEvent("too_large", f"{len(payload)} bytes, the limit is {bounds.bytes} (ingest.max_event_bytes)")
    event = read(kind, payload, bounds)
    if LARGEST * len(payload) > bounds.work and work_of(payload) > bounds.work:
        raise BadEvent("too_many", "holds more strings and digits than one message may (formats.md#bounds)")
    return event


def convert(kind: Kind, value: Any, bounds: Bounds) -> Event:
    """Returns one event from decoded JSON, validated as `decode` does, without a limit on its size."""
    return read(kind, _TO_JSON.encode(value), bounds)


def read(kind: Kind, payload: bytes, bounds: Bounds) -> Event:
    """Decodes one event from JSON, validated as `decode` does, without a limit on its size."""
    field = ""
    try:
        if not payload.isascii():
            payload.decode()  # the decoder does not check the encoding of raw fields
        event: Event = _INTERACTION.decode(payload) if kind == "interactions" else _FEEDBACK.decode(payload)
        if type(event) is Interaction:
            field = "messages: "
            beside_texts = len(event.messages) - sum(map(_length, _MESSAGES.decode(event.messages)))
            if event.context is not UNSET:
                field = "context: "
                _CONTEXT.decode(event.context)
            if event.attributes is not UNSET:
                field = "attributes: "
                attributes = _ATTRIBUTES.decode(event.attributes)
                if attributes and not MAY_NAME_USERS.isdisjoint(attributes):
                    _take_user(event)
            if event.tools is not UNSET or type(event.response) is Answer:
                field = "tools: "
                _move_to_attributes(event)
            # Searching for one byte by its number is by far the fastest test, and it seldom finds one.
            if BACKSLASH in payload and (b"\\u" in payload or b"\\/" in payload):
                event.messages, event.context, event.attributes = map(
                    _plain, (event.messages, event.context, event.attributes)
                )
            if beside_texts > LONGEST_INLINE:
                event.messages = _without_media(event.messages)
            if CALLS in payload:
                event.messages, event.attributes = map(_with_calls, (event.messages, event.attributes))
    except msgspec.ValidationError as error:
        raise BadEvent("not_an_event", field + _QUOTED.sub("Invalid enum value", str(error))) from error
    except msgspec.DecodeError as error:
        raise BadEvent("not_json", str(error)) from error
    except UnicodeDecodeError as error:
        raise BadEvent("not_utf8", f"{error.reason} in a string") from error
    except RecursionError as error:
        raise BadEvent("too_deep", "nested too deeply") from error
    _check(event, bounds)
    return event


def _plain(nested: Any) -> Any:
    """Returns JSON without escapes, which would hide personal data from redaction."""
    return nested if nested is UNSET else Raw(_TO_JSON.encode(msgspec.json.decode(nested)))


def _length(message: Message) -> int:
    """Returns a lower bound of the bytes of a message whose content is a text; of others, which may hold media, 0."""
    return _AROUND_TEXT + len(message.content) if type(message.content) is str else 0


def _without_media(messages: Any) -> Raw:
    """Returns messages without the bytes of media, in which nobody's data can be found."""
    plain = msgspec.json.decode(messages)
    kept = without_media(plain)
    return messages if kept == plain else Raw(_TO_JSON.encode(kept))


def _with_calls(nested: Any) -> Any:
    """Returns messages, or attributes, with tool calls in one form."""
    plain = None if nested is UNSET else msgspec.json.decode(nested)
    kept = list(map(with_calls, plain)) if isinstance(plain, list) else with_calls(plain or {})
    return nested if kept == (plain or {}) else Raw(_TO_JSON.encode(kept))


def _take_user(event: Interaction) -> None:
    """Moves a user from the attributes to `user_id`, unless that is set; none stays there in clear text."""
    assert isinstance(event.attributes, Raw)
    attributes = msgspec.json.decode(event.attributes)
    user = take_user(attributes)
    event.user_id = event.user_id or user
    event.attributes = Raw(_TO_JSON.encode(attributes))


def _move_to_attributes(event: Interaction) -> None:
    """Moves the offered tools, tool calls and reasoning to the attributes, where the other formats have them."""
    kept: dict[str, Any] = {}
    if event.tools is not UNSET:
        kept["tools"] = _TOOLS.decode(event.tools)
        event.tools = UNSET
    if isinstance(answer := event.response, Answer):
        said = with_calls(msgspec.structs.asdict(answer))
        if (calls := said["tool_calls"]) and not are_calls(calls):
            raise BadEvent("not_an_event", "response: tool_calls: expected objects with function.name and .arguments")
        thought = reasoning_of(said)
        if answer.content is None and not calls and not thought:
            raise BadEvent("not_an_event", "response: expected a text, or an object with content or tool_calls")
        kept |= {"tool_calls": calls, "reasoning_content": thought}
        event.response = answer.content or ""
    kept = {name: value for name, value in kept.items() if value}
    if kept:
        attributes = event.attributes if isinstance(event.attributes, Raw) else Raw(b"{}")
        event.attributes = Raw(_TO_JSON.encode((msgspec.json.decode(attributes) or {}) | kept))


def to_json(value: Any) -> str:
    """Returns a decoded value as JSON text."""
    return _TO_JSON.encode(value).decode()


def _check(event: Event, bounds: Bounds) -> None:
    """Checks what the types cannot express. Sets UTC on a timestamp without an offset."""
    if event.timestamp.tzinfo is None:
        event.timestamp = event.timestamp.replace(tzinfo=UTC)
    if not bounds.first <= event.timestamp <= bounds.last:
        raise BadEvent("bad_value", _time_problem(event.timestamp, bounds))
    if event.id.isspace():
        raise BadEvent("bad_value", "id: expected more than white space")
    if type(event) is Feedback:
        _check_value(event.name, event.value, bounds)
        if event.name == SHADOW_ANSWER and event.source != "app":
            raise BadEvent("bad_value", f"source of {SHADOW_ANSWER}: expected app")
        return
    assert type(event) is Interaction
    workload = event.workload
    # Spaces and dots sort before a slash: only a name that begins with one may consist of nothing else.
    if workload < "/" or not (workload.isprintable() and event.model.isprintable()):
        _check_name("workload", workload)
        _check_name("model", event.model)
    # One cheap test for every event, as none of the values is negative; which one fails is found only then.
    if (
        (event.input_tokens or 0) > bounds.tokens
        or (event.output_tokens or 0) > bounds.tokens
        or (event.cost or 0) > bounds.cost
        or (event.latency_seconds or 0) > bounds.latency_seconds
        or (event.time_to_first_token_seconds or 0) > bounds.latency_seconds
    ):
        _check_number("input_tokens", event.input_tokens, bounds.tokens, "max_tokens")
        _check_number("output_tokens", event.output_tokens, bounds.tokens, "max_tokens")
        _check_number("cost", event.cost, bounds.cost, "max_cost")
        for name in ("latency_seconds", "time_to_first_token_seconds"):
            _check_number(name, getattr(event, name), bounds.latency_seconds, "max_latency_seconds")


def _check_name(field: str, name: str) -> None:
    """Rejects a name that cannot be displayed, typed in a command, or used in a URL or a path."""
    hidden = sorted({f"U+{ord(sign):04X}" for sign in name if not sign.isprintable()})
    if hidden:
        raise BadEvent("bad_value", f"{field}: contains characters that are not printable ({', '.join(hidden[:5])})")
    if not name.strip(" ."):
        raise BadEvent("bad_value", f"{field}: expected more than blanks and dots")


def _check_number(name: str, value: float | None, most: float, key: str) -> None:
    if value is not None and not abs(value) <= most:
        raise BadEvent("bad_value", f"{name}: is beyond {most:,.16g} (ingest.{key})")


def _time_problem(timestamp: datetime, bounds: Bounds) -> str:
    if timestamp > bounds.last:
        problem = "is in the future; is a clock or its time zone wrong? (ingest.max_ahead_seconds)"
    else:
        problem = f"is before {bounds.first.date()}; is its unit or a clock wrong? (ingest.max_age_days)"
    return f"timestamp: {timestamp.isoformat()} {problem}"


def _check_value(name: str, value: Any, bounds: Bounds) -> None:
    """Requires the type of each reserved name: a rate over mixed types would be meaningless."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and name == "time_saved_seconds":
        _check_number(name, value, bounds.time_saved_seconds, "max_time_saved_seconds")
    elif number:
        _check_number(f"value of {name}", value, bounds.value, "max_feedback_value")
    nested = isinstance(value, dict | list)
    if name == "correction" and nested:
        fits, expected = bool(value), "a value that is not empty"
    elif name in BOOLEANS:
        fits, expected = isinstance(value, bool), 'true or false, as in "value": true'
    elif name == "rating":
        fits, expected = number and 0 <= float(value) <= 1, 'a number from 0 to 1, as in "value": 0.75'
    elif name in NUMBERS:
        fits, expected = number, 'a number, as in "value": 90'
    elif name in STRINGS:
        fits, expected = (
            isinstance(value, str) and bool(value.strip()),
            'a text that is not empty, as in "value": "Within 30 days."',
        )
    elif name == SHADOW_ANSWER:
        texts = [value.get(part) for part in ("model", "response")] if isinstance(value, dict) else [None]
        fits, expected = all(isinstance(text, str) for text in texts), "an object with model and response, both texts"
        if fits:
            _check_tokens(name, value, bounds)
    elif nested:
        fits, expected = False, "a boolean, a number or a string"
    else:
        return
    if not fits:
        # Without the value: the detail of a dead letter is shown to people who may not read conversations.
        raise BadEvent("bad_value", f"value of {name}: expected {expected}, got {_kind(value)}")


def _check_tokens(name: str, value: dict[str, Any], bounds: Bounds) -> None:
    """Requires counts of tokens within an object to be as those of interactions: missing, or whole and not negative."""
    for part in ("input_tokens", "output_tokens"):
        count = value.get(part)
        if count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, int | float) or not (count >= 0 and count % 1 == 0):
            raise BadEvent("bad_value", f"value of {name}: expected {part} as a whole number, 0 or more")
        _check_number(f"value of {name}: {part}", count, bounds.tokens, "max_tokens")


def _kind(value: Any) -> str:
    """Returns what kind of value a decoded value is, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text" if value.strip() else "an empty text"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return "an object" if value else "an empty object"
