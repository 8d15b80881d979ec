import errno
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry

from fixtures.feedback.teaching import CHANGED, GOODS, Teacher, question, questions, teach_policies
from fixtures.models.datasets import build_dataset
from fixtures.models.tiny import ANY_LATENCY, tiny_llama
from fixtures.servers.judges import answers, serving
from retuned.consumers.common import spans
from retuned.consumers.errors import RetunedError, StoreUnavailable
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import RolloutSettings, WarehouseSettings
from retuned.consumers.warehouse.artifacts import Artifacts, Kind, Record
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.settings import Settings as DaemonSettings
from retuned.daemon.transfer.exports import Export, content
from retuned.retrain import queue, run, versions
from retuned.retrain.data import holdout
from retuned.retrain.data.dataset import Dataset, logged_answers, metric_of
from retuned.retrain.decision import again
from retuned.retrain.decision.evaluation import BASE, CANDIDATE, LOGGED, Evaluation
from retuned.retrain.decision.pairs import Decision
from retuned.retrain.generation.effect_probe import Probe
from retuned.retrain.metrics import Metrics
from retuned.retrain.release import approvals, approve, registry
from retuned.retrain.release.approvals import Verdict
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.run import RunResult
from retuned.retrain.scoring import exam
from retuned.retrain.scoring.text import Text
from retuned.retrain.settings import (
    DatasetSettings,
    EvaluateSettings,
    GateSettings,
    MetricSettings,
    ModelsSettings,
    Settings,
    TrainSettings,
)
from retuned.retrain.stages import candidate as candidate_stage

TOPIC = "model-events"


Lines = list[dict[str, Any]]


def settings_for(folder: Path, base: Path) -> Settings:
    return Settings(
        models=ModelsSettings(base=base, directory=folder / "models"),
        train=TrainSettings(threads=1, learning_rate=5e-3, epochs=8, dtype="float32", checkpoint_steps=10),
        evaluate=EvaluateSettings(general_examples=9),
        dataset=DatasetSettings(holdout_share=0.3),
        gate=GateSettings(minimum_examples=15, maximum_latency_ratio=ANY_LATENCY),
    )


def ask_in_vain(teacher: Teacher) -> None:
    """Nobody says anything about these answers."""
    for number in range(24):
        teacher.ask(question(number), "Good morning.")


class Bench:
    """What a run needs, with its progress kept."""

    def __init__(self, warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher) -> None:
        self.warehouse, self.settings, self.publisher = warehouse, settings, publisher
        self.stop, self.lines = threading.Event(), Lines()
        self.on_line: Callable[[dict[str, Any]], None] = lambda _: None

    def apart(self) -> None:
        """Each wording is a question of its own."""
        alone = self.settings.dataset.model_copy(update={"near_duplicate_similarity": 1.0})
        self.settings = self.settings.model_copy(update={"dataset": alone})

    def _take(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self.on_line(line)

    @property
    def rollout(self) -> Rollout:
        return Rollout(self.warehouse, self.settings, self.publisher, TOPIC)

    def retrain(self) -> RunResult:
        run_id = queue.enqueue(self.warehouse, "support", ["by hand"], utc_now())
        return run.resume(self.rollout, run_id, utc_now, self.stop, self._take)

    def resume(self) -> RunResult | None:
        found = queue.unfinished(self.warehouse)
        return run.resume(self.rollout, found[0]["id"], utc_now, self.stop, self._take) if found else None

    def stop_at(self, **wanted: Any) -> None:
        def look(line: dict[str, Any]) -> None:
            if wanted.items() <= line.items():
                self.stop.set()

        self.on_line = look

    def row(self) -> dict[str, Any]:
        (row,) = self.warehouse.rows("SELECT * FROM runs")
        return row

    def work_folders(self) -> list[Path]:
        return list((self.settings.models.directory / "support" / "runs").glob("*"))


@pytest.fixture
def bench(warehouse: Warehouse, tmp_path: Path, base: Path) -> Bench:
    return Bench(warehouse, settings_for(tmp_path, base), MemoryPublisher())


@dataclass(frozen=True)
class Real:
    """Two retrainings that were really made, and what the children of the first returned."""

    bench: Bench
    first: RunResult
    second: RunResult
    training: dict[str, Any]
    evaluations: list[Evaluation]

    def play(self, monkeypatch: pytest.MonkeyPatch, evaluations: list[Evaluation] | None = None) -> None:
        """Let runs get from their children what the first run got, at once: for tests of what is made of it."""
        found = self.evaluations if evaluations is None else evaluations
        monkeypatch.setattr(candidate_stage, "train", lambda *_: self.training)

        def evaluated(*given: Any) -> tuple[list[Evaluation], dict[str, float]]:
            take_exam(*given)
            return found, {"seconds": 1.0}

        monkeypatch.setattr(candidate_stage, "evaluate", evaluated)


def take_exam(dataset: Dataset, *given: Any) -> None:
    """As the child of an evaluation does, whose arguments are these."""
    settings, folder, pairs = given[2], given[4], given[9] if len(given) > 9 else {}
    marks, _ = exam.taken(metric_of(dataset, settings).metric, pairs)
    folder.mkdir(parents=True, exist_ok=True)
    taken = {source: [asdict(mark) for mark in those] for source, those in marks.items()}
    (folder / exam.FILE).write_text(json.dumps(taken))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[Real]:
    folder = tmp_path_factory.mktemp("real")
    opened = open_warehouse(WarehouseSettings(path=folder / "w.duckdb"))
    bench = Bench(opened, settings_for(folder, base), MemoryPublisher())
    teacher = Teacher(opened)
    ask_in_vain(teacher)
    kept: dict[str, Any] = {}

    def keep(line: dict[str, Any]) -> None:
        if line["stage"] == "gate" and not kept:
            (work,) = bench.work_folders()
            shutil.copytree(work / "train" / "adapter", folder / "adapter")
            training = json.loads((folder / "adapter" / "training.json").read_text())
            kept["training"] = training | {"adapter": str(folder / "adapter")}
            kept["evaluations"] = [
                Evaluation(**row) for row in json.loads((work / "evaluations.json").read_text())["rows"]
            ]

    bench.on_line = keep
    teach_policies(teacher, GOODS)
    first = bench.retrain()
    # The company changes two policies: the champion's answers are corrected.
    for thing, policy in CHANGED.items():
        teach_policies(teacher, {thing: policy}, wrong=f"You have {GOODS[thing]} for it.")
    second = bench.retrain()
    yield Real(bench, first, second, **kept)
    opened.close()


def test_a_retraining_really_improves_the_answers(real: Real) -> None:
    first, warehouse = real.first, real.bench.warehouse
    assert first.state == "succeeded", first.error
    assert "Answers are scored by the metric facts" in first.reasons[-1]
    decisions = warehouse.rows("SELECT metric FROM decisions WHERE kind = 'gate'")
    assert {row["metric"] for row in decisions} == {"facts"}
    assert warehouse.row("SELECT count(*) AS rows FROM evaluations WHERE score < 1 AND detail LIKE '% is missing'")[
        "rows"
    ]
    assert first.passed
    assert first.promoted
    assert first.scores["base"] == 0.0
    assert first.scores["candidate"] > 0.7
    version = versions.find(warehouse, "support", str(first.version))
    assert version is not None
    assert version.manifest["metrics"]["holdout_score_candidate"] == first.scores["candidate"]
    assert version.manifest["cost"]["train_seconds"] > 0
    probe = Probe.from_manifest(version.manifest)
    assert probe is not None
    assert {name for place in probe.places for name in place.models} == {"version", "base"}
    assert min(place.gap("base") for place in probe.places) > 0
    assert real.bench.publisher.messages[0][2]["model"] == version.name
    assert real.bench.work_folders() == []


def judge_again(real: Real, version: str, metric: str | None) -> Decision:
    bench = real.bench
    return again.evaluate_again(
        bench.warehouse, bench.settings, "support", version, metric, utc_now(), threading.Event()
    )


def test_a_version_is_judged_again_by_the_answers_of_its_evaluation(real: Real) -> None:
    warehouse, version = real.bench.warehouse, str(real.second.version)
    state = ("SELECT * FROM aliases ORDER BY ALL", "SELECT * FROM promotions ORDER BY ALL")
    before = [warehouse.rows(query) for query in state]
    same = judge_again(real, version, None)
    assert same.outcome == real.second.passed
    assert same.figures["gain"] == real.second.figures["gain"]
    assert same.figures["gain_low"] == real.second.figures["gain_low"]
    decision = judge_again(real, version, "text")
    assert decision.reasons[0].startswith("For information: by the metric text support@")
    assert "Answers are scored by the metric text" in decision.reasons[-1]
    (row,) = warehouse.rows("SELECT * FROM decisions WHERE kind = 'evaluation' AND metric = 'text'")
    assert (row["run_id"], json.loads(row["reasons"])) == (real.second.run_id, decision.reasons)
    answered = "SELECT model, split, row_id, output FROM evaluations WHERE run_id = ? ORDER BY ALL"
    assert warehouse.rows(answered, [row["id"]]) == warehouse.rows(answered, [real.second.run_id])
    export = b"".join(content(Export("evaluations", workload="support"), warehouse, DaemonSettings()))
    told = [json.loads(line) for line in export.splitlines()]
    mine = [one for one in told if one["run_id"] == row["id"] and one["split"] == "holdout"]
    assert mine
    assert all(one["question"] for one in mine)
    by_text = Text(None)
    assert [one["score"] for one in mine] == [by_text.score(one["output"], one["approved"], {}).value for one in mine]
    # Nothing serves or counts otherwise than before.
    assert [warehouse.rows(query) for query in state] == before
    assert holdout.tries(warehouse, "support", real.second.parent_version) == real.second.figures["tries"]


def test_what_cannot_be_judged_again_is_named(real: Real) -> None:
    with pytest.raises(RetunedError, match="no such version"):
        judge_again(real, "00000000", None)
    with pytest.raises(RetunedError, match=r"expected one of auto, facts, .* in the configuration"):
        judge_again(real, str(real.first.version), "os:system")
    with pytest.raises(RetunedError, match=r"evaluate\.judge_url"):
        judge_again(real, str(real.first.version), "judge")


def test_everything_about_a_run_is_stored(real: Real) -> None:
    first, warehouse = real.first, real.bench.warehouse
    row = warehouse.rows("SELECT * FROM runs ORDER BY started_at")[0]
    assert (row["state"], row["version"], json.loads(row["reasons"])) == ("succeeded", first.version, ["by hand"])
    assert row["train_seconds"] == first.train_seconds > 0
    (decision,) = warehouse.rows("SELECT * FROM decisions WHERE run_id = ?", [first.run_id])
    assert (decision["kind"], decision["outcome"]) == ("gate", True)
    assert json.loads(decision["reasons"]) == first.reasons
    scores = warehouse.rows(
        "SELECT model, avg(score) AS score FROM evaluations WHERE run_id = ? AND split = 'holdout' GROUP BY 1",
        [first.run_id],
    )
    found = {row["model"]: row["score"] for row in scores}
    assert found == pytest.approx({"base": 0.0, "logged": 0.0, first.version: first.scores["candidate"]})
    judged = warehouse.rows(
        "SELECT DISTINCT row_id FROM evaluations WHERE run_id = ? AND split = 'holdout'", [first.run_id]
    )
    holdout = warehouse.rows(
        "SELECT row_id FROM dataset_rows WHERE split = 'holdout' AND dataset_version = ?", [first.dataset_version]
    )
    assert {row["row_id"] for row in judged} == {row["row_id"] for row in holdout}


def test_exported_evaluations_have_the_question_and_the_approved_answer(real: Real) -> None:
    settings = DaemonSettings(warehouse={"path": real.bench.warehouse.path})
    lines = b"".join(content(Export("evaluations", workload="support"), real.bench.warehouse, settings)).splitlines()
    rows = [row for row in map(json.loads, lines) if row["run_id"] == real.second.run_id]
    taught = {
        row["row_id"]: (json.loads(row["messages"])[-1]["content"], row["completion"])
        for split in ("holdout", "regression")
        for row in pq.read_table(datasets_of(real) / f"{split}.parquet").to_pylist()
    }
    judged = {(row["row_id"], row["question"], row["approved"]) for row in rows if row["row_id"] in taught}
    assert judged == {(id, *both) for id, both in taught.items()}
    others = [row for row in rows if row["row_id"] not in taught]
    assert {row["split"] for row in others} == {"traffic", "general"}
    assert {row["approved"] for row in others} == {None}
    assert all((row["question"] is None) == (row["split"] == "general") for row in others)


def datasets_of(real: Real) -> Path:
    (row,) = real.bench.warehouse.rows(
        "SELECT path FROM datasets JOIN runs ON datasets.version = dataset_version WHERE id = ?", [real.second.run_id]
    )
    return Path(row["path"])


def test_evaluations_say_what_kind_of_question_a_row_is_and_how_it_was_answered(real: Real) -> None:
    stored = real.bench.warehouse.rows("SELECT * FROM evaluations WHERE run_id = ?", [real.second.run_id])
    assert {row["split"] for row in stored} == {"holdout", "regression", "traffic", "general"}
    rows = [row for row in stored if row["split"] in ("holdout", "regression")]
    assert {row["language"] for row in rows} >= {"en"}
    assert {(row["turns"], row["with_context"], row["grounded"]) for row in rows} == {(1, False, None)}
    right = [row for row in rows if row["score"] == 1.0]
    assert {row["consistency"] for row in right} == {1.0}
    assert all(0.8 < row["length_ratio"] < 1.3 for row in right)
    assert {row["kind"] for row in rows} == {"correction"}
    logged = [row for row in rows if row["model"] == LOGGED]
    assert {row["output"] for row in logged} <= {f"You have {GOODS[thing]} for it." for thing in CHANGED}
    assert {(row["split"], row["score"], row["loss"], row["latency_seconds"]) for row in logged} == {
        ("holdout", 0.0, None, None)
    }
    assert not any(row["refused"] for row in right)
    figures = real.second.figures
    assert figures["consistency_candidate"] > 0.9
    assert figures["loss_candidate"] < figures["loss_champion"] < figures["loss_base"]
    assert figures["passed[gain]"] == figures["passed[regression]"] == 1.0


def test_traffic_that_nobody_rated_and_general_prompts_are_answered_and_compared(real: Real) -> None:
    for result, before in ((real.first, LOGGED), (real.second, real.first.version)):
        rows = real.bench.warehouse.rows("SELECT * FROM evaluations WHERE run_id = ?", [result.run_id])
        traffic = [row for row in rows if row["split"] == "traffic"]
        assert {row["model"] for row in traffic} == {LOGGED, result.version, before}
        assert {row["agreement"] is not None for row in traffic if row["model"] == result.version} == {True}
        assert {row["agreement"] for row in traffic if row["model"] != result.version} == {None}
        assert result.figures["traffic_examples"] == 24
        assert result.figures["passed[traffic]"] == result.figures["passed[general]"] == 1.0
        assert {row["model"] for row in rows if row["split"] == "general"} == {BASE, result.version}
        assert result.figures["general_examples"] == 9
        lengths = [result.figures[f"{split}_rows_cut"] for split in ("train", "holdout", "traffic", "general")]
        assert lengths == [0.0] * 4
    taught = real.bench.warehouse.rows("SELECT DISTINCT split FROM dataset_rows WHERE feedback_id = ''")
    assert taught == [{"split": "traffic"}]


def test_the_bare_base_model_is_timed_as_if_it_carried_an_adapter(real: Real) -> None:
    """Else what an adapter costs, whatever it learned, would refuse the first one: on a small model, for ever."""
    rows = real.bench.warehouse.rows(
        "SELECT latency_seconds, output_tokens FROM evaluations WHERE model <> 'logged' AND run_id = ?",
        [real.first.run_id],
    )
    paces = [row["latency_seconds"] / row["output_tokens"] for row in rows]
    assert paces == pytest.approx([paces[0]] * len(paces))
    assert len({row["latency_seconds"] for row in rows}) > 1


def test_the_next_retraining_follows_a_change_and_keeps_the_rest(real: Real) -> None:
    first, second, warehouse = real.first, real.second, real.bench.warehouse
    assert second.state == "succeeded", second.error
    assert second.promoted, second.reasons
    assert second.parent_version == first.version
    assert second.scores["champion"] < 0.2
    assert second.scores["candidate"] > 0.7
    assert second.figures["regression_examples"] > 5
    assert second.figures["regression_candidate"] > 0.7
    assert versions.aliases(warehouse, "support") == {"champion": second.version, "previous": first.version}
    row = warehouse.row("SELECT replay, train FROM datasets WHERE version = ?", [second.dataset_version])
    assert row is not None
    assert 0 < row["replay"] <= row["train"] / 2


def test_metrics_of_runs(real: Real) -> None:
    collectors = CollectorRegistry()
    metrics = Metrics(collectors)
    for line in real.bench.lines:
        metrics.progress("support", line)
    active = collectors.get_sample_value("retuned_training_active_timestamp_seconds", {"workload": "support"})
    assert active is not None
    assert time.time() - active < 60
    for result in (real.first, real.second, replace(real.second, state="interrupted")):
        metrics.idle("support")
        metrics.finished(result)
    labels = {"workload": "support"}

    def value(name: str, **more: str) -> float | None:
        return collectors.get_sample_value(name, labels | more)

    assert value("retuned_training_active_timestamp_seconds") is None
    assert value("retuned_training_runs_total", state="succeeded") == 2
    assert value("retuned_training_runs_total", state="interrupted") == 1
    assert value("retuned_training_seconds_count") == 2
    assert value("retuned_gate_decisions_total", outcome="passed") == 2
    losses = [line["loss"] for line in real.bench.lines if "loss" in line]
    assert value("retuned_training_loss") == losses[-1]
    name = f"support@{real.second.version}"
    assert value("retuned_evaluation_score_ratio", model_name=name) == real.second.scores["candidate"]
    assert (
        value("retuned_evaluation_score_ratio", model_name=f"support@{real.first.version}")
        == real.second.scores["champion"]
    )
    assert value("retuned_evaluation_score_ratio", model_name="support@logged") == real.second.scores["logged"] == 0.0


def test_a_first_candidate_that_is_worse_than_production_is_not_promoted(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It beats the base model by far, which production may never have asked."""
    teach_policies(Teacher(bench.warehouse), GOODS)
    right = [
        replace(row, model=LOGGED, score=1.0, loss=None, output_tokens=None, latency_seconds=None)
        for row in real.evaluations
        if row.model == BASE and row.split == "holdout"
    ]
    real.play(monkeypatch, [row for row in real.evaluations if row.model != LOGGED] + right)
    result = bench.retrain()
    assert result.state == "succeeded"
    assert result.figures["passed[gain]"] == 1.0
    assert result.passed is False
    assert result.scores["logged"] == 1.0
    assert any("1.000" in reason and "production" in reason for reason in result.reasons)
    version = versions.find(bench.warehouse, "support", str(result.version))
    assert version is not None
    assert "| new questions | what production had answered |" in (version.path / "README.md").read_text()


def test_the_logged_answers_are_those_of_production(warehouse: Warehouse, tmp_path: Path, base: Path) -> None:
    """A demonstration was never answered by anybody."""
    teacher = Teacher(warehouse)
    teach_policies(teacher, GOODS, openings=slice(5))
    for asked, right in questions(GOODS, slice(5, 10)):
        teacher.say(teacher.ask(asked, right, model="demonstration"), "correction", right)
    dataset = build_dataset(warehouse, settings_for(tmp_path, base), "support", teacher.now)
    logged = logged_answers(warehouse, dataset)
    held_out = dataset.split("holdout")
    assert logged == {row["row_id"]: "I cannot say." for row in held_out if row["source"] != "demonstration"}
    assert 0 < len(logged) < len(held_out)


def test_beside_an_incumbent_only_its_answers_are_compared(warehouse: Warehouse, tmp_path: Path, base: Path) -> None:
    """Neither those of a canary that was taken back, nor of another model in the logs."""
    teacher = Teacher(warehouse)
    given = {"support@base": "mini", "mini-2026-01-01": None, "support@v1": None, "other": None}
    given |= {"support@base of before": "large", "support@base as now": "large"}
    asked_for = {"support@base of before": "large", "support@base as now": "mini"}
    asked = {}
    for number, (asks, right) in enumerate(questions(GOODS)):
        model = list(given)[number % len(given)]
        attributes = {"incumbent": given[model]} if given[model] else None
        if model in asked_for:
            attributes = {"incumbent": given[model], "incumbent_model": asked_for[model]}
        asked[teacher.ask(asks, f"{right} {model}", model=model.split()[0], attributes=attributes)] = model
    for interaction in asked:
        teacher.say(interaction, "helpful", True, "expert")
    dataset = build_dataset(warehouse, settings_for(tmp_path, base), "support", teacher.now)
    model_of = {row["row_id"]: asked[row["interaction_id"]] for row in dataset.split("holdout")}
    assert set(model_of.values()) == set(given)
    compared = ("support@base", "mini-2026-01-01", "support@base as now")
    own = {row for row, model in model_of.items() if model in compared}
    assert logged_answers(warehouse, dataset, incumbent="mini").keys() == own
    assert logged_answers(warehouse, dataset).keys() == model_of.keys()


def test_a_candidate_that_is_not_better_is_kept_and_not_promoted(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS)
    real.play(monkeypatch, [replace(row, score=0.0) if row.model == CANDIDATE else row for row in real.evaluations])
    result = bench.retrain()
    assert (result.state, result.passed, result.promoted) == ("succeeded", False, False)
    assert result.reasons[0].startswith("Refused by gain")
    assert "; it would take a gain of about +" in result.reasons[0]
    assert "not surely above" in result.reasons[0]
    assert result.figures["tries"] == 1
    assert versions.champion(bench.warehouse, "support") is None
    assert [version.version for version in versions.versions_of(bench.warehouse, "support")] == [result.version]
    assert bench.publisher.messages == []
    # The same holdout again: it was looked at before.
    again = bench.retrain()
    assert again.figures["tries"] == 2
    assert "compared with this base model 1 time before" in again.reasons[2]


EXAM = "Would a customer learn the same from both"


def test_a_judge_is_asked_about_unrated_traffic_alone(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher(bench.warehouse)
    ask_in_vain(teacher)
    teach_policies(teacher, GOODS)
    real.play(monkeypatch)
    with serving() as judging:
        judging.reply = lambda shown: "Verdict: A" if len(answers(shown)[0]) > len(answers(shown)[1]) else "Verdict: B"
        evaluate = judging.settings(judge_examples=22)
        bench.settings = bench.settings.model_copy(update={"evaluate": evaluate})
        result = bench.retrain()
        asked = sum(EXAM not in one["messages"][0]["content"] for one in judging.asked)
    assert result.promoted
    assert asked == 2 * 22
    verdicts = bench.warehouse.rows(
        "SELECT model, split, verdict FROM evaluations WHERE verdict IS NOT NULL AND run_id = ?", [result.run_id]
    )
    assert Counter((row["model"], row["split"]) for row in verdicts) == {
        (result.version, "traffic"): 22,
    }
    assert result.figures["traffic_judged"] == 22
    assert "By the judge it loses " in " ".join(result.reasons)


def test_a_judge_that_is_the_metric_is_asked_about_each_answer_to_traffic_once(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher(bench.warehouse)
    ask_in_vain(teacher)
    teach_policies(teacher, GOODS)
    real.play(monkeypatch)
    with serving() as judging:
        metric = MetricSettings(name="judge", criteria="It is short.")
        own = {"evaluate": judging.settings(judge_examples=22), "metric": metric}
        bench.settings = bench.settings.model_copy(update=own)
        result = bench.retrain()
        asked = [one["messages"] for one in judging.asked if EXAM not in one["messages"][0]["content"]]
    assert result.figures["traffic_judged"] == 22
    assert len(asked) == 2 * 22
    assert {"It is short." in instructions["content"] for instructions, _ in asked} == {True}
    assert "Answers are scored by the metric judge" in result.reasons[-1]


def test_a_judge_that_is_away_stops_nothing(bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher(bench.warehouse)
    ask_in_vain(teacher)
    teach_policies(teacher, GOODS)
    real.play(monkeypatch)
    away = EvaluateSettings(judge_url="http://127.0.0.1:9/v1", judge_model="gone")
    bench.settings = bench.settings.model_copy(update={"evaluate": away})
    result = bench.retrain()
    assert result.promoted
    assert "The judge gone gave no verdict on " in " ".join(result.reasons)


def test_most_of_a_class_would_be_left_out(bench: Bench, warehouse: Warehouse) -> None:
    teacher = Teacher(warehouse)
    teach_policies(teacher, {"lamp": "14 days"})
    for number in range(160):
        shown = teacher.ask(f"What is the number of {number * 7919:b}?", f"It is number {number}.")
        teacher.say(shown, "helpful", True)
    for number in range(12):
        shown = teacher.ask(f"Does {number * 6857:b} belong to it?", "Not at all", finish_reason="length")
        teacher.say(shown, "helpful", True)
    result = bench.retrain()
    assert (result.state, result.version, result.passed) == ("refused", None, None)
    assert "12 of 12 questions with the answer of feedback" in result.reasons[0]
    (row,) = warehouse.rows("SELECT state, error FROM runs")
    assert row == {"state": "refused", "error": result.error}


def test_too_little_to_learn_from(bench: Bench, warehouse: Warehouse) -> None:
    teach_policies(Teacher(warehouse), {"lamp": "14 days"}, openings=slice(2))
    result = bench.retrain()
    assert (result.state, result.version, result.passed) == ("refused", None, None)
    assert "10 new examples; dataset.minimum_rows asks for 40" in result.reasons[0]
    assert bench.row()["error"] == result.error == result.reasons[0]
    assert bench.work_folders() == []


def test_a_run_waits_for_the_storage_of_its_cluster(bench: Bench) -> None:
    """Where it is away, no attempt has failed: it is taken up once it answers."""

    class Away(Artifacts):
        def put(self, kind: Kind, path: Path) -> Record:
            raise StoreUnavailable(f"{kind} {path}: away")

    teach_policies(Teacher(bench.warehouse), GOODS)
    bench.warehouse.artifacts = Away()
    with pytest.raises(StoreUnavailable, match=r"dataset .*: away"):
        bench.retrain()
    row = bench.row()
    assert (row["state"], row["attempts"], row["dataset_version"]) == ("interrupted", 0, None)
    assert [row["id"] for row in queue.unfinished(bench.warehouse)] == [row["id"]]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/models/README.md")


def fail(*_: Any) -> None:
    raise FULL


def test_a_candidate_that_passed_is_promoted_once_its_card_can_be_written(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher(bench.warehouse)
    ask_in_vain(teacher)
    teach_policies(teacher, GOODS)
    real.play(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "renew_card", fail)
        for _ in range(bench.settings.train.attempts + 1):
            with pytest.raises(run.Unwritable, match=r"README.md: No space left on device; free space; then"):
                bench.resume() if bench.warehouse.rows("SELECT * FROM runs") else bench.retrain()
    row = bench.row()
    assert (row["state"], row["attempts"], row["error"]) == ("interrupted", 0, None)
    assert versions.champion(bench.warehouse, "support") is None
    result = bench.resume()
    assert result is not None
    assert result.promoted
    assert bench.work_folders() == []


def test_a_run_that_cannot_begin_for_want_of_space_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.data, "obtain", fail)
    result = bench.retrain()
    assert (result.state, bench.row()["state"]) == ("failed", "failed")
    assert result.error == "/models/README.md: No space left on device; free space and retrain"


def test_a_run_that_was_stopped_is_taken_up_where_it_stood(bench: Bench, real: Real) -> None:
    teacher = Teacher(bench.warehouse)
    ask_in_vain(teacher)
    teach_policies(teacher, GOODS)
    bench.stop_at(stage="train", step=15)
    stopped = bench.retrain()
    assert stopped.state == "interrupted"
    row = bench.row()
    assert (row["state"], row["finished_at"], row["dataset_version"]) == ("interrupted", None, stopped.dataset_version)
    assert versions.champion(bench.warehouse, "support") is None

    bench.stop.clear()
    bench.lines.clear()
    bench.stop_at(stage="evaluate", split="holdout")
    again = bench.resume()
    assert again is not None
    assert (again.state, again.run_id) == ("interrupted", stopped.run_id)
    assert min(line["step"] for line in bench.lines if "step" in line) >= 15

    bench.stop.clear()
    bench.lines.clear()
    bench.on_line = lambda _: None
    done = bench.resume()
    assert done is not None
    assert (done.state, done.promoted, done.run_id) == ("succeeded", True, stopped.run_id)
    assert [line for line in bench.lines if "step" in line] == []
    # As if nothing had happened: the same data, settings and seed gave the same adapter in the unbroken run.
    assert done.dataset_version == real.first.dataset_version
    assert done.training["train_loss"] == real.first.training["train_loss"]
    assert bench.resume() is None


def test_a_daemon_that_was_killed_after_the_decision_only_promotes(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS)
    real.play(monkeypatch)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Rollout, "set_champion", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.retrain()
    assert bench.row()["state"] == "running"
    monkeypatch.setattr(candidate_stage, "evaluate", killed)
    resumed = bench.resume()
    assert resumed is not None
    assert resumed.promoted
    assert len(bench.warehouse.rows("SELECT * FROM decisions")) == 1
    counts = bench.warehouse.rows("SELECT count(*) AS n, count(DISTINCT row_id) AS d FROM evaluations GROUP BY model")
    assert all(row["n"] == row["d"] for row in counts)


def test_a_version_that_was_taken_back_is_not_promoted_again_after_a_crash(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS)
    real.play(monkeypatch)

    def killed(line: dict[str, Any]) -> None:
        if line["stage"] == "promoted":
            raise KeyboardInterrupt

    bench.on_line = killed
    with pytest.raises(KeyboardInterrupt):
        bench.retrain()
    version = versions.aliases(bench.warehouse, "support")["champion"]
    bench.rollout.rollback("support", "watch", "it is worse", utc_now(), of=version)
    bench.on_line = lambda _: None
    resumed = bench.resume()
    assert resumed is not None
    assert (resumed.state, resumed.version, resumed.promoted) == ("succeeded", version, False)
    assert resumed.reasons[-1] == f"Not promoted: support@{version} was taken back before: it is worse"
    assert versions.champion(bench.warehouse, "support") is None


def test_a_champion_that_changed_meanwhile_is_not_replaced(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS)
    real.play(monkeypatch)

    def meddle(line: dict[str, Any]) -> None:
        if line["stage"] == "gate":
            bench.warehouse.insert(
                "models",
                version="aaaaaaaa",
                workload="support",
                created_at=utc_now(),
                path="/x",
                base_model="b",
                base_hash="h",
                dataset_version="d",
                run_id="r",
                manifest="{}",
            )
            bench.warehouse.insert(
                "aliases", workload="support", alias="champion", version="aaaaaaaa", created_at=utc_now()
            )

    bench.on_line = meddle
    result = bench.retrain()
    assert (result.passed, result.promoted) == (True, False)
    assert "support@aaaaaaaa was put into service while" in result.reasons[-1]


def test_with_steps_what_passes_begins_as_a_canary_and_a_second_one_waits_for_its_end(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS)
    real.play(monkeypatch)
    bench.settings = bench.settings.model_copy(update={"rollout": RolloutSettings(steps=(0.05, 1.0))})
    bench.stop_at(stage="promoted")
    result = bench.retrain()
    assert (result.promoted, result.share) == (True, 0.05)
    assert versions.aliases(bench.warehouse, "support") == {"canary": result.version}
    (message,) = [message for _, _, message in bench.publisher.messages]
    assert (message["event"], message["share"], message["reason"]) == ("canary", 0.05, result.reasons[0])
    bench.warehouse.execute("UPDATE runs SET state = 'interrupted'")  # the daemon was killed before that was written
    bench.stop.clear()
    resumed = bench.resume()
    assert resumed is not None
    assert (resumed.promoted, resumed.share, len(bench.publisher.messages)) == (True, 0.05, 1)
    bench.warehouse.execute("UPDATE runs SET state = 'interrupted'")
    with pytest.raises(RetunedError, match=f"support@{result.version} serves"):
        queue.cancel(bench.rollout, "support", "too late", utc_now(), ())
    bench.warehouse.execute("UPDATE rollouts SET version = 'aaaaaaaa'")
    bench.warehouse.execute("UPDATE runs SET state = 'interrupted'")
    second = bench.resume()
    assert second is not None
    assert (second.state, second.promoted, bench.row()["state"]) == ("interrupted", False, "interrupted")
    assert f"support@{result.version} passed the gate, and comes into service once this has ended" in second.reasons[-1]
    assert "support@aaaaaaaa is being rolled out: it answers 0.05" in second.reasons[-1]
    bench.warehouse.execute("UPDATE rollouts SET state = 'rolled_back', ended_at = now()")
    bench.warehouse.execute("DELETE FROM aliases")
    third = bench.resume()
    assert third is not None
    assert (third.state, third.promoted, third.share) == ("succeeded", True, 0.05)


def test_a_child_that_fails_leaves_the_champion_and_says_why(
    bench: Bench, warehouse: Warehouse, base: Path, tmp_path: Path
) -> None:
    teach_policies(Teacher(warehouse), GOODS)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in base.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"not weights")
    bench.settings = bench.settings.model_copy(
        update={"models": ModelsSettings(base=broken, directory=tmp_path / "models")}
    )
    result = bench.retrain()
    assert result.state == "failed"
    assert result.error is not None
    assert result.error.startswith("train: ")
    assert bench.row()["error"] == result.error
    assert versions.champion(warehouse, "support") is None
    assert bench.resume() is None


def test_a_run_without_a_base_model_fails_before_any_work(bench: Bench, warehouse: Warehouse, tmp_path: Path) -> None:
    teach_policies(Teacher(warehouse), GOODS)
    for models, text in (
        (ModelsSettings(directory=tmp_path / "models"), "models.base is not set"),
        (ModelsSettings(base=tmp_path / "gone", directory=tmp_path / "models"), "no transformers model there"),
    ):
        bench.settings = bench.settings.model_copy(update={"models": models})
        result = bench.retrain()
        assert result.state == "failed"
        assert text in str(result.error)
    assert warehouse.rows("SELECT * FROM datasets") == []


def test_a_champion_of_another_base_model_is_named(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    teacher = Teacher(bench.warehouse)
    teach_policies(teacher, GOODS)
    with monkeypatch.context() as patch:
        real.play(patch)
        assert bench.retrain().promoted
    other = tiny_llama(tmp_path / "other", seed=1)
    models = ModelsSettings(base=other, directory=tmp_path / "models")
    bench.settings = bench.settings.model_copy(update={"models": models})
    teach_policies(teacher, CHANGED)
    result = bench.retrain()
    assert result.state == "failed"
    assert "was trained on another base model" in str(result.error)
    assert not [line for line in bench.lines if line["run_id"] == result.run_id and "step" in line]


def test_what_is_cancelled_before_its_promotion_is_not_promoted_and_what_serves_is_not_cancelled(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS)
    real.play(monkeypatch)
    refusals: list[str] = []

    def cancel_at(stage: str) -> Callable[[dict[str, Any]], None]:
        def look(line: dict[str, Any]) -> None:
            if line["stage"] == stage:
                try:
                    queue.cancel(bench.rollout, "support", "cancelled by an operator", utc_now(), [line["run_id"]])
                except RetunedError as error:
                    refusals.append(str(error))

        return look

    bench.on_line = cancel_at("gate")
    result = bench.retrain()
    assert (result.state, result.promoted, result.error) == ("cancelled", False, "cancelled by an operator")
    assert bench.row()["state"] == "cancelled"
    assert versions.champion(bench.warehouse, "support") is None
    assert bench.work_folders() == []
    bench.on_line = cancel_at("promoted")
    result = bench.retrain()
    assert (result.state, result.promoted) == ("succeeded", True)
    assert f"support@{result.version} serves; `retuned rollback support` takes it back" in refusals[0]


def test_where_a_person_has_to_approve_it_what_passed_waits_also_after_a_crash(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS)
    real.play(monkeypatch)
    bench.settings = bench.settings.model_copy(update={"rollout": RolloutSettings(approve="required")})

    def killed(line: dict[str, Any]) -> None:
        if line["stage"] == "approval":
            raise KeyboardInterrupt

    bench.on_line = killed
    with pytest.raises(KeyboardInterrupt):
        bench.retrain()
    bench.on_line = lambda _: None
    result = bench.resume()
    assert result is not None
    assert (result.state, result.passed, result.promoted) == ("succeeded", True, False)
    assert versions.champion(bench.warehouse, "support") is None
    (request,) = bench.warehouse.rows("SELECT * FROM approvals")
    assert (request["run_id"], request["version"], request["champion"]) == (result.run_id, result.version, None)
    assert result.reasons[-1].startswith(f"Not promoted: support@{result.version} waits for approval until 20")
    assert [message["event"] for _, _, message in bench.publisher.messages] == ["approval_requested"]
    (listed,) = approvals.listed(bench.warehouse)
    assert listed["scores"] == result.scores
    assert listed["gate_reasons"] == result.reasons[:-1]
    approve.decide(bench.rollout, Verdict(request["id"], "approved", "alice", "fine"), utc_now())
    (change,) = bench.warehouse.rows("SELECT version, reason FROM promotions")
    assert change == {"version": result.version, "reason": f"{result.reasons[0]} (approved by alice: fine)"}


def test_each_stage_of_a_run_is_a_span(bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[str, dict[str, Any]]] = []

    class Recorded:
        def __init__(self, name: str) -> None:
            self.attributes: dict[str, Any] = {}
            recorded.append((name, self.attributes))

        def set(self, **attributes: Any) -> None:
            self.attributes |= attributes

    teach_policies(Teacher(bench.warehouse), GOODS)
    real.play(monkeypatch)
    spans.record(lambda name: nullcontext(Recorded(name)))
    try:
        result = bench.retrain()
    finally:
        spans.record(None)
    assert [name for name, _ in recorded] == ["data", "train", "evaluate", "decide", "release"]
    assert all((of["run"], of["workload"]) == (result.run_id, "support") for _, of in recorded)
    assert recorded[3][1]["outcome"] == "passed"
    assert (recorded[4][1]["version"], recorded[4][1]["promoted"]) == (result.version, True)


# Where the holdout alone is too little evidence


class Trainer:
    """In the place of the two children: trainings cost nothing, and a model answers as many questions right as told.

    Attributes:
        right: shares of the questions that the candidate and the models of the folds answer right.
        trained, evaluated: what they were given, in order.
    """

    def __init__(self, real: Real, right: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.real, self.right = real, right
        self.trained: list[Dataset] = []
        self.evaluated: list[Dataset] = []
        self.before_evaluation: Callable[[], None] = lambda: None
        monkeypatch.setattr(candidate_stage, "train", self.train)
        monkeypatch.setattr(candidate_stage, "evaluate", self.evaluate)

    def train(self, dataset: Dataset, *_: Any) -> dict[str, Any]:
        self.trained.append(dataset)
        return self.real.training

    def evaluate(self, dataset: Dataset, *more: Any) -> tuple[list[Evaluation], dict[str, float]]:
        self.before_evaluation()
        take_exam(dataset, *more)
        settings: Settings = more[2]
        logged: dict[str, str] = more[7]
        rows = dataset.split("holdout")
        right = self.right[len(self.evaluated) > 0]
        self.evaluated.append(dataset)
        found = []
        for place, row in enumerate(rows):
            assert row["row_id"] in logged
            about = {"split": "holdout", "row_id": row["row_id"], "kind": "correction", "cluster": row["cluster"]}
            one = replace(self.real.evaluations[0], groups=[], **about)
            good = float(place < round(right * len(rows)))
            scores = {BASE: 0.0, LOGGED: 0.0, CANDIDATE: good}
            found += [replace(one, model=model, score=score) for model, score in scores.items()]
        assert (settings.evaluate.general_examples == 0) == (len(self.evaluated) > 1)
        return found, {"seconds": 1.0}


def test_forty_corrections_are_enough_for_a_clear_gain(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holdout has ten of them: what was learned is judged too, by models that learned without it."""
    teach_policies(Teacher(bench.warehouse), GOODS, openings=slice(2))
    trainer = Trainer(real, (0.6, 0.5), monkeypatch)
    result = bench.retrain()
    assert result.promoted, result.reasons
    whole, *parts = trainer.trained
    assert whole.rows["holdout"] < bench.settings.gate.minimum_examples
    learned = {row["row_id"] for row in whole.split("train")}
    assert len(parts) == 4
    assert trainer.evaluated == trainer.trained
    stored = bench.warehouse.rows("SELECT row_id, score FROM evaluations WHERE split = 'fold' AND model = 'base'")
    assert {row["row_id"] for row in stored} == learned
    assert len(stored) == len(learned) == result.figures["folded"]
    assert result.figures["examples"] == result.figures["logged_examples"] == len(learned) + whole.rows["holdout"]
    assert result.figures["tries"] == 1  # the holdout alone was not looked at
    assert f"{len(learned)} of these examples are training rows of the candidate" in result.reasons[1]
    # They are told apart from the holdout, whose score is the candidate's own.
    assert result.scores["candidate"] == pytest.approx(0.6, abs=0.05)
    assert bench.work_folders() == []


def test_folds_are_really_trained_and_answer_what_they_did_not_learn(bench: Bench) -> None:
    teacher = Teacher(bench.warehouse)
    ask_in_vain(teacher)
    teach_policies(teacher, GOODS, openings=slice(2))
    once = bench.settings.train.model_copy(update={"epochs": 1})
    exact = MetricSettings(name="exact")  # after one epoch answers are nonsense, on some of which facts abstain
    bench.settings = bench.settings.model_copy(update={"train": once, "metric": exact})
    result = bench.retrain()
    assert result.state == "succeeded", result.error
    assert {line.get("fold") for line in bench.lines if "step" in line} == {None, 1, 2, 3, 4}
    learned = {
        row["row_id"]: row for row in bench.warehouse.rows("SELECT row_id FROM dataset_rows WHERE split = 'train'")
    }
    stored = bench.warehouse.rows("SELECT * FROM evaluations WHERE split = 'fold'")
    assert Counter(row["model"] for row in stored) == dict.fromkeys(("base", "logged", result.version), len(learned))
    assert {row["row_id"] for row in stored} == learned.keys()
    assert all(row["output"] for row in stored if row["model"] == "logged")
    assert result.figures["folded"] == len(learned)
    # What has nothing to do with the workload is asked once, of the candidate.
    general = bench.warehouse.rows(
        "SELECT count(*) AS n FROM evaluations WHERE split = 'general' GROUP BY model, row_id"
    )
    assert {row["n"] for row in general} == {1}
    assert bench.work_folders() == []


def test_a_holdout_that_shows_too_little_is_one_look_and_its_folds_another(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS, openings=slice(4))
    bench.apart()
    trainer = Trainer(real, (0.15, 0.3), monkeypatch)
    result = bench.retrain()
    assert trainer.trained[0].rows["holdout"] >= bench.settings.gate.minimum_examples
    assert len(trainer.trained) == 5
    assert (result.promoted, result.figures["tries"]) == (True, 2)
    # Nor are folds made of so many rows that four more trainings are too dear.
    again = bench.settings.gate.model_copy(update={"fold_rows": 10})
    bench.settings = bench.settings.model_copy(update={"gate": again})
    bench.warehouse.execute("DELETE FROM aliases")
    trainer = Trainer(real, (0.15, 0.3), monkeypatch)
    result = bench.retrain()
    assert len(trainer.trained) == 1
    assert (result.promoted, result.figures["tries"]) == (False, 3)


def test_no_fold_is_trained_for_a_candidate_that_looks_no_better(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS, openings=slice(4))
    bench.apart()
    trainer = Trainer(real, (0.0, 1.0), monkeypatch)
    assert not bench.retrain().promoted
    assert len(trainer.trained) == 1


def test_folds_that_were_done_before_an_interruption_are_not_done_again(
    bench: Bench, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS, openings=slice(2))
    trainer = Trainer(real, (0.6, 0.5), monkeypatch)

    def stop() -> None:
        if len(trainer.evaluated) == 3:
            bench.stop.set()

    trainer.before_evaluation = stop
    assert bench.retrain().state == "interrupted"
    bench.stop.clear()
    trainer.before_evaluation = lambda: None
    done = len(trainer.evaluated)
    result = bench.resume()
    assert result is not None
    assert result.promoted
    assert result.figures["folded"] == len(trainer.trained[0].split("train"))
    assert len(trainer.evaluated) == done + 1
    assert done == 4
