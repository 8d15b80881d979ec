"""OpenAI's logs of requests with their responses: chat completions, completions and responses."""

from typing import Any

from retuned.consumers.formats.events import BadEvent
from retuned.consumers.formats.messages import (
    Plain,
    content_hash,
    instant,
    joined_text,
    object_of,
    objects_of,
    without_nothing,
)


def is_log(value: Any) -> bool:
    """Whether a decoded message is a request with its response."""
    return isinstance(value, dict) and isinstance(value.get("request"), dict) and "response" in value


def failed(log: Plain) -> bool:
    """Whether the call brought an error in the place of an answer."""
    response = log["response"]
    if isinstance(response, dict):
        return bool(response.get("error")) and not (response.get("choices") or response.get("output"))
    return response is None


def interaction(log: Plain) -> Plain:
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
