"""Google Gemini's `generateContent`: a request and its response in the form of OpenAI's chat completions.

Names are in camel case, as in the API, or with underscores, as in its Python library.
Source: https://ai.google.dev/api/generate-content
"""

import re
from functools import cache
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

_FINISHED = ("STOP", "MAX_TOKENS")  # other reasons to end an answer without parts are failures
_ROLES = {"model": "assistant", "function": "user"}


def is_response(value: Any) -> bool:
    """Whether an object is a response of Gemini, with or without an answer."""
    return isinstance(value, dict) and bool(value.keys() & {"candidates", "promptFeedback", "prompt_feedback"})


def are_chunks(value: Any) -> bool:
    """Whether a value is the list of chunks of a streamed answer."""
    return isinstance(value, list) and bool(value) and is_response(value[0])


def joined(stream: list[Any]) -> Plain:
    """Joins the chunks of an answer, first candidate only."""
    whole, parts, last = Plain(), list[Plain](), Plain()
    for chunk in objects_of(stream):
        whole |= without_nothing(chunk)
        for candidate in objects_of(chunk.get("candidates"))[:1]:
            last |= without_nothing(candidate)
            parts += objects_of(object_of(candidate.get("content")).get("parts"))
    text = "".join(part["text"] for part in parts if _is_text(part))
    rest = [part for part in parts if not _is_text(part)]
    joined_text = [{"text": text}] if text else []
    return whole | {"candidates": [last | {"content": {"role": "model", "parts": [*joined_text, *rest]}}]}


def is_blocked(response: Any) -> bool:
    """Whether Gemini blocked the answer before it began, or left nothing of it."""
    if not is_response(response):
        return False
    (first, *_) = objects_of(response.get("candidates")) or [Plain()]
    reason = _get(first, "finishReason")
    is_bare = not object_of(first.get("content")).get("parts")
    return not first or (is_bare and bool(reason) and reason not in _FINISHED)


def as_openai(log: Plain) -> Plain:
    """Returns a logged request and its response in the form of chat completions."""
    request, response = log["request"], log["response"]
    usage, labels = object_of(_get(response, "usageMetadata")), object_of(request.get("labels"))
    given = request.get("contents")
    contents = [{"role": "user", "parts": [{"text": given}]}] if isinstance(given, str) else objects_of(given)
    messages = [message for content in contents for message in _messages(content)]
    system = _get(request, "systemInstruction")
    if system := {"parts": [{"text": system}]} if isinstance(system, str) else object_of(system):
        messages = [*_messages(system | {"role": "system"}), *messages]
    chat_request = {"model": request.get("model"), "messages": messages, "tools": _tools(request), "metadata": labels}
    counts = {
        "prompt_tokens": sum_of(usage, "promptTokenCount", "prompt_token_count"),
        "completion_tokens": sum_of(
            usage, "candidatesTokenCount", "thoughtsTokenCount", "candidates_token_count", "thoughts_token_count"
        ),
    }
    return log | {
        "request": without_nothing(chat_request),
        "response": {
            "id": _get(response, "responseId"),
            "created": _get(response, "createTime"),
            "model": _get(response, "modelVersion"),
            "choices": [_choice(candidate) for candidate in objects_of(response.get("candidates"))],
            "usage": counts,
        },
    }


def _choice(candidate: Plain) -> Plain:
    content = object_of(candidate.get("content"))
    thoughts = [part for part in objects_of(content.get("parts")) if part.get("thought") is True]
    (answer, *_) = _messages(content | {"role": "assistant"})
    answer["reasoning_content"] = texts_of([part | {"type": "text"} for part in thoughts])
    return {"message": answer, "finish_reason": _get(candidate, "finishReason")}


def _messages(content: Plain) -> list[Plain]:
    """Returns one content as chat messages, with every function result as a message of its own and without thoughts."""
    parts, tools, results = [], [], []
    for part in objects_of(content.get("parts")):
        if isinstance(call := _get(part, "functionCall"), dict):
            arguments = msgspec.json.encode(call.get("args") or {}).decode()
            tools.append(tool_call(call.get("id"), call.get("name"), arguments))
        elif isinstance(result := _get(part, "functionResponse"), dict):
            text = msgspec.json.encode(result.get("response")).decode()
            results.append({"role": "tool", "tool_call_id": result.get("id") or result.get("name"), "content": text})
        elif _is_text(part):
            parts.append({"type": "text", "text": part["text"]})
        elif part.get("thought") is not True:
            parts.append({"type": next(iter(part), ""), **part})
    role = content.get("role", "user")
    return turn(_ROLES.get(role, role) if isinstance(role, str) else role, parts, tools, results)


def _is_text(part: Plain) -> bool:
    return isinstance(part.get("text"), str) and part.get("thought") is not True


def _tools(request: Plain) -> list[Plain] | None:
    """Returns the functions that a request declares; None if it declares none."""
    return [
        tool(item.get("name"), item.get("description"), item.get("parameters") or _get(item, "parametersJsonSchema"))
        for group in objects_of(request.get("tools"))
        for item in objects_of(_get(group, "functionDeclarations"))
    ] or None


def _get(value: Plain, name: str) -> Any:
    """Returns a field by its name in camel case or with underscores."""
    return value[name] if name in value else value.get(_underscored(name))


@cache
def _underscored(name: str) -> str:
    return re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name)
