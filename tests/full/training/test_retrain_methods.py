"""Each architecture and each method really trains, is saved, and is loaded by those who serve it."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fixtures.models.tiny import tiny_model
from fixtures.models.trainings import SETTINGS, adapted, dataset, encoded, engine_loss, gradients, rows, trained
from retuned.consumers.errors import Cancelled, RetunedError
from retuned.retrain.generation.kept import KeptAnswers
from retuned.retrain.generation.transformers import TransformersEngine
from retuned.retrain.settings import EvaluateSettings
from retuned.retrain.training import adapter as lora
from retuned.retrain.training import base_model as bases
from retuned.retrain.training.base_model import load_model, load_tokenizer
from retuned.retrain.training.batches import encode, losses, padded_losses

PACKED = {"llama": True, "mistral": True, "qwen2": True, "qwen3": True, "gpt2": True, "falcon": False}


@pytest.mark.parametrize("kind", PACKED)
def test_an_architecture_is_trained_saved_and_served(kind: str, tmp_path: Path) -> None:
    base = tiny_model(kind, tmp_path / "base")
    examples, pad = encoded(base, 6)
    model = adapted(base)
    expected, plain = gradients(model, [padded_losses(model, examples, pad)])
    packing = lora.packing_fits(model, examples, pad, 256)
    assert packing == PACKED[kind]
    found, fast = gradients(model, losses(model, examples, pad, packing))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert fast.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, atol=1e-5, rtol=1e-3)

    # One row by heart: then the answer is the same whatever the arithmetic of who serves it.
    data = dataset(tmp_path / "data", train=1)
    much = {"epochs": 100, "learning_rate": 1e-2, "max_length": 256, "checkpoint_steps": 1_000}
    settings = SETTINGS.model_copy(update=much)
    lines: list[dict[str, Any]] = []
    result = trained(base, data, tmp_path / "run", settings, emit=lines.append)
    assert result["train_loss"] < next(line["loss"] for line in lines if "step" in line) / 10
    asked = json.loads(rows(1)[0]["messages"])
    tokenizer = load_tokenizer(base)
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")

    def answer(model: Any) -> str:
        ids = model.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=pad)
        text: str = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        return text.strip()

    assert answer(load_model(base, torch.float32)) != rows(1)[0]["completion"]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result["adapter"])
    assert answer(loaded) == rows(1)[0]["completion"]
    assert answer(loaded.merge_and_unload()) == rows(1)[0]["completion"]


@pytest.mark.parametrize(
    "changes", [{"dropout": 0.2}, {"use_dora": True}, {"use_rslora": True}, {"method": "qlora"}], ids=str
)
def test_a_method_trains(changes: dict[str, Any], base: Path, data: Path, tmp_path: Path) -> None:
    if "method" in changes:
        pytest.importorskip("bitsandbytes")
    lines: list[dict[str, Any]] = []
    settings = SETTINGS.model_copy(update=changes)
    result = trained(base, data, tmp_path, settings, emit=lines.append)
    assert result["packed"]
    assert result["train_loss"] < next(line["loss"] for line in lines if "step" in line) / 2
    config = json.loads((Path(result["adapter"]) / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"], config["lora_dropout"]) == (
        settings.use_dora,
        settings.use_rslora,
        settings.dropout,
    )
    assert any("magnitude" in name for name in load_file(Path(result["adapter"]) / "adapter_model.safetensors")) == (
        settings.use_dora
    )
    # It goes on from what came out, on the base model as it is.
    again = trained(base, data, tmp_path / "again", SETTINGS, parent=Path(result["adapter"]))
    assert again["train_loss"] < result["train_loss"]


def test_qlora_has_the_gradients_of_the_weights_that_it_rounds_to(base: Path) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    examples, pad = encoded(base, 6)
    quantized = adapted(base, load_model(base, torch.float32, quantized=True))
    assert lora.packing_fits(quantized, examples, pad, 1_024)  # a call without gradients must not change the weights
    rounded = load_model(base, torch.float32)
    for name, module in quantized.get_base_model().named_modules():
        if isinstance(module, lora.LoraLayer):
            weight = module.get_base_layer().weight
            rounded.get_submodule(name).weight.copy_(functional.dequantize_4bit(weight.data, weight.quant_state))
    found, fast = gradients(quantized, losses(quantized, examples, pad, packing=True))
    model = adapted(base, rounded)
    expected, plain = gradients(model, [padded_losses(model, examples, pad)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert fast.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, atol=1e-5, rtol=1e-3)


def test_qlora_without_its_library_is_one_clear_line(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "find_spec", lambda _: None)
    with pytest.raises(RetunedError, match=r"pip install 'retuned\[qlora\]'"):
        load_model(base, torch.float32, quantized=True)


def test_all_weights_of_the_blocks_train(base: Path, data: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"engine": "auto", "method": "full", "learning_rate": 1e-3})
    lines: list[dict[str, Any]] = []
    result = trained(base, data, tmp_path / "full", settings, emit=lines.append)
    assert (result["engine"], result["engine_reason"]) == ("trl", "train.method is full")
    assert result["train_loss"] < next(line["loss"] for line in lines if "step" in line) / 2
    # What PEFT loads from it is what was trained: each layer's weights, and neither embeddings nor head.
    tensors = load_file(Path(result["adapter"]) / "adapter_model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(base)
    assert {name.removeprefix("base_model.model.") for name in tensors} == {
        name for name, _ in model.named_parameters() if "embed_tokens" not in name
    }
    loaded = PeftModel.from_pretrained(model, result["adapter"])
    tokenizer = load_tokenizer(base)
    judged = [encode(tokenizer, row, 1_024) for row in rows(60)]
    with torch.no_grad():
        found = padded_losses(loaded, judged, tokenizer.pad_token_id).mean()
        with loaded.disable_adapter():
            before = padded_losses(loaded, judged, tokenizer.pad_token_id).mean()
        # For those who serve no weights beside a base model:
        loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        same = padded_losses(merged, judged, tokenizer.pad_token_id).mean()
    on = engine_loss(base, data, tmp_path / "on", settings, Path(result["adapter"]))
    assert float(found) == pytest.approx(on, abs=1e-4)
    assert float(before) > 2 * float(found)
    assert float(same) == pytest.approx(float(found), abs=1e-4)

    again = trained(base, data, tmp_path / "again", settings, parent=Path(result["adapter"]))
    assert again["train_loss"] < result["train_loss"]
    with pytest.raises(RetunedError, match=r"train.method lora: the champion .* has all weights"):
        trained(base, data, tmp_path / "lora", SETTINGS, parent=Path(result["adapter"]))


def test_all_weights_go_on_from_what_an_adapter_learned(base: Path, data: Path, tmp_path: Path) -> None:
    learned = trained(base, data, tmp_path / "lora", SETTINGS)
    settings = SETTINGS.model_copy(update={"engine": "auto", "method": "full", "learning_rate": 1e-4})
    result = trained(base, data, tmp_path / "full", settings, parent=Path(learned["adapter"]))
    assert result["train_loss"] < learned["train_loss"]
    config = json.loads((Path(result["adapter"]) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)


def test_adapters_and_copies_of_all_layers_are_compared_each_as_it_is(base: Path, data: Path, tmp_path: Path) -> None:
    full = SETTINGS.model_copy(update={"engine": "auto", "method": "full", "learning_rate": 1e-4})
    parents: dict[str, Path] = {}
    for name, settings, parent in (("lora", SETTINGS, None), ("full", full, "lora"), ("again", full, "full")):
        result = trained(base, data, tmp_path / name, settings, parent=parents.get(parent) if parent else None)
        parents[name] = Path(result["adapter"])

    tokenizer = load_tokenizer(base)
    judged = [encode(tokenizer, row, 1_024) for row in rows(6, 60)]

    def alone(adapter: Path | None) -> float:
        model = load_model(base, torch.float32)
        with torch.no_grad():
            return float(
                padded_losses(
                    model if adapter is None else lora.load_adapter(model, adapter), judged, tokenizer.pad_token_id
                ).mean()
            )

    for champion, candidate in (("lora", "full"), ("full", "again")):
        adapters = {"base": None, "champion": parents[champion], "candidate": parents[candidate]}
        asked = EvaluateSettings(max_new_tokens=8)
        engine = TransformersEngine(
            base, adapters, asked, dtype="float32", encoding=SETTINGS.encoding, kept=KeptAnswers()
        )
        found = list(engine.answers(rows(6, 60), list(adapters)))
        engine.close()
        weights = [len(one.completion) for one in judged]
        order = {row["row_id"]: weight for row, weight in zip(rows(6, 60), weights, strict=True)}
        losses = {
            name: sum((answers[name].loss or 0.0) * order[row["row_id"]] for row, answers in found) / sum(weights)
            for name in adapters
        }
        expected = {"base": alone(None), "champion": alone(parents[champion]), "candidate": alone(parents[candidate])}
        assert losses == pytest.approx(expected, abs=1e-4)
        assert len(set(losses.values())) == 3


def test_all_weights_compute_in_bfloat16_and_stay_in_float32(base: Path, data: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"engine": "auto", "method": "full", "learning_rate": 1e-3, "epochs": 1})
    results = [
        trained(base, data, tmp_path / dtype, settings.model_copy(update={"dtype": dtype}))
        for dtype in ("float32", "bfloat16")
    ]
    assert [result["dtype"] for result in results] == ["float32", "bfloat16"]
    losses = [result["train_loss"] for result in results]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)
    tensors = load_file(Path(results[1]["adapter"]) / "adapter_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float32}


def test_dropout_is_on_in_training(base: Path, data: Path, tmp_path: Path) -> None:
    without, result = (
        trained(base, data, tmp_path / str(share), SETTINGS.model_copy(update={"dropout": share, "epochs": 1}))
        for share in (0.0, 0.5)
    )
    assert result["train_loss"] > without["train_loss"] + 0.01


class Killed(BaseException):
    """Ends the training at once, as SIGKILL would: nothing is saved that was not there."""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("preference", ["none", "dpo", "kto"])
def test_dropout_and_preferences_go_on_bit_by_bit_after_a_stop(
    how: str, preference: str, base: Path, data: Path, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"engine": "auto", "dropout": 0.2, "preference": preference, "epochs": 2})
    whole = trained(base, data, tmp_path / "whole", settings)

    def stop(line: dict[str, Any]) -> None:
        if line.get("step") == 10:
            if how == "SIGKILL":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Killed if how == "SIGKILL" else Cancelled):
        trained(base, data, tmp_path / "broken", settings, emit=stop)
    found = (tmp_path / "broken").glob("checkpoint-*")
    last = max(int(path.name.rsplit("-", 1)[-1]) for path in found)
    assert last == 8 if how == "SIGKILL" else last >= 10
    resumed = trained(base, data, tmp_path / "broken", settings)
    left, right = (load_file(Path(one["adapter"]) / "adapter_model.safetensors") for one in (whole, resumed))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    for name in ("steps", "train_loss", "preference_loss"):
        assert resumed.get(name) == whole.get(name)
