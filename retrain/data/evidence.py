"""What a dataset may be made from: the evidence there is now, and what earlier datasets hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data import holdout
from retuned.retrain.data.consensus import Consensus, find_consensus
from retuned.retrain.data.dataset import Dataset, load
from retuned.retrain.data.examples import Example, one_of_each_interaction, read_statements, restored, thumbs
from retuned.retrain.data.filters import filtered
from retuned.retrain.data.similarity import Template
from retuned.retrain.data.topics import Topics
from retuned.retrain.scoring.metric import Chosen, choose
from retuned.retrain.settings import DatasetSettings, Settings
from retuned.retrain.versions import QUERIES, Version

# In which order a question's place is looked for, as the query `places` numbers them.
_PLACES = ("holdout", "validation", "train")


@dataclass(frozen=True)
class LeftOut:
    """A row that was left out, and why."""

    row: Example
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Evidence:
    """What may be learned from.

    Attributes:
        rows: corrections and accepted answers, one of an interaction.
        left: what is set aside, or not fit to be learned.
        topics: those that earlier datasets know.
        places: split of each question, by hash and by interaction, that stood in an earlier dataset of today's draw.
        template: what the prompts share.
        metric: how good an answer is, and whether two say the same.
    """

    rows: list[Example]
    thumbs: list[tuple[Example, bool]]
    left: list[LeftOut]
    consensus: Consensus
    topics: Topics
    places: dict[str, str]
    template: Template
    metric: Chosen

    @classmethod
    def of(cls, warehouse: Warehouse, settings: Settings, workload: str, generation: int) -> "Evidence":
        asked = settings.dataset
        said = read_statements(warehouse, workload, asked)
        template = Template(row.prompt for row in [*said.corrections, *said.accepted])
        metric = choose(settings, [row.completion for row in [*said.corrections, *said.accepted]])
        consensus = _consensus(warehouse, [*said.corrections, *said.accepted], asked, template, metric)
        if consensus.distrusted:  # nor does it count against an answer that they call it bad
            said = read_statements(warehouse, workload, asked, consensus.distrusted)
            consensus = _consensus(warehouse, [*said.corrections, *said.accepted], asked, template, metric)
        all = [*said.corrections, *said.accepted]
        unfit = filtered([row for row in all if row.feedback_id not in consensus.doubts], said.cut, asked.filters)
        left = {
            row.feedback_id: LeftOut(
                row, consensus.doubts[row.feedback_id].reason, consensus.doubts[row.feedback_id].detail
            )
            if row.feedback_id in consensus.doubts
            else LeftOut(row, unfit[row.feedback_id])
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
            rows=one_of_each_interaction(said, lambda row: row.feedback_id not in left, metric.same),
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
            metric=metric,
        )


def _consensus(
    warehouse: Warehouse, said: Sequence[Example], settings: DatasetSettings, template: Template, metric: Chosen
) -> Consensus:
    if not settings.quarantine:
        return Consensus()
    accounts = sorted({row.user_id for row in said if row.user_id is not None})
    seen = warehouse.rows(QUERIES["first_seen"], {"accounts": accounts})
    first_seen = {row["user_id"]: row["first_seen"] for row in seen}
    return find_consensus(
        said,
        first_seen,
        settings.near_duplicate_similarity,
        metric.same,
        template,
        one_right=metric.metric.one_right,
    )


@dataclass(frozen=True)
class Earlier:
    """What the champion and those before it learned from and were judged on.

    Attributes:
        generation: the draw that questions are held out by today.
        spent: what stood in holdouts since then that were drawn before today's; it is among `judged` too.
        rehearsed: prompt hash of a row of train to the number of datasets since it was last trained on: 0, by the
            newest.
        failures: topic to the share of its questions that the champion answered wrong where it was judged.
    """

    versions: list[str]
    until: datetime | None
    train: list[Example]
    judged: list[Example]
    generation: int
    spent: list[Example]
    rehearsed: dict[str, int] = field(default_factory=dict)
    failures: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, warehouse: Warehouse, settings: Settings, workload: str, champion: Version | None) -> "Earlier":
        version = champion.dataset_version if champion else None
        today = holdout.generation(warehouse, workload, version, settings.gate.holdout_tries)
        train: dict[str, Example] = {}
        judged: dict[str, Example] = {}
        first: dict[str, str] = {}
        rehearsed: dict[str, int] = {}
        versions: list[str] = []
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
            for prompt_hash in train.keys() - rehearsed.keys():
                rehearsed[prompt_hash] = len(versions) - 1
            _gather(dataset, ("holdout", "regression"), judged, first)
        regression = [replace(row, origin=first.get(row.prompt_hash)) for row in judged.values()]
        judged_on = {"workload": workload, "version": champion.version if champion else None}
        failures = {row["topic"]: row["failures"] for row in warehouse.rows(QUERIES["failures"], judged_on)}
        return cls(versions, until, list(train.values()), regression, today, spent, rehearsed, failures)


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
