"""Rows of datasets as messages of OpenAI's chat API: what is exported, and what a provider trains on and is asked."""

import json
from collections.abc import Mapping
from typing import Any

from retuned.consumers.common import tool_calls
from retuned.consumers.formats.messages import object_of, objects_of, tool_call
from retuned.retrain.data.passages import same_text, with_context

Message = dict[str, Any]


def prompt(row: Mapping[str, Any], context: bool) -> list[Message]:
    """What was asked.

    Args:
        row: an example's columns.
        context: with the passages where a training has them (`train.context`). One that is the answer itself stays out.
    """
    messages = [_turn(turn) for turn in json.loads(row["messages"])]
    passages = json.loads(row["context"] or "[]") if context else []
    return with_context(messages, [passage for passage in passages if not same_text(passage, row["completion"])])


def answer(text: str) -> list[Message]:
    """An answer, with its calls of tools (see `tool_calls.written`), as a conversation goes on with it."""
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


def request(row: Mapping[str, Any], context: bool) -> dict[str, Any]:
    """What a provider is asked: `messages`, and `tools` where there were any.

    Names of participants are left out: providers refuse those that are placeholders of redaction. Calls of tools and
    their results that were logged without ids get some, in their order.
    """
    return {"messages": _linked(prompt(row, context)), **tools(row)}


def training_row(row: Mapping[str, Any], context: bool) -> dict[str, Any]:
    """A line of a file that a provider trains on: the request with the answer, which alone is learned.

    Source of the form: OpenAI's FineTuneChatRequestInput; of an assistant's message with weight 0 nothing is learned.
    """
    asked = request(row, context)
    before = [turn | {"weight": 0} if turn["role"] == "assistant" else turn for turn in asked["messages"]]
    return asked | {"messages": [*before, *answer(row["completion"])]}


def tools(row: Mapping[str, Any]) -> dict[str, Any]:
    """`tools`, the schemas that the model was offered; nothing where there were none."""
    return {"tools": json.loads(row["tools"])} if row.get("tools") else {}


def _linked(messages: list[Message]) -> list[Message]:
    linked, open_calls, number = list[Message](), list[str](), 0
    for turn in messages:
        kept = {key: value for key, value in turn.items() if key != "name"}
        if calls := kept.get("tool_calls"):
            for place, call in enumerate(calls):
                calls[place] = call | {"id": call["id"] or f"call_before_{number + place}"}
            number += len(calls)
            open_calls = [call["id"] for call in calls]
        if turn["role"] == "tool":
            known = kept.get("tool_call_id") or (open_calls[0] if open_calls else None)
            kept |= {"tool_call_id": known} if known else {}
            open_calls = [one for one in open_calls if one != known]
        linked.append(kept)
    return linked


def _turn(turn: Message) -> Message:
    """A message in the chat API's form, whatever else an app logged with it."""
    kept = {key: turn[key] for key in ("role", "content", "name", "tool_call_id") if isinstance(turn.get(key), str)}
    calls = [
        tool_call(call.get("id"), function["name"], _as_text(function.get("arguments")))
        for call in objects_of(turn.get("tool_calls"))
        if isinstance((function := object_of(call.get("function", call))).get("name"), str)
    ]
    return kept | ({"tool_calls": calls} if calls else {})


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
