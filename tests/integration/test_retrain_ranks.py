"""Several processes train together as one would."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_llama
from safetensors.torch import load_file
from trainings import SETTINGS, dataset, trained

from retuned.consumers.child import child_main
from retuned.consumers.common.process import run_child
from retuned.consumers.errors import Cancelled, ChildFailed, RetunedError
from retuned.retrain.training import checkpoints, ranks
from retuned.retrain.training.ranks import Ranks

pytestmark = pytest.mark.usefixtures("forked_children")

KTO = SETTINGS.model_copy(update={"preference": "kto", "preference_weight": 0.5, "batch_size": 7})


def refuse(_: dict[str, Any]) -> None:
    raise AssertionError


def test_shares_hold_each_item_once_and_neighbours_together() -> None:
    for count in (1, 2, 3, 8):
        shares = [Ranks(number, count).part(range(7)) for number in range(count)]
        assert [item for share in shares for item in share] == list(range(7))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RetunedError, match=r"train.processes 3: this machine has 2 GPUs"):
        ranks.join("retuned.retrain.training.train", 3, refuse)


def test_two_processes_learn_what_one_learns_and_go_on_after_a_stop(tmp_path: Path) -> None:
    base, data = tiny_llama(tmp_path / "base"), dataset(tmp_path / "data", train=50)
    alone = trained(base, data, tmp_path / "alone", KTO)

    job = {
        "base": str(base),
        "parent": None,
        "dataset": str(data),
        "folder": str(tmp_path / "two"),
        "settings": KTO.model_copy(update={"processes": 2}).model_dump(mode="json"),
    }
    stop = threading.Event()

    def after_ten(line: dict[str, Any]) -> None:
        if line.get("step") == 10:
            stop.set()

    with pytest.raises(Cancelled):
        run_child(
            "retuned.retrain.training.train",
            job,
            tmp_path / "two",
            timeout_seconds=120,
            stop=stop,
            on_progress=after_ten,
        )
    saved = checkpoints.newest(tmp_path / "two")
    assert saved is not None
    assert saved[0]["step"] >= 10
    lines: list[dict[str, Any]] = []
    together = run_child(
        "retuned.retrain.training.train", job, tmp_path / "two", timeout_seconds=120, on_progress=lines.append
    )

    assert (alone["processes"], together["processes"]) == (1, 2)
    # Each step is told once.
    assert [line["step"] for line in lines if "step" in line] == list(range(saved[0]["step"] + 1, alone["steps"] + 1))
    for name in ("train_loss", "validation_loss", "validation_gap", "preference_loss"):
        assert together[name] == pytest.approx(alone[name], rel=1e-3), name
    assert together["tokens"] == alone["tokens"]
    left, right = (load_file(Path(one["adapter"]) / "adapter_model.safetensors") for one in (alone, together))
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, atol=2e-3, rtol=0.05)


def fail_in_the_second(_: dict[str, Any], emit: Any) -> dict[str, Any]:
    together = ranks.join("test_retrain_ranks", 2, emit)
    if not together.first:
        raise RetunedError("its GPU is out of memory")
    emit({"first": os.getpid()})
    return {"total": together.total(1.0)}


def test_a_process_that_fails_ends_the_others_and_tells_why(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    with pytest.raises(ChildFailed, match="process 1: its GPU is out of memory"):  # not that it ran out of time
        run_child("test_retrain_ranks", {}, tmp_path, timeout_seconds=120, environment={"PYTHONPATH": path})


if __name__ == "__main__":
    sys.modules["test_retrain_ranks"] = sys.modules["__main__"]
    child_main(fail_in_the_second)
