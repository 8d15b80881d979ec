"""Four months with real trainings: what SmolLM2-135M-Instruct makes of its rows, in the place of `learner`.

    RETUNED_DATA=/path/to/data python tests/benchmarks/run.py loop.real     # five seeds; goes on where it was stopped

RETUNED_BASE names the folder of another base model, which plays one seed: a larger one takes hours.

Topics are intents of Banking77, their wordings eight real questions each, and an answer names the desk that has to deal
with the question. Every training is one of the product, with its default settings, on from its parent's adapter. The
new version then answers all questions, and a topic's chance of an answer is the share of its questions that got it.

Trainings are kept in `build/loop-real` by what they learned from, so systems that train alike share them. Each core
plays a seed.
"""

import csv
import hashlib
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import children
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from workloads.task import data

from loop import score
from loop.learner import Answers, Rows, train
from loop.ours import Ours
from loop.systems import BASELINES
from loop.world import ANSWERS, KNOWN, SHORT, TOPICS, WORDINGS, World
from loop.year import System
from retuned.consumers.common.process import run_child
from retuned.daemon.demo.model import base_model
from retuned.retrain.settings import TrainSettings

BUILD = Path(__file__).parents[3] / "build"
OTHER = os.environ.get("RETUNED_BASE", "")
BASE = Path(OTHER or BUILD / "smollm2-135m-instruct")
PLACE = BUILD / (f"loop-real-{BASE.name}" if OTHER else "loop-real")
RESULTS, SIMULATED = PLACE / "real.jsonl", PLACE / "simulated.jsonl"
SCENARIO, SEEDS = "four_months", 1 if OTHER else 5
SYSTEMS: dict[str, Callable[[], System]] = {
    **{name: BASELINES[name] for name in ("never", "monthly", "retrieval")},
    "memory_alone": lambda: Ours(("training",)),
    "ours": Ours,
}
"""No oracle: it trains more often than the others together."""
SYSTEM = "You sort the questions of a bank's customers. Reply with the name of the desk and nothing else."
SOURCE = "https://github.com/PolyAI-LDN/task-specific-datasets (banking_data)"
_PLACES = ("North", "South", "East", "West", "Upper", "Lower", "Inner", "Outer", "Old", "New", "Great")
_COLOURS = (
    "Amber", "Blue", "Coral", "Green", "Grey", "Ivory", "Lemon", "Lilac", "Mint", "Navy", "Ochre", "Olive", "Orange",
    "Pink", "Plum", "Red", "Rust", "Sand", "Teal", "White",
)  # fmt: skip
_ROWS = pa.schema([(name, pa.string()) for name in ("row_id", "messages", "completion", "rejected", "context")])
FIRST = 4
"""The first model has at most so many trainings."""
LUCKS = 200
"""Simulated trainings of which the mean is shown beside a real one."""


class Real:
    """Trains and asks the real model."""

    def __init__(self, world: World) -> None:
        if world.topics > TOPICS:
            raise ValueError("scenarios with new topics cannot be played with real trainings")
        self._questions = questions()
        self._folders: dict[str, Path | None] = {"base": None}

    def first(self) -> Answers:
        """See `Learner`; the first model has learned what is right on day 0 in all wordings, in as many trainings as it
        needs to know it as well as in the simulated year."""
        rows = [(topic, wording, 0) for topic in range(TOPICS) for wording in range(WORDINGS)]
        model = self._trained("v0", "base", rows)
        for _ in range(FIRST - 1):
            if model[:, 0].mean() >= KNOWN:
                break
            model = self._trained("v0", "v0", rows)
        return model

    def train(self, version: str, parent: str, model: Answers, rows: Rows, luck: np.random.Generator) -> Answers:  # noqa: ARG002
        """See `Learner`."""
        return self._trained(version, parent, rows)

    def _trained(self, version: str, parent: str, rows: Rows) -> Answers:
        rows, before = sorted(set(rows)), self._folders[parent]
        settings = TrainSettings(threads=1)
        parts = {"parent": before and before.name, "rows": rows, "settings": settings.model_dump(mode="json")}
        made = json.dumps(parts)
        folder = PLACE / hashlib.sha256(made.encode()).hexdigest()[:16]
        self._folders[version] = folder
        if not (folder / "answers.json").exists():
            if not OTHER:
                base_model(BASE)
            self._write(folder / "data", rows)
            (folder / "made.json").write_text(made, encoding="utf-8")
            job = {
                "base": str(BASE),
                "parent": str(before / "train" / "adapter") if before else None,
                "dataset": str(folder / "data"),
                "folder": str(folder / "train"),
                "settings": settings.model_dump(mode="json"),
                "halved": 0,
            }
            run_child("retuned.retrain.training.train", job, folder / "train", timeout_seconds=7_200)
            answers = self._asked(folder)
            (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
        return _shares(folder)

    def _write(self, folder: Path, rows: Sequence[tuple[int, int, int]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        own = [
            {
                "row_id": f"{topic} {wording} {answer}",
                "messages": _messages(self._questions[topic][wording]),
                "completion": desk(topic, answer),
                "rejected": None,
                "context": None,
            }
            for topic, wording, answer in rows
        ]
        pq.write_table(pa.Table.from_pylist(own, _ROWS), folder / "train.parquet")

    def _asked(self, folder: Path) -> list[str]:
        """What the model answers to all questions, topic by topic."""
        asked = [
            {"row_id": "", "messages": _messages(question), "completion": "", "context": None, "tools": None}
            for own in self._questions
            for question in own
        ]
        job = {
            "base": str(BASE), "adapter": str(folder / "train" / "adapter"), "rows": asked, "max_length": 1_024,
            "max_new_tokens": 8,
        }  # fmt: skip
        (folder / "ask.json").write_text(json.dumps(job), encoding="utf-8")
        script = Path(__file__).parents[1] / "workloads" / "answers.py"
        children.run(str(script), str(folder / "ask.json"), str(folder / "answered.json"), log=folder / "ask.log")
        found: list[str] = json.loads((folder / "answered.json").read_text(encoding="utf-8"))
        return found


def _shares(folder: Path) -> Answers:
    """Of each topic, the share of its questions that got each answer."""
    model = np.zeros((TOPICS, ANSWERS))
    for place, text in enumerate(json.loads((folder / "answers.json").read_text(encoding="utf-8"))):
        topic = place // WORDINGS
        for answer in range(ANSWERS):
            model[topic, answer] += (text.strip() == desk(topic, answer)) / WORDINGS
    return model


def questions() -> list[list[str]]:
    """The first questions of the first intents of the training split."""
    found: dict[str, list[str]] = {}
    file = data("banking77", SOURCE) / "train.csv"
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            found.setdefault(row["category"], []).append(row["text"])
    return [own[:WORDINGS] for own in list(found.values())[:TOPICS]]


def desk(topic: int, answer: int) -> str:
    """The text of an answer: no two topics share one."""
    return f"{_PLACES[answer]} {_COLOURS[topic]}"


def _messages(question: str) -> str:
    return json.dumps([{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}])


@dataclass(frozen=True)
class Point:
    """A topic of a training that has a parent.

    Attributes:
        kind: changed, taught again or not taught.
        rows: number of the topic's rows.
        before, parent: share of its questions to which the parent gave that answer, and any answer of the topic.
        right: share of its questions that got the taught answer, or the one known before.
        expected, variance: what `learner` gives on average, and the variance of its share over trainings.
    """

    kind: str
    rows: int
    before: float
    parent: float
    right: float
    expected: float
    variance: float


def points() -> Iterator[Point]:
    """All topics of all trainings that have a parent, but for those with contradicting rows."""
    for file in sorted(PLACE.glob("*/made.json")):
        made = json.loads(file.read_text(encoding="utf-8"))
        if made["parent"] is None or not (file.parent / "answers.json").exists():
            continue
        before, after = _shares(PLACE / made["parent"]), _shares(file.parent)
        all_rows = [(topic, wording, answer) for topic, wording, answer in made["rows"]]
        lucks = (np.random.default_rng(seed) for seed in range(LUCKS))
        simulated = np.array([train(before, all_rows, luck) for luck in lucks])
        taught: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for topic, _, answer in all_rows:
            taught[topic][answer] += 1
        for topic in range(TOPICS):
            if len(taught[topic]) > 1:
                continue
            answer, rows = next(iter(taught[topic].items()), (int(before[topic].argmax()), 0))
            if rows or before[topic, answer] >= 0.5:
                kind = "taught again" if before[topic, answer] >= 0.5 else "changed"
                chances = simulated[:, topic, answer]
                variance = chances.var() + (chances * (1 - chances)).mean() / WORDINGS
                yield Point(
                    kind if rows else "not taught", rows, before[topic, answer], before[topic].sum(),
                    after[topic, answer], chances.mean(), variance,
                )  # fmt: skip


def beside_learner() -> str:
    """The real trainings beside what the simulated learner gives, as Markdown, and their scatter."""
    groups: defaultdict[tuple[str, int], list[Point]] = defaultdict(list)
    found = list(points())
    for point in found:
        groups[point.kind, point.rows].append(point)
    lines = ["| topic | rows | cases | right | learner |", "|---|---|---|---|---|"]
    for (kind, rows), own in sorted(groups.items()):
        real, simulated = fmean(one.right for one in own), fmean(one.expected for one in own)
        lines.append(f"| {kind} | {rows} | {len(own)} | {real:.2f} | {simulated:.2f} |")
    real, simulated = fmean((one.right - one.expected) ** 2 for one in found), fmean(one.variance for one in found)
    return "\n".join([*lines, "", f"scatter: {real**0.5:.2f}, of the learner {simulated**0.5:.2f}"])


def main(seeds: Iterable[int] = range(SEEDS)) -> dict[str, float]:
    """Plays four months with each system, and the same with simulated trainings; an hour and a half on two cores."""
    os.environ["OMP_NUM_THREADS"] = "1"
    Real(World(SHORT[SCENARIO], 0)).first()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        by_seed = pool.map(lambda seed: score.played([SCENARIO], [seed], SYSTEMS, results=RESULTS, learner=Real), seeds)
        results = [one for own in by_seed for one in own]
    simulated = score.played([SCENARIO], seeds, SYSTEMS, results=SIMULATED)
    for found in (results, simulated):
        lines = [f"| {name} | {of[0]:+,.0f} ± {of[1]:,.0f} |" for name, of in more_than_never(found).items()]
        print("| system | money more than `never` |", "|---|---|", *lines, sep="\n", file=sys.stderr)
        print("", score.decisions(found, list(SYSTEMS)), "", sep="\n", file=sys.stderr)
    print(beside_learner(), file=sys.stderr)
    return {f"loop_real_more_{name}": of[0] for name, of in more_than_never(results).items()}


def more_than_never(results: Sequence[score.Result]) -> dict[str, tuple[float, float]]:
    """By system, the money that it makes more than `never`, with its interval; each seed is compared with itself."""
    money = {(one["system"], one["seed"]): one["money"] for one in results}
    names = dict.fromkeys(name for name, _ in money if name != "never")
    return {
        name: score.interval([own - money["never", seed] for (of, seed), own in money.items() if of == name])
        for name in names
    }
