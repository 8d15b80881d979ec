"""The guard of labels: tests whether the candidate has lost labels that the champion answers rightly."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from retuned.retrain.decision.harm import DRAWS, GUARD_ERROR
from retuned.retrain.decision.pairs import Check, Measured, Pairs
from retuned.retrain.scoring.label import Confusion, as_figures, confusion, labels_of, macro_f1

_MEANS = 9
"""Grid size of the prior's mean."""
_STRENGTHS = 2.0 ** np.arange(-1, 8)
"""Grid of the prior's strength: from labels that are always right or always wrong, to labels that are all alike."""
EXAMPLES = 3
"""Labels with fewer answers are not tested: two answers do not show how often a model is right on a label."""
_NAMED = 10
"""Maximum number of lost labels that a sentence names."""

Labelled = list[tuple[str, Measured, Measured]]


def labelled(pairs: Pairs) -> Labelled:
    """Returns the rows whose approved answer is a label, with that label."""
    return [(label, old, new) for old, new in pairs for label in labels_of(new.slices)]


def labels(rows: Labelled, earlier: Labelled, opponent: str) -> Check:
    """Tests whether the candidate loses more labels than an equal candidate would by chance.

    A label is lost if the champion answers it rightly at least once and the candidate never does, on the holdout and
    the regression set together. A label on which the candidate merely got worse is a slice like any other.

    The probability of a loss by chance follows from how often the champion was right, by a beta-binomial model of its
    labels (Kleinman 1973), with priors weighted by their likelihood. Two statistics are computed: the number of lost
    labels, which has power if each label has few rows, and the probability of the least likely loss, which has power if
    some have many. The smaller of the two p-values is compared with its distribution under chance (Tippett 1931, by
    simulation), at GUARD_ERROR.
    """
    before = confusion((label, old.answered) for label, old, _ in rows)
    after = confusion((label, new.answered) for label, _, new in rows)
    asked = confusion((label, old.answered) for label, old, _ in [*rows, *earlier])
    kept = {label for label, _, new in [*rows, *earlier] if new.answered == label}
    known = _known(asked)
    lost = [label for label in known.names if label not in kept]
    unseen = _fewest(known.mean)
    figures = {"macro_f1_champion": macro_f1(before), "macro_f1_candidate": macro_f1(after)}
    figures |= {"labels_lost": float(len(lost)), "labels_lost_by_chance": float(known.mean.sum())}
    figures |= {**as_figures(after), "unseen[labels]": float(unseen)}
    passed = not lost or _chance(lost, known) > GUARD_ERROR
    reason = (
        f"Over {len(after)} labels the candidate's macro-F1 is {figures['macro_f1_candidate']:.3f} and the "
        f"{opponent}'s {figures['macro_f1_champion']:.3f}; "
    )
    because = (
        f"the candidate never answers what the {opponent} can: {_named(lost, asked)}, which "
        f"{'chance explains' if passed else 'is beyond chance'}: an equally good model loses "
        f"{figures['labels_lost_by_chance']:.1f} in the mean"
    )
    reasons = [f"{reason}{because if lost else 'none is lost'}.", *_power(unseen, known, asked)]
    return Check(
        passed, reasons, figures, len(rows), because=because, takes="right answers to questions of these labels"
    )


def _named(lost: Sequence[str], asked: Confusion) -> str:
    """Lists lost labels, with the champion's right answers to each."""
    names = ", ".join(f"“{label}” ({asked[label][label]} of {asked[label].total()})" for label in lost[:_NAMED])
    return f"{names} and {len(lost) - _NAMED} more" if len(lost) > _NAMED else names


def _power(unseen: int, known: "_Known", asked: Confusion) -> list[str]:
    """Returns a sentence about the power of the test, if there are labels to lose."""
    if not known.names:
        return []
    mean = sum(given.total() for given in asked.values()) / len(asked)
    labels = len(known.names)
    blind = f"Fewer than {unseen} lost labels" if unseen <= labels else f"Lost labels, however many of {labels},"
    return [
        f"{blind} could pass unseen: a label has {mean:.3g} answers in the mean "
        "(evaluate.maximum_examples, dataset.holdout_share)."
    ]


@dataclass(frozen=True)
class _Known:
    """The labels that the champion answers rightly, and the probability that an equally good model loses each.

    Attributes:
        weights: the likelihoods of the priors, normalised.
        chances: the probability of each label's loss (columns) under each prior (rows).
    """

    names: list[str]
    weights: np.ndarray
    chances: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The probability of each label's loss, averaged over the priors."""
        return np.asarray(self.weights @ self.chances)


def _known(table: Confusion) -> _Known:
    """Estimates the probabilities from the champion's answers to each label."""
    table = {label: given for label, given in table.items() if given.total() >= EXAMPLES}
    if not table:
        return _Known([], np.ones(1), np.zeros((1, 0)))
    counts = np.array([(given[label], given.total()) for label, given in table.items()])
    (right, asked), place, times = _unique(counts)
    share = (right @ times + 0.5) / (asked @ times + 1)
    spread = 3 * math.sqrt(share * (1 - share) / (asked @ times + 1))
    means = np.clip(np.linspace(share - spread, share + spread, _MEANS), 0.001, 0.999)
    mean, strength = (grid.reshape(-1, 1) for grid in np.meshgrid(means, _STRENGTHS))
    good, bad = mean * strength, (1 - mean) * strength
    after = _beta(good + right, bad + asked - right)
    likelihood = (after - _beta(good, bad)) @ times
    weights = np.exp(likelihood - likelihood.max())
    chances = np.exp(_beta(good + right, bad + 2 * asked - right) - after)[:, place]
    once = counts[:, 0] > 0
    names = [label for label, known in zip(table, once, strict=True) if known]
    return _Known(names, weights / weights.sum(), chances[:, once])


def _unique(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the distinct rows as columns, the index of each row among them, and their frequencies."""
    distinct, place, times = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    return distinct.T, place.reshape(-1), times


_log_gamma = np.vectorize(math.lgamma, otypes=[float])


def _beta(one: np.ndarray | float, other: np.ndarray | float) -> np.ndarray:
    """Returns the logarithm of the beta function."""
    return np.asarray(_log_gamma(one) + _log_gamma(other) - _log_gamma(np.add(one, other)))


def _chance(lost: Sequence[str], known: _Known) -> float:
    """Returns the p-value of the lost labels, by their number or by the least likely loss."""
    order = np.argsort(known.mean, kind="stable")
    each = known.mean[order]
    many = np.cumsum(_numbers(each)[::-1])[::-1]
    surest = np.append(1 - np.cumprod(1 - each), 1.0)

    def rareness(gone: np.ndarray) -> np.ndarray:
        """Returns the smaller of both p-values for each row of lost labels."""
        first = np.where(gone.any(axis=1), gone.argmax(axis=1), len(each))
        return np.asarray(np.minimum(many[gone.sum(axis=1)], surest[first]))

    rng = np.random.default_rng(0)
    priors = rng.choice(len(known.weights), DRAWS, p=known.weights)
    drawn = rareness(rng.random((DRAWS, len(each))) < known.chances[priors][:, order])
    actual = rareness(np.isin(np.array(known.names)[order], lost)[None, :])[0]
    return float(1 + (drawn <= actual + 1e-9).sum()) / (DRAWS + 1)


def _numbers(chances: Iterable[float]) -> np.ndarray:
    """Returns the probability of each number of lost labels."""
    numbers = np.array([1.0])
    for chance in chances:
        numbers = np.append((1 - chance) * numbers, 0.0) + np.append(0.0, chance * numbers)
    return numbers


def _fewest(chances: Iterable[float]) -> int:
    """Returns the smallest number of lost labels that is beyond chance."""
    tail = np.cumsum(_numbers(chances)[::-1])[::-1]
    return int(np.argmax(np.append(tail, 0.0) <= GUARD_ERROR))
