"""Evaluation of base, champion and candidate on rows that none was trained on, in a child process.

One base model is in memory; the adapters are switched on it. Each batch is answered by every model in turn, so that all
see the same batches (bf16 arithmetic depends on them) and the same load of the machine.
"""

import json
import math
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retuned.consumers.process import Emit, child_main, run_child
from retuned.retrain import registry
from retuned.retrain.base import load_model, load_tokenizer
from retuned.retrain.dataset import Dataset
from retuned.retrain.registry import Version
from retuned.retrain.scoring import conflicts, facts, score, token_f1, values
from retuned.retrain.settings import EvaluateSettings, Settings

BASE, CHAMPION, CANDIDATE = "base", "champion", "candidate"

_LONGER = 1.5
_MORE_TOKENS = 8

_TRIALS = 3
_TRIAL_ROWS = 4
_TRIAL_TOKENS = 8


@dataclass(frozen=True)
class Evaluation:
    """How one model answered one row.

    Attributes:
        model: base, champion or candidate.
        split: holdout or regression.
        score: the primary metric, 0 to 1 (see `scoring.score`).
        loss: of the reference, nats per token.
        hallucinated: None when it cannot be told.
        latency_seconds: the answer's tokens at the model's pace. The pace is the best of a few trials, the models in
            turn; on a CPU by the time that the threads worked. What else the machine does meanwhile, serving for
            example, is nobody's latency. The bare base model is given the candidate's pace: what any adapter costs
            is a matter of how it is served, and holds nothing against what it learned.
    """

    model: str
    split: str
    row_id: str
    score: float
    token_f1: float
    loss: float
    hallucinated: bool | None
    latency_seconds: float
    output: str


def evaluate(
    dataset: Dataset,
    champion: Version | None,
    candidate: Path,
    settings: Settings,
    dtype: str,
    folder: Path,
    stop: threading.Event | None = None,
    on_progress: Emit | None = None,
) -> tuple[list[Evaluation], dict[str, float]]:
    """Let base, champion and candidate answer the holdout, and champion and candidate the regression rows.

    Args:
        candidate: folder of the adapter.
        dtype: of the base model, as the training chose it.

    Returns:
        the evaluations, and `seconds` and `load_seconds`.

    Raises:
        Cancelled: stop was set.
        ChildFailed: the child failed or died.
    """
    base = registry.need_base(settings.models.base)
    if champion is not None:
        registry.check_base(champion, base)
    job = {
        "base": str(base),
        "champion": str(champion.path) if champion else None,
        "candidate": str(candidate.resolve()),
        "dataset": str(dataset.path),
        "dtype": dtype,
        "threads": settings.train.threads,
        "max_length": settings.train.max_length,
        "context": settings.train.context,
        "settings": settings.evaluate.model_dump(mode="json"),
    }
    result = run_child(
        "retuned.retrain.evaluate",
        job,
        folder,
        timeout_seconds=settings.evaluate.timeout_seconds,
        stop=stop,
        on_progress=on_progress,
    )
    return [Evaluation(**row) for row in result["rows"]], result["times"]


def hallucinated(answer: str, reference: str, asked: str, context: list[str] | None) -> bool | None:
    """Does the answer state what nothing supports?

    With context: a number, price, date or time that stands neither in the context nor in what was asked. Without: a
    value that conflicts with the reference's, or yes against its no. None when there is nothing to conflict with.
    """
    if context:
        return bool(values(facts(answer)) - facts("\n".join([*context, asked])))
    if conflicts(answer, reference):
        return True
    return False if values(facts(reference)) else None


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """The child's side."""
    started = time.perf_counter()
    import pyarrow.parquet as pq
    import torch

    from retuned.retrain import lora

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    base, settings = Path(job["base"]), EvaluateSettings.model_validate(job["settings"])
    tokenizer = load_tokenizer(base)
    tokenizer.padding_side = "left"
    model = lora.load_adapter(load_model(base, getattr(torch, job["dtype"])), Path(job["candidate"]), name=CANDIDATE)
    if job["champion"]:
        lora.load_adapter(model, Path(job["champion"]), name=CHAMPION)
    rows = {
        split: pq.read_table(Path(job["dataset"]) / f"{split}.parquet").to_pylist()[: settings.maximum_examples]
        for split in ("holdout", "regression")
    }
    judge = _Judge(model, tokenizer, settings, job["max_length"], job["context"], emit)
    load_seconds = time.perf_counter() - started
    found = judge.answers("holdout", rows["holdout"], [BASE, *([CHAMPION] if job["champion"] else []), CANDIDATE])
    # Where no champion serves, the base model takes its place.
    found += judge.answers("regression", rows["regression"], [CHAMPION if job["champion"] else BASE, CANDIDATE])
    times = {"seconds": time.perf_counter() - started, "load_seconds": load_seconds}
    return {"rows": [asdict(row) for row in found], "times": times}


class _Judge:
    def __init__(
        self, model: Any, tokenizer: Any, settings: EvaluateSettings, max_length: int, context: bool, emit: Emit
    ) -> None:
        from retuned.retrain import lora

        self.model, self.tokenizer, self.settings, self.emit = model, tokenizer, settings, emit
        self.max_length, self.context = max_length, context
        self.packed: bool | None = None
        self.fused = lora.fuse(model)
        self.paces: dict[str, float] = {}

    def answers(self, split: str, rows: list[dict[str, Any]], models: list[str]) -> list[Evaluation]:
        from retuned.retrain.batches import encode

        if not rows:
            return []
        encoded = {row["row_id"]: encode(self.tokenizer, row, self.max_length, context=self.context) for row in rows}
        longest = max(len(one.completion) for one in encoded.values())
        limit = min(self.settings.max_new_tokens, math.ceil(_LONGER * longest) + _MORE_TOKENS)
        rows = sorted(rows, key=lambda row: (len(encoded[row["row_id"]].prompt), row["row_id"]))
        size = self.settings.batch_size
        if not self.paces:
            self.paces = self._paces([encoded[row["row_id"]] for row in rows[:_TRIAL_ROWS]], models)
        found = []
        for first in range(0, len(rows), size):
            batch = rows[first : first + size]
            for model in models:
                found += self._batch(split, batch, [encoded[row["row_id"]] for row in batch], model, limit)
            self.emit({"split": split, "evaluated": min(first + size, len(rows)), "rows": len(rows)})
        return found

    def _batch(
        self, split: str, rows: list[dict[str, Any]], encoded: list[Any], model: str, limit: int
    ) -> list[Evaluation]:
        import torch

        with torch.inference_mode(), self._as(model):
            generated = self._generate(encoded, limit)
            losses = self._losses(encoded)
        outputs = self.tokenizer.batch_decode(generated, skip_special_tokens=True)
        lengths = (generated != self.tokenizer.pad_token_id).sum(dim=1).tolist()
        found = []
        for row, output, length, loss in zip(rows, map(str.strip, outputs), lengths, losses, strict=True):
            context = json.loads(row["context"]) if row["context"] else None
            asked = "\n".join(turn.get("content") or "" for turn in json.loads(row["messages"]))
            found.append(
                Evaluation(
                    model=model,
                    split=split,
                    row_id=row["row_id"],
                    score=score(output, row["completion"]),
                    token_f1=token_f1(output, row["completion"]),
                    loss=loss,
                    hallucinated=hallucinated(output, row["completion"], asked, context),
                    latency_seconds=max(length, 1) * self.paces[model],
                    output=output,
                )
            )
        return found

    def _paces(self, encoded: list[Any], models: list[str]) -> dict[str, float]:
        """Seconds that each model takes for a token, in a small batch."""
        import torch

        best = {model: math.inf for model in models if model != BASE}
        for _ in range(_TRIALS):
            for model in best:
                with torch.inference_mode(), self._as(model):
                    started = self._clock()
                    self._generate(encoded, _TRIAL_TOKENS, at_least=_TRIAL_TOKENS)
                    best[model] = min(best[model], self._clock() - started)
        return {model: best.get(model, best[CANDIDATE]) / _TRIAL_TOKENS for model in models}

    def _clock(self) -> float:
        if self.model.device.type != "cpu":
            return time.perf_counter()  # `generate` has waited for the device when it returns
        import torch

        return time.process_time() / torch.get_num_threads()

    def _as(self, model: str) -> Any:
        from contextlib import nullcontext

        if model == BASE:
            return self.model.disable_adapter()
        self.model.set_adapter(model, inference_mode=True)
        return nullcontext()

    def _generate(self, encoded: list[Any], limit: int, at_least: int = 0) -> Any:
        """Token ids of the answers, shape (rows, at most limit), padded on the right."""
        batch = self.tokenizer.pad({"input_ids": [one.prompt for one in encoded]}, return_tensors="pt").to(
            self.model.device
        )
        ids = self.model.generate(
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

    def _losses(self, encoded: list[Any]) -> list[float]:
        import torch

        from retuned.retrain import lora
        from retuned.retrain.batches import losses

        pad = self.tokenizer.pad_token_id
        if self.packed is None:
            self.packed = lora.packing_fits(self.model, encoded, pad, self.max_length)
        tokens = torch.cat(list(losses(self.model, encoded, pad, self.packed)))
        parts = torch.split(tokens, [len(one.completion) for one in encoded])
        return [float(part.mean()) for part in parts]


if __name__ == "__main__":
    child_main(work)
