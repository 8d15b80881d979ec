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
    MEASURED,
    Check,
    Measured,
    Pairs,
    at_worst,
    by_cluster,
    by_part,
    cluster_mean,
    drop,
    mean_scores,
    not_measured,
    of_clusters,
)
from retuned.retrain.settings import GateSettings

SLICE_EXAMPLES = 8
"""Smaller slices are not tested: they have no power."""

VALID_EXAMPLES = 100
"""With fewer answers that programs read, no broken one is attributed to chance. With this many, the test detects a
candidate that breaks one in ten in 99% of cases."""


def hallucination(pairs: Pairs, settings: GateSettings, opponent: str) -> Check:
    """Tests the rise of hallucinated answers, on rows where both models' answers could be checked.

    An answer that could not be checked is no hallucination, so it is not held against the candidate here; where the
    metric cannot judge it either, the other comparisons count it as wrong. But a candidate of whose answers most cannot
    be checked, where those of its opponent can, is not measured.
    """
    known = [(old, new) for old, new in pairs if old.hallucinated is not None]
    checked = [(old, new) for old, new in known if new.hallucinated is not None]
    if len(checked) < max(MEASURED * len(known), 1):
        found = f"only {len(checked)}" if checked else "none"
        reason = (
            f"Of {len(pairs)} holdout examples, {len(known)} answers of the {opponent} could be checked for "
            f"hallucinations, and {found} of the candidate's answers to these."
            if known
            else "No holdout example could be checked for hallucinations."
        )
        return not_measured(reason, len(pairs))
    limit = settings.maximum_hallucination_rise
    return _rise(
        checked, lambda row: bool(row.hallucinated), "hallucinates", "hallucination", limit, opponent, "hallucination"
    )


def refusals(pairs: Pairs, settings: GateSettings, opponent: str) -> Check:
    """Tests the rise of refused questions."""
    limit = settings.maximum_refusal_rise
    return _rise(pairs, lambda row: row.refused, "refuses to answer", "refusal", limit, opponent, "refusal")


def _rise(
    pairs: Pairs, bad: Callable[[Measured], bool], does: str, name: str, limit: float, opponent: str, key: str
) -> Check:
    before, after = (cluster_mean(pairs, side, bad) for side in (0, 1))
    verdict = _within(pairs, lambda old, new: float(bad(new)) - float(bad(old)), limit)
    found = (
        f"candidate {does} in {after:.1%} of {len(pairs)} examples{of_clusters(pairs)} and the {opponent} in "
        f"{before:.1%}: {after - before:+.1%}, {verdict} the allowed rise of {limit:.1%}"
    )
    return Check(
        verdict.passed,
        [f"The {found}. {verdict.power('A rise')}"],
        {f"{name}_champion": before, f"{name}_candidate": after, **verdict.figures(name)},
        verdict.examples,
        limit,
        f"the {found}",
        f"right answers to these questions, or a higher gate.maximum_{key}_rise",
    )


def _within(pairs: Pairs, worse: Callable[[Measured, Measured], float], limit: float) -> Verdict:
    return within(list(by_cluster(pairs, worse).values()), limit)


def regression(pairs: Pairs, settings: GateSettings, opponent: str) -> Check:
    """Tests the drop on the holdouts of earlier datasets, as far as their answers are still right."""
    if not pairs:
        return not_measured("There are no examples of earlier datasets; no regression could be measured.")
    examples = "earlier examples that are still right"
    check = _drop(pairs, "regression", examples, opponent, settings.maximum_regression_drop, "regression")
    by_origin: dict[str, Pairs] = defaultdict(list)
    for old, new in at_worst(pairs):
        if new.origin:
            by_origin[new.origin].append((old, new))
    return replace(check, figures=check.figures | by_part(by_origin, "regression"))


def _drop(pairs: Pairs, name: str, examples: str, opponent: str, limit: float, key: str) -> Check:
    """Tests the drop in score on `examples`, of which there is at least one."""
    bounded = at_worst(pairs)
    if len(bounded) < max(MEASURED * len(pairs), 1):
        reason = f"The metric judges {len(bounded)} of {len(pairs)} {examples}, too few to measure a drop."
        return not_measured(reason, len(pairs))
    before, after = mean_scores(bounded)
    verdict = _within(bounded, drop, limit)
    worst_case = sum(old.score is None or new.score is None for old, new in pairs) - (len(pairs) - len(bounded))
    role = f", where {worst_case} of which one answer could not be judged count against it" if worst_case else ""
    found = (
        f"on {len(bounded)} {examples}, the candidate scores {after:.3f} and the {opponent} {before:.3f}{role}: a drop "
        f"of {before - after:+.3f}, {verdict} the allowed {limit:.3f}"
    )
    figures = {
        f"{name}_{'base' if name == 'general' else 'champion'}": before,
        f"{name}_candidate": after,
        f"{name}_examples": float(len(bounded)),
    }
    return Check(
        verdict.passed,
        [f"{found[0].upper()}{found[1:]}. {verdict.power('A drop')}"],
        figures | verdict.figures(name),
        verdict.examples,
        limit,
        found,
        f"right answers to these questions, or a higher gate.maximum_{key}_drop",
    )


def first_regression(pairs: Pairs, settings: GateSettings) -> Check:
    """Tests, before the first promotion, the drop on rows of the holdout whose logged answers people called good.

    There is no earlier holdout yet, and these answers are what a candidate could lose. The opponent is the base model:
    unless it gave these answers, they were not selected by its being right.
    """
    good = [(old, new) for old, new in pairs if new.kind == "accepted"]
    if not good:
        return not_measured(
            "Nothing was promoted before, and people called no answer of the holdout good: there is nothing to lose."
        )
    examples = "questions of the holdout whose logged answers people called good"
    return _drop(good, "regression", examples, "base model", settings.maximum_regression_drop, "regression")


def general(pairs: Pairs, settings: GateSettings, structured: bool) -> Check:
    """Tests the drop on general prompts: abilities of the base model that the candidate has lost.

    For information if the answers are for programs, such as a classifier's labels.
    """
    if not pairs:
        return not_measured("No general prompts were answered (evaluate.general_examples).")
    examples = "prompts that have nothing to do with the workload"
    check = _drop(pairs, "general", examples, "base model", settings.maximum_general_drop, "general")
    if not structured:
        return check
    role = "For information: answers of this workload are for programs."
    return replace(check, passed=True, reasons=[f"{check.reasons[0]} {role}"])


def slices(pairs: Pairs, further: Pairs, settings: GateSettings) -> Check:
    """Tests the drop on each slice of the holdout: an overall gain can hide a loss on one kind of question.

    Args:
        further: rows that were drawn for small slices (see `evaluate.for_slices`).
    """
    parts: dict[str, Pairs] = defaultdict(list)
    for old, new in at_worst([*pairs, *further]):
        for name in new.slices:
            parts[name].append((old, new))
    total = len(by_cluster(at_worst(pairs), drop))
    drops = {name: by_cluster(part, drop) for name, part in sorted(parts.items())}
    drops = {name: own for name, own in drops.items() if SLICE_EXAMPLES <= len(own) < total}
    if not drops:
        return not_measured("No slice of the holdout is large enough to be tested alone.", len(pairs))
    limit = settings.maximum_slice_drop
    means = {name: fmean(own.values()) for name, own in drops.items()}
    verdicts = worst(drops, limit)
    refused = [name for name, verdict in verdicts.items() if not verdict.passed]
    named = refused or [max(means, key=means.__getitem__)]
    found = [
        f"on the slice “{name}” ({verdicts[name].examples} examples) the score changes by {0 - means[name]:+.3f}, "
        f"{verdicts[name]} the allowed drop of {limit:.3f}"
        for name in named
    ]
    reasons = [
        f"{text[0].upper()}{text[1:]}"
        + ("" if refused else f"; it is the worst of {len(drops)} slices")
        + f". {verdicts[name].power('A drop')}"
        for name, text in zip(named, found, strict=True)
    ]
    figures = by_part({name: parts[name] for name in drops}, "score")
    for name, verdict in verdicts.items():
        figures |= verdict.figures(name)
    more = f" (and on {len(found) - 1} more slices)" if found[1:] else ""
    return Check(
        not refused,
        reasons,
        figures,
        verdicts[named[0]].examples,
        limit,
        f"{found[0]}{more}",
        "right answers to such questions, or a higher gate.maximum_slice_drop",
    )


def latency(pairs: Pairs, settings: GateSettings, opponent: str) -> Check:
    """Compares the time per token. The time per answer also depends on its length, for which see `length`."""
    timed = [
        times
        for old, new in pairs
        if None
        not in (times := (old.seconds_per_token, new.seconds_per_token, old.latency_seconds, new.latency_seconds))
    ]
    if not timed:
        return not_measured("The time per token is not known.", len(pairs))
    before, after, whole_before, whole_after = (median(column) for column in zip(*timed, strict=True))
    ratio = after / before if before > 0 else 1.0
    limit = settings.maximum_latency_ratio
    passed = ratio <= limit
    found = (
        f"candidate takes {1_000 * after:.3g} ms per token and the {opponent} {1_000 * before:.3g} ms: a ratio "
        f"of {ratio:.2f}, {'within' if passed else 'above'} the allowed {limit:.2f}"
    )
    return Check(
        passed,
        [f"The {found}. Their median answers take {whole_after:.3f} s and {whole_before:.3f} s."],
        {
            "token_champion_seconds": before,
            "token_candidate_seconds": after,
            "latency_ratio": ratio,
            "latency_champion_seconds": whole_before,
            "latency_candidate_seconds": whole_after,
        },
        len(timed),
        limit,
        f"the {found}",
        "a faster candidate, or a higher gate.maximum_latency_ratio",
    )


def length(pairs: Pairs, settings: GateSettings, opponent: str) -> Check:
    """Compares the length with that of the approved answers. Passes if the candidate is no further off than the
    champion."""
    before, after = median(old.length_ratio for old, _ in pairs), median(new.length_ratio for _, new in pairs)
    limit = settings.maximum_length_ratio
    passed = _stretch(after) <= limit or _stretch(after) <= _stretch(before)
    found = (
        f"candidate's median answer is {after:.2f} times as long as the approved one and the {opponent}'s "
        f"{before:.2f} times: {'within' if passed else 'beyond'} the allowed factor of {limit:.2f}, more or less"
    )
    return Check(
        passed,
        [f"The {found}."],
        {"length_champion": before, "length_candidate": after},
        len(pairs),
        limit,
        f"the {found}",
        "answers of the approved length, or a higher gate.maximum_length_ratio",
    )


def _stretch(ratio: float) -> float:
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf


def formed(pairs: Pairs) -> Pairs:
    """Returns the pairs of which programs read at least one answer; the other one counts as read by them if it is the
    opponent's, and as broken if it is the candidate's."""
    return [(old, new) for old, new in pairs if old.valid is not None or new.valid is not None]


def first_validity(pairs: Pairs, settings: GateSettings) -> Check:
    """Tests the rise of broken answers against production, if no champion serves.

    The base model is no reference: if it never tries to call a tool, it breaks no call. People corrected most of
    production's answers, so those that they called good are also tested alone.
    """
    whole = validity(pairs, settings, "production")
    good = [(old, new) for old, new in pairs if old.kind == "accepted"]
    if not good:
        return whole
    verdict = _within(good, _breaks, settings.maximum_invalid_rise)
    found = (
        f"of the {len(good)} that people called good, the candidate breaks "
        f"{fmean(by_cluster(good, _breaks).values()):.1%} more: {verdict} the allowed rise of "
        f"{settings.maximum_invalid_rise:.1%}"
    )
    reason = f"{found[0].upper()}{found[1:]}. {verdict.power('A rise')}"
    return replace(
        whole,
        passed=whole.passed and verdict.passed,
        reasons=[*whole.reasons, reason],
        because=found if whole.passed else whole.because,
    )


def validity(pairs: Pairs, settings: GateSettings, opponent: str) -> Check:
    """Tests the rise of answers that no program can read, on the holdout and the regression set.

    With fewer than VALID_EXAMPLES the shares are compared directly: the test of `harm` has no power there. With more,
    any model breaks some answers by chance, so the test applies.
    """
    before, after = cluster_mean(pairs, 0, _broken), cluster_mean(pairs, 1, lambda row: not row.valid)
    limit = settings.maximum_invalid_rise
    verdict = _within(pairs, _breaks, limit)
    if verdict.examples < VALID_EXAMPLES:
        passed = after - before <= limit + 1e-9
        text, power, figures = "within" if passed else "above", "", {}
    else:
        passed, text, power = verdict.passed, str(verdict), f" {verdict.power('A rise')}"
        figures = verdict.figures("validity")
    found = (
        f"of {len(pairs)} answers that programs read{of_clusters(pairs)}, the candidate breaks {after:.1%} and "
        f"{opponent} {before:.1%}: {after - before:+.1%}, {text} the allowed rise of {limit:.1%}"
    )
    return Check(
        passed,
        [f"{found[0].upper()}{found[1:]}.{power}"],
        {"invalid_champion": before, "invalid_candidate": after, **figures},
        verdict.examples,
        limit,
        found,
        "answers that programs can read, or a higher gate.maximum_invalid_rise",
    )


def _broken(old: Measured) -> bool:
    return old.valid is False


def _breaks(old: Measured, new: Measured) -> float:
    """Returns 1 if only the candidate breaks the answer, -1 if only its opponent does, else 0."""
    return float(_broken(old)) * -1 + float(not new.valid)
