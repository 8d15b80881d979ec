"""Attempts at a piece of work, in a folder that the daemon and the nodes of a cluster share.

Each attempt has a folder of its own. A file beside them names the current attempt, whose answers the daemon reads. An
attempt that is no longer current ends itself.
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
"""The file in the folder of the work that names the current attempt."""
_WORK, _SECRETS, _ANSWERS, _CLAIM = "work.json", "environment.json", "answers.jsonl", "claim"
_OWN = frozenset({CURRENT, _WORK, _SECRETS, _ANSWERS, _CLAIM})


@dataclass(frozen=True)
class Attempt:
    """An attempt.

    Attributes:
        folder: the folder of the work.
        number: 1 for the first attempt.
        id: the id of the job, unique in any cluster; empty if it was withdrawn.
        lost: the number of earlier attempts that ended without an answer.
    """

    folder: Path
    number: int
    id: str
    lost: int

    @classmethod
    def current(cls, folder: Path) -> "Attempt | None":
        """Returns the current attempt, if any."""
        try:
            known = json.loads((folder / CURRENT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls(folder, **known)

    @classmethod
    def begin(cls, work: Work, spec: dict[str, Any], before: "Attempt | None", lost: int = 0) -> "Attempt":
        """Creates a new current attempt, with the files of the one before or of the work."""
        folder = work.folder.resolve()
        attempt = cls(folder, before.number + 1 if before else 1, f"retuned-{work.name}-{uuid.uuid4().hex[:12]}", lost)
        shutil.rmtree(attempt.path, ignore_errors=True)  # left by a killed daemon, and never submitted
        folder.mkdir(parents=True, exist_ok=True)
        with durable.written_aside(attempt.path) as aside:
            _link(before.path if before else folder, aside, but=work.outputs)
            (aside / _WORK).write_text(json.dumps(spec), encoding="utf-8")
            if work.environment:
                _write_secretly(aside / _SECRETS, json.dumps(work.environment))
        attempt._keep()
        return attempt

    def withdraw(self) -> None:
        """Leaves no current attempt, so that this one ends itself. The next one starts from its files."""
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
        """The specification of the work, as passed to `begin`."""
        spec: dict[str, Any] = json.loads((self.path / _WORK).read_text(encoding="utf-8"))
        return spec

    def counts(self) -> bool:
        """Returns whether this attempt is current. Assumes so if the file cannot be read."""
        try:
            current = Attempt.current(self.folder)
        except OSError:
            return True
        return current is not None and current.id == self.id

    def claim(self) -> bool:
        """Claims the attempt for this process. Returns False if another process has claimed it."""
        try:
            (self.path / _CLAIM).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def secrets(self) -> dict[str, str]:
        """Returns the secret environment variables of the work, and deletes their file."""
        file = self.path / _SECRETS
        if not file.is_file():
            return {}
        variables: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return variables

    def answer(self, line: dict[str, Any]) -> None:
        """Appends a line to the answers, which the daemon reads, possibly on another machine."""
        with (self.path / _ANSWERS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            if is_last(line):
                file.flush()
                os.fsync(file.fileno())

    def clear_away(self) -> None:
        """Removes the attempt's files and empty folders, if the work was given up."""
        if Attempt.current(self.folder) is None:
            shutil.rmtree(self.path, ignore_errors=True)
            with suppress(OSError):
                self.folder.rmdir()
                self.folder.parent.rmdir()

    def take_over(self, outputs: tuple[str, ...]) -> None:
        """Moves outputs of the attempt into the folder of the work, unless they are there."""
        for name in outputs:
            if (self.path / name).exists() and not (self.folder / name).exists():
                (self.path / name).replace(self.folder / name)
        durable.fsync(self.folder)


def is_last(line: dict[str, Any]) -> bool:
    """Returns whether a line is the last answer of an attempt: a result, an error, or that it was stopped."""
    return not {"result", "error", "cancelled"}.isdisjoint(line)


class Answers:
    """Reads the answers of an attempt as they are written."""

    def __init__(self, attempt: Attempt) -> None:
        self._file, self._position = attempt.path / _ANSWERS, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Yields complete lines that were not read before."""
        with suppress(FileNotFoundError), self._file.open("rb") as file:  # open again, so that NFS asks the server
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._position += len(line)
                yield json.loads(line)


def _link(source: Path, target: Path, but: tuple[str, ...] = ()) -> None:
    """Copies a folder except some names, by hard links if possible.

    The process that writes there may remove files meanwhile, but never changes one. Missing files belong to an old or
    unfinished checkpoint, and incomplete checkpoints are ignored.
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
            except OSError:  # the file system has no links, or another user owns the file
                shutil.copyfile(entry, target / entry.name)


def _write_secretly(file: Path, text: str) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
        opened.write(text)
