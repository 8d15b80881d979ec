"""Benchmarks are run seldom: that each can start is seen here."""

import importlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from retuned.retrain.scoring import exam

FOLDER = Path(__file__).parents[2] / "benchmarks"
DOCS = Path(__file__).parents[3] / "docs" / "benchmarks.md"
NAMED = sorted(set(re.findall(r"run\.py ([a-z_]+\.[a-z_]+)", DOCS.read_text(encoding="utf-8"))))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "run"))
def test_a_benchmark_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", NAMED)
def test_a_part_that_the_docs_name_can_be_run(name: str) -> None:
    assert callable(importlib.import_module("run").benchmark(name))


def test_a_part_is_asked_of_the_benchmark_that_has_it() -> None:
    learned = importlib.import_module("run").benchmark("learned.sets")
    assert (learned.func.__module__, learned.args) == ("learned", ("sets",))
    assert importlib.import_module("run").benchmark("learned.cost").__module__ == "learned_cost"


def test_an_object_with_one_wrong_field_is_not_the_same() -> None:
    """Its score is a half, which is no verdict of a person."""
    approved = '{"seats": 6, "time": "20:00"}'
    answers = {"equal": '{"time": "20:00", "seats": 6}', "late": '{"seats": 6, "time": "08:00"}'}
    pairs = [
        {"id": name, "question": "A table for six at eight in the evening.", "approved": approved, "answer": answer}
        for name, answer in answers.items()
    ]
    assert importlib.import_module("learned").scored(pairs, "json") == {"equal": True, "late": False}


@pytest.mark.parametrize("language", ["german", "french"])
def test_an_exam_of_a_shop_tells_right_from_wrong(language: str) -> None:
    shops = importlib.import_module("workloads.shops")
    task = shops.task(language)
    assert {json.dumps(item.messages) for item in task.asked}.isdisjoint(json.dumps(one.messages) for one in task.exam)
    for item in task.exam:
        assert task.right(item.answer, item) == 1
        assert task.right(task.wrong(item, random.Random(0)), item) == 0


def test_the_double_of_a_judge_finds_what_differs_in_summaries_and_passes_the_exam() -> None:
    task = importlib.import_module("workloads.summaries").task()
    item, pair = task.exam[0], next(pair for pair in exam.shipped() if pair.same)

    def judged(conversation: str, one: str, other: str) -> str:
        parts = {"conversation": conversation, "answer A": one, "answer B": other}
        said: str = task.judge("\n\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in parts.items()))
        return said

    call = item.messages[-1]["content"]
    assert judged(call, "Somebody called.", item.answer) == "no"
    assert judged(call, f"In short: {item.answer}", item.answer) == "yes"
    assert judged(pair.question, pair.answer, pair.approved) == "yes"
    assert judged(pair.question, "Perhaps.", pair.approved) == "no"


def _intents(count: int) -> Any:
    """As the workload of labels in `aa`, of ten intents without their data."""
    aa = importlib.import_module("aa")
    task_module = importlib.import_module("workloads.task")
    names = [f"Intent {number}" for number in range(10)]
    items = [
        task_module.Item(task_module.said(f"question {number}"), names[number % 10], names[number % 10])
        for number in range(count)
    ]

    def wrong(item: Any, luck: random.Random) -> str:
        return luck.choice([name for name in names if name != item.answer])

    return aa.Workload(task_module.Task("intents", items, [], wrong, task_module.exact), {}, items)


def test_a_holdout_of_the_aa_test_has_each_class_and_shares_no_question() -> None:
    aa = importlib.import_module("aa")
    workload = _intents(700)
    for size in aa.SIZES:
        parts = aa._drawn(workload.pool, size, 0)
        assert [len(part) for part in parts] == [size, size, aa.TRAFFIC]
        assert len(set().union(*parts)) == 2 * size + aa.TRAFFIC
        groups = [workload.pool[int(one)].group for one in parts[0]]
        assert min(groups.count(f"Intent {number}") for number in range(10)) == size // 10
        assert parts != aa._drawn(workload.pool, size, 1)


def test_the_aa_test_promotes_what_is_better_and_nothing_else() -> None:
    """The champion is right in one intent, and in every second question of the others."""
    aa = importlib.import_module("aa")
    workload = _intents(700)
    right = {str(number): item.answer for number, item in enumerate(workload.pool)}
    outputs = {
        "champion": {
            id: answer if answer == "Intent 3" or int(id) // 10 % 2 else "Intent 0" for id, answer in right.items()
        },
        "right": right,
        "lost": {id: "Intent 1" if answer == "Intent 3" else answer for id, answer in right.items()},
    }
    answers = {name: workload.measured(name, texts, workload.holdout) for name, texts in outputs.items()}
    told = aa._Report(workload, outputs)

    def promoted(candidate: str) -> list[bool]:
        return list(aa._each(workload, answers, ["champion"], [candidate], told))

    assert all(promoted("right"))
    assert not any(promoted("champion"))
    assert sum(promoted("lost")) <= 1  # of 120, where only three questions of the class were asked
