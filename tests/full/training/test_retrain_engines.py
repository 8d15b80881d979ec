"""What every engine keeps: the same rows are learned, progress, checkpoints, the stop, and what is saved."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

from fixtures.models.tiny import LINEAR, tiny_model
from fixtures.models.trainings import SETTINGS, adapted, encoded, engine_loss, trained
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import Cancelled, OutOfMemory, RetunedError
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.generation.kept import KeptAnswers
from retuned.retrain.generation.transformers import TransformersEngine
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.runners.runner import Runner, Work
from retuned.retrain.settings import EvaluateSettings, ModelsSettings, Settings, TrainSettings
from retuned.retrain.training import batches, packed, train
from retuned.retrain.training.batches import padded_losses

ENGINES = ("packed", "trl")


def settings(engine: str, **changes: Any) -> TrainSettings:
    return SETTINGS.model_copy(update={"engine": engine, "rank": 4, **changes})


def job(base: Path, data: Path, folder: Path, chosen: TrainSettings) -> dict[str, Any]:
    return {
        "base": str(base),
        "parent": None,
        "dataset": str(data),
        "folder": str(folder),
        "settings": chosen.model_dump(mode="json"),
    }


def run(base: Path, data: Path, folder: Path, chosen: TrainSettings, **more: Any) -> dict[str, Any]:
    return run_child(
        "retuned.retrain.training.train", job(base, data, folder, chosen), folder, timeout_seconds=240, **more
    )


@pytest.fixture(scope="module")
def unbroken(
    base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Of each engine: what a training returned and the lines of its progress."""
    found = {}
    for engine in ENGINES:
        lines: list[dict[str, Any]] = []
        folder = tmp_path_factory.mktemp(engine)
        if engine == "packed":
            result = trained(base, data, folder, settings(engine), emit=lines.append)
        else:  # which changes what is common to a process
            result = run(base, data, folder, settings(engine), on_progress=lines.append)
        found[engine] = result, lines
        assert list(folder.glob("checkpoint-*")) == []
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_a_training_learns_reports_and_leaves_an_adapter(
    engine: str, base: Path, unbroken: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]
) -> None:
    result, lines = unbroken[engine]
    assert lines[0]["engine"] == result["engine"] == engine
    assert result["engine_reason"] == f"train.engine is {engine}"
    assert "can_halve" not in result
    steps = [line for line in lines if "step" in line]
    assert [line["step"] for line in steps] == list(range(1, 25))
    assert all({"steps", "epoch", "loss", "tokens_per_second", "learning_rate"} <= line.keys() for line in steps)
    assert result["train_loss"] < steps[0]["loss"] / 2
    assert result["tokens"] > 0
    assert sorted(path.name for path in Path(result["adapter"]).iterdir() if path.name != "README.md") == [
        "adapter_config.json", "adapter_model.safetensors", "training.json",
    ]  # fmt: skip
    config = json.loads((Path(result["adapter"]) / "adapter_config.json").read_text())
    assert config["target_modules"] == LINEAR  # of equal adapters, an equal hash
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result["adapter"]).eval()
    with torch.no_grad():
        loss = float(padded_losses(model, *encoded(base, 60)).mean())
    assert loss < result["train_loss"]  # the mean of the last epoch, whose steps made it lower


def test_the_engines_learn_the_same_from_the_same_rows(
    unbroken: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]],
) -> None:
    (ours, our_lines), (theirs, their_lines) = (unbroken[engine] for engine in ENGINES)
    losses = [[line["loss"] for line in lines if "step" in line] for lines in (our_lines, their_lines)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for name in ("steps", "epochs", "tokens"):
        assert theirs[name] == ours[name], name
    assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-3)
    left, right = (load_file(Path(one["adapter"]) / "adapter_model.safetensors") for one in (ours, theirs))
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, atol=2e-3, rtol=0.05)


@pytest.mark.parametrize("engine", ENGINES)
def test_adapters_on_a_base_model_in_4_bits_are_held_in_float32(
    engine: str, base: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    learned = Path(trained(base, data, tmp_path / "first", settings("packed", epochs=1))["adapter"])
    small = settings(engine, method="qlora", dtype="bfloat16", epochs=1, learning_rate=1e-7)
    going_on = job(base, data, tmp_path / "second", small) | {"parent": str(learned)}
    result = run_child("retuned.retrain.training.train", going_on, tmp_path / "second", timeout_seconds=240)
    before, after = (load_file(one / "adapter_model.safetensors") for one in (learned, Path(result["adapter"])))
    assert {value.dtype for value in after.values()} == {torch.float32}
    moved = [(after[name] - value).abs().max() for name, value in before.items()]
    assert 0 < max(moved) < 1e-5  # steps that bfloat16 would round away, from weights that it would round


def test_trl_goes_on_after_a_stop_and_after_a_kill_as_if_there_was_none(
    base: Path, data: Path, tmp_path: Path, unbroken: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]
) -> None:
    """Of packed: test_retrain_training."""
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job(base, data, tmp_path, settings("trl"))))
    first = 1
    for at, how in ((6, signal.SIGTERM), (15, signal.SIGKILL)):
        command = [sys.executable, "-m", "retuned.retrain.training.train", str(file)]
        with Path(os.devnull).open("wb") as nowhere:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=nowhere)
        steps = []
        assert child.stdout is not None
        with child.stdout as output:
            for line in output:
                if step := json.loads(line).get("step"):
                    steps.append(step)
                if steps[-1:] == [at]:
                    (child.terminate if how is signal.SIGTERM else child.kill)()
        child.wait()
        assert steps[0] == first
        assert not (tmp_path / "adapter").exists()
        # A stop leaves a checkpoint of its step; a kill what was written before, each 4 steps here.
        whole = [int(path.parent.name.rsplit("-", 1)[-1]) for path in tmp_path.glob("checkpoint-*/whole")]
        assert max(whole) >= (steps[-1] if how is signal.SIGTERM else at - 4)
        first = max(whole) + 1
    # What a kill left half-written is passed over, however new.
    shutil.copytree(tmp_path / f"checkpoint-{first - 1}", tmp_path / "checkpoint-23")
    (tmp_path / "checkpoint-23" / "whole").unlink()
    lines: list[dict[str, Any]] = []
    result = run(base, data, tmp_path, settings("trl"), on_progress=lines.append)
    assert [line["step"] for line in lines if "step" in line] == list(range(first, 25))
    expected = unbroken["trl"][0]
    for name in ("steps", "tokens"):
        assert result[name] == expected[name], name
    assert result["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
    left, right = (load_file(Path(one["adapter"]) / "adapter_model.safetensors") for one in (expected, result))
    torch.testing.assert_close(right, left, atol=1e-5, rtol=1e-3)


def test_a_training_that_diverges_fails_with_the_reason(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RetunedError, match=r"diverged: at step \d+ the loss is .*lower train.learning_rate .*1e\+30"):
        trained(base, data, tmp_path, settings("packed", learning_rate=1e30))


def test_a_checkpoint_of_other_settings_is_not_continued(base: Path, data: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def at(number: int) -> Callable[[dict[str, Any]], None]:
        def emit(line: dict[str, Any]) -> None:
            lines.append(line)
            if line.get("step") == number:
                raise Stopped

        return emit

    lines: list[dict[str, Any]] = []
    with pytest.raises(Stopped):
        trained(base, data, tmp_path, settings("packed"), emit=at(6))
    lines.clear()
    with pytest.raises(Stopped):  # what does not change what is learned may change
        trained(base, data, tmp_path, settings("packed", checkpoint_steps=2, timeout_seconds=9.0), emit=at(7))
    assert [line["step"] for line in lines if "step" in line] == [5, 6, 7]
    lines.clear()
    with pytest.raises(Stopped):
        trained(base, data, tmp_path, settings("packed", batch_size=4), emit=at(2))
    assert lines[0] == {"started_anew": "train.batch_size was 8 and is 4"}
    assert [line["step"] for line in lines if "step" in line] == [1, 2]


def test_a_version_trained_in_4_bits_is_judged_in_4_bits(base: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    result = trained(base, data, tmp_path / "run", settings("packed", method="qlora"))
    rows = pq.read_table(data / "train.parquet").to_pylist()
    adapters = {"base": None, "candidate": Path(result["adapter"])}
    encoding = settings("packed").encoding

    def loss(quantized: bool) -> float:
        engine = TransformersEngine(
            base, adapters, EvaluateSettings(max_new_tokens=2),
            dtype=result["dtype"], quantized=quantized, encoding=encoding, kept=KeptAnswers(),
        )  # fmt: skip
        own = {row["row_id"]: answers["candidate"].loss or 0.0 for row, answers in engine.answers(rows, list(adapters))}
        engine.close()
        lengths = {row.row_id: len(row.completion) for row in encoded(base, 60)[0]}
        return sum(value * lengths[row] for row, value in own.items()) / sum(lengths[row] for row in own)

    on = engine_loss(base, data, tmp_path / "on", settings("packed", method="qlora"), Path(result["adapter"]))
    assert loss(True) == pytest.approx(on, abs=1e-4)
    assert abs(loss(False) - on) > 1e-3


def test_a_model_that_neither_packed_nor_the_plan_knows_trains(data: Path, tmp_path: Path) -> None:
    base = tiny_model("mixtral", tmp_path / "base")
    lines: list[dict[str, Any]] = []
    result = run(base, data, tmp_path / "run", settings("auto", epochs=1), on_progress=lines.append)
    assert (result["engine"], result["micro_batch_size"]) == ("trl", 8)
    assert result["engine_reason"] == "packed computes mixtral no faster"
    losses = [line["loss"] for line in lines if "step" in line]
    assert losses[-1] < losses[0]


class Here(Runner):
    """Works in this process; what a GPU's allocator raises ends an attempt, as it ends a child."""

    def run(self, work: Work, _: threading.Event, on_progress: Emit) -> dict[str, Any]:
        try:
            return train.work(work.job | {"folder": str(work.folder)}, on_progress) or {}
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(str(error)) from error

    def check(self) -> None:
        """There is nothing to ask."""


def test_a_training_that_is_resumed_computes_as_little_at_once_as_before(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Ray, its job goes on while the daemon restarts, and is known by what it was asked."""
    tried: list[int] = []

    class Full(Here):
        def run(self, work: Work, _: threading.Event, on_progress: Emit) -> dict[str, Any]:
            tried.append(work.job["halved"])
            on_progress({"can_halve": True})
            raise OutOfMemory("CUDA out of memory") if len(tried) == 1 else Cancelled("stopped")

    monkeypatch.setattr(train, "runner", lambda *_: Full())
    asked = Settings(models=ModelsSettings(base=base), train=settings("packed"))
    rows = Dataset("d", "support", datetime(2026, 11, 1), data, {"train": 60}, 0, {})
    for _ in range(2):
        with pytest.raises(Cancelled):
            train.train(rows, None, asked, tmp_path / "run")
    assert tried == [0, 1, 1]


@pytest.mark.parametrize(("halved", "can_halve"), [(2, True), (3, False)])
def test_less_at_once_than_the_longest_row_takes_no_less_memory(
    halved: int, can_halve: bool, base: Path, tmp_path: Path
) -> None:
    rows = [Encoded("short", [1] * 4, [2] * 4), Encoded("long", [1] * 150, [2] * 50)]
    assert packed.Training(adapted(base), rows, 0, SETTINGS, tmp_path, halved).can_halve == can_halve


@pytest.mark.parametrize(
    ("engine", "most", "halved"), [("packed", 100, 4), ("trl", 4, 2), ("packed", 30, 5), ("trl", 0, 4)]
)
def test_a_training_that_runs_out_of_memory_goes_on_with_less_at_once(
    engine: str, most: int, halved: int, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    unbroken: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]],
) -> None:  # fmt: skip
    """Of a memory that holds so many tokens (packed) or rows (trl), after five steps that fit."""
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    lines: list[dict[str, Any]] = []

    def full(size: int) -> None:
        if size > most and max((line.get("step", 0) for line in lines), default=0) >= 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    if engine == "packed":
        plain = batches.packed_losses
        monkeypatch.setattr(batches, "packed_losses", lambda *a: full(sum(map(len, a[1]))) or plain(*a))
    else:
        learn = SFTTrainer.compute_loss
        monkeypatch.setattr(SFTTrainer, "compute_loss", lambda *a, **n: full(len(a[2]["labels"])) or learn(*a, **n))
    monkeypatch.setattr(train, "runner", lambda *_: Here())
    asked = Settings(models=ModelsSettings(base=base), train=settings(engine, timeout_seconds=240))
    rows = Dataset("d", "support", datetime(2026, 11, 1), data, {"train": 60}, 0, {})
    try:
        if most in (0, 30):  # a single row does not fit
            with pytest.raises(OutOfMemory, match="CUDA out of memory"):
                train.train(rows, None, asked, tmp_path, on_progress=lines.append)
        else:
            result = train.train(rows, None, asked, tmp_path, on_progress=lines.append)
            expected = unbroken[engine][0]
            for name in ("steps", "tokens"):
                assert result[name] == expected[name], name
            assert result["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
            if engine == "trl":
                assert (result["micro_batch_size"], result["gradient_checkpointing"]) == (4, True)
    finally:
        signal.signal(signal.SIGTERM, handler)
        torch.set_num_threads(threads)
    assert [line["halved"] for line in lines if "halved" in line] == list(range(1, halved + 1))
    assert not any("can_halve" in line for line in lines)
