"""The interface of the runners."""

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retuned.consumers.common.process import Emit


@dataclass(frozen=True)
class Work:
    """A job for a module whose `work` function `child_main` runs.

    Attributes:
        module: the module, run by `python -m`.
        job: its input, JSON-serialisable, with absolute paths. The runner adds `folder`, the folder for its files.
        folder: a folder for this work only. The next attempt finds in its `folder` what an interrupted one left.
        timeout_seconds: the timeout of one attempt.
        environment: environment variables, possibly secret, which are not written to the job's file.
        outputs: names in `folder` that exist only once the work is done.
        to_need_less: advice for a person if it runs out of memory.
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
        """The name of the module, without its package."""
        return self.module.rsplit(".", 1)[-1]


class Runner(ABC):
    """Runs work and waits for it."""

    @abstractmethod
    def run(self, work: Work, stop: threading.Event, on_progress: Emit) -> dict[str, Any]:
        """Runs the work, or resumes it after an interrupted call, and returns its result.

        Args:
            stop: when set, the work gets SIGTERM and some seconds for a checkpoint.
            on_progress: called in this thread with each progress report.

        Raises:
            Cancelled: stop was set before there was a result.
            OutOfMemory: the work ran out of memory.
            ChildFailed: the work reported an error, died, or timed out. The message names the cause and the log.
        """

    @abstractmethod
    def check(self) -> str | None:
        """Checks the runner, and returns its description, if there is anything to check.

        Raises:
            RetunedError: the runner is not usable.
        """
