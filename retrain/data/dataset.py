"""Datasets: what a training learns from and is judged on, written once and never changed."""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.common import durable as files
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, insert
from retuned.retrain import versions
from retuned.retrain.data import holdout
from retuned.retrain.data.consensus import QUARANTINED, Consensus, find_consensus
from retuned.retrain.data.examples import (
    QUERIES,
    Contradictions,
    Example,
    QuestionIndex,
    agree,
    one_of_each_interaction,
    read_statements,
    restored,
    thumbs,
)
from retuned.retrain.data.filters import filtered
from retuned.retrain.data.similarity import Template, forget, fraction, normalise, text_hash
from retuned.retrain.data.topics import OTHER, Topics
from retuned.retrain.scoring.facts import facts
from retuned.retrain.settings import DatasetSettings, Settings

SPLITS = ("train", "validation", "holdout", "regression")
THUMBS = "thumbs"
SET_ASIDE = "set_aside"

_TIMES = ("timestamp", "received_at")
_COLUMNS = [(name, pa.string()) for name in Example.__dataclass_fields__ if name not in _TIMES] + [
    (name, pa.timestamp("us")) for name in _TIMES
]
_SCHEMAS = {
    **dict.fromkeys(SPLITS, pa.schema([*_COLUMNS, ("replay", pa.bool_())])),
    THUMBS: pa.schema([*_COLUMNS, ("desirable", pa.bool_())]),
    SET_ASIDE: pa.schema([*_COLUMNS, ("reason", pa.string()), ("detail", pa.string())]),
}
_REASONS = ("superseded", "duplicates", "near_holdout", "near_training", "spent", "regression_superseded")
_LEAST = 5  # rows of a group are no flood
FREQUENT = 10
"""Questions that make an answer or a topic frequent, when they are also at least FREQUENT_SHARE of all."""
FREQUENT_SHARE = 0.01
# What judges rows one by one, and what to do when it takes most of a class. Shares thin a class out and are not meant,
# nor is the quarantine of accounts, which an attacker could use to stop all training.
_CURATION = {
    "superseded": "check the newest corrections",
    "outvoted": "check who disagrees, or set dataset.quarantine: false",
    "contradicts_expert": "check the experts' corrections, or set dataset.quarantine: false",
    "duplicates": "raise dataset.near_duplicate_similarity",
    "near_holdout": "raise dataset.near_duplicate_similarity",
    "incomplete": "take incomplete out of dataset.filters",
    "ungrounded": "check the passages, or take ungrounded out of dataset.filters",
}
_REPLACED = ("superseded", "outvoted", "contradicts_expert")
# In which order a question's place is looked for, as the query `places` numbers them.
_PLACES = ("holdout", "validation", "train")


class DatasetRefused(RetunedError):
    """No dataset is made of this evidence. Nothing was written."""


class TooFewRows(DatasetRefused):
    """There is not enough evidence to learn from and to be judged on."""


class LostClass(DatasetRefused):
    """Most questions of a frequent answer or topic would be left out: it would be neither learned nor judged."""


class Leak(RetunedError):
    """Something that is judged on would have been trained on. Nothing was written."""


@dataclass(frozen=True)
class Dataset:
    """A written dataset.

    Attributes:
        path: its folder: `train.parquet`, `validation.parquet`, `holdout.parquet`, `regression.parquet`;
            `thumbs.parquet`, answers that people called helpful or not, for preference training; `set_aside.parquet`,
            what was left out and why; `topics.json`, by which the next dataset names the same topics; `card.json`.
        rows: number of rows of each split.
        replay: rows of train that repeat an earlier dataset.
        card: what it was made from, and what was left out and why.
    """

    version: str
    workload: str
    created_at: datetime
    path: Path
    rows: dict[str, int]
    replay: int
    card: dict[str, Any]

    def split(self, name: str) -> list[dict[str, Any]]:
        """The rows of a split: an `Example`'s columns and `replay`. Of `thumbs`, `desirable` in its place; of
        `set_aside`, `reason` and `detail`."""
        rows: list[dict[str, Any]] = pq.read_table(self.path / f"{name}.parquet").to_pylist()
        return rows


def build(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> Dataset:
    """Make the dataset of a workload from the evidence that is newer than the champion's dataset, or from all of it.

    The same evidence gives the same version, which is then written once. Feedback that is set aside is in
    the table `quarantine` afterwards.

    Raises:
        TooFewRows: fewer rows than dataset.minimum_rows, or than the gate needs in the holdout.
        LostClass: most questions of a frequent answer or topic would be left out.
        Leak: the splits share a question; a fault of this program.
    """
    champion = versions.champion(warehouse, workload)
    earlier = _Earlier.of(warehouse, settings, workload, champion.dataset_version if champion else None)
    evidence = _Evidence.of(warehouse, settings, workload, earlier.generation)
    try:
        chosen = _choose(evidence, earlier, settings.dataset)
        _check_enough(chosen, settings, workload)
        _check_classes(chosen, settings.dataset.near_duplicate_similarity, evidence.template, workload)
        check_leaks(chosen.splits, chosen.thumbs, settings.dataset.near_duplicate_similarity, evidence.template)
    finally:
        forget()
    content = [[name, sorted(row.row_id for row in chosen.splits[name])] for name in SPLITS]
    content.append([THUMBS, sorted(f"{row.row_id} {desirable}" for row, desirable in chosen.thumbs)])
    version = text_hash(json.dumps(content))[:12]
    card = {
        "workload": workload,
        "evidence_until": max(row.received_at for row in evidence.rows).isoformat(),
        "earlier_datasets": earlier.versions,
        "generation": earlier.generation,
        "rows": {name: len(chosen.splits[name]) for name in SPLITS},
        "thumbs": len(chosen.thumbs),
        "replay": len(chosen.replayed),
        "left_out": chosen.left_out,
        **_profile(
            [row for name in ("train", "validation", "holdout") for row in chosen.splits[name]], chosen.replayed
        ),
        "settings": settings.dataset.model_dump(mode="json"),
    }
    quarantined = [one for one in evidence.left if one.reason in QUARANTINED]
    return _write(warehouse, settings, workload, version, chosen, quarantined, card, now)


def load(warehouse: Warehouse, workload: str, version: str) -> Dataset | None:
    """A dataset that was written, or None."""
    row = warehouse.row(QUERIES["dataset"], {"workload": workload, "version": version})
    if row is None:
        return None
    card = json.loads(row["card"])
    return Dataset(version, workload, row["created_at"], Path(row["path"]), card["rows"], row["replay"], card)


def logged_answers(warehouse: Warehouse, dataset: Dataset) -> dict[str, str]:
    """What production answered to the questions of the holdout, by row_id, as far as it is known."""
    parameters = {"workload": dataset.workload, "version": dataset.version}
    return {row["row_id"]: row["response"] for row in warehouse.rows(QUERIES["logged_answers"], parameters)}


@dataclass(frozen=True)
class Learnable:
    """What a training from scratch would learn from, oldest first.

    Attributes:
        thumbs: answers that people called helpful (True) or not.
    """

    rows: list[Example]
    thumbs: list[tuple[Example, bool]]


def learnable(warehouse: Warehouse, settings: Settings, workload: str) -> Learnable:
    """Chosen as for a dataset: what is set aside, what is out of date, what says the same twice, and what comes near
    to a question that is judged on, now or by the champion and those before it, is not learned from."""
    champion = versions.champion(warehouse, workload)
    earlier = _Earlier.of(warehouse, settings, workload, champion.dataset_version if champion else None)
    anew = replace(earlier, versions=[], until=None, train=[])
    chosen = _choose(_Evidence.of(warehouse, settings, workload, earlier.generation), anew, settings.dataset)
    forget()
    return Learnable(
        sorted(chosen.splits["train"] + chosen.splits["validation"], key=lambda row: (row.timestamp, row.row_id)),
        chosen.thumbs,
    )


def check_leaks(
    splits: Mapping[str, Sequence[Example]],
    thumbs: Sequence[tuple[Example, bool]],
    similarity: float,
    template: Template,
) -> None:
    """Make sure that nothing learned from asks a question that is judged on (see `QuestionIndex`).

    Raises:
        Leak: it names the first such row, its split and the question.
    """
    judged: QuestionIndex[Example] = QuestionIndex(similarity, template)
    for row in chain(splits["holdout"], splits["regression"]):
        judged.add(row, row)
    learned = [(name, row) for name in ("train", "validation") for row in splits[name]]
    for name, row in chain(learned, ((THUMBS, row) for row, _ in thumbs)):
        near = next(judged.same(row), None)
        if near is not None:
            raise Leak(
                f"dataset: row {row.row_id} of {name} asks what row {near.row_id} is judged on ({near.question!r}); "
                "nothing was written: please report this"
            )


@dataclass(frozen=True)
class _Left:
    """A row that was left out, and why."""

    row: Example
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class _Evidence:
    """What may be learned from.

    Attributes:
        rows: corrections and accepted answers, one of an interaction.
        left: what is set aside, or not fit to be learned.
        topics: those that earlier datasets know.
        places: split of each question, by hash and by interaction, that stood in an earlier dataset of today's draw.
        template: what the prompts share.
    """

    rows: list[Example]
    thumbs: list[tuple[Example, bool]]
    left: list[_Left]
    consensus: Consensus
    topics: Topics
    places: dict[str, str]
    template: Template

    @classmethod
    def of(cls, warehouse: Warehouse, settings: Settings, workload: str, generation: int) -> "_Evidence":
        asked = settings.dataset
        said = read_statements(warehouse, workload, asked)
        template = Template(row.prompt for row in [*said.corrections, *said.accepted])
        consensus = _consensus(warehouse, [*said.corrections, *said.accepted], asked, template)
        if consensus.distrusted:  # nor does it count against an answer that they call it bad
            said = read_statements(warehouse, workload, asked, consensus.distrusted)
            consensus = _consensus(warehouse, [*said.corrections, *said.accepted], asked, template)
        all = [*said.corrections, *said.accepted]
        unfit = filtered([row for row in all if row.feedback_id not in consensus.doubts], said.cut, asked.filters)
        left = {
            row.feedback_id: _Left(
                row, consensus.doubts[row.feedback_id].reason, consensus.doubts[row.feedback_id].detail
            )
            if row.feedback_id in consensus.doubts
            else _Left(row, unfit[row.feedback_id])
            for row in all
            if row.feedback_id in consensus.doubts or row.feedback_id in unfit
        }
        poor = {one.row.interaction_id for one in left.values() if one.row.kind == "accepted"}
        places = {
            row["key"]: _PLACES[row["place"]]
            for row in warehouse.rows(QUERIES["places"], {"workload": workload, "generation": generation})
        }
        latest = warehouse.row(QUERIES["latest_dataset"], {"workload": workload})
        return cls(
            rows=one_of_each_interaction(said, lambda row: row.feedback_id not in left),
            thumbs=[
                (row, helpful)
                for row, helpful in thumbs(warehouse, workload, asked, consensus.distrusted)
                if row.feedback_id not in consensus.doubts and not (helpful and row.interaction_id in poor)
            ],
            left=list(left.values()),
            consensus=consensus,
            topics=Topics.load(Path(latest["path"])) if latest else Topics(),
            places=places,
            template=template,
        )


def _consensus(
    warehouse: Warehouse, said: Sequence[Example], settings: DatasetSettings, template: Template
) -> Consensus:
    if not settings.quarantine:
        return Consensus()
    accounts = sorted({row.user_id for row in said if row.user_id is not None})
    seen = warehouse.rows(QUERIES["first_seen"], {"accounts": accounts})
    first_seen = {row["user_id"]: row["first_seen"] for row in seen}
    return find_consensus(said, first_seen, settings.near_duplicate_similarity, template)


@dataclass(frozen=True)
class _Earlier:
    """What the champion and those before it learned from and were judged on.

    Attributes:
        generation: the draw that questions are held out by today.
        spent: what stood in holdouts since then that were drawn before today's; it is among `judged` too.
    """

    versions: list[str]
    until: datetime | None
    train: list[Example]
    judged: list[Example]
    generation: int
    spent: list[Example]

    @classmethod
    def of(cls, warehouse: Warehouse, settings: Settings, workload: str, version: str | None) -> "_Earlier":
        today = holdout.generation(warehouse, workload, version, settings.gate.holdout_tries)
        train: dict[str, Example] = {}
        judged: dict[str, Example] = {}
        first: dict[str, str] = {}
        versions = []
        until = None
        # Newest first: of two datasets that hold one prompt, the newer answer counts.
        for later in holdout.spent(warehouse, workload, version, today):
            _gather(_known(warehouse, workload, later), ("holdout",), judged, first)
        spent = list(judged.values())
        earlier = {"workload": workload, "version": version}
        for row in warehouse.rows(QUERIES["earlier_datasets"], earlier) if version else ():
            dataset = _known(warehouse, workload, row["version"])
            versions.append(dataset.version)
            until = until or datetime.fromisoformat(dataset.card["evidence_until"])
            _gather(dataset, ("train",), train, first)
            _gather(dataset, ("holdout", "regression"), judged, first)
        regression = [replace(row, origin=first.get(row.prompt_hash)) for row in judged.values()]
        return cls(versions, until, list(train.values()), regression, today, spent)


def _known(warehouse: Warehouse, workload: str, version: str) -> Dataset:
    dataset = load(warehouse, workload, version)
    assert dataset is not None
    return dataset


def _gather(dataset: Dataset, splits: Iterable[str], into: dict[str, Example], first: dict[str, str]) -> None:
    """Newest dataset first: `first` ends as where a prompt was held out first."""
    for split in splits:
        for values in dataset.split(split):
            values.pop("replay")
            row = restored(values)
            into.setdefault(row.prompt_hash, row)
            if split == "holdout":
                first[row.prompt_hash] = dataset.version


@dataclass(frozen=True)
class _Chosen:
    splits: dict[str, list[Example]]
    replayed: frozenset[str]
    thumbs: list[tuple[Example, bool]]
    left: list[_Left]
    topics: Topics

    @property
    def left_out(self) -> dict[str, int]:
        return dict.fromkeys(_REASONS, 0) | dict(Counter(left.reason for left in self.left))


def _choose(evidence: _Evidence, earlier: _Earlier, settings: DatasetSettings) -> _Chosen:
    similarity, template = settings.near_duplicate_similarity, evidence.template
    outdated = [one.row for one in evidence.left if one.reason == "superseded"]
    contradictions = Contradictions(
        evidence.rows, [*earlier.train, *earlier.judged, *outdated], earlier.until, similarity, template
    )

    def indexed(rows: Iterable[Example]) -> QuestionIndex[bool]:
        index: QuestionIndex[bool] = QuestionIndex(similarity, template)
        for row in rows:
            index.add(row, True)
        return index

    def fresh(row: Example) -> bool:
        return earlier.until is None or row.received_at > earlier.until

    def still_true(row: Example) -> bool:
        return row.feedback_id not in evidence.consensus.doubts and contradictions.of(row, earlier=True) is None

    left = [one for one in evidence.left if fresh(one.row)]
    valid = []
    for row in filter(fresh, evidence.rows):
        against = contradictions.of(row, earlier=False)
        if against is None:
            valid.append(row)
        else:
            left.append(_Left(row, "superseded", f"{against.feedback_id} says: {against.completion}"))
    distinct, twice = _distinct(valid, QuestionIndex(similarity, template))
    left += twice
    distinct = sorted(distinct, key=lambda row: (row.timestamp, row.row_id), reverse=True)[: settings.maximum_rows]
    distinct = _capped(distinct, "user_share", _capped_user, lambda _: settings.maximum_user_share, 2, left)
    distinct = _capped(
        distinct,
        "source_share",
        lambda row: row.taught_by,
        lambda name: settings.maximum_source_shares.get(name, 1),
        1,
        left,
    )
    topics = evidence.topics.learned([row.question for row in distinct], settings.topics)

    def named(rows: Sequence[Example]) -> list[Example]:
        names = topics.of([row.question for row in rows])
        return [replace(row, topic=name) for row, name in zip(rows, names, strict=True)]

    distinct = named(distinct)
    place = _assigned_splits(distinct, evidence, settings, earlier.generation)
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for row in distinct:
        splits[place[row.prompt_hash]].append(row)

    # A prompt that the champion was trained on proves nothing, and one that is judged on is never trained on.
    untaught = _apart(splits["holdout"], indexed(earlier.train), "near_training", left)
    held_out = _apart(untaught, indexed(earlier.spent), "spent", left)
    # Once judged on, always judged on: a row leaves the regression set only for newer evidence.
    asked = {row.prompt_hash for row in held_out}
    regression: list[Example] = []
    for row in earlier.judged:
        if row.prompt_hash in asked:
            continue
        if still_true(row):
            regression.append(row)
        else:
            left.append(_Left(row, "regression_superseded"))
    judged = indexed(chain(held_out, regression))
    for name in ("train", "validation"):
        splits[name] = _apart(splits[name], judged, "near_holdout", left)
    splits["train"] = _capped(splits["train"], "topic_share", _topic, lambda _: settings.maximum_topic_share, 2, left)

    taught = {row.prompt_hash for row in splits["train"] + splits["validation"]}
    old = [
        row for row in earlier.train if row.prompt_hash not in taught and still_true(row) and not any(judged.same(row))
    ]
    share = min(settings.replay_share, 0.99)
    wanted = round(len(splits["train"]) * share / (1 - share))
    replay = named(sorted(old, key=lambda row: row.row_id)[:wanted])  # by hash: an even draw, and the same each time
    splits |= {"train": splits["train"] + replay, "holdout": held_out, "regression": named(regression)}
    thumbs = [
        (row, desirable)
        for row, desirable in evidence.thumbs
        if fresh(row)
        and "holdout"
        not in (
            place.get(row.prompt_hash),
            split_of(row.identity, settings, earlier.generation),
            evidence.places.get(row.prompt_hash),
            evidence.places.get(row.interaction_id),
        )
        and not any(judged.same(row))
    ]
    topical = zip(named([row for row, _ in thumbs]), (desirable for _, desirable in thumbs), strict=True)
    oldest_first = sorted(topical, key=lambda thumb: (thumb[0].timestamp, thumb[0].row_id))
    return _Chosen(splits, frozenset(row.row_id for row in replay), oldest_first, left, topics)


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


def _assigned_splits(
    rows: Sequence[Example], evidence: _Evidence, settings: DatasetSettings, generation: int
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
        if (topic := _topic(row)) is not None:
            of_topic.setdefault(topic, set()).add(row.prompt_hash)
    for questions in of_topic.values():
        lacking = int(settings.holdout_share * len(questions)) - sum(place[one] == "holdout" for one in questions)
        free = (one for one in questions if one not in known and place[one] == "train")
        for question in sorted(free, key=drawn.__getitem__)[: max(lacking, 0)]:
            place[question] = "holdout"
    return place


def _capped(
    rows: list[Example],
    reason: str,
    group: Callable[[Example], str | None],
    share: Callable[[str], float],
    even_shares: int,
    left: list[_Left],
) -> list[Example]:
    """The rows without what a group has beyond its share; what is kept is the most trusted, then drawn by hash.

    No group is cut below `even_shares` times what each would have if all had the same. Rows of no group stay.
    """
    groups: dict[str, list[Example]] = {}
    for row in rows:
        if (name := group(row)) is not None:
            groups.setdefault(name, []).append(row)
    dropped: set[str] = set()
    for name, members in groups.items():
        most = int(max(share(name), min(even_shares / len(groups), 1)) * len(rows))
        for row in sorted(members, key=lambda row: (-row.rank, row.row_id))[max(most, _LEAST) :]:
            dropped.add(row.row_id)
            left.append(_Left(row, reason, f"{len(members)} rows of {name}"))
    return [row for row in rows if row.row_id not in dropped]


def _capped_user(row: Example) -> str | None:
    return None if row.source in ("expert", "demonstration") else row.user_id


def _topic(row: Example) -> str | None:
    return None if row.topic == OTHER else row.topic


def _apart(rows: Iterable[Example], others: QuestionIndex[bool], reason: str, left: list[_Left]) -> list[Example]:
    kept = []
    for row in rows:
        if any(others.same(row)):
            left.append(_Left(row, reason))
        else:
            kept.append(row)
    return kept


def _profile(rows: Sequence[Example], replayed: frozenset[str]) -> dict[str, Any]:
    """Of the new rows: how many each source, topic and account gave."""
    new = [row for row in rows if row.row_id not in replayed]
    accounts = Counter(row.user_id for row in new if row.user_id is not None)
    return {
        "sources": dict(Counter(row.taught_by for row in new).most_common()),
        "topics": dict(Counter(row.topic for row in new).most_common()),
        "accounts": {
            "number": len(accounts),
            "largest_share": max(accounts.values(), default=0) / max(len(new), 1),
            "nameless_rows": len(new) - accounts.total(),
        },
    }


def _distinct(rows: Iterable[Example], index: QuestionIndex[Example]) -> tuple[list[Example], list[_Left]]:
    """One example for each question: the most trusted, then the newest. Near duplicates go when they say the same."""
    kept: list[Example] = []
    left: list[_Left] = []
    for row in sorted(rows, key=lambda row: (row.rank, row.timestamp, row.row_id), reverse=True):
        same = next(
            (
                other
                for other in index.same(row)
                if other.prompt_hash == row.prompt_hash or agree(row.completion, other.completion)
            ),
            None,
        )
        if same is not None:
            left.append(_Left(row, "duplicates", f"{same.feedback_id} says: {same.completion}"))
            continue
        index.add(row, row)
        kept.append(row)
    return kept, left


def _check_enough(chosen: _Chosen, settings: Settings, workload: str) -> None:
    fresh = {name: len(chosen.splits[name]) for name in ("train", "validation", "holdout")}
    fresh["train"] -= len(chosen.replayed)
    total, needed = sum(fresh.values()), settings.dataset.minimum_rows
    if total < needed:
        left = ", ".join(f"{times} {reason}" for reason, times in chosen.left_out.items() if times)
        raise TooFewRows(
            f"workload {workload}: {total} new examples; dataset.minimum_rows asks for {needed}"
            + (f"; left out: {left}" if left else "")
        )
    if fresh["holdout"] < settings.gate.minimum_examples:
        raise TooFewRows(
            f"workload {workload}: {fresh['holdout']} of {total} new examples are in the holdout; "
            f"gate.minimum_examples asks for {settings.gate.minimum_examples}, so no training could pass"
        )
    if not fresh["train"]:
        raise TooFewRows(f"workload {workload}: no example is left to train on; lower dataset.holdout_share")


def _check_classes(chosen: _Chosen, similarity: float, template: Template, workload: str) -> None:
    """Refuse a dataset in which a frequent answer or topic loses most of its questions.

    The unit is the question: one is lost when no row of it is left. An answer that another one replaced for the same
    question, in whatever near wording, is no loss: the question has a row.
    """
    kept = [row for name in SPLITS for row in chosen.splits[name]]
    kept += [one.row for one in chosen.left if one.reason.endswith("_share")]
    index: QuestionIndex[bool] = QuestionIndex(similarity, template)
    for row in kept:
        index.add(row, True)
    known = {row.prompt_hash for row in kept}
    lost = {
        left.row.prompt_hash: left
        for left in chosen.left
        if left.reason in _CURATION
        and left.row.prompt_hash not in known
        and not (left.reason in _REPLACED and any(index.same(left.row)))
    }
    if not lost:
        return
    rows = [row for row in kept if row.row_id not in chosen.replayed] + [left.row for left in lost.values()]
    named: dict[tuple[str, Hashable], str] = {}
    classes: dict[tuple[str, Hashable], set[str]] = {}
    for row, topic in zip(rows, chosen.topics.of([row.question for row in rows]), strict=True):
        for kind, key, name in (
            ("answer", facts(row.completion) or normalise(row.completion), _short(row.completion)),
            ("topic", topic, topic),
        ):
            if key != OTHER:
                named.setdefault((kind, key), f"the {kind} {name!r}")
                classes.setdefault((kind, key), set()).add(row.prompt_hash)
    least = max(FREQUENT, FREQUENT_SHARE * len({row.prompt_hash for row in rows}))
    for one, questions in sorted(classes.items(), key=lambda item: -len(item[1] & lost.keys()) / len(item[1])):
        gone = Counter(lost[question].reason for question in questions & lost.keys())
        if len(questions) >= least and 2 * gone.total() > len(questions):
            rules = ", ".join(f"{times} {reason}" for reason, times in gone.most_common())
            raise LostClass(
                f"workload {workload}: {gone.total()} of {len(questions)} questions with {named[one]} would be left "
                f"out ({rules}), so that a model would not learn them and nothing would show it; "
                f"{_CURATION[gone.most_common(1)[0][0]]}"
            )


def _short(text: str) -> str:
    text = normalise(text)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _write(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    version: str,
    chosen: _Chosen,
    quarantined: Sequence[_Left],
    card: dict[str, Any],
    now: datetime,
) -> Dataset:
    known = load(warehouse, workload, version)
    path = versions.workload_folder(settings.models.directory, workload) / "datasets" / version
    if known is None or not known.path.is_dir():
        _write_files(path, version, chosen, card)
    counts = card["rows"]
    with warehouse.transaction() as cursor:
        cursor.execute(QUERIES["forget_quarantine"], {"workload": workload})
        doubted = [
            {
                "workload": workload,
                "feedback_id": one.row.feedback_id,
                "interaction_id": one.row.interaction_id,
                "user_id": one.row.user_id,
                "reason": one.reason,
                "detail": one.detail,
                "dataset_version": version,
                "created_at": now,
            }
            for one in quarantined
        ]
        if doubted:
            cursor.execute(QUERIES["quarantine"], {"rows": doubted})
        if known is None:
            insert(
                cursor,
                "datasets",
                version=version,
                workload=workload,
                created_at=now,
                path=str(path.resolve()),
                train=counts["train"],
                validation=counts["validation"],
                holdout=counts["holdout"],
                replay=card["replay"],
                card=json.dumps(card),
            )
            cursor.execute(QUERIES["dataset_lineage"], {"rows": _lineage(version, chosen)})
    if known is not None and known.path.is_dir():
        return known
    return Dataset(version, workload, known.created_at if known else now, path.resolve(), counts, card["replay"], card)


def _write_files(path: Path, version: str, chosen: _Chosen, card: dict[str, Any]) -> None:
    rows = {
        **{
            name: [row.as_row() | {"replay": row.row_id in chosen.replayed} for row in chosen.splits[name]]
            for name in SPLITS
        },
        THUMBS: [row.as_row() | {"desirable": desirable} for row, desirable in chosen.thumbs],
        SET_ASIDE: [one.row.as_row() | {"reason": one.reason, "detail": one.detail} for one in chosen.left],
    }
    with files.written_aside(path) as aside:
        for name, values in rows.items():
            pq.write_table(pa.Table.from_pylist(values, schema=_SCHEMAS[name]), aside / f"{name}.parquet")
        chosen.topics.save(aside)
        (aside / "card.json").write_text(json.dumps(card | {"version": version}, indent=2) + "\n", encoding="utf-8")


def _lineage(version: str, chosen: _Chosen) -> list[dict[str, Any]]:
    return [
        {
            "dataset_version": version,
            "row_id": row.row_id,
            "split": name,
            "prompt_hash": row.prompt_hash,
            "interaction_id": row.interaction_id,
            "feedback_id": row.feedback_id,
        }
        for name, rows in [*chosen.splits.items(), (THUMBS, [row for row, _ in chosen.thumbs])]
        for row in rows
    ]
