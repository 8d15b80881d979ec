"""Previews the next dataset: the same decisions, stored nowhere."""

import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from retuned.consumers.errors import Busy
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data import build
from retuned.retrain.settings import Settings


def preview(
    warehouse: Warehouse, settings: Settings, workload: str, stop: threading.Event, limit: int | None = None
) -> Iterator[str]:
    """Yields the rows that the next dataset would teach, hold out and set aside, as pieces of a JSON object.

    It has `workload`; `against`, the last dataset, or null; `refused`, the reason why the dataset would be refused, or
    null; `metric`, the name of the metric; `total` and `counts` as `states.write_preview` returns them; and `rows`.

    Args:
        limit: the maximum number of rows of each state and reason; None yields all.

    Raises:
        Busy: a dataset is being built.
        Cancelled, ChildFailed: as `build.build_dataset`.
    """
    with tempfile.TemporaryDirectory(prefix="retuned-preview-") as name:
        folder, rows = Path(name), Path(name) / "rows.jsonl"
        if not build.this_machine.acquire(blocking=False):
            raise Busy(f"workload {workload}: a dataset is being made or compared; try again in a minute")
        try:
            job = build.prepare(warehouse, settings, workload, folder, stop)
            about = {"workload": workload, "rows": str(rows), "limit": limit}
            result = build.run(job | {"preview": about}, settings, folder, stop)
        finally:
            build.this_machine.release()
        head = {"workload": workload, "against": result["against"], "refused": result.get("reason")}
        head |= {name: result[name] for name in ("metric", "total", "counts")}
        yield json.dumps(head, ensure_ascii=False)[:-1] + ', "rows": ['
        with rows.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                yield f"{', ' if number else ''}{line.rstrip()}"
        yield "]}"
