"""Evaluation of base, champion and candidate on rows that none was trained on, on the runner.

What production answered to the rows is scored beside them, by the same measure.

What generates the answers is an engine (see `generation.engine` and `generation.models`).
"""

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import SecretStr

from retuned.consumers.child import child_main
from retuned.consumers.common import tone, tool_calls
from retuned.consumers.common.durable import replace_text
from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.common.process import Emit
from retuned.retrain import versions
from retuned.retrain.data.dataset import Dataset, metric_of
from retuned.retrain.data.similarity import text_hash
from retuned.retrain.generation import effect_probe, models
from retuned.retrain.generation.engine import Engine
from retuned.retrain.generation.models import Group
from retuned.retrain.runners.build import runner
from retuned.retrain.runners.local import LocalRunner
from retuned.retrain.runners.runner import Work
from retuned.retrain.scoring import style
from retuned.retrain.scoring.facts import conflicts, facts, token_f1, values
from retuned.retrain.scoring.general import is_right, prompts
from retuned.retrain.scoring.metric import Metric, restored
from retuned.retrain.settings import SECRETS, Base, EvaluateSettings, MetricSettings, ProviderModel, Settings
from retuned.retrain.versions import Version

BASE, CHAMPION, CANDIDATE = "base", "champion", "candidate"
LOGGED = "logged"
"""In the place of a model's name: the answers that production gave, whatever gave them."""

FOLD = "fold"
"""In the place of a split's name: rows that the candidate learned, answered by a model that learned without them."""

_SCORED_AT_ONCE = 4
"""Answers that a judge is asked about at once; the other metrics do not wait."""

JUDGE_KEY = "RETUNED_EVALUATE_JUDGE_KEY"
"""In the environment of the child: the judge's token, which is kept out of the file of its job."""
JUDGED = "judged.jsonl"
"""In the folder of the workload: verdicts of the metric `judge` that were paid for."""


@dataclass(frozen=True)
class Evaluation:
    """How one model answered one row.

    Attributes:
        model: base, champion or candidate; or logged, for what production answered, of which loss, tokens and time are
            not known.
        split: holdout, regression, traffic (recent questions whose answers nobody rated; they have an agreement and no
            score), general (see `scoring.general`) or fold (see `data.folds`: what stands as the candidate's answer is
            that of a model which learned without the row).
        kind: what people said of the logged answer: correction, or accepted where they called it good.
        topic: of the row's question; None where the dataset does not say.
        origin: the dataset in whose holdout a regression row first stood; None elsewhere.
        language: of the question and the approved answer (ISO 639-1); None where they are too short to tell.
        turns: questions in the conversation, the one that is answered included.
        with_context: the row has passages that the answer was to rest on.
        score: the metric of the workload, 0 to 1 (see `scoring.metric`); None where it abstains.
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
        detail: of the score, for people.
        valid: the answer has the form that programs read (JSON, calls of tools); None: no form is asked for.
        answered: the label that it was read as; None: none.
        groups: the slices that the row belongs to by its approved answer: the tools that it calls, and the metric's
            (see `Metric.groups`).
        agreement: of the candidate's answer with the champion's, or with the logged one where no champion serves, by
            the metric (see `Metric.agreement`), 0 to 1; None of other models, and where neither is known.
    """

    model: str
    split: str
    row_id: str
    topic: str | None
    origin: str | None
    language: str | None
    turns: int
    with_context: bool
    score: float | None
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
    detail: str = ""
    valid: bool | None = None
    answered: str | None = None
    groups: list[str] = field(default_factory=list)
    agreement: float | None = None

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
            *self.groups,
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
    dtype: str | None,
    folder: Path,
    stop: threading.Event | None = None,
    on_progress: Emit | None = None,
    logged: Mapping[str, str] | None = None,
    lead: Lead = alone,
) -> tuple[list[Evaluation], dict[str, float]]:
    """Let base, champion and candidate answer the holdout, champion and candidate the regression rows and the traffic,
    base and candidate the general prompts.

    The logged answers are measured beside them. Where general prompts are asked for, and the engine gives
    log-probabilities, the effect probe of the candidate is left in the folder.

    Args:
        candidate: folder of the adapter, or of what a provider trained.
        dtype: of the base model, as the training chose it; it is in 4 bits here, too, where `train.method` is qlora.
            None: a provider has it.
        logged: what production answered, by row_id of the holdout, as far as it is known.

    Returns:
        the evaluations; and `seconds`, `load_seconds`, `judge_tokens` (that the metric judge was paid for), and of each
        split such as holdout `holdout_rows_cut` (that lost turns or passages to fit train.max_length) and
        `holdout_rows_too_long` (that were left out).

    Raises:
        RetunedError: a base model is gone, or the server that `evaluate.url` names does not load an adapter.
        Cancelled: stop was set.
        ChildFailed: the child failed or died.
    """
    workload = versions.workload_folder(settings.models.directory, dataset.workload).resolve()
    groups = _groups(versions.need_base(settings.base), champion, candidate)
    job = {
        "splits": {
            "holdout": [BASE, CHAMPION, CANDIDATE],
            # Where no champion serves, the base model takes its place.
            "regression": [CHAMPION if champion else BASE, CANDIDATE],
            "traffic": [CHAMPION, CANDIDATE],
            "general": [BASE, CANDIDATE],
        },
        "dataset": str(dataset.path),
        "dtype": dtype,
        "quantized": settings.train.method == "qlora",
        "threads": settings.train.threads,
        "encoding": settings.train.encoding,
        "logged": dict(logged or {}),
        "settings": settings.evaluate.model_dump(mode="json", exclude=SECRETS["evaluate"]),
        "metric": metric_of(dataset, settings).as_dict(),
        "metric_settings": settings.metric.model_dump(mode="json"),
        "objective": settings.objective,
        "judged": str(workload / JUDGED),
        "kept": str(workload / models.KEPT),
    }
    secrets = models.secrets(settings)
    if settings.evaluate.judge_url is not None and (key := settings.evaluate.key()) is not None:
        secrets[JUDGE_KEY] = key
    # A provider and a server have the models: there is nothing to compute but scores.
    elsewhere = isinstance(groups[0].base, ProviderModel) or settings.evaluate.engine == "server"
    with models.ready(groups, dataset.workload, settings, folder) as ready:
        asked = Work(
            "retuned.retrain.decision.evaluate",
            {**job, "groups": ready},
            folder,
            timeout_seconds=settings.evaluate.timeout_seconds,
            environment=secrets,
            to_need_less="lower evaluate.batch_size, or take a smaller base model",
        )
        place = LocalRunner(settings.train) if elsewhere else runner(settings, lead)
        result = place.run(asked, stop or threading.Event(), on_progress or (lambda _: None))
    if result["effect_probe"] is not None:
        replace_text(folder / effect_probe.FILE, json.dumps(result["effect_probe"]))
    return [Evaluation(**row) for row in result["rows"]], result["figures"]


def _groups(base: Base, champion: Version | None, candidate: Path) -> list[Group]:
    """The models that are compared.

    Raises:
        RetunedError: the base model of the champion is gone.
    """
    trained: dict[str, Path | None] = {BASE: None, CANDIDATE: candidate.resolve()}
    if champion is None:
        return [Group(base, trained)]
    own = versions.base_folder(champion, base)
    if own == base or isinstance(base, ProviderModel):  # a provider has them all
        return [Group(base, {BASE: None, CHAMPION: champion.path, CANDIDATE: candidate.resolve()})]
    return [Group(own, {CHAMPION: champion.path}), Group(base, trained)]


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


def drawn(rows: list[dict[str, Any]], limit: int, metric: Metric | None = None) -> list[dict[str, Any]]:
    """At most `limit` rows: an even draw over topics and origins, or over labels and the like where the metric has
    such groups; the same each time, so that two runs compare."""
    if len(rows) <= limit:
        return rows
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: text_hash(row["row_id"])):
        own = metric.groups(row["completion"]) if metric else []
        groups[tuple(own) or row.get("topic"), row.get("origin")].append(row)
    order = [row for turn in zip_longest(*groups.values()) for row in turn if row is not None]
    return order[:limit]


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """The child's side."""
    started = time.perf_counter()
    import pyarrow.parquet as pq

    settings = EvaluateSettings.model_validate(job["settings"])
    metric = metric_in_child(job)
    rows = {
        split: drawn(pq.read_table(file).to_pylist(), settings.maximum_examples, metric) if file.is_file() else []
        for split in ("holdout", "regression", "traffic")  # datasets of before version 0.2.0 have no traffic
        for file in [Path(job["dataset"]) / f"{split}.parquet"]
    }
    rows["general"] = drawn([prompt.as_row() for prompt in prompts()], settings.general_examples)
    answers: dict[str, list[Evaluation]] = {
        "holdout": [
            measured("holdout", row, LOGGED, job["logged"][row["row_id"]])
            for row in rows["holdout"]
            if row["row_id"] in job["logged"]
        ],
        "regression": [],
        "traffic": [measured("traffic", row, LOGGED, row["completion"]) for row in rows["traffic"]],
        "general": [],
    }
    lengths: dict[str, float] = {}
    load_seconds, probe = 0.0, None
    for group in job["groups"]:
        loading = time.perf_counter()
        engine = models.engine(group, job, settings, chain.from_iterable(rows.values()))
        load_seconds += time.perf_counter() - loading
        with closing(engine):
            for split, asked in job["splits"].items():
                here = [model for model in asked if model in group["models"]]
                if here and rows[split]:
                    answers[split] += _evaluated(engine, split, rows[split], here, lengths, emit)
            if settings.general_examples and CANDIDATE in group["models"]:
                names = {"version": CANDIDATE, "base": BASE}
                names |= {"champion": CHAMPION} if CHAMPION in group["models"] else {}
                told = engine.next_tokens(effect_probe.rows(), list(names.values()))
                precision = "4bit" if job["quantized"] else job["dtype"] or "float32"
                probe = effect_probe.record(told, names, precision)
    judged, tokens = scored(
        [*answers["holdout"], *answers["regression"]], [*rows["holdout"], *rows["regression"]], metric
    )
    found = with_agreement([*judged, *answers["traffic"]], [*rows["holdout"], *rows["traffic"]], metric)
    found += checked(answers["general"])
    spent = {"seconds": time.perf_counter() - started, "load_seconds": load_seconds, "judge_tokens": tokens}
    return {"rows": [asdict(row) for row in found], "figures": spent | lengths, "effect_probe": probe}


def _evaluated(
    engine: Engine,
    split: str,
    rows: list[dict[str, Any]],
    models: list[str],
    lengths: dict[str, float],
    emit: Emit,
) -> list[Evaluation]:
    """The answers of some models, measured. `lengths` gets how many rows were cut, and how many too long."""
    found: list[Evaluation] = []
    number = cut = 0
    for number, (row, answers) in enumerate(engine.answers(rows, models), 1):
        for model, answer in answers.items():
            one = measured(split, row, model, answer.text)
            found.append(replace(one, loss=answer.loss, output_tokens=answer.tokens, latency_seconds=answer.seconds))
        cut += any(answer.cut for answer in answers.values())
        emit({"split": split, "evaluated": number, "rows": len(rows)})
    lengths[f"{split}_rows_cut"], lengths[f"{split}_rows_too_long"] = float(cut), float(len(rows) - number)
    return found


def metric_in_child(job: Mapping[str, Any]) -> Metric:
    """The metric of the dataset, in the child's process."""
    settings = EvaluateSettings.model_validate(job["settings"])
    if key := os.environ.get(JUDGE_KEY):
        settings = settings.model_copy(update={"judge_key": SecretStr(key)})
    asked = Settings(
        objective=job["objective"], metric=MetricSettings.model_validate(job["metric_settings"]), evaluate=settings
    )
    return restored(asked, job["metric"], [], Path(job["judged"])).metric


def scored(
    found: Sequence[Evaluation], examples: Sequence[Mapping[str, Any]], metric: Metric
) -> tuple[list[Evaluation], int]:
    """The evaluations with their scores, and the tokens that a judge was paid for. `examples`: their rows."""
    row = {example["row_id"]: example for example in examples}
    with ThreadPoolExecutor(_SCORED_AT_ONCE) as pool:
        scores = list(
            pool.map(lambda one: metric.score(one.output, row[one.row_id]["completion"], row[one.row_id]), found)
        )
    rows = [
        replace(
            one,
            score=score.value,
            detail=score.detail,
            valid=score.valid,
            answered=score.label,
            groups=list(dict.fromkeys([*one.groups, *metric.groups(row[one.row_id]["completion"])])),
        )
        for one, score in zip(found, scores, strict=True)
    ]
    return rows, sum(score.tokens for score in scores)


def checked(rows: Sequence[Evaluation]) -> list[Evaluation]:
    """Answers to the general prompts, scored by what is asked of them."""
    known = {prompt.id: prompt for prompt in prompts()}
    return [replace(row, score=float(is_right(known[row.row_id], row.output))) for row in rows]


def with_agreement(
    rows: Sequence[Evaluation], examples: Sequence[Mapping[str, Any]], metric: Metric
) -> list[Evaluation]:
    """The candidate's answers to holdout and traffic, with their agreement with what would be answered without it.

    Args:
        rows: of all models; those that have no agreement come back as they are.
        examples: the rows of holdout and traffic.
    """
    example = {one["row_id"]: one for one in examples}
    before = {(row.split, row.row_id): row.output for model in (LOGGED, CHAMPION) for row in rows if row.model == model}

    def agreement(row: Evaluation) -> float | None:
        known = before.get((row.split, row.row_id))
        if row.model != CANDIDATE or row.split not in ("holdout", "traffic") or known is None:
            return None
        return metric.agreement(row.output, known, example[row.row_id])

    return [replace(row, agreement=agreement(row)) for row in rows]


def measured(split: str, row: dict[str, Any], model: str, output: str) -> Evaluation:
    """What can be told of an answer by its text alone; its score comes later, see `scored`.

    `row`: an example's columns.
    """
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
        score=None,
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
        groups=[f"tool:{name}" for name in tool_calls.names(approved)],
    )


if __name__ == "__main__":
    child_main(work)
