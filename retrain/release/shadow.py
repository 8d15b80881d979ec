"""Shadow: what a candidate answered beside the champion is judged, question by question, before anybody is shown it.

Each conversation counts once, by its first answer. The first of these that can tell judges it:

- `alike`: both answers say the same, by the workload's metric;
- `metric`: a person corrected or approved the champion's answer, and the metric scores both by that;
- `form`: programs can read one of the two (JSON, calls of tools), and not the other;
- `rules`: one of the two states a value that neither the passages nor the question hold, and the other does not;
- `judge`: the language model of `evaluate.judge_url`, which is shown the pair in both orders.

What none of them can tell is `unknown`, until a person says what is right. Whether the candidate is worse is decided by
`monitors.watch.canary`, from the scores that are stored here.
"""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from pydantic import SecretStr

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.common.tool_calls import answer_text
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries
from retuned.retrain import versions
from retuned.retrain.data.examples import logged_answer
from retuned.retrain.decision import judge
from retuned.retrain.decision.evaluate import JUDGE_KEY, JUDGED, hallucinated, metric_in_child
from retuned.retrain.release.routes import under_way
from retuned.retrain.scoring.metric import Metric
from retuned.retrain.settings import SECRETS, EvaluateSettings, Settings

QUERIES = named_queries("retuned.retrain.release", "shadow.sql")

MOST_AT_ONCE = 200
"""Pairs that one look judges: the rest waits for the next one, and other workloads are not held up."""
LONGEST_SECONDS = 600.0
FOLDER = "shadow"


@dataclass(frozen=True)
class Judged:
    """How good both answers to one question are, 0 to 1; None: nothing can tell.

    Attributes:
        tokens: that a language model was paid for.
    """

    scorer: str
    champion: float | None = None
    candidate: float | None = None
    tokens: int = 0


def judge_pairs(
    warehouse: Warehouse, settings: Settings, workload: str, now: datetime, stop: threading.Event | None = None
) -> int:
    """Judge what came in since the last look, in a child, and store it; 0: no rollout is in shadow, or nothing came.

    Returns:
        how many pairs were looked at.

    Raises:
        ChildFailed: the child failed; nothing of it is stored.
        Cancelled: stop was set.
    """
    running = under_way(warehouse, workload)
    if running is None or running.state != "canary" or running.share > 0:
        return 0
    asked = {
        "experiment": running.id,
        "workload": workload,
        "candidate": versions.model_name(workload, running.version),
        "previous": running.previous_version or "base",
        "since": running.created_at,
        "most": MOST_AT_ONCE,
    }
    pairs = warehouse.rows(QUERIES["pairs"], asked)
    if not pairs:
        return 0
    kept = warehouse.row(QUERIES["metric"], {"workload": workload, "version": running.version})
    folder = versions.workload_folder(settings.models.directory, workload)
    key = settings.evaluate.judge_key
    result = run_child(
        "retuned.retrain.release.shadow",
        {
            "pairs": [pair | {"timestamp": None} for pair in pairs],
            "settings": settings.evaluate.model_dump(mode="json", exclude=SECRETS["evaluate"]),
            "metric": json.loads(kept["metric"]) if kept and kept["metric"] else None,
            "metric_settings": settings.metric.model_dump(mode="json"),
            "objective": settings.objective,
            "criteria": settings.metric.criteria,
            "judged": str(folder / JUDGED),
        },
        folder / FOLDER,
        timeout_seconds=LONGEST_SECONDS,
        stop=stop,
        environment={} if key is None else {JUDGE_KEY: key.get_secret_value()},
    )
    (folder / FOLDER / "shadow.job.json").unlink(missing_ok=True)  # it holds conversations
    with warehouse.transaction() as cursor:
        for pair, found in zip(pairs, result["judged"], strict=True):
            if found is None:  # the judge did not answer: it is asked again
                continue
            of = {"experiment": running.id, "conversation": pair["conversation"]}
            cursor.execute(QUERIES["drop_score"], of)
            row = of | {"interaction_id": pair["interaction_id"], "scored_at": now, "booked": False} | found
            insert(cursor, "shadow_scores", **row)
    return len(pairs)


def remove(warehouse: Warehouse, before: datetime) -> int:
    """Delete answers that no rollout under way needs and that came before a time; returns how many."""
    return warehouse.delete(QUERIES["remove"], {"before": before})


def remove_scores(warehouse: Warehouse, before: datetime) -> int:
    """Delete scores of rollouts that ended before a time; returns how many."""
    return warehouse.delete(QUERIES["remove_scores"], {"before": before})


def judged(
    pairs: Sequence[Mapping[str, Any]], metric: Metric, settings: EvaluateSettings, objective: str, criteria: str | None
) -> list[Judged | None]:
    """Each pair, judged by the first that can tell; None: a judge would have, and gave no verdict."""
    texts = [_answers(pair) for pair in pairs]
    found: list[Judged | None] = [_without_judge(pair, *both, metric) for pair, both in zip(pairs, texts, strict=True)]
    left = [number for number, one in enumerate(found) if one is not None and one.scorer == "unknown"]
    if settings.judge_url is None or not left:
        return found
    shown = [_pair(str(number), pairs[number], *texts[number], objective) for number in left]
    opinion = judge.compare(shown, settings, threading.Event(), criteria)
    for place, number in enumerate(left):
        verdict = opinion.verdicts.get(str(number))
        tokens = opinion.tokens if place == 0 else 0  # they are told of all of them together
        found[number] = None
        if verdict is not None:
            found[number] = Judged("judge", float(verdict != "win"), float(verdict != "loss"), tokens)
    return found


def _without_judge(pair: Mapping[str, Any], champion: str, candidate: str, metric: Metric) -> Judged:
    if metric.same(candidate, champion):
        return Judged("alike", 1.0, 1.0)
    example = {"messages": pair["messages"], "context": pair["context"]}
    tokens = 0
    if pair["approved"]:
        approved = answer_text(json.loads(pair["approved"]))
        before, after = (metric.score(answer, approved, example) for answer in (champion, candidate))
        tokens = before.tokens + after.tokens
        if before.value is not None and after.value is not None:
            return Judged("metric", before.value, after.value, tokens)
    readable = [not metric.unreadable(answer, example) for answer in (champion, candidate)]
    if readable[0] != readable[1]:
        return Judged("form", float(readable[0]), float(readable[1]), tokens)
    if context := json.loads(pair["context"] or "[]"):
        question = "\n".join(str(turn.get("content") or "") for turn in json.loads(pair["messages"]))
        invented = [bool(hallucinated(answer, "", question, context)) for answer in (champion, candidate)]
        if invented[0] != invented[1]:
            return Judged("rules", float(not invented[0]), float(not invented[1]), tokens)
    return Judged("unknown", tokens=tokens)


def _answers(pair: Mapping[str, Any]) -> tuple[str, str]:
    """The texts of champion and candidate, with their calls of tools."""
    answer = json.loads(pair["answer"])
    calls = answer.get("tool_calls")
    return (
        logged_answer(pair["response"], pair["calls"])[1],
        logged_answer(answer["response"], json.dumps(calls) if calls else None)[1],
    )


def _pair(row_id: str, pair: Mapping[str, Any], champion: str, candidate: str, objective: str) -> judge.Pair:
    turns = [f"{turn['role']}: {turn.get('content') or ''}" for turn in json.loads(pair["messages"])]
    context = "\n\n".join(json.loads(pair["context"] or "[]"))
    return judge.Pair(row_id, "\n".join(turns), context or None, "", champion, candidate, objective)


def work(job: dict[str, Any], _emit: Emit) -> dict[str, Any]:
    """The child's side."""
    metric = metric_in_child(job)
    settings = EvaluateSettings.model_validate(job["settings"])
    if key := os.environ.get(JUDGE_KEY):
        settings = settings.model_copy(update={"judge_key": SecretStr(key)})
    found = judged(job["pairs"], metric, settings, job["objective"], job["criteria"])
    return {"judged": [None if one is None else asdict(one) for one in found]}


if __name__ == "__main__":
    child_main(work)
