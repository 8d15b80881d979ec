import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from judges import serving

from retuned.retrain.data.dataset import Dataset
from retuned.retrain.decision.compare import compare
from retuned.retrain.decision.evaluate import drawn, evaluate
from retuned.retrain.decision.evaluation import BASE, CANDIDATE, CHAMPION, FOLD, LOGGED, Evaluation, summary
from retuned.retrain.decision.measures import grounded, measured, scored
from retuned.retrain.decision.metric_job import metric_in_child
from retuned.retrain.scoring.exact import Exact
from retuned.retrain.scoring.facts import Facts
from retuned.retrain.scoring.label import Label
from retuned.retrain.settings import MetricSettings, ModelsSettings, Settings
from retuned.retrain.versions import ADAPTER_FILES

ROW = Evaluation(
    model=CANDIDATE,
    split="holdout",
    row_id="r",
    topic=None,
    origin=None,
    language="en",
    turns=1,
    with_context=False,
    score=1.0,
    token_f1=0.5,
    loss=0.25,
    hallucinated=None,
    grounded=None,
    consistency=1.0,
    refused=False,
    length_ratio=1.0,
    latency_seconds=0.1,
    output="x",
)


@pytest.mark.parametrize(
    ("answer", "context", "expected"),
    [
        ("It takes 30 days and costs 5 euros.", ["Returns: 30 days"], 0.5),
        ("Order 7 takes 30 days.", ["Returns: 30 days"], 1.0),
        ("It takes 30 days.", None, None),
        ("It takes a while.", ["Returns: 30 days"], None),
    ],
)
def test_grounded(answer: str, context: list[str] | None, expected: float | None) -> None:
    assert grounded(answer, "where is order 7?", context) == expected


def test_the_pace_is_the_time_of_an_answer_over_its_tokens() -> None:
    assert replace(ROW, latency_seconds=0.5, output_tokens=20).seconds_per_token == 0.025
    assert replace(ROW, latency_seconds=0.5, output_tokens=0).seconds_per_token == 0.5
    assert ROW.seconds_per_token is None


def test_what_is_measured_of_an_answer_needs_its_text_alone() -> None:
    row = {
        "row_id": "r",
        "kind": "correction",
        "messages": json.dumps([{"role": "user", "content": "how long is the return window of a lamp?"}]),
        "completion": "Lamps can be returned within 30 days.",
        "context": json.dumps(["Returns: 14 days"]),
    }
    found = [measured("holdout", row, LOGGED, f"Lamps can be returned within {n} days.") for n in (30, 14)]
    (right, stale), tokens = scored(found, [row], Facts())
    assert tokens == 0
    assert (right.score, right.hallucinated, right.grounded, right.loss) == (1.0, False, 0.0, None)
    assert (stale.score, stale.hallucinated, stale.grounded) == (0.0, False, 1.0)
    assert summary([right, stale])["score_logged"] == 0.5


@pytest.mark.parametrize("answer", ["1,500 €", "€1,500", "1,500 euros", "1500 EUR"])
def test_a_short_answer_is_read_in_the_notation_of_its_passage(answer: str) -> None:
    row = {
        "row_id": "r",
        "kind": "correction",
        "messages": json.dumps([{"role": "user", "content": "What does the licence cost?"}]),
        "completion": answer,
        "context": json.dumps(["The licence of the product costs 1,500 € a year and includes all updates."]),
    }
    right, wrong = (measured("holdout", row, LOGGED, text) for text in (answer, answer.replace("5", "9")))
    assert (right.hallucinated, right.grounded) == (False, 1.0)
    assert (wrong.hallucinated, wrong.grounded) == (True, 0.0)


def test_slices_of_a_row() -> None:
    assert ROW.slices == ["language:en", "turns:one", "context:without"]
    other = replace(ROW, topic="refunds", language=None, turns=3, with_context=True)
    assert other.slices == ["topic:refunds", "turns:several", "context:with"]


def test_a_summary_has_means_of_what_can_be_told() -> None:
    rows = [
        ROW,
        replace(ROW, score=0.0, hallucinated=True, refused=True),
        replace(ROW, split="regression", score=0.0),
        replace(ROW, model=BASE, score=0.0, grounded=0.25),
    ]
    found = summary(rows)
    assert found["score_candidate"] == 0.5
    assert found["hallucination_candidate"] == 1.0
    assert found["refusal_candidate"] == 0.5
    assert found["grounded_base"] == 0.25
    assert "grounded_candidate" not in found
    assert "hallucination_base" not in found


def test_too_many_rows_are_drawn_evenly_over_topics_and_origins() -> None:
    rows: list[dict[str, Any]] = [{"row_id": f"a{i}", "topic": "common"} for i in range(90)]
    rows += [{"row_id": f"b{i}", "topic": "rare", "origin": "o"} for i in range(10)]
    assert drawn(rows, 100) == rows
    found = drawn(rows, 30)
    assert [row["topic"] for row in found].count("rare") == 10
    assert len({row["row_id"] for row in found}) == 30
    assert found == drawn(rows[::-1], 30)
    # Whoever stands in a smaller draw stands in a larger one: two runs see the same rows.
    assert drawn(rows, 10) == found[:10]
    assert len(drawn([{"row_id": str(i)} for i in range(9)], 4)) == 4


def test_of_labels_enough_rows_of_each_are_drawn_to_see_that_one_is_lost() -> None:
    rows: list[dict[str, Any]] = [
        {"row_id": f"{label}-{i}", "completion": f"label {label}"} for label in range(50) for i in range(1 + label % 9)
    ]
    metric = Label([f"label {label}" for label in range(50)])
    found = drawn(rows, 60, metric)
    for label in range(50):
        there = 1 + label % 9
        assert sum(row["completion"] == f"label {label}" for row in found) == min(there, 6), label
    assert len(drawn(rows, 240, metric)) == 240
    assert len(drawn([row | {"topic": "t"} for row in rows], 60)) == 60  # answers in words are not short


def test_the_token_of_a_judge_reaches_the_child_by_its_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def keep(_: str, job: dict[str, Any], *__: Any, environment: dict[str, str], **___: Any) -> dict[str, Any]:
        given.update(job=json.loads(json.dumps(job)), environment=environment)
        return {"rows": [], "figures": {}, "effect_probe": None, "exam": {}}

    monkeypatch.setattr("retuned.retrain.runners.local.run_child", keep)
    monkeypatch.setenv("RETUNED_EVALUATE_JUDGE_KEY", "")
    for name in ("config.json", "model.safetensors", *ADAPTER_FILES):
        (tmp_path / name).touch()  # of the base model and of the adapter
    with serving() as server:
        server.reply = lambda _: '{"same": "yes"}'
        settings = Settings(
            models=ModelsSettings(base=tmp_path, directory=tmp_path),
            evaluate=server.settings(judge_key="a-secret"),
            metric=MetricSettings(name="judge", criteria="It is polite."),
        )
        made = Dataset("d1", "support", datetime(2026, 3, 2), tmp_path, {}, 0, {"metric": {"name": "label"}})
        evaluate(made, None, tmp_path, settings, "float32", tmp_path)
        assert "a-secret" not in json.dumps(given["job"])
        for name, value in given["environment"].items():
            monkeypatch.setenv(name, value)
        metric = metric_in_child(given["job"])
        assert metric.score("Please wait.", "Wait.", {"messages": "[]"}).value == 1.0
        assert server.keys == ["Bearer a-secret"] * 2
    assert (tmp_path / "support" / "judged.jsonl").is_file()


@pytest.mark.parametrize("held_out", [10, 30])
def test_who_judges_again_asks_for_as_much_evidence_as_the_gate_did(held_out: int) -> None:
    """A holdout that is too small to look at is no try before the folds; a larger one is."""
    rows = [
        replace(
            ROW, model=model, split="holdout" if i < held_out else FOLD, row_id=f"r{i}", score=float(i % 5 in right)
        )
        for model, right in ((CHAMPION, {0}), (CANDIDATE, {0, 1, 2}))
        for i in range(40)
    ]
    for tries in range(3):
        decided = compare(rows, Exact(), Settings(), serving=True, tries=tries, unasked=0)
        assert decided.figures["tries"] == tries + 1 + (held_out == 30)
        assert decided.figures["earlier_tries"] == tries
