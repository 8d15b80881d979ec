"""Lets the layers of a model compute in fewer steps, where that says the same.

Runs in child processes alone.
"""

import inspect
from collections.abc import Callable
from functools import cache
from types import FunctionType, MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from retuned.retrain.kernels.packing import Encoded, pack
from retuned.retrain.kernels.training_step import FusedDecoderLayer, FusedGate, FusedLora, FusedNorm, FusedRotary

_ROTARY = "apply_rotary_pos_emb"

Adapted = tuple[Tensor, Tensor | None, Tensor, Tensor, float]
"""Weight, bias, A, B and scale of a linear layer with LoRA."""


def fuse(model: Any) -> int:
    """Let layers compute in fewer steps where that says the same; returns how many adapted ones do.

    Layers with dropout, DoRA, a LoRA bias, a quantized or a transposed weight keep PEFT's forward, and so does any call
    with adapters off, merged, mixed or several at once.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, LoraLinear) and _plain(module):
            module.forward = _fused_forward(module)
            count += 1
        elif _frozen_norm(module):
            _replace(module, _fused_norm(module), module.weight)
        elif hasattr(module, "gate_proj") and hasattr(module, "act_fn"):
            _replace(module, _fused_gate(module), model.get_input_embeddings().weight)
        else:
            _replace_rotary(module)
    for module in model.modules():
        _replace_decoder_layer(module)  # tried against its parts, which are exchanged by now
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        # A frozen bf16 head on a slice of the hidden states takes a kernel 200 times slower and copies the weight.
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    return count


def _replace(module: Any, forward: Callable[[Tensor], Tensor], like: Tensor) -> None:
    """Exchange a layer's forward if the other one says the same: layers of one name differ between models.

    Args:
        like: of the type and the last dimension of what the layer takes.
    """
    trial = torch.linspace(-2, 2, like.shape[-1]).to(like)[None]
    with torch.no_grad():
        try:
            same = torch.allclose(module(trial), forward(trial), rtol=1e-2 if like.dtype == torch.bfloat16 else 1e-4)
        except (RuntimeError, AttributeError, TypeError):
            return
    if same:
        module.forward = forward


def _replace_rotary(module: Any) -> None:
    """Exchange how an attention layer turns queries and keys by their positions, unless its forward is another's."""
    kind: Any = type(module)
    if "forward" not in vars(module) and (forward := _with_fused_rotary(kind)):
        module.forward = MethodType(forward, module)


@cache
def _with_fused_rotary(kind: Any) -> FunctionType | None:
    """The forward of such layers with positions in one step; None if they have none, or the step says something else.

    They are turned by a function of the layer's Python module: this forward finds another one under its name.
    """
    forward = inspect.unwrap(kind.forward)
    if _ROTARY not in forward.__code__.co_names:
        return None
    plain = forward.__globals__[_ROTARY]
    query, angle = torch.linspace(-2, 2, 48).view(1, 2, 3, 8), torch.linspace(0, 6, 24).view(1, 3, 8)

    def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        if more or named or cos.shape[-1] != query.shape[-1] or cos.dtype != query.dtype:
            return plain(query, key, cos, sin, *more, **named)
        return FusedRotary.apply(query, key, cos[:, None], sin[:, None])  # type: ignore[no-untyped-call]

    trial = query, query[:, :1], angle.cos(), angle.sin()
    try:
        same = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain(*trial), rotary(*trial), strict=True))
    except (RuntimeError, TypeError, ValueError):
        return None
    if not same:
        return None
    names = forward.__globals__ | {_ROTARY: rotary}
    own = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    own.__kwdefaults__ = forward.__kwdefaults__
    return own


def _replace_decoder_layer(layer: Any) -> None:
    """Exchange how a layer of Llama's kind computes on a pack, if one step says the same and its forward is its own."""
    try:
        attend, mlp = layer.self_attn, layer.mlp
        modules = attend.q_proj, attend.k_proj, attend.v_proj, attend.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
        norms = layer.input_layernorm, layer.post_attention_layernorm
        size, scaling = attend.head_dim, attend.scaling
    except AttributeError:
        return
    adapted = all(isinstance(module, LoraLinear) and _plain(module) for module in modules)
    if not adapted or not all(map(_frozen_norm, norms)) or "forward" in vars(layer):
        return
    plain = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        paths, turns = kwargs.get("paths"), kwargs.get("position_embeddings") or ()
        found = [_adapted(module) for module in modules] if paths and turns and len(args) == 1 else []
        linear = [one for one in found if one is not None]
        if len(linear) < len(modules) or any(part.shape[-1] != size or part.dtype != args[0].dtype for part in turns):
            return plain(*args, **kwargs)
        of_norms = [(norm.weight, norm.variance_epsilon) for norm in norms]
        weights, biases, a, b, scales = zip(*linear, strict=True)
        if len(set(scales)) > 1:
            return plain(*args, **kwargs)
        frozen = list(zip(weights, biases, strict=True))
        return FusedDecoderLayer.apply(*args, *turns, paths, scaling, of_norms, frozen, scales[0], *a, *b)  # type: ignore[no-untyped-call]

    if _say_the_same(plain, forward, norms[0].weight, size):
        layer.forward = forward


def _say_the_same(one: Callable[..., Tensor], other: Callable[..., Tensor], like: Tensor, head_size: int) -> bool:
    """Do two forwards of a decoder layer add the same to what they are given?

    Args:
        like: of the type and the last dimension of what the layer takes.
    """
    rows = pack([Encoded("", [0, 1], [2, 3]), Encoded("", [0, 1], [4])], 0)
    count = len(rows.ids)
    x = torch.linspace(-99, 99, count * len(like)).sin().view(1, count, -1).to(like)
    angle = torch.linspace(0, 6, count * head_size).view(1, count, -1)
    given = {"paths": rows.paths.to(like.device), "position_embeddings": (angle.cos().to(like), angle.sin().to(like))}
    with torch.no_grad():
        try:
            added, expected = other(x, **given) - x, one(x, **given) - x
        except (RuntimeError, AttributeError, TypeError, ValueError):
            return False
    apart = torch.linalg.vector_norm((added - expected).float()) / torch.linalg.vector_norm(expected.float())
    return bool(apart < (1e-2 if like.dtype == torch.bfloat16 else 1e-4))


def _frozen_norm(module: Any) -> bool:
    return (
        type(module).__name__.endswith("RMSNorm")
        and hasattr(module, "variance_epsilon")
        and not module.weight.requires_grad
    )


def _fused_norm(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return FusedNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-any-return, no-untyped-call]

    return forward


def _fused_gate(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return module.down_proj(FusedGate.apply(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-any-return, no-untyped-call]

    return forward


def _plain(module: Any) -> bool:
    base = module.get_base_layer()
    return (
        type(base) is nn.Linear
        and not module.fan_in_fan_out
        and not module.lora_variant
        and all(isinstance(dropout, nn.Identity) for dropout in module.lora_dropout.values())
        and not any(layer.bias is not None for layer in module.lora_B.values())
    )


def _fused_forward(module: Any) -> Any:
    plain = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        layer = None if args or kwargs else _adapted(module)
        return plain(x, *args, **kwargs) if layer is None else FusedLora.apply(x, *layer)  # type: ignore[no-untyped-call]

    return forward


def _adapted(module: Any) -> Adapted | None:
    """What an adapted layer computes with, if one adapter is on and not merged."""
    active = module.active_adapters
    if module.disable_adapters or module.merged or len(active) != 1 or active[0] not in module.lora_A:
        return None
    name, base = active[0], module.get_base_layer()
    return base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
