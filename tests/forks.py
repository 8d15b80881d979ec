"""Processes that are forked from one which has imported what they need: imports take seconds of each child's time."""

import multiprocessing
import os
import runpy
import sys
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from typing import IO, Any
from unittest import mock

from retuned.consumers.common.process import HUGE_PAGES, THREADS_WAIT_BRIEFLY

IMPORTED = [
    "peft",
    "retuned.daemon.backup.create",
    "retuned.daemon.backup.restore",
    "retuned.retrain.generation.adapters",
    "retuned.retrain.training.adapter",
    "transformers.models.llama.modeling_llama",
    "trl.trainer.sft_trainer",
]
# As `run_child` has them: what libraries read once, when they are loaded.
ENVIRONMENT = HUGE_PAGES | THREADS_WAIT_BRIEFLY | {"HF_HUB_OFFLINE": "1"}


def forking() -> ForkServerContext:
    """The context whose processes are forked from the one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, ENVIRONMENT):
        ensure_running()
    return context


class ForkedChild:
    """Stands in for `subprocess.Popen` of `python -m module job`: the same work, output, signals and exit status."""

    def __init__(self, command: list[str], *, stderr: IO[bytes], env: dict[str, str], **_: Any) -> None:
        module, job = command[2:]
        context = forking()
        reader, writer = context.Pipe(duplex=False)
        log = Connection(os.dup(stderr.fileno()), readable=False)
        self._process = context.Process(target=_run, args=(module, job, env, writer, log))
        self._process.start()
        writer.close()
        log.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()), "rb")
        reader.close()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _run(module: str, job: str, environment: dict[str, str], output: Connection, log: Connection) -> None:
    os.setsid()
    os.dup2(output.fileno(), 1)
    os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment | {"RETUNED_PARENT": str(os.getppid())})
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = [module, job]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
