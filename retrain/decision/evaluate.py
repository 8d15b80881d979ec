"""Evaluates base, champion and candidate on rows that none of them was trained on, in a child process on the runner.

The answers that production gave to these rows are scored in the same way. An engine generates the answers (see
`generation.engine` and `generation.models`).
"""

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.durable import replace_text
from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.common.process import Emit
from retuned.retrain import versions
from retuned.retrain.data.dataset import Dataset, metric_of
from retuned.retrain.data.identity import text_hash
from retuned.retrain.decision.evaluation import BASE, CANDIDATE, CHAMPION, LOGGED, SLICES, Evaluation
from retuned.retrain.decision.guards import SLICE_EXAMPLES
from retuned.retrain.decision.measures import checked, measured, scored, with_agreement
from retuned.retrain.decision.metric_job import judge_key, metric_in_child, metric_job
from retuned.retrain.decision.power import EXAMPLES, Held, examples_to_ask
from retuned.retrain.generation import effect_probe, models
from retuned.retrain.generation.engine import Engine
from retuned.retrain.generation.models import Group
from retuned.retrain.memory.retire import SPLIT
from retuned.retrain.runners.build import runner
from retuned.retrain.runners.local import LocalRunner
from retuned.retrain.runners.runner import Work
from retuned.retrain.scoring import exam
from retuned.retrain.scoring.general import prompts
from retuned.retrain.scoring.label import labels_of
from retuned.retrain.scoring.metric import Metric
from retuned.retrain.settings import EvaluateSettings, GateSettings, IncumbentSettings, Settings
from retuned.retrain.training import shared_gpu
from retuned.retrain.training.base_model import text_config
from retuned.retrain.versions import Version

SLICE_ROWS = 2 * SLICE_EXAMPLES
"""So many rows of each slice are asked where the holdout has them."""

LABEL_ROWS = 6
"""With six answers to each of a hundred labels, the gate always finds a candidate that lost one label in ten; with
three it does not (see `decision.labels`). Answers that are labels are short."""


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
    lead: Lead = alone,
    pairs: Mapping[str, Sequence[exam.Pair]] | None = None,
    memory: Sequence[Mapping[str, Any]] = (),
    tries: int = 0,
) -> tuple[list[Evaluation], dict[str, float]]:
    """Evaluates base, champion and candidate on the holdout, champion and candidate on the regression rows and the
    traffic, base and candidate on the general prompts, the candidate on the questions of the memory.

    Also writes two files to `folder`: the metric's marks on `pairs` (see `exam.read`), and, if general prompts are
    configured and the engine returns log-probabilities, the effect probe of the candidate.

    Args:
        candidate: folder of the adapter.
        dtype: the base model's dtype, as the training chose it. With `train.method` qlora the base model has 4 bits.
        logged: the known answers of production, by row_id of the holdout.
        pairs: see `exam.due`.
        memory: see `memory.retire.questions`.
        tries: earlier comparisons of a candidate with this champion or base model.

    Returns:
        the evaluations; and the figures `seconds`, `load_seconds`, `judge_tokens` (paid for the metric judge), and for
        each split such as holdout `holdout_rows_cut` (shortened to fit train.max_length), `holdout_rows_too_long`
        (left out) and `holdout_rows_unasked` (not drawn).

    Raises:
        RetunedError: a base model is gone, or the server that `evaluate.url` names does not load an adapter.
        Cancelled: stop was set.
        ChildFailed: the child failed or died.
    """
    groups = _groups(versions.need_base(settings.base), champion, candidate)
    kept = versions.workload_folder(settings.models.directory, dataset.workload).resolve() / models.KEPT
    job = metric_job(metric_of(dataset, settings).as_dict(), dataset.workload, settings) | {
        "splits": {
            "holdout": [BASE, CHAMPION, CANDIDATE],
            # If no champion serves, the base model takes its place.
            SLICES: [CHAMPION if champion else BASE, CANDIDATE],
            "regression": [CHAMPION if champion else BASE, CANDIDATE],
            "traffic": [CHAMPION, CANDIDATE],
            "general": [BASE, CANDIDATE],
            SPLIT: [CANDIDATE],
        },
        "memory": [dict(row) for row in memory],
        "dataset": str(dataset.path),
        "dtype": dtype,
        "quantized": settings.train.method == "qlora",
        "threads": settings.train.threads,
        "gpu_wait_seconds": settings.train.gpu_wait_seconds,
        "encoding": settings.train.encoding,
        "logged": dict(logged or {}),
        "beside": {
            "gate": settings.gate.model_dump(mode="json"),
            "incumbent": settings.incumbent.model_dump(mode="json"),
            "tries": tries,
        }
        if settings.incumbent.url and champion is None
        else None,
        "exam": {source: [asdict(pair) for pair in own] for source, own in (pairs or {}).items()},
        "kept": str(kept),
    }
    secrets = models.secrets(settings) | judge_key(settings.evaluate)
    # With the engine `server`, the models run elsewhere and only scores are computed here.
    local = settings.evaluate.engine == "server"
    with models.ready(groups, dataset.workload, settings, folder) as ready:
        task = Work(
            "retuned.retrain.decision.evaluate",
            {**job, "groups": ready},
            folder,
            timeout_seconds=settings.evaluate.timeout_seconds,
            environment=secrets,
            to_need_less="lower evaluate.batch_size, or take a smaller base model",
        )
        chosen = LocalRunner(settings.train) if local else runner(settings, lead)
        stop, on_progress = stop or threading.Event(), on_progress or (lambda _: None)
        with nullcontext() if local else shared_gpu.shared(settings, lead) as budget:
            limited = replace(task, job=task.job | {"gpu_bytes": budget})
            result = chosen.run(limited, stop, on_progress)
    replace_text(folder / exam.FILE, json.dumps(result["exam"]))
    if result["effect_probe"] is not None:
        replace_text(folder / effect_probe.FILE, json.dumps(result["effect_probe"]))
    return [Evaluation(**row) for row in result["rows"]], result["figures"]


def _groups(base: Path, champion: Version | None, candidate: Path) -> list[Group]:
    """Returns the models to compare, by base model.

    Raises:
        RetunedError: the base model of the champion is gone, or files of either were changed.
    """
    trained: dict[str, Path | None] = {BASE: None, CANDIDATE: candidate.resolve()}
    if champion is None:
        return [Group(base, trained)]
    versions.check_intact(champion)
    own = versions.base_folder(champion, base)
    versions.check_base_files(champion, own)
    if own == base:
        return [Group(base, {BASE: None, CHAMPION: champion.path, CANDIDATE: candidate.resolve()})]
    return [Group(own, {CHAMPION: champion.path}), Group(base, trained)]


def drawn(rows: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Returns at most `limit` rows, drawn at random, so that their mean is an unbiased estimate of that of all rows.

    The unit is the cluster, of which each counts once (see `pairs.cluster_means`): every cluster has the same chance,
    and gives one row before any gives two. The draw is the same each time, so that runs can be compared.
    """
    turns: Counter[str] = Counter()
    order: list[tuple[int, str, int, dict[str, Any]]] = []
    for row in sorted(rows, key=lambda row: text_hash(row["row_id"])):
        cluster = row.get("cluster") or row["row_id"]
        order.append((turns[cluster], text_hash(cluster), len(order), row))
        turns[cluster] += 1
    return [row for *_, row in sorted(order, key=lambda one: one[:3])[:limit]]


def for_slices(rows: Sequence[dict[str, Any]], limit: int, metric: Metric) -> list[dict[str, Any]]:
    """Returns rows beyond those that `drawn` returns, so that small slices can be tested, each with `slices`: the names
    of the slices that it was drawn for.

    Of each label there are LABEL_ROWS in all, and of each other slice SLICE_ROWS: the first ones in the order of
    `drawn`, so each slice has a random sample of its own rows. Beside labels there are at most `limit` further rows; a
    slice that would get fewer than are tested gets none.
    """
    order = drawn(rows, len(rows))
    slices: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(order):
        for name in [*([f"topic:{row['topic']}"] if row.get("topic") else []), *metric.groups(row["completion"])]:
            slices[name].append(place)
    labels = {name for name in slices if labels_of([name])}
    each = min(SLICE_ROWS, limit // max(len(slices) - len(labels), 1))
    names: dict[int, list[str]] = defaultdict(list)
    for name, places in slices.items():
        for place in places[: LABEL_ROWS if name in labels else each if each >= SLICE_EXAMPLES else 0]:
            if place >= limit:
                names[place].append(name)
    return [order[place] | {"slices": names[place]} for place in sorted(names)]


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Runs in the child: generates the answers, then scores them."""
    started = time.perf_counter()
    settings = EvaluateSettings.model_validate(job["settings"])
    metric = metric_in_child(job)
    rows, unasked = _rows(job, settings, metric)
    rows[SPLIT] = job["memory"]
    answers: dict[str, list[Evaluation]] = {
        "holdout": [
            measured("holdout", row, LOGGED, job["logged"][row["row_id"]])
            for row in rows["holdout"]
            if row["row_id"] in job["logged"]
        ],
        SLICES: [],
        "regression": [],
        "traffic": [measured("traffic", row, LOGGED, row["completion"]) for row in rows["traffic"]],
        "general": [],
        SPLIT: [],
    }
    lengths: dict[str, float] = {}
    load_seconds, probe = 0.0, None
    if job.get("gpu_bytes") is not None:
        from retuned.retrain.training import gpu

        gpu.reserve(job["gpu_bytes"], job["gpu_wait_seconds"], emit, lambda: False)
    for group in job["groups"]:
        loading = time.perf_counter()
        engine = models.engine(group, job, settings)
        load_seconds += time.perf_counter() - loading
        with closing(engine):
            for split, wanted in job["splits"].items():
                present = [model for model in wanted if model in group["models"]]
                if present and rows[split]:
                    answers[split] += _answered(engine, split, rows[split], present, lengths, emit)
            if settings.general_examples and CANDIDATE in group["models"]:
                probe = _probe(engine, group, job)
    pairs = {source: [exam.Pair(**pair) for pair in own] for source, own in job["exam"].items()}
    marks, exam_tokens = exam.taken(metric, pairs)
    evaluations, tokens = scored(
        [*answers["holdout"], *answers[SLICES], *answers["regression"]],
        [*rows["holdout"], *rows[SLICES], *rows["regression"]],
        metric,
    )
    evaluations = with_agreement([*evaluations, *answers["traffic"]], [*rows["holdout"], *rows["traffic"]], metric)
    evaluations += checked(answers["general"])
    approved = {row["row_id"]: row["completion"] for row in rows[SPLIT]}
    evaluations += [replace(row, score=float(metric.same(row.output, approved[row.row_id]))) for row in answers[SPLIT]]
    figures = {"load_seconds": load_seconds, "judge_tokens": float(tokens + exam_tokens)} | lengths | unasked
    return {
        "rows": [asdict(row) for row in evaluations],
        "figures": {"seconds": time.perf_counter() - started} | figures,
        "exam": {source: [asdict(mark) for mark in own] for source, own in marks.items()},
        "effect_probe": probe,
    }


def _rows(
    job: Mapping[str, Any], settings: EvaluateSettings, metric: Metric
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, float]]:
    """Returns the rows to answer, by split, and how many of each split are not drawn."""
    import pyarrow.parquet as pq

    rows = {"general": drawn([prompt.as_row() for prompt in prompts()], settings.general_examples)}
    unasked = {}
    for split in ("holdout", "regression", "traffic"):
        file = Path(job["dataset"]) / f"{split}.parquet"  # datasets from before version 0.2.0 have no traffic
        stored = pq.read_table(file).to_pylist() if file.is_file() else []
        most = settings.maximum_examples or (_needed(stored, job) if split == "holdout" else EXAMPLES)
        rows[split] = drawn(stored, most)
        if split == "holdout":
            rows[SLICES] = for_slices(stored, most, metric)
        unasked[f"{split}_rows_unasked"] = float(len(stored) - len(rows[split]))
    return rows, unasked


def _needed(holdout: list[dict[str, Any]], job: Mapping[str, Any]) -> int:
    """Returns the rows of the holdout that the gate needs."""
    if (beside := job["beside"]) is None:
        return EXAMPLES
    kinds = Counter(row["kind"] for row in holdout if row["row_id"] in job["logged"])
    return examples_to_ask(
        Held(kinds["accepted"], kinds["correction"]),
        GateSettings.model_validate(beside["gate"]),
        IncumbentSettings.model_validate(beside["incumbent"]),
        beside["tries"],
    )


def _probe(engine: Engine, group: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the effect probe of the candidate; None if the engine has no log-probabilities."""
    names = {"version": CANDIDATE, "base": BASE}
    names |= {"champion": CHAMPION} if CHAMPION in group["models"] else {}
    tokens = engine.next_tokens(effect_probe.rows(), list(names.values()))
    config = text_config(Path(group["base"]))
    layers = config.get("num_hidden_layers") or config.get("n_layer") or 0
    precision = "4bit" if job["quantized"] else job["dtype"] or "float32"
    return effect_probe.record(tokens, names, precision, layers)


def _answered(
    engine: Engine,
    split: str,
    rows: list[dict[str, Any]],
    models: list[str],
    lengths: dict[str, float],
    emit: Emit,
) -> list[Evaluation]:
    """Returns the measured answers of `models`. Adds to `lengths` how many rows were cut and how many were too long."""
    evaluations: list[Evaluation] = []
    number = cut = 0
    for number, (row, answers) in enumerate(engine.answers(rows, models), 1):
        for model, answer in answers.items():
            evaluation = measured(split, row, model, answer.text)
            evaluations.append(
                replace(evaluation, loss=answer.loss, output_tokens=answer.tokens, latency_seconds=answer.seconds)
            )
        cut += any(answer.cut for answer in answers.values())
        emit({"split": split, "evaluated": number, "rows": len(rows)})
    lengths[f"{split}_rows_cut"], lengths[f"{split}_rows_too_long"] = float(cut), float(len(rows) - number)
    return evaluations


if __name__ == "__main__":
    child_main(work)
