"""What the stored events show of mistakes in a deployment: `retuned doctor`."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typing_extensions import TypedDict

from retuned.consumers.common.times import shown
from retuned.consumers.privacy.sealing import leading
from retuned.daemon.operations.answers import about
from retuned.daemon.operations.fields import Nothing
from retuned.daemon.operations.operation import STREAM_SECONDS, Caller, operation

if TYPE_CHECKING:
    from retuned.consumers.warehouse.connection import Warehouse
    from retuned.daemon.operations.local import Local

LOOK_BACK = timedelta(days=7)
SETTLED = timedelta(minutes=10)
"""Feedback may come before its answer by so much."""
ENOUGH = 50
"""Answers of a workload, or pieces of feedback, from which a conclusion is drawn."""
MANY = 0.1
"""A share of messages that are wrong above which it is no chance."""
NAMED = 3
ARGUMENTS = "arguments"
Mark = Literal["ok", "warn", "FAIL"]


class Diagnosed(TypedDict):
    mark: Annotated[Mark, about("ok, warn (a person should look) or FAIL")]
    name: Annotated[str, about("what was looked at")]
    found: Annotated[str, about("what was found")]
    remedy: Annotated[str, about("what mends it; empty: nothing is wrong")]


@operation("GET", "/diagnosis", least="operator", seconds=STREAM_SECONDS)
def diagnosis(local: "Local", request: Nothing, caller: Caller) -> list[Diagnosed]:
    """What the events of seven days show of mistakes: no events or feedback, ids that match nothing, wrong clocks."""
    now = local.jobs.context.now()
    arguments, instructions = replaced_arguments(local.warehouse, now), _instructions(local, now)
    return [*_events(local, now), *_feedback(local, now), *arguments, *instructions, *_metrics(local), *_jobs(local)]


def _rows(local: "Local", query: str, **given: object) -> list[dict[str, Any]]:
    return _of(local.warehouse, query, **given)


def _of(warehouse: "Warehouse", query: str, **given: object) -> list[dict[str, Any]]:
    from retuned.consumers.warehouse.connection import named_queries

    return warehouse.rows(named_queries("retuned.daemon.operations", "diagnosis.sql")[query], given)


def replaced_arguments(warehouse: "Warehouse", now: datetime) -> Iterator[Diagnosed]:
    """Arguments of tool calls whose values are pseudonyms, so that no model learns such a call."""
    found = _of(warehouse, "replaced", since=now - LOOK_BACK)
    if found:
        named = "; ".join(f"{one['key']} ({', '.join(one['workloads'][:NAMED])})" for one in found[:NAMED])
        more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
        yield _found(
            "warn",
            ARGUMENTS,
            f"values under these keys were replaced by pseudonyms in the last seven days: {named}{more}. Answers with "
            "such a value are not taught",
            "if a key holds no user and no personal data, name it in privacy.keep_keys",
        )


def _events(local: "Local", now: datetime) -> Iterator[Diagnosed]:
    since, kafka = now - LOOK_BACK, local.settings.kafka
    (found,) = _rows(local, "events", since=since)
    stored, recent, ahead = (int(str(found[name])) for name in ("stored", "recent", "ahead"))
    if not stored:
        yield _found(
            "FAIL",
            "events",
            "no answer is stored",
            f"publish interactions to the topic {kafka.interactions_topic}, or run `retuned import FILE`; "
            "`retuned dead-letters list` shows what could not be decoded",
        )
    elif not recent:
        yield _found(
            "FAIL",
            "events",
            f"the last answer came on {shown(found['last_at'])}",
            f"check that the apps run and publish to the topic {kafka.interactions_topic} of {kafka.bootstrap_servers}",
        )
    else:
        yield _found("ok", "events", f"{recent:,} answers arrived in the last seven days")
    ((future,),) = (row.values() for row in _rows(local, "future", since=since))
    if future or (recent and ahead > MANY * recent):
        lead = f"; the farthest by {found['most_ahead']}" if ahead else ""
        yield _found(
            "FAIL",
            "clock",
            f"{ahead:,} of {recent:,} answers, and {future:,} dead letters, are dated after they arrived{lead}",
            "synchronise the clocks of the producers and of this machine (NTP), and send UTC or times with an offset",
        )
    elif recent:
        yield _found("ok", "clock", "answers are dated before they arrived")
    letters = _rows(local, "dead_letters", since=since)
    count = sum(int(str(row["letters"])) for row in letters)
    if count > MANY * max(recent, ENOUGH):
        most = letters[0]
        yield _found(
            "warn",
            "dead letters",
            f"{count:,} messages of the last seven days could not be decoded, most of them {most['reason']}: "
            f"{most['detail']}",
            f"`retuned dead-letters list --reason {most['reason']}`; correct the producer, then "
            "`retuned dead-letters replay`",
        )


def _feedback(local: "Local", now: datetime) -> Iterator[Diagnosed]:
    since, topic = now - LOOK_BACK, local.settings.kafka.feedback_topic
    unrated = _rows(local, "unrated", since=since, enough=ENOUGH)
    if unrated:
        names = ", ".join(str(row["workload"]) for row in unrated[:NAMED])
        more = f" and {len(unrated) - NAMED} more" if len(unrated) > NAMED else ""
        yield _found(
            "warn",
            "feedback",
            f"{names}{more}: answers in the last seven days, and no feedback on any of them",
            f"publish votes or corrections to the topic {topic}, with the id of the answer as interaction_id, or have "
            "experts judge answers: `retuned labels`",
        )
    (found,) = _rows(local, "unmatched", since=since, settled=now - SETTLED)
    feedback, unmatched = int(str(found["feedback"])), int(str(found["unmatched"]))
    if feedback >= ENOUGH and unmatched > MANY * feedback:
        yield _found(
            "FAIL",
            "ids of feedback",
            f"{unmatched:,} of {feedback:,} pieces of feedback are about answers that are not stored, such as "
            f"{found['example']}",
            "send the id of the interaction event, or of the gateway's answer, as interaction_id",
        )
    elif feedback:
        yield _found("ok", "ids of feedback", f"{feedback - unmatched:,} of {feedback:,} match a stored answer")


def _instructions(local: "Local", now: datetime) -> Iterator[Diagnosed]:
    """System prompts with a date that changes, which makes another question of the same one each day."""
    from retuned.retrain.data.identity import CLOCK
    from retuned.retrain.data.question import Rules

    lines: dict[str, Counter[str]] = defaultdict(Counter)
    asked: Counter[str] = Counter()
    for row in _rows(local, "instructions", since=now - LOOK_BACK, most=4 * ENOUGH):
        harmless = local.settings.for_workload(row["workload"]).dataset.harmless_instructions
        asked[row["workload"]] += 1
        texts = (turn.get("content") for turn in leading(json.loads(row["messages"])))
        kept = (Rules(harmless=harmless).instructions(text) for text in texts if isinstance(text, str))
        lines[row["workload"]].update({line for text in kept for line in text.split("\n") if CLOCK.search(line)})
    for workload, dated in lines.items():
        varying = [line for line, count in dated.items() if count < 0.95 * asked[workload]]
        if asked[workload] >= ENOUGH and sum(dated[line] for line in varying) >= 0.5 * asked[workload]:
            yield _found(
                "warn",
                f"system prompt of {workload}",
                f"it holds a date or a time that changes, such as {varying[0][:80]!r}: votes and corrections of two "
                "days are about different questions",
                f"if it makes no difference to the answers, name the line in workloads.{workload}.dataset."
                "harmless_instructions, for example ['Today is .*']",
            )


def _metrics(local: "Local") -> Iterator[Diagnosed]:
    """Metrics that failed their exam, and so decide nothing."""
    from retuned.retrain.scoring.exam import OWN, SHIPPED, may_decide, newest

    with local.warehouse.cursor() as cursor:
        for row in _rows(local, "exams", workloads=local.jobs.context.measured()):
            workload, metric = str(row["workload"]), str(row["metric"])
            bar = local.settings.for_workload(workload).metric.exam_bar
            marks = (newest(cursor, workload, metric, source) for source in (SHIPPED, OWN))
            permission = may_decide(metric, *marks, bar=bar)
            if not permission.granted:
                yield _found(
                    "FAIL",
                    f"metric of {workload}",
                    permission.reason,
                    "set evaluate.judge_url, or metric.name to a metric that fits; "
                    f"`retuned score --exam --workload {workload}` tries it",
                )


def _jobs(local: "Local") -> Iterator[Diagnosed]:
    for job, problem in local.jobs.context.failures.items():
        yield _found("FAIL", f"job {job}", problem, "the log of the daemon has the whole error")


def _found(mark: Mark, name: str, found: str, remedy: str = "") -> Diagnosed:
    return Diagnosed(mark=mark, name=name, found=found, remedy=remedy)
