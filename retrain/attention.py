"""Attention over a pack of rows, each of which sees the path of tokens that it would see alone.

Runs in child processes alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "paths"


@dataclass(frozen=True)
class Paths:
    """Which tokens of a pack attend to which, as B blocks of Q queries and K keys each.

    A pack of T tokens needs B·Q·K scores so, where a mask over the whole pack needs T².

    Attributes:
        queries: indices in the pack, shape (B·Q,); padded with 0.
        keys: indices in the pack of the path down to a block's last query, shape (B·K,); padded with 0.
        unseen: keys that come after a query, shape (B, 1, Q, K); every query sees one key at least.
        places: where each token stands among the queries, shape (T,).
    """

    queries: Tensor
    keys: Tensor
    unseen: Tensor
    places: Tensor

    def to(self, device: torch.device) -> "Paths":
        """The same on a device."""
        return Paths(*(value.to(device) for value in (self.queries, self.keys, self.unseen, self.places)))


def use(model: Any) -> None:
    """Let a model attend along paths where it is given `paths`, and by torch's fused kernel elsewhere.

    A model whose attention cannot be exchanged, or caps its scores, stays as it is.
    """
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        return
    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    paths: Paths | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """As transformers calls attention: query (1, heads, T, D) and the others to (1, T, heads, D)."""
    if paths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)  # type: ignore[no-any-return]
    # In mixed precision, positions turn queries and keys into float32.
    query, key, value = (part[0].transpose(0, 1).to(value.dtype) for part in (query, key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return PathAttention.apply(query, key, value, paths, scaling)[None], None  # type: ignore[no-untyped-call]


class PathAttention(torch.autograd.Function):
    """softmax(q kᵀ s) v in blocks; q of shape (T, heads, D), k and v of (T, heads of keys, D)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, paths: Paths, scaling: float) -> Tensor:
        blocks, _, width, _ = paths.unseen.shape
        q = _blocks_of_queries(query.index_select(0, paths.queries), blocks, key.shape[1])
        k, v = (_blocks_of_keys(part.index_select(0, paths.keys), blocks) for part in (key, value))
        scores = torch.bmm(q, k.transpose(1, 2)).mul_(scaling)
        scores.view(blocks, -1, width, k.shape[1]).masked_fill_(paths.unseen, -torch.inf)
        shares = torch.softmax(scores, dim=-1)  # computed in float32 whatever comes in and goes out
        seen = torch.bmm(shares, v)
        ctx.save_for_backward(q, k, v, shares)
        ctx.paths, ctx.scaling, ctx.tokens = paths, scaling, query.shape[0]
        return _tokens(seen, blocks, width, query.shape[1]).index_select(0, paths.places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shares = ctx.saved_tensors
        paths: Paths = ctx.paths
        blocks, _, width, _ = paths.unseen.shape
        (gradient,) = gradients
        heads, size = gradient.shape[1:]
        spread = gradient.new_zeros(blocks * width, heads, size).index_copy_(0, paths.places, gradient)
        g = _blocks_of_queries(spread, blocks, k.shape[0] // blocks)
        g_v = torch.bmm(shares.transpose(1, 2), g)
        g_scores = torch.bmm(g, v.transpose(1, 2))
        g_scores = torch._softmax_backward_data(g_scores, shares, -1, shares.dtype).mul_(ctx.scaling)
        g_q = _tokens(torch.bmm(g_scores, k), blocks, width, heads).index_select(0, paths.places)
        g_k, g_v = (
            _gathered(part, blocks, paths.keys, ctx.tokens) for part in (torch.bmm(g_scores.transpose(1, 2), q), g_v)
        )
        return g_q, g_k, g_v, None, None


def _blocks_of_queries(query: Tensor, blocks: int, key_heads: int) -> Tensor:
    """(B·Q, heads, D) to (B·key heads, group·Q, D): the queries of all heads that share a key stand in one matrix."""
    heads, size = query.shape[1:]
    parts = query.view(blocks, -1, key_heads, heads // key_heads, size).permute(0, 2, 3, 1, 4)
    return parts.reshape(blocks * key_heads, -1, size)


def _tokens(seen: Tensor, blocks: int, width: int, heads: int) -> Tensor:
    """The way back: (B·key heads, group·Q, D) to (B·Q, heads, D)."""
    parts = seen.view(blocks, heads, width, -1).transpose(1, 2)
    return parts.reshape(blocks * width, heads, -1)


def _blocks_of_keys(key: Tensor, blocks: int) -> Tensor:
    """(B·K, key heads, D) to (B·key heads, K, D)."""
    heads, size = key.shape[1:]
    return key.view(blocks, -1, heads, size).transpose(1, 2).reshape(blocks * heads, -1, size)


def _gathered(gradient: Tensor, blocks: int, keys: Tensor, tokens: int) -> Tensor:
    """(B·key heads, K, D) to (T, key heads, D): a token gets the sum over all blocks that saw it."""
    parts = gradient.view(blocks, -1, *gradient.shape[1:]).transpose(1, 2).flatten(0, 1)
    total = torch.zeros(tokens, *parts.shape[1:], dtype=torch.float32, device=gradient.device)
    return total.index_add_(0, keys, parts.float()).to(gradient.dtype)
