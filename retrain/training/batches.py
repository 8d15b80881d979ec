"""Turns rows into tensors and losses: in a padded batch, or in a pack, which computes the same faster.

Used in child processes only.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from retuned.consumers.errors import RetunedError
from retuned.retrain.data.passages import same_text, shortened, with_context
from retuned.retrain.kernels.cross_entropy import LinearCrossEntropy
from retuned.retrain.kernels.packing import Encoded, pack
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training.chat_templates import prompt_and_completion

IGNORED = -100
_CHUNK_TOKENS = {True: 1_024, False: 4_096}


class TooLong(RetunedError):
    """A row does not fit train.max_length, even after all shortening."""


def encode_all(tokenizer: Any, rows: Iterable[dict[str, Any]], max_length: int, **how: Any) -> list[Encoded]:
    """Encodes rows as `encode` does, and leaves out those that are too long."""
    encoded = []
    for row in rows:
        with suppress(TooLong):
            encoded.append(encode(tokenizer, row, max_length, **how))
    return encoded


def too_long(tried: int, fitting: int, settings: TrainSettings) -> str | None:
    """Returns an error text if too many rows are too long, as the remaining ones would not be representative."""
    if fitting and tried - fitting <= settings.maximum_too_long_share * tried:
        return None
    return (
        f"{tried - fitting} of {tried} rows do not fit train.max_length ({settings.max_length} tokens), even without "
        "their oldest turns and their last passages, and train.maximum_too_long_share allows "
        f"{settings.maximum_too_long_share:g}: raise train.max_length, or send shorter prompts"
    )


def encode(
    tokenizer: Any,
    row: dict[str, Any],
    max_length: int,
    *,
    context: bool = True,
    keep_reasoning: bool = False,
    template_variables: Mapping[str, Any] = MappingProxyType({}),
) -> Encoded:
    """Encodes a dataset row as token ids. A row longer than max_length loses as many of its oldest turns and last
    passages as necessary (see `shortened`). A chat template that writes the current date writes that of the row.

    Args:
        context: add the row's passages to the prompt, unless it holds them already (see `with_context`). A passage
            equal to the answer, as in an imported document, is left out: it would teach copying.
        keep_reasoning: the completion includes the row's reasoning (see `prompt_and_completion`).
        template_variables: variables of the chat template.

    Raises:
        TooLong: the shortest form is still too long.
    """
    messages, passages = json.loads(row["messages"]), []
    if context and row.get("context"):
        passages = [passage for passage in json.loads(row["context"]) if not same_text(passage, row["completion"])]
    forms = shortened(messages, passages)
    day = date.fromisoformat(str(row["timestamp"])[:10]) if row.get("timestamp") else None

    @cache
    def encoded(form: int) -> Encoded:
        prompt, completion = prompt_and_completion(
            tokenizer,
            with_context(*forms[form]),
            row["completion"],
            tools=json.loads(row.get("tools") or "[]"),
            thought=row.get("reasoning") if keep_reasoning else None,
            keep_reasoning=keep_reasoning,
            variables=template_variables,
            day=day,
        )
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in completion:
            completion = [*completion, tokenizer.eos_token_id]
        return Encoded(row["row_id"], prompt, completion)

    if len(encoded(0)) <= max_length:
        return encoded(0)
    shortest = bisect_left(range(len(forms)), True, key=lambda form: len(encoded(form)) <= max_length)
    if shortest == len(forms):
        raise TooLong(f"row {row['row_id']}: at least {len(encoded(shortest - 1))} tokens, {max_length} fit")
    return replace(encoded(shortest), cut=True)


def tokens_at_once(packing: bool) -> int:
    """Returns the most tokens of a step that are computed at once, before any halving."""
    return _CHUNK_TOKENS[packing]


def losses(model: Any, rows: Sequence[Encoded], pad: int, packing: bool, limit: int | None = None) -> Iterator[Tensor]:
    """Yields the loss of each completion token, in nats, for a part of the rows at a time, in order, to bound memory.

    Args:
        limit: the most tokens computed at once, unless a single row has more; None: `tokens_at_once`.
    """
    compute = packed_losses if packing else padded_losses
    chunk: list[Encoded] = []
    for row in rows:
        lengths = [len(each) for each in (*chunk, row)]
        size = sum(lengths) if packing else len(lengths) * max(lengths)
        if chunk and size > (limit or _CHUNK_TOKENS[packing]):
            yield compute(model, chunk, pad)
            chunk = []
        chunk.append(row)
    if chunk:
        yield compute(model, chunk, pad)


def padded(rows: Sequence[Encoded], pad: int) -> dict[str, Tensor]:
    """Returns a batch padded on the right, with labels on completions only."""
    width = max(map(len, rows))
    ids, mask, labels = [], [], []
    for row in rows:
        gap = width - len(row)
        ids.append(row.ids + [pad] * gap)
        mask.append([1] * len(row) + [0] * gap)
        labels.append([IGNORED] * len(row.prompt) + row.completion + [IGNORED] * gap)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}


def padded_losses(model: Any, rows: Sequence[Encoded], pad: int) -> Tensor:
    """Returns the loss of each completion token, in nats, row after row: the reference for a pack."""
    batch = {name: value.to(model.device) for name, value in padded(rows, pad).items()}
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]
    learned = labels != IGNORED
    return functional.cross_entropy(logits[learned].float(), labels[learned], reduction="none")


def packed_losses(model: Any, rows: Sequence[Encoded], pad: int) -> Tensor:
    """Returns the loss of each completion token, in nats: equal to `padded_losses`, without padding."""
    packed, device = pack(rows, pad), model.device
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.base_model(
        input_ids=packed.ids[None].to(device),
        position_ids=packed.positions[None].to(device),
        attention_mask=torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=device),  # the tree is the mask
        tree=packed.tree.to(device),
        use_cache=False,
    ).last_hidden_state[0]
    head = base.get_output_embeddings()
    predicting, targets = packed.predicting.to(device), packed.targets.to(device)
    return LinearCrossEntropy.apply(hidden.index_select(0, predicting), head.weight, head.bias, targets)  # type: ignore[no-any-return, no-untyped-call]
