"""Columns of texts, and the few rows of them in which something must go.

Arrow is imported by what works on columns alone: most processes redact nothing but their log.
"""

from typing import Any

from retuned.consumers.privacy import folding
from retuned.consumers.privacy.placeholders import Scope


class Redacted:
    """Columns of the same events whose personal data is taken out.

    Attributes:
        cleaned: by name, the texts of the rows in which something might be.
        waiting: places among these rows whose placeholders have no numbers yet, and what knows them.
    """

    def __init__(self, texts: dict[str, Any], rows: list[int]) -> None:
        """The columns as they came, and in which rows of them something might be."""
        self._texts, self._rows = texts, rows
        self.cleaned: dict[str, list[str | None]] = {}
        self.waiting: list[tuple[int, Scope]] = []

    def columns(self) -> dict[str, Any]:
        """Arrow arrays by name."""
        return {
            name: exchanged(array, self._rows, self.cleaned[name]) if self._rows else array
            for name, array in self._texts.items()
        }


def suspects(arrays: list[Any], pattern: str) -> list[int]:
    """The rows in which the pattern matches, in any of the arrays."""
    import pyarrow as pa

    # Arrow compiles the pattern anew at each call, which takes as long as looking through a thousand texts.
    if len(arrays) > 1 and sum(array.nbytes for array in arrays) < 2**31:
        looked_at = [pa.concat_arrays(arrays)]
    else:
        looked_at = arrays
    rows: set[int] = set()
    for array in looked_at:
        rows.update(index % len(arrays[0]) for index in _matching(array, pattern))
    return sorted(rows)


def _matching(array: Any, pattern: str) -> list[int]:
    """The rows in whose copy (`folding`) the pattern matches."""
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
    """An array of strings with other ones in these rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    mask = np.zeros(len(array), bool)
    mask[rows] = True
    return pc.replace_with_mask(array, mask, pa.array(texts, pa.string()))
