"""Adds the trained weights to a base model with PEFT: LoRA adapters (Hu et al. 2021), or copies of all layers.

Used in child processes only.
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
    """Returns the base model with the weights to train: the parent's adapter, or a new one.

    Raises:
        RetunedError: the parent was trained on another base model, or has all weights although an adapter is to be
            trained; or the adapter does not support the settings.
    """
    if parent is None:
        return new_adapter(model, base, settings)
    full = settings.method == "full"
    parent_full = is_full(parent)
    if parent_full and not full:
        raise RetunedError(
            f"train.method {settings.method}: the champion {parent} has all weights, and an adapter cannot continue "
            "them; set train.method to full, or start anew from the base model with `retuned promote <workload> base`"
        )
    dropout = 0.0 if full else settings.dropout
    if dropout:
        _check_dropout(getattr(PeftConfig.from_pretrained(parent), "target_parameters", None) or (), settings, base)
    loaded = load_adapter(model, parent, trainable=True, dropout=dropout)
    return new_adapter(loaded.merge_and_unload(), base, settings) if full and not parent_full else loaded


def is_full(adapter: Path) -> bool:
    """Whether a saved adapter holds copies of layers, as from `train.method: full`, instead of additions to them."""
    return bool(PeftConfig.from_pretrained(adapter).modules_to_save)


def new_adapter(model: Any, base: Path, settings: TrainSettings) -> Any:
    """Returns the base model with a new adapter, which does not change its output yet."""
    if settings.method == "full":
        return _copies_of_layers(model, base)
    selected = _named(model, base, settings) if settings.target_modules else targets.find(model)
    _check_dropout(selected.parameters, settings, base)
    if selected.parameters and settings.use_dora:
        raise RetunedError(f"train.use_dora: {_NOT_ON_EXPERTS.format(base)}")
    rank = expert_rank(settings.rank, model.config.get_text_config().to_dict())
    share = rank / settings.rank
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        target_modules=selected.modules,
        target_parameters=selected.parameters or None,
        rank_pattern=dict.fromkeys(selected.experts, rank),
        alpha_pattern=dict.fromkeys(selected.experts, settings.alpha * (share**0.5 if settings.use_rslora else share)),
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
    """Returns the modules that `train.target_modules` names."""
    named = settings.target_modules or ()
    if not set(named) & {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}:
        raise RetunedError(
            f"train.target_modules {', '.join(named)}: the base model {base} has none of them; unset it to adapt "
            "all linear layers"
        )
    return Targets(list(named))


def _copies_of_layers(model: Any, base: Path) -> Any:
    """Returns the base model with a trainable copy of each layer; embeddings and head stay frozen."""
    kept = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
        and id(module) not in kept
        and not isinstance(module, nn.Embedding)
    }
    config = LoraConfig(
        target_modules=DUMMY_TARGET_MODULES,  # PEFT's value for no adapter beside the copies
        modules_to_save=sorted(names),
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=str(base),
    )
    return get_peft_model(model, config).eval()


def load_adapter(
    model: nn.Module, folder: Path, *, name: str = "default", trainable: bool = False, dropout: float = 0.0
) -> Any:
    """Adds a saved adapter to a model, under a name without dots; the model may have other adapters.

    Args:
        dropout: replaces the dropout of the adapter's earlier training.

    Raises:
        RetunedError: the adapter was trained on another base model.
    """
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name, is_trainable=trainable)
            return model.eval()
        config = PeftConfig.from_pretrained(folder)
        config.lora_dropout = dropout
        adapted = PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=trainable, config=config)
        return adapted.eval()
    except (RuntimeError, ValueError) as error:
        raise RetunedError(
            f"adapter {folder}: does not fit the base model (another number or size of layers); "
            "set models.base to the model that it was trained on"
        ) from error


def sort_layer_names(folder: Path) -> None:
    """Sorts the layer names in a saved adapter's configuration, so that equal adapters are equal versions.

    PEFT writes a set, whose order differs between processes.
    """
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules", "target_parameters"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def layers(model: nn.Module) -> list[Any]:
    """The layers that have adapters."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def dropouts(model: nn.Module) -> list[nn.Module]:
    """Returns the dropouts of the adapters; those of the base model are never on."""
    return [one for layer in layers(model) for one in layer.lora_dropout.values() if isinstance(one, nn.Dropout)]


def packing_fits(model: Any, rows: Sequence[Encoded], pad: int, max_length: int) -> bool:
    """Whether a model computes the same losses on a pack as on a padded batch, tried on the shortest rows.

    Unsupported models do not pack, nor do supported ones with an attention window shorter than a row, or with logits
    that are scaled or capped after the linear layer.
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
        expected, actual = (compute(model, trial, pad) for compute in (padded_losses, packed_losses))
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.05 + 0.02 * float(expected.max())
    return bool((actual - expected).abs().mean() < tolerance)


def _logits_are_linear(model: Any, rows: Sequence[Encoded], pad: int) -> bool:
    """Whether the logits are the output of the head, without a scale or a cap."""
    base = model.get_base_model()
    batch = {name: value.to(model.device) for name, value in padded(rows, pad).items() if name != "labels"}
    hidden = base.base_model(**batch, use_cache=False).last_hidden_state
    return torch.allclose(base.get_output_embeddings()(hidden), base(**batch, use_cache=False).logits, rtol=1e-4)
