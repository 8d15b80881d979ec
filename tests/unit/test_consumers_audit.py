"""The audit's chain of hashes and its signed checkpoints: what a verification finds."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.traffic import new_warehouse
from retuned.consumers.common.signing import make_key
from retuned.consumers.warehouse.audit import COLUMNS, START, Entry, by_rule, digest, sealed
from retuned.consumers.warehouse.checkpoints import ACTION, Checkpoint, check, newest, read, signed

Rows = list[dict[str, Any]]
NOW = datetime(2026, 3, 2, 9, 0, 0, 123_456)


def chain(size: int, sign: str = "") -> Rows:
    rows: Rows = []
    for number in range(1, size + 1):
        entry = Entry(f"otto{sign}", "principal", "promote", workload="support", details={"turn": number})
        rows.append(sealed(entry, NOW, number, rows[-1]["hash"] if rows else START))
    return rows


def at(rows: Rows, size: int) -> Checkpoint:
    return Checkpoint(rows[0]["hash"], size, rows[size - 1]["hash"], "2026-03-02T09:00:00.000Z")


def test_a_sound_chain_agrees_with_its_checkpoints() -> None:
    rows = chain(6)
    verdict = check(rows, [at(rows, 2), at(rows, 6)])
    assert (verdict.size, verdict.hash, verdict.checkpoints, verdict.problems) == (6, rows[-1]["hash"], 2, [])
    assert check([]).problems == []


def test_the_hash_is_what_the_documentation_describes() -> None:
    """Written out by hand, so that another program can compute it."""
    row = chain(1)[0]
    text = (
        '{"action":"promote","actor":"otto","actor_kind":"principal","created_at":"2026-03-02T09:00:00.123Z",'
        '"details":"{\\"turn\\":1}","outcome":"done","previous":"' + "0" * 64 + '","reason":null,"request_id":null,'
        '"sequence":1,"subject":null,"workload":"support"}'
    )
    assert row["hash"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("column", [one for one in COLUMNS if one not in ("sequence", "hash")])
def test_a_changed_row_is_found(column: str) -> None:
    rows = chain(5)
    rows[2] |= {column: NOW.replace(year=2025) if column == "created_at" else "other"}
    assert "row 3 was changed: its hash does not fit its content" in check(rows).problems


def test_a_row_that_was_changed_with_its_hash_is_found() -> None:
    rows = chain(5)
    rows[2] |= {"actor": "somebody else"}
    rows[2] |= {"hash": digest(rows[2])}
    assert check(rows).problems == ["row 4 does not follow row 3: one of them was replaced"]


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (lambda rows: rows[:2] + rows[3:], "row 3 is missing before row 4"),
        (lambda rows: rows[:1] + rows[4:], "rows 2 to 4 are missing before row 5"),
        (lambda rows: rows[2:], "rows 1 to 2 are missing before row 3"),
        (lambda rows: [rows[0], rows[2], rows[1], *rows[3:]], "row 2 is out of order: row 4 was expected"),
        (lambda rows: rows[:3] + rows[2:], "row 3 is out of order: row 4 was expected"),
    ],
)
def test_a_missing_and_a_reordered_row_is_found(tamper: Callable[[Rows], Rows], problem: str) -> None:
    assert problem in check(tamper(chain(6))).problems


def test_an_end_that_was_cut_off_is_found_by_a_checkpoint_alone() -> None:
    rows = chain(6)
    assert check(rows[:4]).problems == []
    (problem,) = check(rows[:4], [at(rows, 2), at(rows, 6)]).problems
    assert problem.startswith("the end is cut off")


def test_an_audit_that_was_written_anew_is_found_by_a_checkpoint_alone() -> None:
    old, new = chain(6), chain(6, "!")
    assert check(new).problems == []
    assert "is of another audit" in check(new, [at(old, 6)]).problems[0]
    forged = chain(3) + chain(0)
    for number in range(4, 7):
        forged.append(sealed(Entry("forger", "local", "nothing"), NOW, number, forged[-1]["hash"]))
    assert check(forged).problems == []
    assert "rows up to it were written anew" in check(forged, [at(old, 6)]).problems[0]


def with_checkpoints(size: int, *places: int) -> Rows:
    rows = chain(size)
    for place in places:
        rows[place - 1]["action"] = ACTION
    for number, row in enumerate(rows):
        row["previous"] = rows[number - 1]["hash"] if number else START
        row["hash"] = digest(row)
    return rows


@pytest.mark.parametrize("kept", [(), (2,), (4,), (2, 4), (4, 6), (2, 6)])
def test_checkpoints_that_the_audit_names_and_nobody_kept_are_missing(kept: tuple[int, ...]) -> None:
    rows = with_checkpoints(7, 2, 4, 6)
    assert check(rows, [at(rows, size) for size in (2, 4, 6)]).problems == []
    assert (check(rows).made, check(rows).problems) == (3, [])  # none are named: none are compared
    (problem,) = check(rows, [at(rows, size) for size in kept]).problems
    gone = [size for size in (2, 4, 6) if size not in kept]
    assert problem == (
        f"{len(gone)} of 3 checkpoints that the audit names are missing: those of row {', '.join(map(str, gone))}"
    )


def test_checkpoints_are_read_with_the_public_key_and_a_forged_one_is_refused(tmp_path: Path) -> None:
    public, file = make_key(tmp_path / "key"), tmp_path / "checkpoints"
    rows = chain(3)
    notes = [at(rows, 1), at(rows, 3)]
    file.write_text("".join(json.dumps(signed(one, tmp_path / "key")) + "\n" for one in notes))
    assert read(file, public) == (notes, [])
    file.write_text(file.read_text() * 2)  # a daemon that starts writes the last one again
    assert read(file, public) == (notes, [])
    make_key(tmp_path / "forger")
    forged = signed(replace(notes[1], size=2, hash=rows[1]["hash"]), tmp_path / "forger")
    file.write_text(json.dumps(forged) + "\n")
    found, (problem,) = read(file, public)
    assert (found, "line 1" in problem) == ([], True)


def test_what_the_warehouse_holds_agrees_with_a_checkpoint_of_it(tmp_path: Path) -> None:
    warehouse = new_warehouse(tmp_path)
    assert newest(warehouse) is None
    for number in range(3):
        warehouse.trail.record(Entry("otto", "local", "pause", reason="größer “as it was”", details={"n": number}))
    assert newest(warehouse) is None  # none was made
    warehouse.trail.record(by_rule("checkpoints", ACTION))
    checkpoint = newest(warehouse)
    assert checkpoint is not None
    rows = warehouse.rows("SELECT * FROM audit ORDER BY sequence")
    assert check(rows, [checkpoint]).problems == []
    assert (checkpoint.size, check(rows, [checkpoint]).checkpoints) == (4, 1)
    warehouse.execute("DELETE FROM audit WHERE sequence = 4")
    assert check(warehouse.rows("SELECT * FROM audit ORDER BY sequence"), [checkpoint]).problems != []
    warehouse.close()
