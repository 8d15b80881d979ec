"""Anthropic's messages API: a request and its response in the form of OpenAI's chat completions.

Source: https://docs.anthropic.com/en/api/messages
"""

from typing import Any

import msgspec

from retuned.consumers.formats.messages import (
    Plain,
    object_of,
    objects_of,
    sum_of,
    texts_of,
    tool,
    tool_call,
    turn,
    without_nothing,
)

_HIDDEN = ("thinking", "redacted_thinking")


def is_response(value: Any) -> bool:
    """Whether an object is an answer of the messages API."""
    return isinstance(value, dict) and value.get("type") == "message" and isinstance(value.get("content"), list)


def are_events(value: Any) -> bool:
    """Whether a value is the list of events of a streamed answer."""
    return isinstance(value, list) and bool(value) and object_of(value[0]).get("type") == "message_start"


def joined(events: list[Any]) -> Plain:
    """Returns the answer of a stream. One that broke off has no `stop_reason`."""
    message: Plain = {"type": "message", "content": []}
    blocks: dict[Any, Plain] = {}
    pieces: dict[Any, list[str]] = {}
    for event in objects_of(events):
        kind, delta = event.get("type"), object_of(event.get("delta"))
        if kind == "message_start":
            message |= object_of(event.get("message"))
        elif kind == "content_block_start":
            blocks[str(event.get("index"))] = object_of(event.get("content_block"))
        elif kind == "content_block_delta":
            text = next((delta[name] for name in ("text", "partial_json") if isinstance(delta.get(name), str)), "")
            pieces.setdefault(str(event.get("index")), []).append(text)
        elif kind == "message_delta":
            message |= {name: value for name, value in delta.items() if name == "stop_reason"}
            message["usage"] = object_of(message.get("usage")) | without_nothing(object_of(event.get("usage")))
    content = [_filled(block, "".join(pieces.get(index, ()))) for index, block in blocks.items()]
    return message | {"type": "message", "content": content}


def _filled(block: Plain, text: str) -> Plain:
    """Returns a block of a stream with its pieces."""
    if block.get("type") == "text":
        return block | {"text": f"{block.get('text') or ''}{text}"}
    if block.get("type") != "tool_use" or not text:
        return block
    try:
        return block | {"input": msgspec.json.decode(text)}
    except msgspec.DecodeError:  # it broke off
        return block | {"input": text}


def as_openai(log: Plain) -> Plain:
    """Returns a logged request and its response in the form of chat completions."""
    request, response = log["request"], log["response"]
    usage, metadata = object_of(response.get("usage")), object_of(request.get("metadata"))
    messages = [message for item in objects_of(request.get("messages")) for message in chat_messages(item)]
    if system := texts_of(request.get("system")):
        messages = [{"role": "system", "content": system}, *messages]
    answer = next(iter(chat_messages({"role": "assistant", "content": response["content"]})), {})
    content = texts_of(answer.get("content")) or ("" if answer.get("tool_calls") else answer.get("content") or None)
    chat_request = {
        "model": request.get("model"),
        "messages": messages or request.get("messages"),
        "tools": [
            tool(item.get("name"), item.get("description"), item.get("input_schema"))
            for item in objects_of(request.get("tools"))
        ],
        "user": metadata.get("user_id"),
        "metadata": {key: value for key, value in metadata.items() if key != "user_id"},
    }
    # Anthropic counts input tokens from and into the cache separately.
    read = sum_of(usage, "input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return log | {
        "request": without_nothing(chat_request),
        "response": {
            "id": response.get("id"),
            "model": response.get("model"),
            "choices": [{"message": {**answer, "content": content}, "finish_reason": response.get("stop_reason")}],
            "usage": {"prompt_tokens": read, "completion_tokens": usage.get("output_tokens")},
        },
    }


def chat_messages(message: Plain) -> list[Plain]:
    """Returns one message as chat messages, with every tool result as a message of its own and without thoughts."""
    content = message.get("content")
    if not isinstance(content, list):
        return [message]
    parts, calls, results = [], [], []
    for block in objects_of(content):
        if block.get("type") == "tool_use":
            arguments = msgspec.json.encode(block.get("input")).decode()
            calls.append(tool_call(block.get("id"), block.get("name"), arguments))
        elif block.get("type") == "tool_result":
            result = texts_of(block.get("content"))
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result})
        elif block.get("type") == "text":
            parts.append({"type": "text", "text": block.get("text")})
        elif block.get("type") not in _HIDDEN:
            parts.append(block)
    return turn(message.get("role"), parts, calls, results)
