"""Which split a question belongs to."""

from collections.abc import Sequence

from retuned.retrain.data.evidence import Evidence
from retuned.retrain.data.examples import Example
from retuned.retrain.data.similarity import fraction
from retuned.retrain.data.topics import OTHER
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

    Where chance gives the new questions of a topic too little of the holdout, those whose hash comes next are added:
    each topic is judged on.
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
    of_topic: dict[str, set[str]] = {}
    for row in rows:
        if (topic := topic_of(row)) is not None:
            of_topic.setdefault(topic, set()).add(row.prompt_hash)
    for questions in of_topic.values():
        lacking = int(settings.holdout_share * len(questions)) - sum(place[one] == "holdout" for one in questions)
        free = (one for one in questions if one not in known and place[one] == "train")
        for question in sorted(free, key=drawn.__getitem__)[: max(lacking, 0)]:
            place[question] = "holdout"
    return place


def topic_of(row: Example) -> str | None:
    """Its topic, where that says something."""
    return None if row.topic == OTHER else row.topic
