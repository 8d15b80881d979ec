"""The gate's decision on the evaluations of a run."""

from collections.abc import Sequence
from dataclasses import replace

from retuned.retrain.decision import gate
from retuned.retrain.decision.evaluation import BASE, CANDIDATE, CHAMPION, FOLD, LOGGED, SLICES, Evaluation
from retuned.retrain.decision.pairs import Decision
from retuned.retrain.scoring.metric import Metric
from retuned.retrain.settings import Settings

_WORDING = ("text",)
"""Metrics that compare wording. They score a right answer in other words low."""


def compare(
    rows: Sequence[Evaluation],
    metric: Metric,
    settings: Settings,
    *,
    serving: bool,
    tries: int,
    unasked: int,
    forgets: bool = False,
    conversations: int = 0,
) -> Decision:
    """Returns the gate's decision on the holdout and, if there are folds, on both together.

    The decision with folds counts as another try, if the one on the holdout alone was one. The figure `earlier_tries`
    is what was counted before, for who judges the version again.

    Args:
        serving: a champion serves.
        tries: earlier comparisons with the champion, or with the base model.
        unasked: the number of holdout rows that were not drawn.
        forgets, conversations: see `gate.decide`.
    """
    opponent = CHAMPION if serving else BASE

    def decide(tries: int, *splits: str) -> Decision:
        def of_model(model: str) -> list[Evaluation]:
            return [row for split in splits for row in answers(rows, model, split)]

        return gate.decide(
            of_model(opponent),
            of_model(CANDIDATE),
            answers(rows, opponent, "regression"),
            answers(rows, CANDIDATE, "regression"),
            settings.gate,
            tries,
            logged=of_model(LOGGED),
            folded=len(answers(rows, CANDIDATE, FOLD)) if FOLD in splits else 0,
            serving=serving,
            traffic=answers(rows, CANDIDATE, "traffic"),
            general=(answers(rows, BASE, "general"), answers(rows, CANDIDATE, "general")),
            structured=metric.structured,
            unasked=unasked,
            in_other_words=metric.name not in _WORDING,
            incumbent=settings.incumbent if settings.incumbent.url else None,
            forgets=forgets,
            conversations=conversations,
            further=(answers(rows, opponent, SLICES), answers(rows, CANDIDATE, SLICES)),
        )

    decision = decide(tries, "holdout")
    if any(row.split == FOLD for row in rows):
        decision = decide(tries + ("tries" in decision.figures), "holdout", FOLD)
    return replace(decision, figures=decision.figures | {"earlier_tries": float(tries)})


def answers(rows: Sequence[Evaluation], model: str, split: str) -> list[Evaluation]:
    """Returns the evaluations of one model on one split."""
    return [row for row in rows if row.model == model and row.split == split]
