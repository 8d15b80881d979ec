"""Shadow: scores a candidate's answers against the champion's, before users see any of them.

Each conversation counts once, by its first answer. The first scorer that does not abstain decides:

- `alike`: both answers have the same meaning, by the workload's metric;
- `metric`: a person corrected or approved the champion's answer, and the metric scores both answers by that;
- `form`: programs can read only one of the two (JSON, tool calls);
- `rules`: only one of the two states a value that is neither in the passages nor in the question;
- `judge`: the language model of `evaluate.judge_url` compares the pair in both orders.

A pair without a score is `unknown`, until a person gives the right answer. From the stored scores
`monitors.watch.canary` decides whether the candidate is worse.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.common.tool_calls import answer_text
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries
from retuned.retrain import versions
from retuned.retrain.data.examples import logged_answer
from retuned.retrain.decision import judge
from retuned.retrain.decision.measures import hallucinated
from retuned.retrain.decision.metric_job import judge_key, metric_in_child, metric_job, settings_in_child
from retuned.retrain.release.routes import under_way
from retuned.retrain.scoring.metric import Metric
from retuned.retrain.settings import EvaluateSettings, Settings

QUERIES = named_queries("retuned.retrain.release", "shadow.sql")

MOST_AT_ONCE = 200
"""The maximum number of pairs per call, so that other workloads are not delayed. The rest follows in the next one."""
LONGEST_SECONDS = 600.0
FOLDER = "shadow"


@dataclass(frozen=True)
class Judged:
    """The scores of both answers to a question, 0 to 1; None if unknown.

    Attributes:
        tokens: the tokens of a language model that were paid for.
    """

    scorer: str
    champion: float | None = None
    candidate: float | None = None
    tokens: int = 0


def judge_pairs(
    warehouse: Warehouse, settings: Settings, workload: str, now: datetime, stop: threading.Event | None = None
) -> int:
    """Scores new pairs of answers of a rollout in shadow, in a child process, and stores the scores.

    Returns:
        the number of pairs; 0 if no rollout is in shadow.

    Raises:
        ChildFailed: the child failed; nothing is stored.
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
    result = run_child(
        "retuned.retrain.release.shadow",
        metric_job(json.loads(kept["metric"]) if kept and kept["metric"] else None, workload, settings)
        | {"pairs": [pair | {"timestamp": None} for pair in pairs], "criteria": settings.metric.criteria},
        folder / FOLDER,
        timeout_seconds=LONGEST_SECONDS,
        stop=stop,
        environment=judge_key(settings.evaluate),
    )
    (folder / FOLDER / "shadow.job.json").unlink(missing_ok=True)  # it contains conversations
    with warehouse.transaction() as cursor:
        for pair, scores in zip(pairs, result["judged"], strict=True):
            if scores is None:  # the judge gave no verdict: try again next time
                continue
            key = {"experiment": running.id, "conversation": pair["conversation"]}
            cursor.execute(QUERIES["drop_score"], key)
            row = key | {"interaction_id": pair["interaction_id"], "scored_at": now, "booked": False} | scores
            insert(cursor, "shadow_scores", **row)
    return len(pairs)


def remove(warehouse: Warehouse, before: datetime) -> int:
    """Deletes answers from before a time that no rollout in progress needs. Returns how many."""
    return warehouse.delete(QUERIES["remove"], {"before": before})


def remove_scores(warehouse: Warehouse, workloads: Sequence[str], before: datetime) -> int:
    """Deletes scores of rollouts that ended before a time. Returns how many."""
    return warehouse.delete(QUERIES["remove_scores"], {"workloads": workloads, "before": before})


def judged(
    pairs: Sequence[Mapping[str, Any]], metric: Metric, settings: EvaluateSettings, objective: str, criteria: str | None
) -> list[Judged | None]:
    """Returns the scores of each pair; None if the judge was asked and gave no verdict."""
    texts = [_answers(pair) for pair in pairs]
    scored: list[Judged | None] = [_without_judge(pair, *both, metric) for pair, both in zip(pairs, texts, strict=True)]
    tokens = {number: one.tokens for number, one in enumerate(scored) if one is not None and one.scorer == "unknown"}
    left = list(tokens)
    if settings.judge_url is None or not left:
        return scored
    shown = [_pair(str(number), pairs[number], *texts[number], objective) for number in left]
    opinion = judge.compare(shown, settings, threading.Event(), criteria)
    for number in left:
        verdict, paid = opinion.verdicts.get(str(number)), opinion.paid.get(str(number), 0)
        scored[number] = None
        if verdict is not None:
            scored[number] = Judged("judge", float(verdict != "win"), float(verdict != "loss"), tokens[number] + paid)
    return scored


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
    """Returns the texts of champion and candidate, with their tool calls."""
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
    """Runs in the child: scores the pairs."""
    scores = judged(job["pairs"], metric_in_child(job), settings_in_child(job), job["objective"], job["criteria"])
    return {"judged": [None if one is None else asdict(one) for one in scores]}


if __name__ == "__main__":
    child_main(work)
