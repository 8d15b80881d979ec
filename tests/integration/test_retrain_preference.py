"""Preferences: the losses of their papers, and that they teach what they say."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_llama
from trainings import SETTINGS, dataset, rows, trained

from retuned.retrain.kernels.replace import replace_layers
from retuned.retrain.training import adapter as lora
from retuned.retrain.training import batches, preference
from retuned.retrain.training.base_model import load_model, load_tokenizer
from retuned.retrain.training.batches import encode, log_probabilities, padded_losses
from retuned.retrain.training.preference import Preferences, dpo, kto
from retuned.retrain.training.ranks import Ranks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo_by_hand() -> None:
    # TRL: -logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))
    chosen, rejected = torch.tensor([-10.0, -3.0]) - torch.tensor([-12.0, -3.0]), torch.tensor([-7.0, -2.0])
    rejected = rejected - torch.tensor([-6.0, -5.0])
    expected = [-math.log(sigmoid(0.1 * (2.0 - -1.0))), -math.log(sigmoid(0.1 * (0.0 - 3.0)))]
    assert dpo(chosen, rejected, 0.1).tolist() == pytest.approx(expected)


def test_kto_by_hand() -> None:
    # TRL: 1 - sigmoid(beta * (chosen - kl)), 1 - sigmoid(beta * (kl - rejected))
    found = kto(torch.tensor([2.0, 3.0]), torch.tensor([True, False]), torch.tensor(0.5), 0.2)
    assert found.tolist() == pytest.approx([1 - sigmoid(0.2 * 1.5), 1 - sigmoid(0.2 * -2.5)])


def whole_log_probability(model: Any, row: Any, pad: int) -> torch.Tensor:
    return -padded_losses(model, [row], pad).sum()


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("limit", [10_000, 60])
def test_a_steps_loss_and_gradients_are_those_of_the_plain_formula(
    method: str, limit: int, base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batches._CHUNK_TOKENS, True, limit)
    settings = SETTINGS.model_copy(update={"preference": method, "preference_beta": 0.3})
    tokenizer = load_tokenizer(base)
    pad = tokenizer.pad_token_id
    torch.manual_seed(0)
    model = lora.new_adapter(load_model(base, torch.float32), base, settings)
    replace_layers(model)
    found = preference.load(tokenizer, data, settings)
    assert found is not None
    found.measure(model, pad, True, Ranks())
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.05)
    step = 3
    parts = list(found.losses(model, step, pad, True, settings, Ranks()))
    assert (len(parts) > 1) == (limit == 60)
    torch.stack(parts).sum().backward()
    fast = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()

    pairs = found._chosen(step, settings)
    ratios, others = [], []
    for i in pairs:
        now = [whole_log_probability(model, row, pad) for row in found.pairs[i]]
        with torch.no_grad(), model.disable_adapter():  # the fresh adapter that it was measured with changes nothing
            before = [whole_log_probability(model, row, pad) for row in found.pairs[i]]
        ratios.append(now[0] - before[0])
        others.append(now[1] - before[1])
    if method == "dpo":
        expected = torch.stack([-torch.log(torch.sigmoid(0.3 * (a - b))) for a, b in zip(ratios, others, strict=True)])
    else:
        divergence = torch.stack(others).mean().detach().clamp(min=0)
        good, bad = sum(found.desirable), len(found.desirable) - sum(found.desirable)
        assert (good, bad) == (12, 7)
        expected = torch.stack(
            [
                1 - torch.sigmoid(0.3 * (ratio - divergence))
                if found.desirable[i]
                else 12 / 7 * (1 - torch.sigmoid(0.3 * (divergence - ratio)))
                for i, ratio in zip(pairs, ratios, strict=True)
            ]
        )
    expected.mean().backward()
    assert float(torch.stack(parts).sum().detach()) == pytest.approx(float(expected.mean().detach()), rel=1e-4)
    for name, value in model.named_parameters():
        if value.grad is not None:
            assert value.grad.abs().max() > 0
            torch.testing.assert_close(fast[name], value.grad, atol=1e-5, rtol=2e-3)


def test_every_pair_is_seen_in_turn(base: Path, data: Path) -> None:
    settings = SETTINGS.model_copy(update={"preference": "dpo", "batch_size": 10})
    found = preference.load(load_tokenizer(base), data, settings)
    assert found is not None
    assert len(found.pairs) == 60
    first = [found._chosen(step, settings) for step in range(6)]
    assert sorted(i for step in first for i in step) == list(range(60))
    assert first[0] != found._chosen(6, settings)


def test_what_there_is_nothing_to_learn_from(base: Path, data: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    assert preference.load(tokenizer, data, SETTINGS) is None
    older = tmp_path / "older"
    dataset(older)
    (older / "thumbs.parquet").unlink()
    assert preference.load(tokenizer, older, SETTINGS.model_copy(update={"preference": "kto"})) is None
    result = trained(base, older, tmp_path / "run", SETTINGS.model_copy(update={"preference": "kto", "epochs": 1}))
    assert "preference_pairs" not in result


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_preferences_move_answers_apart(method: str, base: Path, data: Path, tmp_path: Path) -> None:
    def margin(**changes: Any) -> float:
        """How much likelier than before the answers in days became, beside those in weeks, on unseen questions."""
        settings = SETTINGS.model_copy(update=changes)
        result = trained(base, data, tmp_path / settings.preference, settings)
        tokenizer = load_tokenizer(base)
        model = lora.load_adapter(load_model(base, torch.float32), Path(result["adapter"]))
        unseen = rows(20, 300)
        good = [encode(tokenizer, row, 1_024) for row in unseen]
        bad = [encode(tokenizer, row | {"completion": row["rejected"]}, 1_024) for row in unseen]
        with torch.no_grad():
            found = [torch.cat(list(log_probabilities(model, part, 0, packing=False))) for part in (good, bad)]
        return float((found[0] - found[1]).mean())

    without = margin(preference="none")
    with_it = margin(preference=method, preference_weight=1.0)
    assert with_it > without + 1.0


def test_the_rarer_kind_of_thumb_counts_as_much() -> None:
    found = Preferences("kto", [], [True] * 9 + [False] * 3, torch.empty(0, 2))
    assert found._weights().tolist() == [3.0, 1.0]
