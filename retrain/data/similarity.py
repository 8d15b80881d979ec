"""Which prompts are the same question? Normal forms, identity, what prompts share, and an index of near duplicates."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from retuned.consumers.privacy.placeholders import unnumbered

if TYPE_CHECKING:
    from datasketch import MinHash

T = TypeVar("T")

_PERMUTATIONS = 128
_SHINGLE = 5
_MISSED = 1e-4
_DEVIATION = 0.2  # of the share of hashes that agree; a standard deviation is at most 0.044
_RUN = 8  # words
_SHARING_PROMPTS = 20
_SHARING = 0.2
_SAMPLE = 1_000
_MONTH = (
    "(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    "nov(?:ember)?|dec(?:ember)?)"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_CLOCK = re.compile(
    r"\b\d{4}-\d\d-\d\d(?:[t ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:z|[+-]\d\d:?\d\d)?)?"
    r"|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b"
    r"|\b\d{1,2}:\d\d(?::\d\d)?(?:\s?[ap]m)?\b"
    r"|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b"
    rf"|\b(?:{_MONTH}\.? {_DAY}|{_DAY}\.? (?:of )?{_MONTH})\b(?:,? \d{{4}}\b)?",
    re.IGNORECASE,
)


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


@dataclass(frozen=True)
class Identity:
    """What makes a question.

    Attributes:
        text: the conversation, normalised.
        scope: a hash of the system prompt, the context and the tools; empty where there are none.
    """

    text: str
    scope: str = ""

    def __str__(self) -> str:
        """Equal for the same question."""
        return f"{self.scope} {self.text}" if self.scope else self.text


def identity(question: str, system: str = "", context: Sequence[str] = (), tools: Any = None) -> Identity:
    """The identity of a question: each comparison of questions is one of these.

    Case, punctuation and the order of passages make no difference, nor does the date or the time in a system prompt,
    which many applications put there.

    Args:
        question: all turns of the conversation but the system's.
        tools: the schemas that the model was offered, as parsed JSON.
    """
    given = [
        normalise(_CLOCK.sub(" ", system)),
        sorted(normalise(passage) for passage in context),
        json.dumps(tools, sort_keys=True) if tools else "",
    ]
    return Identity(normalise(question), text_hash(json.dumps(given)) if any(given) else "")


class Template:
    """What many prompts of a workload share: an instruction before each ticket is not what is asked.

    A run of _RUN words that stands in a fifth of the prompts (at least 20; prompts that are equal count once) is
    shared. Found on a sample of 1,000 prompts, the same for the same prompts.
    """

    def __init__(self, prompts: Iterable[str] = ()) -> None:
        sample = sorted(set(prompts), key=text_hash)[:_SAMPLE]
        times = Counter(run for prompt in sample for run in set(_runs(prompt.split())))
        least = max(_SHARING_PROMPTS, _SHARING * len(sample))
        self._shared = {run: count for run, count in times.items() if count >= least}
        self._varying: dict[str, str] = {}

    def varying(self, prompt: str) -> str:
        """A normalised prompt with each longer part that is shared cut to the run that most prompts have."""
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
        start = 0
        while start < len(words):
            end = start + 1
            while end < len(words) and shared[end] == shared[start]:
                end += 1
            part = words[start:end]
            if shared[start] and len(part) > _RUN:
                core = max(_runs(part), key=lambda run: self._shared.get(run, 0))
                part = [*core]
            kept += part
            start = end
        return " ".join(kept)


def _runs(words: list[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1))


class NearIndex(Generic[T]):
    """Finds what was added under a text whose Jaccard similarity of character 5-grams reaches the limit.

    Candidates come from MinHash LSH (Broder 1997; `datasketch`), of which one in ten thousand is missed; those whose
    hashes agree too seldom are passed over, and the exact similarity decides. Texts are normalised by the caller.
    Texts within different blocks are never near; where much is alike, blocks keep the number of candidates small.
    """

    def __init__(self, similarity: float) -> None:
        from datasketch import MinHashLSH  # it imports SciPy, which no command needs to start

        self._similarity = similarity
        self._lsh = MinHashLSH(num_perm=_PERMUTATIONS, params=_bands(similarity))
        self._hashes = np.empty((64, _PERMUTATIONS), dtype=np.uint64)
        self._entries: list[tuple[str, str, T]] = []

    def add(self, text: str, value: T, block: str = "") -> None:
        """Add a value under a text; one text may hold several."""
        place, hashed = len(self._entries), _minhash(text, block)
        self._lsh.insert(place, hashed, check_duplication=False)
        if place == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
        self._hashes[place] = hashed.hashvalues
        self._entries.append((text, block, value))

    def near(self, text: str, block: str = "") -> Iterator[T]:
        """The values of near duplicates and equals, in the order in which they were added."""
        hashed = _minhash(text, block)
        keys = np.array(sorted(self._lsh.query(hashed)), dtype=int)
        if not keys.size:
            return
        agreeing = (self._hashes[keys] == hashed.hashvalues).mean(axis=1)
        for key in keys[agreeing >= self._similarity - _DEVIATION].tolist():
            other, within, value = self._entries[key]
            if within == block and (other == text or self._alike(_grams(text), _grams(other))):
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
def _minhash(text: str, block: str) -> "MinHash":
    """Of its 5-grams, those of a block its own. A dataset asks of each text several times, and this is what takes
    long; see `forget`."""
    from datasketch import MinHash

    found = MinHash(num_perm=_PERMUTATIONS)
    found.update_batch([block.encode() + gram for gram in _grams(text)])
    return found
