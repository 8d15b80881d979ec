"""When to retrain: a pure function of the evidence. It returns its decision with every reason."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import sqrt

from retuned.daemon.policy.payoff import UNRATED, Money, Payoff, Ratings, payoff
from retuned.daemon.settings import PolicySettings


@dataclass(frozen=True)
class Evidence:
    """What is known about one workload when the policy is asked.

    Attributes:
        drifted: outcome of the latest drift checks since the last run, newest first; None: too few events to tell.
        ratings_before: ratings of the first answers of the model in service.
        ratings_now: its latest ratings.
        new_corrections: corrections of the model in service that the last run did not have.
        untried_corrections: those of an earlier model too: what came in while that run trained, for example.
        corrections_to_learn: corrections that the champion's dataset did not have (without a champion: all).
        taken_back: the version that the last run made was promoted, and taken back from service.
        last_run_finished_at: when the latest run ended, whatever came of it.
        running: a run is under way, or in line.
        paused: why no run may start, where retraining is paused.
        scheduled: the configured time has come.
        asked_by: who asked by hand, if anyone.
        money: what answers earn and runs cost; None: nothing is known of it.
    """

    drifted: tuple[bool | None, ...] = ()
    ratings_before: Ratings = UNRATED
    ratings_now: Ratings = UNRATED
    new_corrections: int = 0
    untried_corrections: int = 0
    corrections_to_learn: int = 0
    taken_back: bool = False
    last_run_finished_at: datetime | None = None
    running: bool = False
    paused: str | None = None
    scheduled: bool = False
    asked_by: str | None = None
    money: Money | None = None


@dataclass(frozen=True)
class Decision:
    """Retrain or not, and why; with what it is expected to bring and to cost, where that can be told."""

    retrain: bool
    reasons: tuple[str, ...] = field(default=())
    payoff: Payoff | None = None


def decide(evidence: Evidence, settings: PolicySettings, now: datetime) -> Decision:
    """Retrain when there is a reason, something to learn, it pays, and nothing else is against it."""
    reasons = _reasons(evidence, settings)
    expected = _payoff(evidence, settings)
    if evidence.asked_by:
        # A person outranks the cool-down, the counts and the money; behind a run under way the request waits its turn.
        doubts = (f"though it does not pay: {expected}",) if expected and not expected.pays else ()
        return Decision(True, (f"asked for by {evidence.asked_by}", *reasons, *doubts), expected)
    if not settings.enabled:
        return Decision(False, ("the policy is switched off (policy.enabled)",), expected)
    if not reasons:
        return Decision(False, ("no reason to retrain",), expected)
    against = _against(evidence, settings, now)
    if expected and not expected.pays:
        against = (*against, f"but it does not pay: {expected}")
    if against:
        return Decision(False, (*reasons, *against), expected)
    return Decision(True, (*reasons, f"it pays: {expected}") if expected else reasons, expected)


def _reasons(evidence: Evidence, settings: PolicySettings) -> tuple[str, ...]:
    reasons = []
    latest = evidence.drifted[: settings.drift_checks]
    if len(latest) == settings.drift_checks and all(latest):
        checks = "the latest check" if len(latest) == 1 else f"each of the latest {len(latest)} checks"
        reasons.append(f"drift in {checks}")
    before, now = evidence.ratings_before, evidence.ratings_now
    if min(before.total, now.total) >= settings.minimum_ratings:
        drop = before.rate - now.rate
        # Beyond chance as well as beyond the configured drop: a one-sided two-proportion test at 1%.
        if drop >= settings.helpful_rate_drop and _drop_z(before, now) > 2.33:
            reasons.append(
                f"the helpful rate fell from {before.rate:.0%} ({before.total} ratings) "
                f"to {now.rate:.0%} ({now.total} ratings)"
            )
    if settings.new_corrections is not None and evidence.new_corrections >= settings.new_corrections:
        reasons.append(f"{evidence.new_corrections} new corrections")
    if evidence.scheduled:
        reasons.append("the scheduled time has come")
    return tuple(reasons)


def _payoff(evidence: Evidence, settings: PolicySettings) -> Payoff | None:
    if evidence.money is None:
        return None
    return payoff(
        evidence.money,
        evidence.ratings_now,
        evidence.corrections_to_learn,
        settings.payback_days,
        settings.minimum_ratings,
    )


def _against(evidence: Evidence, settings: PolicySettings, now: datetime) -> tuple[str, ...]:
    against = []
    if evidence.paused:
        against.append(f"but {evidence.paused}")
    if evidence.running:
        against.append("but a run is under way")
    if evidence.corrections_to_learn < settings.minimum_corrections:
        against.append(
            f"but there is too little to learn: {evidence.corrections_to_learn} new corrections "
            f"of {settings.minimum_corrections} needed"
        )
    elif not evidence.untried_corrections:
        against.append("but nothing new was learned since the last run")
    elif evidence.taken_back and evidence.untried_corrections < settings.minimum_corrections:
        # The gate passed what was learned from nearly the same, and production did not.
        against.append(
            f"but what the last run learned was taken back from service, and too little is new since: "
            f"{evidence.untried_corrections} corrections of {settings.minimum_corrections} needed"
        )
    if evidence.last_run_finished_at is not None:
        rested = evidence.last_run_finished_at + timedelta(seconds=settings.cooldown_seconds)
        if now < rested:
            against.append(f"but the cool-down lasts until {rested:%Y-%m-%d %H:%M:%S}")
    return tuple(against)


def _drop_z(before: Ratings, now: Ratings) -> float:
    """Standard score of the fall from one rate to another, with the pooled variance."""
    pooled = (before.helpful + now.helpful) / (before.total + now.total)
    deviation = sqrt(pooled * (1 - pooled) * (1 / before.total + 1 / now.total))
    return (before.rate - now.rate) / deviation if deviation else 0.0
