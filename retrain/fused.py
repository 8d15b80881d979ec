"""Arithmetic of a frozen model's layers in few steps, with few of them kept for the gradients.

Runs in child processes alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from retuned.retrain.attention import PathAttention, Paths

_CHUNK_LOGITS = 256
_CHUNK_SOFTMAX = 16  # rows of logits that stay in a CPU's cache from one step of the softmax to the next


class FusedLora(torch.autograd.Function):
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ with W and b frozen.

    PEFT computes the same from separate layers, which cast and keep more activations than the gradients of A, B and x
    need.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        a_cast, b_cast = a.to(flat.dtype), b.to(flat.dtype)
        y = functional.linear(flat, weight, bias)
        inner = flat @ a_cast.T
        y.addmm_(inner, b_cast.T, alpha=scale)
        ctx.save_for_backward(flat, inner, weight, a_cast, b_cast)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, a.dtype
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        g_x, g_a, g_b = lora_gradients(ctx, gradients[0])
        return None if g_x is None else g_x.view(ctx.shape), None, None, g_a, g_b, None


def lora_gradients(ctx: Any, g: Tensor, *, onto: Tensor | None = None) -> tuple[Any, Tensor, Tensor]:
    """The gradients of x, A and B; that of x as a matrix, added to `onto` if there is one, or None if not wanted."""
    flat, inner, weight, a, b = ctx.saved_tensors
    g = g.reshape(-1, weight.shape[0])
    g_b = (g.T @ inner).mul_(ctx.scale).to(ctx.dtype)
    g_inner = (g @ b).mul_(ctx.scale)
    g_a = (g_inner.T @ flat).to(ctx.dtype)
    if not ctx.needs_input_grad[0]:
        return None, g_a, g_b
    g_x = g @ weight if onto is None else onto.addmm_(g, weight)
    return g_x.addmm_(g_inner, a), g_a, g_b


class FusedNorm(torch.autograd.Function):
    """y = w x / rms(x) with w frozen, as Llama has it: in float32, rounded before w (Zhang and Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(epsilon))
        ctx.save_for_backward(x, scale, weight)
        return (x * scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight = ctx.saved_tensors
        g = (gradients[0] * weight).float()
        normal = x * scale
        along = torch.linalg.vecdot(g, normal).div_(-x.shape[-1])[..., None]
        return g.addcmul_(normal, along).mul_(scale).to(x.dtype), None, None


class FusedGate(torch.autograd.Function):
    """y = silu(g) u, of which silu(g) is computed again for the gradients, not kept (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        (g,) = gradients
        return torch.ops.aten.silu_backward(g * up, gate), functional.silu(gate).mul_(g)


class FusedRotary(torch.autograd.Function):
    """Queries and keys turned by their positions, each half of a head with the other, as Llama has it (Su et al. 2021).

    Queries and keys of shape (1, heads, T, D) or (T, heads, D); cos and sin with one head.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        low, high = sin.chunk(2, -1)
        return _turned(query, cos, -low, high), _turned(key, cos, -low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        low, high = sin.chunk(2, -1)
        return *(_turned(g, cos, high, -low) for g in gradients), None, None


def _turned(x: Tensor, cos: Tensor, of_second: Tensor, of_first: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    turned = x * cos
    to_first, to_second = turned.chunk(2, -1)
    to_first.addcmul_(second, of_second)
    to_second.addcmul_(first, of_first)
    return turned


class FusedCrossEntropy(torch.autograd.Function):
    """The cross-entropy of each token with the logits of a frozen head, which are never all there at once.

    A token's gradient depends on its own logits alone, and is computed while they are there (Hsu et al. 2024).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        found, gradients = [], []
        for part, wanted in zip(torch.split(hidden, _CHUNK_LOGITS), torch.split(targets, _CHUNK_LOGITS), strict=True):
            logits = functional.linear(part, weight, bias)
            places = torch.split(wanted[:, None], _CHUNK_SOFTMAX)
            for rows, place in zip(torch.split(logits, _CHUNK_SOFTMAX), places, strict=True):
                values = rows.float()
                picked, top = values.gather(1, place), values.amax(1, keepdim=True)
                total = values.sub_(top).exp_().sum(1, keepdim=True)
                found.append((total.log() + top - picked)[:, 0])
                if ctx.needs_input_grad[0]:
                    rows.copy_(values.div_(total).scatter_add_(1, place, torch.full_like(picked, -1)))
            if ctx.needs_input_grad[0]:
                gradients.append(logits @ weight)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (per_token,) = ctx.saved_tensors
        return per_token * gradients[0][:, None].to(per_token.dtype), None, None, None


Adapted = tuple[Tensor, Tensor | None, Tensor, Tensor, float]
"""Weight, bias, A, B and scale of a linear layer with LoRA."""


class _Part:
    """A function within another one; it stands for the context that autograd would give to it."""

    def __init__(self, function: Any, *, of_inputs: bool = True) -> None:
        """`of_inputs`: whether gradients of what comes into it are wanted."""
        self._function = function
        self.needs_input_grad = (of_inputs,)
        self.saved_tensors: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors

    def __call__(self, *inputs: Any) -> Any:
        return self._function.forward(self, *inputs)

    def gradients(self, *of_outputs: Tensor) -> Any:
        return self._function.backward(self, *of_outputs)


class FusedDecoderLayer(torch.autograd.Function):
    """y = h + MLP(norm(h)) with h = x + attention(norm(x)), LoRA on all its linear layers and the rest frozen
    (Touvron et al. 2023).

    Takes x of shape (1, T, H); cos and sin of positions, of shape (1, T, D); the paths of tokens and the scale of their
    scores; weight and epsilon of both norms; weight, bias, A, B and scale of the linear layers for queries, keys,
    values, attention's output, gate, up and down; and A and B of each of them once more, for autograd to see.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        paths: Paths,
        scaling: float,
        norms: Sequence[tuple[Tensor, float]],
        linear: Sequence[Adapted],
        *_: Tensor,
    ) -> Tensor:
        first_norm, second_norm, turn, attend = map(_Part, (FusedNorm, FusedNorm, FusedRotary, PathAttention))
        query, key, value = (_Part(FusedLora, of_inputs=ctx.needs_input_grad[0]) for _ in range(3))
        output, gate, up, activate, down = map(_Part, (FusedLora, FusedLora, FusedLora, FusedGate, FusedLora))
        to_query, to_key, to_value, to_output, to_gate, to_up, to_down = linear
        x, (cos, sin), heads = hidden[0], (part[0][:, None] for part in (cos, sin)), (-1, cos.shape[-1])

        normal = first_norm(x, *norms[0])
        q, k = turn(query(normal, *to_query).unflatten(1, heads), key(normal, *to_key).unflatten(1, heads), cos, sin)
        seen = attend(q, k, value(normal, *to_value).unflatten(1, heads), paths, scaling)
        middle = output(seen.flatten(1), *to_output).add_(x)
        normal = second_norm(middle, *norms[1])
        inner = activate(gate(normal, *to_gate), up(normal, *to_up))
        ctx.parts = first_norm, query, key, value, turn, attend, output, second_norm, gate, up, activate, down
        return down(inner, *to_down).add_(middle)[None]  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        first_norm, query, key, value, turn, attend, output, second_norm, gate, up, activate, down = ctx.parts
        ctx.parts = None  # the graph lives on to the end of the step
        g = gradients[0][0]
        g_inner, *of_down = lora_gradients(down, g)
        g_gate, g_up = activate.gradients(g_inner)
        g_normal, *of_gate = lora_gradients(gate, g_gate)
        g_normal, *of_up = lora_gradients(up, g_up, onto=g_normal)
        g_middle = second_norm.gradients(g_normal)[0].add_(g)
        g_seen, *of_output = lora_gradients(output, g_middle)
        g_q, g_k, g_v, *_ = attend.gradients(g_seen.unflatten(1, (attend.heads, -1)))
        g_q, g_k, *_ = turn.gradients(g_q, g_k)
        g_normal, *of_query = lora_gradients(query, g_q.flatten(1))
        g_normal, *of_key = lora_gradients(key, g_k.flatten(1), onto=g_normal)
        g_normal, *of_value = lora_gradients(value, g_v.flatten(1), onto=g_normal)
        g_x = None if g_normal is None else first_norm.gradients(g_normal)[0].add_(g_middle)[None]
        return g_x, *[None] * 6, *of_query, *of_key, *of_value, *of_output, *of_gate, *of_up, *of_down
