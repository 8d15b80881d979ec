import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from models import tiny_llama
from prometheus_client import CollectorRegistry
from teaching import CHANGED, GOODS, Teacher, teach_policies

from retuned.consumers.memory import MemoryPublisher
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse import Warehouse, open_warehouse, utc_now
from retuned.retrain import registry, run
from retuned.retrain.metrics import Metrics
from retuned.retrain.run import RunResult
from retuned.retrain.settings import GateSettings, ModelsSettings, Settings, TrainSettings

TOPIC = "model-events"

Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    opened = open_warehouse(WarehouseSettings(path=tmp_path / "w.duckdb"))
    yield opened
    opened.close()


@pytest.fixture
def settings(tmp_path: Path, base: Path) -> Settings:
    return Settings(
        models=ModelsSettings(base=base, directory=tmp_path / "models"),
        train=TrainSettings(threads=1, learning_rate=5e-3, epochs=8, dtype="float32", checkpoint_steps=10),
        gate=GateSettings(minimum_examples=15, maximum_latency_ratio=50),
    )


@pytest.fixture
def publisher() -> MemoryPublisher:
    return MemoryPublisher()


class Bench:
    """What a run needs, with its progress kept."""

    def __init__(self, warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher) -> None:
        self.warehouse, self.settings, self.publisher = warehouse, settings, publisher
        self.stop, self.lines = threading.Event(), Lines()
        self.on_line: Callable[[dict[str, Any]], None] = lambda _: None

    def _take(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self.on_line(line)

    def retrain(self) -> RunResult:
        return run.retrain(
            self.warehouse, self.settings, self.publisher, TOPIC, "support", ["by hand"], utc_now, self.stop, self._take
        )

    def resume(self) -> RunResult | None:
        return run.resume(self.warehouse, self.settings, self.publisher, TOPIC, utc_now, self.stop, self._take)

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
def bench(warehouse: Warehouse, settings: Settings, publisher: MemoryPublisher) -> Bench:
    return Bench(warehouse, settings, publisher)


def test_a_retraining_really_improves_the_answers_and_follows_a_change(bench: Bench, warehouse: Warehouse) -> None:
    teacher = Teacher(warehouse)
    teach_policies(teacher, GOODS)
    first = bench.retrain()

    assert first.state == "succeeded", first.error
    assert first.passed
    assert first.promoted
    assert first.scores["base"] == 0.0
    assert first.scores["candidate"] > 0.7
    champion = registry.champion(warehouse, "support")
    assert champion is not None
    assert champion.version == first.version
    assert champion.manifest["metrics"]["holdout_score_candidate"] == first.scores["candidate"]
    assert champion.manifest["cost"]["train_seconds"] > 0
    assert bench.publisher.messages[0][2]["model"] == champion.name
    assert bench.work_folders() == []
    row = bench.row()
    assert (row["state"], row["version"], json.loads(row["reasons"])) == ("succeeded", first.version, ["by hand"])
    assert row["train_seconds"] == first.train_seconds > 0
    (decision,) = warehouse.rows("SELECT * FROM decisions")
    assert (decision["kind"], decision["outcome"], json.loads(decision["reasons"])) == ("gate", True, first.reasons)
    stored = warehouse.rows(
        "SELECT model, count(*) AS n, avg(score) AS score FROM evaluations GROUP BY model ORDER BY model DESC"
    )
    assert {row["model"]: row["score"] for row in stored} == pytest.approx(
        {"base": 0.0, champion.version: first.scores["candidate"]}
    )
    holdout = {row["row_id"] for row in warehouse.rows("SELECT row_id FROM dataset_rows WHERE split = 'holdout'")}
    assert {row["row_id"] for row in warehouse.rows("SELECT row_id FROM evaluations")} == holdout

    # The company changes two policies: the champion's answers are corrected.
    for thing, policy in CHANGED.items():
        teach_policies(teacher, {thing: policy}, wrong=f"You have {GOODS[thing]} for it.")
    second = bench.retrain()

    assert second.state == "succeeded", second.error
    assert second.promoted, second.reasons
    assert second.parent_version == first.version
    assert second.scores["champion"] < 0.2
    assert second.scores["candidate"] > 0.7
    assert second.figures["regression_examples"] > 5
    assert registry.aliases(warehouse, "support") == {"champion": second.version, "previous": first.version}
    replayed = warehouse.row("SELECT replay, train FROM datasets ORDER BY created_at DESC LIMIT 1")
    assert replayed is not None
    assert 0 < replayed["replay"] <= replayed["train"] / 2

    collectors = CollectorRegistry()
    metrics = Metrics(collectors)
    for line in bench.lines:
        metrics.progress("support", line)
    for result in (first, second):
        metrics.finished(result)
    value = collectors.get_sample_value
    assert value("retuned_training_runs_total", {"workload": "support", "state": "succeeded"}) == 2
    assert value("retuned_gate_decisions_total", {"workload": "support", "outcome": "passed"}) == 2
    assert value("retuned_training_loss", {"workload": "support", "split": "validation"}) > 0
    assert (
        value("retuned_evaluation_score_ratio", {"workload": "support", "model_name": f"support@{second.version}"})
        > 0.7
    )


def test_a_candidate_that_is_not_better_is_kept_and_not_promoted(bench: Bench, warehouse: Warehouse) -> None:
    teach_policies(Teacher(warehouse), GOODS)
    bench.settings = bench.settings.model_copy(
        update={"train": bench.settings.train.model_copy(update={"learning_rate": 1e-9, "epochs": 1})}
    )
    result = bench.retrain()
    assert result.state == "succeeded"
    assert result.passed is False
    assert not result.promoted
    assert "not surely above" in result.reasons[0]
    assert registry.champion(warehouse, "support") is None
    assert [version.version for version in registry.versions(warehouse, "support")] == [result.version]
    assert bench.publisher.messages == []


def test_too_little_to_learn_from(bench: Bench, warehouse: Warehouse) -> None:
    teach_policies(Teacher(warehouse), {"lamp": "14 days"}, openings=slice(2))
    result = bench.retrain()
    assert (result.state, result.version, result.passed) == ("refused", None, None)
    assert "10 new examples; dataset.minimum_rows asks for 50" in result.reasons[0]
    assert bench.row()["error"] == result.error == result.reasons[0]
    assert bench.work_folders() == []


@pytest.mark.parametrize(
    "where",
    [{"stage": "train", "step": 15}, {"stage": "evaluate", "split": "holdout"}, {"stage": "dataset"}],
    ids=["training", "evaluating", "dataset"],
)
def test_a_run_that_was_stopped_is_taken_up_where_it_stood(
    bench: Bench, warehouse: Warehouse, where: dict[str, Any]
) -> None:
    teach_policies(Teacher(warehouse), GOODS)
    bench.stop_at(**where)
    stopped = bench.retrain()
    assert stopped.state == "interrupted"
    assert bench.row()["state"] == "interrupted"
    assert bench.row()["finished_at"] is None
    assert registry.champion(warehouse, "support") is None
    dataset_version = bench.row()["dataset_version"]
    teach_policies(Teacher(warehouse, "other"), {"lamp": "14 days"})

    bench.stop.clear()
    bench.on_line = lambda _: None
    before = len(bench.lines)
    resumed = bench.resume()

    assert resumed is not None
    assert resumed.run_id == stopped.run_id
    assert (resumed.state, resumed.promoted) == ("succeeded", True)
    if dataset_version is not None:
        assert resumed.dataset_version == dataset_version
    steps = [line["step"] for line in bench.lines[before:] if "step" in line]
    if where["stage"] == "train":
        assert steps[0] >= 15
    if where["stage"] == "evaluate":
        assert steps == []
    assert bench.resume() is None
    assert len(warehouse.rows("SELECT * FROM decisions")) == 1


def test_a_daemon_that_was_killed_after_the_decision_only_promotes(
    bench: Bench, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_policies(Teacher(warehouse), GOODS)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.rollout, "promote", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.retrain()
    assert bench.row()["state"] == "running"
    before = len(bench.lines)
    resumed = bench.resume()
    assert resumed is not None
    assert resumed.promoted
    assert not [line for line in bench.lines[before:] if "step" in line or "evaluated" in line]
    rows = warehouse.rows("SELECT count(*) AS n, count(DISTINCT row_id) AS d FROM evaluations GROUP BY model")
    assert all(row["n"] == row["d"] for row in rows)


def test_a_champion_that_changed_meanwhile_is_not_replaced(bench: Bench, warehouse: Warehouse) -> None:
    teach_policies(Teacher(warehouse), GOODS)

    def meddle(line: dict[str, Any]) -> None:
        if line.get("stage") == "gate":
            warehouse.insert("models", version="aaaaaaaa", workload="support", created_at=utc_now(), path="/x", base_model="b",
                             base_hash="h", dataset_version="d", run_id="r", manifest="{}")  # fmt: skip
            warehouse.insert("aliases", workload="support", alias="champion", version="aaaaaaaa", created_at=utc_now())

    bench.on_line = meddle
    result = bench.retrain()
    assert result.passed
    assert not result.promoted
    assert "support@aaaaaaaa became champion while" in result.reasons[-1]


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
    assert registry.champion(warehouse, "support") is None
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


def test_a_champion_of_another_base_model_is_named(bench: Bench, warehouse: Warehouse, tmp_path: Path) -> None:
    teacher = Teacher(warehouse)
    teach_policies(teacher, GOODS)
    assert bench.retrain().promoted
    other = tiny_llama(tmp_path / "other", seed=1)
    bench.settings = bench.settings.model_copy(
        update={"models": ModelsSettings(base=other, directory=tmp_path / "models")}
    )
    teach_policies(teacher, CHANGED)
    result = bench.retrain()
    assert result.state == "failed"
    assert "was trained on another base model" in str(result.error)
    assert not [line for line in bench.lines if line["run_id"] == result.run_id and "step" in line]
