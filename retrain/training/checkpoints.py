"""Writes and loads checkpoints of a training, atomically and with a checksum. Used in child processes only."""

import hashlib
import json
import shutil
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from retuned.consumers.common import durable as files
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.settings import TrainSettings

_KEEP = 2
_SECONDS = 60.0
_SHARE = 0.02
_MADE_UNDER = "made-under.json"
_OF_THE_MACHINE = frozenset(
    {"engine", "devices", "processes", "threads", "timeout_seconds", "attempts", "memory_bytes", "checkpoint_steps"}
    | {"gpu_memory_bytes", "gpu_wait_seconds", "gpu_servers", "gpu_servers_sleep"}
)
"""Settings that may change while a training is interrupted, as they do not change what is learned."""


class Times:
    """Decides when a checkpoint is due: every `train.checkpoint_steps`, else once a minute, in at most 2% of the time.

    Clocks of several processes may disagree, so one of them must decide.
    """

    def __init__(self, settings: TrainSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._clock = settings.checkpoint_steps, clock
        self._last, self._took = clock(), 0.0

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after a step."""
        if self._steps is not None:
            return step % self._steps == 0
        return self._clock() - self._last >= max(_SECONDS, self._took / _SHARE)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Measures the time of writing a checkpoint."""
        started = self._clock()
        yield
        self._last = self._clock()
        self._took = self._last - started


def drop_unfit(
    folder: Path, job: dict[str, Any], engine: str, settings: TrainSettings, rows: Sequence[Encoded]
) -> str | None:
    """Removes the checkpoints of a training with other inputs, and records the inputs of this one.

    Args:
        job: its base, parent and dataset are compared, beside the settings.
        engine: the chosen engine.
        rows: whose tokens are compared, as another tokenizer or chat template makes others of the same dataset.

    Returns:
        the changes, if checkpoints were removed; None if there are none, or they can be continued.
    """
    now = {name: job[name] for name in ("base", "parent", "dataset")} | {"train.engine": engine}
    kept = settings.model_dump(mode="json", exclude=set(_OF_THE_MACHINE))
    now |= {f"train.{name}": value for name, value in kept.items()} | {"hash of the tokens": _hash(rows)}
    file = folder / _MADE_UNDER
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    changed = [name for name, value in now.items() if before.get(name, value) != value]
    outdated = _checkpoints(folder) if changed or not before else []
    for checkpoint in outdated:
        shutil.rmtree(checkpoint)
    files.replace_text(file, json.dumps(now, indent=2))
    if not outdated:
        return None
    if not before:
        return "the checkpoint was made by another version of retuned"
    return "; ".join(f"{name} was {json.dumps(before[name])} and is {json.dumps(now[name])}" for name in changed)


def _hash(rows: Sequence[Encoded]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.row_id} {len(row.prompt)} {len(row.completion)} ".encode())
        digest.update(array("q", row.ids).tobytes())
    return digest.hexdigest()[:16]


def save(folder: Path, step: int, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes `checkpoint-<step>` and removes all but the newest two."""
    with files.written_aside(folder / f"checkpoint-{step:08d}") as aside:
        save_file(tensors, aside / "state.safetensors")
        with (aside / "state.safetensors").open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        (aside / "state.json").write_text(json.dumps(numbers | {"sha256": digest}), encoding="utf-8")
    for old in _checkpoints(folder)[_KEEP:]:
        shutil.rmtree(old)


def newest(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Returns the numbers and tensors of the newest intact checkpoint, or None. Damaged ones are skipped."""
    for path in _checkpoints(folder):
        try:
            numbers = json.loads((path / "state.json").read_text(encoding="utf-8"))
            content = (path / "state.safetensors").read_bytes()
            if hashlib.sha256(content).hexdigest() == numbers.pop("sha256"):
                return numbers, load(content)
        except (OSError, ValueError, KeyError, SafetensorError):
            continue
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), reverse=True)
