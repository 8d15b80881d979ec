"""Which split a question belongs to."""

from collections.abc import Collection, Sequence

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

    The holdout gets its share of the questions, and at least its share, rounded down, of each label, so that each is
    judged on; where answers are no labels, of each topic. What chance gave it beyond its share is trained on.
    """
    known = {
        row.prompt_hash: stood
        for key in ("interaction_id", "prompt_hash")
        for row in evidence.rows
        if (stood := evidence.places.get(getattr(row, key))) is not None
    }
    drawn = {row.prompt_hash: split_of(row.identity, settings, generation) for row in rows}
    place = {
        question: known.get(question, "validation" if split == "validation" else "train")
        for question, split in drawn.items()
    }
    order = {row.prompt_hash: _drawn(row.identity, generation) for row in rows}

    def hold_out(questions: Collection[str], number: int) -> None:
        lacking = number - sum(place[one] == "holdout" for one in questions)
        free = (one for one in questions if one not in known and place[one] == "train")
        for question in sorted(free, key=order.__getitem__)[: max(lacking, 0)]:
            place[question] = "holdout"

    strata: dict[str, set[str]] = {}
    for row in rows:
        if (stratum := _label_of(row, evidence) or topic_of(row)) is not None:
            strata.setdefault(stratum, set()).add(row.prompt_hash)
    for questions in strata.values():
        hold_out(questions, int(settings.holdout_share * len(questions)))
    hold_out(place, round(settings.holdout_share * len(place)))
    return place


def topic_of(row: Example) -> str | None:
    """Its topic, where that says something."""
    return None if row.topic == OTHER else row.topic


def _label_of(row: Example, evidence: Evidence) -> str | None:
    """The label of its answer, where answers are of a closed set."""
    return next(iter(labels_of(evidence.metric.metric.groups(row.completion))), None)
