import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from fixtures.models.tiny import LINEAR, tiny_llama, tiny_model
from fixtures.models.trainings import SETTINGS, adapted, encoded, gradients
from retuned.consumers.common.process import run_child
from retuned.consumers.errors import Cancelled, ChildFailed, RetunedError
from retuned.retrain.decision.measures import hallucinated
from retuned.retrain.kernels import attention, packing
from retuned.retrain.kernels.packing import Encoded, pack
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training import adapter as lora
from retuned.retrain.training import checkpoints
from retuned.retrain.training.base_model import choose_dtype, load_model, load_tokenizer
from retuned.retrain.training.batches import IGNORED, encode, losses, packed_losses, padded, padded_losses
from retuned.retrain.training.steps import learning_rate


def test_a_row_is_its_prompt_and_a_completion_that_ends(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    row = {"row_id": "r", "messages": json.dumps([{"role": "user", "content": "can i ask"}]), "completion": "you can"}
    one = encode(tokenizer, row, 100)
    assert tokenizer.decode(one.prompt) == "<|im_start|>user\ncan i ask<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(one.completion) == "you can<|im_end|>\n"
    assert encode(tokenizer, row, len(one)) == one
    other = encode(tokenizer, row | {"messages": json.dumps([{"role": "user", "content": "i"}])}, 100)
    batch = padded([one, other], tokenizer.pad_token_id)
    learned = [[token for token in labels if token != IGNORED] for labels in batch["labels"].tolist()]
    assert learned == [one.completion, one.completion]
    tokenizer.chat_template = None
    assert encode(tokenizer, row, 100).completion[-1] == tokenizer.eos_token_id


def test_packs_equal_the_plain_batch_in_loss_and_gradients(base: Path) -> None:
    rows, pad = encoded(base, 12)
    model = adapted(base)
    expected, plain = gradients(model, [padded_losses(model, rows, pad)])
    assert lora.packing_fits(model, rows, pad, 1_024)
    for limit in (10_000, 150, 1):
        parts = list(losses(model, rows, pad, packing=True, limit=limit))
        assert len(parts) == {10_000: 1, 150: 4, 1: 12}[limit]
        found, fast = gradients(model, parts)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert fast.keys() == plain.keys()
        assert len(plain) == 28
        for name, value in plain.items():
            assert value.abs().max() > 0
            torch.testing.assert_close(fast[name], value, atol=1e-6, rtol=1e-4)


def test_values_may_be_of_another_size_than_keys() -> None:
    rows = [Encoded(str(n), [1, 2, 3, n], [5, n, 7]) for n in range(3)]
    tree = pack(rows, 0).tree
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 8), (2, 8), (2, 6))
    query, key, value = (
        torch.randn(len(tree.places), *shape, generator=generator).requires_grad_() for shape in shapes
    )
    wider = torch.nn.functional.pad(value, (0, 2))

    def attend(values: torch.Tensor) -> torch.Tensor:
        return attention.TreeAttention.apply(query, key, values, tree, 0.3)  # type: ignore[no-any-return, no-untyped-call]

    found, expected = attend(value), attend(wider)[..., :6]
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=generator)
    torch.testing.assert_close(
        torch.autograd.grad(found, (query, key, value), weights),
        torch.autograd.grad(expected, (query, key, value), weights),
    )


def test_rows_are_added_to_where_they_were_taken_from() -> None:
    index = torch.tensor([4, 0, 4, 2, 0, 0])
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention.Sums.over(index, 6)(rows), torch.zeros(6, 3).index_add_(0, index, rows))
    ones = torch.ones(1_000, 1, dtype=torch.bfloat16)  # a sum in bfloat16 would stay at 256
    assert attention.Sums.over(torch.zeros(1_000, dtype=torch.long), 1)(ones).item() == 1_000


@pytest.mark.parametrize("block", [64, 7])
def test_rows_of_any_lengths_in_any_order_pack_exactly(block: int, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_BLOCK", block)
    some, pad = encoded(base, 5)
    long = Encoded("long", some[0].prompt * 9, some[0].completion)
    within = Encoded("within", some[0].prompt[:9], some[0].prompt[9:14])  # a beginning of another row
    twice = Encoded("twice", some[1].prompt, some[2].completion)
    rows = [some[3], long, some[0], within, some[1], twice, some[1], Encoded("short", [5], [7])]
    model = adapted(base)
    expected, plain = gradients(model, [padded_losses(model, rows, pad)])
    for order in (range(8), range(7, -1, -1), sorted(range(8), key=lambda i: rows[i].ids)):
        model.zero_grad()
        found, fast = gradients(model, [packed_losses(model, [rows[i] for i in order], pad)])
        parts = expected.split([len(row.completion) for row in rows])
        torch.testing.assert_close(found, torch.cat([parts[i] for i in order]), atol=1e-5, rtol=1e-5)
        for name, value in plain.items():
            torch.testing.assert_close(fast[name], value, atol=1e-6, rtol=1e-4)


def test_a_pack_stores_the_shared_prefix_once(base: Path) -> None:
    rows, pad = encoded(base, 8)
    found = pack(rows, pad)
    shared = next(
        i for i, tokens in enumerate(zip(*(row.prompt for row in rows), strict=False)) if len(set(tokens)) > 1
    )
    assert shared > 10
    assert len(found.ids) <= sum(map(len, rows)) - 7 * shared + 31
    assert found.targets.tolist() == [token for row in rows for token in row.completion]


def test_bfloat16_stays_close_to_the_plain_batch(base: Path) -> None:
    rows, pad = encoded(base, 8)
    model = adapted(base).to(torch.bfloat16)
    expected = padded_losses(model, rows, pad)
    found = packed_losses(model, rows, pad)
    assert (found - expected).abs().mean() < 0.05


def test_several_adapters_and_none_keep_their_own_results_in_packs(base: Path, tmp_path: Path) -> None:
    rows, pad = encoded(base, 4)
    adapted(base).save_pretrained(tmp_path / "one")
    model = lora.load_adapter(load_model(base, torch.float32), tmp_path / "one", name="one")
    lora.load_adapter(model, tmp_path / "one", name="two")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B.two" in name:
                value.mul_(-1)

        def all_three(of: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
            found = []
            for name in ("one", "two"):
                model.set_adapter(name, inference_mode=True)
                found.append(of(model, rows, pad))
            with model.disable_adapter():
                return [*found, of(model, rows, pad)]

        before = all_three(padded_losses)
        packed = all_three(packed_losses)
    for one, other in zip(before, packed, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert (before[0] - before[1]).abs().max() > 1e-3
    assert (before[0] - before[2]).abs().max() > 1e-3


def test_a_window_shorter_than_the_rows_forbids_packing(tmp_path: Path) -> None:
    base = tiny_model("mistral", tmp_path, sliding_window=8)
    rows, pad = encoded(base, 6)
    model = adapted(base)
    assert not lora.packing_fits(model, rows, pad, 1_024)
    model.config.sliding_window = 512  # wider than the rows of the trial, which then proves nothing about longer ones
    assert lora.packing_fits(model, rows, pad, 512)
    assert not lora.packing_fits(model, rows, pad, 1_024)


def test_a_model_that_ignores_the_tree_forbids_packing(base: Path) -> None:
    rows, pad = encoded(base, 6)
    model = adapted(base)
    inner = model.get_base_model().model.forward

    def deaf(input_ids: Any = None, position_ids: Any = None, tree: Any = None, **kwargs: Any) -> Any:
        del tree
        return inner(input_ids=input_ids, position_ids=position_ids, **kwargs)

    model.get_base_model().model.forward = deaf
    assert not lora.packing_fits(model, rows, pad, 1_024)


def test_a_model_that_makes_more_of_its_logits_forbids_packing(tmp_path: Path) -> None:
    # In bfloat16, where a hundredth is within what losses may differ by.
    base = tiny_model("granite", tmp_path, logits_scaling=1.01)
    rows, pad = encoded(base, 6)
    assert not lora.packing_fits(adapted(base).to(torch.bfloat16), rows, pad, 1_024)
    base = tiny_model("granite", tmp_path, logits_scaling=1.0)
    assert lora.packing_fits(adapted(base).to(torch.bfloat16), rows, pad, 1_024)


def test_learning_rate_rises_and_falls() -> None:
    settings = TrainSettings(learning_rate=1.0, warmup_share=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 90)
    assert learning_rate(0, 1, settings) == 1.0


def test_dtype() -> None:
    assert choose_dtype("float32") == torch.float32
    assert choose_dtype("auto") in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("unit", ["avx512_bf16", "amx_bf16"])
def test_a_busy_machine_does_not_decide_the_dtype(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    monkeypatch.setattr(
        "retuned.retrain.training.base_model._TRIAL_SECONDS", -1
    )  # no trial: nothing is known to be fast
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", dict, raising=False)
    assert choose_dtype("auto") == torch.float32
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {unit: True})
    assert choose_dtype("auto") == torch.bfloat16


def job(
    base: Path, data: Path, folder: Path, settings: TrainSettings = SETTINGS, parent: Path | None = None
) -> dict[str, Any]:
    return {
        "base": str(base),
        "parent": str(parent) if parent else None,
        "dataset": str(data),
        "folder": str(folder),
        "settings": settings.model_dump(mode="json"),
    }


def run(base: Path, data: Path, folder: Path, settings: TrainSettings = SETTINGS, **more: Any) -> dict[str, Any]:
    parent = more.pop("parent", None)
    return run_child(
        "retuned.retrain.training.train", job(base, data, folder, settings, parent), folder, timeout_seconds=120, **more
    )


@pytest.fixture(scope="module")
def unbroken(
    base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("unbroken")
    lines: list[dict[str, Any]] = []
    return folder, run(base, data, folder, on_progress=lines.append), lines


def test_a_training_learns_and_reports(base: Path, unbroken: tuple[Path, dict[str, Any], list[dict[str, Any]]]) -> None:
    folder, result, lines = unbroken
    steps = [line for line in lines if "step" in line]
    assert [line["step"] for line in steps] == list(range(1, 25))
    assert result["steps"] == steps[-1]["steps"] == 24
    assert result["train_loss"] < steps[0]["loss"] / 2
    assert result["packed"]
    assert result["dtype"] == "float32"
    adapter = Path(result["adapter"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["target_modules"] == LINEAR
    assert config["r"] == 16
    assert list(folder.glob("checkpoint-*")) == []


def same_adapter(one: Path, other: Path) -> bool:
    left, right = load_file(one / "adapter_model.safetensors"), load_file(other / "adapter_model.safetensors")
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(
    how: signal.Signals,
    base: Path,
    data: Path,
    tmp_path: Path,
    unbroken: tuple[Path, dict[str, Any], list[dict[str, Any]]],
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    job_file = folder / "job.json"
    job_file.write_text(json.dumps(job(base, data, folder)))
    with subprocess.Popen(
        [sys.executable, "-m", "retuned.retrain.training.train", str(job_file)],
        stdout=subprocess.PIPE,
        env=os.environ | {"RETUNED_PARENT": str(os.getpid())},
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if json.loads(line).get("step") == 10:
                child.send_signal(how)
                break
        rest = [json.loads(line) for line in child.stdout]
        child.wait(30)
    assert not any("result" in line for line in rest)
    saved = checkpoints.newest(folder)
    assert saved is not None
    assert saved[0]["step"] >= 8
    lines: list[dict[str, Any]] = []
    result = run(base, data, folder, on_progress=lines.append)
    assert min(line["step"] for line in lines if "step" in line) == saved[0]["step"] + 1
    assert same_adapter(Path(result["adapter"]), Path(unbroken[1]["adapter"]))
    for name in ("steps", "train_loss", "tokens"):
        assert result[name] == unbroken[1][name]


@pytest.mark.parametrize(
    ("changed", "anew"),
    [
        ({"reasoning": "include"}, 'train.reasoning was "exclude" and is "include"'),
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            'train.chat_template_kwargs was {} and is {"enable_thinking": false}',
        ),
        ({"threads": 2, "checkpoint_steps": 7}, None),
    ],
)
def test_what_changes_what_is_learned_begins_anew(changed: dict[str, Any], anew: str | None, tmp_path: Path) -> None:
    settings = TrainSettings()
    of = {"base": "b", "parent": None, "dataset": "d"}
    rows = [Encoded("r", [1, 2], [3])]
    checkpoints.drop_unfit(tmp_path, of, "packed", settings, rows)
    checkpoints.save(tmp_path, 4, {"step": 4}, {"x": torch.zeros(1)})
    assert checkpoints.drop_unfit(tmp_path, of, "packed", settings, rows) is None
    assert checkpoints.drop_unfit(tmp_path, of, "packed", settings.model_copy(update=changed), rows) == anew
    assert (checkpoints.newest(tmp_path) is None) == (anew is not None)


def test_other_tokens_of_the_same_dataset_begin_anew(tmp_path: Path) -> None:
    of = {"base": "b", "parent": None, "dataset": "d"}
    checkpoints.drop_unfit(tmp_path, of, "packed", TrainSettings(), [Encoded("r", [1, 2], [3])])
    checkpoints.save(tmp_path, 4, {"step": 4}, {"x": torch.zeros(1)})
    why = checkpoints.drop_unfit(tmp_path, of, "packed", TrainSettings(), [Encoded("r", [1, 7], [3])])
    assert why is not None
    assert why.startswith('hash of the tokens was "')
    assert checkpoints.newest(tmp_path) is None


def test_a_broken_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        checkpoints.save(tmp_path, step, {"step": step}, {"x": torch.full((3,), float(step))})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000008", "checkpoint-00000012"]
    weights = tmp_path / "checkpoint-00000012" / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert found[0] == {"step": 8}
    assert found[1]["x"].tolist() == [8.0] * 3
    (tmp_path / "checkpoint-00000008" / "state.json").write_text('{"step"')
    assert checkpoints.newest(tmp_path) is None


def test_training_goes_on_from_a_parent(
    base: Path, data: Path, tmp_path: Path, unbroken: tuple[Path, dict[str, Any], list[dict[str, Any]]]
) -> None:
    lines: list[dict[str, Any]] = []
    run(base, data, tmp_path, on_progress=lines.append, parent=Path(unbroken[1]["adapter"]))
    first = next(line for line in lines if line.get("step") == 1)
    assert first["loss"] < unbroken[2][1]["loss"] / 2


def test_a_parent_of_another_size_is_refused_in_one_line(
    data: Path, tmp_path: Path, unbroken: tuple[Path, dict[str, Any], list[dict[str, Any]]]
) -> None:
    other = tiny_llama(tmp_path / "other", hidden=32)
    with pytest.raises(ChildFailed, match="does not fit the base model") as raised:
        run(other, data, tmp_path / "run", parent=Path(unbroken[1]["adapter"]))
    assert "\n" not in str(raised.value)


def test_target_modules_that_are_not_there_are_named(base: Path) -> None:
    with pytest.raises(RetunedError, match=r"train.target_modules c_attn"):
        lora.new_adapter(load_model(base, torch.float32), base, TrainSettings(target_modules=("c_attn",)))


@pytest.mark.usefixtures("real_processes")
def test_a_child_that_is_killed_is_reported(base: Path, data: Path, tmp_path: Path) -> None:
    def kill(line: dict[str, Any]) -> None:
        if line.get("step") == 2:
            # Of this process's children, which are brokers too, only those of the training.
            ours = [one for one in psutil.Process().children() if str(tmp_path) in " ".join(one.cmdline())]
            assert ours
            for child in ours:
                child.kill()

    with pytest.raises(
        ChildFailed, match=r"train: the child process ended without a result, killed by SIGKILL"
    ) as raised:
        run(base, data, tmp_path / "run", on_progress=kill)
    assert "train.log" in str(raised.value)
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_stop_ends_the_child_at_a_step_that_it_keeps(base: Path, data: Path, tmp_path: Path) -> None:
    """Killed after the grace, it would have kept an earlier one: checkpoints are farther apart than steps."""
    stop = threading.Event()
    steps: list[int] = []

    def after_three(line: dict[str, Any]) -> None:
        if "step" in line:
            steps.append(line["step"])
            if line["step"] >= 3:
                stop.set()

    long = SETTINGS.model_copy(update={"epochs": 500, "checkpoint_steps": 10_000})
    with pytest.raises(Cancelled):
        run(base, data, tmp_path, long, stop=stop, on_progress=after_three)
    saved = checkpoints.newest(tmp_path)
    assert saved is not None
    assert saved[0]["step"] == steps[-1]


@pytest.mark.parametrize(
    ("answer", "reference", "context", "expected"),
    [
        ("It takes 45 days.", "It takes 30 days.", None, True),
        ("It takes 30 days.", "It takes 30 days.", None, False),
        ("I do not know.", "It takes 30 days.", None, None),
        ("Yes, always.", "No, never.", None, None),
        ("Trains are green.", "Sale items are final.", None, None),
        ("It takes 45 days.", "It takes 30 days.", ["Returns: 45 days"], False),
        ("It takes 30 days.", "It takes 30 days.", ["Returns: 45 days"], False),
        ("It takes 60 days.", "It takes 30 days.", ["Returns: 45 days"], True),
        ('{"days": 30}', '{"days": 30}', None, False),
        ('{"days": 45}', '{"days": 30}', None, True),
        ("30 days", '{"days": 30}', None, None),
        ("Order 7 takes 45 days.", "x", ["Returns: 45 days"], False),
    ],
)
def test_hallucinated(answer: str, reference: str, context: list[str] | None, expected: bool | None) -> None:
    assert hallucinated(answer, reference, "where is order 7", context) is expected
