"""Starts a training in several processes, by torch's launcher, or by accelerate's if the model is sharded.

Each process computes its part of a step, and their gradients are summed.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.retrain.runners.devices import has_gpu
from retuned.retrain.settings import TrainSettings

_LAUNCHED = "RETUNED_LAUNCHED"
_HOST = "127.0.0.1"
_EXPECTED = {"fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT"}


def launcher(module: str, job: dict[str, Any]) -> list[str] | None:
    """Returns the command that starts the processes of a training, each as `python -m module` on the same job; None if
    one process is enough, or if this is one of them.

    Raises:
        RetunedError: there are fewer GPUs than processes, or `train.accelerate_file` cannot be used.
    """
    settings = TrainSettings.model_validate(job["settings"])
    if _LAUNCHED in os.environ:
        return None
    gpus = _gpus(settings)
    count = settings.processes or max(1, gpus)
    if gpus and count > gpus:
        raise RetunedError(f"train.processes {count}: this machine has {gpus} GPUs; set it to at most that, or to null")
    if settings.accelerate_file is not None:
        check(settings)
    if count == 1:
        return None
    os.environ[_LAUNCHED] = "1"
    os.environ["RETUNED_PARENT"] = str(os.getpid())  # the launcher replaces this process
    # Without it torch's launcher leaves each process a single thread, on however many cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    if sys.platform == "linux":  # gradients stay on this machine
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    python, what = [sys.executable, "-m"], ["--module", module, sys.argv[1]]
    if settings.accelerate_file is not None:
        own = ["--config_file", str(settings.accelerate_file), "--num_processes", str(count)]
        return [*python, "accelerate.commands.launch", *own, "--main_process_port", "0", *what]
    own = ["--nproc-per-node", str(count), "--local-addr", _HOST]
    own += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{_HOST}:0"]
    return [*python, "torch.distributed.run", *own, *what]


def check(settings: TrainSettings) -> None:
    """Checks the settings of sharding.

    Raises:
        RetunedError: `train.accelerate_file` cannot be read, does not describe FSDP version 2, or conflicts with the
            other settings.
    """
    import yaml

    file = settings.accelerate_file
    assert file is not None
    if settings.method == "qlora":
        raise RetunedError("train.accelerate_file: with train.method qlora, each GPU holds the whole model; unset one")
    try:
        read = json.loads if file.suffix == ".json" else yaml.safe_load
        content = read(Path(file).read_text(encoding="utf-8"))
        given = content.get("fsdp_config") or {}
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise RetunedError(f"train.accelerate_file {file}: {error}") from error
    wrong = [f"{name} is {given.get(name)}" for name, value in _EXPECTED.items() if given.get(name) != value]
    if wrong or content.get("distributed_type") != "FSDP":
        raise RetunedError(
            f"train.accelerate_file {file}: expected FSDP version 2 with full state dicts, as in deploy/fsdp2.yaml; "
            f"{', '.join(wrong) or 'distributed_type is not FSDP'}"
        )


def _gpus(settings: TrainSettings) -> int:
    if not has_gpu(settings):
        return 0
    import torch

    return torch.cuda.device_count()
