"""Nearest neighbours among the vectors of questions.

The signs of the components, a bit each, select candidates; the vectors themselves order them. That takes about a
millisecond among 100,000 questions, without an index that has to be built.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retuned.retrain.memory.embed import Embedding

CANDIDATES = 64
"""The number of candidates; more if their signs differ equally."""
_LEAST_ROWS = 1_024
_FAR = np.uint16(1_024)
"""More than the signs of two vectors can differ by."""
_NONE = 0
"""The scope of rows that are removed."""


class Near(NamedTuple):
    """A question that is near to another one.

    Attributes:
        similarity: the cosine of both vectors.
        to_nearest: the cosine of its vector and that of the nearest question.
    """

    id: str
    similarity: float
    to_nearest: float


class Vectors:
    """The vectors of questions, each within a scope. For one thread.

    Rows are only appended; those of removed questions are dropped when the room is used up.
    """

    def __init__(self, embedding: Embedding) -> None:
        self._embedding = embedding
        self._rows: list[str] = []
        self._places: dict[str, int] = {}
        self._allocate(_LEAST_ROWS)

    def add(self, ids: Sequence[str], scopes: Sequence[int], texts: Sequence[str]) -> None:
        """Adds questions with new ids. Scopes are positive and have 64 bits."""
        start, end = len(self._rows), len(self._rows) + len(ids)
        if end > len(self._scopes):
            self._rebuild(len(ids))
            start, end = len(self._rows), len(self._rows) + len(ids)
        vectors = self._embedding(texts)
        self._vectors[start:end], self._signs[:, start:end], self._scopes[start:end] = vectors, _signs(vectors), scopes
        self._places.update(zip(ids, range(start, end), strict=True))
        self._rows += ids

    def remove(self, id: str) -> None:
        """Removes a question; safe to repeat."""
        if (place := self._places.pop(id, None)) is not None:
            self._scopes[place] = _NONE

    def near(self, scope: int, text: str) -> list[Near]:
        """Returns the questions of a scope that are near to a text, the nearest first."""
        vector, count = self._embedding([text]), len(self._rows)
        if not self._places or not vector.any():
            return []
        differing = (self._scopes[:count] != scope) * _FAR
        for own, others in zip(_signs(vector), self._signs, strict=True):
            differing += np.bitwise_count(others[:count] ^ own)
        up_to = np.bincount(differing, minlength=_FAR)[:_FAR].cumsum()
        places = np.flatnonzero(differing <= np.searchsorted(up_to, min(CANDIDATES, up_to[-1])))
        vectors = self._vectors[places].astype(np.float32)
        similarities = vectors @ vector[0]
        order = np.argsort(-similarities, kind="stable")
        to_nearest = vectors @ vectors[order[0]] if len(order) else similarities
        columns = (values[order].tolist() for values in (places, similarities, to_nearest))
        return [Near(self._rows[place], *cosines) for place, *cosines in zip(*columns, strict=True)]

    def _allocate(self, rows: int) -> None:
        width = self._embedding.dimensions
        self._vectors = np.empty((rows, width), np.float16)
        self._signs = np.empty((width // 64, rows), np.uint64)
        self._scopes = np.empty(rows, np.uint64)

    def _rebuild(self, more: int) -> None:
        """Drops the rows of removed questions, and makes room for as many again and `more`."""
        old = self._vectors, self._signs, self._scopes
        kept = np.fromiter(self._places.values(), np.int64, len(self._places))
        self._allocate(2 * len(kept) + more + _LEAST_ROWS)
        self._vectors[: len(kept)], self._scopes[: len(kept)] = old[0][kept], old[2][kept]
        self._signs[:, : len(kept)] = old[1][:, kept]
        self._rows = list(self._places)
        self._places = {id: place for place, id in enumerate(self._rows)}


def _signs(vectors: np.ndarray) -> np.ndarray:
    """Returns the signs of vectors' components: a row for each 64 components, a column for each vector."""
    return np.packbits(vectors > 0, axis=1).view(np.uint64).T
