"""Thresholds of entries for related questions, from the questions of the newest dataset and the other entries."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain import versions
from retuned.retrain.data.dataset import SPLITS
from retuned.retrain.data.examples import rules_of
from retuned.retrain.data.question import SCOPE_BYTES, Rules, question
from retuned.retrain.memory import embed, entries
from retuned.retrain.memory.consensus import metric_of
from retuned.retrain.memory.threshold import ABOVE, of_entry, of_workload
from retuned.retrain.scoring.metric import Chosen
from retuned.retrain.settings import Settings

QUESTIONS = 5_000
"""The most questions of a dataset that are compared, and the most entries that may help related questions."""
_READ = ("messages", "context", "tools", "extras")
_BLOCK = 500


@dataclass(frozen=True)
class Known:
    """A question whose approved answer is known; it can be compared with others of its scope."""

    key: bytes
    text: str
    answer: str

    @property
    def scope(self) -> bytes:
        """The hash of system prompt, context and tools."""
        return self.key[:SCOPE_BYTES]


class Thresholds:
    """Sets the thresholds of a workload's entries again when its entries or its newest dataset change."""

    def __init__(self) -> None:
        self._seen: tuple[int, str] | None = None
        self._dataset: tuple[str, list[Known], float | None] = ("", [], None)

    def update(self, warehouse: Warehouse, settings: Settings, workload: str) -> int:
        """Returns the number of thresholds that changed. Without an embedding library, nothing is done."""
        newest = warehouse.row(versions.QUERIES["latest_dataset"], {"workload": workload})
        if not settings.memory.similar or newest is None or (embedding := embed.load()) is None:
            return 0
        row = warehouse.row(entries.QUERIES["changes_of"], {"workload": workload})
        seen = (row["last"] if row else 0), str(newest["path"])
        if seen == self._seen:
            return 0
        metric = metric_of(warehouse, settings, workload)
        if self._dataset[0] != seen[1]:
            known = (
                []
                if metric.metric.name == "judge"
                else list(_questions(Path(newest["path"]), rules_of(warehouse, workload, settings.dataset)))
            )
            trials = list(_trials(embedding, known, metric))
            self._dataset = seen[1], known, of_workload(trials, settings.memory.error_rate)
        _, known, threshold = self._dataset
        active = entries.active(warehouse, workload, QUESTIONS)
        found = _of_entries(embedding, active, known, metric, threshold)
        changed = entries.set_thresholds(
            warehouse, {row["id"]: found.get(row["id"]) for row in active if found.get(row["id"]) != row["threshold"]}
        )
        row = warehouse.row(entries.QUERIES["changes_of"], {"workload": workload})
        self._seen = (row["last"] if row else 0), seen[1]
        return changed


def _questions(folder: Path, rules: Rules) -> Iterator[Known]:
    """Yields questions of a dataset that were asked alone, the newest, each once."""
    rows = [
        row
        for split in SPLITS
        if (file := folder / f"{split}.parquet").exists()
        for row in pq.read_table(file, columns=_columns(file)).to_pylist()
    ]
    rows.sort(key=lambda row: row["timestamp"], reverse=True)
    seen: set[bytes] = set()
    for row in rows[:QUESTIONS]:
        messages, context, tools, extras = (json.loads(row.get(name) or "null") for name in _READ)
        asked = question(messages, context, tools, extras, rules)
        if asked and asked.is_alone and len(asked.text) <= embed.LONGEST and asked.key not in seen:
            seen.add(asked.key)
            yield Known(asked.key, asked.text, row["completion"])


def _columns(file: Path) -> list[str]:
    """Returns the columns that are read; files of before 1.1 have no `extras`."""
    return [name for name in (*_READ, "completion", "timestamp") if name in pq.read_schema(file).names]


def _trials(embedding: embed.Embedding, known: Sequence[Known], metric: Chosen) -> Iterator[tuple[float, bool]]:
    """Yields a look-up of each question among the others: the similarity, and whether the answer means the same.

    Two questions that are each other's nearest are one look-up, as the same outcome is no evidence a second time.
    """
    scopes = {scope: number for number, scope in enumerate({one.scope for one in known})}
    vectors, scope = embedding([one.text for one in known]), np.array([scopes[one.scope] for one in known])
    nearest, found = np.zeros(len(known), dtype=int), np.zeros(len(known))
    for start in range(0, len(known), _BLOCK):
        similarity = vectors[start : start + _BLOCK] @ vectors.T
        similarity[scope[start : start + _BLOCK, None] != scope[None, :]] = -1.0
        similarity[np.arange(len(similarity)), np.arange(start, start + len(similarity))] = -1.0
        nearest[start : start + _BLOCK] = similarity.argmax(axis=1)
        found[start : start + _BLOCK] = similarity.max(axis=1)
    for place, other in enumerate(nearest.tolist()):
        if found[place] > 0 and not (nearest[other] == place and other < place):
            yield float(found[place]), metric.compare(known[other].answer, known[place].answer) is True


def _of_entries(
    embedding: embed.Embedding,
    active: Sequence[dict[str, str]],
    known: Sequence[Known],
    metric: Chosen,
    threshold: float | None,
) -> dict[str, float | None]:
    """Returns the threshold of each entry, in view of questions with other answers in the dataset and other entries."""
    if threshold is None or not active:
        return {}
    own = [Known(bytes.fromhex(row["key"]), row["question"], row["answer"]) for row in active]
    newer = {one.key for one in own}
    others = [*own, *(one for one in known if one.key not in newer)]
    vectors = embedding([one.text for one in others])
    found: dict[str, float | None] = {}
    for start in range(0, len(own), _BLOCK):
        similarity = vectors[start : start + min(_BLOCK, len(own) - start)] @ vectors.T
        for place, near in enumerate(similarity):
            entry = own[start + place]
            close = np.flatnonzero(near >= threshold - ABOVE)
            missed = (
                float(near[other])
                for other in close[np.argsort(-near[close])].tolist()
                if others[other].scope == entry.scope
                and others[other].key != entry.key
                and metric.compare(entry.answer, others[other].answer) is not True
            )
            worst = next(missed, None)
            found[active[start + place]["id"]] = of_entry(threshold, [] if worst is None else [worst])
    return found
