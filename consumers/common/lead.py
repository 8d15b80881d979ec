"""Leave to act outside of the warehouse: of the daemons of a cluster, one has it at a time.

What talks to the outside asks before each request that changes something there: the client of HTTP, the publisher of
messages, the object storage where it deletes.
"""

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

Lead = Callable[[], int | None]
"""Returns the epoch under which this daemon leads its cluster, which goes with the act where the receiver can take it:
of a lower epoch than one that it has seen, it should do nothing. None: there is no cluster. Raises StandsBy where
another daemon leads, or may."""

LEASE = "RETUNED_LEASE"
"""In the environment of a daemon of a cluster and of its children: the file of its `Lease`."""
_HELD = struct.Struct("=qd")


def alone() -> None:
    """The leave of a process that is in no cluster."""


class Lease:
    """Until when a daemon leads, for its children: they go on where it is frozen, and cannot ask it."""

    def __init__(self) -> None:
        self._file = os.memfd_create("retuned-lease")
        os.environ[LEASE] = f"/proc/{os.getpid()}/fd/{self._file}"
        self.hold(0, 0.0)

    def hold(self, epoch: int, until: float) -> None:
        """Under an epoch, until a time of the monotonic clock, which all processes of a machine share."""
        os.pwrite(self._file, _HELD.pack(epoch, until), 0)

    def close(self) -> None:
        """Nobody asks for it any more."""
        os.environ.pop(LEASE, None)
        os.close(self._file)


def lead_of_parent(wait: Callable[[float], None]) -> Lead:
    """The leave of a child: it waits as long as its daemon does not lead.

    Args:
        wait: passes so many seconds; may raise to give up.
    """
    file = os.environ.get(LEASE)
    if file is None:
        return alone

    def lead() -> int:
        while True:
            epoch, until = _HELD.unpack(Path(file).read_bytes())
            if time.monotonic() < until:
                return int(epoch)
            wait(1.0)

    return lead
