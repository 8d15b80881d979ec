"""Benchmarks are run seldom: that each can start is seen here."""

import importlib
import json
import random
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "run"))
def test_a_benchmark_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("language", ["german", "french"])
def test_an_exam_of_a_shop_tells_right_from_wrong(language: str) -> None:
    shops = importlib.import_module("workloads.shops")
    task = shops.task(language)
    assert {json.dumps(item.messages) for item in task.asked}.isdisjoint(json.dumps(one.messages) for one in task.exam)
    for item in task.exam:
        assert task.right(item.answer, item) == 1
        assert task.right(task.wrong(item, random.Random(0)), item) == 0


def test_the_double_of_a_judge_prefers_what_names_more_of_the_call() -> None:
    task = importlib.import_module("workloads.summaries").task()
    item = task.exam[0]
    parts = {"conversation": item.messages[-1]["content"], "answer A": "Somebody called.", "answer B": item.answer}
    shown = "\n\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in parts.items())
    assert task.judge(shown) == "Verdict: B"
