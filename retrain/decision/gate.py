"""The gate: is the candidate better, and no worse in anything that matters? A pure function of what was measured."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from retuned.retrain.decision import guards
from retuned.retrain.decision.interval import error_of_try, examples_needed, interval
from retuned.retrain.decision.pairs import Decision, Measured, Pairs, paired, percent, score, with_scores
from retuned.retrain.settings import GateSettings

ABSTAINED = 0.5
"""Share of the holdout on which the metric may abstain."""


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
    unasked: int = 0,
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
    set or on any slice of the holdout, above its limit refuses the candidate unless chance explains it (see `guards`).
    What programs read (JSON, calls of tools, labels) has guards of its own. The medians of length and of the time that
    a token takes are compared with their limits as they are. All conditions are looked at, so that a refusal names all
    its reasons.

    Args:
        tries: earlier comparisons of a candidate with this champion, or base model.
        logged: the answers that production gave to these questions, as far as they are known.
        folded: so many of the rows were learned from, and answered by models in the candidate's place that learned
            without them (see `data.folds`). They learned from less than the candidate did: it is taken to be no worse.
        serving: a champion serves; else `champion` holds the base model's answers.
        traffic: the candidate's answers to recent questions that nobody rated.
        general: the base model's and the candidate's answers to prompts that have nothing to do with the workload.
        structured: answers are for programs (see `Metric.structured`), so that `general` is for information.
        unasked: rows of the holdout that `evaluate.maximum_examples` left out.
    """
    opponent = "champion" if serving else "base model"
    answered, produced = paired(champion, candidate), paired(logged, candidate)
    earlier = paired(champion_regression, candidate_regression)
    pairs = with_scores(answered)
    if len(pairs) < max(settings.minimum_examples, (1 - ABSTAINED) * len(answered)):
        return _too_few(len(pairs), len(answered), settings)
    checks = {
        "gain": _gain(pairs, settings, tries, folded, opponent),
        "hallucination": guards.hallucination(answered, settings, opponent),
        "refusal": guards.refusals(answered, settings, opponent),
        "regression": guards.regression(with_scores(earlier), settings, opponent)
        if serving
        else guards.first_regression(pairs, settings),
        "slices": guards.slices(pairs, settings),
        "latency": guards.latency(answered, settings, opponent),
        "length": guards.length(answered, settings, opponent),
        "traffic": guards.traffic(traffic, candidate, settings, "champion" if serving else "logged answers"),
        "general": guards.general(paired(*general), settings, structured),
    }
    # A holdout may be too small to hold one of the answers that a candidate breaks, or enough questions of a label.
    if not serving and len(guards.formed(produced)) >= settings.minimum_examples:
        checks["validity"] = guards.first_validity(guards.formed(produced), settings)
    elif formed := guards.formed([*answered, *earlier]):
        checks["validity"] = guards.validity(formed, settings, f"the {opponent}")
    if labelled := guards.labelled(pairs):
        checks["labels"] = guards.labels(labelled, guards.labelled(with_scores(earlier)), opponent)
    if scored := with_scores(produced):
        checks["logged"] = _logged(scored, settings, tries, serving)
    figures = _counts(len(pairs), len(answered)) | ({"folded": float(folded)} if folded else {})
    for name, check in checks.items():
        figures |= {f"passed[{name}]": float(check.outcome), **check.figures}
    outcome = all(check.outcome for check in checks.values())
    reasons = [reason for check in checks.values() for reason in check.reasons]
    if abstained := len(answered) - len(pairs):
        reasons.append(f"The metric abstains on {abstained} further holdout examples, which count for no score.")
    return Decision(
        outcome, reasons if outcome else [*reasons, _refusal(checks, len(pairs), settings, unasked)], figures
    )


def lacks_evidence(decision: Decision) -> bool:
    """Whether more examples may turn a refusal: the candidate looks better, or there were too few to look at, and
    nothing else speaks against it."""
    failed = {name for name, passed in decision.figures.items() if name.startswith("passed[") and not passed}
    if not failed:
        return not decision.outcome and "abstained" not in decision.figures
    gains = {"passed[gain]": "gain", "passed[logged]": "gain_over_logged"}
    return failed <= gains.keys() and all(decision.figures[gains[name]] > 0 for name in failed)


def _refusal(checks: Mapping[str, Decision], examples: int, settings: GateSettings, unasked: int) -> str:
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
        if unasked:
            text += f" {unasked} more rows of the holdout were left unasked: raise evaluate.maximum_examples."
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
    columns = {"champion": [score(old) for old, _ in pairs], "candidate": [score(new) for _, new in pairs]}
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
        figures[f"score_logged[{kind}]"] = fmean(score(old) for old, _ in part)
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
    before, after = fmean(score(old) for old, _ in pairs), fmean(score(new) for _, new in pairs)
    error = error_of_try(settings, tries)
    low, high = interval(_gains(pairs), error)
    passed = low > settings.minimum_gain
    text = (
        f"a gain of {after - before:+.3f} ({percent(1 - 2 * error)} interval {low:+.3f} to {high:+.3f}), "
        f"{'above' if passed else 'not surely above'} the minimum of {settings.minimum_gain:.3f}"
    )
    return _Comparison(before, after, low, high, passed, text)


def _gains(pairs: Pairs) -> np.ndarray:
    return np.array([score(new) - score(old) for old, new in pairs])
