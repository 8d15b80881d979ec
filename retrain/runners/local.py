"""The runner `local`: a child process of the daemon, which dies with it."""

import threading
from typing import Any

from retuned.consumers.common.process import Emit, run_child
from retuned.retrain.runners.devices import environment
from retuned.retrain.runners.runner import Runner, Work
from retuned.retrain.settings import TrainSettings


class LocalRunner(Runner):
    """Runs work in child processes, on the GPUs of `train.devices`."""

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings

    def run(self, work: Work, stop: threading.Event, on_progress: Emit) -> dict[str, Any]:
        return run_child(
            work.module,
            work.job | {"folder": str(work.folder.resolve())},
            work.folder,
            timeout_seconds=work.timeout_seconds,
            stop=stop,
            on_progress=on_progress,
            environment=environment(self._settings) | work.environment,
            to_need_less=work.to_need_less,
        )

    def check(self) -> None:
        """Does nothing: child processes need no check."""
