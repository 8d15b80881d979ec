"""Permission to change something outside of the warehouse: of the daemons of a cluster, one has it at a time.

It is checked where requests leave the process, before each one that changes something: in the client of HTTP, the
publisher of messages, and the object storage where it deletes.
"""

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

Lead = Callable[[], int | None]
"""Returns the epoch under which this daemon leads its cluster; None: there is no cluster. The request carries the epoch
where the receiver can read it: one that has seen a higher epoch should refuse the request.

Raises:
    StandsBy: another daemon leads, or may.
"""

LEASE = "RETUNED_LEASE"
"""In the environment of a daemon of a cluster and of its children: the file of its `Lease`."""
_HELD = struct.Struct("=qd")


def alone() -> None:
    """Of a process that is in no cluster: it always may."""


class Lease:
    """Until when a daemon leads, in memory that its children read: they go on while it is frozen."""

    def __init__(self) -> None:
        self._file = os.memfd_create("retuned-lease")
        os.environ[LEASE] = f"/proc/{os.getpid()}/fd/{self._file}"
        self.hold(0, 0.0)

    def hold(self, epoch: int, until: float) -> None:
        """Under an epoch, until a time of the monotonic clock, which all processes of a machine share."""
        os.pwrite(self._file, _HELD.pack(epoch, until), 0)

    def close(self) -> None:
        """No child reads it any more."""
        os.environ.pop(LEASE, None)
        os.close(self._file)


def lead_of_parent(wait: Callable[[float], None]) -> Lead:
    """Of a child process: it waits until its daemon leads.

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
