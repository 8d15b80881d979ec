"""What of a workload needs a person: pure functions from its facts to a level, a sentence, its evidence and a link."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal
from urllib.parse import quote

from retuned.daemon.console.overview import COMPARED_DAYS, Facts, Rate
from retuned.daemon.roles import Role
from retuned.monitors.quality.figure import ALL_MODELS

Level = Literal["bad", "warn", "busy", "quiet"]
RECENT = timedelta(days=7)
UNRATED_ANSWERS = 50
"""A workload with so many answers in a window and no rating is called unrated."""
INVENTED = 0.1
"""A share of invented answers above this, by its whole interval, needs a person."""


@dataclass(frozen=True)
class Action:
    """A link to where a person acts who has at least a role."""

    text: str
    path: str
    least: Role = "viewer"


@dataclass(frozen=True)
class Finding:
    """A fact that a person should know.

    Attributes:
        sentence: the fact; `evidence`: what supports it; both plain text.
        least: the least role that can do something about it.
    """

    level: Level
    sentence: str
    evidence: str = ""
    action: Action | None = None
    least: Role = "viewer"


@dataclass(frozen=True)
class State:
    """The state of a workload in words.

    Attributes:
        finding: the weightiest, at `place` in the order of `CHECKS`.
        change: helpful rate less that of a week before, -1 to 1; None: unknown.
        is_sure: whether the 95% intervals of both lie apart.
    """

    facts: Facts
    finding: Finding
    place: int
    change: float | None
    is_sure: bool

    @property
    def needs_person(self) -> bool:
        """Whether it is listed first."""
        return self.finding.level in ("bad", "warn")


def state_of(facts: Facts, now: datetime) -> State:
    """Returns the state of a workload: the first finding of `CHECKS`, else that it is quiet."""
    before = _week_before(facts, now.date())
    change = facts.helpful.value - before.value if facts.helpful and before else None
    is_sure = bool(facts.helpful and before and (facts.helpful.high < before.low or before.high < facts.helpful.low))
    for place, check in enumerate(CHECKS):
        if (finding := check(facts, now)) is not None:
            return State(facts, finding, place, change, is_sure)
    return State(facts, Finding("quiet", "Quiet", "", _teach(facts)), len(CHECKS), change, is_sure)


def ranked(states: Iterable[State]) -> list[State]:
    """Returns the states with the worst first; among equals the one whose change touches most answers."""
    return sorted(
        states, key=lambda one: (one.place, -one.facts.answers * max(-(one.change or 0), 0.01), one.facts.workload)
    )


def _fell(facts: Facts, now: datetime) -> Finding | None:
    """The interval of the helpful rate lies below that of a week before."""
    rate, before = facts.helpful, _week_before(facts, now.date())
    if rate is None or before is None or rate.high >= before.low or facts.fell_at is None:
        return None
    ratings = f"{_count(rate.n, 'rating')}, 95% interval {rate.low:.0%} to {rate.high:.0%}."
    return Finding(
        "bad",
        f"Helpful {rate.value:.0%}, was {before.value:.0%}; fell {_at(facts.fell_at, now)}",
        f"{ratings} {_news(facts)}".rstrip(),
        _act(facts),
    )


def _invents(facts: Facts, _: datetime) -> Finding | None:
    rate = facts.hallucination
    if rate is None or rate.low <= INVENTED:
        return None
    return Finding(
        "bad",
        f"{rate.value:.0%} of the answers are invented",
        f"95% interval {rate.low:.0%} to {rate.high:.0%}, from {rate.n:,}. {_news(facts)}".rstrip(),
        _act(facts),
    )


def _drifted(facts: Facts, now: datetime) -> Finding | None:
    if not facts.drift or not facts.drift["drifted"]:
        return None
    return Finding("bad", f"Drift found {_at(facts.drift['created_at'], now)}", _news(facts), _act(facts))


def _rolled_back(facts: Facts, now: datetime) -> Finding | None:
    service = facts.service or {}
    if service.get("event") not in ("rolled_back", "canary_rolled_back") or now - service["changed_at"] >= RECENT:
        return None
    return Finding(
        "bad",
        f"A version was rolled back {_at(service['changed_at'], now)}",
        service["change_reason"],
        Action("See why", _page(facts)),
    )


def _failed(facts: Facts, _: datetime) -> Finding | None:
    if not facts.run or facts.run["state"] != "failed":
        return None
    return Finding("bad", "The latest retraining failed", facts.run["error"] or "", Action("See the run", _page(facts)))


def _refused(facts: Facts, now: datetime) -> Finding | None:
    """The latest run brought nothing into service, and what it would take can be given by a person."""
    run, service = facts.run or {}, facts.service or {}
    if run.get("finished_at") is None or now - run["finished_at"] >= RECENT:
        return None
    if run["version"] is not None and run["version"] in (service.get("champion"), service.get("canary")):
        return None  # a person put it into service
    action = _teach(facts) or Action("See why", f"{_page(facts)}#decisions")
    if run.get("refusal"):
        return Finding("warn", f"The gate refused {run['version']}", run["refusal"], action)
    if run["state"] == "refused":
        return Finding("warn", "The latest retraining was refused", run["error"] or "", action)
    return None


def _waits_for_approval(facts: Facts, _: datetime) -> Finding | None:
    if not facts.approvals:
        return None
    waiting = facts.approvals[0]
    what = "A dataset" if waiting["kind"] == "dataset" else "A better version"
    return Finding(
        "warn",
        f"{what} waits for approval",
        f"until {waiting['expires_at']:%-d %b %H:%M} UTC",
        Action("Review", f"/approvals/{waiting['id']}", "operator"),
        "operator",
    )


def _unrated(facts: Facts, now: datetime) -> Finding | None:
    counted, promoted = facts.counted.get(ALL_MODELS, 0), (facts.service or {}).get("champion_since")
    if facts.rated or counted < UNRATED_ANSWERS or facts.since is None:
        return None
    if promoted and facts.since <= promoted:  # ratings come later than answers: a whole window must have passed
        return None
    since = _moment(facts.since, now)
    evidence = f"{counted:,} answers since {since} and none of them rated: their quality is unknown."
    return Finding("warn", "No answers are rated", evidence, _teach(facts))


def _paused(facts: Facts, _: datetime) -> Finding | None:
    if not facts.paused:
        return None
    return Finding("warn", f"Retraining is paused by {facts.paused['actor']}", facts.paused["reason"])


def _trains(facts: Facts, _: datetime) -> Finding | None:
    if not facts.run or facts.run["state"] not in ("running", "waiting"):
        return None
    return Finding("busy", "Retraining" if facts.run["state"] == "running" else "A retraining waits")


def _rolls_out(facts: Facts, _: datetime) -> Finding | None:
    service = facts.service or {}
    if service.get("rollout") != "canary":
        return None
    return Finding("busy", f"Rolling out {service['canary']}", f"{service['share']:.0%} of new conversations")


CHECKS: tuple[Callable[[Facts, datetime], Finding | None], ...] = (
    _fell,
    _invents,
    _drifted,
    _rolled_back,
    _failed,
    _waits_for_approval,
    _refused,
    _unrated,
    _paused,
    _trains,
    _rolls_out,
)
"""In the order of what needs a person first."""


def _page(facts: Facts) -> str:
    return f"/workloads/{quote(facts.workload, safe='')}"


def _teach(facts: Facts) -> Action | None:
    if not facts.labels:
        return None
    return Action(f"Teach {_count(facts.labels, 'answer')}", f"{_page(facts)}/teach", "labeller")


def _act(facts: Facts) -> Action:
    return _teach(facts) or Action("See what moved", _page(facts))


def _week_before(facts: Facts, today: date) -> Rate | None:
    """The last daily rate that is at least a week old."""
    old = [rate for day, rate in facts.history if (today - day).days >= COMPARED_DAYS]
    return old[-1] if old else None


def _at(time: datetime, now: datetime) -> str:
    """When something was."""
    return f"{'on ' if time.date() < now.date() else ''}{_moment(time, now)}"


def _moment(time: datetime, now: datetime) -> str:
    """A moment in UTC as pages show it, with the day of the week while that names one."""
    passed = (now.date() - time.date()).days
    if passed <= 0:
        return f"today {time:%H:%M} UTC"
    day = "%A, %-d %b" if passed < 7 else "%-d %b" if time.year == now.year else "%-d %b %Y"
    return f"{time:{day} %H:%M} UTC"


def _news(facts: Facts) -> str:
    """What drift found."""
    drift = facts.drift
    if not drift or not drift["drifted"]:
        return ""
    return (
        f"About {drift['severity']:.0%} of the events differ from the reference."
        if drift["severity"]
        else "Events drifted."
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
