"""Banking77: what a dataset keeps of each class of real questions, in three spellings of the labels.

    RETUNED_DATA=/path/to/data python tests/benchmarks/banking77.py

Ten intents of PolyAI's banking77 (Casanueva et al. 2020, "Efficient Intent Detection with Dual Sentence Encoders",
CC BY 4.0, https://github.com/PolyAI-LDN/task-specific-datasets), 60 questions each. Production is right in a quarter of
its answers. What is right is called helpful; the rest is corrected, by an expert in three of ten cases, and one
correction in twenty names a wrong label. With --train (the benchmark `banking77_train`, some ten minutes) the demo's
base model learns from it, and the gate's figure stands beside the exact accuracy on the untouched test split.
"""

import csv
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from fixtures.models.datasets import build_dataset
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.operations.files import FileIntake
from retuned.daemon.operations.local import opened
from retuned.daemon.settings import load
from retuned.daemon.transfer.imports import import_files
from retuned.retrain.settings import ModelsSettings, Settings

BASE = Path(__file__).parents[2] / "build" / "smollm2-135m-instruct"
WORKLOAD = "intents"
SYSTEM = "You sort the questions of a bank's customers. Reply with the name of the intent and nothing else."
INTENTS, QUESTIONS, RIGHT, MISTAKEN, EXPERTS, ACCOUNTS = 10, 60, 0.25, 0.05, 0.3, 80
START = datetime(2026, 3, 1, tzinfo=UTC)
SPELLINGS = ("snake_case", "title_case", "code")


def main() -> dict[str, float]:
    """Rows kept of each class in each spelling, before anything is trained."""
    folder = _data()
    if folder is None:
        return {}
    figures = {}
    for spelling in SPELLINGS:
        with tempfile.TemporaryDirectory() as name:
            figures |= _kept(Path(name), folder, spelling)
    return figures


def _data() -> Path | None:
    folder = Path(os.environ.get("RETUNED_DATA", "")) / "banking77"
    if os.environ.get("RETUNED_DATA") and folder.is_dir():
        return folder
    print(
        "skipped: set RETUNED_DATA to a folder that holds banking77/{train,test}.csv, from "
        "https://github.com/PolyAI-LDN/task-specific-datasets (banking_data)",
        file=sys.stderr,
    )
    return None


def _rows(file: Path) -> dict[str, list[str]]:
    """The questions of the ten intents that come first in the training split."""
    found: dict[str, list[str]] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            found.setdefault(row["category"], []).append(row["text"])
    return dict(list(found.items())[:INTENTS])


def _labels(folder: Path, spelling: str) -> dict[str, str]:
    """Of each intent what it is called."""
    spelled = {
        "snake_case": lambda _, name: name,
        "title_case": lambda _, name: name.replace("_", " ").title(),
        "code": lambda number, _: f"T{number + 1}",
    }[spelling]
    return {name: spelled(number, name) for number, name in enumerate(_rows(folder / "train.csv"))}


def _events(folder: Path, spelling: str, luck: random.Random) -> Iterator[dict[str, Any]]:
    labels = _labels(folder, spelling)
    asked = [(text, name) for name, texts in _rows(folder / "train.csv").items() for text in texts[:QUESTIONS]]
    luck.shuffle(asked)

    def wrong(name: str) -> str:
        return luck.choice([label for other, label in labels.items() if other != name])

    for number, (text, name) in enumerate(asked):
        right = luck.random() < RIGHT
        answer = labels[name] if right else wrong(name)
        when = START + timedelta(minutes=40 * number)
        yield {
            "id": f"i{number}",
            "timestamp": when.isoformat(),
            "workload": WORKLOAD,
            "model": "production",
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}],
            "response": answer,
            "user_id": f"account-{luck.randrange(ACCOUNTS)}",
        }
        expert = luck.random() < EXPERTS
        label = wrong(name) if luck.random() < MISTAKEN else labels[name]
        yield {
            "id": f"f{number}",
            "timestamp": (when + timedelta(minutes=5)).isoformat(),
            "interaction_id": f"i{number}",
            "name": "helpful" if right else "correction",
            "value": True if right else label,
            "source": "expert" if expert else "user",
            "user_id": f"staff-{luck.randrange(3)}" if expert else f"account-{luck.randrange(ACCOUNTS)}",
        }


def _imported(place: Path, folder: Path, spelling: str) -> Path:
    """Import the events as `retuned import` does; returns the warehouse's file."""
    events = place / "events.jsonl"
    lines = [json.dumps(event) + "\n" for event in _events(folder, spelling, random.Random(0))]
    events.write_text("".join(lines), encoding="utf-8")
    warehouse = place / "retuned.duckdb"
    config = place / "retuned.yaml"
    config.write_text(yaml.safe_dump({"warehouse": {"path": str(warehouse)}}), encoding="utf-8")
    settings = load(config)
    with opened(settings) as service:
        import_files([events], None, None, settings, FileIntake(service))
    return warehouse


def _kept(place: Path, folder: Path, spelling: str) -> dict[str, float]:
    warehouse = open_warehouse(WarehouseSettings(path=_imported(place, folder, spelling)))
    settings = Settings(models=ModelsSettings(directory=place / "models"))
    try:
        built = build_dataset(warehouse, settings, WORKLOAD, START + timedelta(days=60))
    finally:
        warehouse.close()
    kept = Counter(row["completion"] for name in ("train", "holdout") for row in built.split(name))
    held_out = Counter(row["completion"] for row in built.split("holdout"))
    said = Counter(kept)
    said.update(row["completion"] for row in built.split("set_aside"))
    print(f"{spelling}: left out { ({name: n for name, n in built.card['left_out'].items() if n}) }", file=sys.stderr)
    for label in _labels(folder, spelling).values():
        print(
            f"  {label:45} {kept[label]:4} of {said[label]:4} rows, {held_out[label]:3} in the holdout", file=sys.stderr
        )
    shares = [kept[label] / max(said[label], 1) for label in _labels(folder, spelling).values()]
    return {
        f"banking77_least_kept_{spelling}": min(shares),
        f"banking77_rows_{spelling}": float(kept.total()),
    }


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
