"""Estimates the helpful rate of all answers, rated or not, by a model of the votes. Needs scikit-learn.

Few answers are rated. A logistic regression of the votes on the features of an answer (prompt, language, lengths,
latency, segments) predicts how often each answer is helpful. Its coefficients have normal priors, with one scale for
segments and one for all other features. They are averaged over the scales that the votes make plausible, by Laplace's
approximation (MacKay, "The evidence framework applied to classification networks", Neural Computation 4, 1992). So a
segment with few votes borrows strength from similar ones, and its interval is wide. This is multilevel regression with
post-stratification on the answers themselves (Gelman and Little, "Poststratification into many categories using
hierarchical logistic regression", 1997). The intercepts of both windows are free, so the mean prediction on a window's
rated answers equals the mean of its votes.

Assumption: votes are missing at random given these features, so of two similar answers the rated one is helpful as
often as the other. If satisfied users vote more often than others, the estimate is biased like the votes, and nothing
in the data reveals it. Therefore the estimate alone never causes a rollback.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from retuned.monitors.rates.estimate import design_effect
from retuned.monitors.rates.votes import of_units

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

SCALES = (0.05, 0.2, 0.6, 1.5)
"""The prior standard deviations of coefficients that are tried: log odds per standard deviation of a feature, or per
segment."""
FREE = 10.0
"""The prior standard deviation of the intercepts."""
DRAWS = 1_000
MINIMUM_VOTES = 30
"""The fewest votes in each window; in both together, MINIMUM_OF_A_KIND must be helpful and as many unhelpful."""
MINIMUM_OF_A_KIND = 5
MINIMUM_ANSWERS = 30
"""A segment with fewer sampled answers has no estimate."""


@dataclass(frozen=True)
class Rows:
    """Answers of a window.

    Attributes:
        features: shape (answers, features).
        segments: by attribute, the segment of each answer; None: unknown.
    """

    features: "Array"
    segments: Mapping[str, Sequence[str | None]]

    def of(self, name: str, value: str) -> "NDArray[np.bool_]":
        """Returns which answers belong to a segment."""
        import numpy as np

        return np.asarray([segment == value for segment in self.segments[name]], dtype=bool)


@dataclass(frozen=True)
class Rated(Rows):
    """Rated answers of a window.

    Attributes:
        helpful: 1 or 0 for each answer.
        units: the unit (an account, else a conversation) of each vote; None: votes are independent.
    """

    helpful: "Array"
    units: Sequence[Hashable] | None = None


@dataclass(frozen=True)
class Segment:
    """The estimated helpful rate of a segment, with its 95% interval, 0 to 1.

    Attributes:
        answers, votes: their numbers in the sample of the current window.
        before: the estimate in the reference; None: it has too few answers of the segment.
    """

    name: str
    value: str
    rate: float
    low: float
    high: float
    answers: int
    votes: int
    before: float | None


@dataclass(frozen=True)
class Estimate:
    """The estimated helpful rate of all answers of the current window, with its 95% interval, 0 to 1.

    Attributes:
        votes: the votes of the current window.
        before: the estimate in the reference.
        segments: sorted by rate, lowest first.
        moved: the segment that contributes most to the difference from `before`, beyond its share of the answers; None:
            the difference is within chance.
    """

    rate: float
    low: float
    high: float
    votes: int
    before: float
    segments: tuple[Segment, ...]
    moved: Segment | None


@dataclass(frozen=True)
class Lacking:
    """Why there is no estimate: so many votes are found of those that it needs."""

    found: int
    needed: int
    what: str


def lacking(helpful: "Array", helpful_before: "Array") -> Lacking | None:
    """Returns which votes (1 or 0) of the current window and the reference are lacking; None: none are."""
    fewest = min(len(helpful), len(helpful_before))
    if fewest < MINIMUM_VOTES:
        what = "votes that the estimated helpful rate of all answers needs in each window of drift"
        return Lacking(fewest, MINIMUM_VOTES, what)
    positive = int(helpful.sum() + helpful_before.sum())
    rarest = min(positive, len(helpful) + len(helpful_before) - positive)
    if rarest < MINIMUM_OF_A_KIND:
        what = "votes of the rarer kind, helpful or not, that the estimated helpful rate of all answers needs"
        return Lacking(rarest, MINIMUM_OF_A_KIND, what)
    return None


def estimate(answers: Rows, votes: Rated, answers_before: Rows, votes_before: Rated, seed: int = 0) -> Estimate | None:
    """Estimates the helpful rate of the current window and of each segment.

    Args:
        answers, votes: samples of the current window.
        answers_before, votes_before: samples of the reference; the model is fitted to the votes of both.

    Returns:
        None: votes are lacking.
    """
    import numpy as np

    if lacking(votes.helpful, votes_before.helpful):
        return None
    helpful = np.concatenate([votes_before.helpful, votes.helpful])
    design = _Design.of(answers, answers_before)
    rated = np.vstack([design.columns(votes_before, 0.0), design.columns(votes, 1.0)])
    random = np.random.default_rng(seed)
    coefficients = _posterior(rated, helpful, _weight_of_vote([votes_before, votes]), design, random)
    before, now = (
        1 / (1 + np.exp(-design.columns(rows, window) @ coefficients.T))
        for rows, window in ((answers_before, 0.0), (answers, 1.0))
    )
    rates_before, rates = _mean(before, random), _mean(now, random)
    rate_before = float(rates_before.mean())
    change = float(rates.mean()) - rate_before
    contributions = list[tuple[float, Segment]]()
    for name, value in design.segments:
        inside, inside_before, voted = (rows.of(name, value) for rows in (answers, answers_before, votes))
        segment_before = float(before[inside_before].mean()) if inside_before.any() else None
        segment = Segment(
            name,
            value,
            *_summary(_mean(now[inside], random)),
            answers=int(inside.sum()),
            votes=int(voted.sum()),
            before=segment_before if inside_before.sum() >= MINIMUM_ANSWERS else None,
        )
        former = float(inside_before.mean()) * (segment_before - rate_before) if segment_before is not None else 0.0
        share = float(inside.mean())
        contributions.append((share * (segment.rate - rate_before) - former - share * change, segment))
    low, high = np.quantile(rates - rates_before, (0.025, 0.975))
    direction = float(np.sign(low + high)) if low > 0 or high < 0 else 0.0
    moved = max(contributions, key=lambda part: direction * part[0])[1] if contributions and direction else None
    segments = tuple(sorted((segment for _, segment in contributions), key=lambda segment: segment.rate))
    return Estimate(*_summary(rates), len(votes.helpful), rate_before, segments, moved)


@dataclass(frozen=True)
class _Design:
    """The columns of the regression: window, features in standard deviations, and large enough segments."""

    centre: "Array"
    deviation: "Array"
    segments: list[tuple[str, str]]

    @classmethod
    def of(cls, answers: Rows, answers_before: Rows) -> "_Design":
        import numpy as np

        features = np.vstack([answers_before.features, answers.features])
        segments = [
            (name, value)
            for name, values in answers.segments.items()
            for value in sorted({value for value in values if value is not None})
            if answers.of(name, value).sum() >= MINIMUM_ANSWERS
        ]
        deviation = features.std(axis=0)
        return cls(features.mean(axis=0), np.where(deviation > 0, deviation, 1.0), segments)

    def columns(self, rows: Rows, window: float) -> "Array":
        """Returns intercepts, features, segments, and interactions of segments with the window.

        Args:
            window: 0: the reference; 1: the current window.
        """
        import numpy as np

        count = len(rows.features)
        segments = np.column_stack([np.zeros((count, 0)), *(rows.of(name, value) for name, value in self.segments)])
        features = (rows.features - self.centre) / self.deviation
        return np.hstack([np.ones((count, 1)), np.full((count, 1), window), features, segments, window * segments])

    def scales(self, features: float, segments: float) -> "Array":
        """Returns the prior standard deviation of each column's coefficient."""
        import numpy as np

        counts = (2, len(self.centre), 2 * len(self.segments))
        return np.repeat(np.asarray([FREE, features, segments]), counts)


def _weight_of_vote(windows: Sequence[Rated]) -> float:
    """Returns the weight of each vote, at most 1: votes of one account are correlated."""
    yes, n = Counter[Hashable](), Counter[Hashable]()
    for rated in windows:
        for unit, helpful in zip(rated.units or (), rated.helpful.tolist(), strict=rated.units is not None):
            yes[unit] += helpful
            n[unit] += 1
    return 1 / max(design_effect(of_units((yes[unit], n[unit]) for unit in n)), 1.0)


def _posterior(
    rated: "Array", helpful: "Array", weight: float, design: _Design, random: "np.random.Generator"
) -> "Array":
    """Draws coefficients, shape (draws, columns), given the weight of each vote."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    fits = []
    for scales in product(SCALES, SCALES):
        deviations = design.scales(*scales)
        columns = rated * deviations  # so that all coefficients have scale 1
        model = LogisticRegression(C=1.0, fit_intercept=False, max_iter=1_000).fit(
            columns, helpful, np.full(len(helpful), weight)
        )
        best = model.coef_[0]
        log_odds = columns @ best
        chance = 1 / (1 + np.exp(-log_odds))
        precision = weight * (columns * (chance * (1 - chance))[:, None]).T @ columns + np.eye(len(best))
        likelihood = weight * float(helpful @ log_odds - np.logaddexp(0, log_odds).sum())
        evidence = likelihood - float(best @ best) / 2 - float(np.linalg.slogdet(precision)[1]) / 2
        fits.append((evidence, deviations, best, np.linalg.cholesky(precision)))
    plausible = np.exp(np.asarray([fit[0] for fit in fits]) - max(fit[0] for fit in fits))
    draws = []
    for count, (_, deviations, best, root) in zip(
        random.multinomial(DRAWS, plausible / plausible.sum()), fits, strict=True
    ):
        draws.append((best + np.linalg.solve(root.T, random.standard_normal((len(best), count))).T) * deviations)
    return np.vstack(draws)


def _mean(chances: "Array", random: "np.random.Generator") -> "Array":
    """Returns the mean over answers of each draw, with the sampling error of the window's answers."""
    import numpy as np

    means = chances.mean(axis=0)
    noisy: Array = means + np.sqrt(chances.var(axis=0) / len(chances)) * random.standard_normal(len(means))
    return noisy


def _summary(draws: "Array") -> tuple[float, float, float]:
    """Returns the mean and the 95% interval of a rate."""
    import numpy as np

    rate, low, high = np.clip([draws.mean(), *np.quantile(draws, (0.025, 0.975))], 0, 1).tolist()
    return rate, low, high
