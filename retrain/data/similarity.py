"""The text that prompts share, and an index of near duplicates, where false matches do no harm (see `related`)."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from retuned.retrain.data.identity import text_hash

if TYPE_CHECKING:
    from datasketch import MinHash

T = TypeVar("T")

_PERMUTATIONS = 128
_SHINGLE = 5
_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 1], dtype=np.uint64
)
"""Multipliers of the characters of a 5-gram in its hash: odd, and without a pattern."""
_32_BITS = np.uint64(0xFFFFFFFF)
_MISSED = 1e-4
_DEVIATION = 0.2  # tolerance of the share of equal hashes; its standard deviation is at most 0.044
_BUCKET = 32
_COMPARED = 16
_RUN = 8  # words
_SHARING_PROMPTS = 20
_SHARING = 0.2
_SAMPLE = 1_000


class Template:
    """Text that many prompts of a workload share, such as an instruction before each ticket.

    A run of _RUN words is shared if it occurs in a fifth of the distinct prompts, and in at least 20. It is computed on
    a sample of 1,000 prompts, which is the same for the same prompts.
    """

    def __init__(self, prompts: Iterable[str] = ()) -> None:
        sample = sorted(set(prompts), key=text_hash)[:_SAMPLE]
        times = Counter(run for prompt in sample for run in set(_runs(prompt.split())))
        least = max(_SHARING_PROMPTS, _SHARING * len(sample))
        self._shared = {run: count for run, count in times.items() if count >= least}
        self._varying: dict[str, str] = {}

    def varying(self, prompt: str) -> str:
        """Returns a normalised prompt with each longer shared part cut to its most frequent run."""
        if not self._shared:
            return prompt
        if prompt not in self._varying:
            self._varying[prompt] = self._shortened(prompt.split())
        return self._varying[prompt]

    def _shortened(self, words: list[str]) -> str:
        shared = [False] * len(words)
        for start, run in enumerate(_runs(words)):
            if run in self._shared:
                shared[start : start + _RUN] = [True] * _RUN
        kept: list[str] = []
        for is_shared, places in groupby(range(len(words)), key=shared.__getitem__):
            part = [words[place] for place in places]
            if is_shared and len(part) > _RUN:
                part = [*max(_runs(part), key=lambda run: self._shared.get(run, 0))]
            kept += part
        return " ".join(kept)


def _runs(words: list[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1))


class NearIndex(Generic[T]):
    """Finds the values of texts whose Jaccard similarity of character 5-grams reaches a limit.

    Candidates come from MinHash LSH (Broder 1997), which misses one in ten thousand. The best ones are compared
    exactly. The work for one text is bounded: a bucket keeps _BUCKET texts, and _COMPARED candidates are compared, so
    of very many similar texts only some are found. Callers normalise texts. Texts of different blocks never match.
    """

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._number, self._width = _bands(similarity)
        self._buckets: dict[tuple[int, bytes], list[int]] = {}
        self._hashes = np.empty((64, _PERMUTATIONS), dtype=np.uint64)
        self._entries: list[tuple[str, str, T]] = []

    def add(self, text: str, value: T, block: str = "") -> None:
        """Adds a value for a text. A text may have several values."""
        place, hashed = len(self._entries), _minhash(text, block)
        for bucket in self._keys(hashed):
            members = self._buckets.setdefault(bucket, [])
            if len(members) < _BUCKET:
                members.append(place)
        if place == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
        self._hashes[place] = hashed
        self._entries.append((text, block, value))

    def near(self, text: str, block: str = "") -> Iterator[T]:
        """Yields the values of equal texts and near duplicates, in the order in which they were added."""
        hashed = _minhash(text, block)
        candidates = {place for bucket in self._keys(hashed) for place in self._buckets.get(bucket, ())}
        if not candidates:
            return
        places = np.array(sorted(candidates))
        agreeing = (self._hashes[places] == hashed).mean(axis=1)
        likely = np.argsort(-agreeing, kind="stable")[:_COMPARED]
        for place in sorted(places[likely[agreeing[likely] >= self._similarity - _DEVIATION]].tolist()):
            other, within, value = self._entries[place]
            if within == block and (other == text or self._alike(_grams(text), _grams(other))):
                yield value

    def _keys(self, hashed: np.ndarray) -> Iterator[tuple[int, bytes]]:
        for band in range(self._number):
            yield band, hashed[band * self._width : (band + 1) * self._width].tobytes()

    def _alike(self, one: np.ndarray, other: np.ndarray) -> bool:
        shared = len(np.intersect1d(one, other, assume_unique=True))
        return shared >= self._similarity * (len(one) + len(other) - shared)


def _bands(similarity: float) -> tuple[int, int]:
    """Returns the number and the maximum width of bands such that two texts of that similarity share one."""
    bands = (_PERMUTATIONS, 1)
    for width in range(2, _PERMUTATIONS + 1):
        number = _PERMUTATIONS // width
        if (1 - similarity**width) ** number > _MISSED:
            break
        bands = (number, width)
    return bands


@lru_cache(10_000)
def _grams(text: str) -> np.ndarray:
    """Returns the distinct hashes of a text's 5-grams, sorted."""
    points = np.frombuffer(text.ljust(_SHINGLE, "\0").encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    windows = np.lib.stride_tricks.sliding_window_view(points.astype(np.uint64), _SHINGLE)
    hashed = (windows * _FACTORS).sum(axis=1, dtype=np.uint64)
    return np.unique(hashed ^ hashed >> np.uint64(29))


@lru_cache(50_000)
def _minhash(text: str, block: str) -> np.ndarray:
    """Returns the MinHash of a text's 5-grams, salted by the block. Cached: a dataset needs each one several times."""
    salt = np.uint64(int.from_bytes(hashlib.sha256(block.encode("utf-8", "surrogatepass")).digest()[:4], "little"))
    minhash = _new_minhash().copy()
    minhash.update_batch(((_grams(text) & _32_BITS) ^ salt).tolist())
    return np.asarray(minhash.hashvalues)


@cache
def _new_minhash() -> "MinHash":
    from datasketch import MinHash  # imports SciPy, which would slow down the start of every command

    return MinHash(num_perm=_PERMUTATIONS, hashfunc=int)
