"""Generates answers of several adapters of one base model in the same batch.

A batch contains each prompt once for each model. The base model's layers are computed for all rows at once, and each
row gets the addition of its own adapter (batched LoRA: Chen et al. 2023, "Punica"; Sheng et al. 2023, "S-LoRA"). So all
models have the same batch shapes, on which bf16 arithmetic depends, and the weights are read once. A common prefix of
the prompts is computed once for each model, and finished rows leave the batch.

Runs in child processes only.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from retuned.retrain.kernels.packing import same_start

_CACHE = {"cache", "past_key_values"}
"""The name of the argument in newer and in older releases of transformers."""


class Generator:
    """Greedy answers of a PEFT model's adapters and of its base model, in one batch.

    Args:
        model: a PEFT model with the adapters loaded, on a base model with a plain cache of keys and values.
        adapters: the adapter's name of each model; None for the base model.
    """

    def __init__(self, model: Any, adapters: dict[str, str | None], pad: int) -> None:
        self.model, self.pad = model, pad
        self.models = list(adapters)
        self._base, self._rows = model.get_base_model(), _Rows()
        (self._cache,) = _CACHE & inspect.signature(self._base.forward).parameters.keys()
        named = {name for name in adapters.values() if name is not None}
        self._layers = [
            _Layer(module, [name for name in module.lora_A if name in named], self._rows)
            for module in model.modules()
            if isinstance(module, LoraLayer)
        ]
        self._adapters = [adapters[name] for name in self.models]
        ends = model.generation_config.eos_token_id
        self._ends = torch.tensor(ends if isinstance(ends, list) else [ends], device=model.device)

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether the model's adapters are plain additions to its layers, its cache is a plain one, and its next token
        is the likeliest, with nothing added by its generation configuration."""
        base = model.get_base_model()
        accepted = inspect.signature(base.forward).parameters
        generation = model.generation_config
        return (
            {"position_ids", "attention_mask", "logits_to_keep"} <= accepted.keys()
            and bool(_CACHE & accepted.keys())
            and all(type(layer) is DynamicLayer for layer in DynamicCache(config=base.config).layers)
            and all(_plain(module) for module in model.modules())
            and generation.eos_token_id is not None
            and (generation.repetition_penalty or 1.0) == 1.0
            and not generation.no_repeat_ngram_size
            and not generation.suppress_tokens
        )

    def answers(self, prompts: Sequence[list[int]], limit: int) -> dict[str, list[list[int]]]:
        """Returns the token ids of each model's answers in the order of the prompts, at most `limit` each, including
        the end token if it was reached."""
        answers, count = self._answers(prompts, limit), len(prompts)
        return {name: answers[i * count : (i + 1) * count] for i, name in enumerate(self.models)}

    @torch.inference_mode()
    def _answers(self, prompts: Sequence[list[int]], limit: int) -> list[list[int]]:
        device = self.model.device
        of_row = torch.arange(len(self.models), device=device).repeat_interleave(len(prompts))
        cache = DynamicCache(config=self.model.config)
        shared = _common_prefix(prompts)
        with self._joined():
            if shared:
                self._rows.are(self._adapters)
                prefix = torch.tensor([prompts[0][:shared]] * len(self.models), device=device)
                self._step(prefix, torch.ones_like(prefix), torch.arange(shared, device=device)[None], cache)
                cache.batch_select_indices(of_row)
            self._rows.are([self._adapters[i] for i in of_row.tolist()])
            rests = [prompt[shared:] for prompt in prompts] * len(self.models)
            width = max(map(len, rests))
            ids = torch.tensor([[self.pad] * (width - len(rest)) + rest for rest in rests], device=device)
            masks = [[1] * shared + [0] * (width - len(rest)) + [1] * len(rest) for rest in rests]
            seen = torch.tensor(masks, device=device)
            positions = (seen.cumsum(1) - 1).clamp(min=0)[:, shared:]
            logits = self._step(ids, seen, positions, cache)
            answers: list[list[int]] = [[] for _ in rests]
            going = torch.arange(len(rests), device=device)
            positions = positions[:, -1:]
            for _ in range(limit):
                chosen = logits.argmax(dim=-1)
                for row, token in zip(going.tolist(), chosen.tolist(), strict=True):
                    answers[row].append(token)
                keep = (~torch.isin(chosen, self._ends)).nonzero()[:, 0]
                if not len(keep) or len(answers[int(going[keep[0]])]) == limit:
                    break
                if len(keep) < len(chosen):
                    cache.batch_select_indices(keep)
                    self._rows.keep(keep)
                    going, chosen, seen, positions = going[keep], chosen[keep], seen[keep], positions[keep]
                seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
                positions = positions + 1
                logits = self._step(chosen[:, None], seen, positions, cache)
        return answers

    def _step(self, ids: Tensor, seen: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Returns the logits of the next token, shape (rows, vocabulary)."""
        logits: Tensor = self._base(
            input_ids=ids,
            attention_mask=seen,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache: cache},
        ).logits
        return logits[:, -1].float()

    @contextmanager
    def _joined(self) -> Iterator[None]:
        """Makes each adapted layer add to each row the output of the row's adapter."""
        kept = [(layer.module, layer.module.forward) for layer in self._layers]
        for layer in self._layers:
            layer.module.forward = layer
        try:
            yield
        finally:
            for module, forward in kept:
                module.forward = forward


def _common_prefix(prompts: Sequence[list[int]]) -> int:
    """Returns the length of the common prefix, which leaves at least the last token of each prompt."""
    first, last = min(prompts), max(prompts)  # all prompts between these two share their prefix
    return min(same_start(first, last), min(map(len, prompts)) - 1)


def _plain(module: nn.Module) -> bool:
    if isinstance(module, LoraLayer):
        return (
            not isinstance(module, ParamWrapper)  # it changes a parameter for the whole batch
            and not module.lora_embedding_A
            and not getattr(module, "lora_variant", None)
            and not module.merged
            and all(isinstance(inner, nn.Linear) for inner in module.lora_A.values())
            and all(isinstance(inner, nn.Linear) and inner.bias is None for inner in module.lora_B.values())
        )
    return not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


class _Rows:
    """The adapter of each row of the batch, as masks over the inner dimensions of a layer's adapters."""

    def __init__(self) -> None:
        self._names: list[str | None] = []
        self._masks: dict[Any, Tensor] = {}

    def are(self, names: list[str | None]) -> None:
        self._names, self._masks = names, {}

    def keep(self, rows: Tensor) -> None:
        self._names = [self._names[i] for i in rows.tolist()]
        self._masks = {key: mask[rows] for key, mask in self._masks.items()}

    def mask(self, ranks: tuple[tuple[str, int], ...], like: Tensor) -> Tensor:
        """Returns a mask of shape (rows, 1, sum of the ranks): 1 if a dimension belongs to the row's adapter."""
        key = (ranks, like.dtype)
        if key not in self._masks:
            masks = [[float(name == own) for own, rank in ranks for _ in range(rank)] for name in self._names]
            self._masks[key] = torch.tensor(masks, dtype=like.dtype, device=like.device)[:, None]
        return self._masks[key]


@dataclass
class _Layer:
    """y = W x + b + Bᵀ (mask ⊙ A x), with the A and the B of all adapters side by side."""

    module: Any
    names: list[str]
    rows: _Rows

    def __post_init__(self) -> None:
        module = self.module
        self.ranks = tuple((name, module.lora_A[name].weight.shape[0]) for name in self.names)
        self.a = self.b = None
        if self.names:
            self.a = torch.cat([module.lora_A[name].weight for name in self.names]).detach()
            self.b = torch.cat(
                [module.lora_B[name].weight * module.scaling[name] for name in self.names], dim=1
            ).detach()

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.module.get_base_layer()(x)
        if self.a is None or self.b is None:
            return y
        if self.a.dtype != x.dtype:
            self.a, self.b = self.a.to(x.dtype), self.b.to(x.dtype)
        inner = (x @ self.a.T) * self.rows.mask(self.ranks, x)
        y.view(-1, y.shape[-1]).addmm_(inner.view(-1, inner.shape[-1]), self.b.T)
        return y
