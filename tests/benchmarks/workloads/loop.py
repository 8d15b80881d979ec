"""One workload from its events to the exam: import, retrain, and what base, adapter and TRL's adapter answer."""

import json
import random
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

import children
import yaml

from fixtures.servers.judges import serving
from retuned.consumers.common import tool_calls
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.demo.model import base_model
from retuned.daemon.operations.files import FileIntake
from retuned.daemon.operations.local import opened
from retuned.daemon.settings import Settings, load
from retuned.daemon.transfer.imports import import_files
from retuned.retrain import versions
from retuned.retrain.data import dataset as datasets
from retuned.retrain.decision.evaluation import CANDIDATE, LOGGED
from retuned.retrain.queue import enqueue
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.run import RunResult, resume
from workloads.task import Item, Task

ROOT = Path(__file__).parents[3]
BASE = ROOT / "build" / "smollm2-135m-instruct"
START = datetime(2026, 3, 1, tzinfo=UTC)
RIGHT, EXPERTS, ACCOUNTS = 0.25, 0.3, 80
LARGE = 20
GROUP = 10
"""The worst group of the exam is looked for among those of so many questions."""
CHILD_SECONDS = 3 * 3_600.0
"""TRL's training of some hundred rows takes a quarter of an hour of a quiet core."""


def figures(task: Task, place: Path) -> dict[str, float]:
    """What production, the base model, the adapter and TRL's answer rightly; what was kept; what the gate reported.

    Production is right in a quarter of its answers: those are called helpful, the others corrected, by an expert in
    three of ten cases, all rightly.
    """
    base_model(BASE)
    with serving() as judge:
        if task.judge is not None:
            judge.reply = task.judge
        return _figures(task, place, _settings(task, place, judge.url))


def _figures(task: Task, place: Path, settings: Settings) -> dict[str, float]:
    asked = _imported(task, place, settings)
    warehouse = open_warehouse(settings.warehouse)
    try:
        rollout = Rollout(warehouse, settings, MemoryPublisher(), "models")
        now = START + timedelta(days=60)
        run_id = enqueue(warehouse, task.name, ["benchmark"], now)
        result = resume(rollout, run_id, lambda: now, threading.Event(), lambda _: None)
        _tell(task, result)
        if result.version is None or result.dataset_version is None:
            return {f"workload_{task.name}_passed": 0.0}
        version = versions.find(warehouse, task.name, result.version)
        dataset = datasets.load(warehouse, task.name, result.dataset_version)
        assert version is not None
        assert dataset is not None
        judged = warehouse.rows(
            "SELECT model, row_id, score, output FROM evaluations WHERE run_id = ? AND split = 'holdout'",
            [result.run_id],
        )
    finally:
        warehouse.close()
    found = {"passed": float(result.promoted), "kept": _kept(dataset, asked)}
    found |= _gate_error(task, dataset, asked, judged, version.version)
    found["logged"] = fmean(row["score"] for row in judged if row["model"] == LOGGED and row["score"] is not None)
    for name, adapter in {"base": None, "promoted": str(version.path)}.items():
        found |= _examined(task, place, name, adapter, settings)
    peer = _child("peer", place, {
        "base": str(BASE), "dataset": str(dataset.path), "folder": str(place / "trl"),
        "settings": settings.train.model_dump(mode="json"), "steps": int(result.training["steps"]),
        "learning_rate": settings.train.learning_rate or 2e-3,
    })  # fmt: skip
    found |= _examined(task, place, "trl", peer["adapter"], settings)
    found |= {"train_seconds": float(result.training["seconds"]), "trl_seconds": peer["seconds"]}
    return {f"workload_{task.name}_{name}": value for name, value in found.items()}


def _examined(task: Task, place: Path, name: str, adapter: str | None, settings: Settings) -> dict[str, float]:
    """The score in the exam and, of the promoted adapter, that of the worst group."""
    scores = _exam(task, place, name, adapter, settings)
    found = {name: fmean(score for group in scores.values() for score in group)}
    large = [group for group in scores if len(scores[group]) >= GROUP] or list(scores)
    worst = min(large, key=lambda group: fmean(scores[group]))
    print(
        f"{task.name} {name}: {found[name]:.3f}; worst: {worst} {fmean(scores[worst]):.3f}", file=sys.stderr, flush=True
    )
    return found | ({"worst": fmean(scores[worst])} if name == "promoted" else {})


def _settings(task: Task, place: Path, judge_url: str) -> Settings:
    config = place / "retuned.yaml"
    own = {
        "warehouse": {"path": str(place / "retuned.duckdb")},
        "models": {"base": str(BASE), "directory": str(place / "models")},
        "train": {"threads": 1},
        "evaluate": {"max_new_tokens": task.max_new_tokens, "maximum_examples": 400},
    }
    if task.judge is not None:
        own["evaluate"] |= {"judge_url": judge_url, "judge_model": "double"}
    for section, values in task.settings.items():
        own[section] = own.get(section, {}) | values
    config.write_text(yaml.safe_dump(own), encoding="utf-8")
    return load(config)


def _imported(task: Task, place: Path, settings: Settings) -> dict[str, Item]:
    """Import the events as `retuned import` does. Returns what was asked, by the interaction's id."""
    luck = random.Random(0)
    items = list(task.asked)
    luck.shuffle(items)
    file = place / "events.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for number, item in enumerate(items):
            for event in _events(task, number, item, luck):
                lines.write(json.dumps(event, ensure_ascii=False) + "\n")
    with opened(settings) as service:
        import_files([file], None, None, settings, FileIntake(service))
    return {f"i{number}": item for number, item in enumerate(items)}


def _events(task: Task, number: int, item: Item, luck: random.Random) -> Iterator[dict[str, Any]]:
    right = luck.random() < RIGHT
    when = START + timedelta(minutes=30 * number)
    yield {
        "id": f"i{number}",
        "timestamp": when.isoformat(),
        "workload": task.name,
        "model": "production",
        "messages": item.messages,
        "response": _message(item.answer if right else task.wrong(item, luck)),
        "user_id": f"account-{luck.randrange(ACCOUNTS)}",
    } | ({"tools": item.tools} if item.tools else {})
    expert = luck.random() < EXPERTS
    yield {
        "id": f"f{number}",
        "timestamp": (when + timedelta(minutes=5)).isoformat(),
        "interaction_id": f"i{number}",
        "name": "helpful" if right else "correction",
        "value": True if right else _message(item.answer),
        "source": "expert" if expert else "user",
        "user_id": f"staff-{luck.randrange(3)}" if expert else f"account-{luck.randrange(ACCOUNTS)}",
    }


def _message(answer: str) -> Any:
    """The answer as an app sends it: a chat message where it calls tools, else its text."""
    try:
        words, calls = tool_calls.read(answer)
    except ValueError:
        return answer
    if not calls:
        return answer
    functions = [{"name": call.name, "arguments": json.dumps(call.arguments)} for call in calls]
    called = [{"id": str(n), "type": "function", "function": function} for n, function in enumerate(functions)]
    return {"role": "assistant", "content": words, "tool_calls": called}


def _kept(dataset: datasets.Dataset, asked: dict[str, Item]) -> float:
    """The share of the questions that is in the dataset; the least of all groups that have LARGE or more."""
    sent = Counter(item.group for item in asked.values())
    kept: Counter[str] = Counter()
    for split in ("train", "holdout"):
        kept.update(asked[row["interaction_id"]].group for row in dataset.split(split))
    shares = [kept[name] / count for name, count in sent.items() if count >= LARGE]
    return min([kept.total() / sent.total(), *shares])


def _gate_error(
    task: Task, dataset: datasets.Dataset, asked: dict[str, Item], judged: list[dict[str, Any]], version: str
) -> dict[str, float]:
    """What the gate reported of the candidate on the holdout, beside a second judgement of the same answers."""
    item = {row["row_id"]: asked[row["interaction_id"]] for row in dataset.split("holdout")}
    own = [row for row in judged if row["model"] in (version, CANDIDATE) and row["score"] is not None]
    reported = fmean(row["score"] for row in own)
    judged_again = task.graded or task.right
    seen = fmean(judged_again(row["output"], item[row["row_id"]]) for row in own)
    return {"gate": reported, "gate_error": abs(reported - seen)}


def _exam(task: Task, place: Path, name: str, adapter: str | None, settings: Settings) -> dict[str, list[float]]:
    """Scores of the exam's answers, by group."""
    rows = [
        {
            "row_id": str(number),
            "messages": json.dumps(item.messages),
            "completion": item.answer,
            "context": None,
            "tools": json.dumps(item.tools) if item.tools else None,
        }
        for number, item in enumerate(task.exam)
    ]
    answers = _child("answers", place, {
        "base": str(BASE), "adapter": adapter, "rows": rows, "max_length": settings.train.max_length,
        "max_new_tokens": task.max_new_tokens,
    }, name)  # fmt: skip
    found: dict[str, list[float]] = defaultdict(list)
    for item, answer in zip(task.exam, answers, strict=True):
        found[item.group].append(task.right(answer, item))
    return found


def _child(script: str, place: Path, job: dict[str, Any], name: str = "") -> Any:
    given, out = place / f"{script}{name}.job.json", place / f"{script}{name}.json"
    given.write_text(json.dumps(job), encoding="utf-8")
    children.run(
        str(Path(__file__).with_name(f"{script}.py")),
        str(given),
        str(out),
        log=place / f"{script}{name}.log",
        timeout=CHILD_SECONDS,
    )
    return json.loads(out.read_text(encoding="utf-8"))


def _tell(task: Task, result: RunResult) -> None:
    print(f"{task.name}: {result.state}, promoted {result.promoted}, {result.scores}", file=sys.stderr)
    for reason in [*result.reasons, *([result.error] if result.error else [])]:
        print(f"  {reason}", file=sys.stderr)
