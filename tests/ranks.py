"""Work of several processes that computes nothing and imports little; run by the tests as `python -m ranks`."""

import os
import threading
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit
from retuned.consumers.errors import RetunedError
from retuned.retrain.training import launch


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any] | None:
    """Report the process and wait; with `fails`, the second one ends with an error."""
    emit({"pid": os.getpid()})
    if job.get("fails") and os.environ["RANK"] == "1":
        raise RetunedError("its GPU is out of memory")
    threading.Event().wait(300)
    return None


if __name__ == "__main__":
    child_main(work, lambda job: launch.launcher("ranks", job))
