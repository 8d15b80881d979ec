"""The metric `json`, and answers that are JSON documents as sets of fields."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from retuned.consumers.errors import ConfigurationError
from retuned.consumers.privacy.placeholders import unnumbered
from retuned.retrain.scoring.score import Metric, Score

Field = tuple[tuple[str | int, ...], str, Any]
"""Path of a leaf (keys and list indices), the kind of its value, and the value."""

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)(?:\n[ \t]*|(?<![ \t])[ \t]*)```", re.DOTALL | re.IGNORECASE)


_FEW_KEYS = 50
_TWICE = 2


class Json(Metric):
    """The metric: F1 of the fields, which are paths with values; 0 for invalid JSON.

    An answer is valid if it fits the schema. Programs refuse others, so the gate has a guard for validity.

    Args:
        schema: a JSON Schema.
        inferred: the schema is from approved answers, not from the configuration.
    """

    name = "json"
    meaning = "F1 of the fields of a JSON document; 0 for invalid JSON"
    structured = True
    in_words = False
    one_right = True

    def __init__(self, schema: Mapping[str, Any], *, inferred: bool = False) -> None:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for

        kind = validator_for(schema)
        try:
            kind.check_schema(schema)
        except SchemaError as error:
            raise ConfigurationError(f"metric.json_schema: it is no JSON Schema ({error.message})") from error
        self._schema, self._validator, self._inferred = schema, kind(schema), inferred

    @property
    def learned(self) -> Mapping[str, Any]:
        return {"schema": dict(self._schema)}

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        """Returns the score and the validity. Abstains if the approved answer is no JSON document."""
        wanted, given = fields(approved), fields(answer, fenced=is_fenced(approved))
        if wanted is None:
            return Score(None, "the approved answer is no JSON object or array")
        if given is None:
            return Score(0.0, "no JSON", valid=False)
        error = self.unreadable(answer, example)
        return Score(field_f1(given, wanted), error or _unlike(given, wanted), valid=not error)

    def compare(self, one: str, other: str) -> bool:
        document = fields(one, fenced=is_fenced(other))
        return one.strip() == other.strip() if document is None else document == fields(other, fenced=is_fenced(one))

    def key(self, answer: str) -> Hashable:
        document = fields(answer)
        return super().key(answer) if document is None else document

    def unreadable(self, answer: str, example: Mapping[str, Any], *, inferred: bool = True) -> str:
        """Returns a reason if the answer is no JSON or does not fit the schema."""
        if fields(answer) is None:
            return "no JSON"
        if self._inferred and not inferred:
            return ""
        error = next(iter(self._validator.iter_errors(_document(answer))), None)
        return error.message if error else ""

    def groups(self, approved: str) -> list[str]:
        document = fields(approved) or ()
        return sorted({f"field:{path[0]}" for path, _, _ in document if path and isinstance(path[0], str)})


def inferred_schema(approved: Sequence[str]) -> dict[str, Any]:
    """Returns a schema that all approved documents fit: their type, the keys that all have, and no unknown keys.

    Unknown keys are allowed if there are many keys, or keys that occur only once.
    """
    documents = [document for answer in approved if (document := _document(answer)) is not None]
    if not documents:
        return {}
    kinds = sorted({"object" if isinstance(document, dict) else "array" for document in documents})
    if kinds != ["object"]:
        return {"type": kinds}
    keys = Counter(key for document in documents for key in document)
    schema: dict[str, Any] = {
        "type": "object",
        "required": sorted(key for key, times in keys.items() if times == len(documents)),
    }
    if len(keys) <= _FEW_KEYS and min(keys.values(), default=_TWICE) >= _TWICE:
        schema |= {"properties": {key: {} for key in sorted(keys)}, "additionalProperties": False}
    return schema


def keys_of(text: str) -> frozenset[str] | None:
    """Returns the keys of a text that is a JSON object; None for any other text."""
    document = _document(text)
    return frozenset(document) if isinstance(document, dict) else None


def fields(text: str, *, fenced: bool = True) -> frozenset[Field] | None:
    """Returns the leaves of a text that is exactly one JSON object or array; None for any other text.

    Numbers are compared by value, strings after trimming and in Unicode's form NFC, list items by position. An empty
    object or array is a leaf. For a duplicate key the last value counts, as in JSON parsers.

    Args:
        fenced: allow a Markdown code fence around the document.
    """
    text = text.strip()
    if not fenced and _FENCE.fullmatch(text):
        return None
    document = _document(text)
    return None if document is None else frozenset(leaves(document))


def is_fenced(text: str) -> bool:
    """Returns whether the text is exactly one Markdown code fence."""
    return _FENCE.fullmatch(text.strip()) is not None


def field_f1(given: frozenset[Field], wanted: frozenset[Field]) -> float:
    """Returns the F1 of the fields that two documents share, 0 to 1. Shared fields have equal paths and values."""
    return 2 * len(given & wanted) / (len(given) + len(wanted))


def _document(text: str) -> dict[str, Any] | list[Any] | None:
    """Parses a text that is an object or array, also in a code fence."""
    text = text.strip()
    if inside := _FENCE.fullmatch(text):
        text = inside[1].strip()
    if text[:1] not in ("{", "["):
        return None
    try:
        document: dict[str, Any] | list[Any] = json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return None
    return document


def _unlike(given: frozenset[Field], wanted: frozenset[Field]) -> str:
    """Describes which fields differ."""
    paths = sorted({".".join(map(str, path)) for path, _, _ in given ^ wanted})
    return f"differs in {', '.join(paths)}" if paths else ""


def leaves(document: Any) -> list[Field]:
    """Returns the leaves of a parsed document."""
    result: list[Field] = []
    # Not recursive: a document may be nested as deep as the parser allows.
    open_values: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    while open_values:
        path, value = open_values.pop()
        if value and isinstance(value, dict):
            open_values += [((*path, key), inner) for key, inner in value.items()]
        elif value and isinstance(value, list):
            open_values += [((*path, place), inner) for place, inner in enumerate(value)]
        else:
            result.append((path, *_leaf(value)))
    return result


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
