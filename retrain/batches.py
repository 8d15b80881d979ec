"""From rows to tensors and to a loss: the plain padded batch, and the packed one that computes the same faster.

Runs in child processes alone.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
_ROUND = 64
_PACK_TOKENS = 1024
_PADDED_TOKENS = 4096


@dataclass(frozen=True)
class Encoded:
    """Token ids of a row. The completion ends with the end of the turn."""

    row_id: str
    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def encode(tokenizer: Any, row: dict[str, Any], max_length: int) -> Encoded:
    """A dataset row as token ids. A row longer than max_length loses the start of its prompt."""
    messages = json.loads(row["messages"])
    prompt = encode_prompt(tokenizer, messages)
    completion: list[int] = []
    if tokenizer.chat_template:
        answered = [*messages, {"role": "assistant", "content": row["completion"]}]
        whole = tokenizer.apply_chat_template(answered, return_dict=False)
        if whole[: len(prompt)] == prompt:
            completion = whole[len(prompt) :]
    if not completion:
        completion = tokenizer(row["completion"], add_special_tokens=False).input_ids
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in completion:
        completion = [*completion, tokenizer.eos_token_id]
    completion = completion[: max_length - 1]
    return Encoded(row["row_id"], prompt[-(max_length - len(completion)) :], completion)


def encode_prompt(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    """A conversation as token ids, up to where the answer begins."""
    if tokenizer.chat_template:
        ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return ids
    text = "".join(f"{turn['role']}: {turn['content']}\n" for turn in messages) + "assistant: "
    plain: list[int] = tokenizer(text).input_ids
    return plain


def padded(rows: Sequence[Encoded], pad: int) -> dict[str, Tensor]:
    """The plain batch: one row each, padded on the right, with labels on the completion alone."""
    width = max(map(len, rows))
    ids, mask, labels = [], [], []
    for row in rows:
        gap = width - len(row)
        ids.append(row.prompt + row.completion + [pad] * gap)
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


def losses(model: Any, rows: Sequence[Encoded], pad: int, packing: bool) -> Iterator[Tensor]:
    """The losses of the completion tokens, some of the rows at a time, in their order: memory stays bounded."""
    if packing:
        yield from (packed_losses(model, pack) for pack in packs(rows, pad))
        return
    step = max(1, _PADDED_TOKENS // max(map(len, rows)))
    for first in range(0, len(rows), step):
        yield padded_losses(model, rows[first : first + step], pad)


@dataclass(frozen=True)
class Pack:
    """Several rows in one sequence; the tokens that all their prompts begin with stand there once.

    Each row attends to that shared prefix and to itself, at the positions that it would have alone, so that every
    completion token sees what it sees in the padded batch. Attention is causal: the prefix cannot see the rows, and
    its hidden states are the same for each.
    """

    inputs: dict[str, Tensor]
    predicting: Tensor  # indices of the tokens whose successor is a completion token
    targets: Tensor


def packs(rows: Sequence[Encoded], pad: int, limit: int = _PACK_TOKENS) -> Iterator[Pack]:
    """The rows, in their order, in sequences of at most `limit` tokens; a longer row stands alone."""
    group: list[Encoded] = []
    tokens = 0
    for row in rows:
        if group and tokens + len(row) > limit:
            yield _pack(group, pad)
            group, tokens = [], 0
        group.append(row)
        tokens += len(row)
    if group:
        yield _pack(group, pad)


def _pack(rows: Sequence[Encoded], pad: int) -> Pack:
    shared = _shared_prefix(rows)
    ids = rows[0].prompt[:shared]
    positions = list(range(shared))
    segments = [0] * shared
    predicting: list[int] = []
    targets: list[int] = []
    for number, row in enumerate(rows, 1):
        rest = row.prompt[shared:] + row.completion
        first = len(ids) + len(row.prompt) - shared - 1
        predicting += range(first, first + len(row.completion))
        targets += row.completion
        positions += range(shared, shared + len(rest))
        segments += [number] * len(rest)
        ids += rest
    # Kernels are chosen by shape: a few round lengths keep them warm. Padding attends to itself alone.
    gap = -len(ids) % _ROUND
    ids, positions, segments = ids + [pad] * gap, positions + [0] * gap, segments + [-1] * gap
    segment = torch.tensor(segments)
    order = torch.arange(len(ids))
    seen = (order[:, None] >= order[None, :]) & ((segment[:, None] == segment[None, :]) | (segment[None, :] == 0))
    padding = segment == -1
    seen[padding] = False
    seen |= torch.diag(padding)
    inputs = {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": seen[None, None],
    }
    return Pack(inputs, torch.tensor(predicting), torch.tensor(targets))


def _shared_prefix(rows: Sequence[Encoded]) -> int:
    """How many first tokens all prompts share; one token of each prompt stays with its row, to predict from."""
    if len(rows) == 1:
        return 0
    first = rows[0].prompt
    length = min(len(row.prompt) for row in rows) - 1
    for row in rows[1:]:
        length = next((i for i in range(length) if row.prompt[i] != first[i]), length)
    return max(length, 0)


def packed_losses(model: Any, pack: Pack) -> Tensor:
    """The loss of each completion token of a pack, in nats: the padded batch's, without its waste.

    Logits are computed only where a completion token is predicted.
    """
    device, dtype = model.device, model.dtype
    inputs = {name: value.to(device) for name, value in pack.inputs.items()}
    # An additive mask: eager attention adds it as it is.
    blocked = torch.zeros(inputs["attention_mask"].shape, dtype=dtype, device=device)
    inputs["attention_mask"] = blocked.masked_fill_(~inputs["attention_mask"], torch.finfo(dtype).min)
    logits = model(**inputs, use_cache=False, logits_to_keep=pack.predicting.to(device)).logits[0]
    return functional.cross_entropy(logits.float(), pack.targets.to(device), reduction="none")
