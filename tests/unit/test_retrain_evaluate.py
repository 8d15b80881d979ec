import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest

from fixtures.servers.judges import serving
from fixtures.worlds.candidates import Row
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.decision.compare import compare
from retuned.retrain.decision.evaluate import drawn, evaluate, for_slices
from retuned.retrain.decision.evaluation import (
    BASE,
    CANDIDATE,
    CHAMPION,
    FOLD,
    LOGGED,
    SLICES,
    Evaluation,
    summary,
)
from retuned.retrain.decision.gate import decide
from retuned.retrain.decision.measures import grounded, measured, scored
from retuned.retrain.decision.metric_job import metric_in_child
from retuned.retrain.scoring.exact import Exact
from retuned.retrain.scoring.facts import Facts
from retuned.retrain.scoring.label import Label
from retuned.retrain.settings import GateSettings, MetricSettings, ModelsSettings, Settings
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


def holdout_of(sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows of topics, a third of them in conversations of three."""
    rows: list[dict[str, Any]] = []
    for topic, size in sizes.items():
        for i in range(size):
            cluster = f"{topic}/{i // 3}" if i < size // 3 else None
            rows.append({"row_id": f"{topic}-{i}", "topic": topic, "cluster": cluster, "completion": ""})
    return rows


TWELVE = {"main": 700} | {f"rare{i}": 27 for i in range(11)}


def test_the_mean_of_the_drawn_rows_is_that_of_the_holdout() -> None:
    """A candidate that loses on the topic of seven in ten questions, and gains on the others, has no gain."""
    rows = holdout_of(TWELVE)
    gains = []
    for seed in range(60):
        named = [
            row | {"row_id": f"{seed}:{row['row_id']}", "cluster": row["cluster"] and f"{seed}:{row['cluster']}"}
            for row in rows
        ]
        own: dict[str, list[float]] = {}
        for row in drawn(named, 200):
            own.setdefault(row["cluster"] or row["row_id"], []).append(-0.2 if row["topic"] == "main" else 0.4)
        gains.append(fmean(fmean(values) for values in own.values()))
    everything: dict[str, float] = {
        row["cluster"] or row["row_id"]: -0.2 if row["topic"] == "main" else 0.4 for row in rows
    }
    truth = fmean(everything.values())
    assert truth < -0.01
    error = stdev(gains) / len(gains) ** 0.5
    assert abs(fmean(gains) - truth) < 3 * error < 0.02, (fmean(gains), truth)


@pytest.mark.full
def test_the_gate_estimates_the_gain_of_the_whole_holdout_and_its_interval_holds() -> None:
    """Forty draws from holdouts in which the candidate loses on the main topic, and gains on the eleven others."""
    chances = {"main": (0.9, 0.6), "rare": (0.3, 0.8)}
    luck, errors, held = np.random.default_rng(3), [], 0
    for seed in range(40):
        answers = {}
        for row in holdout_of(TWELVE):
            id = f"{seed}:{row['row_id']}"
            cluster = row["cluster"] and f"{seed}:{row['cluster']}"
            before, after = (float(luck.random() < one) for one in chances[row["topic"].rstrip("0123456789")])
            answers[id] = tuple(Row(id, score, cluster=cluster) for score in (before, after))
        old, new = zip(*answers.values(), strict=True)
        whole = decide(old, new, [], [], GateSettings()).figures["gain"]
        drew = [answers[row["row_id"]] for row in drawn([vars(one) for one in old], 200)]
        figures = decide(*zip(*drew, strict=True), [], [], GateSettings()).figures
        assert whole < 0
        assert figures["passed[gain]"] == 0.0
        errors.append(figures["gain"] - whole)
        held += figures["gain_low"] <= whole <= figures["gain_high"]
    assert abs(fmean(errors)) < 3 * stdev(errors) / len(errors) ** 0.5 < 0.03
    assert held >= 38


def test_a_draw_is_the_same_each_time_and_part_of_a_larger_one() -> None:
    rows = holdout_of(TWELVE)
    found = drawn(rows, 200)
    assert len({row["row_id"] for row in found}) == 200
    assert found == drawn(rows[::-1], 200)
    assert drawn(rows, 50) == found[:50]
    assert len(drawn(rows, 2_000)) == len(rows)
    of_main = sum(row["topic"] == "main" for row in found) / 200
    assert 0.6 < of_main < 0.8


def test_of_a_conversation_one_row_is_drawn_before_any_has_two() -> None:
    rows = [{"row_id": f"r{i}", "cluster": f"c{i // 10}"} for i in range(100)]
    assert Counter(row["cluster"] for row in drawn(rows, 10)) == {f"c{i}": 1 for i in range(10)}
    assert set(Counter(row["cluster"] for row in drawn(rows, 25)).values()) == {2, 3}


def test_small_slices_get_further_rows_of_their_own() -> None:
    rows = holdout_of(TWELVE)
    sample = drawn(rows, 200)
    further = for_slices(rows, 200, Facts())
    assert not {row["row_id"] for row in further} & {row["row_id"] for row in sample}
    for topic in TWELVE:
        own = [row for row in further if f"topic:{topic}" in row["slices"]]
        assert all(row["topic"] == topic for row in own)
        assert len(own) + sum(row["topic"] == topic for row in sample) == max(
            16, sum(row["topic"] == topic for row in sample)
        )
    assert not for_slices(rows, 2_000, Facts())
    assert not for_slices(rows, 60, Facts()), "five rows of each topic would show nothing"


def test_of_labels_enough_rows_of_each_are_drawn_to_see_that_one_is_lost() -> None:
    rows: list[dict[str, Any]] = [
        {"row_id": f"{label}-{i}", "completion": f"label {label}"} for label in range(50) for i in range(1 + label % 9)
    ]
    metric = Label([f"label {label}" for label in range(50)])
    found = [*drawn(rows, 60), *for_slices(rows, 60, metric)]
    for label in range(50):
        there = 1 + label % 9
        assert sum(row["completion"] == f"label {label}" for row in found) >= min(there, 6), label
    assert len(found) < 60 + 6 * 50
    assert not for_slices([row | {"topic": "t"} for row in rows], 60, Facts())  # one topic is the whole


def test_a_row_that_was_drawn_for_a_slice_counts_for_no_other() -> None:
    row = {
        "row_id": "r",
        "kind": "correction",
        "messages": json.dumps([{"role": "user", "content": "where is my parcel?"}]),
        "completion": "delivery",
        "context": None,
        "topic": "parcels",
        "slices": ["label:delivery"],
    }
    (found,), _ = scored([measured(SLICES, row, CANDIDATE, "delivery")], [row], Label(["delivery", "refund"]))
    assert found.slices == ["label:delivery"]
    assert found.score == 1.0


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
