"""Evaluation of base, champion and candidate on rows that none was trained on, in a child process.

What production answered to the rows is scored beside them, by the same measure.

What generates the answers is an engine (see `generation.engine`): models in the child, or models on a server. Where
champion and candidate have different base models, one base model is in memory after the other.
"""

import hashlib
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common import tone
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import RetunedError
from retuned.retrain import versions
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.data.similarity import text_hash
from retuned.retrain.generation.engine import Engine
from retuned.retrain.generation.server import Server, ServerEngine, visible
from retuned.retrain.scoring import style
from retuned.retrain.scoring.facts import conflicts, facts, score, token_f1, values
from retuned.retrain.settings import EvaluateSettings, Settings
from retuned.retrain.versions import Version

BASE, CHAMPION, CANDIDATE = "base", "champion", "candidate"
LOGGED = "logged"
"""In the place of a model's name: the answers that production gave, whatever gave them."""

_TOKEN = "RETUNED_EVALUATE_TOKEN"
"""In the environment of the child: what the server asks for."""


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
        latency_seconds: the answer's tokens at the model's pace, as the engine measures it. The bare base model is
            given the candidate's pace (see `generation.engine`).
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
        RetunedError: a base model is gone, or the server that `evaluate.url` names does not load an adapter.
        Cancelled: stop was set.
        ChildFailed: the child failed or died.
    """
    base = versions.need_base(settings.models.base)
    groups = [_Group(base, {BASE: None, CANDIDATE: candidate.resolve()})]
    if champion is not None:
        own = versions.base_folder(champion, base)
        if own == base:
            groups[0] = _Group(base, {BASE: None, CHAMPION: champion.path, CANDIDATE: candidate.resolve()})
        else:
            groups.insert(0, _Group(own, {CHAMPION: champion.path}))
    job = {
        "splits": {
            "holdout": [BASE, CHAMPION, CANDIDATE],
            # Where no champion serves, the base model takes its place.
            "regression": [CHAMPION if champion else BASE, CANDIDATE],
        },
        "dataset": str(dataset.path),
        "dtype": dtype,
        "threads": settings.train.threads,
        "max_length": settings.train.max_length,
        "context": settings.train.context,
        "logged": dict(logged or {}),
        "settings": settings.evaluate.model_dump(mode="json", exclude={"token", "token_file", "judge_key"}),
    }
    with _adapters(groups, dataset.workload, settings, folder) as adapters:
        result = run_child(
            "retuned.retrain.decision.evaluate",
            {**job, "groups": adapters},
            folder,
            timeout_seconds=settings.evaluate.timeout_seconds,
            stop=stop,
            on_progress=on_progress,
            environment={_TOKEN: settings.evaluate.bearer_token() or ""},
            to_need_less="lower evaluate.batch_size, or take a smaller base model",
        )
    return [Evaluation(**row) for row in result["rows"]], result["times"]


@dataclass(frozen=True)
class _Group:
    """Models of one base model: their names, and the folders of their adapters."""

    base: Path
    adapters: dict[str, Path | None]


@contextmanager
def _adapters(
    groups: Sequence[_Group], workload: str, settings: Settings, folder: Path
) -> Iterator[list[dict[str, Any]]]:
    """The groups as the child gets them. With a server it has the adapters meanwhile, each under a name of this
    evaluation alone."""
    if settings.evaluate.engine == "transformers":
        yield [
            {"base": str(one.base), "adapters": {name: path and str(path) for name, path in one.adapters.items()}}
            for one in groups
        ]
        return
    if len(groups) > 1:
        raise RetunedError(
            "evaluate.engine server: the champion and the candidate have different base models, and a server has one; "
            "set evaluate.engine to transformers to compare them"
        )
    (group,) = groups
    evaluation = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    names: dict[str, str | None] = {}
    paths: dict[str, Path] = {}
    for model, path in group.adapters.items():
        if path is None:
            names[model] = None
            continue
        names[model] = name = f"{workload}@{versions.content_hash(path)}-evaluation-{evaluation}"
        paths[name] = visible(path, settings.models.directory, settings.evaluate)
    with Server(settings.evaluate, settings.evaluate.bearer_token()).loaded(paths):
        yield [{"base": str(group.base), "adapters": names}]


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

    settings = EvaluateSettings.model_validate(job["settings"])
    rows = {
        split: drawn(pq.read_table(Path(job["dataset"]) / f"{split}.parquet").to_pylist(), settings.maximum_examples)
        for split in ("holdout", "regression")
    }
    found: list[Evaluation] = []
    load_seconds = 0.0
    for group in job["groups"]:
        loading = time.perf_counter()
        engine = _engine(group, job, settings)
        load_seconds += time.perf_counter() - loading
        with closing(engine):
            for split, models in job["splits"].items():
                here = [model for model in models if model in group["adapters"]]
                found += _evaluated(engine, split, rows[split], here, emit)
    found += [
        measured("holdout", row, LOGGED, job["logged"][row["row_id"]])
        for row in rows["holdout"]
        if row["row_id"] in job["logged"]
    ]
    times = {"seconds": time.perf_counter() - started, "load_seconds": load_seconds}
    return {"rows": [asdict(row) for row in found], "times": times}


def _engine(group: dict[str, Any], job: dict[str, Any], settings: EvaluateSettings) -> Engine:
    """Base model and adapters of a group, in this process or on the server."""
    how = {"max_length": job["max_length"], "context": job["context"]}
    base = Path(group["base"])
    if settings.engine == "server":
        from retuned.retrain.training.base_model import load_tokenizer

        server = Server(settings, os.environ.get(_TOKEN))
        return ServerEngine(server, load_tokenizer(base), group["adapters"], settings, **how)
    import torch

    from retuned.retrain.generation.transformers import TransformersEngine

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    paths = {name: path and Path(path) for name, path in group["adapters"].items()}
    return TransformersEngine(base, paths, settings, dtype=job["dtype"], **how)


def _evaluated(
    engine: Engine, split: str, rows: list[dict[str, Any]], models: list[str], emit: Emit
) -> list[Evaluation]:
    found: list[Evaluation] = []
    for number, (row, answers) in enumerate(engine.answers(rows, models), 1):
        for model, answer in answers.items():
            one = measured(split, row, model, answer.text)
            found.append(replace(one, loss=answer.loss, output_tokens=answer.tokens, latency_seconds=answer.seconds))
        emit({"split": split, "evaluated": number, "rows": len(rows)})
    return found


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
    )


if __name__ == "__main__":
    child_main(work)
