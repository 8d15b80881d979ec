"""Applies the erasures of a cluster's leader to the files of another daemon."""

import logging
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from retuned.consumers.errors import RetunedError
from retuned.consumers.privacy.pseudonyms import UserKeys, load_user_keys
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.erasing import ErasedRows, Letters
from retuned.consumers.warehouse.rewriting import swap
from retuned.daemon.erasure.files import QUERIES, Files, Place, time_of, why
from retuned.daemon.settings import Settings
from retuned.retrain.data import label_requests

log = logging.getLogger(__name__)


def follows(warehouse: Warehouse) -> bool:
    """Returns whether another daemon of the cluster carries out the requests."""
    return warehouse.journal is not None and not warehouse.journal.leads


@dataclass
class _Applied:
    """An erasure that is applied to the warehouse of this daemon.

    Attributes:
        of: the files that the leader could not read or change then.
        left: those of this daemon.
    """

    of: dict[str, str] | None
    left: list[Place]


class AppliedErasures:
    """The leader's erasures in one daemon's files. For one thread: that of the archive."""

    def __init__(self, warehouse: Warehouse, settings: Settings, stop: threading.Event) -> None:
        self._warehouse, self._settings, self._stop = warehouse, settings, stop
        self._applied: dict[str, _Applied] = {}
        self._deleting = threading.Lock()
        self._letters: Letters | None = None

    @cached_property
    def _keys(self) -> UserKeys:
        return load_user_keys(self._settings.privacy, self._warehouse.path)

    def apply(self) -> None:
        """Removes from the files of this daemon what a leader of its cluster has erased. A daemon that leads now may
        have been down then.

        An erasure is not noted as applied while the leader or this daemon has a file that cannot be read or changed.

        Raises:
            Busy: something is under way that cannot be stopped. The next call continues.
            RetunedError: a file cannot be read or changed. The next call continues.
        """
        due = {row["id"]: msgspec.json.decode(row["found"]) for row in self._due()}
        self._applied = {id: done for id, done in self._applied.items() if id in due}
        new = [id for id, found in due.items() if id not in self._applied or self._applied[id].of != found.get("left")]
        if new:
            self.delete()
            files, left = self._files(), dict[str, list[Place]]()
            for id in new:
                places = files.find(due[id]["workloads"], time_of(due[id]["first"]), shared=False)
                for place in places:
                    files.erase(place)
                left[id] = [place for place in places if place.path in files.left]
            swapped = swap(self._warehouse, self._stop)
            for id in new:
                self._applied[id] = _Applied(due[id].get("left"), left[id])
                log.info("erasure %s: applied here; reading paused for %.1f s", id, swapped.seconds)
        files = self._files()
        for done in self._applied.values():
            for place in done.left:
                files.erase(place)
            done.left = [place for place in done.left if place.path in files.left]
        if due:  # the file of a daemon that led before has the questions of that time
            erased = {workload for found in due.values() for workload in found["workloads"]}
            label_requests.write_files(self._warehouse, self._settings, erased, create=False)
        if complete := [id for id, done in self._applied.items() if not done.of and not done.left]:
            with self._warehouse.transaction(recorded=False) as cursor:
                for id in complete:
                    cursor.execute(QUERIES["forget_marks"], {"id": id})
                    cursor.execute(QUERIES["applied"], {"id": id})
        if files.left:
            raise RetunedError(f"erasure: {why(files.left)}")

    def delete(self) -> None:
        """Deletes the rows that a leader of the cluster has erased. A daemon does so before it leads, so that no job of
        the leader reads them; `apply` does the rest.

        Raises:
            Busy: another thread uses the warehouse for long. The next call continues.
        """
        if not self._due():
            return
        followed = self._warehouse.journal.recorded if self._warehouse.journal else ()
        with self._deleting:
            with self._warehouse.cursor() as cursor:
                self._letters = letters = Letters.stored(self._keys, cursor, self._letters)
                letters.quoting(cursor)  # while others work; those that are stored meanwhile are read below
            with self._warehouse.turns.alone(), self._warehouse.transaction(recorded=False) as cursor:
                ErasedRows(cursor, letters, followed).delete()
            self._letters = None

    def _due(self) -> list[dict[str, Any]]:
        return self._warehouse.rows(QUERIES["to_apply"], {"follows": follows(self._warehouse)})

    def _files(self) -> Files:
        return Files.stored(self._warehouse, self._settings, self._keys)
