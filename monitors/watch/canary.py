"""Canary: is what goes into service step by step worse than the champion beside it, and does the next step come?

Both answer at the same time, and are compared at no other. The share of the traffic changes from step to step while
rates change from day to day, so counts of all steps together would compare other days with each other (Simpson's
paradox). Each step is compared by itself, and the evidence of the steps is multiplied. That is an e-process: for the
true rates of each step the capital of the gamblers of sequential.py is multiplied, vote by vote, by factors whose mean
is at most 1, whichever step a vote belongs to and whenever it comes; so the product of the steps' capitals is such a
process too, and the product of each step's least capital over all rates is never more.

Error. `watch.false_rollback_rate` is that of the whole rollout: half for the canary, half for the watch over the new
champion. Before its first step it may be asked in shadow (shadow.py): that takes half of the canary's.
"""

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from retuned.consumers.settings import RolloutSettings
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries
from retuned.monitors.settings import Settings, WatchSettings
from retuned.monitors.watch import shadow
from retuned.monitors.watch.comparison import (
    COMPARED,
    FALL,
    Comparison,
    Counts,
    compare_steps,
    half_of_error,
    shown_worse,
    span,
)
from retuned.monitors.watch.counts import ALL_VOTES, Watched, answers, slow_beside
from retuned.monitors.watch.shadow import Verdict

QUERIES = named_queries("retuned.monitors.watch", "canary.sql")


@dataclass(frozen=True)
class CanaryCheck:
    """What was seen of a canary (UTC times).

    Attributes:
        experiment: the row of `rollouts`.
        version, previous_version: the canary, and the champion beside it; None: the base model.
        share: of the conversations, that the canary answers since `step_since`; 0: it is asked in shadow.
        answers: of the canary in this step; in shadow, conversations that are judged.
        reasons: sentences for a person.
    """

    id: str
    created_at: datetime
    workload: str
    experiment: str
    version: str
    previous_version: str | None
    share: float
    step_since: datetime
    answers: int
    verdict: Verdict
    comparisons: list[Comparison]
    reasons: list[str]


def check(
    warehouse: Warehouse, settings: Settings, workload: str, now: datetime, waits_for: str = ""
) -> CanaryCheck | None:
    """Look at the canary of a workload, store what is decided in `rollout_checks`, and return it; None: there is none.

    A stored `roll_back` is returned as it is until somebody has carried it out. All else is computed from the events
    anew each time, so that nothing is lost between two checks.

    Args:
        waits_for: what the servers lack of it, in words: a step that is due waits for that, however long; empty:
            nothing.
    """
    canary = warehouse.row(QUERIES["canary"], {"workload": workload})
    if canary is None:
        return None
    known = latest(warehouse, canary["id"])
    if known is not None and known.verdict == "roll_back":
        return known
    watch = half_of_error(settings.watch)
    if canary["shadowed"]:
        watch = half_of_error(watch)
    if canary["share"] == 0:
        scores = warehouse.rows(QUERIES["shadow"], {"experiment": canary["id"]})
        found = shadow.compare(scores, watch)
        verdict, reasons = shadow.decide(found, now - canary["step_since"], settings.rollout, watch)
        comparisons = [] if found.comparison is None else [found.comparison]
        return _store(warehouse, canary, now, found.judged, *_served(verdict, reasons, waits_for), comparisons)
    named = canary["id"], workload, canary["version"], canary["previous_version"]
    steps = [
        Watched(*named, row["since"], row["until"])
        for row in warehouse.rows(QUERIES["steps"], {"experiment": canary["id"], "now": now})
    ]
    judgements.follow(warehouse)
    with warehouse.cursor() as cursor:
        within = timedelta(seconds=watch.vote_seconds)
        began = canary["created_at"]
        # Answers that are younger than `within` count as well: both sides are equally young.
        judgements.comparable_votes(
            cursor, workload, began, now, now=now + within, mature_after=within, per_account=ALL_VOTES
        )
        kinds = defaultdict[tuple[str, str], list[Counts]](list)
        votes = {"steps": [step.since for step in steps], "now": now}
        votes |= {name: steps[0].names[name] for name in ("version", "previous")}
        for name, source, *counts in cursor.execute(QUERIES["votes"], votes).fetchall():
            kinds[name, source].append(Counts("same_time", *counts))
        for step in steps:
            kinds["latency", "app"] += slow_beside(cursor, step, began, watch)
        _, given = answers(cursor, steps[-1], steps[-1].since)
    comparisons = [compare_steps(*kind, kinds[kind], watch) for kind in COMPARED if kinds.get(kind)]
    verdict, reasons = decide(comparisons, given, now - canary["step_since"], now - began, settings.rollout, watch)
    return _store(warehouse, canary, now, given, *_served(verdict, reasons, waits_for), comparisons)


def _served(verdict: Verdict, reasons: list[str], waits_for: str) -> tuple[Verdict, list[str]]:
    """The verdict, once enough servers have the canary: more people are not sent to servers that lack it."""
    if verdict != "advance" or not waits_for:
        return verdict, reasons
    return "hold", [f"the next step is due, and waits: {waits_for}", *reasons]


def _store(
    warehouse: Warehouse,
    canary: Mapping[str, Any],
    now: datetime,
    given: int,
    verdict: Verdict,
    reasons: list[str],
    comparisons: list[Comparison],
) -> CanaryCheck:
    seen = CanaryCheck(
        id=uuid.uuid4().hex,
        created_at=now,
        workload=canary["workload"],
        experiment=canary["id"],
        version=canary["version"],
        previous_version=canary["previous_version"],
        share=canary["share"],
        step_since=canary["step_since"],
        answers=given,
        verdict=verdict,
        comparisons=comparisons,
        reasons=reasons,
    )
    with warehouse.transaction() as cursor:
        lists = {"comparisons": json.dumps([asdict(one) for one in comparisons]), "reasons": json.dumps(reasons)}
        insert(cursor, "rollout_checks", **asdict(seen) | lists)
    return seen


def decide(
    comparisons: Sequence[Comparison],
    answers: int,
    step_age: timedelta,
    age: timedelta,
    rollout: RolloutSettings,
    watch: WatchSettings,
) -> tuple[Verdict, list[str]]:
    """The verdict, with its reasons.

    `roll_back` when the evidence shows harm beyond the margin. `hold` while the step is short of time or answers, while
    no votes show that it is less than 20 points worse, and while any lean to harm: that there is too little evidence
    against it is no reason to show it to more people. When the time of the step or of the whole canary is over, and
    otherwise, `advance`.

    Args:
        answers: of the canary in this step.
        step_age, age: of this step, and of the canary.
        watch: with the error that is the canary's.
    """
    points = f"{100 * watch.margin:g} points"
    if told := shown_worse(comparisons, watch):
        return "roll_back", [f"{comparison}: worse by more than {points}" for comparison in told]
    figures = [str(one) for one in comparisons if one.n_after]
    leaning = [one for one in comparisons if one.has_enough(watch) and one.worse > 0]
    missing = []
    if step_age < timedelta(seconds=rollout.minimum_seconds):
        missing.append(f"the step has lasted {span(step_age.total_seconds())} of {span(rollout.minimum_seconds)}")
    if answers < rollout.minimum_answers:
        missing.append(f"the canary gave {answers:,} of {rollout.minimum_answers:,} answers")
    if not any(one.as_good >= 1 for one in comparisons if one.metric != "latency"):
        missing.append(f"too few votes to show that it is not {100 * FALL:.0f} points worse")
    missing += [f"{one}: it leans to worse by more than {points}" for one in leaning]
    if not missing:
        return "advance", [f"not shown to be worse by more than {points}", *figures]
    over = [
        f"the time of the {what} is over ({span(most)}, {key})"
        for what, passed, most, key in (
            ("step", step_age, rollout.maximum_seconds, "rollout.maximum_seconds"),
            ("canary", age, watch.duration_seconds, "watch.duration_seconds"),
        )
        if passed >= timedelta(seconds=most)
    ]
    if over:
        return "advance", [
            f"{over[0]} without evidence enough that it is worse, and without power:",
            *missing,
            *figures,
        ]
    return "hold", [*missing, *figures]


def latest(warehouse: Warehouse, experiment: str) -> CanaryCheck | None:
    """The latest stored check of a rollout."""
    return latest_of(warehouse, [experiment]).get(experiment)


def latest_of(warehouse: Warehouse, experiments: Iterable[str]) -> dict[str, CanaryCheck]:
    """The latest stored check of each rollout that has one."""
    found = {}
    for row in warehouse.rows(QUERIES["latest"], {"experiments": list(experiments)}):
        comparisons = [Comparison(**one) for one in json.loads(row["comparisons"])]
        found[row["experiment"]] = CanaryCheck(
            **row | {"comparisons": comparisons, "reasons": json.loads(row["reasons"])}
        )
    return found


def thin(warehouse: Warehouse, recent: datetime, old: datetime) -> int:
    """Of looks that held, keep all since `recent`, the last of each hour since `old`, and before that the last of each
    step; returns how many were deleted. What moved a rollout stays."""
    return warehouse.delete(QUERIES["thin"], {"recent": recent, "old": old})
