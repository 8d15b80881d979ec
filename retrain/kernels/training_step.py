"""Forward and backward of a frozen model's layers with LoRA, in few operations and with few activations kept.

Runs in child processes alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from retuned.retrain.kernels.attention import TokenTree, TreeAttention

_CHUNK_LOGITS = 256
_CHUNK_SOFTMAX = 16  # rows of logits that stay in a CPU's cache from one step of the softmax to the next

Layer = tuple[Tensor, Tensor | None, Tensor]
"""Weight, bias and B of a linear layer with LoRA, B in the type of the weight."""


class LoraProjection(torch.autograd.Function):
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ with W and b frozen.

    PEFT computes the same from separate layers, which cast and keep more activations than the gradients of A, B and x
    need.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        scaled, b_cast = (a * scale).to(flat.dtype), b.to(flat.dtype)
        inner, (y,) = lora_outputs(flat, scaled, [(weight, bias, b_cast)])
        ctx.save_for_backward(flat, inner, weight, scaled, b_cast)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, a.dtype
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, weight, scaled, b = ctx.saved_tensors
        g, g_a, g_b = gradients[0].reshape(-1, weight.shape[0]), torch.empty_like(scaled), torch.empty_like(b)
        g_x = lora_gradients([g], flat, inner, scaled, [(weight, None, b)], g_a, [g_b], of_x=ctx.needs_input_grad[0])
        g_a, g_b = g_a.to(ctx.dtype).mul_(ctx.scale), g_b.to(ctx.dtype)
        return None if g_x is None else g_x.view(ctx.shape), None, None, g_a, g_b, None


def lora_outputs(x: Tensor, a: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, list[Tensor]]:
    """x Aᵀ, and what each of some layers makes of x, of shape (T, inputs).

    Args:
        a: each layer's A, scaled, one below the other: thin products cost what they cost to begin with.
    """
    inner, outputs = functional.linear(x, a), []
    parts = torch.split(inner, [b.shape[1] for _, _, b in layers], 1)
    for part, (weight, bias, b) in zip(parts, layers, strict=True):
        outputs.append(functional.linear(x, weight, bias).addmm_(part, b.t()))
    return inner, outputs


def lora_gradients(
    gradients: Sequence[Tensor],
    x: Tensor,
    inner: Tensor,
    a: Tensor,
    layers: Sequence[Layer],
    g_a: Tensor,
    g_bs: Sequence[Tensor],
    *,
    of_x: bool,
) -> Any:
    """The gradient of x, or None if not wanted; those of A, before its scale, and of each B go to `g_a` and `g_bs`.

    Args:
        gradients: of each layer's outputs.
        x, inner, a, layers: what `lora_outputs` took and gave.
    """
    g_inner, g_x = torch.empty_like(inner), None
    parts, g_parts = (torch.split(one, [b.shape[1] for _, _, b in layers], 1) for one in (inner, g_inner))
    for g, part, g_part, (weight, _, b), g_b in zip(gradients, parts, g_parts, layers, g_bs, strict=True):
        torch.mm(g, b, out=g_part)
        torch.mm(g.t(), part, out=g_b)
        if of_x:
            g_x = torch.mm(g, weight) if g_x is None else g_x.addmm_(g, weight)
    torch.mm(g_inner.t(), x, out=g_a)
    return None if g_x is None else g_x.addmm_(g_inner, a)


class RmsNorm(torch.autograd.Function):
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


class SwiGlu(torch.autograd.Function):
    """y = silu(g) u, of which silu(g) is computed again for the gradients, not kept (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        return gate_gradients(gradients[0], gate, up, functional.silu(gate))


def gate_gradients(g: Tensor, gate: Tensor, up: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Of gate and up; `active`, which is silu(gate), is written over."""
    return torch.ops.aten.silu_backward(g * up, gate), active.mul_(g)


class RotaryEmbedding(torch.autograd.Function):
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


class LinearCrossEntropy(torch.autograd.Function):
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


class _Part:
    """A function within another one; it stands for the context that autograd would give to it."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.saved_tensors: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors

    def __call__(self, *inputs: Any) -> Any:
        return self._function.forward(self, *inputs)

    def gradients(self, *of_outputs: Tensor) -> Any:
        return self._function.backward(self, *of_outputs)


class DecoderLayer(torch.autograd.Function):
    """y = h + MLP(norm(h)) with h = x + attention(norm(x)), LoRA on all its linear layers and the rest frozen
    (Touvron et al. 2023).

    Takes x of shape (1, T, H); cos and sin of positions, of shape (1, T, D); the tree of tokens and the scale of their
    scores; weight and epsilon of both norms; weight and bias of the linear layers for queries, keys, values,
    attention's output, gate, up and down; the scale of LoRA; A of each of these layers, and B of each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        tree: TokenTree,
        scaling: float,
        norms: Sequence[tuple[Tensor, float]],
        frozen: Sequence[tuple[Tensor, Tensor | None]],
        scale: float,
        *matrices: Tensor,
    ) -> Tensor:
        x, heads = hidden[0], (hidden.shape[1], -1, cos.shape[-1])
        cos, sin = cos[0][:, None], sin[0][:, None]
        adapters = _Adapters(matrices, scale)
        a, bs = adapters.cast(x.dtype)
        layers = [(weight, bias, b) for (weight, bias), b in zip(frozen, bs, strict=True)]
        first_norm, second_norm, turn, attend = map(_Part, (RmsNorm, RmsNorm, RotaryEmbedding, TreeAttention))

        normal = first_norm(x, *norms[0])
        in_qkv, (q, k, v) = lora_outputs(normal, a[0], layers[:3])
        q, k = turn(q.view(heads), k.view(heads), cos, sin)
        seen = attend(q, k, v.view(heads), tree, scaling).flatten(1)
        in_output, (middle,) = lora_outputs(seen, a[1], layers[3:4])
        second_normal = second_norm(middle.add_(x), *norms[1])
        in_gate_up, (gate, up) = lora_outputs(second_normal, a[2], layers[4:6])
        in_down, (y,) = lora_outputs(functional.silu(gate).mul_(up), a[3], layers[6:])
        ctx.adapters, ctx.layers, ctx.parts = adapters, layers, (first_norm, second_norm, turn, attend)
        ctx.kept = a, (in_qkv, in_output, in_gate_up, in_down), normal, seen, second_normal, gate, up
        return y.add_(middle)[None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        layers, (first_norm, second_norm, turn, attend) = ctx.layers, ctx.parts
        a, inner, normal, seen, second_normal, gate, up = ctx.kept
        ctx.parts = ctx.kept = None  # the graph lives on to the end of the step
        g, of_x = gradients[0][0], ctx.needs_input_grad[0]
        written, g_a, g_b = ctx.adapters.gradients(g)

        active = functional.silu(gate)  # wide to keep, cheap to compute again
        g_mlp = lora_gradients([g], active * up, inner[3], a[3], layers[6:], g_a[3], g_b[6:], of_x=True)
        g_gate_up = gate_gradients(g_mlp, gate, up, active)
        g_normal = lora_gradients(g_gate_up, second_normal, inner[2], a[2], layers[4:6], g_a[2], g_b[4:6], of_x=True)
        g_middle = second_norm.gradients(g_normal)[0].add_(g)
        g_seen = lora_gradients([g_middle], seen, inner[1], a[1], layers[3:4], g_a[1], g_b[3:4], of_x=True)
        g_q, g_k, g_v, *_ = attend.gradients(g_seen.unflatten(1, (attend.heads, -1)))
        g_q, g_k, *_ = turn.gradients(g_q, g_k)
        g_qkv = [part.flatten(1) for part in (g_q, g_k, g_v)]
        g_normal = lora_gradients(g_qkv, normal, inner[0], a[0], layers[:3], g_a[0], g_b[:3], of_x=of_x)
        g_x = first_norm.gradients(g_normal)[0].add_(g_middle)[None] if of_x else None
        return g_x, *[None] * 7, *ctx.adapters.split(written)


class _Adapters:
    """A and B of a decoder layer's linear layers in one tensor, so that one step casts them all, and their gradients.

    A's of layers that take the same input stand one below the other.
    """

    def __init__(self, matrices: Sequence[Tensor], scale: float) -> None:
        self._matrices, self._scale = matrices, scale
        count = len(matrices) // 2
        siblings = matrices[:3], matrices[3:4], matrices[4:6], matrices[6:count]
        self._shapes = [(sum(map(len, group)), group[0].shape[1]) for group in siblings]
        self._shapes += [(len(b), b.shape[1]) for b in matrices[count:]]
        self._scaled = sum(a.numel() for a in matrices[:count])

    def cast(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """A of siblings, scaled, and B of each layer, in a type."""
        flat = torch.cat([matrix.flatten() for matrix in self._matrices])
        flat[: self._scaled].mul_(self._scale)
        return self._pieces(flat.to(dtype))

    def gradients(self, like: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Where gradients are to be written: all in one, and as `cast` gives the matrices."""
        flat = like.new_empty(sum(matrix.numel() for matrix in self._matrices))
        return flat, *self._pieces(flat)

    def split(self, flat: Tensor) -> list[Tensor]:
        """The gradients that were written, each of its matrix."""
        flat = flat.to(self._matrices[0].dtype)
        flat[: self._scaled].mul_(self._scale)
        parts = torch.split(flat, [matrix.numel() for matrix in self._matrices])
        return [part.view_as(matrix) for part, matrix in zip(parts, self._matrices, strict=True)]

    def _pieces(self, flat: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        parts = torch.split(flat, [rows * columns for rows, columns in self._shapes])
        pieces = [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return pieces[:4], pieces[4:]
