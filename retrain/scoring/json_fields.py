"""Answers that are JSON documents, as sets of fields. Pure functions on text."""

import json
import re
import unicodedata
from typing import Any

from retuned.consumers.privacy.placeholders import unnumbered

Field = tuple[tuple[str | int, ...], str, Any]
"""Path of a leaf (keys and list indices), the kind of its value, and the value."""

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)


def fields(text: str, *, fenced: bool = True) -> frozenset[Field] | None:
    """The leaves of a text that is one JSON object or array and nothing else; None for any other text.

    Numbers are compared by value, strings after trimming and in Unicode's form NFC, list items by their place. An empty
    object or array is a leaf. Of a key that stands twice the last value counts, as JSON readers take it.

    Args:
        fenced: the document may stand in a Markdown code fence.
    """
    text = text.strip()
    if fenced and (inside := _FENCE.fullmatch(text)):
        text = inside[1].strip()
    if text[:1] not in ("{", "["):
        return None
    try:
        document = json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return None
    return frozenset(_leaves(document))


def is_fenced(text: str) -> bool:
    """Whether the text is a Markdown code fence and nothing else."""
    return _FENCE.fullmatch(text.strip()) is not None


def field_f1(given: frozenset[Field], wanted: frozenset[Field]) -> float:
    """F1 of the fields that two documents share, 0 to 1. A field is shared when path and value are equal."""
    return 2 * len(given & wanted) / (len(given) + len(wanted))


def _leaves(document: Any) -> list[Field]:
    found: list[Field] = []
    # Not recursive: a document may be nested as deep as the parser allows.
    open_values: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    while open_values:
        path, value = open_values.pop()
        if value and isinstance(value, dict):
            open_values += [((*path, key), inner) for key, inner in value.items()]
        elif value and isinstance(value, list):
            open_values += [((*path, place), inner) for place, inner in enumerate(value)]
        else:
            found.append((path, *_leaf(value)))
    return found


def _leaf(value: Any) -> tuple[str, Any]:
    match value:
        case str():
            return "string", unicodedata.normalize("NFC", unnumbered(value).strip())
        case bool():
            return "boolean", value
        case int() | float():
            return "number", value
        case dict() | list():
            return "empty", type(value).__name__
    return "null", None


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
