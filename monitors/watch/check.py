"""Watch: does the champion that the gate promoted do worse in service than the one before it?"""

import json
import math
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries
from retuned.monitors.settings import Settings, WatchSettings
from retuned.monitors.watch.sequential import log_e_value

QUERIES = named_queries("retuned.monitors.watch", "watch.sql")
Verdict = Literal["keep", "roll_back", "go_on"]
Counts = Counter[tuple[str, str, bool, bool]]
# What is compared, and by whose word. Settled beforehand, so that each has its share of the error. The grounding scorer
# is not among them: it alarms more of longer answers, whether they are invented or not.
COMPARED = (
    ("helpful", "user"),
    ("hallucination", "user"),
    ("hallucination", "expert"),
    ("hallucination", "judge"),
    ("hallucination", "app"),
    ("latency", "app"),
)
BAD = {"helpful": "unhelpful", "hallucination": "invented", "latency": "slow"}
VOTES_PER_ACCOUNT = 5


@dataclass(frozen=True)
class Comparison:
    """How many answers were bad: unhelpful, invented or slow, by one source.

    Attributes:
        bad_before, n_before: of the answers of the champion before.
        bad_after, n_after: of those of the version that is watched.
        worse: evidence that the share of bad answers rose by more than the margin; from 1 on it is enough.
        as_good: evidence that it did not; from 1 on it is enough.
    """

    metric: str
    source: str
    bad_before: int
    n_before: int
    bad_after: int
    n_after: int
    worse: float
    as_good: float

    def __str__(self) -> str:
        before, after = (
            f"{bad / n:.0%} of {n:,}" if n else "of none"
            for bad, n in ((self.bad_before, self.n_before), (self.bad_after, self.n_after))
        )
        return f"{BAD[self.metric]} by {self.source}: {after} answers, before {before}"


@dataclass(frozen=True)
class WatchCheck:
    """What was seen of a promotion (UTC times).

    Attributes:
        version, previous_version: what is watched, and what served before; None: the base model.
        since, until: the time of the watch.
        verdict: `go_on` until one of the others, which are final.
        reasons: sentences for a person.
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


def check(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> WatchCheck | None:
    """Look at the promotion that is watched, store what is seen in `watch_checks`, and return it.

    None: nothing is watched. What is, is the latest change of champion, when the gate made it and no check has said
    `keep`. A stored `roll_back` is returned as it is, for as long as nobody has carried it out. All else is computed
    from the events anew each time, so that nothing is lost between two checks.
    """
    if not settings.watch.enabled:
        return None
    promotion = warehouse.row(QUERIES["watched"], {"workload": workload})
    if promotion is None:
        return None
    known = latest(warehouse, workload)
    if known is not None and known.promotion_id == promotion["id"] and known.verdict != "go_on":
        return known if known.verdict == "roll_back" else None
    since: datetime = promotion["since"]
    until = since + timedelta(seconds=settings.watch.duration_seconds)
    counts = _counts(warehouse, settings, workload, promotion, min(now, until))
    comparisons = [_compare(metric, source, counts, settings.watch) for metric, source in COMPARED]
    verdict, reasons = decide(comparisons, now >= until, settings.watch)
    seen = WatchCheck(
        id=uuid.uuid4().hex,
        created_at=now,
        workload=workload,
        promotion_id=promotion["id"],
        version=promotion["version"],
        previous_version=promotion["previous_version"],
        since=since,
        until=until,
        verdict=verdict,
        comparisons=[comparison for comparison in comparisons if comparison.n_before or comparison.n_after],
        reasons=reasons,
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
    row = warehouse.row(QUERIES["latest"], {"workload": workload})
    if row is None:
        return None
    comparisons = [Comparison(**comparison) for comparison in json.loads(row["comparisons"])]
    return WatchCheck(**row | {"comparisons": comparisons, "reasons": json.loads(row["reasons"])})


def thin(warehouse: Warehouse, recent: datetime, old: datetime) -> int:
    """Of looks that decided nothing, keep all since `recent`, the last of each hour since `old`, and before that the
    last of each watch; returns how many were deleted. What decided a watch stays.
    """
    return warehouse.delete(QUERIES["thin"], {"recent": recent, "old": old})


def decide(comparisons: Sequence[Comparison], over: bool, settings: WatchSettings) -> tuple[Verdict, list[str]]:
    """The verdict, with its reasons.

    `roll_back` when any comparison shows harm beyond the margin; `keep` when all that were possible show that there is
    none, users' votes among them, or when the time is over: without evidence of harm, a champion that the gate passed
    stays, however few have voted.
    """
    points = f"{100 * settings.margin:g} points"
    enough = [c for c in comparisons if min(c.n_before, c.n_after) >= settings.minimum_votes]
    worse = [c for c in enough if c.worse >= 1]
    if worse and not over:
        return "roll_back", [f"{comparison}: worse by more than {points}" for comparison in worse]
    possible = [c for c in comparisons if c.n_before >= settings.minimum_votes]
    figures = [str(c) for c in comparisons if c.n_after] or ["no answer of this version was seen"]
    if all(c.as_good >= 1 for c in possible) and any(c.metric == "helpful" for c in possible):
        return "keep", [f"shown to be within {points} of the champion before", *figures]
    if over:
        return "keep", ["the watch is over, and did not show in its time that it is worse", *figures]
    return "go_on", [f"neither shown to be worse by more than {points} nor to be within them", *figures]


def _compare(metric: str, source: str, counts: Counts, settings: WatchSettings) -> Comparison:
    bad_before, bad_after = (counts[metric, source, after, True] for after in (False, True))
    n_before, n_after = (sum(counts[metric, source, after, bad] for bad in (False, True)) for after in (False, True))
    worse = log_e_value(bad_before, n_before, bad_after, n_after, settings.margin)
    as_good = log_e_value(n_before - bad_before, n_before, n_after - bad_after, n_after, -settings.margin)
    # One false alarm anywhere takes the version back, so the error is shared out. It is kept only if nothing alarms.
    needed = math.log(1 / settings.false_rollback_rate)
    return Comparison(
        metric,
        source,
        bad_before,
        n_before,
        bad_after,
        n_after,
        worse=max(float(worse) / (needed + math.log(len(COMPARED))), 0.0),
        as_good=max(float(as_good) / needed, 0.0),
    )


def _counts(
    warehouse: Warehouse, settings: Settings, workload: str, promotion: dict[str, Any], end: datetime
) -> Counts:
    """Answers by metric, source, whether they are of the version that is watched, and whether they are bad."""
    since: datetime = promotion["since"]
    start = since - timedelta(seconds=settings.watch.compare_seconds)
    answers = {
        "workload": workload,
        "version": promotion["version"],
        "previous": promotion["previous_version"] or "base",
        "start": start,
        "since": since,
        "end": end,
    }
    counts: Counts = Counter()
    judgements.follow(warehouse)
    with warehouse.cursor() as cursor:
        cursor.execute(QUERIES["answers"], answers)
        votes = {"workload": workload, "start": start, "per_account": VOTES_PER_ACCOUNT}
        found = cursor.execute(QUERIES["votes"], votes).fetchall()
        cursor.execute(QUERIES["latency"], {"since": since, "ratio": settings.watch.latency_ratio})
        for metric, source, after, bad, n in [*found, *cursor.fetchall()]:
            counts[metric, source, after, True] += bad
            counts[metric, source, after, False] += n - bad
    return counts
