"""Tree attention: over a pack of rows, in which each token sees the path of tokens that it would see alone.

Runs in child processes alone.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from retuned.retrain.kernels.supported import supported

NAME = "tree_attention"


@dataclass(frozen=True)
class TokenTree:
    """Rows as a tree of tokens, in which each attends to itself and its ancestors, as B blocks of Q queries and K keys.

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
    _layouts: dict[tuple[int, int, torch.dtype], "Layout"] = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: torch.device) -> "TokenTree":
        """The same on a device."""
        return TokenTree(self.queries.to(device), self.keys.to(device), self.unseen.to(device), self.places.to(device))

    def layout(self, heads: int, key_heads: int, dtype: torch.dtype) -> "Layout":
        """The same for matrices of (T·heads, D); made once for all layers."""
        wanted = (heads, key_heads, dtype)
        if wanted not in self._layouts:
            self._layouts[wanted] = _layout(self, *wanted)
        return self._layouts[wanted]


@dataclass(frozen=True)
class Layout:
    """How blocks are made of the rows of a matrix of (T·heads, D), and rows of blocks.

    The queries of all heads that share a key stand in one block, G·Q of them.

    Attributes:
        queries: the rows of a block's queries, shape (B·heads·Q,).
        keys: the rows of its keys and values, shape (B·key heads·K,).
        bias: what is added to scores, -inf for unseen keys, shape (B·key heads, G·Q, K).
        places: where each row of queries stands in the blocks, shape (T·heads,).
        to_places: sums rows of queries into blocks; none for what is padded.
        to_keys: sums a block's rows of keys into the rows that they are of.
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor
    places: Tensor
    to_places: "Sums"
    to_keys: "Sums"


@dataclass(frozen=True)
class Sums:
    """The transposed of `index_select`: rows are added to where they were taken from, in float32, in a fixed order."""

    order: Tensor
    starts: Tensor

    @classmethod
    def over(cls, index: Tensor, count: int) -> "Sums":
        """Of an index into `count` rows."""
        counts = torch.bincount(index, minlength=count)
        return cls(torch.argsort(index, stable=True), counts.cumsum(0) - counts)

    def __call__(self, rows: Tensor) -> Tensor:
        # The kernel of an embedding's bags is ten times faster than `index_add_`, and needs no copy in float32.
        return functional.embedding_bag(self.order, rows, self.starts, mode="sum")


def _layout(tree: TokenTree, heads: int, key_heads: int, dtype: torch.dtype) -> Layout:
    blocks, _, width, length = tree.unseen.shape
    head = torch.arange(heads, device=tree.places.device)
    queries = tree.queries.view(blocks, 1, width) * heads + head[:, None]
    keys = tree.keys.view(blocks, 1, length) * key_heads + head[:key_heads, None]
    places = (tree.places // width * heads + head[:, None]) * width + tree.places % width
    places, keys = places.T.flatten(), keys.flatten()
    bias = torch.zeros_like(tree.unseen, dtype=dtype).masked_fill_(tree.unseen, -torch.inf)
    return Layout(
        queries.flatten(),
        keys,
        bias.expand(-1, heads, -1, -1).reshape(blocks * key_heads, -1, length),
        places,
        Sums.over(places, queries.numel()),
        Sums.over(keys, len(tree.places) * key_heads),
    )


def install(model: Any) -> None:
    """Let a supported model compute tree attention where it is given a `tree`, and torch's own attention elsewhere."""
    if supported(model):
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
    tree: TokenTree | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """As transformers calls attention: query (1, heads, T, D) and the others to (1, T, heads, D)."""
    if tree is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)  # type: ignore[no-any-return]
    # In mixed precision, positions turn queries and keys into float32.
    query, key, value = (part[0].transpose(0, 1).to(value.dtype) for part in (query, key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return TreeAttention.apply(query, key, value, tree, scaling)[None], None  # type: ignore[no-untyped-call]


class TreeAttention(torch.autograd.Function):
    """softmax(q kᵀ s) v in blocks; q of shape (T, heads, D), k and v of (T, heads of keys, D)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: TokenTree, scaling: float) -> Tensor:
        heads = query.shape[1]
        layout = tree.layout(heads, key.shape[1], query.dtype)
        blocks, width, length = layout.bias.shape
        q = query.flatten(0, 1).index_select(0, layout.queries).view(blocks, width, -1)
        k, v = (part.flatten(0, 1).index_select(0, layout.keys).view(blocks, length, -1) for part in (key, value))
        scores = torch.baddbmm(layout.bias, q, k.transpose(1, 2), alpha=scaling)
        shares = torch.softmax(scores, dim=-1)  # computed in float32 whatever comes in and goes out
        ctx.save_for_backward(q, k, v, shares)
        ctx.layout, ctx.scaling, ctx.heads, ctx.key_heads = layout, scaling, heads, key.shape[1]
        return torch.bmm(shares, v).flatten(0, 1).index_select(0, layout.places).view(-1, heads, v.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shares = ctx.saved_tensors
        layout: Layout = ctx.layout
        blocks, width, _ = q.shape
        g = layout.to_places(gradients[0].flatten(0, 1)).view(blocks, width, -1)
        g_scores = torch.bmm(g, v.transpose(1, 2))
        g_scores = torch._softmax_backward_data(g_scores, shares, -1, shares.dtype).mul_(ctx.scaling)
        g_q = torch.bmm(g_scores, k).flatten(0, 1).index_select(0, layout.places).view(-1, ctx.heads, q.shape[-1])
        g_k, g_v = (
            layout.to_keys(torch.bmm(part.transpose(1, 2), other).flatten(0, 1)).view(
                -1, ctx.key_heads, other.shape[-1]
            )
            for part, other in ((g_scores, q), (shares, g))
        )
        return g_q, g_k, g_v, None, None
