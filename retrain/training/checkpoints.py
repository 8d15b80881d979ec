"""Checkpoints of a training: whole or absent, checked when they are loaded. Runs in child processes alone."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from retuned.consumers.common import durable as files

_KEEP = 2


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
