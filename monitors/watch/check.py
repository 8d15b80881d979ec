"""Watch: checks whether a promoted champion performs worse in service than the one before it."""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries
from retuned.monitors.settings import Settings
from retuned.monitors.watch.comparison import Comparison, Verdict, compare, decide, half_of_error, known_age
from retuned.monitors.watch.comparison import power as estimate_power
from retuned.monitors.watch.counts import Watched, count

QUERIES = named_queries("retuned.monitors.watch", "watch.sql")


@dataclass(frozen=True)
class WatchCheck:
    """A check of a promotion (UTC times).

    Attributes:
        version, previous_version: the watched version and the one before it; None: the base model.
        since, until: start and end of the watch.
        verdict: `go_on` until one of the others, which are final.
        reasons: sentences for a person.
        votes_per_day, seconds_to_find: see `Power`; None: stored by an earlier release.
    """

    id: str
    created_at: datetime
    workload: str
    promotion_id: str
    version: str
    previous_version: str | None
    since: datetime
    until: datetime
    verdict: Verdict
    comparisons: list[Comparison]
    reasons: list[str]
    votes_per_day: float | None = None
    seconds_to_find: float | None = None

    @property
    def has_power(self) -> bool:
        """Whether the watch finds a fall of 20 points before it ends, at the present rate of votes."""
        return self.seconds_to_find is not None and self.since + timedelta(seconds=self.seconds_to_find) <= self.until


def check(
    warehouse: Warehouse, settings: Settings, workload: str, now: datetime, known_until: datetime | None = None
) -> WatchCheck | None:
    """Checks the watched promotion and stores the result in `watch_checks`; None: nothing is watched.

    The change that made the champion is watched if the gate or the last step of a rollout is behind it, until a check
    decides `keep`. A stored `roll_back` is returned unchanged until it is carried out. Everything else is computed from
    the events each time, so a missed check loses nothing.

    Args:
        known_until: all events until then are stored, and the watch ends no sooner; None: until now.
    """
    if not settings.watch.enabled:
        return None
    promotion = warehouse.row(QUERIES["watched"], {"workloads": [workload]})
    if promotion is None:
        return None
    known = latest_of(warehouse, [workload], promotion["id"]).get(workload)
    if known is not None and known.verdict != "go_on":
        return known if known.verdict == "roll_back" else None
    rules = half_of_error(settings.watch) if promotion["after_canary"] else settings.watch
    since: datetime = promotion["since"]
    until = since + timedelta(seconds=rules.duration_seconds)
    watched = Watched(
        promotion["id"], workload, promotion["version"], promotion["previous_version"], since, min(now, until)
    )
    kinds = count(warehouse, rules, watched)
    comparisons = [compare(*kind, references, rules) for kind, references in kinds.items()]
    power = estimate_power(kinds, watched.elapsed, rules)
    verdict, reasons = decide(comparisons, now - since, known_age(since, now, known_until), power, rules)
    outcome = WatchCheck(
        id=uuid.uuid4().hex,
        created_at=now,
        workload=workload,
        promotion_id=watched.id,
        version=watched.version,
        previous_version=watched.previous_version,
        since=since,
        until=until,
        verdict=verdict,
        comparisons=comparisons,
        reasons=reasons,
        votes_per_day=power.votes_per_day,
        seconds_to_find=power.seconds,
    )
    with warehouse.transaction() as cursor:
        lists = {
            "comparisons": json.dumps([asdict(comparison) for comparison in comparisons]),
            "reasons": json.dumps(reasons),
        }
        insert(cursor, "watch_checks", **asdict(outcome) | lists)
    return outcome


def latest(warehouse: Warehouse, workload: str) -> WatchCheck | None:
    """Returns the latest stored check of a workload."""
    return latest_of(warehouse, [workload]).get(workload)


def latest_of(warehouse: Warehouse, workloads: Iterable[str], promotion: str | None = None) -> dict[str, WatchCheck]:
    """Returns the latest stored check of each workload that has one; with a promotion, the latest one of its watch."""
    checks = {}
    for row in warehouse.rows(QUERIES["latest"], {"workloads": list(workloads), "promotion": promotion}):
        lists = {
            "comparisons": [Comparison(**comparison) for comparison in json.loads(row["comparisons"])],
            "reasons": json.loads(row["reasons"]),
        }
        checks[row["workload"]] = WatchCheck(**row | lists)
    return checks


def in_force(warehouse: Warehouse, settings: Mapping[str, Settings]) -> dict[str, WatchCheck]:
    """Returns the latest check of each workload, unless its watch ended without a verdict.

    A watch ends without a verdict if the champion changes or the watch is turned off.
    """
    watched = {
        row["workload"]: row["id"]
        for row in warehouse.rows(QUERIES["watched"], {"workloads": list(settings)})
        if settings[row["workload"]].watch.enabled
    }
    return {
        workload: check
        for workload, check in latest_of(warehouse, settings).items()
        if check.verdict != "go_on" or watched.get(workload) == check.promotion_id
    }


def thin(warehouse: Warehouse, workloads: Sequence[str], recent: datetime, old: datetime) -> int:
    """Deletes old checks without a decision, and returns how many.

    All checks since `recent` are kept, the last of each hour since `old`, and before that the last of each watch.
    Checks that decided a watch are always kept.
    """
    return warehouse.delete(QUERIES["thin"], {"workloads": workloads, "recent": recent, "old": old})
