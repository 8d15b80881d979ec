"""Answers that call tools, as one text: what is learned, compared and judged is a text, whatever the model's template.

Each call is a JSON object with `name` and `arguments` between `<tool_call>` and `</tool_call>`, after the words of the
answer, if it has any: the form of Hermes and Qwen, which many chat templates write themselves.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

OPENING, CLOSING = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Call:
    """A call of a tool.

    Attributes:
        arguments: an object; what was sent in its place, if that is no JSON object.
    """

    name: str
    arguments: Any

    def as_message(self) -> dict[str, Any]:
        """As chat messages hold it, with its arguments as an object."""
        return {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def written(words: str, calls: Iterable[Mapping[str, Any]]) -> str:
    """The text of an answer with calls, which are objects as chat messages hold them (`{"function": {…}}`).

    Objects with `name` and `arguments` of their own, as some clients log them, do as well.
    """
    parts = [words.strip()] if words.strip() else []
    for call in calls:
        function = call.get("function") or call
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = parsed(arguments)
        told = json.dumps({"name": function.get("name"), "arguments": arguments}, ensure_ascii=False)
        parts.append(f"{OPENING}\n{told}\n{CLOSING}")
    return "\n".join(parts)


def answer_text(value: Any) -> str:
    """The text of an answer that is given as decoded JSON, as corrections are.

    A text is itself; `{"content": …, "tool_calls": […]}` and a list of calls become their text; any other object or
    list becomes JSON.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and are_calls(value.get("tool_calls")):
        return written(str(value.get("content") or ""), value["tool_calls"])
    if are_calls(value):
        return written("", value)
    return json.dumps(value, ensure_ascii=False)


def are_calls(value: Any) -> bool:
    """Is a decoded JSON value a list of calls, and not an empty one?"""
    return isinstance(value, list) and bool(value) and all(map(_is_call, value))


def _is_call(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    function = value.get("function", value)
    return isinstance(function, dict) and isinstance(function.get("name"), str) and "arguments" in function


def schemas(tools: Any) -> list[dict[str, Any]]:
    """The tools that were offered, in the form of OpenAI's chat API, which chat templates take.

    Their schema may stand there without `function` around it, or be called `input_schema`, as Anthropic does. What is
    no such object is left out.
    """
    found = []
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            continue
        parameters = function.get("parameters", function.get("input_schema"))
        found.append(
            {
                "type": "function",
                "function": {
                    "name": function["name"],
                    "description": function.get("description") or "",
                    "parameters": parameters if isinstance(parameters, dict) else {"type": "object", "properties": {}},
                },
            }
        )
    return found


def read(text: str) -> tuple[str, list[Call]]:
    """The words and the calls of an answer.

    Raises:
        ValueError: what stands between the tags is no call, or a tag is not closed.
    """
    words, calls, rest = "", [], text
    while OPENING in rest:
        before, _, rest = rest.partition(OPENING)
        words += before
        try:
            body, end = json.JSONDecoder().raw_decode(rest.lstrip())
        except RecursionError as error:
            raise ValueError("a call of a tool is nested too deeply") from error
        after = rest.lstrip()[end:].lstrip()
        name = body.get("name") if isinstance(body, dict) else None
        if not after.startswith(CLOSING) or not isinstance(name, str):
            raise ValueError("a call of a tool is not closed, or has no name")
        calls.append(Call(name, body.get("arguments")))
        rest = after.removeprefix(CLOSING)
    return (words + rest).strip(), calls


def names(text: str) -> tuple[str, ...]:
    """The tools that an answer calls, each once, in their order; none where its calls cannot be read."""
    try:
        return tuple(dict.fromkeys(call.name for call in read(text)[1]))
    except ValueError:
        return ()


def parsed(text: str) -> Any:
    """What a text holds as JSON; the text where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a model may have called with what is no JSON: it stays a text
        return text
