"""Evaluation of base, champion and candidate on rows that none was trained on, in a child process.

What production answered to the rows is scored beside them, by the same measure.

One base model is in memory, with the adapters on it. The models answer each batch together (see `generation`), or in
turn where that does not fit them: all see the same batches (bf16 arithmetic depends on them) and the same load of the
machine.
"""

import json
import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from retuned.consumers.child import child_main
from retuned.consumers.common import tone, tool_calls
from retuned.consumers.common.process import Emit, run_child
from retuned.retrain import versions
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.data.similarity import text_hash
from retuned.retrain.scoring import style
from retuned.retrain.scoring.facts import conflicts, facts, score, token_f1, values
from retuned.retrain.settings import EvaluateSettings, Settings
from retuned.retrain.training.base_model import load_model, load_tokenizer
from retuned.retrain.versions import Version

if TYPE_CHECKING:
    from retuned.retrain.generation.adapters import Generator

BASE, CHAMPION, CANDIDATE = "base", "champion", "candidate"
LOGGED = "logged"
"""In the place of a model's name: the answers that production gave, whatever gave them."""

_LONGER = 1.5
_MORE_TOKENS = 8
_BATCH_TOKENS = 8_192

_TRIALS = 3
_TRIAL_ROWS = 4
_TRIAL_TOKENS = 8


@dataclass(frozen=True)
class Evaluation:
    """How one model answered one row.

    Attributes:
        model: base, champion or candidate; or logged, for what production answered, of which loss, tokens and time are
            not known.
        split: holdout or regression.
        kind: what people said of the logged answer: correction, or accepted where they called it good.
        topic: of the row's question; None where the dataset does not say.
        origin: the dataset in whose holdout a regression row first stood; None elsewhere.
        language: of the question and the approved answer (ISO 639-1); None where they are too short to tell.
        turns: questions in the conversation, the one that is answered included.
        with_context: the row has passages that the answer was to rest on.
        score: the primary metric, 0 to 1 (see `scoring.score`).
        loss: of the approved answer, nats per token.
        hallucinated: None when it cannot be told.
        grounded: share of the answer's values that stand in the context or in what was asked; None without context.
        consistency: of tone and format with the approved answer, 0 to 1 (see `tone.features`).
        refused: it says that it cannot or will not answer, and the approved answer does not.
        length_ratio: its words over those of the approved answer.
        output_tokens: tokens of the answer.
        latency_seconds: the answer's tokens at the model's pace. The pace is the best of a few trials, the models in
            turn; on a CPU by the time that the threads worked. What else the machine does meanwhile, serving for
            example, is nobody's latency. The bare base model is given the candidate's pace: what any adapter costs
            is a matter of how it is served, and holds nothing against what it learned.
        tools: the names of those that the approved answer calls.
        verdict: of the LLM judge on the candidate's answer beside the champion's: win, tie or loss; None where it was
            not asked, or gave no usable answer.
    """

    model: str
    split: str
    row_id: str
    topic: str | None
    origin: str | None
    language: str | None
    turns: int
    with_context: bool
    score: float
    token_f1: float
    loss: float | None
    hallucinated: bool | None
    grounded: float | None
    consistency: float
    refused: bool
    length_ratio: float
    latency_seconds: float | None
    output: str
    output_tokens: int | None = None
    kind: str | None = None
    verdict: str | None = None
    tools: list[str] = field(default_factory=list)

    @property
    def seconds_per_token(self) -> float | None:
        """The pace; None where it is not known."""
        if self.latency_seconds is None or self.output_tokens is None:
            return None
        return self.latency_seconds / max(self.output_tokens, 1)

    @property
    def slices(self) -> list[str]:
        """The kinds of question that the row belongs to, as the gate looks at them."""
        return [
            *([f"topic:{self.topic}"] if self.topic else []),
            *([f"language:{self.language}"] if self.language else []),
            "turns:one" if self.turns == 1 else "turns:several",
            "context:with" if self.with_context else "context:without",
            *(f"tool:{name}" for name in self.tools),
        ]


_SUMMARISED = {
    "score": "score",
    "token_f1": "token_f1",
    "loss": "loss",
    "hallucinated": "hallucination",
    "grounded": "grounded",
    "consistency": "consistency",
    "refused": "refusal",
}


def summary(rows: Sequence[Evaluation]) -> dict[str, float]:
    """Means over the holdout for each model, under names such as `consistency_base`, where they can be told."""
    found: dict[str, float] = {}
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model and row.split == "holdout"]
        for attribute, name in _SUMMARISED.items():
            told = [value for row in own if (value := getattr(row, attribute)) is not None]
            if told:
                found[f"{name}_{model}"] = fmean(told)
    return found


def evaluate(
    dataset: Dataset,
    champion: Version | None,
    candidate: Path,
    settings: Settings,
    dtype: str,
    folder: Path,
    stop: threading.Event | None = None,
    on_progress: Emit | None = None,
    logged: Mapping[str, str] | None = None,
) -> tuple[list[Evaluation], dict[str, float]]:
    """Let base, champion and candidate answer the holdout, and champion and candidate the regression rows.

    The logged answers are measured beside them.

    Args:
        candidate: folder of the adapter.
        dtype: of the base model, as the training chose it.
        logged: what production answered, by row_id of the holdout, as far as it is known.

    Returns:
        the evaluations, and `seconds` and `load_seconds`.

    Raises:
        Cancelled: stop was set.
        ChildFailed: the child failed or died.
    """
    base = versions.need_base(settings.models.base)
    if champion is not None:
        versions.check_base(champion, base)
    job = {
        "base": str(base),
        "champion": str(champion.path) if champion else None,
        "candidate": str(candidate.resolve()),
        "dataset": str(dataset.path),
        "dtype": dtype,
        "threads": settings.train.threads,
        "encoding": settings.train.encoding,
        "logged": dict(logged or {}),
        "settings": settings.evaluate.model_dump(mode="json"),
    }
    result = run_child(
        "retuned.retrain.decision.evaluate",
        job,
        folder,
        timeout_seconds=settings.evaluate.timeout_seconds,
        stop=stop,
        on_progress=on_progress,
        to_need_less="lower evaluate.batch_size, or take a smaller base model",
    )
    return [Evaluation(**row) for row in result["rows"]], result["times"]


def hallucinated(answer: str, approved: str, asked: str, context: list[str] | None) -> bool | None:
    """Does the answer state what nothing supports?

    With context: a number, price, date or time that stands neither in the context nor in what was asked nor in the
    approved answer, which people may know better than a stale passage. Without: what conflicts with the approved answer
    (see `scoring.conflicts`). None when it cannot be told.
    """
    if context:
        return bool(values(facts(answer)) - facts("\n".join([*context, asked, approved])))
    return conflicts(answer, approved)


def grounded(answer: str, asked: str, context: list[str] | None) -> float | None:
    """Share of an answer's values (numbers, prices, dates, times) that stand in the context or in what was asked.

    None without context, or where the answer states no value.
    """
    stated = values(facts(answer)) if context else frozenset()
    if not context or not stated:
        return None
    return len(stated & facts("\n".join([*context, asked]))) / len(stated)


def drawn(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most `limit` rows: an even draw over topics and origins, the same each time, so that two runs compare."""
    if len(rows) <= limit:
        return rows
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: text_hash(row["row_id"])):
        groups[row.get("topic"), row.get("origin")].append(row)
    order = [row for turn in zip_longest(*groups.values()) for row in turn if row is not None]
    return order[:limit]


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """The child's side."""
    started = time.perf_counter()
    import pyarrow.parquet as pq
    import torch

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    base, settings = Path(job["base"]), EvaluateSettings.model_validate(job["settings"])
    tokenizer = load_tokenizer(base)
    tokenizer.padding_side = "left"
    models = _models(job, base, getattr(torch, job["dtype"]))
    rows = {
        split: drawn(pq.read_table(Path(job["dataset"]) / f"{split}.parquet").to_pylist(), settings.maximum_examples)
        for split in ("holdout", "regression")
    }
    evaluator = _Evaluator(models, tokenizer, settings, job["encoding"], emit)
    load_seconds = time.perf_counter() - started
    found = evaluator.answers("holdout", rows["holdout"], list(models))
    found += [
        measured("holdout", row, LOGGED, job["logged"][row["row_id"]])
        for row in rows["holdout"]
        if row["row_id"] in job["logged"]
    ]
    # Where no champion serves, the base model takes its place.
    found += evaluator.answers("regression", rows["regression"], [CHAMPION if job["champion"] else BASE, CANDIDATE])
    times = {"seconds": time.perf_counter() - started, "load_seconds": load_seconds}
    return {"rows": [asdict(row) for row in found], "times": times}


def _models(job: dict[str, Any], base: Path, dtype: Any) -> dict[str, Any]:
    """The PEFT model in which each of base, champion and candidate is found: one base model, with the adapters on it.

    Adapters do not mix with copies of all layers (`train.method: full`) on one base model; then there are two of it.
    """
    from retuned.retrain.training import adapter as lora

    paths = {name: Path(job[name]) for name in (CHAMPION, CANDIDATE) if job[name]}
    found: dict[bool, Any] = {}
    for name, path in paths.items():
        full = lora.is_full(path)
        found[full] = lora.load_adapter(found.get(full) or load_model(base, dtype), path, name=name)
    of = {name: found[lora.is_full(path)] for name, path in paths.items()}
    return {BASE: of[CANDIDATE], **of}


def measured(split: str, row: dict[str, Any], model: str, output: str) -> Evaluation:
    """What can be told of an answer by its text alone. `row`: an example's columns."""
    context, approved = json.loads(row["context"]) if row["context"] else None, row["completion"]
    messages = json.loads(row["messages"])
    asked = "\n".join(turn.get("content") or "" for turn in messages)
    return Evaluation(
        model=model,
        split=split,
        row_id=row["row_id"],
        topic=row.get("topic"),
        origin=row.get("origin"),
        language=style.language(f"{messages[-1].get('content') or ''}\n{approved}"),
        turns=sum(turn["role"] == "user" for turn in messages),
        with_context=bool(context),
        score=score(output, approved),
        token_f1=token_f1(output, approved),
        loss=None,
        hallucinated=hallucinated(output, approved, asked, context),
        grounded=grounded(output, asked, context),
        consistency=tone.consistency(output, approved),
        refused=style.refuses(output) and not style.refuses(approved),
        length_ratio=style.length_ratio(output, approved),
        latency_seconds=None,
        output=output,
        kind=row.get("kind"),
        tools=list(tool_calls.names(approved)),
    )


class _Evaluator:
    def __init__(
        self,
        models: dict[str, Any],
        tokenizer: Any,
        settings: EvaluateSettings,
        encoding: dict[str, Any],
        emit: Emit,
    ) -> None:
        from retuned.retrain.generation.adapters import Generator
        from retuned.retrain.kernels.replace import replace_layers

        self.models, self.tokenizer, self.settings, self.emit = models, tokenizer, settings, emit
        self.encoding = encoding
        self.packed: bool | None = None
        distinct = list({id(model): model for model in models.values()}.values())
        for model in distinct:
            replace_layers(model)
        self.together = len(distinct) == 1 and Generator.fits(distinct[0])
        self.generator: Generator | None = None
        self.paces: dict[str, float] = {}

    def answers(self, split: str, rows: list[dict[str, Any]], models: list[str]) -> list[Evaluation]:
        from retuned.retrain.training.batches import encode

        if not rows:
            return []
        encoded = {row["row_id"]: encode(self.tokenizer, row, **self.encoding) for row in rows}
        longest = max(len(one.completion) for one in encoded.values())
        limit = min(self.settings.max_new_tokens, math.ceil(_LONGER * longest) + _MORE_TOKENS)
        rows = sorted(rows, key=lambda row: (len(encoded[row["row_id"]].prompt), row["row_id"]))
        if not self.paces:
            self.paces = self._paces([encoded[row["row_id"]] for row in rows[:_TRIAL_ROWS]], models)
        found, done = [], 0
        while done < len(rows):
            batch = rows[done : done + self.settings.batch_size]
            while len(batch) > 1 and len(batch) * (len(encoded[batch[-1]["row_id"]].prompt) + limit) > _BATCH_TOKENS:
                batch = batch[:-1]
            found += self._batch(split, batch, [encoded[row["row_id"]] for row in batch], models, limit)
            done += len(batch)
            self.emit({"split": split, "evaluated": done, "rows": len(rows)})
        return found

    def _batch(
        self, split: str, rows: list[dict[str, Any]], encoded: list[Any], models: list[str], limit: int
    ) -> list[Evaluation]:
        import torch

        from retuned.retrain.training.chat_templates import answer_in

        answers = self._answers(encoded, models, limit)
        found = []
        for model in models:
            with torch.inference_mode(), self._as(model) as active:
                losses = self._losses(active, encoded)
            for row, one_encoded, ids, loss in zip(rows, encoded, answers[model], losses, strict=True):
                tools = json.loads(row.get("tools") or "[]")
                one = measured(split, row, model, answer_in(self.tokenizer, ids, one_encoded.prompt, tools))
                seconds = max(len(ids), 1) * self.paces[model]
                found.append(replace(one, loss=loss, output_tokens=len(ids), latency_seconds=seconds))
        return found

    def _generator(self, models: list[str]) -> "Generator":
        from retuned.retrain.generation.adapters import Generator

        if self.generator is None or self.generator.models != models:
            adapters = {model: None if model == BASE else model for model in models}
            self.generator = Generator(self.models[models[-1]], adapters, self.tokenizer.pad_token_id)
        return self.generator

    def _answers(self, encoded: list[Any], models: list[str], limit: int) -> dict[str, list[list[int]]]:
        """Token ids of each model's answers."""
        import torch

        if self.together:
            return self._generator(models).answers([one.prompt for one in encoded], limit)
        found = {}
        for model in models:
            with torch.inference_mode(), self._as(model) as active:
                ids = self._generate(active, encoded, limit).tolist()
            found[model] = [[token for token in row if token != self.tokenizer.pad_token_id] for row in ids]
        return found

    def _paces(self, encoded: list[Any], models: list[str]) -> dict[str, float]:
        """Seconds that each model takes for a token, in a small batch."""
        import torch

        best = {model: math.inf for model in models if model != BASE}
        for _ in range(_TRIALS):
            for model in best:
                with torch.inference_mode(), self._as(model) as active:
                    started = _clock(active)
                    self._generate(active, encoded, _TRIAL_TOKENS, at_least=_TRIAL_TOKENS)
                    best[model] = min(best[model], _clock(active) - started)
        return {model: best.get(model, best[CANDIDATE]) / _TRIAL_TOKENS for model in models}

    @contextmanager
    def _as(self, name: str) -> Iterator[Any]:
        """The PEFT model, being base, champion or candidate meanwhile."""
        model = self.models[name]
        if name == BASE:
            with model.disable_adapter():
                yield model
        else:
            model.set_adapter(name, inference_mode=True)
            yield model

    def _generate(self, model: Any, encoded: list[Any], limit: int, at_least: int = 0) -> Any:
        """Token ids of the answers, shape (rows, at most limit), padded on the right."""
        batch = self.tokenizer.pad({"input_ids": [one.prompt for one in encoded]}, return_tensors="pt").to(model.device)
        ids = model.generate(
            **batch,
            max_new_tokens=limit,
            min_new_tokens=at_least or None,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return ids[:, batch["input_ids"].shape[1] :]

    def _losses(self, model: Any, encoded: list[Any]) -> list[float]:
        import torch

        from retuned.retrain.training import adapter as lora
        from retuned.retrain.training.batches import losses

        pad = self.tokenizer.pad_token_id
        if self.packed is None:
            self.packed = lora.packing_fits(model, encoded, pad, self.encoding["max_length"])
        tokens = torch.cat(list(losses(model, encoded, pad, self.packed)))
        parts = torch.split(tokens, [len(one.completion) for one in encoded])
        return [float(part.mean()) for part in parts]


def _clock(model: Any) -> float:
    if model.device.type != "cpu":
        return time.perf_counter()  # `generate` has waited for the device when it returns
    import torch

    return time.process_time() / torch.get_num_threads()


if __name__ == "__main__":
    child_main(work)
