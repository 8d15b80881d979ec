"""Answers that call tools, as one text."""

import json

import pytest

from retuned.consumers.common.tool_calls import Call, read, written


def call(name: str, arguments: object) -> dict[str, object]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize("words", ["", "I look it up."])
@pytest.mark.parametrize("arguments", ['{"id": "</tool_call>", "n": [1, {}]}', "{}"])
def test_what_is_written_is_read(words: str, arguments: str) -> None:
    text = written(words, [call("order", arguments), call("refund", {"sum": 3})])
    found, calls = read(text)
    assert found == words
    assert calls == [Call("order", json.loads(arguments)), Call("refund", {"sum": 3})]


def test_an_answer_without_calls_is_its_words() -> None:
    assert read(written(" In two days. ", [])) == ("In two days.", [])


def test_arguments_that_are_no_json_stay_a_text() -> None:
    assert read(written("", [call("order", "{broken")])) == ("", [Call("order", "{broken")])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n{}\n</tool_call>",
        '<tool_call>{"name": "x"}',
        "<tool_call>x</tool_call>",
        "<tool_call>[1]</tool_call>",
    ],
)
def test_what_is_no_call_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"tool call|Expecting"):
        read(text)
