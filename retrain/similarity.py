"""Which prompts are the same question? Normal forms, their hash, and an index of near duplicates."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Generic, TypeVar

from datasketch import MinHash, MinHashLSH

from retuned.consumers.placeholders import unnumbered

T = TypeVar("T")

_PERMUTATIONS = 128
_SHINGLE = 5


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

    Candidates come from MinHash LSH (Broder 1997; `datasketch`), drawn generously; the exact similarity then decides.
    Prompts are normalised by the caller.
    """

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._lsh = MinHashLSH(
            threshold=min(max(similarity - 0.2, 0.05), 0.99), num_perm=_PERMUTATIONS, weights=(0.1, 0.9)
        )
        self._entries: list[tuple[frozenset[bytes], T]] = []

    def add(self, prompt: str, value: T) -> None:
        """Add a value under a prompt; one prompt may hold several."""
        grams = _grams(prompt)
        self._lsh.insert(len(self._entries), _minhash(prompt), check_duplication=False)
        self._entries.append((grams, value))

    def near(self, prompt: str) -> Iterator[T]:
        """The values of near duplicates and equals, in the order in which they were added."""
        grams = _grams(prompt)
        for key in sorted(self._lsh.query(_minhash(prompt))):
            other, value = self._entries[key]
            shared = len(grams & other)
            if shared >= self._similarity * (len(grams) + len(other) - shared):
                yield value


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
