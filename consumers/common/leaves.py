"""What stands in JSON, each value with the key that gives it its meaning."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

# A key and its value as two fields of an object, as attributes of OpenTelemetry and fields of forms are written.
_LABELS = ("key", "name", "field", "label", "title", "type", "system")
_VALUES = frozenset(
    ("value", "stringValue", "string_value", "intValue", "int_value", "arrayValue", "array_value", "values")
)
LABELLED = rf'(?i:"(?:{"|".join(_LABELS)})\\*" ?: ?\\*"[^"]*)'
"""What stands before such a key, in the dialect of RE2."""

_NO_NAME = re.compile(r"[@＠<>]|(?:[0-9][^0-9]*+){3}")
_SCALAR = re.compile(r'"(?:[^"\\]++|\\.)*+"|[^\s\[\]{}:,"]++')


class Leaf(NamedTuple):
    """A key or a value of JSON.

    Attributes:
        key, above: of a value, the key that it stands under and the one above that; empty where there is none.
    """

    value: Any
    key: str = ""
    above: str = ""


Replace = Callable[[Leaf], Any]
"""Returns what stands there instead, or the value itself."""


def replaced(value: Any, replace: Replace) -> Any:
    """A decoded JSON value with other keys and values.

    Raises:
        RecursionError: it is nested too deeply.
    """
    leaves: list[Leaf] = []
    _collect(value, "", "", leaves)
    return _rebuilt(value, map(replace, leaves))


def replaced_in_text(text: str, replace: Replace) -> str:
    """A JSON text with other keys and values; all else stays as it is written.

    Raises:
        msgspec.DecodeError: it is no JSON, or holds a number that cannot be read.
        RecursionError: it is nested too deeply.
    """
    value = msgspec.json.decode(text)
    leaves: list[Leaf] = []
    _collect(value, "", "", leaves)
    scalars = [*_SCALAR.finditer(text)]
    if len(scalars) != len(leaves):  # an object has a key twice: the last one counts
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
    """The keys and values in the order in which they stand."""
    if isinstance(value, dict):
        label = "" if _VALUES.isdisjoint(value) else _label(value)
        author = "user" if value.get("role") == "user" else key  # whose `name` stands in a message
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
    """The name of the field that an object is; none is an address, a number or a token."""
    names = (name for field in _LABELS if isinstance(name := value.get(field), str) and name)
    return next((name for name in names if not _NO_NAME.search(name)), "")


def _rebuilt(value: Any, new: Iterator[Any]) -> Any:
    if isinstance(value, dict):
        return {next(new): _rebuilt(item, new) for item in value.values()}
    if isinstance(value, list):
        return [_rebuilt(item, new) for item in value]
    return next(new)
