"""Other people's formats onto ours, recognised by content and mixed in one topic as they come.

Understood: OpenAI request/response logs (chat completions, completions, responses), OpenTelemetry GenAI (`otel`),
CloudEvents around any of them (structured and binary), and Confluent's framing. docs/formats.md has a table of which
field becomes which. A translation only fills in the events of `events`; there they are checked, as ours are. What is
known to be neither an answer nor feedback is passed over, with a reason.
"""

import base64
import binascii
from collections.abc import Iterator
from typing import Any

import msgspec

from retuned.consumers.formats import otel
from retuned.consumers.formats.events import BadEvent, Bounds, Event, Kind, PassedOver, convert, decode
from retuned.consumers.formats.messages import (
    content_hash,
    instant,
    joined_text,
    object_of,
    objects_of,
    without_nothing,
)
from retuned.consumers.kafka.contract import Headers

Plain = dict[str, Any]

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
    is_log = isinstance(value.get("request"), dict) and "response" in value
    return is_log or "specversion" in value or otel.is_otel(value)


def _translated(value: Any, headers: Headers, error: BadEvent, bounds: Bounds) -> Iterator[Found | BadPart]:
    """`error` says why it is no event of ours; it stands if it is none of anybody's."""
    envelope = binary_envelope(headers)
    try:
        for _ in range(ENVELOPES):
            if not (isinstance(value, dict) and "specversion" in value and value.keys() & {"data", "data_base64"}):
                break
            envelope, value = value, _data(value)
        found = list(_recognised(value, envelope))
    except BadEvent as bad:
        yield BadPart(bad)
        return
    if not found and not otel.is_otel(value):
        yield BadPart(error)
    for item in found:
        if isinstance(item, PassedOver):
            yield item
            continue
        kind, plain = item
        whole = _completed(plain, envelope)
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
    elif isinstance(value.get("request"), dict) and "response" in value:
        yield PassedOver("failed_call") if _failed(value) else ("interactions", _openai(value))
    elif envelope.get("type") in otel.EVENT_NAMES and "attributes" not in value:  # named by its envelope alone
        yield from otel.events({"name": envelope["type"], "attributes": value})
    elif otel.is_otel(value):
        yield from otel.events(value)


# --- CloudEvents -----------------------------------------------------------------------------------------------------


def binary_envelope(headers: Headers) -> Plain:
    """The attributes of an event in binary mode, which are the headers `ce_…`."""
    return {name[3:]: value.decode("utf-8", "replace") for name, value in headers if name.startswith("ce_") and value}


def _data(envelope: Plain) -> Any:
    if "data_base64" not in envelope:
        data = envelope["data"]
    else:
        try:
            data = base64.b64decode(envelope["data_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise BadEvent("not_an_event", f"data_base64: {error}") from error
    if not isinstance(data, bytes | str):
        return data
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadEvent("not_json", f"data of the CloudEvent: {error}") from error


def _completed(plain: Plain, envelope: Plain) -> Plain:
    """What the event does not say itself, its envelope may."""
    said = {"id": envelope.get("id"), "timestamp": envelope.get("time"), "workload": envelope.get("workload")}
    return without_nothing(said) | plain


# --- OpenAI ----------------------------------------------------------------------------------------------------------


def _failed(log: Plain) -> bool:
    """Whether the call brought an error in the place of an answer."""
    response = log["response"]
    if isinstance(response, dict):
        return bool(response.get("error")) and not (response.get("choices") or response.get("output"))
    return response is None


def _openai(log: Plain) -> Plain:
    """A logged request with its response, as the OpenAI API has them, and what stands around them."""
    request, response = log["request"], log["response"]
    if not isinstance(response, dict):
        raise BadEvent("not_an_event", f"response: expected an object, got {type(response).__name__}")
    message, text, finish_reason = _answer(response)
    metadata = object_of(request.get("metadata")) | object_of(response.get("metadata"))
    usage = object_of(response.get("usage"))
    latency_ms = log.get("latency_ms")
    conversation = log.get("conversation_id") or request.get("conversation") or metadata.get("conversation_id")
    attributes = metadata | {
        "client_id": log.get("client_id"),
        "tool_calls": message.get("tool_calls"),
        **object_of(log.get("attributes")),
    }
    return without_nothing(
        {
            "id": log.get("id") or response.get("id") or content_hash(log),
            "timestamp": instant(log.get("timestamp") or response.get("created") or response.get("created_at")),
            "workload": log.get("workload") or log.get("workload_id") or metadata.get("workload"),
            "model": response.get("model") or request.get("model"),
            "messages": _prompt(request),
            "response": text,
            "context": log.get("context"),
            "conversation_id": conversation.get("id") if isinstance(conversation, dict) else conversation,
            "user_id": log.get("user_id") or request.get("user") or request.get("safety_identifier"),
            "latency_seconds": latency_ms / 1000 if isinstance(latency_ms, int | float) else log.get("latency_seconds"),
            "time_to_first_token_seconds": log.get("time_to_first_token_seconds"),
            "input_tokens": usage.get("prompt_tokens", usage.get("input_tokens")),
            "output_tokens": usage.get("completion_tokens", usage.get("output_tokens")),
            "cost": log.get("cost"),
            "finish_reason": finish_reason,
            "attributes": without_nothing(attributes) or None,
        }
    )


def _answer(response: Plain) -> tuple[Plain, str | None, str | None]:
    """The first choice as a message, its text, and why it ended."""
    if choices := objects_of(response.get("choices")):
        choice = choices[0]
        message = object_of(choice.get("message"))
        text = choice.get("text", joined_text(message.get("content")))
        if text is None:
            text = message.get("refusal") or ("" if message.get("tool_calls") else None)
        return message, text, choice.get("finish_reason")
    output = objects_of(response.get("output"))
    if not output:
        return {}, None, None
    texts = [joined_text(item.get("content")) for item in output if item.get("type", "message") == "message"]
    calls = [_tool_call(item) for item in output if item.get("type") == "function_call"]
    text = "".join(text for text in texts if text)
    message = {"tool_calls": calls} if calls else {}
    return message, text if text or calls else None, response.get("status")


def _prompt(request: Plain) -> Any:
    """Messages of a chat; of a completion, its prompt; of the responses API, its instructions and input."""
    if "messages" in request:
        return request["messages"]
    if isinstance(request.get("prompt"), str):
        return [{"role": "user", "content": request["prompt"]}]
    instructions, given = request.get("instructions"), request.get("input")
    messages = [{"role": "system", "content": instructions}] if isinstance(instructions, str) else []
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    return [*messages, *(_input_item(item) for item in objects_of(given))] or None


def _input_item(item: Plain) -> Plain:
    """An item of the responses API as a chat message."""
    if item.get("type") == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": [_tool_call(item)]}
    if item.get("type") == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    text = joined_text(item.get("content"))
    return item if text is None else {"role": item.get("role"), "content": text}


def _tool_call(item: Plain) -> Plain:
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    return {"id": item.get("call_id"), "type": "function", "function": function}
