"""Keeps the id of this process in its consumer group for the next process."""

import json
from contextlib import suppress
from pathlib import Path

from retuned.consumers.common.durable import replace_text


class MemberFile:
    """A small file beside a file that a process locks for its lifetime.

    The holder of the lock knows that the previous process is dead, so it may remove that process's member from the
    group. This is true for the locked file itself only: a copy, which may belong to another process, has another device
    or inode.
    """

    def __init__(self, locked: Path) -> None:
        self._locked, self._path = locked, locked.with_name(f"{locked.name}.member")

    def read(self) -> str | None:
        """Returns the member id of the previous process; None: unknown."""
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return str(content["member"]) if content["locked"] == self._identity() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, member: str) -> None:
        """Stores the member id. If the disk is full, the next process only has to wait."""
        with suppress(OSError):
            replace_text(self._path, json.dumps({"member": member, "locked": self._identity()}))

    def _identity(self) -> list[int]:
        status = self._locked.stat()
        return [status.st_dev, status.st_ino]
