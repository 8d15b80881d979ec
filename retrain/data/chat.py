"""Converts rows of datasets to messages of OpenAI's chat API, for exports."""

import json
from collections.abc import Mapping
from typing import Any

from retuned.consumers.common import tool_calls
from retuned.consumers.formats.messages import object_of, objects_of, tool_call
from retuned.retrain.data.passages import same_text, with_context

Message = dict[str, Any]


def prompt(row: Mapping[str, Any], context: bool) -> list[Message]:
    """Returns the conversation before the answer.

    Args:
        row: an example's columns.
        context: include the passages as a training does (`train.context`), except one that equals the answer.
    """
    messages = [_turn(turn) for turn in json.loads(row["messages"])]
    passages = json.loads(row["context"] or "[]") if context else []
    return with_context(messages, [passage for passage in passages if not same_text(passage, row["completion"])])


def answer(text: str) -> list[Message]:
    """Returns the assistant's message for an answer, with its tool calls (see `tool_calls.written`)."""
    try:
        content, calls = tool_calls.read(text)
    except ValueError:
        content, calls = text, []
    if not calls:
        return [{"role": "assistant", "content": text}]
    return [
        {
            "role": "assistant",
            "content": content,
            "tool_calls": [
                tool_call(f"call_{number}", call.name, _as_text(call.arguments)) for number, call in enumerate(calls)
            ],
        }
    ]


def tools(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `tools`, the schemas that the model was offered; empty if there were none."""
    return {"tools": json.loads(row["tools"])} if row.get("tools") else {}


def _turn(turn: Message) -> Message:
    """Returns a message in the chat API's form, without other keys that an app logged."""
    kept = {key: turn[key] for key in ("role", "content", "name", "tool_call_id") if isinstance(turn.get(key), str)}
    calls = [
        tool_call(call.get("id"), function["name"], _as_text(function.get("arguments")))
        for call in objects_of(turn.get("tool_calls"))
        if isinstance((function := object_of(call.get("function", call))).get("name"), str)
    ]
    return kept | ({"tool_calls": calls} if calls else {})


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
