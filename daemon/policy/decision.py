"""When to retrain: a pure function of the evidence. It returns its decision with every reason."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from retuned.daemon.policy.fall import find_fall
from retuned.daemon.policy.payoff import Money, Payoff, payoff
from retuned.daemon.policy.ratings import Ratings, latest
from retuned.daemon.settings import PolicySettings

LONGEST_WAIT = timedelta(days=7)
"""The cool-down doubles with each run that is not promoted, up to this."""
MOST_NEEDED = 16
"""So do the new corrections that it takes, from policy.minimum_corrections up to so many times of it."""


@dataclass(frozen=True)
class Evidence:
    """What is known about one workload when the policy is asked.

    Attributes:
        drifted: outcome of the latest drift checks since the last run and the last change of what serves, newest first;
            empty while two versions answer. None: too few events to tell.
        ratings: those of the model in service, by period, the oldest first.
        new_corrections: corrections of the model in service that the last run did not have.
        untried_corrections: those of an earlier model too: what came in while that run trained, for example.
        corrections_to_learn: corrections that the champion's dataset did not have (without a champion: all).
        taken_back: the version that the last run made was promoted, and taken back from service.
        refused_runs: so many were not promoted since the last promotion, or run that was asked for by hand.
        last_run_finished_at: when the latest run ended, whatever came of it.
        running: a run is under way, or in line.
        paused: why no run may start, where retraining is paused.
        scheduled: the configured time has come.
        asked_by: who asked by hand, if anyone.
        money: what answers earn and runs cost; None: nothing is known of it.
    """

    drifted: tuple[bool | None, ...] = ()
    ratings: tuple[Ratings, ...] = ()
    new_corrections: int = 0
    untried_corrections: int = 0
    corrections_to_learn: int = 0
    taken_back: bool = False
    refused_runs: int = 0
    last_run_finished_at: datetime | None = None
    running: bool = False
    paused: str | None = None
    scheduled: bool = False
    asked_by: str | None = None
    money: Money | None = None


@dataclass(frozen=True)
class Decision:
    """Retrain or not, and why.

    Attributes:
        payoff: what it is expected to bring and to cost; None: not known.
        lacks_labels: there is a reason, and too little new to learn from.
    """

    retrain: bool
    reasons: tuple[str, ...] = field(default=())
    payoff: Payoff | None = None
    lacks_labels: bool = False


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
        why = "a run is under way, or in line" if evidence.running else "no reason to retrain"
        return Decision(False, (why,), expected)
    lacking = _lacking(evidence, settings)
    against = (*_against(evidence, settings, now), *lacking)
    if expected and not expected.pays:
        against = (*against, f"but it does not pay: {expected}")
    if against:
        # What a run under way learns from is not tried yet.
        lacks_labels = bool(lacking) and not evidence.running
        return Decision(False, (*reasons, *against), expected, lacks_labels)
    return Decision(True, (*reasons, f"it pays: {expected}") if expected else reasons, expected)


def _reasons(evidence: Evidence, settings: PolicySettings) -> tuple[str, ...]:
    reasons = []
    latest = evidence.drifted[: settings.drift_checks]
    if len(latest) == settings.drift_checks and all(latest):
        checks = "the latest check" if len(latest) == 1 else f"each of the latest {len(latest)} checks"
        reasons.append(f"drift in {checks}")
    fall = find_fall(evidence.ratings, settings.helpful_rate_drop, settings.minimum_ratings)
    if fall is not None:
        reasons.append(
            f"the helpful rate fell from {fall.before.rate:.0%} ({fall.before.total} ratings) "
            f"to {fall.now.rate:.0%} ({fall.now.total} ratings)"
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
        latest(evidence.ratings, settings.minimum_ratings),
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
    if evidence.last_run_finished_at is not None:
        wait = timedelta(seconds=settings.cooldown_seconds)
        rested = evidence.last_run_finished_at + min(wait * 2**evidence.refused_runs, max(wait, LONGEST_WAIT))
        if now < rested:
            after = f", after {_refused(evidence)}" if evidence.refused_runs else ""
            against.append(f"but the cool-down lasts until {rested:%Y-%m-%d %H:%M:%S}{after}")
    return tuple(against)


def _lacking(evidence: Evidence, settings: PolicySettings) -> tuple[str, ...]:
    """What is missing to learn from; nothing: there is enough."""
    if evidence.corrections_to_learn < settings.minimum_corrections:
        return (
            f"but there is too little to learn: {evidence.corrections_to_learn} new corrections "
            f"of {settings.minimum_corrections} needed",
        )
    if not evidence.untried_corrections:
        return ("but nothing new was learned since the last run",)
    needed = settings.minimum_corrections * min(2 ** max(evidence.refused_runs - 1, 0), MOST_NEEDED)
    if evidence.untried_corrections >= needed:
        return ()
    few = f"{evidence.untried_corrections} corrections of {needed} needed"
    if evidence.taken_back:
        # The gate passed what was learned from nearly the same, and production did not.
        return (f"but what the last run learned was taken back from service, and too little is new since: {few}",)
    if evidence.refused_runs:
        return (
            f"but {_refused(evidence)}, and too little is new since: {few} "
            "(each candidate that is tried on the same holdout makes its verdict worth less)",
        )
    return ()


def _refused(evidence: Evidence) -> str:
    runs = "the last run was" if evidence.refused_runs == 1 else f"the last {evidence.refused_runs} runs were"
    return f"{runs} not promoted"
