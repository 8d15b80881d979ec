"""Columns of texts, and the few rows in them that have to be redacted.

Arrow is imported only where columns are processed: most processes redact only their log.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from retuned.consumers.privacy import folding
from retuned.consumers.privacy.placeholders import Scope
from retuned.consumers.privacy.sealing import SEALED, seal


class Redacted:
    """Redacted columns of the same events.

    Attributes:
        cleaned: the texts of the suspect rows, by column.
        waiting: the places among these rows whose placeholders have no numbers yet, with their scopes.
    """

    def __init__(self, texts: dict[str, Any], rows: list[int]) -> None:
        """Creates the result from the original columns and their suspect rows."""
        self._texts, self._rows = texts, rows
        self.cleaned: dict[str, list[str | None]] = {}
        self.waiting: list[tuple[int, Scope]] = []

    def seal_instructions(self, key: bytes) -> None:
        """Adds to the attributes of interactions the seal of instructions in which something was replaced."""
        for place, row in enumerate(self._rows):
            before = {name: self._texts[name][row].as_py() for name in ("messages", "attributes")}
            after = {name: self.cleaned[name][place] for name in before}
            if before != after or SEALED in (before["attributes"] or ""):
                self.cleaned["attributes"][place] = _sealed(key, before, after)

    def columns(self) -> dict[str, Any]:
        """Returns Arrow arrays by name."""
        return {
            name: exchanged(array, self._rows, self.cleaned[name]) if self._rows else array
            for name, array in self._texts.items()
        }


def _sealed(key: bytes, before: Mapping[str, str | None], after: Mapping[str, str | None]) -> str | None:
    """Returns the attributes of an interaction with its seal, in place of one that they bring along."""
    try:
        (messages, attributes), (redacted, known) = (
            [msgspec.json.decode(one[name] or "null") for name in ("messages", "attributes")] for one in (before, after)
        )
        known = known if isinstance(known, dict) else {}
        brought = known.pop(SEALED, None)
        tools = [one.get("tools") if isinstance(one, dict) else None for one in (attributes, known)]
        found = seal(key, (messages, redacted), tools)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return after["attributes"]  # without a seal no answer is remembered
    if found is None and brought is None:
        return after["attributes"]
    return msgspec.json.encode(known | ({SEALED: found} if found else {})).decode()


def suspects(arrays: list[Any], pattern: str) -> list[int]:
    """Returns the rows in which the pattern matches in any of the arrays."""
    import pyarrow as pa

    # Arrow compiles the pattern at each call, which takes as long as searching a thousand texts.
    if len(arrays) > 1 and sum(array.nbytes for array in arrays) < 2**31:
        searched = [pa.concat_arrays(arrays)]
    else:
        searched = arrays
    rows: set[int] = set()
    for array in searched:
        rows.update(index % len(arrays[0]) for index in _matching(array, pattern))
    return sorted(rows)


def _matching(array: Any, pattern: str) -> list[int]:
    """Returns the rows whose folded copy (`folding`) matches the pattern."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pc.all(pc.string_is_ascii(array)).as_py() is not False:
        rows: list[int] = pc.indices_nonzero(pc.match_substring_regex(array, pattern)).to_pylist()
        return rows
    rows = pc.indices_nonzero(pc.match_substring_regex(array, f"{pattern}|{folding.suspect()}")).to_pylist()
    texts = array.take(pa.array(rows, pa.int64())).to_pylist()
    copies = {row: copy for row, text in zip(rows, texts, strict=True) if (copy := folding.fold(text)[0]) != text}
    matches = pc.match_substring_regex(pa.array(copies.values(), pa.string()), pattern).to_pylist() if copies else []
    harmless = {row for row, match in zip(copies, matches, strict=True) if not match}
    return [row for row in rows if row not in harmless]


def exchanged(array: Any, rows: list[int], texts: list[str | None]) -> Any:
    """Replaces the strings of an array in these rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    mask = np.zeros(len(array), bool)
    mask[rows] = True
    return pc.replace_with_mask(array, mask, pa.array(texts, pa.string()))
