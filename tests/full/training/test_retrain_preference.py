"""Preferences: TRL's trainers learn them beside the completions, and they teach what they say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from fixtures.models.trainings import SETTINGS, dataset, rows, trained
from retuned.consumers.errors import RetunedError
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training import adapter as lora
from retuned.retrain.training import preferences
from retuned.retrain.training.base_model import load_model, load_tokenizer
from retuned.retrain.training.batches import encode, padded_losses
from retuned.retrain.training.preferences import Preferences

AUTO = SETTINGS.model_copy(update={"engine": "auto"})


def log_probability(model: Any, row: Encoded, pad: int) -> float:
    with torch.no_grad():
        return -float(padded_losses(model, [row], pad).sum())


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("halved", [0, 2])
def test_the_first_losses_are_those_of_the_papers(
    method: str, halved: int, base: Path, data: Path, tmp_path: Path
) -> None:
    """From a champion's adapter, which is the reference: the first step has no log-ratio, the next ones have."""
    lines: list[dict[str, Any]] = []
    first = trained(base, data, tmp_path / "first", SETTINGS.model_copy(update={"epochs": 1}))
    settings = AUTO.model_copy(update={"preference": method, "preference_beta": 0.3, "batch_size": 4, "epochs": 1})
    result = trained(
        base, data, tmp_path / "next", settings, parent=Path(first["adapter"]), emit=lines.append, halved=halved
    )
    losses = [line["preference_loss"] for line in lines if "step" in line]
    expected = float(-functional.logsigmoid(torch.tensor(0.0))) if method == "dpo" else 0.5
    assert result["preference_pairs"] == (60 if method == "dpo" else 19)
    if method == "dpo":
        assert losses[0] == pytest.approx(expected, abs=1e-5)
    else:  # the rarer kind weighs as much as the other
        assert losses[0] == pytest.approx(0.5, abs=0.5 * (12 / 7 - 1))
    assert losses[-1] < losses[0]


def test_less_at_once_learns_the_same(base: Path, data: Path, tmp_path: Path) -> None:
    settings = AUTO.model_copy(update={"preference": "dpo", "batch_size": 6})  # 60 rows: all steps are whole
    results = [trained(base, data, tmp_path / str(halved), settings, halved=halved) for halved in (0, 2)]
    assert [result["micro_batch_size"] for result in results] == [6, 3]
    assert [result["gradient_checkpointing"] for result in results] == [False, True]
    for name in ("train_loss", "preference_loss"):
        assert results[1][name] == pytest.approx(results[0][name], rel=1e-3), name


def test_every_preference_stands_beside_a_row_in_turn(base: Path, data: Path) -> None:
    found = preferences.load(load_tokenizer(base), data, TrainSettings(preference="kto"))
    assert found is not None
    assert len(found.columns) == 19
    beside = [found.columns.index(one) for one in found.beside(40, seed=0)]
    assert sorted(beside[:19]) == sorted(beside[19:38]) == list(range(19))
    assert beside[:19] != list(range(19))
    assert found.beside(5, seed=0) == found.beside(40, seed=0)[:5]
    assert found.beside(19, seed=1) != found.beside(19, seed=0)


def test_what_there_is_nothing_to_learn_from(base: Path, data: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    assert preferences.load(tokenizer, data, SETTINGS) is None
    older = tmp_path / "older"
    dataset(older)
    (older / "thumbs.parquet").unlink()
    kto = AUTO.model_copy(update={"preference": "kto", "epochs": 1})
    assert preferences.load(tokenizer, older, kto) is None
    assert "preference_pairs" not in trained(base, older, tmp_path / "run", kto)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_preferences_move_answers_apart(method: str, base: Path, data: Path, tmp_path: Path) -> None:
    def margin(**changes: Any) -> float:
        """How much likelier than before the answers in days became, beside those in weeks, on unseen questions."""
        settings = AUTO.model_copy(update=changes)
        result = trained(base, data, tmp_path / settings.preference, settings)
        tokenizer = load_tokenizer(base)
        model = lora.load_adapter(load_model(base, torch.float32), Path(result["adapter"]))
        found = []
        for row in rows(20, 300):
            good = encode(tokenizer, row, 1_024)
            bad = encode(tokenizer, row | {"completion": row["rejected"]}, 1_024)
            found.append(log_probability(model, good, 0) - log_probability(model, bad, 0))
        return sum(found) / len(found)

    without = margin(preference="none")
    with_it = margin(preference=method, preference_weight=1.0)
    assert with_it > without + 1.0


def test_the_rarer_kind_of_thumb_counts_as_much() -> None:
    found = Preferences("kto", [{"label": True}] * 9 + [{"label": False}] * 3)
    assert found.weights == {"desirable_weight": 1.0, "undesirable_weight": 3.0}


def test_kto_needs_two_answers_at_once(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RetunedError, match=r"train.batch_size 1: kto compares .* set it to 2 or more"):
        trained(base, data, tmp_path, AUTO.model_copy(update={"preference": "kto", "batch_size": 1}))
