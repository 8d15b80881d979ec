"""Selects the weights that an adapter covers: the linear layers and fused experts of the language model.

Embeddings, the output layer, vision and audio towers and their projectors are left out. The layers are found by the
model's structure, so no list of model families has to be maintained. Used in child processes only.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from retuned.consumers.errors import RetunedError

FLOOR = 0.5
"""The least share of the layers' weights that a new adapter must cover. Biderman et al. 2024 (LoRA learns less and
forgets less) and Schulman et al. 2025 (LoRA without regret) find that adapters on attention alone, which is the smaller
part of every current model, learn markedly less than adapters on all layers."""

_NAMED = 5


@dataclass(frozen=True)
class Coverage:
    """The part of the language model's layers that an adapter covers.

    Attributes:
        share: the share of the weights in matrices, 0 to 1.
        missing: names of the uncovered matrices, largest first; `N` stands for a number in a name.
    """

    share: float
    missing: tuple[str, ...]

    def __str__(self) -> str:
        left_out = f"; not covered: {', '.join(self.missing[:_NAMED])}" if self.missing else ""
        return f"{self.share:.1%} of the weights in the layers of the language model{left_out}"


@dataclass(frozen=True)
class Targets:
    """The modules and parameters of a model that get an adapter, by the names that PEFT expects.

    Attributes:
        experts: the parameters that hold one matrix per expert.
    """

    modules: list[str]
    parameters: list[str] = field(default_factory=list)
    experts: list[str] = field(default_factory=list)


def find(model: nn.Module) -> Targets:
    """Returns all linear layers and fused experts of the language model."""
    linear = [name for name, module in _modules(model) if _is_linear(module) and not _bypasses_adapter(model, name)]
    reach = {leaf: _reaches_peft(model, leaf) for leaf in {name.rsplit(".", 1)[-1] for name in linear}}
    modules = [name for name in linear if reach[name.rsplit(".", 1)[-1]]]
    weights = [f"{name}.weight" for name in set(linear) - set(modules) if _is_float(model.get_submodule(name).weight)]
    experts = [
        f"{name}.{parameter}"
        for name, module in _modules(model)
        if _holds_experts(module)
        for parameter, value in module.named_parameters(recurse=False)
        if value.ndim == 3
    ]
    parameters = [name for name, _ in model.named_parameters()]
    experts = _shortened(experts, parameters, 2)
    return Targets(
        _shortened(modules, [name for name, _ in model.named_modules()], 1),
        sorted([*experts, *_shortened(weights, parameters, 3)]),
        experts,
    )


def coverage(model: Any) -> Coverage:
    """Returns what the adapter on a model covers."""
    covered = {
        id(module.get_param() if isinstance(module, ParamWrapper) else module.get_base_layer().weight)
        for module in model.modules()
        if isinstance(module, LoraLayer)
    }
    sizes: dict[int, int] = {}
    missing: dict[str, int] = {}
    for name, module in _modules(model.get_base_model()):
        for parameter, value in module.named_parameters(recurse=False):
            if value.ndim < 2 or isinstance(module, nn.Embedding) or ".lora_" in name or id(value) in sizes:
                continue
            sizes[id(value)] = value.numel() * (2 if type(value).__name__ == "Params4bit" else 1)
            if id(value) not in covered:
                kind = _kind(f"{name}.{parameter}")
                missing[kind] = missing.get(kind, 0) + sizes[id(value)]
    share = sum(size for key, size in sizes.items() if key in covered) / max(1, sum(sizes.values()))
    return Coverage(share, tuple(sorted(missing, key=lambda kind: (-missing[kind], kind))))


def check(covered: Coverage, base: Any) -> None:
    """Checks that a new adapter covers enough of the model.

    Raises:
        RetunedError: a new adapter covers too little of the model.
    """
    if covered.share < FLOOR:
        raise RetunedError(
            f"models.base: an adapter on {base} would cover {covered}. At least {FLOOR:.0%} are needed; choose a "
            "base model with weights in 16 bits that PEFT can adapt, or name layers in "
            "train.target_modules"
        )


def _modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules of the language model's layers, with their names in the model."""
    layers = _layers(model)
    names = {id(module): name for name, module in model.named_modules()}
    seen: set[nn.Module] = set()
    for stack in layers:
        for inner, module in stack.named_modules(memo=seen):
            yield ".".join(filter(None, (names[id(stack)], inner))), module


def _layers(model: Any) -> list[Any]:
    """Returns the stacks of layers: the least nested module lists in the decoder that transformers names."""
    level = [model.get_decoder() or model]
    while level:
        children = [child for module in level for child in module.children()]
        if stacks := [child for child in children if isinstance(child, nn.ModuleList)]:
            return stacks
        level = children
    return [model]


def _is_linear(module: nn.Module) -> bool:
    """Whether a module maps its input as a matrix does. A router that returns a choice, for example, does not."""
    if not isinstance(module, nn.Linear):
        return isinstance(module, Conv1D)
    if type(module).forward is nn.Linear.forward or not _is_float(module.weight):
        return True
    x = torch.zeros(1, 2, module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    try:
        with torch.no_grad():
            out = module(x)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    return isinstance(out, torch.Tensor) and out.shape == (1, 2, module.out_features)


def _holds_experts(module: nn.Module) -> bool:
    """Whether a module holds stacks of matrices, one per expert."""
    stacks = [value for value in module.parameters(recurse=False) if value.ndim == 3]
    return (
        bool(stacks)
        and not type(module).__module__.startswith("torch.")  # a convolution
        and len(list(module.parameters())) == len(list(module.parameters(recurse=False)))
        and all(min(value.shape) > 1 and _is_float(value) for value in stacks)
    )


def _is_float(value: Any) -> bool:
    """Whether a tensor is not quantized."""
    return bool(value.is_floating_point() and value.element_size() > 1)


def _reaches_peft(model: nn.Module, leaf: str) -> bool:
    """Whether PEFT resolves a layer's name to that layer. In some mixtures of experts it resolves the name to experts
    that had it in transformers 4; there the layer's weight gets the adapter as a parameter."""
    config = LoraConfig(target_modules=[leaf])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:
        return False
    return leaf in (config.target_modules or ())


def _bypasses_adapter(model: nn.Module, name: str) -> bool:
    """Whether an adapter on a layer would have no effect: kernels of state-space mixers (Mamba) read the weights of all
    layers but in_proj directly."""
    parent, _, leaf = name.rpartition(".")
    mixer = model.get_submodule(parent)
    return hasattr(mixer, "A_log") and hasattr(mixer, "D") and leaf != "in_proj"


def _kind(name: str) -> str:
    """Returns a parameter's name without layer numbers and PEFT's wrappers."""
    parts = ("N" if part.isdigit() else part for part in name.split(".") if part != "base_layer")
    return ".".join(parts)


def _shortened(targets: Collection[str], names: Collection[str], parts: int) -> list[str]:
    """Returns names shortened to their last parts, where these are unique in the model."""

    def short(name: str) -> str:
        return ".".join(name.split(".")[-parts:])

    others = {short(name) for name in set(names) - set(targets)}
    return sorted({name if short(name) in others else short(name) for name in targets})
