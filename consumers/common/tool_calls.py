"""The text form of answers with tool calls, which is trained on, compared and judged, whatever the model's template.

Each call is a JSON object with `name` and `arguments` between `<tool_call>` and `</tool_call>`, after the words of the
answer, if there are any. This is the form of Hermes and Qwen, which many chat templates use.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair. Escapes of JSON can be one; UTF-8, and so files, tables and hashes, cannot hold it."""


@dataclass(frozen=True)
class Call:
    """A tool call.

    Attributes:
        arguments: a JSON object, or any other value that was sent instead.
    """

    name: str
    arguments: Any

    def as_message(self) -> dict[str, Any]:
        """Returns the form of chat messages, with the arguments as an object."""
        return {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def written(words: str, calls: Iterable[Mapping[str, Any]]) -> str:
    """Returns the text of an answer with calls.

    Args:
        calls: in the form of chat messages (`{"function": {…}}`), or objects with `name` and `arguments`, which some
            clients log.
    """
    parts = [words.strip()] if words.strip() else []
    for call in calls:
        function = call.get("function") or call
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = parsed(arguments)
        body = whole(json.dumps({"name": function.get("name"), "arguments": arguments}, ensure_ascii=False))
        parts.append(f"{OPENING}\n{body}\n{CLOSING}")
    return "\n".join(parts)


def answer_text(value: Any) -> str:
    """Returns the text of an answer given as decoded JSON, such as a correction.

    A string is unchanged; `{"content": …, "tool_calls": […]}` and a list of calls become their text; any other value
    becomes JSON.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and are_calls(value.get("tool_calls")):
        return written(str(value.get("content") or ""), value["tool_calls"])
    if are_calls(value):
        return written("", value)
    return json.dumps(value, ensure_ascii=False)


def are_calls(value: Any) -> bool:
    """Whether a decoded JSON value is a non-empty list of calls."""
    return isinstance(value, list) and bool(value) and all(map(_is_call, value))


def _is_call(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    function = value.get("function", value)
    return isinstance(function, dict) and isinstance(function.get("name"), str) and "arguments" in function


def schemas(tools: Any) -> list[dict[str, Any]]:
    """Returns the offered tools in the form of OpenAI's chat API, which chat templates accept.

    A schema may also be given without `function` around it, or as `input_schema` (Anthropic). Other objects are
    ignored.
    """
    converted = []
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            continue
        parameters = function.get("parameters", function.get("input_schema"))
        converted.append(
            {
                "type": "function",
                "function": {
                    "name": function["name"],
                    "description": function.get("description") or "",
                    "parameters": parameters if isinstance(parameters, dict) else {"type": "object", "properties": {}},
                },
            }
        )
    return converted


def read(text: str) -> tuple[str, list[Call]]:
    """Splits an answer into words and calls.

    Raises:
        ValueError: the tags contain something else, or a tag is not closed.
    """
    words, calls, rest = "", [], text
    while OPENING in rest:
        before, _, rest = rest.partition(OPENING)
        words += before
        try:
            body, end = json.JSONDecoder().raw_decode(rest.lstrip())
            body = _whole_value(body, rest)
        except RecursionError as error:
            raise ValueError("a tool call is nested too deeply") from error
        after = rest.lstrip()[end:].lstrip()
        name = body.get("name") if isinstance(body, dict) else None
        if not after.startswith(CLOSING) or not isinstance(name, str):
            raise ValueError("a tool call is not closed, or has no name")
        calls.append(Call(name, body.get("arguments")))
        rest = after.removeprefix(CLOSING)
    return (words + rest).strip(), calls


def names(text: str) -> tuple[str, ...]:
    """Returns the tools that an answer calls, each once, in order; empty if its calls cannot be read."""
    try:
        return tuple(dict.fromkeys(call.name for call in read(text)[1]))
    except ValueError:
        return ()


def parsed(text: str) -> Any:
    """Decodes JSON; returns the text itself if it is not JSON, as a model may call a tool with anything."""
    try:
        return _whole_value(json.loads(text), text)
    except (ValueError, RecursionError):
        return text


def whole(text: str) -> str:
    """Returns a text with U+FFFD in place of each half of a surrogate pair."""
    return _HALF.sub("\ufffd", text)


def _whole_value(value: Any, source: str) -> Any:
    """Does what `whole` does to all texts of a value that was decoded from `source`."""
    if "\\u" not in source:  # only escapes make halves
        return value
    return json.loads(whole(json.dumps(value, ensure_ascii=False)))
