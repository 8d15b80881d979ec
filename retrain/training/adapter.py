"""What is trained of a base model, through PEFT: LoRA adapters (Hu et al. 2021), or copies of all its layers.

Runs in child processes alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from retuned.consumers.errors import RetunedError
from retuned.retrain.kernels import attention
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.kernels.supported import supported
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training import targets
from retuned.retrain.training.base_model import expert_rank
from retuned.retrain.training.batches import packed_losses, padded, padded_losses
from retuned.retrain.training.targets import Targets

_NOT_ON_EXPERTS = (
    "adapters on the experts of {} do not support it; unset it, or name layers beside the experts in "
    "train.target_modules and start anew from the base model"
)


def to_train(model: nn.Module, base: Path, parent: Path | None, settings: TrainSettings) -> Any:
    """The base model with what is trained: the parent's adapter, or a new one.

    Raises:
        RetunedError: the parent was made for another base model, or has all weights where an adapter is to be trained;
            or the adapter does not support what the settings ask for.
    """
    if parent is None:
        return new_adapter(model, base, settings)
    full = settings.method == "full"
    parent_full = is_full(parent)
    if parent_full and not full:
        raise RetunedError(
            f"train.method {settings.method}: the champion {parent} has all weights, and an adapter cannot go on from "
            "them; set train.method to full, or start anew from the base model with `retuned promote <workload> base`"
        )
    dropout = 0.0 if full else settings.dropout
    if dropout:
        _check_dropout(getattr(PeftConfig.from_pretrained(parent), "target_parameters", None) or (), settings, base)
    found = load_adapter(model, parent, trainable=True, dropout=dropout)
    return new_adapter(found.merge_and_unload(), base, settings) if full and not parent_full else found


def is_full(adapter: Path) -> bool:
    """Whether a saved adapter holds copies of layers, as `train.method: full` makes them, and not additions to them."""
    return bool(PeftConfig.from_pretrained(adapter).modules_to_save)


def new_adapter(model: Any, base: Path, settings: TrainSettings) -> Any:
    """The base model with a fresh adapter, which at first changes nothing."""
    if settings.method == "full":
        return _copies_of_layers(model, base)
    found = _named(model, base, settings) if settings.target_modules else targets.find(model)
    _check_dropout(found.parameters, settings, base)
    if found.parameters and settings.use_dora:
        raise RetunedError(f"train.use_dora: {_NOT_ON_EXPERTS.format(base)}")
    rank = expert_rank(settings.rank, model.config.get_text_config().to_dict())
    share = rank / settings.rank
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        target_modules=found.modules,
        target_parameters=found.parameters or None,
        rank_pattern=dict.fromkeys(found.experts, rank),
        alpha_pattern=dict.fromkeys(found.experts, settings.alpha * (share**0.5 if settings.use_rslora else share)),
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=str(base),
    )
    try:
        return get_peft_model(model, config).eval()
    except ValueError as error:
        raise RetunedError(
            f"train.target_modules: name the layers to adapt in the base model {base} ({error})"
        ) from error


def _check_dropout(parameters: Sequence[str], settings: TrainSettings, base: Path) -> None:
    if parameters and settings.dropout:
        raise RetunedError(f"train.dropout: {_NOT_ON_EXPERTS.format(base)}")


def _named(model: nn.Module, base: Path, settings: TrainSettings) -> Targets:
    """What the settings name."""
    named = settings.target_modules or ()
    if not set(named) & {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}:
        raise RetunedError(
            f"train.target_modules {', '.join(named)}: the base model {base} has none of them; leave it out to adapt "
            "all linear layers"
        )
    return Targets(list(named))


def _copies_of_layers(model: Any, base: Path) -> Any:
    """The base model with a copy of each layer that has weights, to train; embeddings and head stay."""
    kept = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
        and id(module) not in kept
        and not isinstance(module, nn.Embedding)
    }
    config = LoraConfig(
        target_modules=DUMMY_TARGET_MODULES,  # PEFT's name for no adapter beside the copies
        modules_to_save=sorted(names),
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=str(base),
    )
    return get_peft_model(model, config).eval()


def compute_in(model: Any, dtype: torch.dtype) -> None:
    """Let the layers of a model with float32 weights compute in another type, as mixed precision does
    (Micikevicius et al. 2018)."""
    if dtype != torch.float32:
        inner = model.get_base_model().base_model
        inner.forward = torch.autocast(model.device.type, dtype)(inner.forward)


def load_adapter(
    model: nn.Module, folder: Path, *, name: str = "default", trainable: bool = False, dropout: float = 0.0
) -> Any:
    """The model with a saved adapter under a name (without dots); the model may have others already.

    Args:
        dropout: of this training; what the adapter was trained with before does not count.

    Raises:
        RetunedError: the adapter was made for another base model.
    """
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name, is_trainable=trainable)
            return model.eval()
        config = PeftConfig.from_pretrained(folder)
        config.lora_dropout = dropout
        found = PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=trainable, config=config)
        return found.eval()
    except (RuntimeError, ValueError) as error:
        raise RetunedError(
            f"adapter {folder}: does not fit the base model (another number or size of layers); "
            "set models.base to the one that it was trained on"
        ) from error


def sort_layer_names(folder: Path) -> None:
    """Give the layers in a saved adapter's configuration one order, so that equal adapters are equal versions.

    PEFT writes a set, whose order is another one in each process.
    """
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules", "target_parameters"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def dropouts(model: nn.Module) -> list[nn.Module]:
    """The adapters' dropouts; those of the base model are never on."""
    adapted = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return [one for module in adapted for one in module.lora_dropout.values() if isinstance(one, nn.Dropout)]


def packing_fits(model: Any, rows: Sequence[Encoded], pad: int, max_length: int) -> bool:
    """Whether a model computes on a pack what it computes on a padded batch, tried on the shortest rows.

    Only supported models may, and among them not those whose options are a window of attention shorter than a row, or
    logits that are more than a linear layer's.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if (
        not supported(model)
        or config._attn_implementation != attention.NAME
        or type(model.get_output_embeddings()) is not nn.Linear
        or (window and window < max_length)
    ):
        return False
    trial = sorted(rows, key=len)[:3]
    with torch.no_grad():
        if not _logits_are_linear(model, trial[:1], pad):
            return False
        expected, found = (compute(model, trial, pad) for compute in (padded_losses, packed_losses))
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.05 + 0.02 * float(expected.max())
    return bool((found - expected).abs().mean() < tolerance)


def _logits_are_linear(model: Any, rows: Sequence[Encoded], pad: int) -> bool:
    """No scale, no cap: what the head makes of the hidden states are the logits."""
    base = model.get_base_model()
    batch = {name: value.to(model.device) for name, value in padded(rows, pad).items() if name != "labels"}
    hidden = base.base_model(**batch, use_cache=False).last_hidden_state
    return torch.allclose(base.get_output_embeddings()(hidden), base(**batch, use_cache=False).logits, rtol=1e-4)
