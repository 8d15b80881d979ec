"""The policy: decides when to retrain, as a pure function of the evidence, and returns all reasons."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from retuned.consumers.common.times import shown
from retuned.daemon.policy.fall import find_fall
from retuned.daemon.policy.payoff import Money, Payoff, payoff
from retuned.daemon.policy.ratings import Ratings, latest
from retuned.daemon.settings import PolicySettings
from retuned.retrain.queue import Cause

LONGEST_WAIT = timedelta(days=7)
"""Longest cool-down. It doubles with each run that is not promoted, or fails."""
_MOST_DOUBLINGS = 60
"""More make any cool-down longer than the longest one, and their product too large for a time."""
MOST_NEEDED = 16
"""Most new corrections that a run needs, as a multiple of policy.minimum_corrections. They double in the same way."""


@dataclass(frozen=True)
class Evidence:
    """The evidence about one workload.

    Attributes:
        drifted: results of the drift checks since the last run and the last change of version, newest first; empty
            while two versions answer. None: too few events for a result.
        ratings: of the model in service, by period, oldest first.
        new_corrections: corrections of the model in service that the last run did not have. A run that failed, or that
            only an erasure asked for and that was cancelled, had none.
        untried_corrections: the same, with corrections of earlier models, such as those from during the last run.
        corrections_to_learn: corrections that the champion's dataset did not have (without a champion: all).
        taken_back: whether the last run's version was promoted and taken back.
        refused_runs: runs without a promotion, since the last promotion or run by hand.
        failed_runs: runs that failed, since the last one that was decided or asked for by hand.
        last_run_finished_at: when the latest run ended, with any result.
        running: whether a run is under way or queued.
        paused: the reason of a pause; None: retraining is not paused.
        retrain_cron: `schedule.retrain_cron`.
        scheduled: whether a time of it has come that is not settled.
        erased_at: when rows that the champion learned were erased, unless it may stay in service; None: none were.
        erased_left: that champion has left service, and no retraining was decided since.
        erased_answer: what becomes of a version without these rows that may replace it; None: there is none yet.
        asked_by: who requested a run by hand; None: nobody.
        money: gains of answers and costs of runs; None: unknown.
    """

    drifted: tuple[bool | None, ...] = ()
    ratings: tuple[Ratings, ...] = ()
    new_corrections: int = 0
    untried_corrections: int = 0
    corrections_to_learn: int = 0
    taken_back: bool = False
    refused_runs: int = 0
    failed_runs: int = 0
    last_run_finished_at: datetime | None = None
    running: bool = False
    paused: str | None = None
    retrain_cron: str | None = None
    scheduled: bool = False
    erased_at: datetime | None = None
    erased_left: bool = False
    erased_answer: str | None = None
    asked_by: str | None = None
    money: Money | None = None


@dataclass(frozen=True)
class Decision:
    """Whether to retrain, and why.

    Attributes:
        payoff: expected gain and cost of a run; None: unknown.
        lacks_labels: whether there is a reason to retrain, but too little to learn from.
        postponed: whether a run is only to wait: for a pause, a run under way or a cool-down to end.
        cause: what asks for the run; an erasure only where there is no other reason.
        run: the id of the run, once it is queued.
    """

    retrain: bool
    reasons: tuple[str, ...] = field(default=())
    payoff: Payoff | None = None
    lacks_labels: bool = False
    postponed: bool = False
    cause: Cause = "policy"
    run: str | None = None


def decide(evidence: Evidence, settings: PolicySettings, now: datetime) -> Decision:
    """Decides to retrain if there is a reason, something to learn, a run pays, and nothing else holds it back."""
    reasons = _reasons(evidence, settings)
    expected = _payoff(evidence, settings)
    if evidence.asked_by:
        # A request by hand overrides cool-down, counts and money; it waits for a run under way.
        doubts = (f"though it does not pay: {expected}",) if expected and not expected.pays else ()
        return Decision(True, (f"asked for by {evidence.asked_by}", *reasons, *doubts), expected, cause="person")
    if evidence.erased_at:
        # What people took back has to go, whatever that costs and whether the policy is on or off.
        which = "the champion before, which left service," if evidence.erased_left else "the champion"
        cause: Cause = "policy" if reasons else "erasure"
        reasons = (f"{which} learned rows that were erased on {evidence.erased_at:%Y-%m-%d}", *reasons)
        tried = evidence.last_run_finished_at is not None and evidence.last_run_finished_at > evidence.erased_at
        against = _against(evidence if tried else replace(evidence, last_run_finished_at=None), settings, now)
        if evidence.erased_answer:
            # A further run would only supersede the version that is about to replace the champion.
            against = (f"but {evidence.erased_answer}", *against)
        return Decision(not against, (*reasons, *against), expected, postponed=bool(against), cause=cause)
    if not settings.enabled:
        return Decision(False, ("the policy is switched off (policy.enabled)",), expected)
    if not reasons:
        why = "a run is under way or queued" if evidence.running else "no reason to retrain"
        return Decision(False, (why,), expected)
    lacking, waits = _lacking(evidence, settings), _against(evidence, settings, now)
    doubts = (f"but it does not pay: {expected}",) if expected and not expected.pays else ()
    if against := (*waits, *lacking, *doubts):
        # While a run is under way, its corrections still count as untried.
        lacks_labels = bool(lacking) and not evidence.running
        return Decision(False, (*reasons, *against), expected, lacks_labels, postponed=against == waits)
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
        # Failed runs count, too: what makes one fail may last, and each try costs hours.
        unsuccessful = evidence.refused_runs + evidence.failed_runs
        rested = evidence.last_run_finished_at + _wait(settings.cooldown_seconds, unsuccessful)
        if now < rested:
            after = f", after {_unsuccessful(evidence)}" if unsuccessful else ""
            against.append(f"but the cool-down lasts until {shown(rested)}{after}")
    return tuple(against)


def _wait(seconds: float, unsuccessful_runs: int) -> timedelta:
    doubled = seconds * 2.0 ** min(unsuccessful_runs, _MOST_DOUBLINGS)
    return timedelta(seconds=min(doubled, max(seconds, LONGEST_WAIT.total_seconds())))


def _lacking(evidence: Evidence, settings: PolicySettings) -> tuple[str, ...]:
    """Returns the reason why there is too little to learn; empty if there is enough."""
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
        # A run on nearly the same corrections would pass the gate again, and fail in production again.
        return (f"but the last run's version was taken back from service, and too little is new since: {few}",)
    if evidence.refused_runs:
        return (
            f"but {_refused(evidence)}, and too little is new since: {few} "
            "(each further candidate on the same holdout weakens its verdict)",
        )
    return ()


def _unsuccessful(evidence: Evidence) -> str:
    failed = evidence.failed_runs
    if not evidence.refused_runs:
        return "the last run failed" if failed == 1 else f"the last {failed} runs failed"
    return _refused(evidence) + (f", and {failed} failed since" if failed else "")


def _refused(evidence: Evidence) -> str:
    runs = "the last run was" if evidence.refused_runs == 1 else f"the last {evidence.refused_runs} runs were"
    return f"{runs} not promoted"
