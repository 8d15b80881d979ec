"""Training sets in the forms that TRL trains on: chat, preferences, and thumbs for KTO.

Source of the forms: https://huggingface.co/docs/trl/dataset_formats, conversational. Messages and `tools` are those of
OpenAI's chat API, so that `chat` is its format for fine-tuning too.
"""

from collections.abc import Callable, Iterator
from typing import Any

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.build import learnable
from retuned.retrain.data.chat import answer, prompt, tools
from retuned.retrain.data.examples import Example
from retuned.retrain.settings import Settings

Row = dict[str, Any]


def training_set(
    warehouse: Warehouse, settings: Settings, workload: str, form: str, wanted: Callable[[Example], bool]
) -> Iterator[Row]:
    """The rows of a workload in one of `FORMS`, as `wanted`, oldest first; at most dataset.maximum_rows.

    What models are judged on is left out, and so is what comes near to it.
    """
    return FORMS[form](warehouse, settings, workload, wanted)


def _chat(warehouse: Warehouse, settings: Settings, workload: str, wanted: Callable[[Example], bool]) -> Iterator[Row]:
    """`messages`: what was asked, and the corrected or accepted answer."""
    for row in learnable(warehouse, settings, workload).rows:
        if wanted(row):
            yield {"messages": [*_prompt(row, settings), *answer(row.completion)]} | _tools(row)


def _preference(
    warehouse: Warehouse, settings: Settings, workload: str, wanted: Callable[[Example], bool]
) -> Iterator[Row]:
    """`prompt`, `chosen` (the correction), `rejected` (the answer): of a demonstration, nothing is rejected."""
    found = learnable(warehouse, settings, workload)
    for row in found.rows:
        rejected = (row.rejected or "").strip()
        if wanted(row) and rejected and not found.metric.same(rejected, row.completion):
            pair = {"chosen": answer(row.completion), "rejected": answer(rejected)}
            yield {"prompt": _prompt(row, settings)} | pair | _tools(row)


def _kto(warehouse: Warehouse, settings: Settings, workload: str, wanted: Callable[[Example], bool]) -> Iterator[Row]:
    """`prompt`, `completion`, `label`: whether people called it helpful."""
    for row, helpful in learnable(warehouse, settings, workload).thumbs:
        if wanted(row):
            judged = {"completion": answer(row.completion), "label": helpful}
            yield {"prompt": _prompt(row, settings)} | judged | _tools(row)


FORMS = {"chat": _chat, "preference": _preference, "kto": _kto}


def _prompt(row: Example, settings: Settings) -> list[Row]:
    return prompt(row.as_row(), settings.train.context)


def _tools(row: Example) -> Row:
    return tools(row.as_row())
