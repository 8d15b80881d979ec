"""Replaces keys and values in JSON, each value with the key that gives it its meaning."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

# The names of fields that hold a key and its value, as in OpenTelemetry's attributes and fields of forms.
_LABELS = ("key", "name", "field", "label", "title", "type", "system")
_VALUES = frozenset(
    (
        "value", "stringValue", "string_value", "intValue", "int_value", "doubleValue", "double_value", "arrayValue",
        "array_value", "values",
    )
)  # fmt: skip
LABELLED = rf'(?i:"(?:{"|".join(_LABELS)})\\*" ?: ?\\*"[^"]*)'
"""The text before such a key, as an RE2 pattern."""

_NO_NAME = re.compile(r"[@＠<>]|(?:[0-9][^0-9]*+){3}")
_SCALAR = re.compile(r'"(?:[^"\\]++|\\.)*+"|[^\s\[\]{}:,"]++')


class Leaf(NamedTuple):
    """A key or a value of JSON.

    Attributes:
        key, above: the key of a value, and the key above that; empty: none.
    """

    value: Any
    key: str = ""
    above: str = ""


Replace = Callable[[Leaf], Any]
"""Returns the replacement, or the value itself."""


def whole(value: Any) -> int | None:
    """Returns a whole number, also one that is written as a float; None of any other value.

    pandas and NumPy write `4711.0` for the integers of a column with a gap.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def replaced(value: Any, replace: Replace) -> Any:
    """Replaces the keys and values of a decoded JSON value.

    Raises:
        RecursionError: the value is nested too deeply.
    """
    leaves: list[Leaf] = []
    _collect(value, "", "", leaves)
    return _rebuilt(value, map(replace, leaves))


def replaced_in_text(text: str, replace: Replace) -> str:
    """Replaces the keys and values of a JSON text, and keeps its formatting.

    Raises:
        msgspec.DecodeError: the text is not JSON, or has a number that cannot be read.
        RecursionError: the value is nested too deeply.
    """
    value = msgspec.json.decode(text)
    leaves: list[Leaf] = []
    _collect(value, "", "", leaves)
    scalars = [*_SCALAR.finditer(text)]
    if len(scalars) != len(leaves):  # an object has a duplicate key, of which the last one counts
        text = msgspec.json.encode(value).decode()
        scalars = [*_SCALAR.finditer(text)]
    parts, position = [], 0
    for scalar, leaf in zip(scalars, leaves, strict=True):
        new = replace(leaf)
        if new is not leaf.value and new != leaf.value:
            parts += [text[position : scalar.start()], msgspec.json.encode(new).decode()]
            position = scalar.end()
    return "".join([*parts, text[position:]]) if parts else text


def _collect(value: Any, key: str, above: str, leaves: list[Leaf]) -> None:
    """Collects keys and values in the order of the text."""
    if isinstance(value, dict):
        label = "" if _VALUES.isdisjoint(value) else _label(value)
        author = "user" if value.get("role") == "user" else key  # the owner of `name` in a message
        for name, item in value.items():
            leaves.append(Leaf(name))
            if name not in _VALUES:
                _collect(item, name, author if name == "name" else key, leaves)
            elif label:
                _collect(item, label, key, leaves)
            else:
                _collect(item, key or name, above, leaves)
    elif isinstance(value, list):
        for item in value:
            _collect(item, key, above, leaves)
    else:
        leaves.append(Leaf(value, key, above))


def _label(value: dict[str, Any]) -> str:
    """Returns the key of an object with a key and a value; addresses, numbers and tokens are no keys."""
    names = (name for field in _LABELS if isinstance(name := value.get(field), str) and name)
    return next((name for name in names if not _NO_NAME.search(name)), "")


def _rebuilt(value: Any, new: Iterator[Any]) -> Any:
    if isinstance(value, dict):
        return {next(new): _rebuilt(item, new) for item in value.values()}
    if isinstance(value, list):
        return [_rebuilt(item, new) for item in value]
    return next(new)
