"""Separates answers to a question from those that do not depend on it, such as jokes or "as always".

Questions that share a right answer have more wording in common than random questions. A permutation test (Fisher 1935)
on the mean cosine of TF-IDF checks this. If it finds no such similarity, there is no evidence that the text answers any
of its questions. Where random questions have no word in common, the test could find nothing, and it abstains.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from retuned.retrain.data.examples import Example
from retuned.retrain.data.identity import normalise

QUESTIONS = 5
"""The minimum number of questions for the test."""
CHANCE = 0.01
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
    given: dict[str, set[str]] = defaultdict(set)
    for row in statements:
        if row.kind == "correction" and (text := normalise(row.completion)) not in trusted:
            given[text].add(row.prompt_hash)
    most = _SHARE * len({row.prompt_hash for row in statements})
    given = {text: own for text, own in given.items() if len(own) <= most}
    return frozenset(text for text, fits in _tested(statements, given).items() if not fits)


def specific(statements: Sequence[Example]) -> frozenset[str]:
    """Returns the texts, normalised, whose questions have similar wording."""
    given: dict[str, set[str]] = defaultdict(set)
    for row in statements:
        given[normalise(row.completion)].add(row.prompt_hash)
    return frozenset(text for text, fits in _tested(statements, given).items() if fits)


def _tested(statements: Sequence[Example], given: Mapping[str, set[str]]) -> dict[str, bool]:
    """Returns whether the questions of a text have similar wording, for each text on which the test can decide.

    Args:
        given: the questions of each text, as prompt hashes.
    """
    asked: dict[str, str] = {}
    for row in statements:
        asked.setdefault(row.prompt_hash, row.question)
    tested = {text: own for text, own in given.items() if len(own) >= QUESTIONS}
    if not tested:
        return {}
    vectors, place = _vectors(list(asked.values())), {group: number for number, group in enumerate(asked)}
    draw = np.random.default_rng(0)
    usual: dict[int, np.ndarray] = {}
    fits = {}
    for text, own in tested.items():
        size = len(own)
        if size not in usual:
            drawn = [draw.choice(len(asked), size, replace=False) for _ in range(_DRAWS)]
            usual[size] = np.array([_mean_cosine(vectors[one]) for one in drawn])
        if usual[size].max() < _NOTHING:
            continue
        mine = _mean_cosine(vectors[sorted(place[group] for group in own)])
        fits[text] = bool((1 + (usual[size] >= mine).sum()) / (1 + _DRAWS) <= CHANCE)
    return fits


def _vectors(questions: Sequence[str]):  # type: ignore[no-untyped-def]
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=_words, sublinear_tf=True).fit_transform(questions)


def _words(question: str) -> list[str]:
    """Returns the words of a question; where a script has no spaces, characters and pairs of them, as Lucene does."""
    unspaced = _UNSPACED.findall(question)
    pairs = (text[at : at + 2] for text in unspaced for at in range(len(text) - 1))
    return [*_UNSPACED.sub(" ", question).split(), *(sign for text in unspaced for sign in text), *pairs]


def _mean_cosine(vectors) -> float:  # type: ignore[no-untyped-def]
    """Returns the mean cosine of all pairs of rows, which have length 1."""
    size, total = vectors.shape[0], np.asarray(vectors.sum(axis=0)).ravel()
    return float((total @ total - size) / (size * (size - 1)))
