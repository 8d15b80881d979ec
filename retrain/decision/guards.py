"""The guards of the gate. Each tests for one kind of harm against a limit, and states which harm it cannot detect.

A value above its limit refuses the candidate unless chance explains it (see `harm`).
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean, median

from retuned.retrain.decision.harm import Verdict, within, worst
from retuned.retrain.decision.pairs import (
    Decision,
    Measured,
    Pairs,
    by_cluster,
    by_part,
    cluster_mean,
    drop,
    mean_scores,
    of_clusters,
)
from retuned.retrain.settings import GateSettings

SLICE_EXAMPLES = 8
"""Smaller slices are not tested: they have no power."""

VALID_EXAMPLES = 100
"""With fewer answers that programs read, no broken one is attributed to chance. With this many, the test detects a
candidate that breaks one in ten in 99% of cases."""


def hallucination(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
    """Tests the rise of hallucinated answers, on rows where both models' answers could be checked."""
    checked = [(old, new) for old, new in pairs if None not in (old.hallucinated, new.hallucinated)]
    if not checked:
        reason = "No holdout example could be checked for hallucinations; nothing was held against the candidate."
        return Decision(True, [reason], {})
    limit = settings.maximum_hallucination_rise
    return _rise(checked, lambda row: bool(row.hallucinated), "hallucinates", "hallucination", limit, opponent)


def refusals(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
    """Tests the rise of refused questions."""
    limit = settings.maximum_refusal_rise
    return _rise(pairs, lambda row: row.refused, "refuses to answer", "refusal", limit, opponent)


def _rise(pairs: Pairs, bad: Callable[[Measured], bool], does: str, name: str, limit: float, opponent: str) -> Decision:
    before, after = (cluster_mean(pairs, side, bad) for side in (0, 1))
    verdict = _within(pairs, lambda old, new: float(bad(new)) - float(bad(old)), limit)
    return Decision(
        verdict.passed,
        [
            f"The candidate {does} in {after:.1%} of {len(pairs)} examples{of_clusters(pairs)} and the {opponent} in "
            f"{before:.1%}: {after - before:+.1%}, {verdict} the allowed rise of {limit:.1%}. {verdict.power('A rise')}"
        ],
        {f"{name}_champion": before, f"{name}_candidate": after, **verdict.figures(name)},
    )


def _within(pairs: Pairs, worse: Callable[[Measured, Measured], float], limit: float) -> Verdict:
    return within(list(by_cluster(pairs, worse).values()), limit)


def regression(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
    """Tests the drop on the holdouts of earlier datasets, as far as their answers are still right."""
    if not pairs:
        return Decision(True, ["There are no examples of earlier datasets; no regression could be measured."], {})
    limit = settings.maximum_regression_drop
    decision = _drop(pairs, "regression", "earlier examples that are still right", opponent, limit)
    by_origin: dict[str, Pairs] = defaultdict(list)
    for old, new in pairs:
        if new.origin:
            by_origin[new.origin].append((old, new))
    return replace(decision, figures=decision.figures | by_part(by_origin, "regression"))


def _drop(pairs: Pairs, name: str, examples: str, opponent: str, limit: float) -> Decision:
    """Tests the drop in score on `examples`."""
    before, after = mean_scores(pairs)
    verdict = _within(pairs, drop, limit)
    reason = (
        f"On {len(pairs)} {examples}, the candidate scores {after:.3f} and the {opponent} {before:.3f}: a drop of "
        f"{before - after:+.3f}, {verdict} the allowed {limit:.3f}. {verdict.power('A drop')}"
    )
    figures = {
        f"{name}_{'base' if name == 'general' else 'champion'}": before,
        f"{name}_candidate": after,
        f"{name}_examples": float(len(pairs)),
    }
    return Decision(verdict.passed, [reason], figures | verdict.figures(name))


def first_regression(pairs: Pairs, settings: GateSettings) -> Decision:
    """Tests, before the first promotion, the drop on rows of the holdout whose logged answers people called good.

    There is no earlier holdout yet, and these answers are what a candidate could lose. The opponent is the base model:
    unless it gave these answers, they were not selected by its being right.
    """
    good = [(old, new) for old, new in pairs if new.kind == "accepted"]
    if not good:
        reason = (
            "Nothing was promoted before, and people called no answer of the holdout good: there is nothing to lose."
        )
        return Decision(True, [reason], {})
    examples = "questions of the holdout whose logged answers people called good"
    return _drop(good, "regression", examples, "base model", settings.maximum_regression_drop)


def general(pairs: Pairs, settings: GateSettings, structured: bool) -> Decision:
    """Tests the drop on general prompts: abilities of the base model that the candidate has lost.

    For information if the answers are for programs, such as a classifier's labels.
    """
    if not pairs:
        return Decision(True, ["No general prompts were answered (evaluate.general_examples)."], {})
    examples = "prompts that have nothing to do with the workload"
    decision = _drop(pairs, "general", examples, "base model", settings.maximum_general_drop)
    if not structured:
        return decision
    role = "For information: answers of this workload are for programs."
    return replace(decision, outcome=True, reasons=[f"{decision.reasons[0]} {role}"])


def slices(pairs: Pairs, settings: GateSettings) -> Decision:
    """Tests the drop on each slice of the holdout: an overall gain can hide a loss on one kind of question."""
    parts: dict[str, Pairs] = defaultdict(list)
    for old, new in pairs:
        for name in new.slices:
            parts[name].append((old, new))
    total = len(by_cluster(pairs, drop))
    drops = {name: by_cluster(part, drop) for name, part in sorted(parts.items())}
    drops = {name: own for name, own in drops.items() if SLICE_EXAMPLES <= len(own) < total}
    if not drops:
        return Decision(True, ["No slice of the holdout is large enough to be tested alone."], {})
    limit = settings.maximum_slice_drop
    means = {name: fmean(own.values()) for name, own in drops.items()}
    verdicts = worst(drops, limit)
    refused = [name for name, verdict in verdicts.items() if not verdict.passed]
    named = refused or [max(means, key=means.__getitem__)]
    reasons = [
        f"On the slice “{name}” ({verdicts[name].examples} examples) the score changes by {0 - means[name]:+.3f}, "
        f"{verdicts[name]} the allowed drop of {limit:.3f}"
        + ("" if refused else f"; it is the worst of {len(drops)} slices")
        + f". {verdicts[name].power('A drop')}"
        for name in named
    ]
    figures = by_part({name: parts[name] for name in drops}, "score")
    for name, verdict in verdicts.items():
        figures |= verdict.figures(name)
    return Decision(not refused, reasons, figures)


def latency(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
    """Compares the time per token. The time per answer also depends on its length, for which see `length`."""
    timed = [
        times
        for old, new in pairs
        if None
        not in (times := (old.seconds_per_token, new.seconds_per_token, old.latency_seconds, new.latency_seconds))
    ]
    if not timed:
        return Decision(True, ["The time per token is not known; nothing was held against the candidate."], {})
    before, after, whole_before, whole_after = (median(column) for column in zip(*timed, strict=True))
    ratio = after / before if before > 0 else 1.0
    limit = settings.maximum_latency_ratio
    passed = ratio <= limit
    return Decision(
        passed,
        [
            f"The candidate takes {1_000 * after:.3g} ms per token and the {opponent} {1_000 * before:.3g} ms: a ratio "
            f"of {ratio:.2f}, {'within' if passed else 'above'} the allowed {limit:.2f}. Their median answers take "
            f"{whole_after:.3f} s and {whole_before:.3f} s."
        ],
        {
            "token_champion_seconds": before,
            "token_candidate_seconds": after,
            "latency_ratio": ratio,
            "latency_champion_seconds": whole_before,
            "latency_candidate_seconds": whole_after,
        },
    )


def length(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
    """Compares the length with that of the approved answers. Passes if the candidate is no further off than the
    champion."""
    before, after = median(old.length_ratio for old, _ in pairs), median(new.length_ratio for _, new in pairs)
    limit = settings.maximum_length_ratio
    passed = _stretch(after) <= limit or _stretch(after) <= _stretch(before)
    return Decision(
        passed,
        [
            f"The candidate's median answer is {after:.2f} times as long as the approved one and the {opponent}'s "
            f"{before:.2f} times: {'within' if passed else 'beyond'} the allowed factor of {limit:.2f}, more or less."
        ],
        {"length_champion": before, "length_candidate": after},
    )


def _stretch(ratio: float) -> float:
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf


def formed(pairs: Pairs) -> Pairs:
    """Returns the pairs of answers that programs read."""
    return [(old, new) for old, new in pairs if old.valid is not None and new.valid is not None]


def first_validity(pairs: Pairs, settings: GateSettings) -> Decision:
    """Tests the rise of broken answers against production, if no champion serves.

    The base model is no reference: if it never tries to call a tool, it breaks no call. People corrected most of
    production's answers, so those that they called good are also tested alone.
    """
    whole = validity(pairs, settings, "production")
    good = [(old, new) for old, new in pairs if old.kind == "accepted"]
    if not good:
        return whole
    verdict = _within(good, _breaks, settings.maximum_invalid_rise)
    reason = (
        f"Of the {len(good)} that people called good, the candidate breaks "
        f"{fmean(by_cluster(good, _breaks).values()):.1%} more: {verdict} the allowed rise of "
        f"{settings.maximum_invalid_rise:.1%}. {verdict.power('A rise')}"
    )
    return Decision(whole.outcome and verdict.passed, [*whole.reasons, reason], whole.figures)


def validity(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
    """Tests the rise of answers that no program can read, on the holdout and the regression set.

    With fewer than VALID_EXAMPLES the shares are compared directly: the test of `harm` has no power there. With more,
    any model breaks some answers by chance, so the test applies.
    """
    before, after = (cluster_mean(pairs, side, lambda row: not row.valid) for side in (0, 1))
    limit = settings.maximum_invalid_rise
    verdict = _within(pairs, _breaks, limit)
    if verdict.examples < VALID_EXAMPLES:
        passed = after - before <= limit + 1e-9
        text, power, figures = "within" if passed else "above", "", {}
    else:
        passed, text, power = verdict.passed, str(verdict), f" {verdict.power('A rise')}"
        figures = verdict.figures("validity")
    return Decision(
        passed,
        [
            f"Of {len(pairs)} answers that programs read{of_clusters(pairs)}, the candidate breaks {after:.1%} and "
            f"{opponent} {before:.1%}: {after - before:+.1%}, {text} the allowed rise of {limit:.1%}.{power}"
        ],
        {"invalid_champion": before, "invalid_candidate": after, **figures},
    )


def _breaks(old: Measured, new: Measured) -> float:
    """Returns 1 if only the candidate breaks the answer, -1 if only its opponent does, else 0."""
    return float(bool(old.valid)) - float(bool(new.valid))
