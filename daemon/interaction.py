"""All that is known of one interaction: for its page, to which the exemplars of metrics lead."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from retuned.consumers.common.tool_calls import answer_text, are_calls, written
from retuned.consumers.errors import RetunedError
from retuned.consumers.formats.messages import texts_of
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.retrain.data import lineage

SQL = named_queries("retuned.daemon", "interaction.sql")


def interaction(warehouse: Warehouse, id: str) -> dict[str, Any]:
    """An interaction as it is stored, redacted, and what came of it.

    Returns:
        The columns of `interactions`, with `messages` as role and text, the `response` with its calls of tools, the
        `context` as a list (None: no passages) and the `attributes` as indented JSON (None: no others); and:
        `version`, the row of the version that answered (None: not one of ours); `feedback`, whose `text` is the value
        in words; `grounding`, what its values came to (None: they were not compared); `label_requests`; `scores`,
        of models that were evaluated on it; `lineage`, as in `retuned.retrain.data.lineage`.

    Raises:
        RetunedError: it is not in the warehouse.
    """
    found = warehouse.row(SQL["interaction"], {"id": id})
    if found is None:
        raise RetunedError(
            f"interaction {id}: not in the warehouse; never stored, or moved to the archive (retention.keep_days)"
        )
    attributes = json.loads(found["attributes"] or "{}")
    found |= {
        "messages": turns(json.loads(found["messages"])),
        "response": _text(found["response"], attributes.pop("tool_calls", None)),
        "context": json.loads(found["context"]) if found["context"] else None,
        "attributes": json.dumps(attributes, ensure_ascii=False, indent=2) if attributes else None,
    }
    feedback = warehouse.rows(SQL["feedback"], {"id": id, "asker": found["user_id"]})
    for one in feedback:
        one["text"] = answer_text(json.loads(one["value"]))
    named = {"workload": found["workload"], "model": found["model"]}
    return found | {
        "version": warehouse.row(SQL["version"], named),
        "feedback": feedback,
        "grounding": warehouse.row(SQL["grounding"], {"id": id}),
        "label_requests": warehouse.rows(SQL["label_requests"], {"id": id}),
        "scores": warehouse.rows(SQL["scores"], {"id": id}),
        "lineage": lineage.find(warehouse, id),
    }


def turns(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns messages as role and text; calls of tools are written out."""
    return [
        {"role": one["role"], "text": _text(texts_of(one.get("content")), one.get("tool_calls"))} for one in messages
    ]


def _text(words: str | None, calls: Any) -> str:
    return written(words or "", calls if are_calls(calls) else [])
