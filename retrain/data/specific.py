"""Separates answers to a question from those that do not depend on it, such as jokes or "as always".

Questions that share a right answer have more wording in common than random questions. A permutation test (Fisher 1935)
on the mean cosine of TF-IDF shows which texts fit their questions. That it finds nothing shows nothing, as of a text of
few questions: a text is set aside only if its questions are known to be less alike than that, by the upper bound of
their mean cosine (a U-statistic, Hoeffding 1948). Where random questions have no word in common, nothing is decided.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from retuned.retrain.data.examples import Example
from retuned.retrain.data.identity import normalise

QUESTIONS = 5
"""The minimum number of questions for the test."""
CHANCE = 0.01
_BOUND = 2.33
"""Standard errors above a mean: 99%, one-sided."""
_DRAWS = 400
_SHARE = 0.5
_NOTHING = 1e-9
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
"""Scripts without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Kana and Han."""


def unspecific(statements: Sequence[Example]) -> frozenset[str]:
    """Returns such texts among users' corrections, normalised. Texts of experts and of most questions are exempt."""
    trusted = {normalise(row.completion) for row in statements if row.is_expert}
    given = _asked(row for row in statements if row.kind == "correction" and normalise(row.completion) not in trusted)
    most = _SHARE * len({row.prompt_hash for row in statements})
    given = {text: own for text, own in given.items() if len(own) <= most}
    return frozenset(text for text, fits in _tested(statements, given).items() if fits is False)


def specific(statements: Sequence[Example]) -> frozenset[str]:
    """Returns the texts, normalised, whose questions have similar wording."""
    return frozenset(text for text, fits in _tested(statements, _asked(statements)).items() if fits)


def _asked(statements: Iterable[Example]) -> dict[str, set[str]]:
    """Returns the questions of each text, normalised, as prompt hashes."""
    given: dict[str, set[str]] = defaultdict(set)
    for row in statements:
        given[normalise(row.completion)].add(row.prompt_hash)
    return given


def _tested(statements: Sequence[Example], given: Mapping[str, set[str]]) -> dict[str, bool | None]:
    """Returns whether the questions of a text have similar wording, for each text that can be tested; None: unknown."""
    asked: dict[str, str] = {}
    for row in statements:
        asked.setdefault(row.prompt_hash, row.question)
    tested = {text: own for text, own in given.items() if len(own) >= QUESTIONS}
    if not tested:
        return {}
    vectors, place = _vectors(list(asked.values())), {group: number for number, group in enumerate(asked)}
    draw = np.random.default_rng(0)
    usual: dict[int, np.ndarray] = {}
    found: dict[str, bool | None] = {}
    for text, own in tested.items():
        size = len(own)
        if size not in usual:
            drawn = [draw.choice(len(asked), size, replace=False) for _ in range(_DRAWS)]
            usual[size] = np.array([_cosines(vectors[one]).mean() for one in drawn])
        if usual[size].max() < _NOTHING:
            continue
        cosines = _cosines(vectors[sorted(place[group] for group in own)])
        mean = float(cosines.mean())
        high = mean + _BOUND * 2 * float(cosines.std(ddof=1)) / size**0.5
        fits = (1 + (usual[size] >= mean).sum()) / (1 + _DRAWS) <= CHANCE
        found[text] = True if fits else False if high < np.quantile(usual[size], 1 - CHANCE) else None
    return found


def _vectors(questions: Sequence[str]):  # type: ignore[no-untyped-def]
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=_words, sublinear_tf=True).fit_transform(questions)


def _words(question: str) -> list[str]:
    """Returns the words of a question; where a script has no spaces, characters and pairs of them, as Lucene does."""
    unspaced = _UNSPACED.findall(question)
    pairs = (text[at : at + 2] for text in unspaced for at in range(len(text) - 1))
    return [*_UNSPACED.sub(" ", question).split(), *(sign for text in unspaced for sign in text), *pairs]


def _cosines(vectors: Any) -> np.ndarray:
    """Returns the mean cosine of each row with the others; rows have length 1."""
    total = np.asarray(vectors.sum(axis=0)).ravel()
    found: np.ndarray = (np.asarray(vectors @ total).ravel() - 1) / (vectors.shape[0] - 1)
    return found
