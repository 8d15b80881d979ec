"""The entry point of a Ray job: runs the work of an attempt in a child process, and writes answers to its folder.

Run as `python -m retuned.retrain.runners.ray_job FOLDER ID`. It does not import Ray.
"""

import importlib.metadata
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from retuned.consumers.common.logfields import about
from retuned.consumers.common.process import run_child
from retuned.consumers.errors import Cancelled, OutOfMemory, RetunedError
from retuned.retrain.runners.attempts import Attempt

LOOK_SECONDS = 2.0
"""The interval of checking whether the attempt is still current."""
NO_WORK = 2
"""The exit status if there is nothing to do. The reason is on standard error, which Ray keeps."""


def main(folder: Path, job_id: str) -> int:
    """Runs the work of an attempt. Returns the exit status."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        attempt = Attempt.current(folder)
    except (OSError, ValueError) as error:
        return _nothing(f"{folder}: cannot be read on {socket.gethostname()} ({error})")
    if attempt is None and not folder.is_dir():
        return _nothing(
            f"{folder} is not there on {socket.gethostname()}: mount the folder of models.directory on the nodes under "
            "the same path"
        )
    if attempt is None or attempt.id != job_id:
        return _nothing(f"job {job_id} is not current any more: another attempt runs, or the work was given up")
    if not attempt.claim():
        return _nothing(f"job {job_id} is running already")
    attempt.answer({"node": socket.gethostname()})
    last = _answer(attempt, stop)
    if attempt.counts():
        attempt.answer(last)
    else:
        attempt.clear_away()
    return 0


def _answer(attempt: Attempt, stop: threading.Event) -> dict[str, Any]:
    """Runs the work, and returns the last line."""
    spec = attempt.spec
    if (here := importlib.metadata.version("retuned")) != spec["version"]:
        return {"error": f"node {socket.gethostname()} has retuned {here}, and the daemon {spec['version']}: install "
                "the same there (runner.runtime_env, runner.python)"}  # fmt: skip
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            if not attempt.counts():
                stop.set()

    threading.Thread(target=look, name="attempt", daemon=True).start()
    try:
        with about(**spec["fields"]):
            result = run_child(
                spec["module"],
                spec["job"] | {"folder": str(attempt.path)},
                attempt.path,
                timeout_seconds=spec["timeout_seconds"],
                stop=stop,
                on_progress=attempt.answer,
                environment=attempt.secrets(),
                to_need_less=spec["to_need_less"],
            )
        return {"result": result}
    except Cancelled:
        return {"cancelled": True}
    except (RetunedError, OSError) as error:
        if stop.is_set():  # Ray stops the child, too, which may end first
            return {"cancelled": True}
        return {"error": str(error), "out_of_memory": isinstance(error, OutOfMemory)}
    finally:
        done.set()


def _nothing(why: str) -> int:
    print(why, file=sys.stderr)
    return NO_WORK


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
