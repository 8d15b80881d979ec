"""The gate: is the candidate better, and no worse in anything that matters? A pure function of what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean, median
from typing import Protocol

import numpy as np

from retuned.retrain.settings import GateSettings


class Measured(Protocol):
    """What the gate reads of an evaluation."""

    @property
    def row_id(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def hallucinated(self) -> bool | None: ...
    @property
    def latency_seconds(self) -> float: ...


@dataclass(frozen=True)
class Decision:
    """What was decided, each reason as a sentence with its figures, and the figures alone."""

    outcome: bool
    reasons: list[str]
    figures: dict[str, float]


def decide(
    champion: Sequence[Measured],
    candidate: Sequence[Measured],
    champion_regression: Sequence[Measured],
    candidate_regression: Sequence[Measured],
    settings: GateSettings,
    seed: int,
) -> Decision:
    """Compare candidate and champion (the base model where none serves) on the rows that both answered.

    The gain in score must be above `minimum_gain` with the configured confidence: the lower end of a paired bootstrap
    percentile interval (Efron and Tibshirani 1993, chapter 13). Latency is compared with its limit as it is. A rise of
    hallucinations, or a drop on the regression set, above its limit refuses the candidate unless chance explains it
    (an exact sign test of the pairs that differ): among twenty examples a single one would be above any limit.
    All conditions are looked at, so that a refusal names all its reasons.
    """
    pairs = _pairs(champion, candidate)
    if len(pairs) < settings.minimum_examples:
        return Decision(
            False,
            [
                f"Only {len(pairs)} holdout examples were answered by both models; "
                f"{settings.minimum_examples} are needed to tell them apart."
            ],
            {"examples": len(pairs)},
        )
    checks = [
        _gain(pairs, settings, seed),
        _hallucination(pairs, settings),
        _latency(pairs, settings),
        _regression(_pairs(champion_regression, candidate_regression), settings),
    ]
    figures = {"examples": float(len(pairs))}
    for check in checks:
        figures |= check.figures
    return Decision(
        all(check.outcome for check in checks), [reason for check in checks for reason in check.reasons], figures
    )


Pairs = list[tuple[Measured, Measured]]


def _pairs(champion: Sequence[Measured], candidate: Sequence[Measured]) -> Pairs:
    answered = {row.row_id: row for row in candidate}
    return [(row, answered[row.row_id]) for row in champion if row.row_id in answered]


def _gain(pairs: Pairs, settings: GateSettings, seed: int) -> Decision:
    before, after = fmean(old.score for old, _ in pairs), fmean(new.score for _, new in pairs)
    differences = np.array([new.score - old.score for old, new in pairs])
    low, high = bootstrap(differences, settings.confidence, settings.resamples, seed)
    passed = low > settings.minimum_gain
    return Decision(
        passed,
        [
            f"The candidate scores {after:.3f} on {len(pairs)} holdout examples and the champion {before:.3f}: "
            f"a gain of {after - before:+.3f} ({settings.confidence:.0%} interval {low:+.3f} to {high:+.3f}), "
            f"{'above' if passed else 'not surely above'} the minimum of {settings.minimum_gain:.3f}."
        ],
        {
            "score_champion": before,
            "score_candidate": after,
            "gain": after - before,
            "gain_low": low,
            "gain_high": high,
        },
    )


def bootstrap(differences: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """The percentile interval of the mean of paired differences."""
    drawn = np.random.default_rng(seed).integers(0, len(differences), size=(resamples, len(differences)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences[drawn].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _hallucination(pairs: Pairs, settings: GateSettings) -> Decision:
    told = [
        (old.hallucinated, new.hallucinated)
        for old, new in pairs
        if old.hallucinated is not None and new.hallucinated is not None
    ]
    if not told:
        return Decision(
            True,
            ["Hallucinations could not be told on any holdout example; nothing was held against the candidate."],
            {},
        )
    before, after = fmean(bool(old) for old, _ in told), fmean(bool(new) for _, new in told)
    limit = settings.maximum_hallucination_rise
    passed, verdict = _within(after - before, [float(new) - float(old) for old, new in told], limit, settings)
    return Decision(
        passed,
        [
            f"The candidate hallucinates in {after:.1%} of {len(told)} examples and the champion in {before:.1%}: "
            f"{after - before:+.1%}, {verdict} the allowed rise of {limit:.1%}."
        ],
        {"hallucination_champion": before, "hallucination_candidate": after},
    )


def _within(worse: float, differences: list[float], limit: float, settings: GateSettings) -> tuple[bool, str]:
    """Whether a guard holds, and how to say it; `differences` are above zero where the candidate is worse.

    Chance is judged by the exact sign test on the pairs that differ (McNemar 1947): a bootstrap of a few rows knows no
    doubt, one of a single row none at all.
    """
    if worse <= limit:
        return True, "within"
    losses, gains = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    changed = losses + gains
    chance = sum(comb(changed, k) for k in range(losses, changed + 1)) / 2**changed
    return (False, "surely above") if chance <= 1 - settings.confidence else (True, "which chance explains, beside")


def _latency(pairs: Pairs, settings: GateSettings) -> Decision:
    before, after = median(old.latency_seconds for old, _ in pairs), median(new.latency_seconds for _, new in pairs)
    ratio = after / before if before > 0 else 1.0
    limit = settings.maximum_latency_ratio
    passed = ratio <= limit
    return Decision(
        passed,
        [
            f"The candidate's median latency is {after:.3f} s and the champion's {before:.3f} s: "
            f"a ratio of {ratio:.2f}, {'within' if passed else 'above'} the allowed {limit:.2f}."
        ],
        {"latency_champion_seconds": before, "latency_candidate_seconds": after, "latency_ratio": ratio},
    )


def _regression(pairs: Pairs, settings: GateSettings) -> Decision:
    if not pairs:
        return Decision(
            True, ["There are no examples of earlier datasets to fall back on; no regression could be measured."], {}
        )
    before, after = fmean(old.score for old, _ in pairs), fmean(new.score for _, new in pairs)
    limit = settings.maximum_regression_drop
    passed, verdict = _within(before - after, [old.score - new.score for old, new in pairs], limit, settings)
    return Decision(
        passed,
        [
            f"On {len(pairs)} earlier examples that still hold, the candidate scores {after:.3f} and the champion "
            f"{before:.3f}: a drop of {before - after:+.3f}, {verdict} the allowed {limit:.3f}."
        ],
        {"regression_champion": before, "regression_candidate": after, "regression_examples": float(len(pairs))},
    )
