"""The errors of retuned. The type of an error decides its fate: retry, dead-letter, or stop."""

import errno
import resource
from typing import ClassVar


class RetunedError(Exception):
    """An error a person can act on: its text is one line that names the thing and the way out. The daemon stops.

    Attributes:
        exit_status: of the command that it ends. A supervisor may start a daemon that ended with 1 again: it waits for
            what is away, or ends in the same way and harms nothing.
    """

    exit_status: ClassVar[int] = 1


class ConfigurationError(RetunedError):
    """A setting is unknown, of the wrong type or contradicts another."""


class WarehouseError(RetunedError):
    """The warehouse cannot be opened, read or written."""


class MemoryLimit(WarehouseError):
    """DuckDB may not have as much memory as this needs, just now or ever. Nothing was written."""


class Busy(RetunedError):
    """Something else is at work there. Worth another try, later."""


class ArchiveError(RetunedError):
    """Old events cannot be archived. They stay in the warehouse, and the daemon goes on."""


class BackupError(RetunedError):
    """A backup cannot be made, read or restored. Backups that are complete stay as they are, and the daemon goes on."""


class Fenced(RetunedError):
    """Another consumer of the group is at work: nothing in hand is stored, and this consumer must stop.

    Started again it would join the group again, and hold up the healthy one.
    """

    exit_status = 3


class StoreUnavailable(RetunedError):
    """The database or the object storage of a cluster does not answer. Worth another try, after a pause."""


class Reassigned(RetunedError):
    """Another ingester has partitions of a batch by now. Nothing of it was stored: read again what is not stored."""


class StandsBy(RetunedError):
    """This daemon of a cluster changes nothing: another one leads, or none does yet."""


class LeadershipLost(StandsBy):
    """Another daemon leads the cluster by now: nothing of this change was written, and this daemon must stop.

    Started again it stands by.
    """


class OutdatedWarehouse(RetunedError):
    """The warehouse lacks changes that the cluster's database has. Nothing was written; worth another try."""


class OutOfStep(RetunedError):
    """A batch of a file does not begin where the last one ended. Nothing was stored, and ingestion goes on."""


class BrokerUnavailable(RetunedError):
    """The broker does not answer. Worth another try, after a pause."""


class BrokerRefused(RetunedError):
    """The broker answered and said no (credentials, certificate, authorisation). Trying again does not help."""


class Unreadable(RetunedError):
    """What the broker holds cannot be read here (a missing codec, a batch without an end). Reading on would skip it."""


class EventsLost(RetunedError):
    """The broker deleted events before they were read, and the configuration says to stop then."""


class BadFile(RetunedError):
    """A file cannot be read, or not to its end; what was read of it before is stored."""


class TooManyDeadLetters(RetunedError):
    """More events than the configured share cannot be decoded: stop before everything is thrown away.

    Started again it would throw away some more.
    """

    exit_status = 4


class ChildFailed(RetunedError):
    """A child process (training, evaluation, drift) ended without a result."""


class OutOfMemory(ChildFailed):
    """A child process needed more memory than there was."""


class Cancelled(RetunedError):
    """A run was asked to stop; it can be resumed."""


def out_of_files(error: BaseException | None) -> str | None:
    """What to do about an error, or its cause, that says that no more files may be opened; None for any other."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(error):
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return (
                f"as many files and connections are open as this process may have ({limit}); raise the limit "
                "(ulimit -n, LimitNOFILE= of a systemd unit) and start it again"
            )
        error = error.__cause__
    return None
