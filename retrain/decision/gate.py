"""The gate: is the candidate better, and no worse in anything that matters? A pure function of what was measured."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median
from typing import Protocol

import numpy as np

from retuned.retrain.decision.interval import error_of_try, examples_needed, interval
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

ABSTAINED = 0.5
"""Share of the holdout on which the metric may abstain."""

TRAFFIC_EXAMPLES = 20
"""With fewer answers of traffic nothing is held against the candidate."""


class Measured(Protocol):
    """What the gate reads of an evaluation: of one model's answer to one row."""

    @property
    def row_id(self) -> str: ...
    @property
    def score(self) -> float | None: ...
    @property
    def valid(self) -> bool | None: ...
    @property
    def answered(self) -> str | None: ...
    @property
    def hallucinated(self) -> bool | None: ...
    @property
    def refused(self) -> bool: ...
    @property
    def length_ratio(self) -> float: ...
    @property
    def latency_seconds(self) -> float | None: ...
    @property
    def seconds_per_token(self) -> float | None: ...
    @property
    def slices(self) -> Sequence[str]: ...
    @property
    def origin(self) -> str | None: ...
    @property
    def kind(self) -> str | None: ...
    @property
    def verdict(self) -> str | None: ...
    @property
    def agreement(self) -> float | None: ...


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
    tries: int = 0,
    logged: Sequence[Measured] = (),
    folded: int = 0,
    serving: bool = True,
    traffic: Sequence[Measured] = (),
    general: tuple[Sequence[Measured], Sequence[Measured]] = ((), ()),
    structured: bool = False,
) -> Decision:
    """Compare candidate and champion (the base model where none serves) on the rows that both answered.

    The gain in score must be above `minimum_gain`: the lower end of a paired bootstrap interval (see `interval`). All
    tries against one champion together promote a candidate that is no better with probability 1 − confidence at most
    (see `error_of_try`). The unit is the question; what is asked later is taken to be about the same topics.

    Where no champion serves, the answers that production gave are a second bar: whatever model it was that people
    use, the candidate would take its place. The candidate must show the gain over both, which keeps the error
    (intersection-union test, Berger 1982). Where a champion serves they are information: its answers of today are the
    fairer comparison.

    Guards then ask for evidence of harm. A rise of hallucinations or refusals, or a drop in score on the regression
    set or on any slice of the holdout, above its limit refuses the candidate unless chance explains it (see `_within`).
    Proof of harmlessness would take thousands of examples. What programs read (JSON, calls of tools, labels) has
    guards of its own: see `_validity` and `_labels`. The medians of length and of the time that a token takes are
    compared with their limits as they are. All conditions are looked at, so that a refusal names all its reasons.

    Args:
        tries: earlier comparisons of a candidate with this champion, or base model.
        logged: the answers that production gave to these questions, as far as they are known.
        folded: so many of the rows were learned from, and answered by models in the candidate's place that learned
            without them (see `data.folds`). They learned from less than the candidate did: it is taken to be no worse.
        serving: a champion serves; else `champion` holds the base model's answers.
        traffic: the candidate's answers to recent questions that nobody rated.
        general: the base model's and the candidate's answers to prompts that have nothing to do with the workload.
        structured: answers are for programs (see `Metric.structured`), so that `general` is for information.
    """
    opponent = "champion" if serving else "base model"
    answered = _pairs(champion, candidate)
    pairs = _scored(answered)
    if len(pairs) < max(settings.minimum_examples, (1 - ABSTAINED) * len(answered)):
        return _too_few(len(pairs), len(answered), settings)
    checks = {
        "gain": _gain(pairs, settings, tries, folded, opponent),
        "hallucination": _hallucination(answered, settings, opponent),
        "refusal": _refusals(answered, settings, opponent),
        "regression": _regression(_scored(_pairs(champion_regression, candidate_regression)), settings, opponent)
        if serving
        else _first_regression(pairs, settings),
        "slices": _slices(pairs, settings),
        "latency": _latency(answered, settings, opponent),
        "length": _length(answered, settings, opponent),
        "traffic": _traffic(traffic, candidate, settings, "champion" if serving else "logged answers"),
        "general": _general(_pairs(*general), settings, structured),
    }
    # A holdout may be too small to hold one of the answers that a candidate breaks, or enough questions of a label.
    earlier = _pairs(champion_regression, candidate_regression)
    produced = _pairs(logged, candidate)
    if not serving and len(_formed(produced)) >= settings.minimum_examples:
        checks["validity"] = _first_validity(_formed(produced), settings)
    elif formed := _formed([*answered, *earlier]):
        checks["validity"] = _validity(formed, settings, f"the {opponent}")
    if labelled := _labelled(pairs):
        checks["labels"] = _labels(labelled, _labelled(_scored(earlier)), opponent)
    if scored := _scored(produced):
        checks["logged"] = _logged(scored, settings, tries, serving)
    figures = _counts(len(pairs), len(answered)) | ({"folded": float(folded)} if folded else {})
    for name, check in checks.items():
        figures |= {f"passed[{name}]": float(check.outcome), **check.figures}
    outcome = all(check.outcome for check in checks.values())
    reasons = [reason for check in checks.values() for reason in check.reasons]
    if abstained := len(answered) - len(pairs):
        reasons.append(f"The metric abstains on {abstained} further holdout examples, which count for no score.")
    return Decision(outcome, reasons if outcome else [*reasons, _refusal(checks, len(pairs), settings)], figures)


def lacks_evidence(decision: Decision) -> bool:
    """Whether more examples may turn a refusal: the candidate looks better, or there were too few to look at, and
    nothing else speaks against it."""
    failed = {name for name, passed in decision.figures.items() if name.startswith("passed[") and not passed}
    if not failed:
        return not decision.outcome and "abstained" not in decision.figures
    gains = {"passed[gain]": "gain", "passed[logged]": "gain_over_logged"}
    return failed <= gains.keys() and all(decision.figures[gains[name]] > 0 for name in failed)


def _refusal(checks: Mapping[str, Decision], examples: int, settings: GateSettings) -> str:
    """By what a candidate was refused, and which gain or how many more examples would have been enough."""
    text = f"Refused by: {', '.join(name for name, check in checks.items() if not check.outcome)}."
    for name, figure, over in (("gain", "gain", ""), ("logged", "gain_over_logged", " over production's answers")):
        if name in checks and not checks[name].outcome:
            gain, low = checks[name].figures[figure], checks[name].figures[f"{figure}_low"]
            text += (
                f" On examples that scatter like these a gain{over} of about {settings.minimum_gain + gain - low:+.3f} "
                f"would be enough; it is {gain:+.3f}."
            )
    lacking = int(checks["gain"].figures["examples_needed"]) - examples
    if not checks["gain"].outcome and lacking > 0:
        text += f" To be sure of one of {settings.expected_gain:.3f} takes some {lacking} more."
    return text


def _too_few(scored: int, answered: int, settings: GateSettings) -> Decision:
    figures = _counts(scored, answered)
    if scored == answered:
        return Decision(
            False,
            [
                f"Only {scored} holdout examples were answered by both models; "
                f"{settings.minimum_examples} are needed to tell them apart."
            ],
            figures,
        )
    return Decision(
        False,
        [
            f"The metric abstains on {answered - scored} of {answered} holdout examples, and only {scored} are left to "
            f"tell the models apart; {settings.minimum_examples} are needed, and half of all: choose a metric that can "
            "judge these answers (metric.name; text judges any language)."
        ],
        figures,
    )


def _counts(scored: int, answered: int) -> dict[str, float]:
    return {"examples": float(scored)} | ({"abstained": float(answered - scored)} if scored < answered else {})


Pairs = list[tuple[Measured, Measured]]


def _pairs(champion: Sequence[Measured], candidate: Sequence[Measured]) -> Pairs:
    answered = {row.row_id: row for row in candidate}
    return [(row, answered[row.row_id]) for row in champion if row.row_id in answered]


def _scored(pairs: Pairs) -> Pairs:
    """Without those on which the metric abstains: they are no examples."""
    return [(old, new) for old, new in pairs if old.score is not None and new.score is not None]


def _score(row: Measured) -> float:
    assert row.score is not None
    return row.score


def _gain(pairs: Pairs, settings: GateSettings, tries: int, folded: int, opponent: str) -> Decision:
    found = _compared(pairs, settings, tries)
    needed = examples_needed(_gains(pairs), error_of_try(settings, tries), settings)
    reasons = [
        f"The candidate scores {found.after:.3f} on {len(pairs)}{'' if folded else ' holdout'} examples and the "
        f"{opponent} {found.before:.3f}: {found.text}."
    ]
    if folded:
        reasons.append(
            f"The holdout is too small to decide alone: {folded} of these examples are among what the candidate "
            "learned, and were answered in its place by models that each learned without them."
        )
    if tries:
        reasons.append(
            f"Candidates were compared with this {opponent} {tries} time{'s' * (tries > 1)} before: the interval is "
            "wider for it."
        )
    return Decision(
        found.passed,
        reasons,
        {
            "score_champion": found.before,
            "score_candidate": found.after,
            "gain": found.after - found.before,
            "gain_low": found.low,
            "gain_high": found.high,
            "tries": float(tries + 1),
            "examples_needed": float(needed),
            **_wholly_right(pairs),
        },
    )


def _wholly_right(pairs: Pairs) -> dict[str, float]:
    """Where scores are fractions: the share of answers that are right as a whole."""
    columns = {"champion": [_score(old) for old, _ in pairs], "candidate": [_score(new) for _, new in pairs]}
    if all(score in (0.0, 1.0) for scores in columns.values() for score in scores):
        return {}
    return {f"exact_{model}": fmean(score == 1.0 for score in scores) for model, scores in columns.items()}


def _logged(pairs: Pairs, settings: GateSettings, tries: int, serving: bool) -> Decision:
    """What production answered, beside the candidate: a bar where no champion serves and there are enough answers."""
    found = _compared(pairs, settings, tries)
    by_kind: dict[str, Pairs] = defaultdict(list)
    for old, new in pairs:
        by_kind[old.kind or "other"].append((old, new))
    corrected = sum(old.kind == "correction" for old, _ in pairs)
    few = len(pairs) < settings.minimum_examples
    role = ""
    if serving:
        role = " For information: the champion is the bar."
    elif few:
        role = f" For information: fewer than {settings.minimum_examples} of them are no bar."
    figures = {
        "score_logged": found.before,
        "logged_examples": float(len(pairs)),
        "gain_over_logged": found.after - found.before,
        "gain_over_logged_low": found.low,
        "gain_over_logged_high": found.high,
    }
    for kind, part in by_kind.items():
        figures[f"score_logged[{kind}]"] = fmean(_score(old) for old, _ in part)
        figures[f"logged_examples[{kind}]"] = float(len(part))
    return Decision(
        found.passed or serving or few,
        [
            f"The answers that production gave to {len(pairs)} of these questions score {found.before:.3f} and the "
            f"candidate's {found.after:.3f}: {found.text}. People corrected {corrected} of these answers and called "
            f"{len(pairs) - corrected} good, so this is no estimate for all traffic.{role}"
        ],
        figures,
    )


@dataclass(frozen=True)
class _Comparison:
    """Mean scores before and after, the interval of the gain, and whether that is above the minimum."""

    before: float
    after: float
    low: float
    high: float
    passed: bool
    text: str


def _compared(pairs: Pairs, settings: GateSettings, tries: int) -> _Comparison:
    before, after = fmean(_score(old) for old, _ in pairs), fmean(_score(new) for _, new in pairs)
    error = error_of_try(settings, tries)
    low, high = interval(_gains(pairs), error)
    passed = low > settings.minimum_gain
    text = (
        f"a gain of {after - before:+.3f} ({_percent(1 - 2 * error)} interval {low:+.3f} to {high:+.3f}), "
        f"{'above' if passed else 'not surely above'} the minimum of {settings.minimum_gain:.3f}"
    )
    return _Comparison(before, after, low, high, passed, text)


def _gains(pairs: Pairs) -> np.ndarray:
    return np.array([_score(new) - _score(old) for old, new in pairs])


def _hallucination(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
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


def _refusals(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
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


def _regression(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
    if not pairs:
        return Decision(
            True, ["There are no examples of earlier datasets to fall back on; no regression could be measured."], {}
        )
    before, after = fmean(_score(old) for old, _ in pairs), fmean(_score(new) for _, new in pairs)
    limit = settings.maximum_regression_drop
    verdict = _within([_score(old) - _score(new) for old, new in pairs], limit)
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
        figures | _by_part(by_origin, "regression"),
    )


def _first_regression(pairs: Pairs, settings: GateSettings) -> Decision:
    """Before the first promotion no earlier dataset was judged on. What can be lost is what is right already: answers
    of the holdout that people called good. The base model is the opponent: unless it gave these answers, they were not
    chosen by what it answers right."""
    kept = [(old, new) for old, new in pairs if new.kind == "accepted"]
    if not kept:
        reason = (
            "Nothing was promoted before, and people called no answer of the holdout good: there is nothing to lose."
        )
        return Decision(True, [reason], {})
    before, after = fmean(_score(old) for old, _ in kept), fmean(_score(new) for _, new in kept)
    limit = settings.maximum_regression_drop
    verdict = _within([_score(old) - _score(new) for old, new in kept], limit)
    return Decision(
        verdict.passed,
        [
            f"On {len(kept)} questions of the holdout whose logged answers people called good, the candidate scores "
            f"{after:.3f} and the base model {before:.3f}: a drop of {before - after:+.3f}, {verdict} the allowed "
            f"{limit:.3f}."
        ],
        {"regression_champion": before, "regression_candidate": after, "regression_examples": float(len(kept))},
    )


def _traffic(traffic: Sequence[Measured], holdout: Sequence[Measured], settings: GateSettings, before: str) -> Decision:
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


def _general(pairs: Pairs, settings: GateSettings, structured: bool) -> Decision:
    """What the base model can do beside the workload, and the candidate cannot any more: for information where answers
    are for programs, as those of a classifier are."""
    if not pairs:
        return Decision(True, ["No general prompts were answered (evaluate.general_examples)."], {})
    before, after = fmean(_score(old) for old, _ in pairs), fmean(_score(new) for _, new in pairs)
    limit = settings.maximum_general_drop
    verdict = _within([_score(old) - _score(new) for old, new in pairs], limit)
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
    drops = {name: fmean(_score(old) - _score(new) for old, new in part) for name, part in slices.items()}
    verdicts = {
        name: _within([_score(old) - _score(new) for old, new in part], limit, GUARD_ERROR / len(slices))
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


def _formed(pairs: Pairs) -> Pairs:
    """Those that programs read."""
    return [(old, new) for old, new in pairs if old.valid is not None and new.valid is not None]


def _breaks(pairs: Pairs) -> list[float]:
    """1 for an answer that the candidate alone breaks, -1 for one that it alone does not, else 0."""
    return [float(bool(old.valid)) - float(bool(new.valid)) for old, new in pairs]


def _first_validity(pairs: Pairs, settings: GateSettings) -> Decision:
    """Where no champion serves, programs read production's answers today; a base model that never tries to call a tool
    breaks no call. People corrected most of these answers, so those that they called good are looked at alone, too."""
    whole = _validity(pairs, settings, "production")
    good = _breaks([(old, new) for old, new in pairs if old.kind == "accepted"])
    if not good:
        return whole
    verdict = _within(good, settings.maximum_invalid_rise)
    reason = (
        f"Of the {len(good)} that people called good, the candidate breaks {fmean(good):.1%} more: {verdict} the "
        f"allowed rise of {settings.maximum_invalid_rise:.1%}."
    )
    return Decision(whole.outcome and verdict.passed, [*whole.reasons, reason], whole.figures)


def _validity(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
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


Labelled = list[tuple[str, Measured, Measured]]


def _labelled(pairs: Pairs) -> Labelled:
    return [(label, old, new) for old, new in pairs for label in labels_of(new.slices)]


def _labels(rows: Labelled, earlier: Labelled, opponent: str) -> Decision:
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


def _by_part(parts: Mapping[str, Pairs], name: str) -> dict[str, float]:
    """Scores on parts of the rows, under names such as `score_candidate[language:de]`."""
    figures = {}
    for part, pairs in parts.items():
        figures[f"{name}_champion[{part}]"] = fmean(_score(old) for old, _ in pairs)
        figures[f"{name}_candidate[{part}]"] = fmean(_score(new) for _, new in pairs)
        figures[f"{name}_examples[{part}]"] = float(len(pairs))
    return figures


def _latency(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
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


def _length(pairs: Pairs, settings: GateSettings, opponent: str) -> Decision:
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


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"
