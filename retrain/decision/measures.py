"""The measures of an answer: those of its text alone, and those by the workload's metric."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from retuned.consumers.common import tone, tool_calls
from retuned.consumers.common.refusals import refuses
from retuned.retrain.decision.evaluation import CANDIDATE, CHAMPION, LOGGED, SLICES, Evaluation
from retuned.retrain.scoring import style
from retuned.retrain.scoring.facts import conflicts, exclude_each_other, token_f1, unsupported
from retuned.retrain.scoring.general import is_right, prompts
from retuned.retrain.scoring.metric import Metric
from retuned.retrain.scoring.score import Score

_SCORED_AT_ONCE = 4
"""Concurrent requests to a judge. Other metrics do not wait for anything."""


def measured(split: str, row: dict[str, Any], model: str, output: str) -> Evaluation:
    """Returns the evaluation of an answer by its text alone; `scored` adds the score.

    Args:
        row: an example's columns; of the split slices, also `slices` (see `evaluate.for_slices`).
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
        refused=refuses(output) and not refuses(approved),
        length_ratio=style.length_ratio(output, approved),
        latency_seconds=None,
        output=output,
        kind=row.get("kind"),
        groups=row["slices"] if split == SLICES else [f"tool:{name}" for name in tool_calls.names(approved)],
        cluster=row.get("cluster"),
        asked=row.get("asked") or 0,
    )


def hallucinated(answer: str, approved: str, asked: str, context: list[str] | None) -> bool | None:
    """Returns whether the answer states something unsupported; None if that cannot be determined.

    With context: the answer has a number, price, date or time that is neither in the context nor in the question nor in
    the approved answer. People may know better than a stale passage. Without context: the answer conflicts with the
    approved answer (see `scoring.facts.conflicts`).
    """
    if context:
        _, without = unsupported(answer, "\n".join([*context, asked, approved]))
        return any(map(exclude_each_other, without))
    return conflicts(answer, approved)


def grounded(answer: str, asked: str, context: list[str] | None) -> float | None:
    """Returns the share of an answer's values (numbers, prices, dates, times) found in the context or the question.

    None without context, or if the answer states no value.
    """
    if not context:
        return None
    stated, without = (
        list(filter(exclude_each_other, values)) for values in unsupported(answer, "\n".join([*context, asked]))
    )
    return 1 - len(without) / len(stated) if stated else None


def scored(
    evaluations: Sequence[Evaluation], examples: Sequence[Mapping[str, Any]], metric: Metric
) -> tuple[list[Evaluation], int]:
    """Returns the evaluations with their scores, and the tokens that a judge was paid for.

    Args:
        examples: the rows of the dataset that the evaluations are about.
    """
    by_id = {example["row_id"]: example for example in examples}

    def score(row: Evaluation) -> Score:
        example = by_id[row.row_id]
        return metric.score(row.output, example["completion"], example)

    with ThreadPoolExecutor(_SCORED_AT_ONCE) as pool:
        scores = list(pool.map(score, evaluations))
    rows = [
        replace(
            row,
            score=score.value,
            detail=score.detail,
            valid=score.valid,
            answered=score.label,
            groups=row.groups
            if row.split == SLICES
            else list(dict.fromkeys([*row.groups, *metric.groups(by_id[row.row_id]["completion"])])),
        )
        for row, score in zip(evaluations, scores, strict=True)
    ]
    return rows, sum(score.tokens for score in scores)


def checked(rows: Sequence[Evaluation]) -> list[Evaluation]:
    """Returns the answers to the general prompts with their scores: 1 for a right one, else 0."""
    known = {prompt.id: prompt for prompt in prompts()}
    return [replace(row, score=float(is_right(known[row.row_id], row.output))) for row in rows]


def with_agreement(
    rows: Sequence[Evaluation], examples: Sequence[Mapping[str, Any]], metric: Metric
) -> list[Evaluation]:
    """Sets the agreement of the candidate's answers to holdout and traffic with the answers that they would replace.

    Args:
        rows: the evaluations of all models. Rows that can have no agreement are returned unchanged.
        examples: the rows of holdout and traffic.
    """
    by_id = {example["row_id"]: example for example in examples}
    # The champion's answers override the logged ones.
    before = {(row.split, row.row_id): row.output for model in (LOGGED, CHAMPION) for row in rows if row.model == model}

    def agreement(row: Evaluation) -> float | None:
        known = before.get((row.split, row.row_id))
        if row.model != CANDIDATE or row.split not in ("holdout", "traffic") or known is None:
            return None
        return metric.agreement(row.output, known, by_id[row.row_id])

    return [replace(row, agreement=agreement(row)) for row in rows]
