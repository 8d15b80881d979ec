"""Candidates of known worth on holdouts of known size: how often does the gate promote them?

Rows differ in difficulty. A model answers a row right with the row's chance, which its worth shifts; champion and
candidate answer independently, as two trainings do.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from retuned.retrain.decision.gate import decide
from retuned.retrain.settings import GateSettings

Draw = Callable[[np.random.Generator, np.ndarray, float], np.ndarray]
"""Scores of one model from the rows' chances and the model's gain."""


@dataclass(frozen=True)
class Row:
    """What the gate reads of an evaluation."""

    row_id: str
    score: float | None
    hallucinated: bool | None = False
    refused: bool = False
    length_ratio: float = 1.0
    latency_seconds: float = 1.0
    seconds_per_token: float = 1.0
    slices: tuple[str, ...] = ()
    origin: str | None = None
    kind: str | None = None
    valid: bool | None = None
    answered: str | None = None
    verdict: str | None = None
    agreement: float | None = None
    cluster: str | None = None
    asked: int = 0
    detail: str = ""


def binary(rng: np.random.Generator, chances: np.ndarray, gain: float) -> np.ndarray:
    """Right or wrong. A gain turns wrong rows right, and a negative one right rows wrong."""
    right = rng.random(len(chances)) < chances
    turned = rng.random(len(chances)) < abs(gain) / 0.5  # half of the rows are right, and half are wrong
    return np.where(turned, gain > 0, right).astype(float)


def graded(rng: np.random.Generator, chances: np.ndarray, gain: float) -> np.ndarray:
    """Anything from 0 to 1."""
    return np.asarray(np.clip(chances * 0.5 + 0.25 + gain + rng.normal(0, 0.15, len(chances)), 0, 1))


def skewed(rng: np.random.Generator, chances: np.ndarray, gain: float) -> np.ndarray:
    """Mostly a little better, and now and then all wrong: what a small sample hardly shows."""
    lost = rng.random(len(chances)) < 0.05
    return np.where(lost, 0.0, 0.5 + 0.5 * 0.05 / 0.95 + gain)


@dataclass(frozen=True)
class Candidate:
    """What is simulated.

    Attributes:
        gain: true gain in mean score.
        hallucinating: this much more often than the champion, which does it in 5% of all rows.
        forgetting: of the earlier examples, of which the champion knows 90%.
    """

    gain: float = 0.0
    draw: Draw = binary
    hallucinating: float = 0.0
    forgetting: float = 0.0


@dataclass
class Rates:
    """Shares of the simulated holdouts: with a promotion, and with a refusal by each condition at the first try."""

    promoted: float = 0.0
    refused: dict[str, float] = field(default_factory=dict)


def simulate(
    candidate: Candidate,
    examples: int,
    settings: GateSettings,
    *,
    runs: int,
    seed: int,
    tries: int = 1,
    first: bool = False,
) -> Rates:
    """Let candidates of one kind try until one is promoted, at most `tries` of them on each holdout.

    Args:
        first: no champion serves: what it would have answered is what production did, and the base model knows nothing.
    """
    rng = np.random.default_rng(seed)
    rates = Rates()
    refused: Counter[str] = Counter()
    for _ in range(runs):
        chances = rng.beta(0.8, 0.8, examples)
        steady = np.full(examples, 0.5)  # what a skewed candidate is compared with
        old = steady if candidate.draw is skewed else candidate.draw(rng, chances, 0.0)
        champion, earlier = _rows(rng, old, 0.0), _earlier(rng, 0.0)
        opponent = _rows(rng, np.zeros(examples), 0.0) if first else champion
        for k in range(tries):
            new = candidate.draw(rng, chances, candidate.gain)
            decision = decide(
                opponent,
                _rows(rng, new, candidate.hallucinating),
                earlier,
                _earlier(rng, candidate.forgetting),
                settings,
                tries=k,
                logged=champion if first else (),
                serving=not first,
            )
            if not k:
                refused.update(
                    name[len("passed[") : -1]
                    for name, passed in decision.figures.items()
                    if name.startswith("passed[") and not passed
                )
            if decision.outcome:
                rates.promoted += 1 / runs
                break
    rates.refused = {name: count / runs for name, count in refused.items()}
    return rates


def _rows(rng: np.random.Generator, scores: np.ndarray, hallucinating: float) -> list[Row]:
    invented = rng.random(len(scores)) < 0.05 + hallucinating
    refused = rng.random(len(scores)) < 0.03
    lengths = rng.lognormal(0, 0.3, len(scores))
    return [
        Row(
            str(i),
            float(score),
            hallucinated=bool(invented[i]),
            refused=bool(refused[i]),
            length_ratio=float(lengths[i]),
            latency_seconds=float(lengths[i]),
            slices=(f"language:{'en' if i % 4 else 'de'}", f"topic:{i % 5}"),
        )
        for i, score in enumerate(scores)
    ]


def _earlier(rng: np.random.Generator, forgetting: float, examples: int = 60) -> list[Row]:
    known = rng.random(examples) < 0.9 - forgetting
    return [Row(str(i), float(value)) for i, value in enumerate(known)]


# What metrics say of two models that answer independently, as two trainings do.

Pair = Callable[[np.random.Generator, int], tuple[list[Row], list[Row]]]
"""The rows of champion and candidate on a holdout of so many examples."""

LABELS = [f"intent_{letter}" for letter in "abcdefghij"]


def labelled(rights: Sequence[str], answers: Sequence[str | None]) -> list[Row]:
    """Rows of a classifier."""
    return [
        Row(f"r{i}", float(right == answer), answered=answer, slices=(f"label:{right}",))
        for i, (right, answer) in enumerate(zip(rights, answers, strict=True))
    ]


def labels(before: float, after: float, lost: int = 0) -> Pair:
    """Ten labels, answered right with these chances; the candidate never answers the first `lost`."""

    def draw(rng: np.random.Generator, examples: int) -> tuple[list[Row], list[Row]]:
        rights = [LABELS[i % len(LABELS)] for i in range(examples)]

        def answers(chance: float) -> list[str]:
            return [right if rng.random() < chance else _other(rng, right) for right in rights]

        gone = LABELS[:lost]
        candidate = [
            LABELS[-1] if right in gone else answer for right, answer in zip(rights, answers(after), strict=True)
        ]
        return labelled(rights, answers(before)), labelled(rights, candidate)

    return draw


def _other(rng: np.random.Generator, right: str) -> str:
    return str(rng.choice([label for label in LABELS if label != right]))


def documents(before: float, after: float, broken: float = 0.0) -> Pair:
    """Documents of four fields, each right with these chances: fractions with many ties. So many are broken."""

    def draw(rng: np.random.Generator, examples: int) -> tuple[list[Row], list[Row]]:
        def rows(chance: float, broken: float) -> list[Row]:
            whole = rng.random(examples) >= broken
            scores = rng.binomial(4, chance, examples) / 4 * whole
            return [
                Row(f"r{i}", float(score), valid=bool(valid))
                for i, (score, valid) in enumerate(zip(scores, whole, strict=True))
            ]

        return rows(before, 0.0), rows(after, broken)

    return draw


def texts(gain: float) -> Pair:
    """Likeness of wording: some questions are harder than others, and each answer scatters."""

    def draw(rng: np.random.Generator, examples: int) -> tuple[list[Row], list[Row]]:
        likeness = rng.beta(4, 4, examples)

        def rows(gain: float) -> list[Row]:
            scores = np.clip(likeness + gain + rng.normal(0, 0.15, examples), 0, 1)
            return [Row(f"r{i}", float(score)) for i, score in enumerate(scores)]

        return rows(0.0), rows(gain)

    return draw


def promoted(pair: Pair, examples: int, settings: GateSettings, *, runs: int, seed: int) -> float:
    """Share of the simulated holdouts on which the candidate is promoted at the first try."""
    rng = np.random.default_rng(seed)
    drawn = (pair(rng, examples) for _ in range(runs))
    return sum(decide(old, new, [], [], settings).outcome for old, new in drawn) / runs


# Rows that depend on each other, labels with few rows each, and production's answers.


def conversations(
    rng: np.random.Generator, groups: int, correlation: float, draw: Callable[[np.random.Generator, int], np.ndarray]
) -> list[np.ndarray]:
    """Differences of conversations of 1 to 20 rows; a row has its conversation's own value with a chance that makes
    up the intraclass correlation."""
    shared, found = draw(rng, groups), []
    for size, own in zip(rng.integers(1, 21, groups), shared, strict=True):
        same = rng.random(size) < correlation**0.5
        found.append(np.where(same, own, draw(rng, size)))
    return found


def in_conversations(differences: Sequence[np.ndarray]) -> tuple[list[Row], list[Row]]:
    """The rows of champion and candidate that differ so, on scores about a half."""
    old, new = [], []
    for place, own in enumerate(differences):
        for number, one in enumerate(own):
            row = Row(f"r{place}-{number}", 0.5 - float(one) / 2, cluster=f"c{place}")
            old.append(row)
            new.append(replace(row, score=0.5 + float(one) / 2))
    return old, new


def of_labels(
    rng: np.random.Generator, before: np.ndarray, after: np.ndarray, each: int
) -> tuple[list[Row], list[Row]]:
    """So many rows of each label, which the models answer rightly with these chances; a wrong answer is none."""
    rights = [f"label {i}" for i in range(len(before)) for _ in range(each)]

    def answered(chances: np.ndarray) -> list[str | None]:
        hits = rng.random(len(rights)) < np.repeat(chances, each)
        return [right if hit else None for right, hit in zip(rights, hits, strict=True)]

    return labelled(rights, answered(before)), labelled(rights, answered(after))


def beside_production(
    rng: np.random.Generator, examples: int, accepted: float, after: float, *, wording: bool
) -> tuple[list[Row], list[Row], list[Row]]:
    """Base model, candidate and production, of whose answers this share was called good and is the approved one; the
    others were corrected. By wording a right answer scores what it has in common with the approved one, production's
    corrected one less; else right and wrong are all there is, and some questions are harder than others."""
    good = rng.random(examples) < accepted
    if wording:
        new = np.clip(after + rng.normal(0, 0.15, examples), 0, 1)
        base, known = (np.clip(0.3 + rng.normal(0, 0.15, examples), 0, 1) for _ in range(2))
    else:
        chances = rng.beta(2 * accepted, 2 * (1 - accepted), examples)
        good = rng.random(examples) < chances
        new = (rng.random(examples) < np.clip(chances + after - accepted, 0, 1)).astype(float)
        base, known = np.zeros(examples), np.zeros(examples)
    kinds = ["accepted" if one else "correction" for one in good]

    def rows(scores: np.ndarray) -> list[Row]:
        return [Row(str(i), float(one), kind=kinds[i]) for i, one in enumerate(scores)]

    return rows(base), rows(new), rows(np.where(good, 1.0, known))


# Questions that are asked again.


def asked_again(
    rng: np.random.Generator, questions: int, ratings: int, *, gain: float | None = None, wrong: float = 0.0
) -> tuple[list[Row], list[Row]]:
    """The rows of champion and candidate on the questions that somebody rated, counted in 1,000 conversations.

    The k-th question is asked in proportion to 1 / k.

    Args:
        ratings: as many answers are rated, each of which makes its question an example.
        gain: share of the questions that the candidate alone answers right; the champion alone does 5%. None: each
            alone 15%, such that customers are served no better, and at most a point worse.
        wrong: share of the examples whose approved answer is wrong, so that both models are wrong by it.
    """
    shares = 1 / np.arange(1, questions + 1)
    shares /= shares.sum()
    ahead, behind = (0.15, 0.15) if gain is None else (gain, 0.05)
    while True:
        better = rng.choice([-1, 0, 1], questions, p=[behind, 1 - behind - ahead, ahead])
        if gain is not None or -0.01 < shares @ better <= 0:
            break
    known = np.unique(rng.choice(questions, ratings, p=shares))
    asked = np.bincount(rng.choice(questions, 1_000, p=shares), minlength=questions)
    seen = np.where(rng.random(questions) < wrong, 0, better)
    old, new = ([Row(f"q{k}", float(side * seen[k] > 0), asked=int(asked[k])) for k in known] for side in (-1, 1))
    return old, new
