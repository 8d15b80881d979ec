"""Shadow: is a candidate worse than the champion on the same questions, before it answers anybody?

Units. A conversation is one observation, the loss of the candidate: how good the champion's answer is less how good the
candidate's is, -1 to 1, as `retrain.release.shadow` judged both.

Unknown. Where the two differ and nothing could judge them, either may be right. Each side of the evidence takes these
for what speaks against it: they are no loss where harm is to be shown, and a whole loss where it is to be ruled out.
Who has no judge and no corrections is told so, and the shadow ends by its time.

Error. The evidence is an e-value that may be looked at after each conversation (sequential.py). A rollout with a shadow
has one error in all: a quarter each for the shadow and the canary, half for the watch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import fsum, log
from typing import Any, Literal

from retuned.consumers.settings import RolloutSettings
from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch.comparison import FALL, Comparison, span
from retuned.monitors.watch.sequential import log_e_value_of_mean

Verdict = Literal["advance", "hold", "roll_back"]
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Shadow:
    """What the conversations of a shadow came to.

    Attributes:
        comparison: None: none was looked at.
        scorers: how many each judged; `unknown`: nothing could.
    """

    comparison: Comparison | None
    scorers: Mapping[str, int]

    @property
    def judged(self) -> int:
        """Conversations of which it is known which answer is better."""
        return sum(count for scorer, count in self.scorers.items() if scorer != UNKNOWN)


def compare(rows: Sequence[Mapping[str, Any]], settings: WatchSettings) -> Shadow:
    """The paired comparison.

    Args:
        rows: of `shadow_scores`: scorer, champion, candidate; null where the scorer is `unknown`.
        settings: with the error that is the shadow's.
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
    found = Comparison(
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
    return Shadow(found, scorers)


def decide(shadow: Shadow, age: timedelta, rollout: RolloutSettings, watch: WatchSettings) -> tuple[Verdict, list[str]]:
    """The verdict, advance, hold or roll_back, with its reasons; as that of a canary (see `canary.decide`).

    Args:
        age: of the shadow.
        watch: with the error that is the shadow's.
    """
    points, found = f"{100 * watch.margin:g} points", shadow.comparison
    if found is not None and found.has_enough(watch) and found.worse >= 1:
        return "roll_back", [f"{found}: worse by more than {points}"]
    told = ", ".join(f"{scorer} {count:,}" for scorer, count in sorted(shadow.scorers.items()) if scorer != UNKNOWN)
    figures = [] if found is None else [f"{found} (conversations by scorer: {told or 'none'})"]
    if unknown := shadow.scorers.get(UNKNOWN, 0):
        figures.append(f"in {unknown:,} more the two differ, and nothing could tell which is better")
    missing = []
    if age < timedelta(seconds=rollout.minimum_seconds):
        missing.append(f"the shadow has lasted {span(age.total_seconds())} of {span(rollout.minimum_seconds)}")
    if found is None:
        missing.append("no answer of it came: it is asked by `retuned gateway`, or by apps that send shadow_answer")
    elif shadow.judged < rollout.minimum_answers:
        missing.append(f"{shadow.judged:,} of {rollout.minimum_answers:,} conversations are judged")
    if found is None or found.as_good < 1:
        missing.append(f"too little is judged to show that it is not {100 * FALL:.0f} points worse")
    if found is not None and found.has_enough(watch) and found.worse > 0:
        missing.append(f"it leans to worse by more than {points}")
    if not missing:
        return "advance", [f"not shown to be worse by more than {points}", *figures]
    if age >= timedelta(seconds=rollout.maximum_seconds):
        over = f"the time of the shadow is over ({span(rollout.maximum_seconds)}, rollout.maximum_seconds)"
        return "advance", [f"{over} without evidence enough that it is worse, and without power:", *missing, *figures]
    return "hold", [*missing, *figures]
