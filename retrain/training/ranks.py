"""One training in several processes: each learns from its part of a batch, and their gradients are added up.

That is data parallelism within the batch size that was set: what is learned does not depend on how many GPUs there are,
but for rounding. Runs in child processes alone.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from retuned.consumers.common.process import CANCELLED, Emit, start_twin
from retuned.consumers.errors import RetunedError

Item = TypeVar("Item")

_HOST = "127.0.0.1"
_RANK, _PORT = "RETUNED_RANK", "RETUNED_RANKS_PORT"
_TIMEOUT = timedelta(minutes=30)
_LAST_WORDS_SECONDS = 30.0


class Ranks:
    """The processes of one training, seen from one of them. All do the same steps, in the same order.

    Attributes:
        number: of this process, from 0. The first one answers, and writes what is kept.
        count: how many there are.
    """

    def __init__(self, number: int = 0, count: int = 1) -> None:
        self.number, self.count = number, count
        self._watchers: list[threading.Thread] = []

    @property
    def first(self) -> bool:
        """Whether this is the process that answers."""
        return self.number == 0

    def part(self, items: Sequence[Item]) -> list[Item]:
        """This process's share: neighbours stay together, and nothing is in two shares."""
        start, stop = (len(items) * number // self.count for number in (self.number, self.number + 1))
        return list(items[start:stop])

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Put into each tensor, in every process, the sum of what the processes have there."""
        if self.count == 1:
            return
        try:
            for work in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()
        except RuntimeError:
            for watcher in self._watchers:  # of a process that ended: it knows why, and that is what is to be told
                watcher.join(_LAST_WORDS_SECONDS)
            raise

    def total(self, number: float) -> float:
        """The sum of the processes' numbers."""
        if self.count == 1:
            return number
        found = torch.tensor(number, dtype=torch.float64, device=PartialState().device)
        self.add([found])
        return float(found)

    def watch(self, twins: Sequence["subprocess.Popen[bytes]"], emit: Emit) -> None:
        """End this process, with the reason, as soon as another one fails: it would wait for it for ever."""
        for number, twin in enumerate(twins, start=1):
            self._watchers.append(threading.Thread(target=_watch, args=(number, twin, emit), daemon=True))
            self._watchers[-1].start()


def join(module: str, processes: int | None, emit: Emit) -> Ranks:
    """Start the other processes of this training, or be one of them; one process is alone.

    Args:
        module: of this child.
        processes: how many; None: one for each GPU.

    Raises:
        RetunedError: there are fewer GPUs.
    """
    gpus = torch.cuda.device_count()
    count = processes or max(1, gpus)
    if count == 1:
        return Ranks()
    if gpus and count > gpus:
        raise RetunedError(f"train.processes {count}: this machine has {gpus} GPUs; set it to at most that, or to null")
    number = int(os.environ.get(_RANK, "0"))
    ranks = Ranks(number, count)
    if ranks.first:
        store = TCPStore(_HOST, 0, count, is_master=True, wait_for_workers=False, timeout=_TIMEOUT)
        ranks.watch([start_twin(module, {_RANK: str(i), _PORT: str(store.port)}) for i in range(1, count)], emit)
    else:
        store = TCPStore(_HOST, int(os.environ[_PORT]), count, is_master=False, timeout=_TIMEOUT)
    if sys.platform == "linux":  # gradients stay on this machine
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    # What launchers set, and accelerate reads.
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count), "MASTER_ADDR": _HOST}
    os.environ["LOCAL_WORLD_SIZE"] = str(count)
    PartialState(cpu=not gpus, store=store, rank=number, world_size=count, timeout=_TIMEOUT)
    return ranks


def _watch(number: int, twin: "subprocess.Popen[bytes]", emit: Emit) -> None:
    assert twin.stdout is not None
    last: dict[str, Any] = {}
    for line in twin.stdout:
        last = json.loads(line)
    status = twin.wait()
    if status not in (0, CANCELLED):
        emit({"error": f"process {number}: {last.get('error', f'ended with status {status}')}"})
        os._exit(1)
