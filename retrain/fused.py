"""Arithmetic of a frozen model's layers in few steps, with few of them kept for the gradients.

Runs in child processes alone.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

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
        flat, inner, weight, a, b = ctx.saved_tensors
        g = gradients[0].reshape(-1, weight.shape[0])
        g_b = (g.T @ inner).mul_(ctx.scale).to(ctx.dtype)
        g_inner = (g @ b).mul_(ctx.scale)
        g_a = (g_inner.T @ flat).to(ctx.dtype)
        g_x = (g @ weight).addmm_(g_inner, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return g_x, None, None, g_a, g_b, None


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

    All of shape (1, heads, T, D), cos and sin with one head.
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
