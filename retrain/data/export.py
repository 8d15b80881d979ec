"""Exports training sets in the conversational formats of TRL: chat, preferences, and thumbs for KTO.

See https://huggingface.co/docs/trl/dataset_formats. Messages and `tools` have the form of OpenAI's chat API, so `chat`
is also its format for fine-tuning.
"""

import json
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import attach
from retuned.retrain import versions
from retuned.retrain.data import build
from retuned.retrain.data.chat import answer, prompt, tools
from retuned.retrain.data.evidence import Earlier, Evidence
from retuned.retrain.data.examples import Example
from retuned.retrain.data.selection import Selection, select
from retuned.retrain.scoring.metric import Chosen
from retuned.retrain.settings import Settings

Row = dict[str, Any]
Rows = Sequence[tuple[Example, bool]]
"""Examples, and whether people found their answers helpful."""

_ROWS = "rows.jsonl"


def training_sets(
    warehouse: Warehouse,
    settings: Mapping[str, Settings],
    form: str,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[Row]:
    """Yields the rows of workloads in one of `FORMS`, oldest first; at most dataset.maximum_rows of each workload.

    Held-out rows and rows related to them are left out. A child process selects the rows, which takes minutes if there
    are many.

    Args:
        settings: the settings of each workload.
        since, until: the range of the feedback's time, naive UTC; `until` is exclusive.

    Raises:
        ChildFailed: the child failed or died.
    """
    if not settings:
        return
    with tempfile.TemporaryDirectory(prefix="retuned-export-") as name:
        folder = Path(name)
        jobs = [
            build.prepare(warehouse, own, workload, folder / str(number), threading.Event())
            for number, (workload, own) in enumerate(settings.items())
        ]
        bounds = {"since": since and since.isoformat(), "until": until and until.isoformat()}
        run_child(
            "retuned.retrain.data.export",
            {"jobs": jobs, "form": form, "rows": str(folder / _ROWS)} | bounds,
            folder,
            timeout_seconds=sum(own.train.timeout_seconds for own in settings.values()),
            to_need_less="lower dataset.maximum_rows",
        )
        with (folder / _ROWS).open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def work(job: dict[str, Any], _: Emit) -> dict[str, Any]:
    """Runs in the child: writes the rows as JSON Lines."""
    since, until = (job[name] and datetime.fromisoformat(job[name]) for name in ("since", "until"))

    def wanted(row: Example) -> bool:
        return (since is None or row.timestamp >= since) and (until is None or row.timestamp < until)

    with Path(job["rows"]).open("w", encoding="utf-8") as lines:
        for one in job["jobs"]:
            settings = Settings.model_validate(one["settings"])
            with closing(attach(WarehouseSettings(path=Path(one["extract"])), create=False)) as warehouse:
                chosen, metric = _select(warehouse, settings, one["workload"])
            learned = sorted(chosen.splits["train"], key=lambda row: (row.timestamp, row.row_id))
            pairs = chosen.thumbs if job["form"] == "kto" else [(row, True) for row in learned]
            rows = [(row, helpful) for row, helpful in pairs if wanted(row)]
            for row in FORMS[job["form"]](rows, settings, metric):
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return {}


def _select(warehouse: Warehouse, settings: Settings, workload: str) -> tuple[Selection, Chosen]:
    """Selects rows as for a training that starts from the base model, and returns them with the metric."""
    earlier = Earlier.of(warehouse, settings, workload, versions.champion(warehouse, workload))
    evidence = Evidence.of(warehouse, settings, workload, earlier)
    without = replace(earlier, versions=[], until=None, train=[])
    return select(evidence, without, settings.dataset), evidence.metric


def _chat(rows: Rows, settings: Settings, _: Chosen) -> Iterator[Row]:
    """Yields `messages`: the conversation, whose answers have weight 0, and the corrected or accepted answer."""
    for row, _helpful in rows:
        before = [turn | ({"weight": 0} if turn["role"] == "assistant" else {}) for turn in _prompt(row, settings)]
        yield {"messages": [*before, *answer(row.completion)]} | _tools(row)


def _preference(rows: Rows, settings: Settings, metric: Chosen) -> Iterator[Row]:
    """Yields `prompt`, `chosen` (the correction) and `rejected` (the logged answer, which demonstrations lack)."""
    for row, _ in rows:
        rejected = (row.rejected or "").strip()
        if rejected and not metric.same(rejected, row.completion):
            pair = {"chosen": answer(row.completion), "rejected": answer(rejected)}
            yield {"prompt": _prompt(row, settings)} | pair | _tools(row)


def _kto(rows: Rows, settings: Settings, _: Chosen) -> Iterator[Row]:
    """Yields `prompt`, `completion` and `label` (the thumb)."""
    for row, helpful in rows:
        rated = {"completion": answer(row.completion), "label": helpful}
        yield {"prompt": _prompt(row, settings)} | rated | _tools(row)


FORMS = {"chat": _chat, "preference": _preference, "kto": _kto}


def _prompt(row: Example, settings: Settings) -> list[Row]:
    return prompt(row.as_row(), settings.train.context)


def _tools(row: Example) -> Row:
    return tools(row.as_row())


if __name__ == "__main__":
    child_main(work)
