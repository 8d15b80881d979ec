"""Cross-entropy of a frozen head, without its logits. Runs in child processes alone."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_CHUNK_LOGITS = 256
_CHUNK_SOFTMAX = 16  # rows of logits that stay in a CPU's cache from one step of the softmax to the next


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
