"""Explains a version, and an answer: what was taught, by whom, who decided, and the rows that weighed most."""

import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from retuned.consumers.errors import Busy, Cancelled, RetunedError
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.settings import Settings
from retuned.retrain import versions
from retuned.retrain.data import dataset as datasets
from retuned.retrain.data.examples import Example, example
from retuned.retrain.data.identity import last_question
from retuned.retrain.release import signature
from retuned.retrain.release.licence import licence_of
from retuned.retrain.versions import Version

SQL = named_queries("retuned.daemon", "explanation.sql")
MOST_ACCOUNTS, MOST_ROWS = 20, 10
_SHOWN = ("row_id", "interaction_id", "feedback_id", "question", "completion", "kind", "source", "user_id")
_one = threading.Lock()
"""Held while gradients are computed: the model is in memory."""


class Explanation:
    """What is explained: a version, or an answer with the version that gave it.

    Attributes:
        workload: of either.
        version: None: none of ours gave the answer.
    """

    def __init__(self, warehouse: Warehouse, settings: Settings, id: str) -> None:
        """
        Args:
            id: of an interaction, or a version (`3f2a91c0` or `support@3f2a91c0`).

        Raises:
            RetunedError: there is neither, or several workloads have a version of that name.
        """
        self._warehouse = warehouse
        self._answer = warehouse.row(SQL["answer"], {"id": id})
        found = [] if self._answer else warehouse.rows(SQL["versions"], {"id": id})
        if self._answer is None and not found:
            raise RetunedError(
                f"explain: {id} is no interaction in the warehouse, and no version; name one as `retuned versions` does"
            )
        if len(found) > 1:
            names = ", ".join(f"{one['workload']}@{one['version']}" for one in found)
            raise RetunedError(f"explain: several workloads have a version {id}; name one of {names}")
        named = self._answer or found[0]
        self.workload: str = named["workload"]
        self.version = versions.find(warehouse, self.workload, named["version"]) if named["version"] else None
        self._settings = settings.for_workload(self.workload)

    def parts(self, most: int, stop: threading.Event) -> Iterator[dict[str, Any]]:
        """Yields the parts, each with its name as `part`: `answer`, `version`, `progress`, `row`, `note`, `problem`.

        Args:
            most: the number of training rows whose gradients are compared.
            stop: ends the work.
        """
        asked = None
        if self._answer is not None:
            asked = _asked(self._answer)
            yield {"part": "answer"} | _answered(self._answer, asked)
        if self.version is None:
            yield {
                "part": "note",
                "text": "None of our versions gave the answer, so no training row weighs in it.",
            }
            return
        chain = self._chain(self.version)
        yield {"part": "version"} | self._version(self.version, chain)
        if self._answer is None:
            return
        if asked is None:
            yield {"part": "problem", "problem": "the answer or the question has no text, so nothing can be compared"}
            return
        try:
            yield from self._weighed(self.version, chain, asked, most, stop)
        except Cancelled:
            yield {"part": "problem", "problem": "the daemon stops; ask again"}
        except (RetunedError, OSError) as error:
            yield {"part": "problem", "problem": str(error)}

    def _chain(self, version: Version) -> list[Version]:
        """Returns a version and those that its training continued, newest first."""
        known = {one.version: one for one in versions.versions_of(self._warehouse, self.workload)}
        chain = [version]
        while (parent := known.get(chain[-1].parent_version or "")) is not None and parent not in chain:
            chain.append(parent)
        return chain

    def _version(self, version: Version, chain: list[Version]) -> dict[str, Any]:
        run = {"run": version.run_id}
        names = run | {"workload": self.workload, "version": version.version}
        row = self._warehouse.row(SQL["run"], run)
        return {
            "name": version.name,
            "workload": self.workload,
            "version": version.version,
            "created_at": version.created_at,
            "removed_at": version.removed_at,
            "base": {"path": version.base_model, "hash": version.base_hash, "licence": licence_of(version.base)},
            "files": _files(version),
            "run": row and row | {"reasons": json.loads(row["reasons"])},
            "learned_erased_rows": version.version in versions.erased_since(self._warehouse, self.workload),
            "datasets": [self._dataset(one) for one in chain],
            "decisions": [
                one | {"reasons": json.loads(one["reasons"])} for one in self._warehouse.rows(SQL["decisions"], names)
            ],
            "evaluations": self._warehouse.rows(SQL["evaluations"], run),
        }

    def _dataset(self, version: Version) -> dict[str, Any]:
        names = {"workload": self.workload, "dataset": version.dataset_version}
        accounts = self._warehouse.rows(SQL["accounts"], names)
        return {
            "learned_by": version.version,
            "parent": version.parent_version,
            **(self._warehouse.row(SQL["dataset"], names) or {"version": version.dataset_version}),
            "sources": self._warehouse.rows(SQL["sources"], names),
            "people": len(accounts),
            "accounts": accounts[:MOST_ACCOUNTS],
        }

    def _weighed(
        self, version: Version, chain: list[Version], asked: Example, most: int, stop: threading.Event
    ) -> Iterator[dict[str, Any]]:
        """Yields the progress, and then the rows that weighed most."""
        from retuned.retrain.training.influence import influence, similar

        if version.removed_at is not None:
            raise RetunedError(f"{version.name} was removed by retention, so its weights cannot be asked")
        if run := self._warehouse.row(SQL["training_now"]):
            raise Busy(f"run {run['id']} is training; ask again when it has ended (see `retuned runs`)")
        rows = {row["row_id"]: row for one in reversed(chain) for row in self._taught(one)}
        if not rows:
            raise RetunedError(f"the datasets of {version.name} were removed by retention")
        chosen = similar(asked.as_row(), list(rows.values()), most)
        if len(chosen) < len(rows):
            text = f"Compared are the {most} of {len(rows)} training rows whose wording is most similar."
            yield {"part": "note", "text": text}
        if not _one.acquire(blocking=False):
            raise Busy("another answer is being explained; ask again in some minutes")
        try:
            found = dict[str, float]()
            for line in influence(asked.as_row(), chosen, version, self._settings, stop):
                found = line.get("influence", found)
                if "of" in line:
                    yield {"part": "progress"} | line
        finally:
            _one.release()
        for id in sorted(found, key=lambda id: -found[id])[:MOST_ROWS]:
            yield {"part": "row", "influence": found[id]} | {name: rows[id].get(name) for name in _SHOWN}

    def _taught(self, version: Version) -> list[dict[str, Any]]:
        """Returns the rows that the training of a version learned; none if retention removed its dataset."""
        found = datasets.load(self._warehouse, self.workload, version.dataset_version)
        return found.split("train") if found and found.removed_at is None and found.path.is_dir() else []


def _asked(row: Mapping[str, Any]) -> Example | None:
    """Returns an answer of the warehouse as a training row."""
    columns = {name: value for name, value in row.items() if name not in ("workload", "model", "version", "memory")}
    return example(completion=row["response"], kind="unrated", source="traffic", feedback_id="", **columns)


def _answered(row: Mapping[str, Any], asked: Example | None) -> dict[str, Any]:
    return {
        "id": row["interaction_id"],
        "workload": row["workload"],
        "model": row["model"],
        "timestamp": row["timestamp"],
        "question": last_question(json.loads(asked.messages)) if asked else "",
        "answer": asked.completion if asked else row["response"],
        "memory": json.loads(row["memory"] or "[]"),
    }


def _files(version: Version) -> dict[str, Any]:
    """Returns whether the files of a version are those that were registered, and signed."""
    try:
        versions.check_intact(version)
        problem = None
    except RetunedError as error:
        problem = str(error)
    return {
        "hashes": version.manifest.get("files"),
        "signed": (version.path / signature.NAME).is_file(),
        "problem": problem if version.removed_at is None else "removed by retention",
    }
