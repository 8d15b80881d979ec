"""Signed checkpoints of the audit, and its verification.

A chain of hashes shows what was changed, not that its end was cut off, or that all of it was written anew. A checkpoint
fixes how many rows there were and the hash of the last one. It is signed, and kept where who may write the warehouse
cannot: in a file that is collected, or in a topic. The idea is that of transparency logs, such as Tessera.

That last row says that the checkpoint was made. So the audit names each checkpoint that has to be there, and a
checkpoint that is missing shows.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retuned.consumers.common.signing import BadSignature, sign, verify
from retuned.consumers.common.times import iso
from retuned.consumers.errors import ConfigurationError
from retuned.consumers.warehouse.audit import START, digest
from retuned.consumers.warehouse.connection import Warehouse

TYPE = "application/vnd.retuned.audit-checkpoint+json"
ACTION = "checkpoint"
"""Of the row that says that a checkpoint was made, and is the last one that it covers."""
NAMED = 5
"""Missing checkpoints that a problem names."""


@dataclass(frozen=True)
class Checkpoint:
    """The audit at one time.

    Attributes:
        origin: the hash of its first row, which tells audits apart.
        size: the number of its rows.
        hash: that of the last row.
        at: UTC, ISO 8601.
    """

    origin: str
    size: int
    hash: str
    at: str


@dataclass(frozen=True)
class Verdict:
    """The result of a verification.

    Attributes:
        size, hash: the number of rows, and the hash of the last one.
        checkpoints: how many agree with the rows.
        made: how many checkpoints the rows name.
        problems: what is wrong; empty: nothing.
    """

    size: int
    hash: str
    checkpoints: int
    made: int
    problems: list[str]


def newest(warehouse: Warehouse) -> Checkpoint | None:
    """Returns the checkpoint of the last row that says that one was made; None: there is no such row."""
    row = warehouse.row(
        "SELECT sequence, hash, created_at, (SELECT hash FROM audit WHERE sequence = 1) AS origin FROM audit "
        "WHERE action = $1 ORDER BY sequence DESC LIMIT 1",
        [ACTION],
    )
    return Checkpoint(row["origin"], row["sequence"], row["hash"], iso(row["created_at"])) if row else None


def signed(checkpoint: Checkpoint, key_file: Path) -> dict[str, Any]:
    """Returns the signed envelope of a checkpoint."""
    return sign(json.dumps(asdict(checkpoint), sort_keys=True).encode(), TYPE, key_file)


def read(file: Path, public_key_file: Path) -> tuple[list[Checkpoint], list[str]]:
    """Returns the checkpoints of a file, one envelope a line, each once, and what is wrong with the file: it does not
    exist or is empty, or a line is no checkpoint, or was not signed with the key.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return [], [f"checkpoints {file}: no such file: it was removed, or no checkpoint was written yet"]
    except OSError as error:
        raise ConfigurationError(f"checkpoints {file}: cannot be read ({error.strerror})") from error
    found, problems = list[Checkpoint](), list[str]()
    for number, line in enumerate(lines, 1):
        try:
            found.append(Checkpoint(**json.loads(verify(json.loads(line), public_key_file, TYPE))))
        except BadSignature as error:
            problems.append(f"checkpoints {file}, line {number}: {error}")
        except (ValueError, TypeError):
            problems.append(f"checkpoints {file}, line {number}: no checkpoint")
    if not lines:
        problems.append(f"checkpoints {file}: the file is empty")
    return list(dict.fromkeys(found)), problems


def check(
    rows: Iterable[Mapping[str, Any]], checkpoints: Sequence[Checkpoint] | None = None, known: Sequence[str] = ()
) -> Verdict:
    """Verifies the rows of an audit, in the order in which they were kept.

    Args:
        checkpoints: all that were kept; None: the rows are compared with none.
        known: problems that were found before.
    """
    problems = list(known)
    sizes = {one.size for one in checkpoints or ()}
    hashes, made, origin, size, last = dict[int, str](), list[int](), None, 0, START
    for row in rows:
        size, number = size + 1, row["sequence"]
        if number != size:
            problems.append(_out_of_order(number, size))
            size = number
        elif row["previous"] != last:
            problems.append(f"row {number} does not follow row {number - 1}: one of them was replaced")
        if digest(row) != row["hash"]:
            problems.append(f"row {number} was changed: its hash does not fit its content")
        last = row["hash"]
        origin = origin or last
        if row.get("action") == ACTION:
            made.append(size)
        if size in sizes:
            hashes[size] = last
    agree = 0
    for one in checkpoints or ():
        if problem := _contradiction(one, origin, size, hashes.get(one.size)):
            problems.append(problem)
        else:
            agree += 1
    if checkpoints is not None and (missing := [one for one in made if one not in sizes]):
        problems.append(_missing(missing, len(made)))
    return Verdict(size, last, agree, len(made), problems)


def _missing(missing: Sequence[int], made: int) -> str:
    rows = ", ".join(map(str, missing[:NAMED])) + (", …" if len(missing) > NAMED else "")
    return f"{len(missing)} of {made} checkpoints that the audit names are missing: those of row {rows}"


def _out_of_order(number: int, expected: int) -> str:
    if number < expected:
        return f"row {number} is out of order: row {expected} was expected"
    gone = f"row {expected} is" if number == expected + 1 else f"rows {expected} to {number - 1} are"
    return f"{gone} missing before row {number}"


def _contradiction(one: Checkpoint, origin: str | None, size: int, found: str | None) -> str | None:
    """Returns how a checkpoint contradicts the rows; None: it does not."""
    about = f"the checkpoint of {one.at}"
    if size < one.size:
        return f"the end is cut off: {about} has {one.size} rows, and {size} are left"
    if one.origin != origin:
        return f"{about} is of another audit: its first row has the hash {one.origin[:16]}…"
    if found != one.hash:
        return f"row {one.size} is not that of {about}: rows up to it were written anew"
    return None
