"""Limits the GPU memory of this process, where other processes need the rest. Used in child processes only."""

import time
from collections.abc import Callable

import torch

from retuned.consumers.common.memory import gibibytes
from retuned.consumers.common.process import Emit
from retuned.consumers.errors import Cancelled, RetunedError

CONTEXT_BYTES = 600 * 2**20
"""GPU memory of CUDA's context per process, beside torch's allocations. A generous estimate."""
_LOOK_SECONDS = 2.0


def reserve(
    budget: int | None,
    wait_seconds: float,
    emit: Emit,
    stopped: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Waits until enough memory of this process's GPU is free, and limits torch's allocations to it.

    Args:
        budget: bytes, including CUDA's context; None: no wait and no limit.
        wait_seconds: the longest wait.
        emit: receives `{"waits_for_gpu_bytes"}`, the missing bytes, once if the process has to wait.

    Raises:
        RetunedError: not enough memory became free.
        Cancelled: `stopped` returned true during the wait.
    """
    if budget is None or not torch.cuda.is_available():
        return
    needed, deadline, waits = max(1, budget - CONTEXT_BYTES), clock() + wait_seconds, False
    while True:
        free, total = torch.cuda.mem_get_info()
        if free >= needed:
            break
        if stopped():
            raise Cancelled("stopped while it waited for GPU memory")
        if clock() >= deadline:
            raise RetunedError(
                f"train.gpu_memory_bytes: GPU {torch.cuda.current_device()} has {gibibytes(total)}, of "
                f"which {gibibytes(free)} are free after {wait_seconds:g} s (train.gpu_wait_seconds), but "
                f"{gibibytes(needed)} are needed: stop other processes on it, or lower the setting"
            )
        if not waits:
            emit({"waits_for_gpu_bytes": needed - free})
            waits = True
        sleep(_LOOK_SECONDS)
    torch.cuda.set_per_process_memory_fraction(min(1.0, needed / total))
