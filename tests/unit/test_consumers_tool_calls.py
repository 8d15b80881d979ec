"""Answers that call tools, as one text."""

import json

import pytest

from retuned.consumers.common.tool_calls import Call, parsed, read, written


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


HALVES = [r'{"text": "\ud83d"}', {"text": "\ud83d"}]


@pytest.mark.parametrize("arguments", HALVES)
def test_half_of_a_surrogate_pair_is_written_as_the_character_that_stands_for_none(arguments: object) -> None:
    text = written("", [call("search", arguments)])
    assert text.encode()
    assert read(text) == ("", [Call("search", {"text": "\ufffd"})])


def test_half_of_a_surrogate_pair_is_read_as_the_character_that_stands_for_none() -> None:
    body = r'{"name": "search", "arguments": {"half": ["\ud83d!", "\ude00"], "whole": "\ud83d\ude00", "no": "\\ud83d"}}'
    assert read(f"<tool_call>\n{body}\n</tool_call>") == (
        "",
        [Call("search", {"half": ["\ufffd!", "\ufffd"], "whole": "😀", "no": r"\ud83d"})],
    )
    assert parsed(r'"\ud83d"') == "\ufffd"
