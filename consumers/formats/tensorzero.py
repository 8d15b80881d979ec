"""TensorZero's inferences, feedback and datapoints, as exported from its tables and by its API.

Sources: https://www.tensorzero.com/docs/gateway/data-model, …/gateway/api-reference/datasets-datapoints
"""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from retuned.consumers.formats import verdicts
from retuned.consumers.formats.demonstrations import DEMONSTRATION
from retuned.consumers.formats.events import Kind, PassedOver
from retuned.consumers.formats.messages import (
    Plain,
    as_text,
    chat,
    content_hash,
    in_seconds,
    object_of,
    objects_of,
    texts_of,
    tool_call,
    without_nothing,
)
from retuned.consumers.formats.traced import decoded

_INFERENCE = {"function_name", "variant_name", "episode_id", "input", "output"}
_DATAPOINT = {"dataset_name", "function_name", "input"}


def is_row(value: Plain) -> bool:
    """Whether an object is an inference, or feedback (a metric, a comment, a demonstration), or a datapoint."""
    keys = value.keys()
    return (
        keys >= _INFERENCE
        or keys >= _DATAPOINT
        or keys >= {"target_id", "metric_name", "value"}
        or keys >= {"target_id", "target_type", "value"}
        or (keys >= {"inference_id", "value"} and "id" in keys)
    )


def events(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the answer, or the feedback on one; of a datapoint, a demonstration."""
    if value.keys() >= _INFERENCE:
        given = decoded(value.get("dispreferred_outputs"))
        if isinstance(given, list) and given:  # then the output is an expert's, and the model's is here
            yield "interactions", (answer := _inference({**value, "output": given[0]}))
            yield _demonstrated(answer, value["output"])
            return
        yield "interactions", _inference(value)
        return
    if value.keys() >= _DATAPOINT:
        yield from _datapoint(value)
        return
    when, id = _time(value), value.get("id")
    if "inference_id" in value:
        wanted = _wanted(value["value"])
        yield from verdicts.feedback(
            value["inference_id"], None, None, timestamp=when, source="expert", id=id, correction=wanted
        )
    elif "metric_name" in value:
        name, given = value["metric_name"], value["value"]
        yield from verdicts.feedback(
            value["target_id"], name, verdicts.verdict(name, given), timestamp=when, source="app", id=id
        )
    elif value["target_type"] == "inference":
        yield from verdicts.feedback(
            value["target_id"], None, None, timestamp=when, source="user", id=id, comment=value["value"]
        )
    else:
        yield PassedOver("about_a_trace")


def _datapoint(row: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields a datapoint as a demonstration: its output is what the dataset's author wants."""
    if row.get("is_deleted") or row.get("staled_at"):
        yield PassedOver("withdrawn")
        return
    if row.get("output") is None:
        yield PassedOver("request_alone")
        return
    yield "interactions", (shown := _inference({"episode_id": None, **row, "variant_name": DEMONSTRATION}))
    yield _demonstrated(shown, row["output"])


def _demonstrated(interaction: Plain, output: Any) -> tuple[Kind, Plain]:
    """Returns an output that an expert wants as a correction of an interaction."""
    about = {
        "interaction_id": interaction.get("id"),
        "name": "correction",
        "value": _wanted(output),
        "source": "expert",
    }
    found = {"id": content_hash(about), "timestamp": interaction.get("timestamp"), **about}
    return "feedback", without_nothing(found)


def _wanted(output: Any) -> Any:
    """Returns an output as the value of a correction: its text, or a message with its calls of tools."""
    text, calls = _answer(decoded(output))
    return {"content": text or "", "tool_calls": calls} if calls else text


def _inference(row: Plain) -> Plain:
    given, tags = object_of(decoded(row["input"])), object_of(decoded(row.get("tags")))
    messages = [message for item in objects_of(given.get("messages")) for message in _messages(item)]
    if (system := given.get("system")) is not None:
        messages = [{"role": "system", "content": as_text(system)}, *messages]
    text, calls = _answer(decoded(row["output"]))
    tools = object_of(decoded(row.get("tool_params"))).get("tools_available") or row.get("additional_tools")
    workload = tags.pop("workload", None) or row["function_name"]
    kept = {**tags, "tool_calls": calls or None, "tools": tools or None, "function_name": row["function_name"]}
    return without_nothing(
        {
            "id": row.get("id") or row.get("inference_id"),
            "timestamp": _time(row),
            "workload": workload,
            "model": row["variant_name"],
            "messages": messages or None,
            "response": text if text is not None else "" if calls else None,
            "conversation_id": row["episode_id"],
            "latency_seconds": in_seconds(row.get("processing_time_ms")),
            "time_to_first_token_seconds": in_seconds(row.get("ttft_ms")),
            "attributes": without_nothing(kept),
        }
    )


def _messages(item: Plain) -> list[Plain]:
    """Returns a message as chat messages, with every tool result as a message of its own and without thoughts."""
    content = item.get("content")
    if not isinstance(content, list):
        return [{"role": item.get("role"), "content": content}]
    blocks = objects_of(content)
    results = [
        {"role": "tool", "tool_call_id": block.get("id"), "content": block.get("result")}
        for block in blocks
        if block.get("type") == "tool_result"
    ]
    calls = [_tool_call(block) for block in blocks if block.get("type") == "tool_call"]
    rest = [_part(block) for block in blocks if block.get("type") not in ("tool_call", "tool_result", "thought")]
    if not rest and not calls:
        return results
    return chat(item.get("role"), rest, calls, results)


def _part(block: Plain) -> Plain:
    """Returns a block with its text, which templates have in their arguments and older rows in a value."""
    if block.get("type") != "text" or isinstance(block.get("text"), str):
        return block
    value = next((block[name] for name in ("arguments", "value", "text") if name in block), None)
    return {"type": "text", "text": as_text(value)}


def _answer(output: Any) -> tuple[str | None, list[Plain]]:
    """Returns the text and the tool calls of an output: content blocks, or the JSON of a JSON function."""
    if isinstance(output, dict):
        raw, parsed = output.get("raw"), output.get("parsed")
        return raw if isinstance(raw, str) else None if parsed is None else msgspec.json.encode(parsed).decode(), []
    if isinstance(output, str):
        return output, []
    blocks = objects_of(output)
    return texts_of(blocks), [_tool_call(block) for block in blocks if block.get("type") == "tool_call"]


def _tool_call(block: Plain) -> Plain:
    """Returns a tool call as chat messages hold it, with the model's own arguments if known."""
    arguments = as_text(block.get("raw_arguments", block.get("arguments")))
    return tool_call(block.get("id"), block.get("name") or block.get("raw_name"), arguments)


def _time(row: Plain) -> Any:
    """Returns the time of a row; where the export leaves it out, that in its id (a UUID of version 7)."""
    if row.get("timestamp") is not None:
        return row["timestamp"]
    try:
        id = uuid.UUID(str(row.get("id") or row.get("inference_id")))
        return datetime.fromtimestamp((id.int >> 80) / 1000, UTC).isoformat() if id.version == 7 else None
    except ValueError:  # not a UUID, or its year is out of range
        return None
