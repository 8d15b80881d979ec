"""Answers from the memory itself, without a model server (`memory.mode: answer`)."""

import time
from typing import Any

import msgspec

from retuned.consumers.privacy.placeholders import KINDS, unnumbered
from retuned.daemon.gateway.conversations import Call
from retuned.retrain.data import chat

_ANY = {
    *("model", "messages", "tools", "stream", "stream_options"),
    *("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "max_completion_tokens"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("reasoning_effort", "verbosity", "documents", "chat_template_kwargs"),
    *("user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention"),
}
"""Fields of a request to which any text is a valid response, whatever their value."""
_SOME: dict[str, Any] = {
    "n": 1,
    "logprobs": False,
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "modalities": ["text"],
}
"""Fields of a request to which any text is a valid response if they have this value."""


def answers(call: Call) -> bool:
    """Whether the approved answer can be the response to a request.

    It cannot for a related question, for a request with any field that is not known to allow it, or for a stream that
    may hold tool calls; nor can an answer with a placeholder, in whose place the model writes what the app sent. Then a
    server answers with the approved answer as context.
    """
    if call.help is None or call.help.is_held_out or call.help.found.match != "same":
        return False
    text = unnumbered(call.help.found.entry.answer)
    return (
        all(name in _ANY or (name in _SOME and call.value(name) == _SOME[name]) for name in call.names())
        and not (call.value("stream") and call.value("tools"))
        and not any(f"<{kind}>" in text for kind in KINDS)
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
