"""The decision of the watch: is the share of bad answers higher with the new champion, by more than the margin?

Units. A vote counts by who gave it: an account (else a conversation) is one observation, the mean of its votes. Slow
answers count by the hour, which is one observation, the share of its answers that were slow: answers of one hour share
a machine and its troubles.

References. Where traffic is split, so that the champion before still answers, both are compared at the same time.
Otherwise with what it answered before the promotion, in the same hours of the days and of the weeks before. The
weaker evidence of the two counts: a weekday is no harm, nor is what had changed before the promotion.

Error. Each comparison is an e-value (sequential.py), and so is their weighted mean, however they depend on each other
(Vovk and Wang, "E-values: calibration, combination and applications", Annals of Statistics 49, 2021). It is never less
than the best of them at its share of the error (Bonferroni), and more where several agree.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import numpy as np

from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch.sequential import log_e_value

Verdict = Literal["keep", "roll_back", "go_on"]
Against = Literal["same_time", "same_question", "week", "day", "all"]
# What is compared, by whose word, and its weight in the mean, settled beforehand. The grounding scorer is not among
# them: it alarms more of longer answers, whether they are invented or not.
COMPARED = {
    ("helpful", "user"): 0.5,
    ("hallucination", "user"): 0.1,
    ("hallucination", "expert"): 0.1,
    ("hallucination", "judge"): 0.1,
    ("hallucination", "app"): 0.1,
    ("latency", "app"): 0.1,
}
BAD = {"helpful": "unhelpful", "hallucination": "invented", "latency": "slow", "shadow": "bad"}
REFERENCE = {
    "same_time": "at the same time",
    "same_question": "to the same questions",
    "week": "in the same hours of the week before",
    "day": "in the same hours of the day before",
    "all": "before",
}
FALL = 0.2
"""The harm that a watch with power finds: so many points more of bad answers."""
MISSED = 0.1
"""Chance that a canary with that harm takes a step before the time of the step is over."""
MINIMUM_HOURS = 6
"""With fewer hours on either side, slowness takes nothing back."""


@dataclass(frozen=True)
class Counts:
    """Observations of one comparison against one reference. An observation is a share, so sums are no whole numbers.

    Attributes:
        bad_before, n_before: of the champion before, as it stood when the reference was as old as the watch is now.
        bad_after, n_after: of the version that is watched.
        bad_known, known: of the whole reference, which the champion before comes to in the end.
        period: of the reference, after which it is complete; 0: the same time.
        per_day: how many observations all traffic gives a day, as known when the watch began.
        share: of the traffic, that the champion before answers at the same time.
    """

    against: Against
    bad_before: float
    n_before: int
    bad_after: float
    n_after: int
    bad_known: float = 0.0
    known: int = 0
    period: timedelta = timedelta(0)
    per_day: float = 0.0
    share: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """The share of bad answers by one source: unhelpful, invented or slow.

    Attributes:
        against: the reference with the least evidence of harm.
        bad_before, n_before, bad_after, n_after: see `Counts`.
        worse: evidence that the share rose by more than the margin; from 1 on it is enough by itself.
        as_good: evidence that it did not, against each reference; of a canary, that it rose by less than `FALL`. From 1
            on it is enough.
    """

    metric: str
    source: str
    bad_before: float
    n_before: int
    bad_after: float
    n_after: int
    worse: float
    as_good: float
    against: Against = "all"

    def has_enough(self, settings: WatchSettings) -> bool:
        """Whether either side has so many observations that it may take a version back."""
        least = MINIMUM_HOURS if self.metric == "latency" else settings.minimum_votes
        return min(self.n_before, self.n_after) >= least

    def __str__(self) -> str:
        unit = "hours" if self.metric == "latency" else "voters" if self.source == "user" else "conversations"
        before, after = (
            f"{bad / n:.0%} of {n:,}" if n else "of none"
            for bad, n in ((self.bad_before, self.n_before), (self.bad_after, self.n_after))
        )
        return f"{BAD[self.metric]} by {self.source}: {after} {unit}, {REFERENCE[self.against]} {before}"


@dataclass(frozen=True)
class Power:
    """What the watch can find at the present rate of votes.

    Attributes:
        votes_per_day: observations a day, of what finds a fall of 20 points soonest; 0: nobody votes.
        seconds: how long after the promotion that fall shows; None: not within a year.
    """

    votes_per_day: float
    seconds: float | None

    def within(self, settings: WatchSettings) -> bool:
        """Whether the fall shows before the watch ends."""
        return self.seconds is not None and self.seconds <= settings.duration_seconds


def compare(metric: str, source: str, references: Sequence[Counts], settings: WatchSettings) -> Comparison:
    """One comparison against each of its references."""
    judged = [(_evidence(counts, settings.margin), counts) for counts in references]
    (worse, _), found = min(judged, key=lambda each: each[0][0])
    return Comparison(
        metric,
        source,
        found.bad_before,
        found.n_before,
        found.bad_after,
        found.n_after,
        worse=max(worse / _needed(metric, source, settings), 0.0),
        as_good=max(min(good for (_, good), _ in judged) / math.log(1 / settings.false_rollback_rate), 0.0),
        against=found.against,
    )


def compare_steps(metric: str, source: str, steps: Sequence[Counts], settings: WatchSettings) -> Comparison:
    """One comparison at the same time, over steps in which the shares of the traffic differ.

    Evidence of the steps is multiplied (see canary.py). The counts are those of all steps, and for information.
    """
    worse = math.fsum(_evidence(counts, settings.margin)[0] for counts in steps)
    as_good = math.fsum(_evidence(counts, FALL)[1] for counts in steps)
    return Comparison(
        metric,
        source,
        math.fsum(counts.bad_before for counts in steps),
        sum(counts.n_before for counts in steps),
        math.fsum(counts.bad_after for counts in steps),
        sum(counts.n_after for counts in steps),
        worse=max(worse / _needed(metric, source, settings), 0.0),
        as_good=max(as_good / math.log(1 / (MISSED * COMPARED[metric, source])), 0.0),
        against="same_time",
    )


def decide(
    comparisons: Sequence[Comparison], age: timedelta, power: Power, settings: WatchSettings
) -> tuple[Verdict, list[str]]:
    """The verdict, with its reasons.

    `roll_back` when the evidence shows harm beyond the margin, also in a look that comes late, up to once more the
    duration. `keep` when `minimum_seconds` have passed and all votes show that there is none, users' among them, or
    when the time is over: without evidence of harm, a champion that the gate passed stays, however few have voted.
    """
    points = f"{100 * settings.margin:g} points"
    duration = timedelta(seconds=settings.duration_seconds)
    if (told := shown_worse(comparisons, settings)) and age <= 2 * duration:
        return "roll_back", [f"{comparison}: worse by more than {points}" for comparison in told]
    votes = [c for c in comparisons if c.metric != "latency" and c.n_before >= settings.minimum_votes]
    figures = [str(c) for c in comparisons if c.n_after] or ["no answer of this version was seen"]
    can_find = _sentence(power, settings)
    if age >= duration:
        return "keep", ["the watch is over, and did not show in its time that it is worse", *figures, can_find]
    as_good = all(c.as_good >= 1 for c in votes) and any(c.metric == "helpful" for c in votes)
    if as_good and age >= timedelta(seconds=settings.minimum_seconds):
        return "keep", [f"shown to be within {points} of the champion before", *figures]
    return "go_on", [f"neither shown to be worse by more than {points} nor to be within them", can_find, *figures]


def half_of_error(settings: WatchSettings) -> WatchSettings:
    """The settings of a canary, and of the watch over what was one: a rollout has one error in all. Of a canary that
    was asked in shadow before, half of these once more: the other half is the shadow's."""
    return settings.model_copy(update={"false_rollback_rate": settings.false_rollback_rate / 2})


def shown_worse(comparisons: Sequence[Comparison], settings: WatchSettings) -> list[Comparison]:
    """What shows that the version is worse by more than the margin, the most evidence first; empty: all is too little.

    It is those that are enough by themselves or, where none is, those that are enough together.
    """
    enough = [c for c in comparisons if c.has_enough(settings) and c.worse > 0]
    enough.sort(key=lambda c: c.worse, reverse=True)
    # In logarithms, as evidence may be any number of digits long. What speaks for the version adds nothing.
    shares = [math.log(COMPARED[c.metric, c.source]) + c.worse * _needed(c.metric, c.source, settings) for c in enough]
    if not shares or np.logaddexp.reduce(shares) < math.log(1 / settings.false_rollback_rate):
        return []
    return [c for c in enough if c.worse >= 1] or enough


def power(kinds: Mapping[tuple[str, str], Sequence[Counts]], elapsed: timedelta, settings: WatchSettings) -> Power:
    """How long it takes to find a fall of 20 points in what is found soonest, at the present rates of votes."""
    found = [
        Power(rate, seconds_to_find(kind, references, rate, settings))
        for kind, references in kinds.items()
        if kind[0] != "latency"
        for rate in [votes_per_day(references, elapsed)]
    ]
    known = [one for one in found if one.seconds is not None]
    if known:
        return min(known, key=lambda one: one.seconds or 0.0)
    return max(found, key=lambda one: one.votes_per_day, default=Power(0.0, None))


def votes_per_day(references: Sequence[Counts], elapsed: timedelta) -> float:
    """Observations a day: on the first day as known when the watch began, then as they come."""
    if elapsed < timedelta(days=1):
        return max(counts.per_day for counts in references)
    return max(counts.n_after / (1 - counts.share) for counts in references) / (elapsed / timedelta(days=1))


def seconds_to_find(
    kind: tuple[str, str], references: Sequence[Counts], per_day: float, settings: WatchSettings
) -> float | None:
    """When the expected counts of a fall of 20 points are evidence enough against each reference.

    Args:
        per_day: observations of all traffic a day.

    Returns:
        seconds after the promotion; None: not within a year.
    """
    days = np.geomspace(1 / 24, 366, 400)
    shown = np.ones(days.shape, dtype=bool)
    for counts in references:
        if counts.share:
            before = per_day * counts.share * days
        elif counts.period:
            before = counts.known * np.minimum(days / (counts.period / timedelta(days=1)), 1.0)
        else:
            return None
        after = per_day * (1 - counts.share) * days
        rate = counts.bad_known / max(counts.known, 1)
        fallen = min(rate + FALL, 1.0)
        least = np.minimum(before, after) >= settings.minimum_votes
        evidence = log_e_value(rate * before, before, fallen * after, after, settings.margin)
        shown &= least & (evidence >= _needed(*kind, settings))
    return float(days[shown.argmax()]) * 86_400 if shown.any() else None


def _evidence(counts: Counts, margin: float) -> tuple[float, float]:
    """Natural logarithms of the evidence that the share rose by more than the margin, and that it did not."""
    bad_before, n_before, bad_after, n_after = counts.bad_before, counts.n_before, counts.bad_after, counts.n_after
    worse = log_e_value(bad_before, n_before, bad_after, n_after, margin)
    as_good = log_e_value(n_before - bad_before, n_before, n_after - bad_after, n_after, -margin)
    return float(worse), float(as_good)


def _needed(metric: str, source: str, settings: WatchSettings) -> float:
    """Logarithm of the evidence that is enough if nothing else speaks against the version."""
    return math.log(1 / (settings.false_rollback_rate * COMPARED[metric, source]))


def _sentence(power: Power, settings: WatchSettings) -> str:
    if not power.votes_per_day:
        return "nobody votes on the answers: the watch can find nothing but slow ones"
    rate = f"at {power.votes_per_day:,.3g} votes a day a fall of {100 * FALL:.0f} points"
    if power.within(settings):
        return f"{rate} shows after {span(power.seconds or 0.0)}"
    takes = "would take more than a year" if power.seconds is None else f"would take {span(power.seconds)}"
    return (
        f"{rate} {takes} to show, and the watch ends after {span(settings.duration_seconds)} "
        "(watch.duration_seconds): it would not be found"
    )


def span(seconds: float) -> str:
    """A length of time, for a person."""
    days = seconds / 86_400
    return f"{days:.0f} days" if days >= 2 else f"{seconds / 3600:.0f} hours" if seconds >= 7200 else f"{seconds:.0f} s"
