"""What an evaluation records: how one model answered one row."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

BASE, CHAMPION, CANDIDATE = "base", "champion", "candidate"
LOGGED = "logged"
"""Stands for a model: the answers that production gave, from any model."""

FOLD = "fold"
"""Stands for a split: training rows of the candidate, each answered by a model that was trained without it."""

SLICES = "slices"
"""Stands for a split: further rows of the holdout, asked so that its small slices can be tested. They count for the
slices that they were drawn for, and for no mean of the holdout."""

UNASKED = "holdout_rows_unasked"
"""Figure of an evaluation: holdout rows that were not drawn."""


@dataclass(frozen=True)
class Evaluation:
    """How one model answered one row.

    Attributes:
        model: base, champion or candidate; or logged, for the answer that production gave, which has no loss, tokens
            or time.
        split: holdout, regression, traffic (recent unrated questions, which have an agreement and no score), general
            (see `scoring.general`), fold (see `data.folds`; the candidate's answer comes from a model that was
            trained without the row) or slices (see `SLICES`).
        kind: the feedback on the logged answer: correction, or accepted where people rated it good.
        topic: the question's topic; None if the dataset has none.
        origin: the dataset whose holdout first contained a regression row; None for other splits.
        language: the language of question and approved answer (ISO 639-1); None if they are too short to detect it.
        turns: the number of user turns in the conversation, including the one that is answered.
        with_context: the row has passages on which the answer should be based.
        score: the workload's metric, 0 to 1 (see `scoring.metric`); None if it abstains.
        loss: the loss of the approved answer in nats per token.
        hallucinated: None if it cannot be determined.
        grounded: the share of the answer's values found in the context or the question; None without context.
        consistency: the similarity of tone and format to the approved answer, 0 to 1 (see `tone.features`).
        refused: the answer is a refusal and the approved answer is not.
        length_ratio: the number of its words divided by that of the approved answer.
        output_tokens: the number of tokens in the answer.
        latency_seconds: the number of tokens times the model's time per token, as the engine measures it. The base
            model without adapter gets the candidate's time per token (see `generation.engine`).
        verdict: the LLM judge's verdict on the candidate's answer against the champion's: win, tie or loss; None if
            it was not asked or gave no usable answer.
        detail: an explanation of the score for people.
        valid: the answer has the form that programs read (JSON, tool calls); None if no form is required.
        answered: the label that the answer was read as, if any.
        groups: the slices that the row belongs to by its approved answer: the tools that it calls, and the metric's
            groups (see `Metric.groups`). Of split slices: the slices that the row was drawn for.
        agreement: the metric's agreement of the candidate's answer with the champion's, or with the logged answer if
            no champion serves (see `Metric.agreement`), 0 to 1; None for other models, or if neither is known.
        cluster: the conversation, document or other group of dependent rows; None if the row stands alone.
        asked: how many conversations of the dataset's sample of recent traffic ask this question.
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
    cluster: str | None = None
    asked: int = 0

    @property
    def seconds_per_token(self) -> float | None:
        """The time per token; None if unknown."""
        if self.latency_seconds is None or self.output_tokens is None:
            return None
        return self.latency_seconds / max(self.output_tokens, 1)

    @property
    def slices(self) -> list[str]:
        """The slices of the holdout that the row counts for."""
        if self.split == SLICES:
            return self.groups
        return [
            *([f"topic:{self.topic}"] if self.topic else []),
            *([f"language:{self.language}"] if self.language else []),
            "turns:one" if self.turns == 1 else "turns:several",
            "context:with" if self.with_context else "context:without",
            *self.groups,
        ]


def as_row(evaluation: Evaluation, names: Mapping[str, str]) -> dict[str, Any]:
    """Returns the columns of an evaluation in the table `evaluations`. The dataset has its cluster and `asked`.

    Args:
        names: the names that base, champion and candidate have in the table.
    """
    values = asdict(evaluation) | {"model": names[evaluation.model], "groups": json.dumps(evaluation.groups)}
    del values["cluster"], values["asked"]
    return values


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
    """Returns the means over the holdout for each model, under names such as `consistency_base`."""
    means: dict[str, float] = {}
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model and row.split == "holdout"]
        for attribute, name in _SUMMARISED.items():
            known = [value for row in own if (value := getattr(row, attribute)) is not None]
            if known:
                means[f"{name}_{model}"] = fmean(known)
    return means
