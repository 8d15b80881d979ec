"""What the translations of other formats share: texts in parts, instants, ids of what has none."""

import hashlib
import re
from datetime import UTC, datetime
from typing import Any

import msgspec

Plain = dict[str, Any]
"""A decoded JSON object."""

TEXT_PARTS = ("text", "input_text", "output_text")
_INLINE = ("url", "image_url", "data", "file_data", "bytes", "content_base64")  # where parts carry them
LONGEST_INLINE = 256  # characters of a data URL, or of base64, that stay
_INDEX = re.compile("[0-9]{1,6}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]++={0,2}")
# The units of Unix times, and up to where: seconds stay below 1e11 until the year 5138, and so do the others.
UNITS = ((1e11, 1), (1e14, 1e3), (1e17, 1e6), (float("inf"), 1e9))


def joined_text(content: Any) -> str | None:
    """The text of a message that is a string or a list of text parts alone; None where it holds anything else."""
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
    """The text of a message, without what else is among its parts; None where there is none."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [part.get("text") for part in objects_of(content) if part.get("type") in TEXT_PARTS]
    found = [text for text in texts if isinstance(text, str)]
    return "\n".join(found) if found else None


def reasoning_of(message: Plain) -> str | None:
    """What a model thought before it answered, where its server has that apart: `reasoning_content` of DeepSeek, SGLang
    and vLLM, which calls it `reasoning` by now, as OpenRouter does; None without any."""
    found = (message.get(name) for name in ("reasoning_content", "reasoning"))
    return next((text for text in found if isinstance(text, str) and text), None)


def without_media(value: Any) -> Any:
    """Messages without the bytes of images, sounds and files that they carry: how long those were is kept."""
    if isinstance(value, list):
        return [without_media(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _shortened(item) if key in _INLINE else without_media(item) for key, item in value.items()}


def _shortened(value: Any) -> Any:
    if not isinstance(value, str):
        return without_media(value)
    head = value[:64].partition(",")[0] + "," if value.startswith("data:") else ""
    if len(value) <= LONGEST_INLINE or not (head or _BASE64.fullmatch(value)):
        return value
    return f"{head}… ({len(value):,} characters left out)"


def instant(value: Any) -> Any:
    """Unix time in seconds, milli-, micro- or nanoseconds, a number or digits, as ISO 8601; what else it is stays."""
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
    """An id for what has none: the same content, sent twice, is one event."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:32]


def without_nothing(values: dict[str, Any]) -> dict[str, Any]:
    """Only what is there."""
    return {key: value for key, value in values.items() if value is not None}


def object_of(value: Any) -> dict[str, Any]:
    """An object, an empty one for whatever else stands in its place."""
    return value if isinstance(value, dict) else {}


def objects_of(value: Any) -> list[dict[str, Any]]:
    """The objects of a list, none for whatever else stands in its place."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def chat(role: Any, parts: list[Plain], calls: list[Plain], results: list[Plain]) -> list[Plain]:
    """One message of an API that has all in parts as chat messages: results of tools are messages of their own there.

    Args:
        parts: texts as `{"type": "text", "text": …}`, and whatever else there is.
        calls: as `tool_call` makes them.
        results: messages of the role `tool`.
    """
    is_text = all(part.get("type") == "text" for part in parts)
    said = without_nothing({"role": role, "tool_calls": calls or None})
    said["content"] = (texts_of(parts) if is_text else parts) if parts else None
    return [*results, said] if parts or calls or not results else results


def sum_of(counts: Plain, *names: str) -> int | None:
    """The sum of those counts that are there; None where none is."""
    found = [counts[name] for name in names if isinstance(counts.get(name), int)]
    return sum(found) if found else None


def tool_call(id: Any, name: Any, arguments: Any) -> Plain:
    """A call of a tool, as chat messages hold it; `arguments` is JSON text."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def seconds_between(began: Any, ended: Any) -> float | None:
    """Of two times, in nanoseconds both or in ISO 8601 both; None where there are none, or it ended before it began."""
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
    """None of what is no number; one beyond any float stays, and is refused later."""
    try:
        return milliseconds / 1000 if isinstance(milliseconds, int | float) else None
    except OverflowError:
        return milliseconds


def numbered(attributes: Plain, prefix: str) -> list[Any] | None:
    """`prefix0.role`, `prefix0.content`, `prefix1.…` as a list of objects; numbers inside are lists too."""
    tree: Plain = {}
    for key, value in attributes.items():
        if key.startswith(prefix):
            *path, last = key[len(prefix) :].split(".")
            node = tree
            for step in path:
                inner = node.setdefault(step, {})
                node = inner if isinstance(inner, dict) else {}
            node[last] = value
    listed = _listed(tree)
    return listed if isinstance(listed, list) else None


def _listed(node: Any) -> Any:
    if not isinstance(node, dict) or not node:
        return node
    if all(_INDEX.fullmatch(key) for key in node):
        return [_listed(node[key]) for key in sorted(node, key=int)]
    return {key: _listed(value) for key, value in node.items()}
