"""From rows to tensors and to a loss: the plain padded batch, and the packed one that computes the same faster.

Runs in child processes alone.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from retuned.retrain.attention import Paths
from retuned.retrain.fused import FusedCrossEntropy
from retuned.retrain.templates import prompt_and_whole, same_text, with_context

IGNORED = -100
_ROUND = 16
_BLOCK = 64
_CHUNK_TOKENS = {True: 1_024, False: 4_096}


@dataclass(frozen=True)
class Encoded:
    """Token ids of a row. The completion ends with the end of the turn."""

    row_id: str
    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def ids(self) -> list[int]:
        """All of it."""
        return self.prompt + self.completion


def encode(tokenizer: Any, row: dict[str, Any], max_length: int, *, context: bool = True) -> Encoded:
    """A dataset row as token ids. A row longer than max_length loses the start of its prompt.

    Args:
        context: put the row's passages into the prompt, if it does not hold them already (see `with_context`). A
            passage that is the answer itself, as in an imported document, stays out: it would teach to copy.
    """
    messages = json.loads(row["messages"])
    if context and row.get("context"):
        passages = [passage for passage in json.loads(row["context"]) if not same_text(passage, row["completion"])]
        messages = with_context(messages, passages)
    prompt, whole = prompt_and_whole(tokenizer, messages, row["completion"])
    completion = whole[len(prompt) :] if whole[: len(prompt)] == prompt else []
    if not completion:
        completion = tokenizer(row["completion"], add_special_tokens=False).input_ids
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in completion:
        completion = [*completion, tokenizer.eos_token_id]
    completion = completion[: max_length - 1]
    return Encoded(row["row_id"], prompt[-(max_length - len(completion)) :], completion)


def losses(model: Any, rows: Sequence[Encoded], pad: int, packing: bool, together: int = 1) -> Iterator[Tensor]:
    """The loss of each completion token, in nats, for some of the rows at a time, in their order: memory stays bounded.

    Args:
        together: so many rows that follow each other always come at the same time.
    """
    for chunk in _chunks(rows, packing, together):
        yield _losses(model, chunk, pad, packing)


def log_probabilities(
    model: Any, rows: Sequence[Encoded], pad: int, packing: bool, together: int = 1
) -> Iterator[Tensor]:
    """The log-probability of each row's whole completion, for some of the rows at a time, as for `losses`."""
    for chunk in _chunks(rows, packing, together):
        tokens = torch.split(_losses(model, chunk, pad, packing), [len(row.completion) for row in chunk])
        yield -torch.stack([one.sum() for one in tokens])


def _losses(model: Any, rows: Sequence[Encoded], pad: int, packing: bool) -> Tensor:
    return packed_losses(model, rows, pad) if packing else padded_losses(model, rows, pad)


def _chunks(rows: Sequence[Encoded], packing: bool, together: int) -> Iterator[list[Encoded]]:
    chunk: list[Encoded] = []
    for first in range(0, len(rows), together):
        unit = rows[first : first + together]
        lengths = [len(row) for row in (*chunk, *unit)]
        if chunk and (sum(lengths) if packing else len(lengths) * max(lengths)) > _CHUNK_TOKENS[packing]:
            yield chunk
            chunk = []
        chunk += unit
    if chunk:
        yield chunk


def padded(rows: Sequence[Encoded], pad: int) -> dict[str, Tensor]:
    """The plain batch: one row each, padded on the right, with labels on the completion alone."""
    width = max(map(len, rows))
    ids, mask, labels = [], [], []
    for row in rows:
        gap = width - len(row)
        ids.append(row.ids + [pad] * gap)
        mask.append([1] * len(row) + [0] * gap)
        labels.append([IGNORED] * len(row.prompt) + row.completion + [IGNORED] * gap)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}


def padded_losses(model: Any, rows: Sequence[Encoded], pad: int) -> Tensor:
    """The loss of each completion token, in nats, row after row: the reference that the packed path must equal."""
    batch = {name: value.to(model.device) for name, value in padded(rows, pad).items()}
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]
    taken = labels != IGNORED
    return functional.cross_entropy(logits[taken].float(), labels[taken], reduction="none")


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
    paths: Paths
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
        torch.tensor(ids), torch.tensor(positions), _paths(blocks), torch.tensor(predicting), torch.tensor(targets)
    )


def same_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two texts share."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _paths(blocks: Sequence[tuple[list[int], list[int]]]) -> Paths:
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
    return Paths(
        queries=torch.tensor([token for queries, _ in blocks for token in _filled(queries, widest)]),
        keys=torch.tensor([token for _, path in blocks for token in _filled(path, longest)]),
        unseen=(last[:, :, None] < torch.arange(longest))[:, None],
        places=torch.tensor(places),
    )


def _filled(tokens: list[int], length: int) -> list[int]:
    return tokens + [0] * (length - len(tokens))


def packed_losses(model: Any, rows: Sequence[Encoded], pad: int) -> Tensor:
    """The loss of each completion token, in nats: the padded batch's, without its waste."""
    found, device = pack(rows, pad), model.device
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.base_model(
        input_ids=found.ids[None].to(device),
        position_ids=found.positions[None].to(device),
        attention_mask=torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=device),  # paths say it all
        paths=found.paths.to(device),
        use_cache=False,
    ).last_hidden_state[0]
    head = base.get_output_embeddings()
    predicting, targets = found.predicting.to(device), found.targets.to(device)
    return FusedCrossEntropy.apply(hidden.index_select(0, predicting), head.weight, head.bias, targets)  # type: ignore[no-any-return, no-untyped-call]
