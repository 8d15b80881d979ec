"""Generates answers in this process, with one base model and its adapters in memory.

The models answer each batch together (see `adapters`), or in turn if that is not possible. So all have the same
batches, on which bf16 arithmetic depends, and the same load of the machine.

Runs in child processes only.
"""

import gc
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from retuned.retrain.generation.adapters import Generator
from retuned.retrain.generation.engine import Answer, Row, prompts
from retuned.retrain.generation.kept import Kept, KeptAnswers
from retuned.retrain.generation.lora_server import TOP
from retuned.retrain.kernels.packing import Encoded
from retuned.retrain.settings import EvaluateSettings
from retuned.retrain.training import adapter as lora
from retuned.retrain.training.base_model import load_model, load_tokenizer
from retuned.retrain.training.batches import losses
from retuned.retrain.training.chat_templates import answer_in

_BATCH_TOKENS = 8_192

_TRIALS = 3
_TRIAL_ROWS = 4
_TRIAL_TOKENS = 8


class TransformersEngine:
    """Adapters of one base model, and the base model itself.

    The time per token of a model is the minimum of a few trials, with the models in turn. On a CPU it is CPU time, so
    that other load of the machine, such as serving, does not count.
    """

    def __init__(
        self,
        base: Path,
        adapters: Mapping[str, Path | None],
        settings: EvaluateSettings,
        *,
        dtype: str,
        quantized: bool = False,
        encoding: Mapping[str, Any],
        kept: KeptAnswers,
    ) -> None:
        """Loads the models.

        Args:
            adapters: the folder of each model's adapter; None for the base model. At least one has an adapter.
            quantized: load the base model in 4 bits.
            encoding: that of `TrainSettings`.
            kept: cached answers.
        """
        self._tokenizer = load_tokenizer(base)
        self._tokenizer.padding_side = "left"
        self._settings, self._encoding, self._kept = settings, encoding, kept
        self._bare = {name for name, path in adapters.items() if path is None}
        self._models = _models(base, adapters, getattr(torch, dtype), quantized)
        distinct = list({id(model): model for model in self._models.values()}.values())
        self._together = len(distinct) == 1 and Generator.fits(distinct[0])
        self._generator: Generator | None = None
        self._packed: bool | None = None
        self._paces: dict[str, float] = {}

    def answers(self, rows: Sequence[Row], models: Sequence[str]) -> Iterator[tuple[Row, dict[str, Answer]]]:
        encoded, limit = prompts(self._tokenizer, rows, self._settings, self._encoding)
        if encoded and not self._paces.keys() >= set(models):
            self._paces = self._measured_paces([one for _, one in encoded[:_TRIAL_ROWS]], models)
        alike: dict[tuple[str, ...], list[tuple[Row, Encoded]]] = defaultdict(list)
        for row, one in encoded:
            alike[tuple(name for name in models if self._kept.find(name, row, one, limit) is None)].append((row, one))
        for asked, rows_alike in alike.items():
            for batch in self._batches(rows_alike, limit):
                if asked:
                    self._generate_missing(batch, asked, limit)
                yield from ((row, self._answers(row, one, models, limit)) for row, one in batch)

    def next_tokens(
        self, rows: Sequence[Row], models: Sequence[str]
    ) -> Iterator[tuple[list[int], dict[str, Mapping[int, float]]]]:
        encoded, _ = prompts(self._tokenizer, rows, self._settings, self._encoding)
        for _, one in encoded:
            tokens: dict[str, Mapping[int, float]] = {}
            for model in models:
                with torch.inference_mode(), self._as(model) as active:
                    ids = torch.tensor([one.prompt], device=active.device)
                    logprobs = active(input_ids=ids).logits[0, -1].float().log_softmax(dim=-1)
                    top = logprobs.topk(min(TOP, len(logprobs)))
                tokens[model] = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            yield one.prompt, tokens

    def close(self) -> None:
        self._kept.close()
        self._models, self._generator = {}, None
        gc.collect()

    def _batches(self, encoded: list[tuple[Row, Encoded]], limit: int) -> Iterator[list[tuple[Row, Encoded]]]:
        done = 0
        while done < len(encoded):
            batch = encoded[done : done + self._settings.batch_size]
            while len(batch) > 1 and len(batch) * (len(batch[-1][1].prompt) + limit) > _BATCH_TOKENS:
                batch = batch[:-1]
            yield batch
            done += len(batch)

    def _answers(self, row: Row, encoded: Encoded, models: Sequence[str], limit: int) -> dict[str, Answer]:
        answers = {}
        for model in models:
            kept = self._kept.find(model, row, encoded, limit)
            assert kept is not None  # `_generate_missing` has cached it
            seconds = max(kept.tokens, 1) * self._paces[model]
            answers[model] = Answer(kept.text, kept.tokens, seconds, kept.loss, encoded.cut)
        return answers

    def _generate_missing(self, batch: list[tuple[Row, Encoded]], models: Sequence[str], limit: int) -> None:
        """Generates and caches the models' answers to a batch."""
        encoded = [one for _, one in batch]
        tokens = self._generated(encoded, models, limit)
        for model in models:
            with torch.inference_mode(), self._as(model) as active:
                losses = self._losses(active, encoded)
            texts = self._tokenizer.batch_decode(tokens[model], skip_special_tokens=True)
            for (row, one), text, ids, loss in zip(batch, texts, tokens[model], losses, strict=True):
                answer = answer_in(self._tokenizer, text, one.prompt, json.loads(row.get("tools") or "[]"))
                self._kept.keep(model, row, one, Kept(answer, len(ids), limit, loss))

    def _generated(self, encoded: list[Encoded], models: Sequence[str], limit: int) -> dict[str, list[list[int]]]:
        """Returns the token ids of each model's answers."""
        if self._together:
            names = list(models)
            if self._generator is None or self._generator.models != names:
                adapters = {name: None if name in self._bare else name for name in names}
                self._generator = Generator(self._models[names[-1]], adapters, self._tokenizer.pad_token_id)
            return self._generator.answers([one.prompt for one in encoded], limit)
        answers = {}
        for model in models:
            with torch.inference_mode(), self._as(model) as active:
                ids = self._generate(active, encoded, limit).tolist()
            answers[model] = [[token for token in row if token != self._tokenizer.pad_token_id] for row in ids]
        return answers

    def _measured_paces(self, encoded: list[Encoded], models: Sequence[str]) -> dict[str, float]:
        """Returns the seconds per token of each model, in a small batch."""
        best = {model: math.inf for model in models if model not in self._bare}
        for _ in range(_TRIALS):
            for model in best:
                with torch.inference_mode(), self._as(model) as active:
                    started = _clock(active)
                    self._generate(active, encoded, _TRIAL_TOKENS, at_least=_TRIAL_TOKENS)
                    best[model] = min(best[model], _clock(active) - started)
        return {model: best.get(model, best[models[-1]]) / _TRIAL_TOKENS for model in models}

    @contextmanager
    def _as(self, name: str) -> Iterator[Any]:
        """Yields the PEFT model with the adapter of one of the models active."""
        model = self._models[name]
        if name in self._bare:
            with model.disable_adapter():
                yield model
        else:
            model.set_adapter(name, inference_mode=True)
            yield model

    def _generate(self, model: Any, encoded: list[Encoded], limit: int, at_least: int = 0) -> Any:
        """Returns the token ids of the answers, shape (rows, at most limit), padded on the right."""
        pad = self._tokenizer.pad_token_id
        batch = self._tokenizer.pad({"input_ids": [one.prompt for one in encoded]}, return_tensors="pt")
        batch = batch.to(model.device)
        ids = model.generate(
            **batch,
            max_new_tokens=limit,
            min_new_tokens=at_least or None,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=pad,
        )
        return ids[:, batch["input_ids"].shape[1] :]

    def _losses(self, model: Any, encoded: list[Encoded]) -> list[float]:
        pad = self._tokenizer.pad_token_id
        if self._packed is None:
            self._packed = lora.packing_fits(model, encoded, pad, self._encoding["max_length"])
        tokens = torch.cat(list(losses(model, encoded, pad, self._packed)))
        parts = torch.split(tokens, [len(one.completion) for one in encoded])
        return [float(part.mean()) for part in parts]


def _models(base: Path, adapters: Mapping[str, Path | None], dtype: torch.dtype, quantized: bool) -> dict[str, Any]:
    """Returns the PEFT model of each name: one base model with all adapters.

    Adapters cannot be combined with copies of all layers (`train.method: full`) on one base model, so there may be two.
    """
    loaded: dict[bool, Any] = {}
    is_full: dict[str, bool] = {}
    for name, path in adapters.items():
        if path is not None:
            is_full[name] = full = lora.is_full(path)
            loaded[full] = lora.load_adapter(
                loaded.get(full) or load_model(base, dtype, quantized=quantized), path, name=name
            )
    last = loaded[list(is_full.values())[-1]]
    return {name: loaded[is_full[name]] if name in is_full else last for name in adapters}


def _clock(model: Any) -> float:
    if model.device.type != "cpu":
        return time.perf_counter()  # `generate` returns after the device has finished
    return time.process_time() / torch.get_num_threads()
