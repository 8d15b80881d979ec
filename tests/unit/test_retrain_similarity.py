"""Which prompts are the same question."""

import json
from typing import Any

import pytest

from retuned.retrain.data.identity import near_form, normalise, text_hash


def test_prompts_that_differ_in_the_number_of_a_placeholder_are_duplicates() -> None:
    one, other = "I am <EMAIL_1>, where is order 7?", "I am <EMAIL_12>, where is ORDER 7?"
    assert normalise(one) == normalise(other) == "i am <email> where is order 7"
    assert text_hash(normalise(one)) == text_hash(normalise("I am <EMAIL>, where is order 7?"))
    assert normalise("I am <NATIONAL_ID_3>") == "i am <national_id>"
    assert normalise("order <ITEM_1>") != normalise("order <ITEM_2>")


def parcel(arguments: Any, **changes: Any) -> str:
    """What is asked about a parcel, whose number stands only in the call of a tool."""
    call = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": arguments}} | changes
    turns = [
        {"role": "user", "content": "Where is my parcel?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "in transit"},
    ]
    return str(near_form(turns, (), None))


def test_questions_whose_tool_calls_differ_are_different_questions() -> None:
    one = parcel('{"order": 1001, "to": "<EMAIL_1>"}')
    assert parcel('{"to":"<EMAIL_7>","order":1001}', id="c2") == one
    assert parcel({"order": 1001, "to": "<EMAIL_1>"}, function={"name": "track", "arguments": '{"order": 1001}'}) != one
    for other in ('{"order": 1002, "to": "<EMAIL_1>"}', '{"order": 1001}', "1001", "", None, []):
        assert parcel(other) != one
    assert parcel('{"size": "XL"}') != parcel('{"size": "xl"}')  # a program may tell them apart
    assert parcel("{}") != parcel("{}", function={"name": "cancel", "arguments": "{}"})
    without = [{"role": "user", "content": "Where is my parcel?"}, {"role": "tool", "content": "in transit"}]
    assert str(near_form(without, (), None)) == "where is my parcel\ntool in transit"
    older = [*without, {"role": "assistant", "content": "", "function_call": {"name": "track", "arguments": "{}"}}]
    assert str(near_form(older, (), None)) != str(near_form(without, (), None))


@pytest.mark.parametrize(
    "arguments",
    ['{"a": "\\ud800"}', "[" * 900 + "]" * 900, "[" * 90_000, '{"a": 1e999}', "9" * 5_000],
    ids=["half a pair", "deep", "too deep", "infinite", "many digits"],
)
def test_any_arguments_have_an_identity(arguments: str) -> None:
    one = parcel(arguments)
    assert text_hash(one) == text_hash(parcel(json.loads(json.dumps(arguments))))
    assert one != parcel("{}")
