"""Which engine trains, at which rate, on which GPUs, and when it writes a checkpoint."""

import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from retuned.consumers.errors import RetunedError
from retuned.retrain.runners import devices
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training import engine, launch
from retuned.retrain.training.checkpoints import Times
from retuned.retrain.training.steps import check_finite


@pytest.mark.parametrize(
    ("changes", "model_type", "gpus", "expected"),
    [
        ({}, "llama", 0, "packed"),
        ({}, "llama", 2, "trl"),
        ({}, "mixtral", 0, "trl"),
        ({"preference": "dpo"}, "llama", 0, "trl"),
        ({"method": "full"}, "llama", 0, "trl"),
        ({"method": "qlora"}, "llama", 0, "packed"),
        ({"processes": 2}, "llama", 0, "trl"),
        ({"engine": "packed"}, "mixtral", 0, "packed"),
        ({"engine": "trl"}, "llama", 0, "trl"),
    ],
)
def test_the_engine_and_why(changes: dict[str, Any], model_type: str, gpus: int, expected: str) -> None:
    chosen = engine.choose(model_type, TrainSettings(**changes), gpus)
    assert chosen.name == expected
    assert chosen.reason


def test_without_trl_packed_trains_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda _: None)
    chosen = engine.choose("mixtral", TrainSettings(), 0)
    assert (chosen.name, "trl is not installed" in chosen.reason) == ("packed", True)
    assert engine.choose("llama", TrainSettings(), 0).reason == "it computes llama faster on a CPU"
    for settings, gpus, reason in (
        (TrainSettings(engine="trl"), 0, "train.engine is trl"),
        (TrainSettings(), 8, "the training runs on a GPU"),
        (TrainSettings(preference="kto"), 0, "train.preference is kto"),
    ):
        with pytest.raises(RetunedError, match=rf"{reason}.*, and trl is not .* pip install 'retuned\[trl\]'"):
            engine.choose("llama", settings, gpus)


def test_settings_that_an_engine_cannot_keep_are_refused() -> None:
    for changes, gpus, reason in (
        ({"preference": "kto"}, 0, "train.preference is kto"),
        ({"method": "full"}, 0, "train.method is full"),
        ({"accelerate_file": Path("fsdp2.yaml")}, 0, "train.accelerate_file is set"),
        ({}, 2, "the training runs on a GPU"),
    ):
        with pytest.raises(RetunedError, match=rf"train.engine packed: .*{reason}.*; set it to trl or auto"):
            engine.choose("llama", TrainSettings(engine="packed", **changes), gpus)


@pytest.mark.parametrize(
    ("settings", "processes", "expected"),
    [
        ({}, 1, [(8, False), (8, True), (4, True), (2, True), (1, True)]),
        ({"batch_size": 6}, 1, [(6, False), (6, True), (3, True), (1, True)]),
        ({}, 8, [(1, False), (1, True)]),
        ({"preference": "kto"}, 2, [(4, False), (4, True), (2, True)]),
    ],
)
def test_less_is_computed_at_once_and_no_step_loses_a_row(
    settings: dict[str, Any], processes: int, expected: list[tuple[int, bool]]
) -> None:
    made = TrainSettings(**settings)
    assert engine.ways(made, processes) == expected
    assert all(made.batch_size % (rows * processes) == 0 for rows, _ in expected)


def test_a_step_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(RetunedError, match=r"train.batch_size 8: trl cannot divide it evenly among 3 processes"):
        engine.ways(TrainSettings(), 3)


@pytest.mark.parametrize(
    ("parameters", "low", "high"), [(2e6, 2e-3, 2e-3), (135e6, 2e-3, 2e-3), (8e9, 1e-4, 3e-4), (70e9, 5e-5, 1.7e-4)]
)
def test_large_models_learn_at_lower_rates(parameters: float, low: float, high: float) -> None:
    rate = TrainSettings().for_model(int(parameters)).learning_rate
    full = TrainSettings(method="full").for_model(int(parameters)).learning_rate
    assert rate is not None
    assert low <= rate <= high
    assert full == pytest.approx(rate / 20)
    assert TrainSettings(learning_rate=0.5).for_model(int(parameters)).learning_rate == 0.5


def test_rates_are_near_those_that_were_published() -> None:
    """Dettmers et al. 2023, table 9: parameters and the rate that was found."""
    for parameters, found in ((7e9, 2e-4), (13e9, 2e-4), (33e9, 1e-4), (65e9, 1e-4)):
        rate = TrainSettings().for_model(int(parameters)).learning_rate
        assert rate == pytest.approx(found, rel=0.4)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_what_is_no_number_ends_a_training(loss: float, norm: float) -> None:
    settings = TrainSettings(learning_rate=0.25)
    check_finite(3, 1.0, 1.0, settings)
    with pytest.raises(RetunedError, match=r"at step 3 .*lower train.learning_rate \(it was 0.25\)"):
        check_finite(3, loss, norm, settings)


def test_checkpoints_come_once_a_minute_or_take_a_fiftieth_of_the_time() -> None:
    now = 0.0
    times = Times(TrainSettings(), clock=lambda: now)
    assert not times.due(20)
    now = 60.0
    assert times.due(21)
    with times.writing():
        now += 3.0
    now += 149.0
    assert not times.due(30)
    now += 1.0
    assert times.due(31)
    every = Times(TrainSettings(checkpoint_steps=4), clock=lambda: now)
    assert [step for step in range(1, 10) if every.due(step)] == [4, 8]


def test_children_see_the_gpus_that_are_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.environment(TrainSettings()) == {}
    assert devices.environment(TrainSettings(devices=(2, 5))) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "2,5",
    }
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("/dev/nvidia0")]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices.has_gpu(TrainSettings())
    assert not devices.has_gpu(TrainSettings(devices=()))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "81559\n81559\n24576\n"))
    gib = 2**30
    assert [size // gib for size in devices.gpu_memory(TrainSettings())] == [79, 79, 24]
    assert [size // gib for size in devices.gpu_memory(TrainSettings(devices=(2,)))] == [24]
    with pytest.raises(RetunedError, match=r"train.devices 3: this machine has 3 GPUs"):
        devices.gpu_memory(TrainSettings(devices=(0, 3)))


def test_a_configuration_that_shards_is_checked_and_given_to_accelerate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", dict(os.environ))
    monkeypatch.setattr(launch, "has_gpu", lambda _: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("sys.argv", ["train", "job.json"])
    example = Path(__file__).parents[2] / "deploy" / "fsdp2.yaml"

    def command(**changes: Any) -> list[str]:
        job = {"settings": TrainSettings(**changes).model_dump(mode="json")}
        found = launch.launcher("retuned.retrain.training.train", job)
        assert found is not None
        assert launch.launcher("retuned.retrain.training.train", job) is None  # in the processes that it starts
        del os.environ["RETUNED_LAUNCHED"]
        return found[1:]

    plain = command()
    assert plain[:2] == ["-m", "torch.distributed.run"]
    assert plain[plain.index("--nproc-per-node") + 1] == "4"
    assert os.environ["OMP_NUM_THREADS"] == "3"  # the launcher would set 1
    sharded = command(accelerate_file=example, processes=2)
    assert sharded[:2] == ["-m", "accelerate.commands.launch"]
    assert sharded[sharded.index("--num_processes") + 1] == "2"
    assert sharded[-3:] == plain[-3:] == ["--module", "retuned.retrain.training.train", "job.json"]
    first = tmp_path / "fsdp1.yaml"
    first.write_text(example.read_text().replace("fsdp_version: 2", "fsdp_version: 1"))
    with pytest.raises(RetunedError, match=r"accelerate_file .*expected FSDP version 2 .*fsdp_version is 1"):
        command(accelerate_file=first)
    with pytest.raises(RetunedError, match=r"accelerate_file .*missing.yaml"):
        command(accelerate_file=tmp_path / "missing.yaml")
    with pytest.raises(RetunedError, match=r"with train.method qlora"):
        command(accelerate_file=example, method="qlora")
