"""What a model keeps of the old when it learns the new: the demo's company after two changes of its policies.

    python tests/benchmarks/forget.py

Experts correct answers to what changed, in eleven wordings of each fact; the examination asks in four others. Three
ways to learn are compared: on from the champion with replay of earlier examples, the same without replay, and from the
base model with all that was ever said and still holds.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.feedback.teaching import Teacher
from fixtures.models.datasets import build_dataset
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.demo.company import Fact, is_right, load, split_questions
from retuned.daemon.demo.model import base_model
from retuned.retrain import versions
from retuned.retrain.data import dataset as datasets
from retuned.retrain.decision.evaluate import evaluate
from retuned.retrain.decision.evaluation import CANDIDATE
from retuned.retrain.release import registry
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.settings import DatasetSettings, EvaluateSettings, GateSettings, ModelsSettings, Settings
from retuned.retrain.training.train import train

BASE = Path(__file__).parents[2] / "build" / "smollm2-135m-instruct"
WORKLOAD = "support"
SEED = 0
# Beside the change that stands in the company's file.
SECOND = {
    "warranty": ("Every product comes with a warranty of 60 months from the day you buy it.", "60 months"),
    "delivery": ("Standard delivery takes 2 working days to any address in the country.", "2 working days"),
    "payment": ("You can pay by bank transfer after your parcel has arrived.", "bank transfer"),
    "store": ("Our only store is in Bruges, right beside the old harbour.", "Bruges"),
}
Facts = dict[str, Fact]


def history() -> list[Facts]:
    """What is true at first, after the first change and after the second, by the facts' ids."""
    company = load(None)
    first, second = ({fact.id: fact for fact in company.facts(changed)} for changed in (False, True))
    third = {
        id: fact.model_copy(update={"answer": SECOND[id][0], "value": (SECOND[id][1],), "other_values": fact.value})
        if id in SECOND
        else fact
        for id, fact in second.items()
    }
    return [first, second, third]


class School:
    """One way to learn: a warehouse and its models."""

    def __init__(self, folder: Path, replay_share: float) -> None:
        folder.mkdir()
        self.folder = folder
        self.settings = Settings(
            models=ModelsSettings(base=BASE, directory=folder / "models"),
            dataset=DatasetSettings(replay_share=replay_share, minimum_rows=1),
            evaluate=EvaluateSettings(max_new_tokens=32, maximum_examples=1_000),
            gate=GateSettings(minimum_examples=1),  # each is promoted, whatever it learned
        )
        self.warehouse: Warehouse = open_warehouse(WarehouseSettings(path=folder / "school.duckdb"))
        self.teacher = Teacher(self.warehouse, WORKLOAD)
        self.system = load(None).system
        self.asked, self.exam = split_questions(load(None), SEED)

    def close(self) -> None:
        self.warehouse.close()

    def correct(self, facts: Sequence[Fact]) -> None:
        """Experts correct an answer to each question that customers ask of these facts."""
        for fact in facts:
            for question in self.asked[fact.id]:
                self.teacher.correct(question, "I cannot say.", fact.answer, system=self.system)

    def learn(self) -> tuple[Path, dict[str, Any]]:
        """Train on from the champion, put the result in its place, and return the adapter and what training told."""
        champion = versions.champion(self.warehouse, WORKLOAD)
        dataset = build_dataset(self.warehouse, self.settings, WORKLOAD, self.teacher.now)
        training = train(dataset, champion, self.settings, self.folder / f"train-{dataset.version}")
        version = registry.register(
            self.warehouse,
            self.settings.models.directory,
            WORKLOAD,
            Path(training["adapter"]),
            base_model=BASE,
            parent_version=champion.version if champion else None,
            dataset_version=dataset.version,
            run_id="bench",
            details={},
            now=self.teacher.now,
        )
        Rollout(self.warehouse, self.settings, MemoryPublisher(), "models").promote(
            WORKLOAD, version.version, "operator", "bench", self.teacher.now
        )
        return Path(training["adapter"]), training

    def right(self, adapter: Path, facts: Facts, ids: Sequence[str]) -> float:
        """Share of right answers in the examination's wordings of these facts."""
        return fmean(right for own in self.scores(adapter, facts, ids).values() for right in own)

    def scores(self, adapter: Path, facts: Facts, ids: Sequence[str]) -> dict[str, list[bool]]:
        """Whether each answer in the examination's wordings of these facts is right, by fact."""
        rows = [
            {
                "row_id": f"{id} {number}",
                "messages": json.dumps(
                    [{"role": "system", "content": self.system}, {"role": "user", "content": question}]
                ),
                "completion": facts[id].answer,
                "context": None,
            }
            for id in ids
            for number, question in enumerate(self.exam[id])
        ]
        folder = self.folder / f"exam-{time.monotonic_ns()}"
        folder.mkdir()
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / "holdout.parquet")
        for name in ("train", "regression"):
            pq.write_table(table.slice(0, 0), folder / f"{name}.parquet")
        exam = datasets.Dataset("exam", WORKLOAD, datetime.now(UTC), folder, {"holdout": len(rows)}, 0, {})
        found, _ = evaluate(exam, None, adapter, self.settings, "bfloat16", folder / "evaluate")
        scores: dict[str, list[bool]] = {id: [] for id in ids}
        for one in found:
            if (one.model, one.split) == (CANDIDATE, "holdout"):
                id = one.row_id.split()[0]
                scores[id].append(is_right(facts[id], one.output))
        return scores


def main() -> dict[str, float]:
    """Six trainings: some minutes on two cores."""
    base_model(BASE)
    first, second, third = history()
    changed = [[*first], [id for id in second if second[id] != first.get(id)], [*SECOND]]
    old, new = [id for id in third if id not in SECOND], [*SECOND]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for way, replay_share in (("with_replay", 0.5), ("without", 0.0), ("from_scratch", 0.0)):
            with closing(School(Path(name) / way, replay_share)) as school:
                seconds = 0.0
                for facts, ids in zip((first, second, third), changed, strict=True):
                    school.correct([facts[id] for id in ids])
                    if way == "from_scratch" and facts is not third:
                        continue
                    adapter, training = school.learn()
                    seconds = training["seconds"]
                figures |= {
                    f"forget_old_facts_{way}": school.right(adapter, third, old),
                    f"forget_new_facts_{way}": school.right(adapter, third, new),
                    f"forget_train_seconds_{way}": seconds,
                }
    return figures


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
