"""The model card of a version, in Hugging Face's format.

Source of the format: https://huggingface.co/docs/hub/model-cards.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml

from retuned.consumers.common.durable import replace_text
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.retrain import versions
from retuned.retrain.decision.interval import interval
from retuned.retrain.decision.pairs import not_measured_in
from retuned.retrain.release.licence import UNKNOWN, licence_of, text_of
from retuned.retrain.scoring.facts import Facts
from retuned.retrain.scoring.label import in_figures, mistaken

QUERIES = named_queries("retuned.retrain.release", "card.sql")

NAME = "README.md"
BASE, LOGGED = "base", "logged"

# The values of vLLM's --max-lora-rank: https://docs.vllm.ai/en/latest/api/vllm/config/lora.html.
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_KINDS = {
    "lora": "A LoRA adapter for",
    "full": "All weights of the blocks for",
}
_CONFIDENCE, _RESAMPLES = 0.95, 2_000
_LABELS = 20


@dataclass(frozen=True)
class Score:
    """The score of one model on one row of a split, 0 to 1. `model` is base or a version."""

    model: str
    split: str
    row_id: str
    score: float


@dataclass(frozen=True)
class Record:
    """The content of a card. Fields that are not known yet are empty.

    Attributes:
        path: the folder of the version.
        manifest: the content of `manifest.json`.
        licence: the licence of the base model, by Hugging Face's names.
        dataset: its row in `datasets`, with the card as an object.
        sources: the numbers of rows by source, largest first.
        people: the number of accounts that taught, and the largest_share of one.
        rank: the rank of its adapter, which may be its parent's, if it has one.
        on_experts: whether its adapter covers fused experts.
        run: reasons, started_at, train_seconds, evaluate_seconds.
        decision: outcome, reasons and figures of the gate.
        approvals: decisions of people, oldest first: state (approved or refused), actor, decided_at, reason.
    """

    path: Path
    manifest: dict[str, Any]
    licence: str = UNKNOWN
    rank: int | None = None
    on_experts: bool = False
    dataset: dict[str, Any] | None = None
    sources: Sequence[dict[str, Any]] = ()
    people: dict[str, Any] | None = None
    run: dict[str, Any] | None = None
    decision: dict[str, Any] | None = None
    approvals: Sequence[dict[str, Any]] = ()
    scores: Sequence[Score] = field(default=())

    @property
    def name(self) -> str:
        """The name on servers."""
        return f"{self.manifest['workload']}@{self.manifest['version']}"


def write(warehouse: Warehouse, folder: Path, path: Path, manifest: dict[str, Any]) -> None:
    """Writes the card of a version, from its manifest and the warehouse.

    Args:
        folder: the folder to write to.
        path: the folder of the version, which the card names.
    """
    replace_text(folder / NAME, render(_gathered(warehouse, folder, path, manifest)))


def render(record: Record) -> str:
    """Returns the card as Markdown."""
    manifest = record.manifest
    header = {
        "library_name": "peft",
        "base_model": manifest["base_model"],
        "license": record.licence,
        "pipeline_tag": "text-generation",
        "tags": [_kind(record), "retuned"],
    }
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {record.name}",
        f"Answers what is asked in the workload `{manifest['workload']}`. "
        f"{_KINDS[_kind(record)]} the base model "
        f"`{manifest['base_model']}`, trained by retuned {manifest['code_version']} on {manifest['created_at'][:10]}.",
        f"Its objective: {objective}" if (objective := manifest.get("objective")) else "",
        _verdict(record),
        *_approvals(record),
        *_quality(record),
        *_learned(record),
        *_origin(record),
        *_loading(record),
        *_limits(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def without_header(card: str) -> str:
    """Returns a card without its header, for places that would show the header as text."""
    return card.partition("\n---\n")[2].lstrip() if card.startswith("---\n") else card


def _verdict(record: Record) -> str:
    if record.decision is None:
        return "**Not decided yet.** It was trained, and the gate has not decided about it."
    scores = ", ".join(
        f"{name} {fmean(of.values()):.3f}"
        for name, model in _models(record)
        if (of := _by_row(record, model, "holdout"))
    )
    verdict = "**The gate passed it.**" if record.decision["outcome"] else "**The gate refused it.**"
    if unmeasured := not_measured_in(record.decision.get("figures") or {}):
        verdict += f" Not measured: {', '.join(unmeasured)}."
    return f"{verdict} Score on questions that nothing was trained on: {scores}." if scores else verdict


def _approvals(record: Record) -> list[str]:
    return [
        f"**{one['state'].capitalize()} by {one['actor']}** on {one['decided_at']:%Y-%m-%d at %H:%M} UTC: "
        f"{' '.join(one['reason'].split())}"
        for one in record.approvals
    ]


def _models(record: Record) -> list[tuple[str, str]]:
    """Returns the compared models, as (description, model)."""
    parent = record.manifest["parent_version"]
    return [
        ("this version", record.manifest["version"]),
        *([(f"its parent {parent}", parent)] if parent else []),
        ("what production had answered", LOGGED),
        ("the base model", BASE),
    ]


def _by_row(record: Record, model: str, split: str) -> dict[str, float]:
    return {one.row_id: one.score for one in record.scores if (one.model, one.split) == (model, split)}


def _quality(record: Record) -> list[str]:
    if not record.scores and record.decision is None:
        return []
    rows = []
    for split, questions in (("holdout", "new questions"), ("regression", "questions of earlier datasets")):
        own = _by_row(record, record.manifest["version"], split)
        for name, model in _models(record):
            theirs = _by_row(record, model, split)
            if not theirs:
                continue
            better = [own[row] - score for row, score in theirs.items() if row in own]
            gain = "" if model == record.manifest["version"] else _difference(better)
            rows.append(f"| {questions} | {name} | {len(theirs)} | {fmean(theirs.values()):.3f} | {gain} |")
    parts = ["## How good it is"]
    if rows:
        parts.append(
            "\n".join(
                [
                    "| on | model | questions | score | this version is better by (95% interval) |",
                    "|---|---|---|---|---|",
                    *rows,
                ]
            )
        )
        parts.append(
            f"The score of an answer is {_meaning(record)}. Intervals are over the questions. The answers of "
            "production are known only for questions that people corrected or called good."
        )
    parts += _labels(record)
    if record.decision is not None:
        parts.append("The gate's reasons:")
        parts.append("\n".join(f"- {reason}" for reason in record.decision["reasons"]))
    return parts


def _meaning(record: Record) -> str:
    metric = (record.dataset or {}).get("card", {}).get("metric") or {}
    return f"{metric['meaning']} (metric `{metric['name']}`)" if metric else f"{Facts.meaning} (metric `{Facts.name}`)"


def _labels(record: Record) -> list[str]:
    """Returns a table of the labels that this version mistakes, worst first; empty if answers are no labels."""
    figures = record.decision.get("figures", {}) if record.decision else {}
    table = in_figures(figures)
    rows = [one for one in mistaken(table) if one[2] < one[1]]
    if not rows:
        return []
    lines = [f"| {label} | {answers} | {right} | {wrong} |" for label, answers, right, wrong in rows[:_LABELS]]
    return [
        f"Of {len(table)} labels it mistakes {len(rows)}, the worst first:",
        "\n".join(["| label | questions | right | taken for |", "|---|---|---|---|", *lines]),
    ]


def _difference(differences: Sequence[float]) -> str:
    if not differences:
        return ""
    low, high = interval(np.array(differences), (1 - _CONFIDENCE) / 2)
    return f"{fmean(differences):+.3f} ({low:+.3f} to {high:+.3f})"


def _learned(record: Record) -> list[str]:
    dataset = record.dataset
    if dataset is None:
        return []
    rows = [
        ("trained on", f"{dataset['train']} examples, of which {dataset['replay']} repeat older ones"),
    ]
    rows += [(f"from {one['source']}", f"{one['rows']} examples") for one in record.sources]
    if record.people and record.people["people"]:
        share = record.people["largest_share"]
        rows.append(("people", f"{record.people['people']}; the one who taught most gave {share:.1%} of the examples"))
    training = record.manifest.get("training", {})
    if training.get("rows_cut") or training.get("rows_too_long"):
        rows.append(
            (
                "too long for `train.max_length`",
                f"{training['rows_cut']} examples lost their oldest turns or last passages, "
                f"{training['rows_too_long']} were left out",
            )
        )
    left_out = {name: count for name, count in dataset["card"].get("left_out", {}).items() if count}
    if left_out:
        rows.append(("left out", ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in left_out.items())))
    redacted = (
        "Unless `privacy.redact` was off, personal data that patterns find was replaced before anything was stored; "
        "patterns do not find everything."
    )
    held_out = f"It was evaluated on {dataset['holdout']} other examples, on which nothing was trained."
    return ["## What it learned from", _table(rows), held_out, redacted]


def _origin(record: Record) -> list[str]:
    manifest, run, cost = record.manifest, record.run or {}, record.manifest.get("cost", {})
    rows = [
        ("base model", f"`{manifest['base_model']}`, hash {manifest['base_hash']}"),
        ("licence of the base model", record.licence),
        ("began from", f"version {manifest['parent_version']}" if manifest["parent_version"] else "the base model"),
        ("dataset", manifest["dataset_version"]),
        ("run", manifest["run_id"]),
    ]
    training = manifest.get("training", {})
    if engine := training.get("engine"):
        rows.append(("trained by", f"engine {engine}, as {training['engine_reason']}"))
        if rate := training["learning_rate"]:
            rows.append(("peak learning rate", f"{rate:.2g}"))
    if (share := training.get("coverage")) is not None:
        rows.append(("the adapter covers", f"{share:.1%} of the weights in the layers of the language model"))
        rows.append(("not covered", ", ".join(training["not_covered"]) or "nothing"))
    if manifest.get("settings", {}).get("train", {}).get("method") == "qlora":
        rows.append(("base model in training and evaluation", "in 4 bits (NF4)"))
    if run.get("reasons"):
        rows.append(("retrained because of", "; ".join(run["reasons"])))
    for name, column in (("training took", "train_seconds"), ("evaluation took", "evaluate_seconds")):
        if seconds := run.get(column) or cost.get(column):
            rows.append((name, f"{seconds:.0f} s"))
    return ["## Where it comes from", _table(rows), "Settings and losses are in `manifest.json`."]


def _loading(record: Record) -> list[str]:
    base, path = json.dumps(record.manifest["base_model"]), json.dumps(str(record.path))
    highest = next((most for most in _VLLM_RANKS if most >= (record.rank or 0)), _VLLM_RANKS[-1])
    module, flags = f"{record.name}={path}", ""
    if record.on_experts:
        flags = " --enable-mixed-moe-lora-format"
        module = f"'{json.dumps({'name': record.name, 'path': str(record.path), 'is_3d_lora_weight': True})}'"
    served = (
        "For vLLM, which takes no such weights beside a base model, make them a model of their own:\n\n"
        '```python\nmodel.merge_and_unload().save_pretrained("merged")\ntokenizer.save_pretrained("merged")\n```'
        if _full(record)
        else f"```bash\nvllm serve {base} --enable-lora --max-lora-rank {highest}{flags} \\\n"
        f"  --lora-modules {module}\n```"
    )
    return [
        "## How to load it",
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"base = {base}\n"
        "tokenizer = AutoTokenizer.from_pretrained(base)\n"
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), {path})\n"
        "```",
        served,
        f"Ask it as `{record.name}`; never load another version under that name.",
    ]


def _kind(record: Record) -> str:
    return "full" if _full(record) else "lora"


def _full(record: Record) -> bool:
    return bool(record.manifest.get("settings", {}).get("train", {}).get("method") == "full")


def _limits(record: Record) -> list[str]:
    limits = [
        f"It was trained for the workload `{record.manifest['workload']}` and tested on nothing else.",
        "It was evaluated on answers that people corrected or called good, not on all questions; it has learned only "
        "what people corrected.",
        "It does not know what the company has changed since.",
    ]
    return ["## What it is not for", "\n".join(f"- {limit}" for limit in limits)]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return "\n".join(["| | |", "|---|---|", *(f"| {row} |" for row in cells)])


def _gathered(warehouse: Warehouse, folder: Path, path: Path, manifest: dict[str, Any]) -> Record:
    dataset_of = {"workload": manifest["workload"], "version": manifest["dataset_version"]}
    run_id = {"run_id": manifest["run_id"]}
    adapter = json.loads(text_of(folder / "adapter_config.json") or "{}")
    return Record(
        path=path,
        manifest=manifest,
        licence=licence_of(Path(manifest["base_model"])),
        rank=adapter.get("r"),
        on_experts=bool(adapter.get("target_parameters")),
        dataset=_parsed(warehouse.row(versions.QUERIES["dataset"], dataset_of), "card"),
        sources=warehouse.rows(QUERIES["sources"], dataset_of),
        people=warehouse.row(QUERIES["people"], dataset_of),
        run=_parsed(warehouse.row(QUERIES["run"], run_id), "reasons"),
        decision=_parsed(_parsed(warehouse.row(versions.QUERIES["gate_decision"], run_id), "reasons"), "figures"),
        approvals=warehouse.rows(
            QUERIES["approvals"], {"workload": manifest["workload"], "version": manifest["version"]}
        ),
        scores=[Score(**row) for row in warehouse.rows(QUERIES["scores"], run_id)],
    )


def _parsed(row: dict[str, Any] | None, column: str) -> dict[str, Any] | None:
    return row and {**row, column: json.loads(row[column])}
