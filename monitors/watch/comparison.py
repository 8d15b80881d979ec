"""The decision of the watch: whether the share of bad answers rose with the new champion by more than the margin.

Units. Each vote counts once, and counts of votes are divided by their design effect (rates/estimate.py), which gives
the number of independent votes. For latency an hour is one observation, the share of its answers that were slow:
answers of one hour share a machine and its load.

References. If traffic is split, so that the former champion still answers, both are compared at the same time.
Otherwise the new champion is compared with the former one's answers before the promotion, in the same hours of the days
and of the weeks before. The weaker evidence of the two counts, so neither a weekday nor a change before the promotion
counts as harm. The variance between days, estimated from the weeks before, is part of the design effect.

Error. Each comparison is an e-value (sequential.py) if votes divided by their design effect behave like independent
votes. The design effect is estimated cautiously; tests/benchmarks/rates.py measures the remaining error. The weighted
mean of e-values is an e-value, however they depend on each other (Vovk and Wang, "E-values: calibration, combination
and applications", Annals of Statistics 49, 2021). It is never weaker than the best of them at its share of the error
(Bonferroni), and stronger where several agree.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np

from retuned.monitors.rates.estimate import difference
from retuned.monitors.rates.sequential import log_e_value
from retuned.monitors.rates.votes import Votes
from retuned.monitors.settings import WatchSettings

Verdict = Literal["keep", "roll_back", "go_on"]
Against = Literal["same_time", "same_question", "week", "day", "all"]
# The metrics and sources that are compared, with their fixed weights in the mean. The grounding scorer is not among
# them: it alarms more often on longer answers, invented or not.
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
"""The harm that a watch with power finds, as an increase of the share of bad answers."""
MISSED = 0.1
"""The chance that a canary with this harm advances before the time of the step is over."""
MINIMUM_HOURS = 6
"""The fewest hours on either side for latency to cause a rollback."""


@dataclass(frozen=True)
class Baseline:
    """The votes on the former champion, which the power of the watch is computed from.

    Attributes:
        bad, votes: bad votes and all votes of the whole reference.
        period: the length of the reference's period; 0: the same time.
        per_day: the votes a day on all traffic, when the watch began.
        share: the share of the traffic that the former champion answers at the same time.
        effect: the design effect of accounts.
        between_days: the variance of the rate between days; 0: the same time.
    """

    bad: float = 0.0
    votes: float = 0.0
    period: timedelta = timedelta(0)
    per_day: float = 0.0
    share: float = 0.0
    effect: float = 1.0
    between_days: float = 0.0


@dataclass(frozen=True)
class Counts:
    """Votes, or hours, of one comparison against one reference; may be fractional (see rates.votes.Votes).

    Attributes:
        bad_before, n_before: of the former champion, when the reference was as old as the watch is now.
        bad_after, n_after: of the watched version.
        effect: the design effect, including days.
        votes: the counted votes; None: hours.
        baseline: the whole reference.
    """

    against: Against
    bad_before: float
    n_before: float
    bad_after: float
    n_after: float
    effect: float = 1.0
    votes: Votes | None = None
    baseline: Baseline = Baseline()


@dataclass(frozen=True)
class Comparison:
    """The share of bad (unhelpful, invented or slow) answers by one source, before and after.

    Attributes:
        against: the reference with the weakest evidence of harm.
        bad_before, n_before, bad_after, n_after: see `Counts`; the same shares of rounded numbers.
        voters_before, voters_after: the number of accounts, else conversations, with votes; None: hours.
        low, high: the 95% interval of the difference of the shares, for a single look; None: an arm has no votes.
        worse: evidence that the share rose by more than the margin; 1 is enough by itself.
        as_good: evidence against each reference that the share did not rise by more than the margin; for a canary, that
            it rose by less than `FALL`. 1 is enough.
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
    voters_before: int | None = None
    voters_after: int | None = None
    low: float | None = None
    high: float | None = None

    def has_enough(self, settings: WatchSettings) -> bool:
        """Whether both sides have enough voters, or hours, to cause a rollback."""
        if self.metric == "latency":
            return min(self.n_before, self.n_after) >= MINIMUM_HOURS
        voters = (self.voters_before, self.n_before), (self.voters_after, self.n_after)
        return min(n if known is None else known for known, n in voters) >= settings.minimum_votes

    def __str__(self) -> str:
        before, after = (
            f"{bad / n:.0%} of {n:,} {self._unit(voters)}" if n else "none"
            for bad, n, voters in (
                (self.bad_before, self.n_before, self.voters_before),
                (self.bad_after, self.n_after, self.voters_after),
            )
        )
        text = f"{BAD[self.metric]} by {self.source}: {after}, {REFERENCE[self.against]} {before}"
        if self.low is None or self.high is None:
            return text
        return f"{text} (95% interval of the difference {100 * self.low:+.0f} to {100 * self.high:+.0f} points)"

    def _unit(self, voters: int | None) -> str:
        if self.metric in ("latency", "shadow"):
            return "hours" if self.metric == "latency" else "conversations"
        if voters is None:
            return "votes"
        return f"votes by {voters:,} accounts" if self.source == "user" else f"votes on {voters:,} conversations"


@dataclass(frozen=True)
class Power:
    """The power of the watch at the present rate of votes.

    Attributes:
        votes_per_day: votes a day of the comparison that finds a fall of 20 points first; 0: nobody votes.
        seconds: the time from the promotion until it finds the fall; None: more than a year.
    """

    votes_per_day: float
    seconds: float | None

    def within(self, settings: WatchSettings) -> bool:
        """Whether the watch finds the fall before it ends."""
        return self.seconds is not None and self.seconds <= settings.duration_seconds


def compare(metric: str, source: str, references: Sequence[Counts], settings: WatchSettings) -> Comparison:
    """Compares against each of the references; the weakest evidence counts."""
    evidence = [(_evidence(counts, settings.margin), counts) for counts in references]
    (worse, _), weakest = min(evidence, key=lambda item: item[0][0])
    return Comparison(
        metric,
        source,
        *_of_whole(weakest.bad_before, weakest.n_before),
        *_of_whole(weakest.bad_after, weakest.n_after),
        worse=max(worse / _needed(metric, source, settings), 0.0),
        as_good=max(min(good for (_, good), _ in evidence) / math.log(1 / settings.false_rollback_rate), 0.0),
        against=weakest.against,
        **_voters_and_interval(weakest.votes, weakest.baseline.between_days),
    )


def _of_whole(bad: float, n: float) -> tuple[float, int]:
    """Rounds the number of votes, which may be fractional, and keeps the share of bad ones."""
    return (bad * round(n) / n if n else 0.0), round(n)


def _voters_and_interval(votes: Votes | None, between_days: float = 0.0) -> dict[str, Any]:
    if votes is None:
        return {}
    before, after = votes.voters
    _, low, high = difference(votes, between_days) or (None, None, None)
    return {"voters_before": before, "voters_after": after, "low": low, "high": high}


def compare_steps(
    metric: str, source: str, steps: Sequence[Counts], settings: WatchSettings, votes: Votes | None = None
) -> Comparison:
    """Compares at the same time, over steps with different shares of the traffic.

    The evidence of the steps is multiplied (see canary.py). The counts are sums over all steps, for information only.
    Several steps have no interval together: their shares of the traffic and their days differ.

    Args:
        votes: the votes of all steps.
    """
    several = {"low": None, "high": None} if votes and len(steps) > 1 else {}
    worse = math.fsum(_evidence(counts, settings.margin)[0] for counts in steps)
    as_good = math.fsum(_evidence(counts, FALL)[1] for counts in steps)
    return Comparison(
        metric,
        source,
        *_of_whole(math.fsum(counts.bad_before for counts in steps), math.fsum(counts.n_before for counts in steps)),
        *_of_whole(math.fsum(counts.bad_after for counts in steps), math.fsum(counts.n_after for counts in steps)),
        worse=max(worse / _needed(metric, source, settings), 0.0),
        as_good=max(as_good / math.log(1 / (MISSED * COMPARED[metric, source])), 0.0),
        against="same_time",
        **_voters_and_interval(votes) | several,
    )


def decide(
    comparisons: Sequence[Comparison], age: timedelta, known: timedelta, power: Power, settings: WatchSettings
) -> tuple[Verdict, list[str]]:
    """Returns the verdict with its reasons.

    - `roll_back`: the evidence shows harm beyond the margin; also in a late check, up to twice the duration.
    - `keep`: `minimum_seconds` have passed and all votes, users' among them, show no such harm; or the duration has
      passed: without evidence of harm, a champion that the gate passed stays, however few have voted.
    - `go_on`: otherwise.

    Args:
        known: the part of the age whose events are stored; a backlog may hold votes against the version.
    """
    points = f"{100 * settings.margin:g} points"
    duration = timedelta(seconds=settings.duration_seconds)
    if (worse := shown_worse(comparisons, settings)) and age <= 2 * duration:
        return "roll_back", [f"{comparison}: worse by more than {points}" for comparison in worse]
    votes = [c for c in comparisons if c.metric != "latency" and c.n_before >= settings.minimum_votes]
    figures = [str(c) for c in comparisons if c.n_after] or ["no answer of this version was seen"]
    power_text = _describe(power, settings)
    if known >= duration:
        return "keep", ["the watch is over, and did not show that the version is worse", *figures, power_text]
    as_good = all(c.as_good >= 1 for c in votes) and any(c.metric == "helpful" for c in votes)
    if as_good and known >= timedelta(seconds=settings.minimum_seconds):
        return "keep", [f"shown to be within {points} of the champion before", *figures]
    return "go_on", [f"neither shown to be worse by more than {points} nor to be within them", power_text, *figures]


def known_age(since: datetime, now: datetime, known_until: datetime | None) -> timedelta:
    """Returns the part of an age whose events are stored.

    Args:
        known_until: all events until then are stored; None: until now.
    """
    return max(min(now, known_until or now) - since, timedelta())


def half_of_error(settings: WatchSettings) -> WatchSettings:
    """Returns the settings with half of the error.

    A rollout has one error in all, which the canary and the watch after it share. A canary and the shadow before it
    share the canary's half.
    """
    return settings.model_copy(update={"false_rollback_rate": settings.false_rollback_rate / 2})


def shown_worse(comparisons: Sequence[Comparison], settings: WatchSettings) -> list[Comparison]:
    """Returns the comparisons that show harm beyond the margin, the strongest evidence first; empty: not shown.

    They are the comparisons that are enough by themselves or, if there are none, those that are enough together.
    """
    enough = [c for c in comparisons if c.has_enough(settings) and c.worse > 0]
    enough.sort(key=lambda c: c.worse, reverse=True)
    # In logarithms, because evidence may overflow. Evidence in favour of the version adds nothing.
    shares = [math.log(COMPARED[c.metric, c.source]) + c.worse * _needed(c.metric, c.source, settings) for c in enough]
    if not shares or np.logaddexp.reduce(shares) < math.log(1 / settings.false_rollback_rate):
        return []
    return [c for c in enough if c.worse >= 1] or enough


def power(kinds: Mapping[tuple[str, str], Sequence[Counts]], elapsed: timedelta, settings: WatchSettings) -> Power:
    """Returns how soon the fastest comparison finds a fall of 20 points, at the present rates of votes."""
    powers = [
        Power(rate, seconds_to_find(kind, [counts.baseline for counts in references], rate, settings))
        for kind, references in kinds.items()
        if kind[0] != "latency"
        for rate in [votes_per_day(references, elapsed)]
    ]
    finite = [power for power in powers if power.seconds is not None]
    if finite:
        return min(finite, key=lambda power: power.seconds or 0.0)
    return max(powers, key=lambda power: power.votes_per_day, default=Power(0.0, None))


def votes_per_day(references: Sequence[Counts], elapsed: timedelta) -> float:
    """Returns the votes a day on all traffic: on the first day by the reference, then as observed."""
    if elapsed < timedelta(days=1):
        return max(counts.baseline.per_day for counts in references)
    votes = (counts.n_after + counts.n_before * (counts.against == "same_time") for counts in references)
    return max(votes) / (elapsed / timedelta(days=1))


def seconds_to_find(
    kind: tuple[str, str], baselines: Sequence[Baseline], per_day: float, settings: WatchSettings
) -> float | None:
    """Returns when a fall of 20 points is expected to be shown against each reference.

    Args:
        baselines: of each reference.
        per_day: votes a day on all traffic.

    Returns:
        Seconds after the promotion; None: more than a year.
    """
    days = np.geomspace(1 / 24, 366, 400)
    shown = np.ones(days.shape, dtype=bool)
    for baseline in baselines:
        period = baseline.period / timedelta(days=1)
        if baseline.share:
            before = per_day * baseline.share * days
        elif period:
            before = baseline.votes * np.minimum(days / period, 1.0)
        else:
            return None
        after = per_day * (1 - baseline.share) * days
        rate = baseline.bad / max(baseline.votes, 1)
        fallen = min(rate + FALL, 1.0)
        enough_votes = np.minimum(before, after) >= settings.minimum_votes
        spread = 0.0
        if baseline.between_days:
            independent = 1 / np.maximum(before, 1) + 1 / np.maximum(after, 1)
            blocks = 1 / np.clip(period, 1, np.maximum(days, 1)) + 1 / np.maximum(days, 1)
            spread = baseline.between_days / max(rate * (1 - rate), 0.01) * blocks / independent
        before, after = (votes / (baseline.effect + spread) for votes in (before, after))
        evidence = log_e_value(rate * before, before, fallen * after, after, settings.margin)
        shown &= enough_votes & (evidence >= _needed(*kind, settings))
    return float(days[shown.argmax()]) * 86_400 if shown.any() else None


def _evidence(counts: Counts, margin: float) -> tuple[float, float]:
    """Returns natural logarithms of the evidence that the share rose by more than the margin, and that it did not."""
    bad_before, n_before, bad_after, n_after = (
        votes / counts.effect for votes in (counts.bad_before, counts.n_before, counts.bad_after, counts.n_after)
    )
    worse = log_e_value(bad_before, n_before, bad_after, n_after, margin)
    as_good = log_e_value(n_before - bad_before, n_before, n_after - bad_after, n_after, -margin)
    return float(worse), float(as_good)


def _needed(metric: str, source: str, settings: WatchSettings) -> float:
    """Returns the logarithm of the evidence that is enough by itself."""
    return math.log(1 / (settings.false_rollback_rate * COMPARED[metric, source]))


def _describe(power: Power, settings: WatchSettings) -> str:
    if not power.votes_per_day:
        return "nobody votes on the answers: the watch can find nothing but slow ones"
    per_day = f"{power.votes_per_day:,.0f}" if power.votes_per_day >= 100 else f"{power.votes_per_day:.3g}"
    rate = f"at {per_day} votes a day a fall of {100 * FALL:.0f} points"
    if power.within(settings):
        return f"{rate} shows after {span(power.seconds or 0.0)}"
    takes = "would take more than a year" if power.seconds is None else f"would take {span(power.seconds)}"
    return (
        f"{rate} {takes} to show, and the watch ends after {span(settings.duration_seconds)} "
        "(watch.duration_seconds): it would not be found"
    )


def span(seconds: float) -> str:
    """Formats a length of time for a person."""
    days = seconds / 86_400
    return f"{days:.0f} days" if days >= 2 else f"{seconds / 3600:.0f} hours" if seconds >= 7200 else f"{seconds:.0f} s"
