"""What does long work: the interface of the runners."""

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retuned.consumers.common.process import Emit


@dataclass(frozen=True)
class Work:
    """A job of a module whose `work` is run by `child_main`.

    Attributes:
        module: to be run as `python -m`.
        job: what it gets, JSON-serialisable, with absolute paths; the runner adds `folder`, where it keeps its files.
        folder: of this work alone. What an interrupted attempt left in it, the next one finds in its `folder`.
        timeout_seconds: of one attempt.
        environment: for the process; may hold secrets, which are kept out of the file of the job.
        outputs: names in `folder` that stand there once the work is done, and not before.
        to_need_less: what a person may do when it runs out of memory, beside giving it more.
    """

    module: str
    job: dict[str, Any]
    folder: Path
    timeout_seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    to_need_less: str = ""

    @property
    def name(self) -> str:
        """The module's, without its package."""
        return self.module.rsplit(".", 1)[-1]


class Runner(ABC):
    """Does work somewhere, and follows it."""

    @abstractmethod
    def run(self, work: Work, stop: threading.Event, on_progress: Emit) -> dict[str, Any]:
        """Do the work, or go on with it where an earlier call was interrupted, and return its result.

        Args:
            stop: when set, the work gets SIGTERM, and some seconds for a checkpoint.
            on_progress: called in this thread with each progress line.

        Raises:
            Cancelled: stop was set before there was a result.
            OutOfMemory: it needed more memory than there was.
            ChildFailed: it reported an error, died, or ran out of time; the text says which and names the log.
        """

    @abstractmethod
    def check(self) -> str | None:
        """What was found where the work is done; None where there is nothing to ask.

        Raises:
            RetunedError: nothing can be done there.
        """
