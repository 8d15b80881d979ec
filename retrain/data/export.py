"""Training sets in the forms that TRL trains on: chat, preferences, and thumbs for KTO.

Source of the forms: https://huggingface.co/docs/trl/dataset_formats, conversational. Messages and `tools` are those of
OpenAI's chat API, so that `chat` is its format for fine-tuning too.
"""

import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse, attach
from retuned.retrain import versions
from retuned.retrain.data import build
from retuned.retrain.data.chat import answer, prompt, tools
from retuned.retrain.data.evidence import Earlier, Evidence
from retuned.retrain.data.examples import Example
from retuned.retrain.data.selection import select
from retuned.retrain.scoring.metric import Chosen
from retuned.retrain.settings import Settings

Row = dict[str, Any]

_ROWS = "rows.jsonl"


def training_sets(
    warehouse: Warehouse,
    settings: Mapping[str, Settings],
    form: str,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[Row]:
    """The rows of workloads in one of `FORMS`, oldest first; of each at most dataset.maximum_rows.

    What models are judged on is left out, and so is what comes near to it. Rows are chosen in a child process: where
    they are many it takes minutes, in which this process goes on with its work.

    Args:
        settings: of each workload.
        since, until: bounds of when the feedback was given, naive UTC; `until` itself is out.

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
    """The child's side: the rows as JSON Lines."""
    since, until = (job[name] and datetime.fromisoformat(job[name]) for name in ("since", "until"))

    def wanted(row: Example) -> bool:
        return (since is None or row.timestamp >= since) and (until is None or row.timestamp < until)

    with Path(job["rows"]).open("w", encoding="utf-8") as lines:
        for one in job["jobs"]:
            settings = Settings.model_validate(one["settings"])
            with closing(attach(WarehouseSettings(path=Path(one["extract"])), create=False)) as warehouse:
                found = _learnable(warehouse, settings, one["workload"])
            for row in FORMS[job["form"]](found, settings, wanted):
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return {}


@dataclass(frozen=True)
class _Learnable:
    """What a training from scratch would learn from, oldest first.

    Attributes:
        thumbs: answers that people called helpful (True) or not.
    """

    rows: list[Example]
    thumbs: list[tuple[Example, bool]]
    metric: Chosen


def _learnable(warehouse: Warehouse, settings: Settings, workload: str) -> _Learnable:
    """Selection as for a dataset: what is set aside, what is out of date, what says the same twice, and what comes near
    to a question that is judged on, now or by the champion and those before it, is not learned from."""
    champion = versions.champion(warehouse, workload)
    earlier = Earlier.of(warehouse, settings, workload, champion)
    anew = replace(earlier, versions=[], until=None, train=[])
    evidence = Evidence.of(warehouse, settings, workload, earlier.generation)
    chosen = select(evidence, anew, settings.dataset)
    return _Learnable(
        sorted(chosen.splits["train"] + chosen.splits["validation"], key=lambda row: (row.timestamp, row.row_id)),
        chosen.thumbs,
        evidence.metric,
    )


def _chat(found: _Learnable, settings: Settings, wanted: Callable[[Example], bool]) -> Iterator[Row]:
    """`messages`: what was asked, and the corrected or accepted answer."""
    for row in found.rows:
        if wanted(row):
            yield {"messages": [*_prompt(row, settings), *answer(row.completion)]} | _tools(row)


def _preference(found: _Learnable, settings: Settings, wanted: Callable[[Example], bool]) -> Iterator[Row]:
    """`prompt`, `chosen` (the correction), `rejected` (the answer): of a demonstration, nothing is rejected."""
    for row in found.rows:
        rejected = (row.rejected or "").strip()
        if wanted(row) and rejected and not found.metric.same(rejected, row.completion):
            pair = {"chosen": answer(row.completion), "rejected": answer(rejected)}
            yield {"prompt": _prompt(row, settings)} | pair | _tools(row)


def _kto(found: _Learnable, settings: Settings, wanted: Callable[[Example], bool]) -> Iterator[Row]:
    """`prompt`, `completion`, `label`: whether people called it helpful."""
    for row, helpful in found.thumbs:
        if wanted(row):
            judged = {"completion": answer(row.completion), "label": helpful}
            yield {"prompt": _prompt(row, settings)} | judged | _tools(row)


FORMS = {"chat": _chat, "preference": _preference, "kto": _kto}


def _prompt(row: Example, settings: Settings) -> list[Row]:
    return prompt(row.as_row(), settings.train.context)


def _tools(row: Example) -> Row:
    return tools(row.as_row())


if __name__ == "__main__":
    child_main(work)
