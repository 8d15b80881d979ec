"""Datasets: what a training learns from and is judged on, written once and never changed."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse import Warehouse, insert
from retuned.retrain import files, holdout, registry
from retuned.retrain.examples import QUERIES, Contradictions, Example, accepted, corrections, same_question
from retuned.retrain.scoring import same_answer
from retuned.retrain.settings import DatasetSettings, Settings
from retuned.retrain.similarity import NearIndex, fraction, text_hash

SPLITS = ("train", "validation", "holdout", "regression")

_SCHEMA = pa.schema(
    [(name, pa.string()) for name in Example.__dataclass_fields__ if name not in ("timestamp", "received_at")]
    + [("timestamp", pa.timestamp("us")), ("received_at", pa.timestamp("us")), ("replay", pa.bool_())]
)


class TooFewRows(RetunedError):
    """There is not enough evidence to learn from and to be judged on. Nothing was written."""


@dataclass(frozen=True)
class Dataset:
    """A written dataset.

    Attributes:
        path: its folder: `train.parquet`, `validation.parquet`, `holdout.parquet`, `regression.parquet`, `card.json`.
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
        """The rows of a split: an `Example`'s columns and `replay`."""
        rows: list[dict[str, Any]] = pq.read_table(self.path / f"{name}.parquet").to_pylist()
        return rows


def build(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> Dataset:
    """Make the dataset of a workload from the evidence that is newer than the champion's dataset, or from all of it.

    The same evidence gives the same version, which is then written once.

    Raises:
        TooFewRows: fewer rows than dataset.minimum_rows, or than the gate needs in the holdout.
    """
    champion = registry.champion(warehouse, workload)
    earlier = _Earlier.of(warehouse, settings, workload, champion.dataset_version if champion else None)
    evidence = _evidence(warehouse, settings, workload)
    chosen = _choose(evidence, earlier, settings.dataset)
    _check_enough(chosen, settings, workload)
    version = text_hash(json.dumps([[name, sorted(row.row_id for row in chosen.splits[name])] for name in SPLITS]))[:12]
    card = {
        "workload": workload,
        "evidence_until": max(row.received_at for row in evidence).isoformat(),
        "earlier_datasets": earlier.versions,
        "generation": earlier.generation,
        "rows": {name: len(chosen.splits[name]) for name in SPLITS},
        "replay": len(chosen.replayed),
        "left_out": chosen.left_out,
        "settings": settings.dataset.model_dump(mode="json"),
    }
    return _write(warehouse, settings, workload, version, chosen, card, now)


def load(warehouse: Warehouse, workload: str, version: str) -> Dataset | None:
    """A dataset that was written, or None."""
    row = warehouse.row(QUERIES["dataset"], {"workload": workload, "version": version})
    if row is None:
        return None
    card = json.loads(row["card"])
    return Dataset(version, workload, row["created_at"], Path(row["path"]), card["rows"], row["replay"], card)


def learnable(warehouse: Warehouse, settings: Settings, workload: str) -> tuple[list[Example], list[Example]]:
    """What a training from scratch would learn from, oldest first, and what it would be judged on.

    Chosen as for a dataset: what is out of date, what says the same twice, and what comes near to a question that is
    judged on, now or by the champion and those before it, is not learned from.
    """
    champion = registry.champion(warehouse, workload)
    earlier = _Earlier.of(warehouse, settings, workload, champion.dataset_version if champion else None)
    anew = replace(earlier, versions=[], until=None, train=[])
    chosen = _choose(_evidence(warehouse, settings, workload), anew, settings.dataset)
    learned = sorted(chosen.splits["train"] + chosen.splits["validation"], key=lambda row: (row.timestamp, row.row_id))
    return learned, chosen.splits["holdout"] + chosen.splits["regression"]


def _evidence(warehouse: Warehouse, settings: Settings, workload: str) -> list[Example]:
    limit = settings.dataset.maximum_rows
    corrected = corrections(warehouse, workload, limit)
    return corrected + (accepted(warehouse, workload, limit, corrected) if settings.dataset.accepted_answers else [])


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
        versions = []
        until = None
        # Newest first: of two datasets that hold one prompt, the newer answer counts.
        for later in holdout.spent(warehouse, workload, version, today):
            _gather(_known(warehouse, workload, later), ("holdout",), judged)
        spent = list(judged.values())
        earlier = {"workload": workload, "version": version}
        for row in warehouse.rows(QUERIES["earlier_datasets"], earlier) if version else ():
            dataset = _known(warehouse, workload, row["version"])
            versions.append(dataset.version)
            until = until or datetime.fromisoformat(dataset.card["evidence_until"])
            _gather(dataset, ("train",), train)
            _gather(dataset, ("holdout", "regression"), judged)
        return cls(versions, until, list(train.values()), list(judged.values()), today, spent)


def _known(warehouse: Warehouse, workload: str, version: str) -> Dataset:
    dataset = load(warehouse, workload, version)
    assert dataset is not None
    return dataset


def _gather(dataset: Dataset, splits: Iterable[str], into: dict[str, Example]) -> None:
    for split in splits:
        for values in dataset.split(split):
            values.pop("replay")
            into.setdefault(values["prompt_hash"], Example(**values))


@dataclass(frozen=True)
class _Chosen:
    splits: dict[str, list[Example]]
    replayed: frozenset[str]
    left_out: dict[str, int]


def _choose(evidence: Sequence[Example], earlier: _Earlier, settings: DatasetSettings) -> _Chosen:
    left_out = dict.fromkeys(
        ("superseded", "duplicates", "near_holdout", "near_training", "spent", "regression_superseded"), 0
    )
    similarity = settings.near_duplicate_similarity
    contradictions = Contradictions(evidence, similarity, earlier.until)
    fresh = [row for row in evidence if earlier.until is None or row.received_at > earlier.until]
    valid = [row for row in fresh if contradictions.of(row, earlier=False) is None]
    left_out["superseded"] = len(fresh) - len(valid)
    distinct = _distinct(valid, similarity)
    left_out["duplicates"] = len(valid) - len(distinct)
    distinct = sorted(distinct, key=lambda row: (row.timestamp, row.row_id), reverse=True)[: settings.maximum_rows]

    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for row in distinct:
        splits[split_of(row.question, settings, earlier.generation)].append(row)

    # A prompt that the champion was trained on proves nothing, and one that is judged on is never trained on.
    trained = _index(earlier.train, similarity)
    untaught = [row for row in splits["holdout"] if not any(trained.near(row.question))]
    left_out["near_training"] = len(splits["holdout"]) - len(untaught)
    spent = _index(earlier.spent, similarity)
    held_out = [row for row in untaught if not any(spent.near(row.question))]
    left_out["spent"] = len(untaught) - len(held_out)
    # Once judged on, always judged on: a row leaves the regression set only for newer evidence.
    asked = {row.prompt_hash for row in held_out}
    kept_back = [row for row in earlier.judged if row.prompt_hash not in asked]
    regression = [row for row in kept_back if contradictions.of(row, earlier=True) is None]
    left_out["regression_superseded"] = len(kept_back) - len(regression)
    judged = _index(chain(held_out, regression), similarity)
    for name in ("train", "validation"):
        kept = [row for row in splits[name] if not any(judged.near(row.question))]
        left_out["near_holdout"] += len(splits[name]) - len(kept)
        splits[name] = kept

    taught = {row.prompt_hash for row in splits["train"] + splits["validation"]}
    old = [
        row
        for row in earlier.train
        if row.prompt_hash not in taught
        and contradictions.of(row, earlier=True) is None
        and not any(judged.near(row.question))
    ]
    share = min(settings.replay_share, 0.99)
    wanted = round(len(splits["train"]) * share / (1 - share))
    replay = sorted(old, key=lambda row: row.row_id)[:wanted]  # by hash: an even draw, and the same each time
    splits |= {"train": splits["train"] + replay, "holdout": held_out, "regression": regression}
    return _Chosen(splits, frozenset(row.row_id for row in replay), left_out)


def split_of(question: str, settings: DatasetSettings, generation: int) -> str:
    """Where a question belongs, in every dataset of a generation: holdout, validation or train.

    The generations are independent draws; see `holdout` for when one follows another.
    """
    place = fraction(f"{generation} {question}" if generation else question)
    if place < settings.holdout_share:
        return "holdout"
    return "validation" if place < settings.holdout_share + settings.validation_share else "train"


def split_today(warehouse: Warehouse, settings: Settings, workload: str) -> Callable[[str], str]:
    """Where a question belongs in a dataset that would be made now."""
    champion = registry.champion(warehouse, workload)
    since = champion.dataset_version if champion else None
    generation = holdout.generation(warehouse, workload, since, settings.gate.holdout_tries)
    return lambda question: split_of(question, settings.dataset, generation)


def _distinct(rows: Iterable[Example], similarity: float) -> list[Example]:
    """One example for each question: the most trusted, then the newest. Near duplicates go when they say the same."""
    kept: list[Example] = []
    seen: set[str] = set()
    index: NearIndex[Example] = NearIndex(similarity)
    for row in sorted(rows, key=lambda row: (row.rank, row.timestamp, row.row_id), reverse=True):
        if row.prompt_hash in seen:
            continue
        if any(
            same_question(row, other) and same_answer(row.completion, other.completion)
            for other in index.near(row.prompt)
        ):
            continue
        seen.add(row.prompt_hash)
        index.add(row.prompt, row)
        kept.append(row)
    return kept


def _index(rows: Iterable[Example], similarity: float) -> NearIndex[bool]:
    index: NearIndex[bool] = NearIndex(similarity)
    for row in rows:
        index.add(row.question, True)
    return index


def _check_enough(chosen: _Chosen, settings: Settings, workload: str) -> None:
    fresh = {name: len(chosen.splits[name]) for name in ("train", "validation", "holdout")}
    fresh["train"] -= len(chosen.replayed)
    total, needed = sum(fresh.values()), settings.dataset.minimum_rows
    if total < needed:
        raise TooFewRows(f"workload {workload}: {total} new examples; dataset.minimum_rows asks for {needed}")
    if fresh["holdout"] < settings.gate.minimum_examples:
        raise TooFewRows(
            f"workload {workload}: {fresh['holdout']} of {total} new examples are in the holdout; "
            f"gate.minimum_examples asks for {settings.gate.minimum_examples}, so no training could pass"
        )
    if not fresh["train"]:
        raise TooFewRows(f"workload {workload}: no example is left to train on; lower dataset.holdout_share")


def _write(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    version: str,
    chosen: _Chosen,
    card: dict[str, Any],
    now: datetime,
) -> Dataset:
    known = load(warehouse, workload, version)
    if known is not None and known.path.is_dir():
        return known
    path = registry.workload_folder(settings.models.directory, workload) / "datasets" / version
    with files.written_aside(path) as aside:
        for name in SPLITS:
            values = [row.as_row() | {"replay": row.row_id in chosen.replayed} for row in chosen.splits[name]]
            pq.write_table(pa.Table.from_pylist(values, schema=_SCHEMA), aside / f"{name}.parquet")
        (aside / "card.json").write_text(json.dumps(card | {"version": version}, indent=2) + "\n", encoding="utf-8")
    lineage = [
        {
            "dataset_version": version,
            "row_id": row.row_id,
            "split": name,
            "prompt_hash": row.prompt_hash,
            "interaction_id": row.interaction_id,
            "feedback_id": row.feedback_id,
        }
        for name in SPLITS
        for row in chosen.splits[name]
    ]
    counts = card["rows"]
    if known is None:
        with warehouse.transaction() as cursor:
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
            cursor.execute(QUERIES["dataset_lineage"], {"rows": lineage})
    return Dataset(version, workload, known.created_at if known else now, path.resolve(), counts, card["replay"], card)
