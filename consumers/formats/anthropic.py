"""Anthropic's messages: a request and its response as OpenAI's chat completions have them."""

from typing import Any

import msgspec

from retuned.consumers.formats.messages import (
    Plain,
    chat,
    object_of,
    objects_of,
    sum_of,
    texts_of,
    tool_call,
    without_nothing,
)

_HIDDEN = ("thinking", "redacted_thinking")


def is_response(value: Any) -> bool:
    """Whether an object is an answer of the messages API."""
    return isinstance(value, dict) and value.get("type") == "message" and isinstance(value.get("content"), list)


def as_openai(log: Plain) -> Plain:
    """A logged request with its response in the form of chat completions."""
    request, response = log["request"], log["response"]
    usage, metadata = object_of(response.get("usage")), object_of(request.get("metadata"))
    messages = [message for item in objects_of(request.get("messages")) for message in chat_messages(item)]
    if system := texts_of(request.get("system")):
        messages = [{"role": "system", "content": system}, *messages]
    answer = next(iter(chat_messages({"role": "assistant", "content": response["content"]})), {})
    content = texts_of(answer.get("content")) or ("" if answer.get("tool_calls") else None)
    asked = {
        "model": request.get("model"),
        "messages": messages or request.get("messages"),
        "tools": [_tool(tool) for tool in objects_of(request.get("tools"))],
        "user": metadata.get("user_id"),
        "metadata": {key: value for key, value in metadata.items() if key != "user_id"},
    }
    # All that was read: tokens from and into the cache are counted apart there.
    read = sum_of(usage, "input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return log | {
        "request": without_nothing(asked),
        "response": {
            "id": response.get("id"),
            "model": response.get("model"),
            "choices": [{"message": {**answer, "content": content}, "finish_reason": response.get("stop_reason")}],
            "usage": {"prompt_tokens": read, "completion_tokens": usage.get("output_tokens")},
        },
    }


def chat_messages(message: Plain) -> list[Plain]:
    """One message as chat messages: results of tools are messages of their own there. Thoughts are left out."""
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
    return chat(message.get("role"), parts, calls, results)


def _tool(tool: Plain) -> Plain:
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
    }
    return {"type": "function", "function": without_nothing(function)}
