"""Checkpoints of a training: whole or absent, checked when they are loaded. Runs in child processes alone."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from retuned.consumers.common import durable as files
from retuned.retrain.settings import TrainSettings

_KEEP = 2
_SECONDS = 60.0
_SHARE = 0.02
_MADE_UNDER = "made-under.json"
_OF_THE_MACHINE = frozenset(
    {"engine", "devices", "processes", "threads", "timeout_seconds", "attempts", "memory_bytes", "checkpoint_steps"}
)
"""Settings that may change while a training is interrupted: they do not change what is learned."""


class Times:
    """When a checkpoint is due: every `train.checkpoint_steps`; without that once a minute, or at most 2% of the time.

    Processes that train together may disagree by a moment: let one of them decide.
    """

    def __init__(self, settings: TrainSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._clock = settings.checkpoint_steps, clock
        self._last, self._took = clock(), 0.0

    def due(self, step: int) -> bool:
        """Whether one is to be written after so many steps."""
        if self._steps is not None:
            return step % self._steps == 0
        return self._clock() - self._last >= max(_SECONDS, self._took / _SHARE)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around the writing of one."""
        started = self._clock()
        yield
        self._last = self._clock()
        self._took = self._last - started


def drop_unfit(folder: Path, job: dict[str, Any], engine: str, settings: TrainSettings) -> str | None:
    """Remove the checkpoints of a training that was something else, and note what this one is.

    Args:
        job: base, parent and dataset are a training's, whatever its settings.
        engine: the one that was chosen.

    Returns:
        what had changed, if there were checkpoints; None: there are none, or they can be continued.
    """
    now = {name: job[name] for name in ("base", "parent", "dataset")} | {"train.engine": engine}
    kept = settings.model_dump(mode="json", exclude=set(_OF_THE_MACHINE))
    now |= {f"train.{name}": value for name, value in kept.items()}
    file = folder / _MADE_UNDER
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    changed = [name for name, value in now.items() if before.get(name, value) != value]
    found = _found(folder) if changed or not before else []
    for checkpoint in found:
        shutil.rmtree(checkpoint)
    files.replace_text(file, json.dumps(now, indent=2))
    if not found:
        return None
    if not before:
        return "the checkpoint was made by another version of retuned"
    return "; ".join(f"{name} was {json.dumps(before[name])} and is {json.dumps(now[name])}" for name in changed)


def save(folder: Path, step: int, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write `checkpoint-<step>` and drop the ones before the last."""
    with files.written_aside(folder / f"checkpoint-{step:08d}") as aside:
        save_file(tensors, aside / "state.safetensors")
        with (aside / "state.safetensors").open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        (aside / "state.json").write_text(json.dumps(numbers | {"sha256": digest}), encoding="utf-8")
    for old in _found(folder)[_KEEP:]:
        shutil.rmtree(old)


def newest(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Numbers and tensors of the newest checkpoint that is whole, or None. A broken one is passed over."""
    for path in _found(folder):
        try:
            numbers = json.loads((path / "state.json").read_text(encoding="utf-8"))
            content = (path / "state.safetensors").read_bytes()
            if hashlib.sha256(content).hexdigest() == numbers.pop("sha256"):
                return numbers, load(content)
        except (OSError, ValueError, KeyError, SafetensorError):
            continue
    return None


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), reverse=True)
