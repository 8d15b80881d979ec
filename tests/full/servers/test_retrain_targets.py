"""An adapter covers what the language model is made of, whatever the model, and is what PEFT loads again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, Mistral3Config

from fixtures.models.tiny import tiny_llama, tiny_model
from fixtures.models.trainings import SETTINGS, dataset, engine_loss, rows, trained
from retuned.consumers.errors import RetunedError
from retuned.daemon.settings import Settings
from retuned.retrain.generation.kept import KeptAnswers
from retuned.retrain.generation.transformers import TransformersEngine
from retuned.retrain.settings import EvaluateSettings, TrainSettings
from retuned.retrain.training import adapter as lora
from retuned.retrain.training import coverage, targets
from retuned.retrain.training.base_model import load_model, load_tokenizer
from retuned.retrain.training.batches import encode, padded_losses
from retuned.retrain.training.memory import PROCESS_BYTES, TRAINED_BYTES, needed_bytes

# The share that an adapter covers, by the default configuration of each family with fewer layers.
FAMILIES: dict[str, tuple[float, dict[str, Any]]] = {
    "deepseek_v3": (0.999, {"first_k_dense_replace": 1}),
    "deepseek_v4": (0.99, {}),
    "ernie4_5_moe": (0.999, {}),
    "falcon_h1": (0.95, {}),
    "gemma3": (0.999, {}),
    "gemma4": (0.999, {}),
    "glm4": (0.999, {}),
    "glm4_moe": (0.999, {}),
    "gpt_oss": (0.999, {}),
    "granitemoehybrid": (0.95, {}),
    "jamba": (0.95, {}),
    "kimi_linear": (0.999, {}),
    "lfm2": (0.999, {}),
    "llama": (1.0, {}),
    "llama4": (0.999, {}),
    "minimax_m2": (0.999, {}),
    "ministral3": (1.0, {}),
    "mixtral": (0.999, {}),
    "nemotron_h": (0.95, {}),
    "olmo_hybrid": (0.999, {}),
    "phi4_multimodal": (1.0, {}),
    "qwen3": (1.0, {}),
    "qwen3_5": (0.999, {}),
    "qwen3_5_moe": (0.999, {}),
    "qwen3_moe": (0.999, {}),
    "qwen3_next": (0.999, {}),
    "smollm3": (1.0, {}),
}
TOWERS = ("vision", "audio", "image", "projector", "embed_tokens", "lm_head")
MIXED = ("deepseek_v3", "gpt_oss", "granitemoehybrid", "lfm2", "mixtral", "qwen3_5_text", "qwen3_moe", "qwen3_next")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"), train=16)


def described(kind: str, **changes: Any) -> Any:
    """A model of the default configuration on the meta device, with four layers where it lets them be chosen."""
    config = AutoConfig.for_model(kind)
    text = config.get_text_config()
    if kind not in ("falcon_h1", "gemma4", "jamba", "nemotron_h"):
        changes |= {"num_hidden_layers": 4}
        if getattr(text, "layer_types", None):
            changes |= {"layer_types": text.layer_types[:4]}
    for key, value in changes.items():
        setattr(text, key, value)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.name_or_path = "base"
    return model


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_adapter_covers_the_language_model_and_nothing_else(kind: str) -> None:
    share, changes = FAMILIES[kind]
    with torch.device("meta"):
        model = lora.new_adapter(described(kind, **changes), Path("base"), TrainSettings())
    assert targets.coverage(model).share >= share
    adapted = {name for name, value in model.named_parameters() if value.requires_grad}
    assert adapted
    assert not [name for name in adapted if any(tower in name for tower in TOWERS)]


@pytest.mark.parametrize("kind", MIXED)
def test_what_was_trained_is_what_peft_loads(kind: str, data: Path, tmp_path: Path) -> None:
    base = tiny_model(kind, tmp_path / "base")
    settings = SETTINGS.model_copy(update={"epochs": 2})
    result = trained(base, data, tmp_path / "run", settings)
    assert result["coverage"] > 0.9
    adapter = Path(result["adapter"])
    still = [name for name, value in load_file(adapter / "adapter_model.safetensors").items() if not value.any()]
    assert not still  # a layer that the model passes by would have learned nothing
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    tokenizer = load_tokenizer(base)
    judged = [encode(tokenizer, row, 1_024) for row in rows(16)]
    with torch.no_grad():
        found = padded_losses(model, judged, tokenizer.pad_token_id)
        with model.disable_adapter():
            before = padded_losses(model, judged, tokenizer.pad_token_id)
        merged = padded_losses(model.merge_and_unload(), judged, tokenizer.pad_token_id)
    assert float(found.mean()) == pytest.approx(engine_loss(base, data, tmp_path / "on", settings, adapter), abs=1e-4)
    assert (found - before).abs().mean() > 1e-2
    torch.testing.assert_close(merged, found, atol=1e-4, rtol=1e-4)


def test_equal_trainings_of_a_mixture_of_experts_are_equal_to_the_byte(data: Path, tmp_path: Path) -> None:
    base = tiny_model("qwen3_next", tmp_path / "base")
    settings = SETTINGS.model_copy(update={"epochs": 1})
    one, other = (Path(trained(base, data, tmp_path / name, settings)["adapter"]) for name in ("one", "other"))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    config = json.loads((one / "adapter_config.json").read_text())
    assert config["target_parameters"] == sorted(config["target_parameters"])
    assert config["target_modules"] == sorted(config["target_modules"])


def test_the_ranks_of_active_experts_add_up_to_the_rank(tmp_path: Path) -> None:
    base = tiny_model("mixtral", tmp_path)  # of four experts, each token passes through two
    model = lora.new_adapter(load_model(base, torch.float32), base, TrainSettings(rank=8, alpha=16))
    shapes = {name: value.shape for name, value in model.named_parameters() if "layers.0." in name and "lora_A" in name}
    assert {shape[0] for name, shape in shapes.items() if "experts" in name} == {4 * 4}
    assert {shape[0] for name, shape in shapes.items() if "self_attn" in name} == {8}
    scales = {scale for one in model.modules() if isinstance(one, lora.LoraLayer) for scale in one.scaling.values()}
    assert scales == {2.0}


def test_the_estimate_of_memory_counts_what_is_trained_on_experts(tmp_path: Path) -> None:
    base, settings = tiny_model("mixtral", tmp_path), TrainSettings(rank=8, dtype="float32", devices=())
    model = lora.new_adapter(load_model(base, torch.float32), base, settings)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    held = sum(value.numel() for value in model.get_base_model().parameters()) - trained
    needed = needed_bytes(base, settings)
    assert needed is not None
    copied = 2 * 4 * 3 * 64 * 64  # layers, experts, matrices
    assert needed - PROCESS_BYTES == pytest.approx(4 * (held + copied) + TRAINED_BYTES * trained, rel=0.05)


def test_an_adapter_of_an_earlier_version_goes_on(data: Path, tmp_path: Path) -> None:
    base = tiny_model("mixtral", tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_model(base, torch.float32), config).save_pretrained(tmp_path / "earlier")
    result = trained(base, data, tmp_path / "run", SETTINGS, parent=tmp_path / "earlier")
    assert result["coverage"] < targets.FLOOR
    assert any("experts" in name for name in result["not_covered"])
    left, right = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "earlier", Path(result["adapter"]))
    )
    assert left.keys() == right.keys()


def test_a_model_of_which_an_adapter_covers_little_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model("mixtral", tmp_path / "base")
    found = targets.find(load_model(base, torch.float32))
    monkeypatch.setattr(targets, "find", lambda _: replace(found, parameters=[], experts=[]))
    with pytest.raises(RetunedError, match=r"would cover 19.9% .*not covered: model.layers.N.mlp.experts.gate_up_proj"):
        trained(base, data, tmp_path / "run", SETTINGS)
    # Who names the layers has decided.
    named = SETTINGS.model_copy(update={"target_modules": ("q_proj",), "epochs": 1})
    assert trained(base, data, tmp_path / "named", named)["coverage"] < targets.FLOOR


@pytest.mark.parametrize("changes", [{"dropout": 0.1}, {"use_dora": True}], ids=str)
def test_what_adapters_on_experts_cannot_do_is_one_clear_line(changes: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_model("mixtral", tmp_path / "base")
    with pytest.raises(RetunedError, match=rf"train.{next(iter(changes))}: .*experts .*train.target_modules"):
        lora.new_adapter(load_model(base, torch.float32), base, TrainSettings(**changes))
    learned = lora.new_adapter(load_model(base, torch.float32), base, TrainSettings())
    learned.save_pretrained(tmp_path / "parent")
    if "dropout" in changes:
        with pytest.raises(RetunedError, match=r"train.dropout: .*experts"):
            lora.to_train(load_model(base, torch.float32), base, tmp_path / "parent", TrainSettings(**changes))


def test_a_check_says_what_an_adapter_would_cover(tmp_path: Path) -> None:
    base = tiny_model("mixtral", tmp_path / "base")

    def checked(**train: Any) -> str:
        return coverage.check(Settings.model_validate({"models": {"base": str(base)}, "train": train}))

    assert checked() == (
        "covers 99.6% of the weights in the layers of the language model; not covered: model.layers.N.mlp.gate.weight"
    )
    assert "covers 6.6%" in checked(target_modules=["q_proj"])
    assert checked(method="full") is None
    with pytest.raises(RetunedError, match=r"train.engine packed: .* train.method is full; set it to trl or auto"):
        checked(engine="packed", method="full")
    with pytest.raises(RetunedError, match=r"train.use_dora: "):
        checked(use_dora=True)


@pytest.mark.parametrize("kind", ["mistral3", "unheard_of"])
def test_a_base_model_that_cannot_be_trained_is_found_by_a_check(kind: str, data: Path, tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    if kind == "mistral3":
        Mistral3Config().save_pretrained(base)
    else:
        file = base / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": kind}))
    settings = Settings.model_validate({"models": {"base": str(base)}})
    for attempt in (lambda: coverage.check(settings), lambda: trained(base, data, tmp_path / "run", SETTINGS)):
        with pytest.raises(RetunedError, match=rf"models.base: .*{kind}.* choose another base model") as raised:
            attempt()
        assert "\n" not in str(raised.value)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_an_evaluation_has_each_adapter_on_experts_answer_as_itself(data: Path, tmp_path: Path) -> None:
    base = tiny_model("mixtral", tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_model(base, torch.float32), config).save_pretrained(tmp_path / "attention")
    first = Path(trained(base, data, tmp_path / "first", SETTINGS.model_copy(update={"epochs": 1}))["adapter"])
    second = Path(trained(base, data, tmp_path / "second", SETTINGS, parent=first)["adapter"])
    adapters: dict[str, Path | None] = {"base": None, "attention": tmp_path / "attention"}
    adapters |= {"first": first, "second": second}

    def losses(models: dict[str, Path | None]) -> dict[str, list[float | None]]:
        settings = EvaluateSettings(max_new_tokens=2)
        kept = KeptAnswers()
        engine = TransformersEngine(base, models, settings, dtype="float32", encoding=SETTINGS.encoding, kept=kept)
        found: dict[str, list[float | None]] = {name: [] for name in models}
        for _, answers in engine.answers(rows(3, 16), list(models)):
            for name, answer in answers.items():
                found[name].append(answer.loss)
        engine.close()
        return found

    together = losses(adapters)
    for name in ("attention", "first", "second"):
        alone = losses({"base": None, name: adapters[name]})
        assert together[name] == pytest.approx(alone[name], abs=1e-4)
        assert together["base"] == pytest.approx(alone["base"], abs=1e-4)
    assert len({tuple(found) for found in together.values()}) == len(adapters)
