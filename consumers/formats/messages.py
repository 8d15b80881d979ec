"""What the translations of other formats share: texts in parts, instants, ids of what has none."""

import hashlib
import re
from datetime import UTC, datetime
from typing import Any

import msgspec

Plain = dict[str, Any]
"""A decoded JSON object."""

TEXT_PARTS = ("text", "input_text", "output_text")
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


def instant(value: Any) -> Any:
    """Unix time in seconds, milli-, micro- or nanoseconds, a number or digits, as ISO 8601; what else it is stays."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,20}", value):
        value = int(value)
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
