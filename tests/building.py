"""Datasets made in this very process: what a child does, without the second that one takes to start."""

import tempfile
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

from teaching import Teacher, question

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data import build
from retuned.retrain.data.dataset import SPLITS, Dataset
from retuned.retrain.settings import DatasetSettings, GateSettings, Settings


def build_dataset(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> Dataset:
    """As `retuned.retrain.data.build.build_dataset`."""
    with tempfile.TemporaryDirectory() as folder:
        job = build.prepare(warehouse, settings, workload, Path(folder), threading.Event())
        return build.registered(warehouse, workload, build.work(job, print), now)


def with_dataset(settings: Settings, **asked: Any) -> Settings:
    """So few rows suffice that a dataset is made of anything."""
    return settings.model_copy(
        update={"dataset": DatasetSettings(minimum_rows=1, **asked), "gate": GateSettings(minimum_examples=1)}
    )


def teach(teacher: Teacher, numbers: range, **more: Any) -> list[str]:
    """Correct the answers to so many questions; the ids of the corrections."""
    return [teacher.correct(question(number), "No idea.", "It takes 30 days.", **more) for number in numbers]


def promote(warehouse: Warehouse, built: Dataset, version: str) -> None:
    """Pretend that a version trained on a dataset was promoted."""
    warehouse.insert(
        "models", version=version, workload=built.workload, created_at=built.created_at, path="/nowhere",
        base_model="/base", base_hash="x", dataset_version=built.version, run_id="r", manifest="{}",
    )  # fmt: skip
    warehouse.execute("DELETE FROM aliases")
    warehouse.insert("aliases", workload=built.workload, alias="champion", version=version, created_at=built.created_at)


def rows(built: Dataset, *names: str) -> list[dict[str, Any]]:
    """Of these splits, or of all."""
    return [row for name in names or SPLITS for row in built.split(name)]


def set_aside(built: Dataset) -> dict[str, str]:
    """Feedback to the reason why it was left out."""
    return {row["feedback_id"]: row["reason"] for row in built.split("set_aside")}
