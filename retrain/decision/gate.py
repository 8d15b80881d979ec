"""The gate: decides whether a candidate is better and harms nothing. A pure function of the evaluations.

The gain in score must be above `minimum_gain`: the lower end of the confidence interval of the paired differences (see
`interval`). All tries against one champion together promote a candidate that is no better with probability
1 − confidence at most (see `error_of_try`). The unit is the cluster of dependent rows, such as a conversation (see
`by_cluster`). Future questions are assumed to be about the same topics.

If no champion serves, the logged answers of production are a second bar: the candidate would replace whatever model
people use now. The candidate must show the gain over both, which keeps the error (intersection-union test, Berger
1982). If a champion serves, the logged answers are for information: the champion's current answers are the fairer
comparison. See `_logged` for the rows that can be compared with logged answers.

Guards then look for evidence of harm. A rise of hallucinations or refusals, or a drop in score on the regression set or
on any slice of the holdout, above its limit refuses the candidate unless chance explains it (see `guards`). Answers
that programs read (JSON, tool calls, labels) have guards of their own. The medians of length and of time per token are
compared with their limits directly. All conditions are evaluated, so that a refusal lists all its reasons.

A row of which the metric judges only one answer counts at its worst for the candidate, in the gain and in the guards of
scores (see `at_worst`). A guard without enough evidence has no outcome: it is not measured. It refuses the candidate if
`require_measured` names it and there were examples.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from retuned.retrain.decision import guards
from retuned.retrain.decision.interval import error_of_try, examples_needed, interval, interval_as_asked
from retuned.retrain.decision.labels import labelled, labels
from retuned.retrain.decision.pairs import (
    MEASURED,
    Check,
    Decision,
    Measured,
    Pairs,
    Refusal,
    at_worst,
    by_cluster,
    drop,
    mean_scores,
    of_clusters,
    paired,
    percent,
    score,
    with_scores,
)
from retuned.retrain.decision.traffic import traffic as traffic_guard
from retuned.retrain.scoring.exam import Permission
from retuned.retrain.settings import GateSettings, IncumbentSettings

UNDECIDED = {"undecided": 1.0}
"""The figure of a refusal that is no verdict on the candidate: there were too few examples to compare."""
REPEATED = 0.2
"""The share of recent conversations whose question must be among the examples, so that questions count as often as they
are asked. With a smaller one, the second interval costs more than it gains."""


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
    in_other_words: bool = True,
    incumbent: IncumbentSettings | None = None,
    forgets: bool = False,
    conversations: int = 0,
    further: tuple[Sequence[Measured], Sequence[Measured]] = ((), ()),
) -> Decision:
    """Compares candidate and champion (the base model if none serves) on the rows that both answered.

    Args:
        tries: earlier comparisons of a candidate with this champion or base model.
        logged: the known answers of production to these questions.
        folded: the number of rows that are training rows, each answered by a model that was trained without it (see
            `data.folds`). Such a model learned from fewer rows than the candidate, which is assumed to be no worse.
        serving: a champion serves; otherwise `champion` holds the base model's answers.
        traffic: the candidate's answers to recent unrated questions.
        general: the base model's and the candidate's answers to prompts that have nothing to do with the workload.
        structured: answers are for programs (see `Metric.structured`), so `general` is for information.
        unasked: the number of holdout rows that were not drawn.
        in_other_words: the metric recognises a right answer in other words than the approved one.
        incumbent: what gave the logged answers, and how much worse the candidate may be; None: the candidate must show
            the gain over them, too.
        forgets: the candidate replaces a champion that learned erased rows, so it only has to be no worse.
        conversations: the number of recent conversations in which the questions of the rows were counted.
        further: the answers of champion and candidate to rows that were drawn for small slices.
    """
    opponent = "champion" if serving else "base model"
    answered, produced = paired(champion, candidate), paired(logged, candidate)
    # What people corrected was not right, even if the metric abstains on it.
    scored = at_worst([(old, new) for old, new in produced if old.score is not None])
    earlier, small = paired(champion_regression, candidate_regression), paired(*further)
    pairs = with_scores(answered)
    groups = len(by_cluster(pairs, drop))
    if groups < settings.minimum_examples or len(pairs) < MEASURED * len(answered):
        return _too_few(answered, pairs, groups, settings, unasked)
    checks: dict[str, Check | None] = {
        "gain": _no_loss(at_worst(answered), settings, conversations)
        if forgets
        else _gain(answered, settings, tries, folded, opponent, conversations, unasked),
        "hallucination": guards.hallucination(answered, settings, opponent),
        "refusal": guards.refusals(answered, settings, opponent),
        "regression": guards.regression(earlier, settings, opponent)
        if serving
        else guards.first_regression(answered, settings),
        "slices": guards.slices(answered, small, settings),
        "latency": guards.latency(answered, settings, opponent),
        "length": guards.length(answered, settings, opponent),
        "traffic": traffic_guard(traffic, candidate, settings, "champion" if serving else "logged answers"),
        "general": guards.general(paired(*general), settings, structured),
        "validity": _validity(answered, earlier, produced, settings, serving, opponent),
        "labels": labels([*rows, *labelled(with_scores(small))], labelled(with_scores(earlier)), opponent)
        if (rows := labelled(pairs))
        else None,
        "logged": _logged(scored, settings, tries, serving, in_other_words) if scored else None,
    }
    if incumbent is not None and not serving:
        checks["logged"] = _beside_incumbent(scored, settings, tries, incumbent, in_other_words)
    taken = {name: check for name, check in checks.items() if check is not None}
    figures = _counts(len(pairs), groups, len(answered)) | ({"folded": float(folded)} if folded else {})
    refusals = []
    for name, check in taken.items():
        figures |= check.figures_as(name)
        if check.passed is None and check.examples and name in settings.require_measured:
            figures[f"passed[{name}]"] = 0.0
            takes = f"a judge or a metric that can measure it, or gate.require_measured without {name}"
            refusals.append(Refusal(name, check.because, takes))
        elif check.passed is False:
            refusals.append(Refusal(name, check.because, check.takes))
    reasons = [reason for check in taken.values() for reason in check.reasons]
    if unmeasured := [name for name, check in taken.items() if check.passed is None]:
        reasons.append(f"Not measured: {', '.join(unmeasured)}.")
    if abstained := sum(old.score is None and new.score is None for old, new in answered):
        reasons.append(f"The metric abstains on {abstained} further holdout examples, which count for no score.")
    return Decision(True, reasons, figures).refused(*refusals)


def _validity(
    answered: Pairs, earlier: Pairs, produced: Pairs, settings: GateSettings, serving: bool, opponent: str
) -> Check | None:
    """Tests answers that programs read; None if there are none.

    The regression set is included: a holdout may be too small to contain an answer that the candidate breaks.
    """
    if not serving and len(guards.formed(produced)) >= settings.minimum_examples:
        return guards.first_validity(guards.formed(produced), settings)
    formed = guards.formed([*answered, *earlier])
    return guards.validity(formed, settings, f"the {opponent}") if formed else None


def examined(decision: Decision, permission: Permission) -> Decision:
    """Returns the decision, with a positive outcome only if its metric passed its exam (see `scoring.exam`)."""
    reasons = [*decision.reasons, f"{permission.reason[0].upper()}{permission.reason[1:]}."]
    figures = decision.figures | {"passed[exam]": float(permission.granted)}
    decision = replace(decision, reasons=reasons, figures=figures)
    takes = "a judge (evaluate.judge_url), another metric.name, or labelled pairs of the workload's own"
    return decision if permission.granted else decision.refused(Refusal("exam", permission.reason, takes))


def lacks_evidence(decision: Decision) -> bool:
    """Returns whether more examples may change a refusal: the candidate seems better, or there were too few examples
    of which the metric judges most, and no guard refused it."""
    failed = {name for name, passed in decision.figures.items() if name.startswith("passed[") and not passed}
    if not failed:
        judged, abstained = decision.figures["examples"], decision.figures.get("abstained", 0.0)
        return not decision.outcome and judged >= MEASURED * (judged + abstained)
    gains = {"passed[gain]": "gain", "passed[logged]": "gain_over_logged"}
    return failed <= gains.keys() and all(decision.figures.get(gains[name], 0.0) > 0 for name in failed)


def _takes(gain: "_Comparison", over: str = "") -> str:
    return f"a gain{over} of about {gain.enough:+.3f} on examples that scatter like these"


def _more(unasked: int) -> str:
    """Returns a clause about how to get more examples."""
    if unasked:
        return f"{unasked} more rows of the holdout were not drawn: raise evaluate.maximum_examples"
    return "all of the holdout was asked: it grows with corrections, and with dataset.holdout_share"


def _too_few(answered: Pairs, pairs: Pairs, groups: int, settings: GateSettings, unasked: int) -> Decision:
    decision = Decision(True, [], _counts(len(pairs), groups, len(answered)) | UNDECIDED)
    needed = settings.minimum_examples
    if len(pairs) == len(answered):
        because = (
            f"only {len(pairs)} holdout examples{of_clusters(pairs)} were answered by both models; {needed} are needed "
            "to tell them apart"
        )
        return decision.refused(Refusal("gain", because, f"{needed - groups} more examples ({_more(unasked)})"))
    details = Counter(row.detail for pair in answered for row in pair if row.score is None and row.detail)
    why = f" (mostly: {details.most_common(1)[0][0]})" if details else ""
    because = (
        f"the metric abstains on {len(answered) - len(pairs)} of {len(answered)} holdout examples{why}, and only "
        f"{len(pairs)}{of_clusters(pairs)} are left to tell the models apart; {needed} are needed, and half of all"
    )
    return decision.refused(
        Refusal("gain", because, "a metric that can judge these answers (metric.name), or a judge (evaluate.judge_url)")
    )


def _counts(scored: int, groups: int, answered: int) -> dict[str, float]:
    figures = {"examples": float(scored)}
    figures |= {"clusters": float(groups)} if groups < scored else {}
    return figures | ({"abstained": float(answered - scored)} if scored < answered else {})


def _gain(
    answered: Pairs,
    settings: GateSettings,
    tries: int,
    folded: int,
    opponent: str,
    conversations: int,
    unasked: int,
) -> Check:
    pairs, bounded = with_scores(answered), at_worst(answered)
    gain = _compared(bounded, settings, tries, conversations)
    before, after = (gain.before, gain.after) if len(pairs) == len(bounded) else mean_scores(pairs)
    needed = examples_needed(_gains(bounded), error_of_try(settings, tries), settings)
    together = ":"
    if further := len(bounded) - len(pairs):
        together = (
            f". On {further} further ones the metric scores only one of the two answers; the other one counts as right "
            f"if it is the {opponent}'s, and as wrong if it is the candidate's. Together:"
        )
    reasons = [
        f"The candidate scores {after:.3f} on {len(pairs)}{'' if folded else ' holdout'} examples"
        f"{of_clusters(pairs)} and the {opponent} {before:.3f}{together} {gain.text}. {_power(gain, needed, settings)}"
    ]
    if folded:
        reasons.append(
            f"The holdout is too small to decide alone: {folded} of these examples are training rows of the candidate, "
            "each answered by a model that was trained without it."
        )
    if gain.repeated is not None:
        reasons.append(
            f"{percent(gain.repeated)} of {conversations:,} recent conversations ask one of these questions, each of "
            "which counts as often as it is asked. All others are taken to be at the lower end of what examples show."
        )
    if tries:
        reasons.append(
            f"Candidates were compared with this {opponent} {tries} time{'s' * (tries > 1)} before, so the interval is "
            "wider."
        )
    takes = _takes(gain)
    if (lacking := needed - gain.examples) > 0:
        takes += f", or some {lacking:,} more to be sure of one of {settings.expected_gain:.3f} ({_more(unasked)})"
    return Check(
        gain.passed,
        reasons,
        {
            "score_champion": before,
            "score_candidate": after,
            "gain": gain.after - gain.before,
            "gain_low": gain.low,
            "gain_high": gain.high,
            "tries": float(tries + 1),
            "examples_needed": float(needed),
            "unseen[gain]": gain.enough,
            **({} if gain.repeated is None else {"repeated": gain.repeated}),
            **_wholly_right(pairs),
        },
        gain.examples,
        settings.minimum_gain,
        f"on {gain.examples} examples it shows {gain.text}",
        takes,
    )


def _no_loss(pairs: Pairs, settings: GateSettings, conversations: int) -> Check:
    """Refuses a candidate that is worse than the champion, unless chance explains it.

    Each try has the same error: a wider interval after more tries would make it easier to pass.
    """
    gain = _compared(pairs, settings, 0, conversations)
    found = (
        f"the champion scores {gain.before:.3f} on {len(pairs)} examples{of_clusters(pairs)} and the candidate "
        f"{gain.after:.3f}, a difference of {gain.after - gain.before:+.3f} ({percent(settings.confidence)} interval "
        f"{gain.low:+.3f} to {gain.high:+.3f})"
    )
    text = (
        "The champion learned rows that were erased, so the candidate only has to be no worse, unless chance explains "
        f"it: {found}. A true loss of up to {100 * (gain.high - gain.after + gain.before):.2g} points would pass "
        "unseen half of the time."
    )
    figures = {
        "score_champion": gain.before,
        "score_candidate": gain.after,
        "gain": gain.after - gain.before,
        "gain_low": gain.low,
        "gain_high": gain.high,
        **_wholly_right(pairs),
    }
    takes = "a candidate that is no worse than the champion, such as one with more to learn from"
    because = f"it is worse beyond chance: {found}"
    return Check(gain.high >= 0, [text], figures, gain.examples, 0.0, because, takes)


def _power(gain: "_Comparison", needed: int, settings: GateSettings) -> str:
    text = f"A true gain of up to {100 * gain.enough:.2g} points would pass unseen half of the time"
    if needed > gain.examples:
        text += (
            f"; {needed:,} examples would show one of {100 * settings.expected_gain:.2g} points in nine of ten cases"
        )
    return f"{text}."


def _wholly_right(pairs: Pairs) -> dict[str, float]:
    """Returns the share of answers that score 1, if scores are fractions."""
    columns = {"champion": [score(old) for old, _ in pairs], "candidate": [score(new) for _, new in pairs]}
    if all(score in (0.0, 1.0) for scores in columns.values() for score in scores):
        return {}
    return {f"exact_{model}": fmean(score == 1.0 for score in scores) for model, scores in columns.items()}


def _logged(pairs: Pairs, settings: GateSettings, tries: int, serving: bool, in_other_words: bool) -> Check:
    """Compares with the logged answers of production: a bar if no champion serves and there are enough answers.

    A logged answer that people called good is the approved answer of its row, and scores 1 by construction. If the
    metric recognises a right answer in other words, the candidate's may score 1, too, and all rows are compared: how
    often people corrected production is part of the evidence. If the metric compares wording, a right candidate cannot
    score as high, and these rows show nothing. Then the bar consists of the rows whose logged answer is not the
    approved one. A candidate that is no better there is not better. Whether it is worse where production was right
    remains unknown, and the reason states that. If all rows can be compared, corrected rows alone would be biased: they
    were selected for production's failures, so an equally good model does better on them.
    """
    kinds = Counter(old.kind or "other" for old, _ in pairs)
    fair = pairs if in_other_words else [(old, new) for old, new in pairs if old.kind != "accepted"]
    left_out = len(pairs) - len(fair)
    figures = _logged_figures(pairs)
    check = Check(None, [], figures)
    reasons = []
    if fair:
        enough = len(by_cluster(fair, drop)) >= settings.minimum_examples
        gain = _compared(fair, settings, tries)
        figures |= {
            "gain_over_logged": gain.after - gain.before,
            "gain_over_logged_low": gain.low,
            "gain_over_logged_high": gain.high,
            "unseen[logged]": gain.enough,
        }
        role = ""
        if serving:
            role = " For information: the champion is the bar."
        elif not enough:
            role = f" For information: fewer than {settings.minimum_examples} of them are no bar."
        good = kinds["accepted"] if in_other_words else 0
        found = (
            f"the answers that production gave to {len(fair)} of these questions score {gain.before:.3f} and the "
            f"candidate's {gain.after:.3f}: {gain.text}"
        )
        reasons.append(
            f"T{found[1:]}. People corrected {kinds['correction']} of these answers and called {good} good, so this is "
            f"no estimate for all traffic.{role}"
        )
        if serving or enough:
            takes = _takes(gain, " over production's answers")
            passed = gain.passed or serving
            check = Check(passed, [], figures, gain.examples, settings.minimum_gain, found, takes)
    if left_out and not serving:
        reasons.append(
            f"The candidate is not compared with the {left_out} answers of production that people called good: they "
            "are the approved answers, and the metric does not recognise a right answer in other words. Whether the "
            "candidate is as good there is not known; a judge would show it (metric.name: judge), and so does a "
            "first step of a rollout (rollout.steps)."
        )
    return replace(check, reasons=reasons, figures=figures)


def _beside_incumbent(
    pairs: Pairs, settings: GateSettings, tries: int, incumbent: IncumbentSettings, in_other_words: bool
) -> Check:
    """Tests that the candidate is not worse than the incumbent by more than its margin, over all of its answers.

    People rate wrong answers more often than right ones, and on wrong answers a candidate can only gain. So the rated
    answers are no sample of all: the mean gain on those that people called good counts for the share of right answers,
    and the mean gain on the corrected ones for the share of wrong answers (stratification). That share has to be
    measured on a random sample. If it is not known, it is taken to be 0, the worst case. Each stratum has an interval
    of its own, and both ends of both hold together with the confidence of the try (Bonferroni).
    """
    figures, margin = _logged_figures(pairs), f"{100 * incumbent.margin:.3g} points (incumbent.margin)"
    if not in_other_words:
        found = (
            "the candidate cannot be compared with the incumbent: the metric does not recognise a right answer in "
            "other words"
        )
        reasons = [f"T{found[1:]}. A judge does (metric.name: judge)."]
        return Check(False, reasons, figures, because=found, takes="a judge (metric.name: judge)")
    wrong = incumbent.wrong_share or 0.0
    strata = {"accepted": 1 - wrong} | ({"correction": wrong} if wrong else {})
    rows = {kind: [pair for pair in pairs if pair[0].kind == kind] for kind in strata}
    words = {"accepted": "called good", "correction": "corrected"}
    lacking = [
        f"{count} that people {words[kind]}"
        for kind in strata
        if (count := len(by_cluster(rows[kind], drop))) < settings.minimum_examples
    ]
    if lacking:
        found = f"too few answers of the incumbent are in the holdout to compare with it: {' and '.join(lacking)}"
        needed = f"{settings.minimum_examples} are needed"
        takes = f"{settings.minimum_examples} such answers in the holdout"
        return Check(False, [f"T{found[1:]}; {needed}."], figures | UNDECIDED, because=found, takes=takes)
    error = error_of_try(settings, tries)
    gain = low = high = 0.0
    for kind, weight in strata.items():
        gains = _gains(rows[kind])
        ends = interval(gains, error / len(strata))
        gain, low, high = (
            total + weight * value for total, value in zip((gain, low, high), (gains.mean(), *ends), strict=True)
        )
    passed = low > -incumbent.margin
    basis = (
        f"{100 * wrong:.3g}% of its answers are wrong (incumbent.wrong_share)"
        if wrong
        else "the share of its wrong answers is not known (incumbent.wrong_share), so only the "
        f"{len(rows['accepted'])} answers that people called good count"
    )
    found = (
        f"beside the incumbent the candidate gains {gain:+.3f} ({percent(1 - 2 * error)} interval {low:+.3f} to "
        f"{high:+.3f}), where {basis}: it is {'' if passed else 'not surely '}as good within {margin}"
    )
    figures |= {
        "gain_over_logged": gain,
        "gain_over_logged_low": low,
        "gain_over_logged_high": high,
        "unseen[logged]": gain - low - incumbent.margin,
    }
    examples = sum(len(by_cluster(own, drop)) for own in rows.values())
    takes = f"a gain of about {gain - low - incumbent.margin:+.3f} on examples that scatter like these, or more of them"
    return Check(passed, [f"B{found[1:]}."], figures, examples, -incumbent.margin, found, takes)


def _logged_figures(pairs: Pairs) -> dict[str, float]:
    """Returns the number and the mean score of logged answers, in all and by the feedback on them."""
    if not pairs:
        return {"logged_examples": 0.0}
    figures = {"score_logged": mean_scores(pairs)[0], "logged_examples": float(len(pairs))}
    for kind, times in Counter(old.kind or "other" for old, _ in pairs).items():
        figures[f"score_logged[{kind}]"] = mean_scores([pair for pair in pairs if (pair[0].kind or "other") == kind])[0]
        figures[f"logged_examples[{kind}]"] = float(times)
    return figures


@dataclass(frozen=True)
class _Comparison:
    """Mean scores before and after, the interval of the gain, and whether that is above the minimum.

    Attributes:
        enough: the gain that is detected half of the time on examples with this variance.
        examples: the number of examples, each a cluster.
        repeated: the share of recent conversations whose question is among the examples, if questions count as often as
            they are asked.
    """

    before: float
    after: float
    low: float
    high: float
    passed: bool
    enough: float
    text: str
    examples: int
    repeated: float | None = None


def _compared(pairs: Pairs, settings: GateSettings, tries: int, conversations: int = 0) -> _Comparison:
    before, after = mean_scores(pairs)
    error = error_of_try(settings, tries)
    gains = _gains(pairs)
    asked = np.array([new.asked for _, new in pairs])
    repeated = float(asked.sum()) / conversations if conversations else 0.0
    if repeated < REPEATED:
        low, high = interval(gains, error)
    else:
        scores = np.array([[score(old), score(new)] for old, new in pairs])
        weighted = repeated * np.average(scores, 0, asked) + (1 - repeated) * np.array([before, after])
        before, after = map(float, weighted)
        others = interval(gains, error / 2)
        low, high = interval_as_asked(scores[:, 1] - scores[:, 0], asked, conversations, others, error / 2)
    passed = low > settings.minimum_gain
    text = (
        f"a gain of {after - before:+.3f} ({percent(1 - 2 * error)} interval {low:+.3f} to {high:+.3f}), "
        f"{'above' if passed else 'not surely above'} the minimum of {settings.minimum_gain:.3f}"
    )
    enough = settings.minimum_gain + after - before - low
    return _Comparison(
        before, after, low, high, passed, enough, text, len(gains), repeated if repeated >= REPEATED else None
    )


def _gains(pairs: Pairs) -> np.ndarray:
    """Returns the gain of each cluster."""
    return -np.array(list(by_cluster(pairs, drop).values()))
