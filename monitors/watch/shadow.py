"""Shadow: compares a candidate with the champion on the same questions, before it answers any user.

Units. A conversation is one observation: the loss of the candidate, which is the score of the champion's answer minus
that of the candidate's, -1 to 1, as scored by `retrain.release.shadow`.

Unknown. If the two answers differ and no scorer can judge them, either may be right. Such a conversation counts against
both sides of the evidence: as no loss for evidence of harm, and as a full loss for evidence against harm. Without a
judge and corrections, the reasons name this, and the version takes its first step when the time is over.

Error. The evidence is an e-value, valid after each conversation (sequential.py). A rollout with a shadow has one error
in all: a quarter each for the shadow and the canary, half for the watch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import fsum, log
from typing import Any, Literal

from retuned.consumers.settings import RolloutSettings
from retuned.monitors.rates.sequential import log_e_value_of_mean
from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch.comparison import FALL, Comparison, span

Verdict = Literal["advance", "hold", "roll_back"]
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Shadow:
    """The result of a shadow.

    Attributes:
        comparison: None: there are no conversations.
        scorers: the number of conversations by scorer; `unknown`: no scorer could judge them.
    """

    comparison: Comparison | None
    scorers: Mapping[str, int]

    @property
    def judged(self) -> int:
        """The number of conversations that a scorer judged."""
        return sum(count for scorer, count in self.scorers.items() if scorer != UNKNOWN)


def compare(rows: Sequence[Mapping[str, Any]], settings: WatchSettings) -> Shadow:
    """Makes the paired comparison.

    Args:
        rows: rows of `shadow_scores`: scorer, champion, candidate; the last two are null if the scorer is `unknown`.
        settings: with the shadow's share of the error.
    """
    scorers: dict[str, int] = {}
    for row in rows:
        scorers[row["scorer"]] = scorers.get(row["scorer"], 0) + 1
    known = [(row["champion"], row["candidate"]) for row in rows if row["scorer"] != UNKNOWN]
    if not rows:
        return Shadow(None, scorers)
    losses, unknown = [champion - candidate for champion, candidate in known], scorers.get(UNKNOWN, 0)
    needed = log(1 / settings.false_rollback_rate)
    worse = log_e_value_of_mean([*losses, *[0.0] * unknown], settings.margin)
    as_good = log_e_value_of_mean([*[-loss for loss in losses], *[-1.0] * unknown], -FALL)
    comparison = Comparison(
        "shadow",
        "scorers",
        fsum(1 - champion for champion, _ in known),
        len(known),
        fsum(1 - candidate for _, candidate in known),
        len(known),
        worse=max(worse / needed, 0.0),
        as_good=max(as_good / needed, 0.0),
        against="same_question",
    )
    return Shadow(comparison, scorers)


def decide(
    shadow: Shadow, age: timedelta, rollout: RolloutSettings, watch: WatchSettings, champion_answers: int = 0
) -> tuple[Verdict, list[str]]:
    """Returns the verdict with its reasons, like `canary.decide`.

    A version that leans to harm when the time is over is rolled back, and so is one that gave no answer until then,
    though the champion gave enough: either nothing asks it, or its requests fail.

    Args:
        champion_answers: the champion's answers during the shadow.
        age: the age of the shadow.
        watch: with the shadow's share of the error.
    """
    points, comparison = f"{100 * watch.margin:g} points", shadow.comparison
    if comparison is not None and comparison.has_enough(watch) and comparison.worse >= 1:
        return "roll_back", [f"{comparison}: worse by more than {points}"]
    counts = ", ".join(f"{scorer} {count:,}" for scorer, count in sorted(shadow.scorers.items()) if scorer != UNKNOWN)
    figures = [] if comparison is None else [f"{comparison} (conversations by scorer: {counts or 'none'})"]
    if unknown := shadow.scorers.get(UNKNOWN, 0):
        figures.append(f"in {unknown:,} more the two differ, and no scorer could decide which is better")
    missing = []
    if age < timedelta(seconds=rollout.minimum_seconds):
        missing.append(f"the shadow has lasted {span(age.total_seconds())} of {span(rollout.minimum_seconds)}")
    if comparison is None:
        missing.append("it has given no answer yet: `retuned gateway`, or apps that send shadow_answer, have to ask it")
    elif shadow.judged < rollout.minimum_answers:
        missing.append(f"{shadow.judged:,} of {rollout.minimum_answers:,} conversations are judged")
    if comparison is None or comparison.as_good < 1:
        missing.append(f"too few are judged to show that it is not {100 * FALL:.0f} points worse")
    leans = comparison is not None and comparison.has_enough(watch) and comparison.worse > 0
    if leans:
        missing.append(f"it leans towards worse by more than {points}")
    if not missing:
        return "advance", [f"not shown to be worse by more than {points}", *figures]
    if age >= timedelta(seconds=rollout.maximum_seconds):
        if comparison is None and rollout.shadow * champion_answers >= rollout.minimum_answers:
            return "roll_back", [f"the champion gave {champion_answers:,} answers meanwhile", *missing]
        over = f"the time of the shadow is over ({span(rollout.maximum_seconds)}, rollout.maximum_seconds)"
        if leans:
            return "roll_back", [f"{over}, and it leans towards worse by more than {points}, without proof:", *figures]
        return "advance", [f"{over} without enough evidence that it is worse, and without power:", *missing, *figures]
    return "hold", [*missing, *figures]
