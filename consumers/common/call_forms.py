"""Reads tool calls in the forms of different chat templates.

The forms of Hermes and Qwen 2.5 and 3 (JSON in tags), Qwen 3.5 and Qwen3-Coder (functions and parameters in tags), GLM
4 (keys and values in tags), DeepSeek V3.2 (functions and parameters in its own tags), Llama 3 (one JSON object),
Mistral (a JSON list; since version 11 of its tokenizer a name before JSON), DeepSeek R1, V3 and V3.1 and gpt-oss (a
name before JSON, in marks) are supported, with or without special tokens.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from retuned.consumers.common.tool_calls import CLOSING, OPENING, Call, parsed, read, written

_TAGGED = re.compile(rf"{OPENING}(.*?){CLOSING}", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_KEYED = re.compile(r"\s*([^\s<{]+)\s*((?:<arg_key>.*</arg_value>)?)\s*", re.DOTALL)
_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_MARKS = ("[TOOL_CALLS]", "<|python_tag|>")
_INVOKED = re.compile(r'<｜DSML｜invoke name="([^"]+)">(.*?)</｜DSML｜invoke>', re.DOTALL)
_GIVEN = re.compile(r'<｜DSML｜parameter name="([^"]+)" string="(true|false)">(.*?)</｜DSML｜parameter>', re.DOTALL)
_INVOCATIONS = re.compile(r"<｜DSML｜function_calls>(.*?)</｜DSML｜function_calls>", re.DOTALL)

# Calls that are a name before JSON: patterns of the text before and after the JSON. {name} is one of the tools; {s} is
# bounded white space, because hostile texts may have a lot of it.
_MISTRAL = (r"(?:\[TOOL_CALLS\])?{s}{name}(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?{s}(?=\{{)", r"\s*")
_DEEPSEEK = (
    r"(?:<｜tool▁calls▁begin｜>)?{s}<｜tool▁call▁begin｜>(?:\w+<｜tool▁sep｜>)?{name}(?:<｜tool▁sep｜>|{s}```json){s}(?=\{{)",
    r"{s}(?:```)?{s}<｜tool▁call▁end｜>{s}(?:<｜tool▁calls▁end｜>)?(?:<｜end▁of▁sentence｜>)?\s*",
)
_HARMONY = (
    r"(?:<\|start\|>)?(?:assistant)?{s}(?:<\|channel\|>)?(?:commentary|analysis)?{s}to=functions\.{name}{s}"
    r"(?:<\|channel\|>)?(?:commentary|analysis)?{s}(?:<\|constrain\|>)?(?:json)?{s}(?:<\|message\|>)?{s}(?=\{{)",
    r"{s}(?:<\|call\|>)?\s*",
)
_SPACE = r"\s{0,9}"
_CHANNELS = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>(analysis|commentary|final)<\|message\|>(.*?)(?:<\|end\|>|\Z)", re.DOTALL
)

Schemas = Mapping[str, Mapping[str, Any]]
"""The parameters of each tool by its name: JSON Schemas."""


def in_one_form(text: str, tools: Sequence[Mapping[str, Any]]) -> str:
    """Converts tool calls in a model's text to the form of `tool_calls.written`; other texts are returned unchanged.

    Args:
        tools: the offered tools (see `tool_calls.schemas`); calls of other tools are recognised only as JSON in tags.
    """
    offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    for form in (_json_in_tags, _elements, _invocations, _json_alone, _named):
        words, calls = form(text, offered)
        if calls:
            with suppress(RecursionError):  # JSON may be too deep to write although it could be read
                return written(words, [call.as_message() for call in calls])
    return text


def _json_in_tags(text: str, _: Schemas) -> tuple[str, list[Call]]:
    try:
        return read(text)
    except ValueError:
        return text, []


def _elements(text: str, offered: Schemas) -> tuple[str, list[Call]]:
    """Reads calls in tags, with a tag for each argument. Values are texts; the schema tells which are strings."""
    calls = []
    for body in _TAGGED.findall(text):
        readers: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = ((_FUNCTION, _PARAMETER), (_KEYED, _ARGUMENT))
        call = next(
            (Call(name[1], _values(arguments.findall(name[2]), offered[name[1]]))
             for whole, arguments in readers
             if (name := whole.fullmatch(body)) and name[1] in offered),
            None,
        )  # fmt: skip
        if call is None:
            return text, []
        calls.append(call)
    return _TAGGED.sub("", text).strip(), calls


def _values(arguments: Sequence[tuple[str, str]], schema: Mapping[str, Any]) -> dict[str, Any]:
    known = schema.get("properties") or {}
    return {name: _value(text, known.get(name) or {}) for name, text in arguments}


def _value(text: str, schema: Any) -> Any:
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    return parsed(text)


def _invocations(text: str, offered: Schemas) -> tuple[str, list[Call]]:
    """Reads DeepSeek V3.2's calls, in which each parameter has a flag for strings."""
    calls = []
    for block in _INVOCATIONS.findall(text):
        for name, body in _INVOKED.findall(block):
            if name not in offered:
                return text, []
            given = {key: value if kind == "true" else parsed(value) for key, kind, value in _GIVEN.findall(body)}
            calls.append(Call(name, given))
    return (_INVOCATIONS.sub("", text).strip(), calls) if calls else (text, [])


def _json_alone(text: str, offered: Schemas) -> tuple[str, list[Call]]:
    """Reads an object or a list of objects without other text.

    Llama calls arguments `parameters`. Objects of the chat API, with `function` and arguments as text, are read, too.
    """
    for mark in _MARKS:
        text = text.removeprefix(mark)
    value = parsed(text)
    calls = []
    for item in value if isinstance(value, list) else [value]:
        function = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(name := function.get("name"), str) or name not in offered:
            return text, []
        arguments = function.get("arguments", function.get("parameters"))
        if isinstance(arguments, str):
            arguments = parsed(arguments)
        if not isinstance(arguments, dict):
            return text, []
        calls.append(Call(name, arguments))
    return "", calls


def _named(text: str, offered: Schemas) -> tuple[str, list[Call]]:
    """Reads names before JSON objects, call after call up to the end of the text."""
    name = f"({'|'.join(sorted(map(re.escape, offered), key=len, reverse=True))})"
    for form in (_DEEPSEEK, _HARMONY, _MISTRAL) if offered else ():
        before, after = (re.compile(part.format(name=name, s=_SPACE)) for part in form)
        # Within a text, a name before JSON may be prose unless a mark precedes it.
        first = before.match(text) if form is _MISTRAL and _MARKS[0] not in text else before.search(text)
        match, calls = first, list[Call]()
        while match is not None:
            try:
                arguments, end = json.JSONDecoder().raw_decode(text, match.end())
            except (ValueError, RecursionError):
                break
            calls.append(Call(match[1], arguments))
            closing = after.match(text, end)
            end = closing.end() if closing else end
            if first is not None and end == len(text):
                words = text[: first.start()]
                return (_without_analysis(words) if form is _HARMONY else words.strip()), calls
            match = before.match(text, end)
    return text, []


def _without_analysis(words: str) -> str:
    """Returns gpt-oss's words to the user before a call, without its reasoning."""
    if messages := _CHANNELS.findall(words):
        return "\n".join(content for channel, content in messages if channel != "analysis")
    return "" if words.startswith("analysis") else words.strip()  # the channel's name, without its marks
