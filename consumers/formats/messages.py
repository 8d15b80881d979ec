"""Helpers of the translations: text in parts, timestamps, numbers, generated ids."""

import hashlib
import re
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import msgspec

Plain = dict[str, Any]
"""A decoded JSON object."""

TEXT_PARTS = ("text", "input_text", "output_text")
# The fields of parts that carry media; in a blob of OpenTelemetry, it is the content.
_INLINE = frozenset(
    ("url", "image_url", "image", "images", "data", "file_data", "bytes", "base64", "content_base64")
)  # fmt: skip
_INLINE_OF_BLOB = _INLINE | {"content"}
LONGEST_INLINE = 256  # characters; a longer data URL or base64 text is left out
_OPTIONAL_TEXTS = ("conversation_id", "user_id", "finish_reason")
_CUT = frozenset((
    "length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded", "incomplete",
))  # fmt: skip
"""The finish reasons of cut answers in the APIs of OpenAI, Anthropic, Bedrock, Gemini, Mistral and Cohere, and of the
gateway, in lower case."""
_SHORT_ID = re.compile("(chatcmpl-|cmpl-|resp_|msg_).{0,7}")
_INDEX = re.compile("[0-9]{1,6}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]++={0,2}")
# The units of Unix times with the upper limit of each: seconds stay below 1e11 until the year 5138.
UNITS = ((1e11, 1), (1e14, 1e3), (1e17, 1e6), (float("inf"), 1e9))


def joined_text(content: Any) -> str | None:
    """Returns the text of a string or of a list of text parts; None if there is anything else in it."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        text = part.get("text", part.get("content")) if isinstance(part, dict) else None
        if not isinstance(text, str) or part.get("type") not in TEXT_PARTS:
            return None
        texts.append(text)
    return "\n".join(texts)


def texts_of(content: Any) -> str | None:
    """Returns the text of a message and ignores its other parts; None if it has no text."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [part.get("text") for part in objects_of(content) if part.get("type") in TEXT_PARTS]
    found = [text for text in texts if isinstance(text, str)]
    return "\n".join(found) if found else None


def reasoning_of(message: Plain) -> str | None:
    """Returns the reasoning of a message from the field in which its server has it: `reasoning_content` (DeepSeek,
    SGLang, older vLLM) or `reasoning` (vLLM, OpenRouter); None without any."""
    found = (message.get(name) for name in ("reasoning_content", "reasoning"))
    return next((text for text in found if isinstance(text, str) and text), None)


def is_cut(finish_reason: str | None) -> bool:
    """Whether an answer broke off, by the finish reason that its API reported."""
    return finish_reason is not None and finish_reason.lower() in _CUT


def without_media(value: Any) -> Any:
    """Returns messages without the bytes of images, audio and files; the length of each is kept."""
    if isinstance(value, list):
        return [without_media(item) for item in value]
    if not isinstance(value, dict):
        return value
    inline = _INLINE_OF_BLOB if value.get("type") == "blob" else _INLINE
    return {key: _shortened(item) if key in inline else without_media(item) for key, item in value.items()}


def _shortened(value: Any) -> Any:
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if not isinstance(value, str):
        return without_media(value)
    head = value[:64].partition(",")[0] + "," if value.startswith("data:") else ""
    if len(value) <= LONGEST_INLINE or not (head or _BASE64.fullmatch(value)):
        return value
    return f"{head}… ({len(value):,} characters left out)"


def instant(value: Any) -> Any:
    """Returns a Unix time (s, ms, µs or ns; a number or digits) as ISO 8601, and any other value unchanged."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,9})?", value):
        value = float(value) if "." in value else int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return value
    try:
        seconds = value / next(unit for below, unit in UNITS if value < below)
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError, StopIteration):
        return value


def content_hash(value: Any) -> str:
    """Returns an id for an event without one: the same content, sent twice, is one event."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:32]


def is_short_id(id: Any) -> bool:
    """Whether the id that a model server gave to its response is too short to be unique: Ollama's are random numbers
    below 1,000. Any other form is an app's own id."""
    return isinstance(id, str) and _SHORT_ID.fullmatch(id) is not None


def without_nothing(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries whose value is not None."""
    return {key: value for key, value in values.items() if value is not None}


def present(fields: Plain) -> Plain:
    """Returns the fields of an interaction that are present. An empty text in an optional field counts as absent."""
    return {
        name: value for name, value in without_nothing(fields).items() if value != "" or name not in _OPTIONAL_TEXTS
    }


def object_of(value: Any) -> dict[str, Any]:
    """Returns the value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def objects_of(value: Any) -> list[dict[str, Any]]:
    """Returns the objects of a list; none if the value is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def chat(role: Any, parts: list[Plain], calls: list[Plain], results: list[Plain]) -> list[Plain]:
    """Returns a message made of parts as chat messages, in which every tool result is a message of its own.

    Args:
        parts: texts as `{"type": "text", "text": …}`, and all other parts.
        calls: tool calls as `tool_call` returns them.
        results: messages with the role `tool`.
    """
    is_text = all(part.get("type") == "text" for part in parts)
    message = without_nothing({"role": role, "tool_calls": calls or None})
    message["content"] = (texts_of(parts) if is_text else parts) if parts else None
    return [*results, message] if parts or calls or not results else results


def turn(role: Any, parts: list[Plain], calls: list[Plain], results: list[Plain]) -> list[Plain]:
    """As `chat`, of an API that splits the text of an answer anywhere: texts in succession become one part."""
    if role != "assistant":
        return chat(role, parts, calls, results)
    joined: list[Plain] = []
    for is_text, group in groupby(parts, lambda part: part.get("type") == "text" and isinstance(part.get("text"), str)):
        found = list(group)
        joined += [{"type": "text", "text": "".join(part["text"] for part in found)}] if is_text else found
    return chat(role, joined, calls, results)


def sum_of(counts: Plain, *names: str) -> int | None:
    """Returns the sum of the counts that are present; None if none is."""
    found = [counts[name] for name in names if isinstance(counts.get(name), int)]
    return sum(found) if found else None


def tool_call(id: Any, name: Any, arguments: Any) -> Plain:
    """Returns a tool call as chat messages hold it; `arguments` is JSON text."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def one_form(call: Any) -> Any:
    """Returns a tool call in the form of `tool_call`, from a name beside `arguments` or LangChain's `args`.

    Any other value is unchanged.
    """
    found = object_of(call)
    given = next((name for name in ("arguments", "args") if name in found), None)
    if given is None or not isinstance(found.get("name"), str):
        return call
    return without_nothing(tool_call(found.get("call_id", found.get("id")), found["name"], as_text(found[given])))


def with_calls(message: Plain) -> Plain:
    """Returns a chat message with its tool calls in the form of `tool_call`, also the older `function_call`."""
    calls, older = message.get("tool_calls"), one_form(message.get("function_call"))
    if not calls and "function" in object_of(older):
        calls, message = [older], {name: value for name, value in message.items() if name != "function_call"}
    return message | {"tool_calls": list(map(one_form, calls))} if isinstance(calls, list) else message


def tool(name: Any, description: Any, parameters: Any) -> Plain:
    """Returns a tool as chat completion requests offer it, without absent fields."""
    found = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": without_nothing(found)}


def as_text(value: Any) -> str:
    """Returns a text unchanged, and any other value as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def number(value: Any) -> Any:
    """Returns a text as a number, or None if it is not one; any other value unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return None


def seconds_between(began: Any, ended: Any) -> float | None:
    """Returns the seconds between two times, both in nanoseconds or both in ISO 8601; None if absent or negative."""
    try:
        seconds = (int(ended) - int(began)) / 1e9
    except (TypeError, ValueError, OverflowError):
        try:
            between = msgspec.convert(ended, datetime) - msgspec.convert(began, datetime)
        except (msgspec.ValidationError, TypeError):
            return None
        seconds = between.total_seconds()
    return seconds if seconds >= 0 else None


def in_seconds(milliseconds: Any) -> Any:
    """Returns seconds, or None if the value is not a number. One too large for a float is left for validation."""
    try:
        return milliseconds / 1000 if isinstance(milliseconds, int | float) else None
    except OverflowError:
        return milliseconds


def numbered(attributes: Plain, prefix: str) -> list[Any] | None:
    """Returns `prefix0.role`, `prefix0.content`, `prefix1.…` as a list of objects; inner indices are lists too."""
    tree: Plain = {}
    for key, value in attributes.items():
        if key.startswith(prefix):
            *path, last = key[len(prefix) :].split(".")
            node = tree
            for step in path:
                inner = node.setdefault(step, {})
                node = inner if isinstance(inner, dict) else {}
            node[last] = value
    listed = _as_lists(tree)
    return listed if isinstance(listed, list) else None


def _as_lists(node: Any) -> Any:
    if not isinstance(node, dict) or not node:
        return node
    if all(_INDEX.fullmatch(key) for key in node):
        return [_as_lists(node[key]) for key in sorted(node, key=int)]
    return {key: _as_lists(value) for key, value in node.items()}
