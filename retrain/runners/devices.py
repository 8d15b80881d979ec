"""The GPUs that a child process may use, and their memory, without loading torch."""

import os
import subprocess
from pathlib import Path

from retuned.consumers.errors import RetunedError
from retuned.retrain.settings import TrainSettings

_SMI_SECONDS = 20.0


def environment(settings: TrainSettings) -> dict[str, str]:
    """Returns the environment variables that limit a child process to the GPUs of `train.devices`."""
    if settings.devices is None:
        return {}
    # By default CUDA orders GPUs by speed, nvidia-smi by bus id.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, settings.devices))}


def has_gpu(settings: TrainSettings) -> bool:
    """Returns whether a child process may use a GPU of this machine."""
    visible = environment(settings).get("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
    return visible not in ("", "-1") and any(Path("/dev").glob("nvidia[0-9]*"))


def gpu_memory(settings: TrainSettings) -> list[int]:
    """Returns the memory in bytes of each GPU that a training may use, by nvidia-smi; empty without GPUs.

    Raises:
        RetunedError: nvidia-smi does not report the memory of the GPUs, or a GPU of `train.devices` does not exist.
    """
    if not has_gpu(settings):
        return []
    try:
        report = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, check=True, timeout=_SMI_SECONDS,
        )  # fmt: skip
        memory = [int(line) * 2**20 for line in report.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise RetunedError(f"nvidia-smi does not report the GPUs' memory ({error}); set it by --gpu-memory") from error
    missing = [str(number) for number in settings.devices or () if number >= len(memory)]
    if missing:
        raise RetunedError(f"train.devices {', '.join(missing)}: this machine has {len(memory)} GPUs, counted from 0")
    return [memory[number] for number in settings.devices] if settings.devices is not None else memory
