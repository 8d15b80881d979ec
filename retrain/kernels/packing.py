"""Rows of tokens in one sequence, in which a shared prefix stands once. Runs in child processes alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from retuned.retrain.kernels.attention import TokenTree

_ROUND = 16
_BLOCK = 64


@dataclass(frozen=True)
class Encoded:
    """Token ids of a row. The completion ends with the end of the turn.

    Attributes:
        cut: turns or passages were left out of the prompt, so that the row fits.
    """

    row_id: str
    prompt: list[int]
    completion: list[int]
    cut: bool = False

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def ids(self) -> list[int]:
        """All of it."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Pack:
    """Several rows in one sequence, where the tokens that a row begins with as the row before it stand once.

    Each token attends to the tokens of its own row alone, at the positions that it would have alone, so that every
    completion token sees what it sees in the padded batch. Attention is causal: what two rows begin with cannot see
    how they go on, and its hidden states are the same in both. Rows in sorted order share the most.

    Attributes:
        ids, positions: of the tokens, shape (T,), T rounded up.
        predicting: indices of the tokens whose successors are the completion tokens, row after row.
        targets: those completion tokens.
    """

    ids: Tensor
    positions: Tensor
    tree: TokenTree
    predicting: Tensor
    targets: Tensor


def pack(rows: Sequence[Encoded], pad: int) -> Pack:
    """Rows as one pack."""
    ids: list[int] = []
    positions: list[int] = []
    blocks: list[tuple[list[int], list[int]]] = []
    predicting: list[int] = []
    path: list[int] = []
    before: list[int] = []
    for number, row in enumerate(rows):
        own = row.ids
        shared = same_start(before, own)
        new = list(range(len(ids), len(ids) + len(own) - shared))
        path = path[:shared] + new
        ids += own[shared:]
        positions += range(shared, len(own))
        # Blocks of even size waste least: what the next row shares is one of its own, and a long row has several.
        ahead = same_start(own, rows[number + 1].ids) if number + 1 < len(rows) else 0
        stops = sorted({*range(_BLOCK, len(new), _BLOCK), max(0, ahead - shared), len(new)} - {0})
        blocks += [(new[start:stop], path[: shared + stop]) for start, stop in pairwise([0, *stops])]
        predicting += path[len(row.prompt) - 1 : len(own) - 1]
        before = own
    gap = -len(ids) % _ROUND
    if gap:
        # Kernels are chosen by shape: a few round lengths keep them warm.
        padding = list(range(len(ids), len(ids) + gap))
        blocks.append((padding, padding))
        ids, positions = ids + [pad] * gap, positions + list(range(gap))
    targets = [token for row in rows for token in row.completion]
    return Pack(
        torch.tensor(ids), torch.tensor(positions), _tree(blocks), torch.tensor(predicting), torch.tensor(targets)
    )


def same_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two texts share."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _tree(blocks: Sequence[tuple[list[int], list[int]]]) -> TokenTree:
    """From each block's queries and the path down to its last one."""
    widest = max(len(queries) for queries, _ in blocks)
    longest = -(-max(len(path) for _, path in blocks) // _ROUND) * _ROUND
    places = [0] * sum(len(queries) for queries, _ in blocks)
    for number, (queries, _) in enumerate(blocks):
        for i, token in enumerate(queries):
            places[token] = number * widest + i
    last = torch.tensor(
        [[*range(len(path) - len(queries), len(path)), *[0] * (widest - len(queries))] for queries, path in blocks]
    )
    return TokenTree(
        queries=torch.tensor([token for queries, _ in blocks for token in _filled(queries, widest)]),
        keys=torch.tensor([token for _, path in blocks for token in _filled(path, longest)]),
        unseen=(last[:, :, None] < torch.arange(longest))[:, None],
        places=torch.tensor(places),
    )


def _filled(tokens: list[int], length: int) -> list[int]:
    return tokens + [0] * (length - len(tokens))
