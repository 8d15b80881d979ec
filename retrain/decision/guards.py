"""The guards of the gate: each looks for one kind of harm, and refuses what surely does more of it than its limit.

What is above a limit refuses unless chance explains it (see `_within`): proof of harmlessness would take thousands of
examples.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median

import numpy as np

from retuned.retrain.decision.pairs import Decision, Measured, Pairs, by_part, score
from retuned.retrain.scoring.label import as_figures, confusion, labels_of, macro_f1
from retuned.retrain.settings import GateSettings

GUARD_ERROR = 0.1
"""A guard refuses a candidate that is worse by just its limit this often at most, and a harmless one hardly ever."""

SLICE_EXAMPLES = 8
"""Smaller slices are not looked at: they could not show anything."""

LABEL_EXAMPLES = 3
"""With so many, a label is lost that the champion answers right in a third of its questions and the candidate never."""

LABEL_LOSSES = 4
"""And one that the champion answers right so often, in however many questions: of two equal models one alone is right
in all four once in sixteen times, which is below GUARD_ERROR."""

VALID_EXAMPLES = 100
"""With fewer answers that programs read no broken one is put down to chance. With so many, a candidate that breaks one
in ten is found beyond chance in all but one of a hundred cases."""

TRAFFIC_EXAMPLES = 20
"""With fewer answers of traffic nothing is held against the candidate."""


def hallucination(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
    """Answers that state what is not so, of those of which both models' could be told."""
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
    return _rise(told, "hallucinates", "hallucination", settings.maximum_hallucination_rise, opponent)


def refusals(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
    """Questions that are not answered."""
    told = [(old.refused, new.refused) for old, new in pairs]
    return _rise(told, "refuses to answer", "refusal", settings.maximum_refusal_rise, opponent)


def _rise(told: Sequence[tuple[bool, bool]], does: str, name: str, limit: float, opponent: str) -> Decision:
    before, after = fmean(old for old, _ in told), fmean(new for _, new in told)
    verdict = _within([float(new) - old for old, new in told], limit)
    return Decision(
        verdict.passed,
        [
            f"The candidate {does} in {after:.1%} of {len(told)} examples and the {opponent} in {before:.1%}: "
            f"{after - before:+.1%}, {verdict} the allowed rise of {limit:.1%}."
        ],
        {f"{name}_champion": before, f"{name}_candidate": after},
    )


def regression(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
    """What earlier datasets held out, and still holds."""
    if not pairs:
        return Decision(
            True, ["There are no examples of earlier datasets to fall back on; no regression could be measured."], {}
        )
    before, after = fmean(score(old) for old, _ in pairs), fmean(score(new) for _, new in pairs)
    limit = settings.maximum_regression_drop
    verdict = _within([score(old) - score(new) for old, new in pairs], limit)
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
            f"On {len(pairs)} earlier examples that still hold, the candidate scores {after:.3f} and the {opponent} "
            f"{before:.3f}: a drop of {before - after:+.3f}, {verdict} the allowed {limit:.3f}."
        ],
        figures | by_part(by_origin, "regression"),
    )


def first_regression(pairs: Pairs, settings: GateSettings) -> Decision:
    """Before the first promotion no earlier dataset was judged on. What can be lost is what is right already: answers
    of the holdout that people called good. The base model is the opponent: unless it gave these answers, they were not
    chosen by what it answers right."""
    kept = [(old, new) for old, new in pairs if new.kind == "accepted"]
    if not kept:
        reason = (
            "Nothing was promoted before, and people called no answer of the holdout good: there is nothing to lose."
        )
        return Decision(True, [reason], {})
    before, after = fmean(score(old) for old, _ in kept), fmean(score(new) for _, new in kept)
    limit = settings.maximum_regression_drop
    verdict = _within([score(old) - score(new) for old, new in kept], limit)
    return Decision(
        verdict.passed,
        [
            f"On {len(kept)} questions of the holdout whose logged answers people called good, the candidate scores "
            f"{after:.3f} and the base model {before:.3f}: a drop of {before - after:+.3f}, {verdict} the allowed "
            f"{limit:.3f}."
        ],
        {"regression_champion": before, "regression_candidate": after, "regression_examples": float(len(kept))},
    )


def traffic(traffic: Sequence[Measured], holdout: Sequence[Measured], settings: GateSettings, before: str) -> Decision:
    """No worse on what is asked today, rated or not.

    People rate what is wrong, so the holdout is mostly the champion's failures: what a candidate spoils of the rest
    does not show there. Of unrated traffic nobody knows what is right, and an answer that differs from the champion's
    may be the better one: agreement is no score. What can be said:

    - Where the two agree, nothing is lost. So the loss is at most the share that differs.
    - Where they differ and a judge is configured, it decides: losses less wins, over all of the traffic that was looked
      at, are tested against the limit like the other guards (see `_within`).
    - Without a judge the holdout is the measure. There a candidate answers differently, too, and is known to gain by it
      (or it is refused by that). Traffic holds fewer of the champion's failures than the holdout, so less of it ought
      to change. A candidate that changes more of the traffic than of the holdout, by more than the limit and beyond
      chance, changes what no evidence asks for: it is refused. What it spoils within the share that it may change, this
      guard cannot see.

    The unit is the conversation. Two independent samples of agreements; to each are added one that agrees and one that
    does not (Agresti and Caffo 2000), and the excess is tested by its normal approximation at GUARD_ERROR.
    """
    told = [row for row in traffic if row.agreement is not None]
    if len(told) < TRAFFIC_EXAMPLES:
        return Decision(
            True,
            [
                f"Of recent traffic that nobody rated {len(told)} answers could be compared; with fewer than "
                f"{TRAFFIC_EXAMPLES} nothing is held against the candidate."
            ],
            {"traffic_examples": float(len(told))},
        )
    limit = settings.maximum_traffic_drop
    differing = 1 - fmean(row.agreement or 0.0 for row in told)
    figures = {"traffic_examples": float(len(told)), "traffic_differing": differing}
    text = (
        f"Of {len(told)} recent questions whose answers nobody rated, the candidate answers {differing:.1%} "
        f"differently than the {before}"
    )
    judged = [row for row in told if row.verdict is not None]
    if len(judged) >= TRAFFIC_EXAMPLES:
        drops = [{"win": -1.0, "tie": 0.0, "loss": 1.0}[row.verdict or "tie"] for row in judged]
        verdict = _within(drops, limit)
        return Decision(
            verdict.passed,
            [
                f"{text}. By the judge it loses {drops.count(1.0)} and wins {drops.count(-1.0)} of {len(judged)}: a "
                f"drop of {fmean(drops):+.1%}, {verdict} the allowed {limit:.1%}."
            ],
            figures | {"traffic_judged": float(len(judged)), "traffic_drop": fmean(drops)},
        )
    rated = [1 - row.agreement for row in holdout if row.agreement is not None]
    if not rated:
        return Decision(True, [f"{text}; the holdout has nothing to compare that with."], figures)
    excess, chance = _excess([1 - (row.agreement or 0.0) for row in told], rated, limit)
    verdict = (
        _Verdict(True, "within")
        if excess <= limit
        else _Verdict(chance > GUARD_ERROR, "which chance explains, beside" if chance > GUARD_ERROR else "surely above")
    )
    return Decision(
        verdict.passed,
        [
            f"{text}, and {fmean(rated):.1%} of the holdout, where it is known what is right: {excess:+.1%}, {verdict} "
            f"the allowed excess of {limit:.1%}. Which of the two is right on traffic is not known without a judge."
        ],
        figures | {"traffic_differing_holdout": fmean(rated), "traffic_excess": excess},
    )


def _excess(traffic: Sequence[float], holdout: Sequence[float], limit: float) -> tuple[float, float]:
    """By how much the mean of the first exceeds that of the second, and the chance of so much if it were the limit."""
    first, second = (np.concatenate([values, [0.0, 1.0]]) for values in (traffic, holdout))
    scatter = math.sqrt(first.var() / len(first) + second.var() / len(second))
    excess = float(first.mean() - second.mean())
    return fmean(traffic) - fmean(holdout), 1 - NormalDist(limit, scatter).cdf(excess)


def general(pairs: Pairs, settings: GateSettings, structured: bool) -> Decision:
    """What the base model can do beside the workload, and the candidate cannot any more: for information where answers
    are for programs, as those of a classifier are."""
    if not pairs:
        return Decision(True, ["No general prompts were answered (evaluate.general_examples)."], {})
    before, after = fmean(score(old) for old, _ in pairs), fmean(score(new) for _, new in pairs)
    limit = settings.maximum_general_drop
    verdict = _within([score(old) - score(new) for old, new in pairs], limit)
    role = " For information: answers of this workload are for programs." if structured else ""
    return Decision(
        verdict.passed or structured,
        [
            f"Of {len(pairs)} prompts that have nothing to do with the workload the candidate answers {after:.1%} "
            f"right and the base model {before:.1%}: a drop of {before - after:+.1%}, {verdict} the allowed "
            f"{limit:.1%}.{role}"
        ],
        {"general_base": before, "general_candidate": after, "general_examples": float(len(pairs))},
    )


def slices(pairs: Pairs, settings: GateSettings) -> Decision:
    """The holdout's slices, one by one: a gain on the whole can hide a loss on one kind of question."""
    found: dict[str, Pairs] = defaultdict(list)
    for old, new in pairs:
        for name in new.slices:
            found[name].append((old, new))
    slices = {name: part for name, part in sorted(found.items()) if SLICE_EXAMPLES <= len(part) < len(pairs)}
    if not slices:
        return Decision(True, ["No slice of the holdout is large enough to be looked at alone."], {})
    limit = settings.maximum_slice_drop
    drops = {name: fmean(score(old) - score(new) for old, new in part) for name, part in slices.items()}
    verdicts = {
        name: _within([score(old) - score(new) for old, new in part], limit, GUARD_ERROR / len(slices))
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
    return Decision(not refused, reasons, by_part(slices, "score"))


def latency(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
    """The time that a token takes. What an answer takes depends on its length too, which is `_length`'s to judge."""
    timed = [
        times
        for old, new in pairs
        if None
        not in (times := (old.seconds_per_token, new.seconds_per_token, old.latency_seconds, new.latency_seconds))
    ]
    if not timed:
        return Decision(True, ["How long a token takes is not known; nothing was held against the candidate."], {})
    before, after, whole_before, whole_after = (median(column) for column in zip(*timed, strict=True))
    ratio = after / before if before > 0 else 1.0
    limit = settings.maximum_latency_ratio
    passed = ratio <= limit
    return Decision(
        passed,
        [
            f"A token of the candidate's answers takes {1_000 * after:.3g} ms and one of the {opponent}'s "
            f"{1_000 * before:.3g} ms: a ratio of {ratio:.2f}, {'within' if passed else 'above'} the allowed "
            f"{limit:.2f}. Their median answers take {whole_after:.3f} s and {whole_before:.3f} s."
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
    """Longer or shorter than the approved answers: held against the candidate where the champion is nearer to them."""
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
    """Those that programs read."""
    return [(old, new) for old, new in pairs if old.valid is not None and new.valid is not None]


def first_validity(pairs: Pairs, settings: GateSettings) -> Decision:
    """Where no champion serves, programs read production's answers today; a base model that never tries to call a tool
    breaks no call. People corrected most of these answers, so those that they called good are looked at alone, too."""
    whole = validity(pairs, settings, "production")
    good = _breaks([(old, new) for old, new in pairs if old.kind == "accepted"])
    if not good:
        return whole
    verdict = _within(good, settings.maximum_invalid_rise)
    reason = (
        f"Of the {len(good)} that people called good, the candidate breaks {fmean(good):.1%} more: {verdict} the "
        f"allowed rise of {settings.maximum_invalid_rise:.1%}."
    )
    return Decision(whole.outcome and verdict.passed, [*whole.reasons, reason], whole.figures)


def validity(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
    """Answers that no program can read, of the holdout and of the regression set.

    Few of them are compared as they are: whoever reads them has no use for a broken one, and the test of `_within`
    would find none. Of many, chance breaks some of any model's, and decides which of two equal ones breaks one more.
    """
    before, after = fmean(not old.valid for old, _ in pairs), fmean(not new.valid for _, new in pairs)
    limit = settings.maximum_invalid_rise
    if len(pairs) < VALID_EXAMPLES:
        within = after - before <= limit + 1e-9
        verdict = _Verdict(within, "within" if within else "above")
    else:
        verdict = _within(_breaks(pairs), limit)
    return Decision(
        verdict.passed,
        [
            f"Of {len(pairs)} answers that programs read, the candidate breaks {after:.1%} and {opponent} "
            f"{before:.1%}: {after - before:+.1%}, {verdict} the allowed rise of {limit:.1%}."
        ],
        {"invalid_champion": before, "invalid_candidate": after},
    )


def _breaks(pairs: Pairs) -> list[float]:
    """1 for an answer that the candidate alone breaks, -1 for one that it alone does not, else 0."""
    return [float(bool(old.valid)) - float(bool(new.valid)) for old, new in pairs]


Labelled = list[tuple[str, Measured, Measured]]


def labelled(pairs: Pairs) -> Labelled:
    return [(label, old, new) for old, new in pairs for label in labels_of(new.slices)]


def labels(rows: Labelled, earlier: Labelled, opponent: str) -> Decision:
    """No label is lost, on the holdout and the regression set together. A label that merely got worse is a slice like
    any other."""
    before = confusion((label, old.answered) for label, old, _ in rows)
    after = confusion((label, new.answered) for label, _, new in rows)
    known = confusion((label, old.answered) for label, old, _ in [*rows, *earlier])
    kept = {label for label, _, new in [*rows, *earlier] if new.answered == label}
    lost = [
        label
        for label, given in known.items()
        if given.total() >= LABEL_EXAMPLES
        and (given[label] >= LABEL_LOSSES or 3 * given[label] >= given.total())
        and label not in kept
    ]
    figures = {"macro_f1_champion": macro_f1(before), "macro_f1_candidate": macro_f1(after)}
    figures |= as_figures(after)
    text = (
        f"Over {len(after)} labels the candidate's macro-F1 is {figures['macro_f1_candidate']:.3f} and the "
        f"{opponent}'s {figures['macro_f1_champion']:.3f}; "
    )
    if lost:
        named = ", ".join(f"“{label}” ({known[label][label]} of {known[label].total()})" for label in lost)
        text += f"the candidate never answers what the {opponent} can: {named}."
    else:
        text += "none is lost."
    return Decision(not lost, [text], figures)


@dataclass(frozen=True)
class _Verdict:
    passed: bool
    text: str

    def __str__(self) -> str:
        return self.text


def _within(differences: Sequence[float], limit: float, error: float = GUARD_ERROR) -> _Verdict:
    """Whether a guard holds, and how to say it; `differences` are above zero where the candidate is worse.

    An exact randomisation test (Fisher 1935, Pitman 1937) against a candidate that is worse by just the limit: given by
    how much each pair differs, its direction is a draw, in which worse is as much likelier as makes up the limit in the
    mean. Of answers that are right or wrong it is the sign test of the pairs that differ (McNemar 1947). It assumes
    independent rows, and that sizes do not depend on the direction; they are rounded to a hundredth.
    """
    if fmean(differences) <= limit + 1e-9:
        return _Verdict(True, "within")
    changes = np.rint(100 * np.array(differences)).astype(int)
    sizes = np.abs(changes[changes != 0])
    if not sizes.size:
        return _Verdict(True, "within")
    worse = min(1.0, (1 + 100 * limit * len(differences) / sizes.sum()) / 2)
    chance = _at_least(int(changes[changes > 0].sum()), sizes, worse)
    return _Verdict(False, "surely above") if chance <= error else _Verdict(True, "which chance explains, beside")


def _at_least(total: int, sizes: np.ndarray, worse: float) -> float:
    """The chance that of numbers, each of which counts with the chance `worse`, those that count add up to `total`."""
    step = int(np.gcd.reduce(sizes))
    chances = np.array([1.0])
    for size in sizes // step:
        grown = np.zeros(len(chances) + size)
        grown[: len(chances)] = (1 - worse) * chances
        grown[size:] += worse * chances
        chances = grown
    return float(chances[total // step :].sum())
