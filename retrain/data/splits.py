"""Assigns questions to splits."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from retuned.retrain.data.evidence import Evidence
from retuned.retrain.data.examples import Example
from retuned.retrain.data.identity import fraction
from retuned.retrain.data.topics import OTHER
from retuned.retrain.scoring.label import labels_of
from retuned.retrain.settings import DatasetSettings

LARGE = 20
"""A group of more questions may be larger than what its label or topic holds out."""
NEAR_TRAINING, NEAR_HOLDOUT = "near_training", "near_holdout"


def split_of(question: str, settings: DatasetSettings, generation: int) -> str:
    """Returns the split of a question that was never asked before, by its near form: holdout or train.

    Generations are independent draws; `holdout.generation` determines the current one.
    """
    return "holdout" if _drawn(question, generation) < settings.holdout_share else "train"


def _drawn(question: str, generation: int) -> float:
    return fraction(f"{generation} {question}" if generation else question)


def assigned_splits(
    rows: Sequence[Example],
    evidence: Evidence,
    settings: DatasetSettings,
    generation: int,
    learned: Collection[str],
    judged: Collection[str],
    bought: Collection[str] = (),
) -> dict[str, str]:
    """Returns the split of each question; NEAR_TRAINING or NEAR_HOLDOUT if a related question is on the other side.

    A question stays in the split that it first had since the holdout was drawn. Related questions share a split: that
    of one of them, or else the one that the hash of the first of them selects. The holdout gets its share of all
    questions, and its share of each label if that is one or more; if answers are not labels, of each topic. Large
    groups are drawn first, by systematic sampling, so that those of each size are held out in their share; a label or
    topic gets its share of the other questions. What does not fit into the holdout is trained on.

    Args:
        learned, judged: the groups that the champion was trained and evaluated on.
        bought: questions whose answers may not be learned. They are held out, beside the holdout's share of the others,
            unless a related question is on the other side.
    """
    group = {row.prompt_hash: evidence.related.of(row.prompt_hash) for row in rows}
    known = {
        row.prompt_hash: split
        for key in ("interaction_id", "prompt_hash")
        for row in rows
        if (split := evidence.places.get(getattr(row, key))) is not None
    }
    touched = _touched(group, known, learned, judged)
    # The first question of a group represents it. If it is one of an earlier dataset, the group has a split already.
    identity = {row.prompt_hash: row.near_form for row in rows}
    leader = {name: identity.get(name, name) for name in touched}
    taught = {name for question, name in group.items() if question not in bought}
    members = Counter(group.values())
    place = {
        name: "holdout" if "holdout" in sides or (not sides and name not in taught) else "train"
        for name, sides in touched.items()
    }
    order = {name: _drawn(leader[name], generation) for name in touched}
    counted = {
        question for question, name in group.items() if name in taught and (question in known or name not in judged)
    }
    free = {name for name, sides in touched.items() if not sides and place[name] == "train"}

    room = round(settings.holdout_share * len(counted)) - sum(place[group[one]] == "holdout" for one in counted)
    large = sorted(
        (name for name in free if LARGE < members[name] <= room), key=lambda name: (-members[name], order[name])
    )
    drawn = set(large)
    due, start = 0.0, order[large[0]] if large else 0.0
    for name in large:
        due += settings.holdout_share * members[name]
        if start * members[name] < due and members[name] <= room:
            place[name] = "holdout"
            free.discard(name)
            due -= members[name]
            room -= members[name]
    others = {question for question in counted if group[question] not in drawn}
    in_others = sum(place[group[one]] == "holdout" for one in others)
    share = (room + in_others) / len(others) if large and others else settings.holdout_share

    def hold_out(questions: Collection[str], share: float, whole: Callable[[float], int]) -> None:
        """Moves free groups to the holdout until it has its share of the questions."""
        own = counted.intersection(questions)
        missing = whole(share * len(own)) - sum(place[group[one]] == "holdout" for one in own)
        for name in sorted(free & {group[question] for question in questions}, key=order.__getitem__):
            if missing <= 0:
                break
            if members[name] <= max(missing, 1):
                place[name] = "holdout"
                free.discard(name)
                missing -= members[name]

    for questions in _strata(rows, evidence):
        hold_out(others.intersection(questions), share, int)
    hold_out(group, settings.holdout_share, round)
    return {
        question: _side(known.get(question, place[name]), name in learned, "holdout" in touched[name])
        for question, name in group.items()
    }


def _touched(
    group: Mapping[str, str], known: Mapping[str, str], learned: Collection[str], judged: Collection[str]
) -> dict[str, set[str]]:
    """Returns the splits in which each group already has questions."""
    touched: dict[str, set[str]] = {name: set() for name in group.values()}
    for question, name in group.items():
        if question in known:
            touched[name].add(known[question])
    for name, sides in touched.items():
        sides |= {"train"} if name in learned else set()
        sides |= {"holdout"} if name in judged else set()
    return touched


def _strata(rows: Sequence[Example], evidence: Evidence) -> Iterable[set[str]]:
    """Returns the questions of each label; if answers are not labels, of each topic."""
    strata: dict[str, set[str]] = {}
    for row in rows:
        if (stratum := _label_of(row, evidence) or topic_of(row)) is not None:
            strata.setdefault(stratum, set()).add(row.prompt_hash)
    return strata.values()


def _side(split: str, learned: bool, held_out: bool) -> str:
    """Returns the split, or the reason why a question can be on neither side."""
    if split == "holdout":
        return NEAR_TRAINING if learned else split
    return NEAR_HOLDOUT if held_out else split


def topic_of(row: Example) -> str | None:
    """Returns the topic of a row; None for OTHER."""
    return None if row.topic == OTHER else row.topic


def _label_of(row: Example, evidence: Evidence) -> str | None:
    """Returns the label of a row's answer, if answers are labels."""
    return next(iter(labels_of(evidence.metric.metric.groups(row.completion))), None)
