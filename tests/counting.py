"""Work that counts and can be interrupted, as a training can; run by the runners under test as `python -m counting`."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.durable import written_aside
from retuned.consumers.common.process import Emit
from retuned.consumers.errors import Cancelled, RetunedError
from retuned.retrain.runners.runner import Work

STEPS = 6
MODULE_PATH = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])


def counting_work(folder: Path, timeout_seconds: float = 120.0, **job: Any) -> Work:
    """Work that makes `made`, in the folder `count`; it holds until the file `gate` is there. `job`: see `work`."""
    return Work(
        "counting",
        {"steps": STEPS, "gate": str(folder / "gate")} | job,
        folder / "count",
        timeout_seconds=timeout_seconds,
        environment={"PYTHONPATH": MODULE_PATH, "COUNTING_SECRET": "sesame"},
        outputs=("made",),
        to_need_less="count less",
    )


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Count `steps`, with a checkpoint after each, and wait after `hold_at` steps until the file `gate` is there."""
    stopped = threading.Event()
    if not job.get("deaf"):
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    folder = Path(job["folder"])
    begun = max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), default=0)
    emit({"begun_at": begun, "pid": os.getpid()})
    while begun and job.get("holds_again") and not Path(job["gate"]).exists():
        time.sleep(0.02)

    def save(step: int) -> None:
        with written_aside(folder / f"checkpoint-{step}") as aside:
            (aside / "state.json").write_text(json.dumps(step))

    for step in range(begun + 1, job["steps"] + 1):
        save(step)
        emit({"step": step})
        while step == job.get("hold_at") and not Path(job["gate"]).exists() and not stopped.is_set():
            time.sleep(0.02)
        if stopped.is_set():
            save(step)
            raise Cancelled("stopped")
    match job.get("ends"):
        case "refused":
            raise RetunedError("the rows are all alike")
        case "memory":
            bytearray(1 << 62)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    with written_aside(folder / "made") as aside:
        (aside / "sum").write_text(str(sum(range(job["steps"] + 1))))
    return {"counted": job["steps"], "has_secret": os.environ.get("COUNTING_SECRET") == "sesame"}


if __name__ == "__main__":
    child_main(work)
