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
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.chat import ChatFailed, ask_all
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.common.tool_calls import answer_text, schemas
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
BEGUN_WITHIN = 0.8
"""The share of this time after which the child begins no further pair, so that it is not killed over the last ones."""
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

    Scores are stored as far as the child came: the judge's were paid for. The other pairs follow in the next call.

    Returns:
        the number of pairs, scored or not; 0 if no rollout is in shadow.

    Raises:
        ChildFailed: the child failed.
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
        "now": now,
    }
    pairs = warehouse.rows(QUERIES["pairs"], asked)
    if not pairs:
        return 0
    kept = warehouse.row(QUERIES["metric"], {"workload": workload, "version": running.version})
    folder = versions.workload_folder(settings.models.directory, workload)
    job = metric_job(json.loads(kept["metric"]) if kept and kept["metric"] else None, workload, settings) | {
        "pairs": [pair | {"timestamp": None, "feedback_until": None} for pair in pairs],
        "criteria": settings.metric.criteria,
        "seconds": LONGEST_SECONDS * BEGUN_WITHIN,
    }
    scored: list[dict[str, Any]] = []
    try:
        run_child(
            "retuned.retrain.release.shadow",
            job,
            folder / FOLDER,
            timeout_seconds=LONGEST_SECONDS,
            stop=stop,
            on_progress=scored.append,
            environment=judge_key(settings.evaluate),
        )
    finally:
        (folder / FOLDER / "shadow.job.json").unlink(missing_ok=True)  # it contains conversations
        with warehouse.transaction() as cursor:
            for one in scored:
                pair = pairs[one["pair"]]
                key = {"experiment": running.id, "conversation": pair["conversation"]}
                cursor.execute(QUERIES["drop_score"], key)
                known = {"interaction_id": pair["interaction_id"], "feedback_until": pair["feedback_until"]}
                row = key | known | {"scored_at": now, "booked": False} | one["scores"]
                insert(cursor, "shadow_scores", **row)
    return len(pairs)


def remove(warehouse: Warehouse, before: datetime) -> int:
    """Deletes answers from before a time that no rollout in progress needs. Returns how many."""
    return warehouse.delete(QUERIES["remove"], {"before": before})


def remove_scores(warehouse: Warehouse, workloads: Sequence[str], before: datetime) -> int:
    """Deletes scores of rollouts that ended before a time. Returns how many."""
    return warehouse.delete(QUERIES["remove_scores"], {"workloads": workloads, "before": before})


def judged(
    pairs: Sequence[Mapping[str, Any]],
    metric: Metric,
    settings: EvaluateSettings,
    objective: str,
    criteria: str | None,
    *,
    seconds: float = math.inf,
    on_score: Callable[[int, Judged], None] = lambda _number, _scores: None,
) -> list[Judged | None]:
    """Returns the scores of each pair; None if the judge was asked and gave no verdict, or if time ran out.

    Where time runs out, pairs that need no judge have scores only as far as the judge came. Otherwise a slow judge
    would leave mostly pairs that are alike, and the candidate would look better than it is.

    Args:
        pairs: rows of the query `pairs`, in random order.
        seconds: no pair is begun after this time; half of it is left to the judge.
        on_score: called with the number and the scores of each pair as soon as they are known, for one pair at a time.
    """
    began, scores = time.monotonic(), _Scores(len(pairs), on_score)
    texts = [_answers(pair) for pair in pairs]
    undecided: dict[int, int] = {}  # by number of the pair: the tokens that its metric paid for

    def ask(number: int) -> None:
        shown = _pair(str(number), pairs[number], *texts[number], objective)
        opinion = judge.compare([shown], settings, threading.Event(), criteria)
        verdict, paid = opinion.verdicts.get(str(number)), opinion.paid.get(str(number), 0)
        if verdict is None:
            scores.settle(number, None)
            raise ChatFailed(next(iter(opinion.failures), "no verdict"))
        tokens = undecided[number] + paid
        scores.settle(number, Judged("judge", float(verdict != "win"), float(verdict != "loss"), tokens))

    without_judge = seconds if settings.judge_url is None else seconds / 2  # the metric may ask it, too
    for number, pair in enumerate(pairs):
        if time.monotonic() - began > without_judge:
            break
        found = _without_judge(pair, *texts[number], metric)
        if found.scorer == "unknown" and settings.judge_url is not None:
            undecided[number] = found.tokens
            scores.wait_for(number)
        else:
            scores.settle(number, found)
    left = max(seconds - (time.monotonic() - began), 0.0)
    ask_all(list(undecided), ask, threading.Event(), None if math.isinf(left) else left)
    return scores.end()


class _Scores:
    """The scores of pairs. A pair that needs no judge gets its scores when all before it were judged; thread-safe."""

    def __init__(self, count: int, on_score: Callable[[int, Judged], None]) -> None:
        self._scores: list[Judged | None] = [None] * count
        self._on_score, self._lock, self._ended = on_score, threading.Lock(), False
        self._kept: dict[int, Judged] = {}
        self._awaited: set[int] = set()

    def wait_for(self, number: int) -> None:
        self._awaited.add(number)

    def settle(self, number: int, scores: Judged | None) -> None:
        """Takes the scores of a pair; None: the judge gave no verdict."""
        with self._lock:
            if self._ended:
                return
            was_judged = number in self._awaited
            self._awaited.discard(number)
            if scores is not None and was_judged:
                self._pass_on(number, scores)
            elif scores is not None:
                self._kept[number] = scores
            first = min(self._awaited, default=len(self._scores))
            for known in [known for known in self._kept if known < first]:
                self._pass_on(known, self._kept.pop(known))

    def end(self) -> list[Judged | None]:
        """Returns the scores; verdicts that come later are lost."""
        with self._lock:
            self._ended = True
        return self._scores

    def _pass_on(self, number: int, scores: Judged) -> None:
        self._scores[number] = scores
        self._on_score(number, scores)


def _without_judge(pair: Mapping[str, Any], champion: str, candidate: str, metric: Metric) -> Judged:
    if metric.same(candidate, champion):
        return Judged("alike", 1.0, 1.0)
    tools = schemas(json.loads(pair["tools"] or "null"))
    example = {"messages": pair["messages"], "context": pair["context"], "tools": json.dumps(tools) if tools else None}
    tokens = 0
    approved = champion if pair["helpful"] else None  # as it is compared: without its reasoning, with its calls
    if pair["correction"] is not None:
        approved = answer_text(json.loads(pair["correction"]))
    if approved is not None:
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


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Runs in the child: scores the pairs, and emits each score when it is known."""
    judged(
        job["pairs"],
        metric_in_child(job),
        settings_in_child(job),
        job["objective"],
        job["criteria"],
        seconds=job["seconds"],
        on_score=lambda number, scores: emit({"pair": number, "scores": asdict(scores)}),
    )
    return {}


if __name__ == "__main__":
    child_main(work)
