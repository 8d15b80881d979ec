"""Which GPUs a child process may use, and what they have, found without loading torch."""

import os
import subprocess
from pathlib import Path

from retuned.consumers.errors import RetunedError
from retuned.retrain.settings import TrainSettings

_SMI_SECONDS = 20.0


def environment(settings: TrainSettings) -> dict[str, str]:
    """What shows a child process the GPUs of `train.devices` alone."""
    if settings.devices is None:
        return {}
    # CUDA's own order is by speed; nvidia-smi's is by place.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, settings.devices))}


def has_gpu(settings: TrainSettings) -> bool:
    """Whether a child process may use a GPU, by what it is shown and what this machine has."""
    shown = environment(settings).get("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
    return shown not in ("", "-1") and any(Path("/dev").glob("nvidia[0-9]*"))


def gpu_memory(settings: TrainSettings) -> list[int]:
    """Bytes of each GPU that a training may use, by nvidia-smi; none on a machine without GPUs.

    Raises:
        RetunedError: there are GPUs, and nvidia-smi does not tell what they have, or not of one in `train.devices`.
    """
    if not has_gpu(settings):
        return []
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, check=True, timeout=_SMI_SECONDS,
        )  # fmt: skip
        found = [int(line) * 2**20 for line in asked.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise RetunedError(f"nvidia-smi does not tell what the GPUs have ({error}); name it by --gpu-memory") from error
    missing = [str(number) for number in settings.devices or () if number >= len(found)]
    if missing:
        raise RetunedError(f"train.devices {', '.join(missing)}: this machine has {len(found)} GPUs, counted from 0")
    return [found[number] for number in settings.devices] if settings.devices is not None else found
