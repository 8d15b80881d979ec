"""The judge's verdicts on the candidate's answers to unrated traffic."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from retuned.consumers.common.durable import replace_text
from retuned.retrain.data import dataset as datasets
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.decision import judge
from retuned.retrain.decision.compare import answers
from retuned.retrain.decision.evaluation import CANDIDATE, CHAMPION, LOGGED, Evaluation
from retuned.retrain.decision.judge import Opinion
from retuned.retrain.decision.traffic import in_random_order
from retuned.retrain.scoring.judge import Judge
from retuned.retrain.stages.context import Context

_FILE = "opinion.json"


def with_verdicts(run: Context, dataset: Dataset, rows: list[Evaluation]) -> list[Evaluation]:
    """Sets the verdicts of the judge, if one is configured.

    The judge compares answers that differ, in random order, until it has compared evaluate.judge_examples pairs. Equal
    answers up to there are ties, so that the verdicts are a sample of the traffic. A pair on which the judge fails has
    no verdict, and ends the sample that the guard uses (see `decision.traffic`).
    """
    settings = run.settings.evaluate
    before = {row.row_id: row.output for model in (LOGGED, CHAMPION) for row in answers(rows, model, "traffic")}
    if settings.judge_url is None or not before:
        return rows
    if not (run.folder / _FILE).is_file():
        examples = {row["row_id"]: row for row in dataset.split("traffic")}
        sample = _sample(answers(rows, CANDIDATE, "traffic"), settings.judge_examples)
        differing = [
            _pair(examples[row.row_id], before[row.row_id], row.output, run.settings.objective)
            for row in sample
            if row.agreement != 1
        ]
        metric = datasets.metric_of(dataset, run.settings).metric
        criteria = metric.criteria if isinstance(metric, Judge) else None
        verdicts = judge.compare(differing, settings, run.stop, criteria)
        run.record.paid(verdicts.tokens)
        ties = {row.row_id: "tie" for row in sample if row.agreement == 1}
        replace_text(run.folder / _FILE, json.dumps(asdict(replace(verdicts, verdicts=ties | verdicts.verdicts))))
    verdict = opinion(run).verdicts
    return [
        replace(row, verdict=verdict.get(row.row_id)) if (row.model, row.split) == (CANDIDATE, "traffic") else row
        for row in rows
    ]


def opinion(run: Context) -> Opinion:
    """Returns the judge's verdicts on unrated traffic."""
    kept = run.folder / _FILE
    return Opinion(**json.loads(kept.read_text(encoding="utf-8"))) if kept.is_file() else Opinion()


def _sample(rows: Sequence[Evaluation], most: int) -> list[Evaluation]:
    """Returns answers in random order, until `most` of them differ."""
    sample: list[Evaluation] = []
    differing = 0
    for row in in_random_order(rows):
        if differing == most:
            break
        sample.append(row)
        differing += row.agreement != 1
    return sample


def _pair(row: dict[str, Any], champion: str, candidate: str, objective: str) -> judge.Pair:
    """Returns the two answers to a row of traffic, which has no approved answer."""
    return judge.Pair(
        row_id=row["row_id"],
        conversation="\n".join(f"{turn['role']}: {turn['content']}" for turn in json.loads(row["messages"])),
        context="\n\n".join(json.loads(row["context"])) if row["context"] else None,
        approved="",
        champion=champion,
        candidate=candidate,
        objective=objective,
    )
