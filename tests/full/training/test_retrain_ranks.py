"""Several processes train together as one would."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fixtures.models.tiny import tiny_llama
from fixtures.models.trainings import SETTINGS, dataset, trained
from retuned.consumers.common.process import run_child
from retuned.consumers.errors import Cancelled, ChildFailed, RetunedError
from retuned.retrain.training import launch
from retuned.retrain.training.train import MODULE

AUTO = SETTINGS.model_copy(update={"engine": "auto", "batch_size": 6})
TWO = {"settings": AUTO.model_copy(update={"processes": 2}).model_dump(mode="json")}
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2])}


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launch, "has_gpu", lambda _: True)
    job = {"settings": AUTO.model_copy(update={"processes": 3}).model_dump(mode="json")}
    with pytest.raises(RetunedError, match=r"train.processes 3: this machine has 2 GPUs"):
        launch.launcher(MODULE, job)


def test_two_processes_learn_what_one_learns_and_go_on_after_a_stop(tmp_path: Path) -> None:
    base, data = tiny_llama(tmp_path / "base"), dataset(tmp_path / "data", train=48)
    settings = AUTO.model_copy(update={"preference": "dpo", "preference_weight": 0.5})
    alone = trained(base, data, tmp_path / "alone", settings)

    job = {
        "base": str(base),
        "parent": None,
        "dataset": str(data),
        "folder": str(tmp_path / "two"),
        "settings": settings.model_copy(update={"processes": 2}).model_dump(mode="json"),
    }
    stop = threading.Event()

    def after_ten(line: dict[str, Any]) -> None:
        if line.get("step") == 10:
            stop.set()

    with pytest.raises(Cancelled):
        run_child(MODULE, job, tmp_path / "two", timeout_seconds=240, stop=stop, on_progress=after_ten)
    saved = max(int(path.parent.name.rsplit("-", 1)[-1]) for path in (tmp_path / "two").glob("checkpoint-*/whole"))
    assert saved >= 10
    lines: list[dict[str, Any]] = []
    together = run_child(MODULE, job, tmp_path / "two", timeout_seconds=240, on_progress=lines.append)

    assert (alone["processes"], together["processes"]) == (1, 2)
    assert (alone["micro_batch_size"], together["micro_batch_size"]) == (6, 3)
    # Each step is reported once.
    assert [line["step"] for line in lines if "step" in line] == list(range(saved + 1, alone["steps"] + 1))
    for name in ("train_loss", "preference_loss"):
        assert together[name] == pytest.approx(alone[name], rel=1e-3), name
    assert together["tokens"] == alone["tokens"]
    left, right = (load_file(Path(one["adapter"]) / "adapter_model.safetensors") for one in (alone, together))
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, atol=2e-3, rtol=0.05)


def test_a_process_that_fails_ends_the_others_and_reports_why(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="its GPU is out of memory"):  # not that it ran out of time
        run_child(
            "fixtures.faults.ranks", TWO | {"fails": True}, tmp_path, timeout_seconds=120, environment=ENVIRONMENT
        )


def test_processes_die_with_the_one_that_started_the_training(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from retuned.consumers.common.process import run_child; "
        "run_child('fixtures.faults.ranks', %s, Path(sys.argv[1]), timeout_seconds=99, "
        "on_progress=lambda line: print(line['pid']))"
    )
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code % TWO, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | ENVIRONMENT,
    ) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
    for pid in pids:
        while Path(f"/proc/{pid}/stat").is_file() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            threading.Event().wait(0.1)
