"""The gate: is the candidate better, and no worse in anything that matters? A pure function of what was measured."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median
from typing import Protocol

import numpy as np

from retuned.retrain.settings import GateSettings

POWER = 0.97
"""The normal approximation's chance that as many examples as the decision names show a gain of `expected_gain`. The
interval is a little more careful, and guards refuse some: simulated, nine in ten and more are promoted."""

GUARD_ERROR = 0.1
"""A guard refuses a candidate that is worse by just its limit this often at most, and a harmless one hardly ever."""

SLICE_EXAMPLES = 8
"""Smaller slices are not looked at: they could not show anything."""


class Measured(Protocol):
    """What the gate reads of an evaluation: of one model's answer to one row."""

    @property
    def row_id(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def hallucinated(self) -> bool | None: ...
    @property
    def refused(self) -> bool: ...
    @property
    def length_ratio(self) -> float: ...
    @property
    def latency_seconds(self) -> float: ...
    @property
    def slices(self) -> Sequence[str]: ...
    @property
    def origin(self) -> str | None: ...


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
    tries: int = 0,
) -> Decision:
    """Compare candidate and champion (the base model where none serves) on the rows that both answered.

    The gain in score must be above `minimum_gain`: the lower end of a paired bootstrap interval (see `interval`). The
    k-th try on one holdout may err with probability (1 − confidence) / 2^k, so that all tries together promote a
    candidate that is no better with probability 1 − confidence at most: Bonferroni with unequal weights (Rosenthal and
    Rubin 1983), half of what is left for each try.

    Guards then ask for evidence of harm. A rise of hallucinations or refusals, or a drop in score on the regression
    set or on any slice of the holdout, above its limit refuses the candidate unless chance explains it (see `_within`).
    Proof of harmlessness would take thousands of examples. The medians of latency and length are compared with their
    limits as they are. All conditions are looked at, so that a refusal names all its reasons.

    Args:
        tries: earlier decisions on this holdout.
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
    checks = {
        "gain": _gain(pairs, settings, seed, tries),
        "hallucination": _hallucination(pairs, settings),
        "refusal": _refusals(pairs, settings),
        "regression": _regression(_pairs(champion_regression, candidate_regression), settings),
        "slices": _slices(pairs, settings),
        "latency": _latency(pairs, settings),
        "length": _length(pairs, settings),
    }
    figures = {"examples": float(len(pairs))}
    for name, check in checks.items():
        figures |= {f"passed[{name}]": float(check.outcome), **check.figures}
    return Decision(
        all(check.outcome for check in checks.values()),
        [reason for check in checks.values() for reason in check.reasons],
        figures,
    )


Pairs = list[tuple[Measured, Measured]]


def _pairs(champion: Sequence[Measured], candidate: Sequence[Measured]) -> Pairs:
    answered = {row.row_id: row for row in candidate}
    return [(row, answered[row.row_id]) for row in champion if row.row_id in answered]


def _gain(pairs: Pairs, settings: GateSettings, seed: int, tries: int) -> Decision:
    before, after = fmean(old.score for old, _ in pairs), fmean(new.score for _, new in pairs)
    differences = np.array([new.score - old.score for old, new in pairs])
    error = (1 - settings.confidence) / 2 ** (tries + 1)
    low, high = interval(differences, error, settings.resamples, seed)
    passed = low > settings.minimum_gain
    needed = examples_needed(differences, error, settings)
    reasons = [
        f"The candidate scores {after:.3f} on {len(pairs)} holdout examples and the champion {before:.3f}: "
        f"a gain of {after - before:+.3f} ({_percent(1 - 2 * error)} interval {low:+.3f} to {high:+.3f}), "
        f"{'above' if passed else 'not surely above'} the minimum of {settings.minimum_gain:.3f}."
    ]
    if tries:
        reasons.append(
            f"This holdout was decided on {tries} time{'s' * (tries > 1)} before: the interval is wider for it."
        )
    if not passed and len(pairs) < needed:
        reasons.append(
            f"The holdout is small: to be sure of a gain of {settings.expected_gain:.3f} takes some {needed} examples "
            "like these."
        )
    return Decision(
        passed,
        reasons,
        {
            "score_champion": before,
            "score_candidate": after,
            "gain": after - before,
            "gain_low": low,
            "gain_high": high,
            "tries": float(tries + 1),
            "examples_needed": float(needed),
        },
    )


def interval(differences: np.ndarray, error: float, resamples: int, seed: int) -> tuple[float, float]:
    """Where the mean of paired differences of scores (each from -1 to 1) lies; each end fails with `error` at most.

    The percentile bootstrap (Efron and Tibshirani 1993, chapter 13) of the differences and two more, 1 and -1. Without
    these it knows no doubt about what a small sample does not show: four gains and no loss among twenty examples would
    be sure, though of four changes chance makes four gains once in sixteen times. Bonett and Price (2012) add the same
    two to paired proportions, for the same reason.
    """
    widened = np.concatenate([differences, [1.0, -1.0]])
    drawn = np.random.default_rng(seed).integers(0, len(widened), size=(resamples, len(widened)))
    low, high = np.quantile(widened[drawn].mean(axis=1), [error, 1 - error])
    return float(low), float(high)


def examples_needed(differences: np.ndarray, error: float, settings: GateSettings) -> int:
    """Examples that find a gain of `expected_gain` above the minimum with POWER, if they scatter as these do.

    By the normal approximation of the paired mean, the two of `interval` included.
    """
    gain = settings.expected_gain - settings.minimum_gain
    if gain <= 0:
        return settings.minimum_examples
    scatter = NormalDist().inv_cdf(1 - error) + NormalDist().inv_cdf(POWER)
    variance = float(np.var(np.concatenate([differences, [1.0, -1.0]])))
    return max(settings.minimum_examples, math.ceil(scatter**2 * variance / gain**2))


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
    return _rise(told, "hallucinates", "hallucination", settings.maximum_hallucination_rise)


def _refusals(pairs: Pairs, settings: GateSettings) -> Decision:
    told = [(old.refused, new.refused) for old, new in pairs]
    return _rise(told, "refuses to answer", "refusal", settings.maximum_refusal_rise)


def _rise(told: Sequence[tuple[bool, bool]], does: str, name: str, limit: float) -> Decision:
    before, after = fmean(old for old, _ in told), fmean(new for _, new in told)
    verdict = _within([float(new) - old for old, new in told], limit)
    return Decision(
        verdict.passed,
        [
            f"The candidate {does} in {after:.1%} of {len(told)} examples and the champion in {before:.1%}: "
            f"{after - before:+.1%}, {verdict} the allowed rise of {limit:.1%}."
        ],
        {f"{name}_champion": before, f"{name}_candidate": after},
    )


@dataclass(frozen=True)
class _Verdict:
    passed: bool
    text: str

    def __str__(self) -> str:
        return self.text


def _within(differences: Sequence[float], limit: float, error: float = GUARD_ERROR) -> _Verdict:
    """Whether a guard holds, and how to say it; `differences` are above zero where the candidate is worse.

    An exact sign test of the pairs that differ (McNemar 1947), against a candidate that is worse by just the limit:
    of its changes so many more are for the worse as make up the limit.
    """
    if fmean(differences) <= limit + 1e-9:
        return _Verdict(True, "within")
    from scipy.stats import binom  # half a second: where it is needed

    signs = [d > 0 for d in differences if d]
    changed, losses = len(signs), sum(signs)
    worse = min(1.0, (1 + limit * len(differences) / changed) / 2)
    chance = float(binom.sf(losses - 1, changed, worse))
    return _Verdict(False, "surely above") if chance <= error else _Verdict(True, "which chance explains, beside")


def _regression(pairs: Pairs, settings: GateSettings) -> Decision:
    if not pairs:
        return Decision(
            True, ["There are no examples of earlier datasets to fall back on; no regression could be measured."], {}
        )
    before, after = fmean(old.score for old, _ in pairs), fmean(new.score for _, new in pairs)
    limit = settings.maximum_regression_drop
    verdict = _within([old.score - new.score for old, new in pairs], limit)
    figures = {
        "regression_champion": before,
        "regression_candidate": after,
        "regression_examples": float(len(pairs)),
    }
    by_origin: dict[str, Pairs] = defaultdict(list)
    for old, new in pairs:
        if new.origin:
            by_origin[new.origin].append((old, new))
    return Decision(
        verdict.passed,
        [
            f"On {len(pairs)} earlier examples that still hold, the candidate scores {after:.3f} and the champion "
            f"{before:.3f}: a drop of {before - after:+.3f}, {verdict} the allowed {limit:.3f}."
        ],
        figures | _by_part(by_origin, "regression"),
    )


def _slices(pairs: Pairs, settings: GateSettings) -> Decision:
    """The holdout's slices, one by one: a gain on the whole can hide a loss on one kind of question."""
    found: dict[str, Pairs] = defaultdict(list)
    for old, new in pairs:
        for name in new.slices:
            found[name].append((old, new))
    slices = {name: part for name, part in sorted(found.items()) if SLICE_EXAMPLES <= len(part) < len(pairs)}
    if not slices:
        return Decision(True, ["No slice of the holdout is large enough to be looked at alone."], {})
    limit = settings.maximum_slice_drop
    drops = {name: fmean(old.score - new.score for old, new in part) for name, part in slices.items()}
    verdicts = {
        name: _within([old.score - new.score for old, new in part], limit, GUARD_ERROR / len(slices))
        for name, part in slices.items()
    }
    refused = [name for name, verdict in verdicts.items() if not verdict.passed]
    named = refused or [max(drops, key=lambda name: drops[name])]
    reasons = [
        f"On the slice “{name}” ({len(slices[name])} examples) the score changes by {0 - drops[name]:+.3f}, "
        f"{verdicts[name]} the allowed drop of {limit:.3f}"
        + ("." if refused else f"; it is the worst of {len(slices)} slices.")
        for name in named
    ]
    return Decision(not refused, reasons, _by_part(slices, "score"))


def _by_part(parts: Mapping[str, Pairs], name: str) -> dict[str, float]:
    """Scores on parts of the rows, under names such as `score_candidate[language:de]`."""
    figures = {}
    for part, pairs in parts.items():
        figures[f"{name}_champion[{part}]"] = fmean(old.score for old, _ in pairs)
        figures[f"{name}_candidate[{part}]"] = fmean(new.score for _, new in pairs)
        figures[f"{name}_examples[{part}]"] = float(len(pairs))
    return figures


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


def _length(pairs: Pairs, settings: GateSettings) -> Decision:
    """Longer or shorter than the approved answers: held against the candidate where the champion is nearer to them."""
    before, after = median(old.length_ratio for old, _ in pairs), median(new.length_ratio for _, new in pairs)
    limit = settings.maximum_length_ratio
    passed = _stretch(after) <= limit or _stretch(after) <= _stretch(before)
    return Decision(
        passed,
        [
            f"The candidate's median answer is {after:.2f} times as long as the approved one and the champion's "
            f"{before:.2f} times: {'within' if passed else 'beyond'} the allowed factor of {limit:.2f}, more or less."
        ],
        {"length_champion": before, "length_candidate": after},
    )


def _stretch(ratio: float) -> float:
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"
