"""Training sets in the forms that TRL trains on: chat, preferences, and thumbs for KTO.

Source of the forms: https://huggingface.co/docs/trl/dataset_formats, conversational. Messages and `tools` are those of
OpenAI's chat API, so that `chat` is its format for fine-tuning too.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from retuned.consumers.common import tool_calls
from retuned.consumers.formats.messages import object_of, objects_of, tool_call
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.build import learnable
from retuned.retrain.data.examples import Example
from retuned.retrain.data.passages import same_text, with_context
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
            yield {"messages": [*_prompt(row, settings), *_answer(row.completion)]} | _tools(row)


def _preference(
    warehouse: Warehouse, settings: Settings, workload: str, wanted: Callable[[Example], bool]
) -> Iterator[Row]:
    """`prompt`, `chosen` (the correction), `rejected` (the answer): of a demonstration, nothing is rejected."""
    found = learnable(warehouse, settings, workload)
    for row in found.rows:
        rejected = (row.rejected or "").strip()
        if wanted(row) and rejected and not found.metric.same(rejected, row.completion):
            pair = {"chosen": _answer(row.completion), "rejected": _answer(rejected)}
            yield {"prompt": _prompt(row, settings)} | pair | _tools(row)


def _kto(warehouse: Warehouse, settings: Settings, workload: str, wanted: Callable[[Example], bool]) -> Iterator[Row]:
    """`prompt`, `completion`, `label`: whether people called it helpful."""
    for row, helpful in learnable(warehouse, settings, workload).thumbs:
        if wanted(row):
            judged = {"completion": _answer(row.completion), "label": helpful}
            yield {"prompt": _prompt(row, settings)} | judged | _tools(row)


FORMS = {"chat": _chat, "preference": _preference, "kto": _kto}


def _prompt(row: Example, settings: Settings) -> list[Row]:
    """What was asked, with the passages where a training has them."""
    messages = [_turn(turn) for turn in json.loads(row.messages)]
    passages = json.loads(row.context or "[]") if settings.train.context else []
    return with_context(messages, [passage for passage in passages if not same_text(passage, row.completion)])


def _turn(turn: Row) -> Row:
    """A message in the chat API's form, whatever else an app logged with it."""
    kept = {key: turn[key] for key in ("role", "content", "name", "tool_call_id") if isinstance(turn.get(key), str)}
    calls = [
        tool_call(call.get("id"), function["name"], _as_text(function.get("arguments")))
        for call in objects_of(turn.get("tool_calls"))
        if isinstance((function := object_of(call.get("function", call))).get("name"), str)
    ]
    return kept | ({"tool_calls": calls} if calls else {})


def _answer(text: str) -> list[Row]:
    try:
        words, calls = tool_calls.read(text)
    except ValueError:
        words, calls = text, []
    if not calls:
        return [{"role": "assistant", "content": text}]
    return [
        {
            "role": "assistant",
            "content": words,
            "tool_calls": [
                tool_call(f"call_{number}", call.name, _as_text(call.arguments)) for number, call in enumerate(calls)
            ],
        }
    ]


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _tools(row: Example) -> Row:
    return {"tools": json.loads(row.tools)} if row.tools else {}
