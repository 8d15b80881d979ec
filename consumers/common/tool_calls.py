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


def written(words: str, calls: Iterable[Mapping[str, Any]]) -> str:
    """The text of an answer with calls, which are objects as chat messages hold them (`{"function": {…}}`)."""
    parts = [words.strip()] if words.strip() else []
    for call in calls:
        function = call.get("function") or {}
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _parsed(arguments)
        told = json.dumps({"name": function.get("name"), "arguments": arguments}, ensure_ascii=False)
        parts.append(f"{OPENING}\n{told}\n{CLOSING}")
    return "\n".join(parts)


def read(text: str) -> tuple[str, list[Call]]:
    """The words and the calls of an answer.

    Raises:
        ValueError: what stands between the tags is no call, or a tag is not closed.
    """
    words, calls, rest = "", [], text
    while OPENING in rest:
        before, _, rest = rest.partition(OPENING)
        words += before
        body, end = json.JSONDecoder().raw_decode(rest.lstrip())
        after = rest.lstrip()[end:].lstrip()
        name = body.get("name") if isinstance(body, dict) else None
        if not after.startswith(CLOSING) or not isinstance(name, str):
            raise ValueError("a call of a tool is not closed, or has no name")
        calls.append(Call(name, body.get("arguments")))
        rest = after.removeprefix(CLOSING)
    return (words + rest).strip(), calls


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:  # a model may have called with what is no JSON: it stays a text
        return arguments
