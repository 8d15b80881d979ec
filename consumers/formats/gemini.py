"""Google Gemini's `generateContent`: a request and its response as OpenAI's chat completions have them.

Names are in camel case, as the API has them, or with underscores, as its Python library has them.
Source: https://ai.google.dev/api/generate-content
"""

import re
from functools import cache
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

_ROLES = {"model": "assistant", "function": "user"}


def is_response(value: Any) -> bool:
    """Whether an object is an answer of Gemini, or says that there is none."""
    return isinstance(value, dict) and bool(value.keys() & {"candidates", "promptFeedback", "prompt_feedback"})


def are_chunks(value: Any) -> bool:
    """Whether it is a streamed answer, chunk by chunk."""
    return isinstance(value, list) and bool(value) and is_response(value[0])


def joined(stream: list[Any]) -> Plain:
    """The chunks of an answer as the answer: its first candidate."""
    whole, parts, last = Plain(), list[Plain](), Plain()
    for chunk in objects_of(stream):
        whole |= without_nothing(chunk)
        for candidate in objects_of(chunk.get("candidates"))[:1]:
            last |= without_nothing(candidate)
            parts += objects_of(object_of(candidate.get("content")).get("parts"))
    texts = "".join(part["text"] for part in parts if _is_said(part))
    rest = [part for part in parts if not _is_said(part)]
    said = [{"text": texts}] if texts else []
    return whole | {"candidates": [last | {"content": {"role": "model", "parts": [*said, *rest]}}]}


def is_blocked(response: Any) -> bool:
    """Whether an answer was refused before it began."""
    return is_response(response) and not objects_of(response.get("candidates"))


def as_openai(log: Plain) -> Plain:
    """A logged request with its response in the form of chat completions."""
    request, response = log["request"], log["response"]
    usage, labels = object_of(_get(response, "usageMetadata")), object_of(request.get("labels"))
    given = request.get("contents")
    contents = [{"role": "user", "parts": [{"text": given}]}] if isinstance(given, str) else objects_of(given)
    messages = [message for content in contents for message in _messages(content)]
    system = _get(request, "systemInstruction")
    if system := {"parts": [{"text": system}]} if isinstance(system, str) else object_of(system):
        messages = [*_messages(system | {"role": "system"}), *messages]
    asked = {"model": request.get("model"), "messages": messages, "tools": _tools(request), "metadata": labels}
    counts = {
        "prompt_tokens": sum_of(usage, "promptTokenCount", "prompt_token_count"),
        "completion_tokens": sum_of(
            usage, "candidatesTokenCount", "thoughtsTokenCount", "candidates_token_count", "thoughts_token_count"
        ),
    }
    return log | {
        "request": without_nothing(asked),
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
    """One content as chat messages: results of functions are messages of their own there. Thoughts are left out."""
    parts, tools, results = [], [], []
    for part in objects_of(content.get("parts")):
        if isinstance(call := _get(part, "functionCall"), dict):
            arguments = msgspec.json.encode(call.get("args") or {}).decode()
            tools.append(tool_call(call.get("id"), call.get("name"), arguments))
        elif isinstance(result := _get(part, "functionResponse"), dict):
            text = msgspec.json.encode(result.get("response")).decode()
            results.append({"role": "tool", "tool_call_id": result.get("id") or result.get("name"), "content": text})
        elif _is_said(part):
            parts.append({"type": "text", "text": part["text"]})
        elif part.get("thought") is not True:
            parts.append({"type": next(iter(part), ""), **part})
    role = content.get("role", "user")
    return chat(_ROLES.get(role, role) if isinstance(role, str) else role, parts, tools, results)


def _is_said(part: Plain) -> bool:
    return isinstance(part.get("text"), str) and part.get("thought") is not True


def _tools(request: Plain) -> list[Plain] | None:
    declared = [
        one for tool in objects_of(request.get("tools")) for one in objects_of(_get(tool, "functionDeclarations"))
    ]
    found = [
        {
            "name": one.get("name"),
            "description": one.get("description"),
            "parameters": one.get("parameters") or _get(one, "parametersJsonSchema"),
        }
        for one in declared
    ]
    return [{"type": "function", "function": without_nothing(one)} for one in found] or None


def _get(value: Plain, name: str) -> Any:
    """A field by its name in camel case, or by that with underscores."""
    return value[name] if name in value else value.get(_underscored(name))


@cache
def _underscored(name: str) -> str:
    return re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name)
