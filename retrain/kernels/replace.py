"""Replaces the forward of a model's layers by one that computes the same in fewer operations.

Runs in child processes alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from retuned.retrain.kernels.packing import Encoded, pack
from retuned.retrain.kernels.supported import supported
from retuned.retrain.kernels.training_step import DecoderLayer, LoraProjection, RmsNorm, SwiGlu

Adapted = tuple[Tensor, Tensor | None, Tensor, Tensor, float]
"""Weight, bias, A, B and scale of a linear layer with LoRA."""


def replace_layers(model: Any) -> int:
    """Let the layers of a supported model compute in fewer operations; returns how many adapted ones do.

    Layers with dropout, DoRA, a LoRA bias, a quantized or a transposed weight keep PEFT's forward, and so does any call
    with adapters off, merged, mixed or several at once.
    """
    if not supported(model):
        return 0
    count = 0
    for module in model.modules():
        if isinstance(module, LoraLinear) and _is_plain(module):
            module.forward = _lora_forward(module)
            count += 1
        elif _is_frozen_norm(module):
            module.forward = _norm_forward(module)
        elif _is_swiglu(module, model.config):
            module.forward = _swiglu_forward(module)
    for module in model.modules():
        _replace_decoder_layer(module)  # compared with its parts, which are replaced by now
    return count


def _replace_decoder_layer(layer: Any) -> None:
    """Let a layer as Llama has it compute a pack in one operation, unless its options or another forward forbid it."""
    try:
        attend, mlp = layer.self_attn, layer.mlp
        modules = attend.q_proj, attend.k_proj, attend.v_proj, attend.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
        norms = layer.input_layernorm, layer.post_attention_layernorm
        size, scaling = attend.head_dim, attend.scaling
    except AttributeError:
        return
    adapted = all(isinstance(module, LoraLinear) and _is_plain(module) for module in modules)
    if not adapted or not all(map(_is_frozen_norm, norms)) or "forward" in vars(layer):
        return
    plain = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        tree, turns = kwargs.get("tree"), kwargs.get("position_embeddings") or ()
        found = [_adapted(module) for module in modules] if tree and turns and len(args) == 1 else []
        linear = [one for one in found if one is not None]
        if len(linear) < len(modules) or any(part.shape[-1] != size or part.dtype != args[0].dtype for part in turns):
            return plain(*args, **kwargs)
        of_norms = [(norm.weight, norm.variance_epsilon) for norm in norms]
        weights, biases, a, b, scales = zip(*linear, strict=True)
        if len(set(scales)) > 1:
            return plain(*args, **kwargs)
        frozen = list(zip(weights, biases, strict=True))
        return DecoderLayer.apply(*args, *turns, tree, scaling, of_norms, frozen, scales[0], *a, *b)  # type: ignore[no-untyped-call]

    if _agree(plain, forward, norms[0].weight, size):
        layer.forward = forward


def _agree(one: Callable[..., Tensor], other: Callable[..., Tensor], like: Tensor, head_size: int) -> bool:
    """Whether two forwards of a decoder layer add the same to their input.

    Args:
        like: a tensor of the input's type and last dimension.
    """
    rows = pack([Encoded("", [0, 1], [2, 3]), Encoded("", [0, 1], [4])], 0)
    count = len(rows.ids)
    x = torch.linspace(-99, 99, count * len(like)).sin().view(1, count, -1).to(like)
    angle = torch.linspace(0, 6, count * head_size).view(1, count, -1)
    given = {"tree": rows.tree.to(like.device), "position_embeddings": (angle.cos().to(like), angle.sin().to(like))}
    with torch.no_grad():
        added, expected = other(x, **given) - x, one(x, **given) - x
    apart = torch.linalg.vector_norm((added - expected).float()) / torch.linalg.vector_norm(expected.float())
    return bool(apart < (1e-2 if like.dtype == torch.bfloat16 else 1e-4))


def _is_frozen_norm(module: Any) -> bool:
    return (
        type(module).__name__.endswith("RMSNorm")
        and hasattr(module, "variance_epsilon")
        and not module.weight.requires_grad
    )


def _is_swiglu(module: Any, config: Any) -> bool:
    return hasattr(module, "gate_proj") and hasattr(module, "act_fn") and config.hidden_act == "silu"


def _norm_forward(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return RmsNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-any-return, no-untyped-call]

    return forward


def _swiglu_forward(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return module.down_proj(SwiGlu.apply(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-any-return, no-untyped-call]

    return forward


def _is_plain(module: Any) -> bool:
    base = module.get_base_layer()
    return (
        type(base) is nn.Linear
        and not module.fan_in_fan_out
        and not module.lora_variant
        and all(isinstance(dropout, nn.Identity) for dropout in module.lora_dropout.values())
        and not any(layer.bias is not None for layer in module.lora_B.values())
    )


def _lora_forward(module: Any) -> Any:
    plain = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        layer = None if args or kwargs else _adapted(module)
        return plain(x, *args, **kwargs) if layer is None else LoraProjection.apply(x, *layer)  # type: ignore[no-untyped-call]

    return forward


def _adapted(module: Any) -> Adapted | None:
    """What an adapted layer computes with, if one adapter is on and not merged."""
    active = module.active_adapters
    if module.disable_adapters or module.merged or len(active) != 1 or active[0] not in module.lora_A:
        return None
    name, base = active[0], module.get_base_layer()
    return base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
