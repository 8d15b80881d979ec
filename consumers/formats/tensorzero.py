"""TensorZero's inferences and feedback, as its tables are exported."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from retuned.consumers.formats import verdicts
from retuned.consumers.formats.events import Kind, PassedOver
from retuned.consumers.formats.messages import (
    Plain,
    in_seconds,
    object_of,
    objects_of,
    texts_of,
    tool_call,
    without_media,
    without_nothing,
)
from retuned.consumers.formats.traced import decoded

_INFERENCE = {"function_name", "variant_name", "episode_id", "input", "output"}


def is_row(value: Plain) -> bool:
    """Whether an object is an inference, or feedback: on a metric, a comment or a demonstration."""
    keys = value.keys()
    return (
        keys >= _INFERENCE
        or keys >= {"target_id", "metric_name", "value"}
        or keys >= {"target_id", "target_type", "value"}
        or (keys >= {"inference_id", "value"} and "id" in keys)
    )


def events(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """The answer, or what was said of one."""
    if value.keys() >= _INFERENCE:
        yield "interactions", _inference(value)
        return
    when, id = _time(value), value.get("id")
    if "inference_id" in value:
        text = _answer(decoded(value["value"]))[0]
        yield from verdicts.feedback(
            value["inference_id"], None, None, timestamp=when, source="expert", id=id, correction=text
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


def _inference(row: Plain) -> Plain:
    given, tags = object_of(decoded(row["input"])), object_of(decoded(row.get("tags")))
    messages = [message for item in objects_of(given.get("messages")) for message in _messages(item)]
    if (system := given.get("system")) is not None:
        content = system if isinstance(system, str) else msgspec.json.encode(system).decode()
        messages = [{"role": "system", "content": content}, *messages]
    text, calls = _answer(decoded(row["output"]))
    tools = object_of(decoded(row.get("tool_params"))).get("tools_available")
    workload = tags.pop("workload", None) or row["function_name"]
    kept = {**tags, "tool_calls": calls or None, "tools": tools or None, "function_name": row["function_name"]}
    return without_nothing(
        {
            "id": row.get("id"),
            "timestamp": _time(row),
            "workload": workload,
            "model": row["variant_name"],
            "messages": without_media(messages) or None,
            "response": text if text is not None else "" if calls else None,
            "conversation_id": row["episode_id"],
            "latency_seconds": in_seconds(row.get("processing_time_ms")),
            "time_to_first_token_seconds": in_seconds(row.get("ttft_ms")),
            "attributes": without_nothing(kept),
        }
    )


def _messages(item: Plain) -> list[Plain]:
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
    is_text = all(part.get("type") == "text" for part in rest)
    said = without_nothing({"role": item.get("role"), "tool_calls": calls or None})
    return [*results, said | {"content": (texts_of(rest) if is_text else rest) if rest else None}]


def _part(block: Plain) -> Plain:
    """A text, which may be the arguments of a template or of older rows a value."""
    if block.get("type") != "text" or isinstance(block.get("text"), str):
        return block
    value = next((block[name] for name in ("arguments", "value", "text") if name in block), None)
    return {"type": "text", "text": value if isinstance(value, str) else msgspec.json.encode(value).decode()}


def _answer(output: Any) -> tuple[str | None, list[Plain]]:
    """The text and the calls of tools in an output: content blocks, or the JSON of a JSON function."""
    if isinstance(output, dict):
        raw, parsed = output.get("raw"), output.get("parsed")
        return raw if isinstance(raw, str) else None if parsed is None else msgspec.json.encode(parsed).decode(), []
    if isinstance(output, str):
        return output, []
    blocks = objects_of(output)
    return texts_of(blocks), [_tool_call(block) for block in blocks if block.get("type") == "tool_call"]


def _tool_call(block: Plain) -> Plain:
    arguments = block.get("raw_arguments", block.get("arguments"))
    text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
    name = block.get("name") or block.get("raw_name")
    return tool_call(block.get("id"), name, text)


def _time(row: Plain) -> Any:
    """The time of a row, which its id holds (a UUID of version 7) where the export leaves it out."""
    if row.get("timestamp") is not None:
        return row["timestamp"]
    try:
        id = uuid.UUID(str(row.get("id")))
        return datetime.fromtimestamp((id.int >> 80) / 1000, UTC).isoformat() if id.version == 7 else None
    except ValueError:  # no UUID, or one of a year that has no date
        return None
