"""Trainings in this very process, on tiny models: what a child does, without the seconds that one takes to start."""

import json
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training import adapter as lora
from retuned.retrain.training.base_model import load_model, load_tokenizer
from retuned.retrain.training.batches import encode
from retuned.retrain.training.train import work

SETTINGS = TrainSettings(engine="packed", dtype="float32", threads=1, epochs=3, checkpoint_steps=4, learning_rate=5e-3)


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Questions about orders, with the right answer and the one that it corrected."""
    return [
        {
            "row_id": f"r{number}",
            "messages": json.dumps(
                [{"role": "user", "content": f"how long do i have to return order {number * 37}" + "?" * (number % 5)}]
            ),
            "completion": f"you have {number % 7} days" + " for it" * (number % 3),
            "rejected": f"you have {number % 7 + 2} weeks",
            "context": None,
        }
        for number in range(start, start + count)
    ]


def dataset(folder: Path, *, train: int = 60) -> Path:
    """The files that a training reads; thumbs go up for answers in days and down for answers in weeks."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows(train)), folder / "train.parquet")
    thumbs = [row | {"desirable": True} for row in rows(12, 100)]
    thumbs += [row | {"completion": row["rejected"], "desirable": False} for row in rows(7, 112)]
    pq.write_table(pa.Table.from_pylist(thumbs), folder / "thumbs.parquet")
    return folder


def encoded(base: Path, count: int) -> tuple[list[Encoded], int]:
    """Rows as token ids, and the id of the pad token."""
    tokenizer = load_tokenizer(base)
    return [encode(tokenizer, row, 1_024) for row in rows(count)], tokenizer.pad_token_id


def adapted(base: Path, model: Any = None, settings: TrainSettings = SETTINGS) -> Any:
    """A base model with an adapter that changes something."""
    torch.manual_seed(0)
    model = lora.new_adapter(load_model(base, torch.float32) if model is None else model, base, settings)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.05)
    return model


def gradients(model: Any, parts: Iterable[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses, and what their mean's gradients are for each parameter that has one."""
    found = torch.cat(list(parts))
    model.zero_grad()
    found.mean().backward()
    return found.detach(), {
        name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
    }


def trained(
    base: Path,
    data: Path,
    folder: Path,
    settings: TrainSettings = SETTINGS,
    *,
    parent: Path | None = None,
    emit: Callable[[dict[str, Any]], None] = lambda _: None,
    halved: int = 0,
) -> dict[str, Any]:
    """What the training's child does with a job, in this process."""
    job = {
        "base": str(base),
        "parent": str(parent) if parent else None,
        "dataset": str(data),
        "folder": str(folder),
        "settings": settings.model_dump(mode="json"),
        "halved": halved,
    }
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    try:
        result = work(job, emit)
        assert result is not None
        return result
    finally:
        signal.signal(signal.SIGTERM, handler)
        torch.set_num_threads(threads)


def engine_loss(base: Path, data: Path, folder: Path, settings: TrainSettings, adapter: Path) -> float:
    """The loss of an adapter on all training rows as the engine computes it, before its first step from there."""
    lines: list[dict[str, Any]] = []
    count = pq.read_metadata(data / "train.parquet").num_rows
    at_once = settings.model_copy(update={"batch_size": count, "epochs": 1})
    trained(base, data, folder, at_once, parent=adapter, emit=lines.append)
    return next(float(line["loss"]) for line in lines if "step" in line)
