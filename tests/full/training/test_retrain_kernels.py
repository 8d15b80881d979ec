"""The hand-written maths gives what transformers and PEFT give, and whatever it is not proven for never meets it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from fixtures.models.tiny import tiny_model
from fixtures.models.trainings import SETTINGS, adapted, dataset, encoded, engine_loss, gradients, rows, trained
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.kernels.supported import MODEL_TYPES, supported
from retuned.retrain.training.adapter import packing_fits
from retuned.retrain.training.base_model import load_model, load_tokenizer
from retuned.retrain.training.batches import encode, losses, padded, padded_losses

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"hidden_act": "gelu", "attention_bias": True, "mlp_bias": True}),
    ("mistral", {"sliding_window": 8}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ("granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5}),
    ("granite", {"logits_scaling": 4.0}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
]
NOT_PACKED = ("sliding_window", "logits_scaling")

UNSUPPORTED: dict[str, dict[str, Any]] = {
    "gpt_oss": {},  # attention sinks, experts
    "gemma2": {"attn_logit_softcapping": 1.0},
    "falcon": {"alibi": True},
    "mixtral": {},
}


@pytest.fixture(params=[*((kind, {}) for kind in sorted(MODEL_TYPES)), *OPTIONS], ids=str)
def proven(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param  # type: ignore[no-any-return]


def untouched(base: Path) -> Any:
    """As transformers and PEFT have it."""
    return adapted(base, AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False).eval())


def examples(base: Path) -> tuple[list[Encoded], int]:
    """Rows of different lengths, most of which share a beginning; one is a beginning of another."""
    few, pad = encoded(base, 6)
    long = Encoded("long", few[0].prompt * 4, few[1].completion)
    within = Encoded("within", few[0].prompt[:9], few[0].prompt[9:14])
    return [*few, long, within, Encoded("short", [5], [7])], pad


def logits(model: Any, some: list[Encoded], pad: int) -> Tensor:
    """Of all tokens, padding left out."""
    batch = padded(some, pad)
    del batch["labels"]
    with torch.no_grad():
        return model(**batch, use_cache=False).logits[batch["attention_mask"].bool()]  # type: ignore[no-any-return]


def test_a_supported_model_gives_what_the_untouched_one_gives(
    proven: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    kind, changes = proven
    base = tiny_model(kind, tmp_path, **changes)
    some, pad = examples(base)
    model = untouched(base)
    expected, plain = gradients(model, [padded_losses(model, some, pad)])
    expected_logits = logits(model, some, pad)

    model = adapted(base, load_model(base, torch.float32))
    packing = packing_fits(model, some, pad, 256)
    assert supported(model)
    assert packing == (not changes.keys() & set(NOT_PACKED))
    torch.testing.assert_close(logits(model, some, pad), expected_logits, atol=2e-5, rtol=1e-4)
    for packed in {False, packing}:
        found, fast = gradients(model, losses(model, some, pad, packed))
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
        assert fast.keys() == plain.keys()
        for name, value in plain.items():
            assert value.norm() > 0
            assert (fast[name] - value).norm() < 2e-5 * value.norm(), name


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_any_other_model_is_left_untouched(kind: str, tmp_path: Path) -> None:
    base = tiny_model(kind, tmp_path, **UNSUPPORTED[kind])
    some, pad = examples(base)
    model = untouched(base)
    implementation = model.config._attn_implementation
    expected, plain = gradients(model, [padded_losses(model, some, pad)])

    model = adapted(base, load_model(base, torch.float32))
    assert not supported(model)
    assert model.config._attn_implementation == implementation
    assert not packing_fits(model, some, pad, 256)
    found, own = gradients(model, losses(model, some, pad, packing=False))
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    torch.testing.assert_close(own, plain, atol=0, rtol=0)


def test_a_model_with_attention_sinks_learns_what_its_library_serves(tmp_path: Path) -> None:
    base = tiny_model("gpt_oss", tmp_path / "base")
    data = dataset(tmp_path / "data", train=16)
    lines: list[dict[str, Any]] = []
    result = trained(base, data, tmp_path / "run", SETTINGS, emit=lines.append)
    assert not result["packed"]
    assert result["train_loss"] < next(line["loss"] for line in lines if "step" in line) / 1.2

    served = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result["adapter"]).eval()
    tokenizer = load_tokenizer(base)
    judged = [encode(tokenizer, row, SETTINGS.max_length) for row in rows(16)]
    with torch.no_grad():
        loss = padded_losses(served, judged, tokenizer.pad_token_id).mean()
    on = engine_loss(base, data, tmp_path / "on", SETTINGS, Path(result["adapter"]))
    assert float(loss) == pytest.approx(on, abs=1e-5)
