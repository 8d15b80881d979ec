"""The text that prompts share, all near pairs among texts, and an index that finds some near duplicates of a text."""

import hashlib
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
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
_ROUNDING = 1e-9
_FIRST = 8
_AT_ONCE = 10_000
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
        """Returns a normalised prompt whose shared parts are cut to their most frequent run."""
        if not self._shared:
            return prompt
        if prompt not in self._varying:
            self._varying[prompt] = self._shortened(prompt.split())
        return self._varying[prompt]

    def _shortened(self, words: list[str]) -> str:
        runs: list[tuple[str, ...]] = []
        is_shared = [False] * len(words)
        for start, run in enumerate(_runs(words)):
            if run in self._shared:
                runs.append(run)
                is_shared[start : start + _RUN] = [True] * _RUN
        kept = [word for word, shared in zip(words, is_shared, strict=True) if not shared]
        return " ".join([*max(runs, key=self._shared.__getitem__, default=()), *kept])


def _runs(words: list[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1))


def near_pairs(texts: Sequence[str], similarity: float, label: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields pairs of texts whose Jaccard similarity of character 5-grams reaches a limit and whose labels differ.

    The search is exact (prefix filter, AllPairs of Bayardo et al. 2007): two texts that are so similar share one of
    their rarest 5-grams. If the caller gives both texts of a pair one label before it takes the next pair, further
    pairs of these labels are not compared. So groups of any size are found without comparing all of their pairs.

    Args:
        texts: normalised.
        label: one integer for each text.
    """
    if not texts:
        return
    given = [_grams(text) for text in texts]
    size = np.array([len(grams) for grams in given])
    start = np.concatenate([[0], np.cumsum(size)])
    _, inverse, times = np.unique(np.concatenate(given), return_inverse=True, return_counts=True)
    rank = np.empty(len(times), dtype=np.int64)
    rank[np.argsort(times, kind="stable")] = np.arange(len(times))
    grams, is_own = rank[inverse.ravel()], np.zeros(len(times), dtype=bool)
    found = np.zeros(len(texts), dtype=bool)
    having: dict[int, array[int]] = defaultdict(lambda: array("q"))
    for one in np.argsort(size, kind="stable").tolist():
        own = np.sort(grams[start[one] : start[one + 1]])
        # Rounding must not make a prefix too short.
        probed = own[: len(own) - math.ceil(similarity * len(own) - _ROUNDING) + 1].tolist()
        found[:] = False
        for gram in probed:
            if gram in having:
                found[np.frombuffer(having[gram], dtype=np.int64)] = True
        others = np.flatnonzero(found & (label != label[one]))
        others = others[size[others] >= similarity * len(own) - _ROUNDING]
        is_own[own] = True
        most = _FIRST
        while len(others := others[label[others] != label[one]]):
            # A few of each label first: if one of them is near, the caller may join the labels.
            order = np.argsort(label[others], kind="stable")
            begins = np.flatnonzero(np.diff(label[others][order], prepend=-1))
            place = np.arange(len(order)) - np.repeat(begins, np.diff([*begins, len(order)]))
            now = np.sort(others[order[place < most]])
            others = np.sort(others[order[place >= most]])
            most = most * most
            for at in range(0, len(now), _AT_ONCE):
                some = now[at : at + _AT_ONCE]
                ends = np.cumsum(size[some])
                places = np.arange(ends[-1]) + np.repeat(start[some] - ends + size[some], size[some])
                shared = np.add.reduceat(is_own[grams[places]].astype(np.int64), ends - size[some])
                near = shared >= similarity * (len(own) + size[some] - shared) - _ROUNDING
                for other in some[near].tolist():
                    if label[other] != label[one]:
                        yield other, one
        is_own[own] = False
        for gram in own[: len(own) - math.ceil(2 * similarity / (1 + similarity) * len(own) - _ROUNDING) + 1].tolist():
            having[gram].append(one)


def near_groups(texts: Sequence[str], similarity: float) -> np.ndarray:
    """Returns a label for each text such that near texts have the same one, as have the texts between them."""
    label = np.arange(len(texts))
    for one, other in near_pairs(texts, similarity, label):
        label[label == label[other]] = label[one]
    return label


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
