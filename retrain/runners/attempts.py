"""Attempts at one work in a folder that the daemon and the nodes of a cluster share.

Each attempt has a folder of its own, and the one that counts is named beside them: the daemon reads the answers of that
one alone. An attempt that is passed by another, or whose work is given up, sees that there and ends itself.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retuned.consumers.common import durable
from retuned.retrain.runners.runner import Work

CURRENT = "attempt.json"
"""In the folder of the work: the attempt that counts."""
_WORK, _SECRETS, _ANSWERS, _CLAIM = "work.json", "environment.json", "answers.jsonl", "claim"
_OWN = frozenset({CURRENT, _WORK, _SECRETS, _ANSWERS, _CLAIM})


@dataclass(frozen=True)
class Attempt:
    """One attempt.

    Attributes:
        folder: of the work.
        number: 1 for the first.
        id: of the job, unique in any cluster; empty where it was withdrawn.
        lost: so many attempts before it ended without an answer.
    """

    folder: Path
    number: int
    id: str
    lost: int

    @classmethod
    def current(cls, folder: Path) -> "Attempt | None":
        """The one that counts; None: there is none."""
        try:
            known = json.loads((folder / CURRENT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls(folder, **known)

    @classmethod
    def begin(cls, work: Work, spec: dict[str, Any], before: "Attempt | None", lost: int = 0) -> "Attempt":
        """A new attempt, which counts from now on. It finds what the one before left, or what there is of the work."""
        folder = work.folder.resolve()
        made = cls(folder, before.number + 1 if before else 1, f"retuned-{work.name}-{uuid.uuid4().hex[:12]}", lost)
        shutil.rmtree(made.path, ignore_errors=True)  # begun when the daemon was killed, and never submitted
        folder.mkdir(parents=True, exist_ok=True)
        with durable.written_aside(made.path) as aside:
            _link(before.path if before else folder, aside, but=work.outputs)
            (aside / _WORK).write_text(json.dumps(spec), encoding="utf-8")
            if work.environment:
                _write_secretly(aside / _SECRETS, json.dumps(work.environment))
        made._keep()
        return made

    def withdraw(self) -> None:
        """From now on none counts: this one ends itself, and the next one begins from what it left."""
        replace(self, id="")._keep()

    @property
    def withdrawn(self) -> bool:
        """Whether the last attempt was withdrawn."""
        return not self.id

    def _keep(self) -> None:
        values = {name: value for name, value in asdict(self).items() if name != "folder"}
        durable.replace_text(self.folder / CURRENT, json.dumps(values))

    @property
    def path(self) -> Path:
        """The folder of this attempt."""
        return self.folder / f"attempt-{self.number}"

    @property
    def spec(self) -> dict[str, Any]:
        """What is to be done, as `begin` was given it."""
        found: dict[str, Any] = json.loads((self.path / _WORK).read_text(encoding="utf-8"))
        return found

    def counts(self) -> bool:
        """Whether this attempt is the one that counts. Whoever cannot read that has not been passed by another."""
        try:
            current = Attempt.current(self.folder)
        except OSError:
            return True
        return current is not None and current.id == self.id

    def claim(self) -> bool:
        """Take it for this process; False: another one has it."""
        try:
            (self.path / _CLAIM).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def secrets(self) -> dict[str, str]:
        """What the work gets in its environment. They are there once."""
        file = self.path / _SECRETS
        if not file.is_file():
            return {}
        found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return found

    def answer(self, line: dict[str, Any]) -> None:
        """Add a line to the answers, for whoever reads them, on another machine too."""
        with (self.path / _ANSWERS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            if is_last(line):
                file.flush()
                os.fsync(file.fileno())

    def clear_away(self) -> None:
        """Remove what it made where the work was given up meanwhile, and its folders with it."""
        if Attempt.current(self.folder) is None:
            shutil.rmtree(self.path, ignore_errors=True)
            with suppress(OSError):
                self.folder.rmdir()
                self.folder.parent.rmdir()

    def take_over(self, outputs: tuple[str, ...]) -> None:
        """Move what the attempt made into the folder of the work, where it is not there yet."""
        for name in outputs:
            if (self.path / name).exists() and not (self.folder / name).exists():
                (self.path / name).replace(self.folder / name)
        durable.fsync(self.folder)


def is_last(line: dict[str, Any]) -> bool:
    """Whether a line ends the answers of an attempt: with its result, its error, or because it was stopped."""
    return not {"result", "error", "cancelled"}.isdisjoint(line)


class Answers:
    """Reads the lines of an attempt as they come."""

    def __init__(self, attempt: Attempt) -> None:
        self._file, self._position = attempt.path / _ANSWERS, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Those that were not read yet and are whole."""
        with suppress(FileNotFoundError), self._file.open("rb") as file:  # opened anew: NFS looks at the server then
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._position += len(line)
                yield json.loads(line)


def _link(source: Path, target: Path, but: tuple[str, ...] = ()) -> None:
    """Fill a folder with what another one holds, but for some names; files as links where that can be.

    Who writes there removes files meanwhile, and never changes one: what is missing then was a checkpoint in the
    making, or one too many, and a checkpoint that is not whole is passed over.
    """
    for entry in list(source.iterdir()):
        if entry.name in {*_OWN, *but} or entry.name.startswith((".", "attempt-")) or entry.suffix == ".log":
            continue
        with suppress(FileNotFoundError):
            if entry.is_dir():
                (target / entry.name).mkdir()
                _link(entry, target / entry.name)
                continue
            try:
                os.link(entry, target / entry.name)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without links, or somebody else's file
                shutil.copyfile(entry, target / entry.name)


def _write_secretly(file: Path, text: str) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
        opened.write(text)
