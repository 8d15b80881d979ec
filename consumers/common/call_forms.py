"""Calls of tools as models write them: each family of chat templates has a form of its own.

Read are those of Hermes and Qwen 2.5 and 3 (JSON in tags), Qwen 3.5 and Qwen3-Coder (functions and parameters in tags),
GLM 4 (keys and values in tags), Llama 3 (one JSON object) and Mistral (a JSON list), as their templates write them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from retuned.consumers.common.tool_calls import CLOSING, OPENING, Call, read, written

_TAGGED = re.compile(rf"{OPENING}(.*?){CLOSING}", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_KEYED = re.compile(r"\s*([^\s<{]+)\s*((?:<arg_key>.*</arg_value>)?)\s*", re.DOTALL)
_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_MARKS = ("[TOOL_CALLS]", "<|python_tag|>")

Schemas = Mapping[str, Mapping[str, Any]]
"""The parameters of each tool by its name: JSON Schemas."""


def in_one_form(text: str, tools: Sequence[Mapping[str, Any]]) -> str:
    """What a model wrote, as `tool_calls.written` writes it; a text in which no call is recognised stays as it is.

    Args:
        tools: those that the model was offered (see `tool_calls.schemas`): what is not among them is no call, but for
            JSON in tags, which is nothing else.
    """
    offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    for form in (_json_in_tags, _elements, _json_alone):
        words, calls = form(text, offered)
        if calls:
            return written(words, [call.as_message() for call in calls])
    return text


def _json_in_tags(text: str, _: Schemas) -> tuple[str, list[Call]]:
    try:
        return read(text)
    except ValueError:
        return text, []


def _elements(text: str, offered: Schemas) -> tuple[str, list[Call]]:
    """Calls in tags, with a tag for each argument. Their values are texts: the schema says which are meant so."""
    calls = []
    for body in _TAGGED.findall(text):
        readers: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = ((_FUNCTION, _PARAMETER), (_KEYED, _ARGUMENT))
        found = next(
            (Call(name[1], _values(arguments.findall(name[2]), offered[name[1]]))
             for whole, arguments in readers
             if (name := whole.fullmatch(body)) and name[1] in offered),
            None,
        )  # fmt: skip
        if found is None:
            return text, []
        calls.append(found)
    return _TAGGED.sub("", text).strip(), calls


def _values(arguments: Sequence[tuple[str, str]], schema: Mapping[str, Any]) -> dict[str, Any]:
    known = schema.get("properties") or {}
    return {name: _value(text, known.get(name) or {}) for name, text in arguments}


def _value(text: str, schema: Any) -> Any:
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _json_alone(text: str, offered: Schemas) -> tuple[str, list[Call]]:
    """One object, or a list of them, with nothing else; `parameters` is Llama's word for arguments."""
    for mark in _MARKS:
        text = text.removeprefix(mark)
    try:
        value = json.loads(text)
    except ValueError:
        return text, []
    calls = []
    for item in value if isinstance(value, list) else [value]:
        arguments = item.get("arguments", item.get("parameters")) if isinstance(item, dict) else None
        if not isinstance(arguments, dict) or item.get("name") not in offered:
            return text, []
        calls.append(Call(item["name"], arguments))
    return "", calls
