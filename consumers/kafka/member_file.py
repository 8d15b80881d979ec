"""Under which id this process is in its consumer group, kept for the one after it."""

import json
from contextlib import suppress
from pathlib import Path

from retuned.consumers.common.durable import replace_text


class MemberFile:
    """A small file beside one that a process locks as long as it lives.

    Whoever has the lock knows that the process before is dead, and that nobody will speak for its member any more. That
    holds for the locked file itself: a copy of it, which may be somebody else's, has another device or inode.
    """

    def __init__(self, locked: Path) -> None:
        self._locked, self._path = locked, locked.with_name(f"{locked.name}.member")

    def read(self) -> str | None:
        """The id of the process before; None where it is not known."""
        try:
            held = json.loads(self._path.read_text(encoding="utf-8"))
            return str(held["member"]) if held["locked"] == self._identity() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, member: str) -> None:
        """Keep the id. A disk that takes no more costs the next process a wait, and this one nothing."""
        with suppress(OSError):
            replace_text(self._path, json.dumps({"member": member, "locked": self._identity()}))

    def _identity(self) -> list[int]:
        found = self._locked.stat()
        return [found.st_dev, found.st_ino]
