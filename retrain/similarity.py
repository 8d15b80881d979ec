"""Which prompts are the same question? Normal forms, their hash, and an index of near duplicates."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
from datasketch import MinHash, MinHashLSH

from retuned.consumers.placeholders import unnumbered

T = TypeVar("T")

_PERMUTATIONS = 128
_SHINGLE = 5
_MISSED = 1e-4
_DEVIATION = 0.2  # of the share of hashes that agree; a standard deviation is at most 0.044


def normalise(text: str) -> str:
    """A text without what does not change its meaning: case, punctuation, spacing, Unicode variants, and the numbers
    of placeholders (`<EMAIL_2>`), which count within one conversation."""
    return " ".join(re.findall(r"[\w€$£%]+", unicodedata.normalize("NFKC", unnumbered(text)).casefold()))


def text_hash(text: str) -> str:
    """A stable hash of a text, 16 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fraction(text: str) -> float:
    """A stable number in [0, 1) that depends on the text alone."""
    return int(text_hash(text)[:13], 16) / 16**13


class NearIndex(Generic[T]):
    """Finds what was added under a prompt whose Jaccard similarity of character 5-grams reaches the limit.

    Candidates come from MinHash LSH (Broder 1997; `datasketch`), of which one in ten thousand is missed; those whose
    hashes agree too seldom are passed over, and the exact similarity decides. Prompts are normalised by the caller.
    """

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._lsh = MinHashLSH(num_perm=_PERMUTATIONS, params=_bands(similarity))
        self._hashes = np.empty((64, _PERMUTATIONS), dtype=np.uint64)
        self._entries: list[tuple[str, T]] = []

    def add(self, prompt: str, value: T) -> None:
        """Add a value under a prompt; one prompt may hold several."""
        place, hashed = len(self._entries), _minhash(prompt)
        self._lsh.insert(place, hashed, check_duplication=False)
        if place == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
        self._hashes[place] = hashed.hashvalues
        self._entries.append((prompt, value))

    def near(self, prompt: str) -> Iterator[T]:
        """The values of near duplicates and equals, in the order in which they were added."""
        hashed = _minhash(prompt)
        keys = np.array(sorted(self._lsh.query(hashed)), dtype=int)
        if not keys.size:
            return
        agreeing = (self._hashes[keys] == hashed.hashvalues).mean(axis=1)
        for key in keys[agreeing >= self._similarity - _DEVIATION].tolist():
            other, value = self._entries[key]
            if other == prompt or self._alike(_grams(prompt), _grams(other)):
                yield value

    def _alike(self, one: frozenset[bytes], other: frozenset[bytes]) -> bool:
        shared = len(one & other)
        return shared >= self._similarity * (len(one) + len(other) - shared)


def _bands(similarity: float) -> tuple[int, int]:
    """Number and width of the bands: as wide as may be, when two texts of that similarity are to share one."""
    found = (_PERMUTATIONS, 1)
    for width in range(2, _PERMUTATIONS // 2 + 1):  # datasketch wants two bands or more
        number = _PERMUTATIONS // width
        if (1 - similarity**width) ** number > _MISSED:
            break
        found = (number, width)
    return found


def _grams(text: str) -> frozenset[bytes]:
    return frozenset(text[i : i + _SHINGLE].encode() for i in range(max(1, len(text) - _SHINGLE + 1)))


@lru_cache(50_000)
def _minhash(text: str) -> MinHash:
    """Of its 5-grams. A dataset asks of each text several times, and this is what takes long; see `forget`."""
    found = MinHash(num_perm=_PERMUTATIONS)
    found.update_batch(_grams(text))
    return found


def forget() -> None:
    """Give back the memory of the texts that were compared, up to 70 MB."""
    _minhash.cache_clear()
