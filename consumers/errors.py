"""The errors of retuned. The type of an error decides what happens: retry, dead letter, or stop."""

import errno
import resource
from typing import ClassVar


class RetunedError(Exception):
    """An error that a person can act on: its text is one line that names the problem and what to do. The daemon stops.

    Attributes:
        exit_status: the exit status of the command. A supervisor may restart a daemon that ended with 1: it waits for
            missing services, or ends in the same way without harm.
    """

    exit_status: ClassVar[int] = 1


class ConfigurationError(RetunedError):
    """A setting is unknown, has the wrong type or contradicts another one."""


class WarehouseError(RetunedError):
    """The warehouse cannot be opened, read or written."""


class MemoryLimit(WarehouseError):
    """DuckDB's memory limit is too small for this, temporarily or in general. Nothing was written."""


class Busy(RetunedError):
    """Another operation is in progress. Retry later."""


class ArchiveError(RetunedError):
    """Old events cannot be archived. They stay in the warehouse, and the daemon continues."""


class BackupError(RetunedError):
    """A backup cannot be made, read or restored. Complete backups are unaffected, and the daemon continues."""


class Fenced(RetunedError):
    """Another consumer of the group is active: pending events are not stored, and this consumer must stop.

    After a restart it would join the group again, and delay the healthy one.
    """

    exit_status = 3


class StoreUnavailable(RetunedError):
    """The database or the object storage of a cluster does not answer. Retry after a pause."""


class Reassigned(RetunedError):
    """Another ingester has partitions of a batch by now. Nothing of it was stored: restart from the stored offsets."""


class ErasedMeanwhile(RetunedError):
    """Events were erased since a batch was read. Nothing of it was stored: remove them from it, and try again."""


class StandsBy(RetunedError):
    """This daemon of a cluster must not change anything: another one leads, or none does yet."""


class LeadershipLost(StandsBy):
    """Another daemon leads the cluster by now: nothing of this change was written, and this daemon must stop.

    After a restart it stands by.
    """


class OutdatedWarehouse(RetunedError):
    """The warehouse lacks changes that the cluster's database has. Nothing was written; retry."""


class OutOfStep(RetunedError):
    """A batch of a file does not start at the end of the last one. Nothing was stored, and ingestion continues."""


class BrokerUnavailable(RetunedError):
    """The broker does not answer. Retry after a pause."""


class BrokerRefused(RetunedError):
    """The broker refuses (credentials, certificate, authorisation). A retry does not help."""


class Unreadable(RetunedError):
    """Records on the broker cannot be read (a missing codec, a batch without an end). Continuing would skip them."""


class EventsLost(RetunedError):
    """The broker deleted events before they were read, and the configuration requires to stop."""


class BadFile(RetunedError):
    """A file cannot be read, or not to its end; rows read before are stored."""


class TooManyDeadLetters(RetunedError):
    """More events than the configured share cannot be decoded: stop before all events become dead letters.

    After a restart, more of them would.
    """

    exit_status = 4


class ChildFailed(RetunedError):
    """A child process (training, evaluation, drift) ended without a result."""


class OutOfMemory(ChildFailed):
    """A child process needed more memory than there was."""


class Cancelled(RetunedError):
    """A run was stopped; it can be resumed."""


def out_of_files(error: BaseException | None) -> str | None:
    """Returns advice if an error or its cause means that no more files can be opened; None: it does not."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(error):
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return (
                f"this process has reached its limit of open files and connections ({limit}); raise the limit "
                "(ulimit -n, LimitNOFILE= of a systemd unit) and restart it"
            )
        error = error.__cause__
    return None
