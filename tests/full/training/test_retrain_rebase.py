"""A workload moves to another base model: what its champion learned is trained anew there, and compared with it."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fixtures.feedback.teaching import CHANGED, GOODS, Teacher, teach_policies
from fixtures.models.datasets import build_dataset
from fixtures.models.tiny import ANY_LATENCY, tiny_llama
from retuned.consumers.errors import RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.retrain import queue, run, versions
from retuned.retrain.data import dataset as datasets
from retuned.retrain.release import registry
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.run import RunResult
from retuned.retrain.settings import EvaluateSettings, GateSettings, ModelsSettings, Settings, TrainSettings
from retuned.retrain.stages import candidate as candidate_stage
from retuned.retrain.training.base_model import load_model
from retuned.retrain.versions import Version


class Moved:
    """A champion that learned nothing of use on one base model, and a run that moved the workload to another."""

    def __init__(self, warehouse: Warehouse, folder: Path) -> None:
        self.warehouse, self.publisher = warehouse, MemoryPublisher()
        self.old = tiny_llama(folder / "old")
        self.new = tiny_llama(folder / "new", seed=7, hidden=80)
        self.settings = Settings(
            models=ModelsSettings(base=self.old, directory=folder / "models"),
            train=TrainSettings(threads=1, learning_rate=5e-3, epochs=8, dtype="float32"),
            evaluate=EvaluateSettings(general_examples=9),
            gate=GateSettings(minimum_examples=15, maximum_latency_ratio=ANY_LATENCY, fold_rows=0),
        )
        teacher = Teacher(warehouse)
        teach_policies(teacher, GOODS)
        self.first = build_dataset(warehouse, self.settings, "support", utc_now())
        torch.manual_seed(3)
        config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(load_model(self.old, torch.float32), config).save_pretrained(folder / "adapter")
        self.champion = registry.register(
            warehouse, self.settings.models.directory, "support", folder / "adapter", base_model=self.old,
            parent_version=None, dataset_version=self.first.version, run_id="r0",
            details={"metrics": {}, "cost": {}}, now=utc_now(),
        )  # fmt: skip
        self.rollout.promote("support", self.champion.version, "operator", "by hand", utc_now())
        # Two policies change afterwards.
        for thing, policy in CHANGED.items():
            teach_policies(teacher, {thing: policy}, wrong=f"You have {GOODS[thing]} for it.")
        self.result = self.take_up(base=self.new)

    @property
    def rollout(self) -> Rollout:
        return Rollout(self.warehouse, self.settings, self.publisher, "model-events")

    def take_up(self, base: Path | None = None) -> RunResult:
        run_id = queue.enqueue(self.warehouse, "support", ["by hand"], utc_now(), base=base)
        return run.resume(self.rollout, run_id, utc_now, threading.Event(), lambda _: None)

    def version(self, name: str | None) -> Version:
        found = versions.find(self.warehouse, "support", str(name))
        assert found is not None
        return found


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moved]:
    folder = tmp_path_factory.mktemp("moved")
    warehouse = open_warehouse(WarehouseSettings(path=folder / "w.duckdb"))
    yield Moved(warehouse, folder)
    warehouse.close()


def test_the_version_is_trained_on_the_other_base_model_and_serves(moved: Moved) -> None:
    result = moved.result
    assert result.state == "succeeded", result.error
    assert result.promoted, "\n".join(result.reasons)
    version = moved.version(result.version)
    assert version.base_hash == versions.base_hash(moved.new)
    assert version.parent_version is None
    (row,) = moved.warehouse.rows("SELECT kind, base_model, parent_version FROM runs")
    assert row == {"kind": "rebase", "base_model": str(moved.new), "parent_version": moved.champion.version}
    message = moved.publisher.messages[-1][2]
    assert (message["model"], message["base_model"]) == (version.name, str(moved.new))


def test_all_that_is_still_true_is_learned_anew(moved: Moved) -> None:
    """Of the champion's dataset too, although nothing of it is new."""
    dataset = datasets.load(moved.warehouse, "support", str(moved.result.dataset_version))
    assert dataset is not None
    learned = {json.loads(row["messages"])[-1]["content"]: row["completion"] for row in dataset.split("train")}
    before = [row for row in moved.first.split("train") if "chair" in row["messages"] or "gift" in row["messages"]]
    kept = [row for row in before if json.loads(row["messages"])[-1]["content"] in learned]
    assert len(kept) > 0.9 * len(before)
    assert not any("14 days" in answer or "30 days" in answer for answer in learned.values())
    judged = {row["row_id"] for row in dataset.split("holdout")}
    assert not judged & {row["row_id"] for row in moved.first.split("train")}


def test_both_answered_the_same_holdout_each_on_its_own_base_model(moved: Moved) -> None:
    rows = moved.warehouse.rows("SELECT * FROM evaluations WHERE split = 'holdout' AND model <> 'logged'")
    asked: dict[str, set[str]] = {}
    for row in rows:
        asked.setdefault(row["model"], set()).add(row["row_id"])
    assert asked.keys() == {"base", moved.champion.version, moved.result.version}
    assert len({frozenset(ids) for ids in asked.values()}) == 1
    assert moved.result.scores["candidate"] > 0.7 > moved.result.scores["champion"]


def test_what_follows_goes_on_from_the_new_base_model_though_the_configuration_names_the_old_one(
    moved: Moved, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, Any] = {}

    def train(_: Any, parent: Version | None, settings: Settings, *__: Any) -> dict[str, Any]:
        begun.update(parent=parent, base=settings.models.base)
        raise RetunedError("far enough")

    monkeypatch.setattr(candidate_stage, "train", train)
    Teacher(moved.warehouse, "support").acts = 10_000
    later = Teacher(moved.warehouse)
    later.acts = 10_000
    teach_policies(later, {"chair": "90 days", "sofa": "45 days", "lamp": "21 days"}, wrong="No idea.")
    assert moved.take_up().error == "far enough"
    assert begun == {"parent": moved.version(moved.result.version), "base": moved.new}
    champion = moved.version(moved.result.version)
    assert versions.base_of(champion, moved.new) == moved.new  # the configuration may follow
    assert versions.base_of(moved.champion, moved.old) == moved.old  # and a rollback finds the old one
    third = tiny_llama(moved.settings.models.directory / "third", seed=9)
    with pytest.raises(RetunedError, match=r"move the workload with `retuned rebase support --base .*third`"):
        versions.base_of(champion, third)
