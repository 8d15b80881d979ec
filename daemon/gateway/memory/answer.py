"""Answers from the memory itself, without a model server (`memory.mode: answer`)."""

import time
from typing import Any

import msgspec

from retuned.daemon.gateway.conversations import Call
from retuned.retrain.data import chat

_ANY = {"n": (None, 1), "logprobs": (None, False)}


def answers(call: Call) -> bool:
    """Whether the approved answer can be the response to a request.

    It cannot for a related question, nor if the app asks for more than one answer, for probabilities, for a certain
    form, or for a stream that may hold tool calls: then a server answers with the approved answer as context.
    """
    if call.help is None or call.help.is_held_out or call.help.found.match != "same":
        return False
    form = call.value("response_format")
    return (
        all(call.value(name) in values for name, values in _ANY.items())
        and (form is None or (isinstance(form, dict) and form.get("type") == "text"))
        and not (call.value("stream") and call.value("tools"))
    )


def completion(call: Call, id: str, model: str) -> bytes:
    """Returns the approved answer as OpenAI's API would, as a whole or as server-sent events."""
    assert call.help
    text = call.help.found.entry.answer
    message = {"role": "assistant", "content": text}
    if call.value("tools"):
        (message,) = chat.answer(text)
    reason = "tool_calls" if message.get("tool_calls") else "stop"
    shared = {"id": f"chatcmpl-{id}", "created": int(time.time()), "model": model}
    usage = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
    if not call.value("stream"):
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return msgspec.json.encode(shared | {"object": "chat.completion", "choices": [choice], "usage": usage})
    options = call.value("stream_options")
    wants_usage = isinstance(options, dict) and options.get("include_usage")
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
        *([{"choices": [], "usage": usage}] if wants_usage else []),
    ]
    events = [msgspec.json.encode(shared | {"object": "chat.completion.chunk"} | chunk) for chunk in chunks]
    return b"".join(b"data: %s\n\n" % event for event in (*events, b"[DONE]"))
