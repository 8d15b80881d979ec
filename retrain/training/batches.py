"""From rows to tensors and to a loss: the plain padded batch, and the packed one that computes the same faster.

Runs in child processes alone.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from retuned.consumers.errors import RetunedError
from retuned.retrain.data.passages import missing, same_text, shortened, with_context
from retuned.retrain.kernels.packing import Encoded, pack
from retuned.retrain.kernels.training_step import LinearCrossEntropy
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training.chat_templates import prompt_and_completion

IGNORED = -100
_CHUNK_TOKENS = {True: 1_024, False: 4_096}


class TooLong(RetunedError):
    """A row does not fit train.max_length, however much of it may be left out."""


def encode_all(tokenizer: Any, rows: Iterable[dict[str, Any]], max_length: int, **how: Any) -> list[Encoded]:
    """As `encode`, without the rows that are too long."""
    found = []
    for row in rows:
        with suppress(TooLong):
            found.append(encode(tokenizer, row, max_length, **how))
    return found


def too_long(tried: int, fitting: int, settings: TrainSettings) -> str | None:
    """Why not to train on what is left, if so many rows are too long that something else would be learned."""
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
    """A dataset row as token ids. A row longer than max_length loses its oldest turns and its last passages (see
    `shortened`), as many as it must.

    Args:
        context: put the row's passages into the prompt, if it does not hold them already (see `with_context`). A
            passage that is the answer itself, as in an imported document, stays out: it would teach to copy.
        keep_reasoning: the row's reasoning is part of the completion (see `prompt_and_completion`).
        template_variables: of the chat template.

    Raises:
        TooLong: that is not enough.
    """
    messages, passages = json.loads(row["messages"]), []
    if context and row.get("context"):
        passages = [passage for passage in json.loads(row["context"]) if not same_text(passage, row["completion"])]
    forms = shortened(messages, missing(messages, passages))

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
        )
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in completion:
            completion = [*completion, tokenizer.eos_token_id]
        return Encoded(row["row_id"], prompt, completion)

    if len(encoded(0)) <= max_length:
        return encoded(0)
    shortest = bisect_left(range(len(forms)), True, key=lambda form: len(encoded(form)) <= max_length)
    if shortest == len(forms):
        raise TooLong(f"row {row['row_id']}: {len(encoded(shortest - 1))} tokens at least, {max_length} fit")
    return replace(encoded(shortest), cut=True)


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
    """The loss of each completion token, in nats, row after row: the reference that a pack must equal."""
    batch = {name: value.to(model.device) for name, value in padded(rows, pad).items()}
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]
    taken = labels != IGNORED
    return functional.cross_entropy(logits[taken].float(), labels[taken], reduction="none")


def packed_losses(model: Any, rows: Sequence[Encoded], pad: int) -> Tensor:
    """The loss of each completion token, in nats: the padded batch's, without its waste."""
    found, device = pack(rows, pad), model.device
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.base_model(
        input_ids=found.ids[None].to(device),
        position_ids=found.positions[None].to(device),
        attention_mask=torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=device),  # the tree is the mask
        tree=found.tree.to(device),
        use_cache=False,
    ).last_hidden_state[0]
    head = base.get_output_embeddings()
    predicting, targets = found.predicting.to(device), found.targets.to(device)
    return LinearCrossEntropy.apply(hidden.index_select(0, predicting), head.weight, head.bias, targets)  # type: ignore[no-any-return, no-untyped-call]
