"""Which split a question belongs to."""

from collections.abc import Sequence

from retuned.retrain.data.evidence import Evidence
from retuned.retrain.data.examples import Example
from retuned.retrain.data.similarity import fraction
from retuned.retrain.data.topics import OTHER
from retuned.retrain.scoring.label import labels_of
from retuned.retrain.settings import DatasetSettings


def split_of(question: str, settings: DatasetSettings, generation: int) -> str:
    """Where a question, by its identity, that was never asked before belongs: holdout, validation or train.

    The generations are independent draws; see `holdout` for when one follows another.
    """
    place = _drawn(question, generation)
    if place < settings.holdout_share:
        return "holdout"
    return "validation" if place < settings.holdout_share + settings.validation_share else "train"


def _drawn(question: str, generation: int) -> float:
    return fraction(f"{generation} {question}" if generation else question)


def assigned_splits(
    rows: Sequence[Example], evidence: Evidence, settings: DatasetSettings, generation: int
) -> dict[str, str]:
    """The split of each question: where it stood first since the holdout was drawn; else by its hash.

    Where chance gives the new questions of a label too little of the holdout, those whose hash comes next are added:
    each label is judged on. Where answers are no labels, so is each topic.
    """
    known = {
        row.prompt_hash: stood
        for key in ("interaction_id", "prompt_hash")
        for row in evidence.rows
        if (stood := evidence.places.get(getattr(row, key))) is not None
    }
    place = {
        row.prompt_hash: known.get(row.prompt_hash) or split_of(row.identity, settings, generation) for row in rows
    }
    drawn = {row.prompt_hash: _drawn(row.identity, generation) for row in rows}
    strata: dict[str, set[str]] = {}
    for row in rows:
        if (stratum := _label_of(row, evidence) or topic_of(row)) is not None:
            strata.setdefault(stratum, set()).add(row.prompt_hash)
    for questions in strata.values():
        lacking = int(settings.holdout_share * len(questions)) - sum(place[one] == "holdout" for one in questions)
        free = (one for one in questions if one not in known and place[one] == "train")
        for question in sorted(free, key=drawn.__getitem__)[: max(lacking, 0)]:
            place[question] = "holdout"
    return place


def topic_of(row: Example) -> str | None:
    """Its topic, where that says something."""
    return None if row.topic == OTHER else row.topic


def _label_of(row: Example, evidence: Evidence) -> str | None:
    """The label of its answer, where answers are of a closed set."""
    return next(iter(labels_of(evidence.metric.metric.groups(row.completion))), None)
