"""Erases what people take back, in stages that a killed daemon resumes.

    requested ─▶ deleting ─▶ rewriting ─▶ swapping ─▶ done
                    ▲                         │ something is left that was written meanwhile, or another daemon of the
                    └─────────────────────────┘ cluster leads by now, which has files of its own

requested: finds the events, stores tombstones of them, and records what was found. From then on the set is fixed, and
    no copy of an event is stored again.
deleting: deletes the rows that have a tombstone, in one transaction.
rewriting: waits for jobs that may have read the rows before, empties texts that quote them, and rewrites or deletes
    the files with erased content, here and in the storage of a cluster.
swapping: copies what is left of the warehouse into a new file, which takes the place of the old one.

Each stage may be repeated: it looks for tombstones again, and finds nothing where it was done.

A file that cannot be read or changed stops no stage. The erasure stays in the last one, swapping, while such a file is
left. Once one is mended or deleted, it begins again, with requested, and adds what the file holds of the selection.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import duckdb
import msgspec

from retuned.consumers.errors import Busy, RetunedError
from retuned.consumers.privacy.pseudonyms import UserKeys, load_user_keys
from retuned.consumers.warehouse import archive, choosing, erasing
from retuned.consumers.warehouse.audit import by_rule
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.erasing import ErasedRows, Letters
from retuned.consumers.warehouse.holds import Hold, holds
from retuned.consumers.warehouse.rewriting import swap
from retuned.consumers.warehouse.selection import Selection, pseudonyms
from retuned.consumers.warehouse.tombstones import Tombstones
from retuned.daemon.erasure import receipt, segments
from retuned.daemon.erasure.applied import follows
from retuned.daemon.erasure.files import QUERIES, Files, Place, files_of_datasets, place_of, time_of, why
from retuned.daemon.settings import Settings
from retuned.retrain.data import label_requests
from retuned.retrain.memory import entries

log = logging.getLogger(__name__)

PAGES = (".html", ".json")
_COLUMNS = ("kinds", "keys", "hashes", "sinces", "untils")
"""Those of new tombstones, as parameters."""
State = Literal["requested", "deleting", "rewriting", "swapping", "done"]


def following(state: State, *, is_clean: bool = True) -> State:
    """Returns the state after a stage.

    Args:
        is_clean: whether no erased row is left in this daemon's files; asked before the swap.
    """
    if state == "swapping" and not is_clean:
        return "deleting"
    order: dict[State, State] = {
        "requested": "deleting", "deleting": "rewriting", "rewriting": "swapping", "swapping": "done", "done": "done",
    }  # fmt: skip
    return order[state]


Segments = Callable[[Tombstones], Iterator[dict[str, Any]]]
"""Removes erased rows from the segments of a cluster. Yields each file with hashes, and each that cannot be read as
`key` and `problem`."""


class Erasures:
    """The erasures of one warehouse. For one thread: that of the archive, which moves rows between files, too.

    Attributes:
        segments: of a cluster; None: there is none.
        problem_of_segment: returns why a file of a segment cannot be read; None: it can, or is gone.
        numbers: deletes the numbers of placeholders in a cluster, of interactions and of conversations.
        readers: returns the jobs that run and may write what they read of events, by name; each run is another object.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        settings: Settings,
        stop: threading.Event,
        now: Callable[[], datetime],
        stop_runs: Callable[[str, str], None],
    ) -> None:
        """Creates the erasures.

        Args:
            stop_runs: stops the runs of a workload that have started, with a reason, and removes their files; raises
                Busy while one is still ending.
        """
        self._warehouse, self._settings, self._stop, self._now = warehouse, settings, stop, now
        self._stop_runs = stop_runs
        self.segments: Segments | None = None
        self.problem_of_segment: Callable[[str], str | None] = lambda _: None
        self.numbers: Callable[[Sequence[str], Sequence[str]], None] = lambda _, __: None
        self.readers: Callable[[], Mapping[str, object]] = dict
        self._read_before: dict[str, object] = {}
        self._letters: Letters | None = None

    @cached_property
    def keys(self) -> UserKeys:
        """The keys of pseudonyms and of tombstones."""
        return load_user_keys(self._settings.privacy, self._warehouse.path)

    def preview(self, selection: Selection) -> dict[str, Any]:
        """Returns what an erasure would find, without changing anything."""
        found, chosen, _ = self._find(selection)
        rewritten = (Place(key, "rewrite", rows) for key, rows in chosen.in_segments.items())
        return found | {"files": [*found["files"], *map(asdict, rewritten)]}

    def request(self, selection: Selection, by: str, reason: str | None) -> str:
        """Stores a request, and returns its id."""
        id = secrets.token_hex(8)
        self._warehouse.insert(
            "erasures",
            id=id,
            requested_at=self._now(),
            requested_by=by,
            reason=reason,
            selection=msgspec.json.encode(selection).decode(),
            state="requested",
        )
        log.info("erasure %s: requested by %s", id, by)
        return id

    def run(self, asked: str | None = None) -> None:
        """Carries out all requests, or continues with them.

        Args:
            asked: raise the error of this erasure alone; None: the first one.

        Raises:
            Busy: a hold covers the events, or something is under way that cannot be stopped. The next call continues.
            RetunedError: a stage failed, or a file cannot be read or changed. The next call continues.
        """
        failed: Exception | None = None
        for row in self._warehouse.rows(QUERIES["unfinished"]):
            try:
                while (row := self._erasure(row["id"]))["state"] != "done" and not self._stop.is_set():
                    self._advance(row)
            except Exception as error:  # noqa: BLE001  (the first one is raised after all requests were tried)
                if str(error) != row["error"]:
                    self._warehouse.execute(QUERIES["failed"], {"id": row["id"], "error": str(error)})
                    # What it waits for may be a hold, with the sentence of a person.
                    waits = "it waits; `retuned erasures` lists for what"
                    log.warning("erasure %s: %s", row["id"], waits if isinstance(error, Busy) else error)
                if asked in (None, row["id"]):
                    failed = failed or error
        if failed is not None:
            raise failed

    def waiting(self) -> dict[str, float]:
        """Returns the age in seconds of the oldest erasure of each state that this daemon has not carried out."""
        rows = self._warehouse.rows(QUERIES["waiting"], {"follows": follows(self._warehouse)})
        return {row["state"]: (self._now() - row["since"]).total_seconds() for row in rows}

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """Returns the latest erasures without their receipts, newest first."""
        return self._warehouse.rows(QUERIES["erasures"], {"limit": limit})

    def of(self, id: str) -> dict[str, Any] | None:
        """Returns an erasure with its receipt; None: there is none."""
        row = self._warehouse.row(QUERIES["erasure"], {"id": id})
        if row is None:
            return None
        names = ("id", "requested_at", "requested_by", "reason", "state", "error", "done_at")
        return {name: row[name] for name in names} | receipt.parts(row["receipt"])

    def _erasure(self, id: str) -> dict[str, Any]:
        row = self._warehouse.row(QUERIES["erasure"], {"id": id})
        assert row is not None
        return row

    def _advance(self, row: dict[str, Any]) -> None:
        id, state = row["id"], row["state"]
        found = msgspec.json.decode(row["found"]) if row["found"] else {}
        log.info("erasure %s: %s", id, state)
        if state == "requested":
            self._collect(id, found, msgspec.json.decode(row["selection"], type=Selection))
        elif state == "deleting":
            is_first = row["selection"] and not found.get("deleted")
            self._delete(id, found, msgspec.json.decode(row["selection"], type=Selection) if is_first else None)
        elif state == "rewriting":
            self._rewrite(id, found)
        else:
            self._swap(row, found)

    # Stages

    def _collect(self, id: str, earlier: dict[str, Any], selection: Selection) -> None:
        """Fixes the set of erased events. Tombstones of what is named come first, so that none is added meanwhile.

        Args:
            earlier: what was found and deleted before a file was mended, whose events are added now; empty: nothing.
        """
        self._check_holds(id, selection, earlier)
        tombstones, at = Tombstones(self.keys), time_of(earlier.get("at")) or self._now()
        named = tombstones.rows(choosing.named(selection, at))
        if not earlier:
            with self._warehouse.turns.alone(), self._warehouse.transaction() as cursor:
                self._put(cursor, id, named)
        found, chosen, datasets = self._find(selection, at if earlier else None)
        self.numbers(chosen.interactions, chosen.conversations)
        rows = [*named, *tombstones.rows(chosen.tombstones)]
        with self._warehouse.turns.alone(), self._warehouse.transaction() as cursor:
            if earlier:
                rows += cursor.execute(QUERIES["tombstones_of"], {"id": id}).fetchall()
                found = _added(earlier, found)
            self._put(cursor, id, rows)
            self._put_datasets(cursor, id, datasets)
            self._enter(cursor, id, following("requested"), found | {"at": at.isoformat()})

    def _check_holds(self, id: str, selection: Selection, found: dict[str, Any]) -> list[Hold]:
        """Returns the holds in force, none of which covers the events. What was fixed of a held erasure is given up, so
        that events of it are stored again, and its versions stay in service; unless its rows are deleted.

        Raises:
            Busy: a hold covers the events.
        """
        in_force = holds(self._warehouse)
        if not in_force or not (held := self._find(selection)[0]["holds"]):
            return in_force
        if not found.get("deleted") and self._warehouse.row(QUERIES["fixed"], {"id": id}) is not None:
            with self._warehouse.turns.alone(), self._warehouse.transaction() as cursor:
                for table in ("tombstones", "datasets"):
                    cursor.execute(QUERIES[f"forget_{table}"], {"id": id})
                self._enter(cursor, id, "requested", {})
        raise Busy(f"{'; '.join(held)}: the erasure waits until it is released (`retuned hold release`)")

    def _put(self, cursor: duckdb.DuckDBPyConnection, id: str, rows: Sequence[Any]) -> None:
        """Stores the tombstones of an erasure, one of each id, with the longest span."""
        spans = dict[tuple[str, ...], tuple[datetime | None, datetime | None]]()
        for *key, since, until in rows:
            known = spans.get(tuple(key), (since, until))
            spans[tuple(key)] = (_earliest(known[0], since), _latest(known[1], until))
        cursor.execute(QUERIES["forget_tombstones"], {"id": id})
        if spans:
            given = zip(*((*key, *span) for key, span in spans.items()), strict=True)
            cursor.execute(QUERIES["put_tombstones"], {"id": id, **dict(zip(_COLUMNS, map(list, given), strict=True))})

    def _put_datasets(self, cursor: duckdb.DuckDBPyConnection, id: str, datasets: Mapping[str, int]) -> None:
        """Stores which datasets have erased rows. A run that has read one may register its version later."""
        given = {"id": id, "datasets": list(datasets), "rows": list(datasets.values())}
        cursor.execute(QUERIES["put_datasets"], given)

    def _delete(self, id: str, found: dict[str, Any], selection: Selection | None) -> None:
        """Deletes the rows.

        Args:
            selection: None: rows were deleted before, and what was written since follows them, whatever is held now.
        """
        in_force = self._check_holds(id, selection, found) if selection is not None else None
        with self._warehouse.cursor() as cursor:
            self._letters = letters = Letters.stored(self.keys, cursor, self._letters)
            letters.quoting(cursor)  # while others work; those that are stored meanwhile are read below
        with entries.changing, self._warehouse.turns.alone(), self._warehouse.transaction() as cursor:
            if in_force is not None and holds(self._warehouse) != in_force:
                raise Busy("a hold was placed or released meanwhile; the erasure continues if it is not covered")
            rows = ErasedRows(cursor, letters)
            later = rows.count()
            self._put_datasets(cursor, id, rows.datasets())
            entries.erase(cursor, rows.entries(), self._now())
            rows.delete()
            # A repeated stage finds only what was written since.
            found["tables"] = {
                table: max(count, later.get(table, 0)) for table, count in (later | found["tables"]).items()
            }
            self._enter(cursor, id, following("deleting"), found | {"deleted": True})
        self._read_before = dict(self.readers())

    def _rewrite(self, id: str, found: dict[str, Any]) -> None:
        for workload in found["workloads"]:
            self._stop_runs(workload, f"erasure {id} removes rows that it may have read; ask for a new run")
        self._wait_for_readers()
        files, places = self._files(), self._places(found)
        with self._warehouse.turns.alone(), self._warehouse.transaction() as cursor:
            about = {"workloads": found["workloads"], "first": time_of(found["first"])}
            for check in cursor.execute(QUERIES["drift_checks"], about).fetchall():
                cursor.execute(QUERIES["blank_drift_check"], _blanked(*check))
            cursor.execute(QUERIES["blank_outputs"], {"workloads": found["workloads"]})
            pages = {Path(place["path"]).with_suffix("") for place in places if Path(place["path"]).suffix in PAGES}
            self._warehouse.artifacts.remove(cursor, "report", pages)
            self._enter(cursor, id, "rewriting", found | {"files": places})
        for place in places:
            files.erase(msgspec.convert(place, Place))
        found["left"] = found.get("left", {}) | files.left
        label_requests.write_files(self._warehouse, self._settings, found["workloads"])
        self._warehouse.artifacts.delete_removed()  # the next retention job would do so up to an hour later
        if self.segments is not None:
            with self._warehouse.cursor() as cursor:
                tombstones = Tombstones.stored(self.keys, cursor)
            for file in self.segments(tombstones):
                if "problem" in file:
                    found["left"][file["key"]] = file["problem"]
                    continue
                found.setdefault("segments", []).append(file)
                with self._warehouse.transaction() as cursor:  # a killed daemon would not find it again
                    self._enter(cursor, id, "rewriting", found | {"files": places})
        with self._warehouse.transaction() as cursor:
            if not found["left"]:  # these may hold more of the selected events
                cursor.execute(QUERIES["forget_selection"], {"id": id})
            mark = secrets.token_hex(8)
            cursor.execute(QUERIES["forget_marks"], {"id": id})
            cursor.execute(QUERIES["mark"], {"id": id, "mark": mark})
            self._enter(cursor, id, following("rewriting"), found | {"files": places, "mark": mark})

    def _is_rewritten_here(self, id: str, found: dict[str, Any]) -> bool:
        """Returns whether the files of this daemon were rewritten, and not those of a former leader: all daemons of a
        cluster have what was found, but only the warehouse whose files were rewritten has its mark."""
        return self._warehouse.row(QUERIES["is_marked"], {"id": id, "mark": found.get("mark")}) is not None

    def _wait_for_readers(self) -> None:
        """Raises Busy while a job runs that began before the rows were deleted: it may write what it read of them."""
        running = self.readers()
        if left := sorted(name for name, run in self._read_before.items() if running.get(name) is run):
            raise Busy(
                f"job {', '.join(left)} began before the rows were deleted, and may write what it read; the erasure "
                "continues once it has ended"
            )

    def _swap(self, row: dict[str, Any], found: dict[str, Any]) -> None:
        """Ends the erasure, or the part of it that files which cannot be read or changed do not stop.

        Raises:
            RetunedError: such a file is left.
        """
        id, problem = row["id"], why(found["left"]) if found.get("left") else None
        if not self._is_rewritten_here(id, found):
            with self._warehouse.transaction() as cursor:
                self._delete_again(cursor, id, found)
            return
        if problem and "swapped" in found:
            if self._is_less_left(found):
                with self._warehouse.transaction() as cursor:
                    self._enter(cursor, id, "requested", found)
                return
            if row["error"] == problem:
                raise RetunedError(problem)
        elif not self._is_swapped(id, found):
            return
        with self._warehouse.cursor() as cursor:
            datasets = dict(cursor.execute(QUERIES["datasets"], {"id": id}).fetchall())
            found["versions"] = erasing.versions(cursor, datasets)
        now = self._now()
        made = receipt.receipt(self._warehouse, self._settings, row, found, None if problem else now)
        signed = msgspec.json.encode(receipt.signed(made, self._settings)).decode()
        with self._warehouse.transaction() as cursor:
            if problem:
                cursor.execute(QUERIES["done_in_part"], {"id": id, "receipt": signed})
            else:
                for version in found["versions"]:
                    cursor.execute(QUERIES["put_version"], {"id": id, **version})
                cursor.execute(QUERIES["forget_marks"], {"id": id})
                cursor.execute(QUERIES["applied"], {"id": id})
                cursor.execute(QUERIES["done"], {"id": id, "now": now, "receipt": signed})
                done = by_rule("erasure", "erased", subject=id, details={"tables": found["tables"]})
                self._warehouse.trail.note(cursor, done)
        self._letters = None
        if problem:
            raise RetunedError(problem)
        log.info("erasure %s: done; ingestion paused for %.1f s", id, found["swapped"]["seconds"])

    def _is_swapped(self, id: str, found: dict[str, Any]) -> bool:
        """Swaps the warehouse's file; False: something was written meanwhile, and is deleted first."""
        with self._warehouse.transaction() as cursor:
            self._letters = Letters.stored(self.keys, cursor, self._letters)
            left = ErasedRows(cursor, self._letters).count()
            if not self._is_clean(left, found):
                self._delete_again(cursor, id, found)
                return False
        if "swapped" not in found:  # whatever fails after it, such as the signature, the swap is not repeated
            found["swapped"] = asdict(swap(self._warehouse, self._stop))
            with self._warehouse.transaction() as cursor:
                self._enter(cursor, id, "swapping", found)
        return True

    def _is_less_left(self, found: dict[str, Any]) -> bool:
        """Tries the files again that could not be read or changed; returns whether one was mended or deleted."""
        files, places = self._files(), {place["path"]: place for place in found["files"]}
        for path in found["left"]:
            if path in places:
                files.try_again(msgspec.convert(places[path], Place))
            elif problem := self.problem_of_segment(path):
                files.left[path] = problem
        return len(files.left) < len(found["left"])

    # What is found

    def _find(
        self, selection: Selection, before: datetime | None = None
    ) -> tuple[dict[str, Any], choosing.Chosen, dict[str, int]]:
        """Returns what is found, what the selection chooses, and the datasets with erased rows.

        Args:
            before: only events that were received before this time; None: all.
        """
        folder = archive.folder_of(self._warehouse, self._settings)
        in_segments = tuple if self.segments is None else partial(segments.files, self._settings.store)
        of_datasets = files_of_datasets(self._warehouse)
        now = before or self._now()
        chosen = choosing.choose(self._warehouse, selection, folder, now, before, in_segments, of_datasets)
        tombstones = Tombstones(self.keys)
        tombstones.use(tombstones.rows(chosen.tombstones))
        with self._warehouse.cursor() as cursor:
            cursor.begin()
            rows = ErasedRows(cursor, Letters(tombstones))
            tables, datasets = rows.count(), rows.datasets()
            versions = erasing.versions(cursor, datasets)
            cursor.rollback()
        workloads = sorted({*chosen.workloads, *(version["workload"] for version in versions)})
        searched = Files(self._warehouse, self._settings, tombstones)
        files = searched.find(workloads, chosen.first)
        left = {str(path.absolute()): problem for path, problem in chosen.unread.items()} | searched.left
        known = {file.path for file in files}
        files += [place_of(Path(path)) for path in left if path not in known]
        left |= chosen.unread_segments
        letters = tables.get("dead_letters") or any("dead_letters" in Path(file.path).parts[-3:-2] for file in files)
        covering = (
            hold
            for hold in holds(self._warehouse)
            if (hold.workload in (None, *workloads) or letters or chosen.is_unplaced)
            and (hold.user_id is None or not set(chosen.users).isdisjoint(pseudonyms(self.keys, hold.user_id)))
        )
        return (
            {
                "holds": sorted(map(str, covering)),
                "workloads": workloads,
                "first": chosen.first.isoformat() if chosen.first else None,
                "tables": tables,
                "files": [asdict(place) for place in files],
                "left": left,
                "versions": versions,
            },
            chosen,
            datasets,
        )

    def _places(self, found: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the places found first, and those that were written since."""
        known = {place["path"]: place for place in found["files"]}
        for place in self._files().find(found["workloads"], time_of(found["first"])):
            known.setdefault(place.path, asdict(place))
        return list(known.values())

    def _files(self) -> Files:
        return Files.stored(self._warehouse, self._settings, self.keys)

    def _is_clean(self, left: dict[str, int], found: dict[str, Any]) -> bool:
        files = self._files().find(found["workloads"], time_of(found["first"]))
        return not left and not any(place.rows for place in files if place.path not in found.get("left", {}))

    def _delete_again(self, cursor: duckdb.DuckDBPyConnection, id: str, found: dict[str, Any]) -> None:
        kept = {key: value for key, value in found.items() if key != "swapped"}
        self._enter(cursor, id, following("swapping", is_clean=False), kept)

    def _enter(self, cursor: duckdb.DuckDBPyConnection, id: str, state: State, found: dict[str, Any]) -> None:
        cursor.execute(QUERIES["advance"], {"id": id, "state": state, "found": msgspec.json.encode(found).decode()})


def _added(earlier: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Returns what was found before a file was mended, and now."""
    files = {place["path"]: place for place in [*found["files"], *earlier["files"]]}
    counts = [earlier["tables"], found["tables"]]
    first = sorted(filter(None, (earlier["first"], found["first"])))
    return {key: value for key, value in earlier.items() if key != "swapped"} | {
        "workloads": sorted({*earlier["workloads"], *found["workloads"]}),
        "first": first[0] if first else None,
        "tables": {table: sum(count.get(table, 0) for count in counts) for table in {**counts[0], **counts[1]}},
        "files": list(files.values()),
        "left": found["left"],
    }


def _earliest(one: datetime | None, other: datetime | None) -> datetime | None:
    return None if one is None or other is None else min(one, other)


def _latest(one: datetime | None, other: datetime | None) -> datetime | None:
    return None if one is None or other is None else max(one, other)


def _blanked(id: str, features: str) -> dict[str, Any]:
    """Returns a drift check without the texts that it quotes."""
    figures = [feature | {"example": "", "reference": "", "current": ""} for feature in msgspec.json.decode(features)]
    return {"id": id, "features": msgspec.json.encode(figures).decode(), "detail": "texts were erased"}
