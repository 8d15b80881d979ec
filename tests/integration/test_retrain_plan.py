"""The estimate of what a training needs, beside what autograd keeps, what was published, and real shapes."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import repeat_kv

from fixtures.models.tiny import LINEAR
from retuned.consumers.errors import RetunedError
from retuned.daemon.cli.main import main
from retuned.retrain.kernels.attention import install
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training.batches import packed_losses
from retuned.retrain.training.packed import Training
from retuned.retrain.training.plan import Shape, plan, ways_out

GB, GIB = 10**9, 2**30
H100 = 80 * GB
MODELS: dict[str, dict[str, Any]] = {
    "8B": {"hidden_size": 4_096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "32B": {"hidden_size": 5_120, "intermediate_size": 27_648, "num_hidden_layers": 64, "num_attention_heads": 40},
    "70B": {"hidden_size": 8_192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
RANK = 16


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Folders with a config.json alone, of Llama's kind in the sizes that people have."""
    return {name: described(tmp_path / name, num_key_value_heads=8, **sizes) for name, sizes in MODELS.items()}


def described(folder: Path, **sizes: Any) -> Path:
    folder.mkdir()
    config = {"model_type": "llama", "vocab_size": 128_256, "tie_word_embeddings": False} | sizes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def with_adapter(base: Path, dtype: torch.dtype, device: str) -> Any:
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=dtype)
        model.requires_grad_(False)
        return get_peft_model(model, LoraConfig(r=RANK, target_modules=LINEAR, task_type="CAUSAL_LM"))


class FlashAttention(torch.autograd.Function):
    """Keeps what flash attention keeps, which has no kernel on the meta device (Dao et al. 2022)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query.transpose(1, 2))
        ctx.save_for_backward(query, key, value, out)
        return out


def keeps_no_scores(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    key, value = (repeat_kv(part, module.num_key_value_groups) for part in (key, value))
    return FlashAttention.apply(query, key, value), None  # type: ignore[no-untyped-call]


def kept(model: Any, forward: Any) -> int:
    """Bytes that autograd keeps of a forward, beside parameters."""
    weights = {value.untyped_storage()._cdata for value in model.parameters()}
    found: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize(("dtype", "layers"), [("bfloat16", 3), ("float32", 3)])
def test_activations_are_what_autograd_keeps(dtype: str, layers: int, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8, "num_key_value_heads": 4}
    base = described(tmp_path / "base", num_hidden_layers=layers, **sizes | {"vocab_size": 500})
    model = with_adapter(base, getattr(torch, dtype), "cpu").train()
    ids = torch.randint(0, 500, (2, 128))
    mask = torch.ones(2, 128, dtype=torch.long)
    mask[1, 120:] = 0  # padding
    mixed = torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else nullcontext()
    settings = TrainSettings(engine="trl", dtype=dtype, rank=RANK, batch_size=2, max_length=128)
    with mixed:
        found = kept(model, lambda: model.get_base_model().base_model(input_ids=ids, attention_mask=mask))
    assert plan(base, settings, 0, None).activations == pytest.approx(found, rel=0.08)


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_activations_of_packed_are_what_autograd_keeps(dtype: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8, "num_key_value_heads": 4}
    base = described(tmp_path / "base", num_hidden_layers=3, **sizes | {"vocab_size": 500})
    settings = TrainSettings(engine="packed", dtype=dtype, rank=RANK, max_length=1_024)
    model = with_adapter(base, getattr(torch, dtype), "cpu").eval()
    install(model.get_base_model())
    ids = torch.randint(0, 500, (1_024,)).tolist()
    rows = [Encoded("", ids[:-8], ids[-8:])]
    training = Training(model, rows, 0, settings.for_model(1), tmp_path, 0)
    with training.precision:
        found = kept(model, lambda: packed_losses(model, rows, 0))
    assert plan(base, settings, 0, None).activations == pytest.approx(found, rel=0.08)


@pytest.mark.full
def test_70_billion_weights_go_through_the_estimate(folders: dict[str, Path]) -> None:
    """On the meta device, which has shapes, and neither memory nor mixed precision, which keeps some copies more."""
    base, shape = folders["70B"], Shape.of(folders["70B"])
    model = with_adapter(base, torch.bfloat16, "meta").train()
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert shape.parameters == sum(value.numel() for value in model.parameters()) - trained
    assert shape.parameters == pytest.approx(70.6e9, rel=0.01)
    assert shape.adapter(RANK) == trained
    for value in model.parameters():
        value.data = value.data.to(torch.bfloat16)
    AttentionInterface.register("keeps_no_scores", keeps_no_scores)
    model.get_base_model().set_attn_implementation("keeps_no_scores")
    ids = torch.zeros(1, 1_024, dtype=torch.long, device="meta")
    mask = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16, device="meta")  # whether one is needed is asked of values
    inner = model.get_base_model().base_model
    found = kept(model, lambda: inner(input_ids=ids, attention_mask=mask, use_cache=False))
    settings = TrainSettings(engine="trl", rank=RANK, batch_size=1, max_length=1_024)
    assert found < plan(base, settings, 1, None).activations < 1.25 * found


def test_attention_of_packed_keeps_shares_keys_and_values(folders: dict[str, Path]) -> None:
    """At 8 billion and 4,096 tokens 69 GB, which were seen."""
    short, long = (
        plan(folders["8B"], TrainSettings(engine="packed", dtype="bfloat16", max_length=length), 0, None).activations
        for length in (2_048, 4_096)
    )
    assert long - 2 * short == pytest.approx(68.7 * GB / 2, rel=0.03)  # it grows with the square, the rest does not


@pytest.mark.parametrize(
    ("name", "gpus", "checkpointing", "micro", "fits"),
    [
        ("8B", 1, True, 8, True), ("8B", 8, False, 1, True), ("32B", 1, True, 2, True), ("32B", 8, True, 1, True),
        ("70B", 1, True, 1, False), ("70B", 8, True, 1, False),
    ],
)  # fmt: skip
def test_what_fits_on_gpus_of_80_gb(
    name: str, gpus: int, checkpointing: bool, micro: int, fits: bool, folders: dict[str, Path]
) -> None:
    found = plan(folders[name], TrainSettings(), gpus, H100)
    assert (found.engine.name, found.precision, found.devices) == ("trl", "bfloat16", gpus)
    tried = (found.gradient_checkpointing, found.micro_batch_size, found.holds(found.total))
    assert tried == (checkpointing, micro, fits)


def test_what_does_not_fit_says_what_would(folders: dict[str, Path]) -> None:
    alone = dict(ways_out(folders["70B"], TrainSettings(), 1, H100))
    assert alone.keys() == {"train.method: qlora"}
    eight = dict(ways_out(folders["70B"], TrainSettings(), 8, H100))
    assert eight.keys() == {"train.method: qlora", "train.accelerate_file: one with FSDP"}
    assert all(size < H100 for size in eight.values())


def test_the_estimate_beside_published_peaks(folders: dict[str, Path]) -> None:
    """torchtune's README: Llama 3.1, 2 rows of 2,048 tokens on each GPU. It compiles the model, which keeps less."""
    rows = {"engine": "trl", "rank": 8, "max_length": 2_048}
    for settings, gpus, name, gib in (
        (TrainSettings(**rows, batch_size=2), 1, "8B", 16.2),
        (TrainSettings(**rows, batch_size=2, method="qlora"), 1, "8B", 7.4),
        (TrainSettings(**rows, batch_size=16, accelerate_file=Path("fsdp2.yaml")), 8, "70B", 27.6),
    ):
        found = plan(folders[name], settings, gpus, int(1.6 * gib * GIB))  # too little without checkpointing
        assert (found.gradient_checkpointing, found.micro_batch_size) == (True, 2)
        assert found.total == pytest.approx(gib * GIB, rel=0.3)


def test_what_is_not_a_dense_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RetunedError, match=r"mixtures of experts"):
        Shape.of(described(tmp_path / "experts", **MODELS["8B"], num_local_experts=8))
    with pytest.raises(RetunedError, match=r"config.json has no 'n_head'"):
        Shape.of(described(tmp_path / "other"))
    with pytest.raises(RetunedError, match=r"batch_size 8: trl cannot divide it evenly among 3 processes"):
        plan(described(tmp_path / "8B", num_key_value_heads=8, **MODELS["8B"]), TrainSettings(), 3, H100)


def test_the_command_prints_the_plan(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["check", "--plan", "support", "--gpus", "8", "--gpu-memory", "80GB", "--base"]
    assert main([*asked, str(folders["8B"])]) == 0
    told = capsys.readouterr().out
    assert "trl: the training runs on a GPU" in told
    assert "DOES NOT FIT" not in told
    assert main([*asked, str(folders["70B"])]) == 1
    told = capsys.readouterr().out
    assert "DOES NOT FIT  training" in told
    assert "train.accelerate_file: one with FSDP" in told
