"""Watch: does the champion that the gate promoted do worse in service than the one before it?"""

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries
from retuned.monitors.settings import Settings
from retuned.monitors.watch.comparison import Comparison, Verdict, compare, decide, half_of_error, power
from retuned.monitors.watch.counts import Watched, count

QUERIES = named_queries("retuned.monitors.watch", "watch.sql")


@dataclass(frozen=True)
class WatchCheck:
    """What was seen of a promotion (UTC times).

    Attributes:
        version, previous_version: what is watched, and what served before; None: the base model.
        since, until: the time of the watch.
        verdict: `go_on` until one of the others, which are final.
        reasons: sentences for a person.
        votes_per_day, seconds_to_find: see `Power`; None: of a check by a version that did not know it.
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
        """Whether a fall of 20 points is found before the watch ends, at the present rate of votes."""
        return self.seconds_to_find is not None and self.since + timedelta(seconds=self.seconds_to_find) <= self.until


def check(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> WatchCheck | None:
    """Look at the promotion that is watched, store what is seen in `watch_checks`, and return it.

    None: nothing is watched. What is, is the latest change of champion, when the gate or the last step of a rollout
    made it and no check has said `keep`. A stored `roll_back` is returned as it is, for as long as nobody has carried
    it out. All else is computed from the events anew each time, so that nothing is lost between two checks.
    """
    if not settings.watch.enabled:
        return None
    promotion = warehouse.row(QUERIES["watched"], {"workloads": [workload]})
    if promotion is None:
        return None
    known = latest(warehouse, workload)
    if known is not None and known.promotion_id == promotion["id"] and known.verdict != "go_on":
        return known if known.verdict == "roll_back" else None
    rules = half_of_error(settings.watch) if promotion["after_canary"] else settings.watch
    since: datetime = promotion["since"]
    until = since + timedelta(seconds=rules.duration_seconds)
    watched = Watched(
        promotion["id"], workload, promotion["version"], promotion["previous_version"], since, min(now, until)
    )
    kinds = count(warehouse, rules, watched)
    comparisons = [compare(*kind, references, rules) for kind, references in kinds.items()]
    can_find = power(kinds, watched.elapsed, rules)
    verdict, reasons = decide(comparisons, now - since, can_find, rules)
    seen = WatchCheck(
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
        votes_per_day=can_find.votes_per_day,
        seconds_to_find=can_find.seconds,
    )
    with warehouse.transaction() as cursor:
        lists = {
            "comparisons": json.dumps([asdict(comparison) for comparison in seen.comparisons]),
            "reasons": json.dumps(seen.reasons),
        }
        insert(cursor, "watch_checks", **asdict(seen) | lists)
    return seen


def latest(warehouse: Warehouse, workload: str) -> WatchCheck | None:
    """The latest stored check of a workload."""
    return latest_of(warehouse, [workload]).get(workload)


def latest_of(warehouse: Warehouse, workloads: Iterable[str]) -> dict[str, WatchCheck]:
    """The latest stored check of each workload that has one."""
    found = {}
    for row in warehouse.rows(QUERIES["latest"], {"workloads": list(workloads)}):
        comparisons = [Comparison(**comparison) for comparison in json.loads(row["comparisons"])]
        found[row["workload"]] = WatchCheck(**row | {"comparisons": comparisons, "reasons": json.loads(row["reasons"])})
    return found


def in_force(warehouse: Warehouse, settings: Mapping[str, Settings]) -> dict[str, WatchCheck]:
    """The latest check of each workload, unless its watch ended without a verdict: somebody changed the champion
    meanwhile, or turned the watch off."""
    watched = {
        row["workload"]: row["id"]
        for row in warehouse.rows(QUERIES["watched"], {"workloads": list(settings)})
        if settings[row["workload"]].watch.enabled
    }
    return {
        workload: seen
        for workload, seen in latest_of(warehouse, settings).items()
        if seen.verdict != "go_on" or watched.get(workload) == seen.promotion_id
    }


def thin(warehouse: Warehouse, recent: datetime, old: datetime) -> int:
    """Of looks that decided nothing, keep all since `recent`, the last of each hour since `old`, and before that the
    last of each watch; returns how many were deleted. What decided a watch stays.
    """
    return warehouse.delete(QUERIES["thin"], {"recent": recent, "old": old})
