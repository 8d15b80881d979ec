"""Canary: decides whether a canary takes the next step, waits, or is rolled back.

The canary and the champion answer at the same time, and are compared only within that time. The canary's share of the
traffic changes from step to step while rates change from day to day, so pooled counts would compare different days
(Simpson's paradox). Each step is compared by itself, and the evidence of the steps is multiplied. The product is an
e-process: given the true rates of each step, each vote multiplies the capital of the gamblers of sequential.py by a
factor with a mean of at most 1, whichever step it belongs to and whenever it arrives. The product of the steps' minima
over all rates is never more than that. Votes of one account are correlated, so they are divided by the design effect of
the votes of all steps (see comparison.py).

Intention to treat. A request that fails leaves no answer and no vote, so votes cannot show that a canary fails, and one
that fails what is hard would look better. The gateway assigns by chance, so a canary that answers all it gets answers
its share of the conversations. One that is shown to answer less is rolled back, like an experiment that is not analysed
because of a sample ratio mismatch (Fabijan et al., "Diagnosing sample ratio mismatch in online controlled experiments",
KDD 2019).

Error. `watch.false_rollback_rate` applies to the whole rollout: half for the canary, half for the watch of the new
champion. A shadow before the first step (shadow.py) takes half of the canary's share. The test of the share of
conversations has MISMATCH of its own. A canary that only leans towards harm when its time is over is rolled back, too:
that has no error of its own, and is measured by simulation (benchmarks/canary.py).
"""

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from math import log
from typing import Any

from retuned.consumers.settings import RolloutSettings
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries
from retuned.monitors.rates.estimate import evidence_effect
from retuned.monitors.rates.sequential import log_e_value_of_rate
from retuned.monitors.rates.votes import read_votes
from retuned.monitors.settings import Settings, WatchSettings
from retuned.monitors.watch import shadow
from retuned.monitors.watch.comparison import (
    COMPARED,
    FALL,
    Comparison,
    Counts,
    compare_steps,
    half_of_error,
    known_age,
    shown_worse,
    span,
)
from retuned.monitors.watch.counts import Watched, answers, slow_beside
from retuned.monitors.watch.shadow import Verdict

QUERIES = named_queries("retuned.monitors.watch", "canary.sql")
MISMATCH = 0.001
"""The largest chance to find that a canary does not answer its share, although it does."""
UNANSWERED = 0.05
"""A canary may leave this share of its conversations without an answer."""


@dataclass(frozen=True)
class CanaryCheck:
    """A check of a canary (UTC times).

    Attributes:
        experiment: the id of the row in `rollouts`.
        version, previous_version: the canary and the champion beside it; None: the base model.
        share: the share of the conversations that the canary answers since `step_since`; 0: shadow.
        answers: the canary's answers in this step; in shadow, the judged conversations.
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
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    now: datetime,
    waits_for: str = "",
    known_until: datetime | None = None,
) -> CanaryCheck | None:
    """Checks the canary of a workload, and stores the result in `rollout_checks`; None: there is no canary.

    A stored `roll_back` is returned unchanged until it is carried out. Everything else is computed from the events each
    time, so a missed check loses nothing.

    Args:
        waits_for: the reason why the servers are not ready for the next step, for a person; a due step waits until it
            is empty.
        known_until: all events until then are stored. Time after it does not count, as a backlog may hold votes against
            the canary; None: until now.
    """
    canary = warehouse.row(QUERIES["canary"], {"workload": workload})
    if canary is None:
        return None
    before = latest(warehouse, canary["id"])
    if before is not None and before.verdict == "roll_back":
        return before
    watch = half_of_error(settings.watch)
    if canary["shadowed"]:
        watch = half_of_error(watch)
    step_age = known_age(canary["step_since"], now, known_until)
    if canary["share"] == 0:
        scores = warehouse.rows(QUERIES["shadow"], {"experiment": canary["id"]})
        result = shadow.compare(scores, watch)
        answered = result.judged
        comparisons = [] if result.comparison is None else [result.comparison]
        with warehouse.cursor() as cursor:
            champion, _ = answers(cursor, _watched(canary, canary["step_since"], now), canary["step_since"])
        verdict, reasons = shadow.decide(result, step_age, settings.rollout, watch, champion)
    else:
        steps = _steps(warehouse, canary, now)
        answered, comparisons = _measure(warehouse, canary["workload"], steps, now, watch)
        age = known_age(steps[0].since, now, known_until)
        verdict, reasons = decide(comparisons, answered, step_age, age, settings.rollout, watch)
        lasted = step_age >= timedelta(seconds=settings.rollout.minimum_seconds)
        if verdict != "roll_back" and lasted:
            unanswered = _unanswered(warehouse, steps[-1], canary["share"], settings)
            if unanswered:
                verdict, reasons = "roll_back", [unanswered, *reasons]
    if verdict == "advance" and waits_for:  # no more users are sent to servers that are not ready
        verdict, reasons = "hold", [f"the next step is due, but has to wait: {waits_for}", *reasons]
    outcome = CanaryCheck(
        id=uuid.uuid4().hex,
        created_at=now,
        workload=workload,
        experiment=canary["id"],
        version=canary["version"],
        previous_version=canary["previous_version"],
        share=canary["share"],
        step_since=canary["step_since"],
        answers=answered,
        verdict=verdict,
        comparisons=comparisons,
        reasons=reasons,
    )
    with warehouse.transaction() as cursor:
        lists = {"comparisons": json.dumps([asdict(c) for c in comparisons]), "reasons": json.dumps(reasons)}
        insert(cursor, "rollout_checks", **asdict(outcome) | lists)
    return outcome


def _steps(warehouse: Warehouse, canary: Mapping[str, Any], now: datetime) -> list[Watched]:
    """Returns the steps in which the canary answered users, up to now; a shadow before them is none."""
    rows = warehouse.rows(QUERIES["steps"], {"experiment": canary["id"], "now": now})
    return [_watched(canary, row["since"], row["until"]) for row in rows]


def _watched(canary: Mapping[str, Any], since: datetime, until: datetime) -> Watched:
    return Watched(canary["id"], canary["workload"], canary["version"], canary["previous_version"], since, until)


def _measure(
    warehouse: Warehouse, workload: str, steps: Sequence[Watched], now: datetime, watch: WatchSettings
) -> tuple[int, list[Comparison]]:
    """Returns the canary's answers in its present step, and its comparisons with the champion over all steps."""
    began = steps[0].since
    judgements.follow(warehouse)
    kinds = defaultdict[tuple[str, str], list[Counts]](list)
    with warehouse.cursor() as cursor:
        within = timedelta(seconds=watch.vote_seconds)
        # Answers younger than `within` count as well: both sides are equally young.
        judgements.comparable_votes(cursor, workload, began, now, now=now + within, mature_after=within)
        parameters = {"steps": [step.since for step in steps], "now": now}
        parameters |= {name: steps[0].names[name] for name in ("version", "previous")}
        cursor.execute(QUERIES["votes"], parameters)
        voted = read_votes(cursor)
        for (name, source, _), votes in voted.items():
            effect = evidence_effect(votes)  # of all steps: an account that votes in several is one unit
            kinds[name, source] = [
                Counts("same_time", bad_before, n_before, bad_after, n_after, effect=effect)
                for bad_before, n_before, bad_after, n_after in votes.blocks.tolist()
            ]
        for step in steps:
            kinds["latency", "app"] += slow_beside(cursor, step, began, watch)
        _, answered = answers(cursor, steps[-1], steps[-1].since)
    comparisons = [
        compare_steps(*kind, kinds[kind], watch, voted.get((*kind, ""))) for kind in COMPARED if kinds.get(kind)
    ]
    return answered, comparisons


def _unanswered(warehouse: Warehouse, step: Watched, share: float, settings: Settings) -> str | None:
    """Returns a sentence if the canary is shown to leave more than UNANSWERED of its conversations in this step without
    an answer of its own; None: it is not, or no gateway assigned the conversations."""
    parameters = step.names | {"start": step.since, "end": step.end, "experiment": step.id}
    row = warehouse.row(QUERIES["assigned"], parameters | {"unit": settings.rollout.unit})
    assert row is not None
    champion, answered = row["champion"], row["canary"]
    least = share * (1 - UNANSWERED) / (1 - share * UNANSWERED)  # of the conversations with an answer
    evidence = log_e_value_of_rate(champion, champion + answered, 1 - least)
    if evidence < log(1 / MISMATCH):
        return None
    expected = champion * share / (1 - share)
    units = f"{settings.rollout.unit}s"
    return (
        f"it answered {answered:,} {units}, and its share beside the {champion:,} of the champion is {expected:,.0f}: "
        "it fails requests, or another model answers them in its place, and such requests get no votes"
    )


def decide(
    comparisons: Sequence[Comparison],
    answers: int,
    step_age: timedelta,
    age: timedelta,
    rollout: RolloutSettings,
    watch: WatchSettings,
) -> tuple[Verdict, list[str]]:
    """Returns the verdict with its reasons.

    - `roll_back`: the evidence shows harm beyond the margin, or leans towards it when the time of the step or of all
      steps is over. The latter is no proof: it takes back more versions than `watch.false_rollback_rate` allows.
    - `hold`: the step lacks time or answers, no votes show that the canary is less than 20 points worse, or any lean
      towards harm. Absence of evidence is no reason to expose more users.
    - `advance`: otherwise, and when that time is over, though no step is shorter than `rollout.minimum_seconds`.

    Args:
        answers: the canary's answers in this step.
        step_age, age: the ages of this step and of all steps, as far as their events are stored.
        watch: with the canary's share of the error.
    """
    points = f"{100 * watch.margin:g} points"
    if worse := shown_worse(comparisons, watch):
        return "roll_back", [f"{comparison}: worse by more than {points}" for comparison in worse]
    figures = [str(comparison) for comparison in comparisons if comparison.n_after]
    leaning = [comparison for comparison in comparisons if comparison.has_enough(watch) and comparison.worse > 0]
    missing = []
    if step_age < timedelta(seconds=rollout.minimum_seconds):
        missing.append(f"the step has lasted {span(step_age.total_seconds())} of {span(rollout.minimum_seconds)}")
    if answers < rollout.minimum_answers:
        missing.append(f"the canary gave {answers:,} of {rollout.minimum_answers:,} answers")
    if not any(comparison.as_good >= 1 for comparison in comparisons if comparison.metric != "latency"):
        missing.append(f"too few votes to show that it is not {100 * FALL:.0f} points worse")
    missing += [f"{comparison}: it leans towards worse by more than {points}" for comparison in leaning]
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
    if over and step_age >= timedelta(seconds=rollout.minimum_seconds):
        if leaning:
            return "roll_back", [f"{over[0]}, and it leans towards worse, without proof:", *missing, *figures]
        return "advance", [
            f"{over[0]} without enough evidence that it is worse, and without power:",
            *missing,
            *figures,
        ]
    return "hold", [*missing, *figures]


def latest(warehouse: Warehouse, experiment: str) -> CanaryCheck | None:
    """Returns the latest stored check of a rollout."""
    return latest_of(warehouse, [experiment]).get(experiment)


def latest_of(warehouse: Warehouse, experiments: Iterable[str]) -> dict[str, CanaryCheck]:
    """Returns the latest stored check of each rollout that has one."""
    checks = {}
    for row in warehouse.rows(QUERIES["latest"], {"experiments": list(experiments)}):
        lists = {
            "comparisons": [Comparison(**comparison) for comparison in json.loads(row["comparisons"])],
            "reasons": json.loads(row["reasons"]),
        }
        checks[row["experiment"]] = CanaryCheck(**row | lists)
    return checks


def thin(warehouse: Warehouse, workloads: Sequence[str], recent: datetime, old: datetime) -> int:
    """Deletes old checks that held, and returns how many.

    All checks since `recent` are kept, the last of each hour since `old`, and before that the last of each step.
    Checks that moved a rollout are always kept.
    """
    return warehouse.delete(QUERIES["thin"], {"workloads": workloads, "recent": recent, "old": old})
