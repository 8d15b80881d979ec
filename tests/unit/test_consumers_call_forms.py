"""Calls of tools in the forms of several families of models, as one text; reasoning before an answer."""

import json
from typing import Any

import pytest

from retuned.consumers.common import reasoning
from retuned.consumers.common.call_forms import in_one_form
from retuned.consumers.common.tool_calls import answer_text, names, schemas, written

TOOLS = schemas(
    [
        {
            "name": "order_status",
            "input_schema": {"type": "object", "properties": {"order": {"type": "integer"}, "zip": {"type": "string"}}},
        },
        {"type": "function", "function": {"name": "refund"}},
    ]
)
STATUS = {"function": {"name": "order_status", "arguments": {"order": 7, "zip": "012"}}}
REFUND = {"function": {"name": "refund", "arguments": '{"items": ["a"]}'}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'I look.<tool_call>{"name":"order_status","arguments":{"order":7,"zip":"012"}}</tool_call>',
            ("I look.", STATUS),
        ),
        (
            "I look.\n\n<tool_call>\n<function=order_status>\n<parameter=order>\n7\n</parameter>\n<parameter=zip>\n"
            '012\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=refund>\n<parameter=items>\n["a"]\n'
            "</parameter>\n</function>\n</tool_call>",
            ("I look.", STATUS, REFUND),
        ),
        (
            "<tool_call>order_status\n<arg_key>order</arg_key>\n<arg_value>7</arg_value>\n<arg_key>zip</arg_key>\n"
            "<arg_value>012</arg_value>\n</tool_call>",
            ("", STATUS),
        ),
        ('{"name": "order_status", "parameters": {"order": 7, "zip": "012"}}', ("", STATUS)),
        (
            '[TOOL_CALLS] [{"name": "order_status", "arguments": {"order": 7, "zip": "012"}}, '
            '{"name": "refund", "arguments": {"items": ["a"]}, "id": "000000001"}]',
            ("", STATUS, REFUND),
        ),
        (
            'I look.[TOOL_CALLS]order_status[ARGS]{"order": 7, "zip": "012"}[TOOL_CALLS]refund[CALL_ID]abc123def[ARGS]'
            '{"items": ["a"]}',
            ("I look.", STATUS, REFUND),
        ),
        ('order_status{"order": 7, "zip": "012"}refund{"items": ["a"]}', ("", STATUS, REFUND)),
        (
            "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>order_status\n```json\n"
            '{"order": 7, "zip": "012"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>refund\n'
            '```json\n{"items": ["a"]}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>',
            ("I look.", STATUS, REFUND),
        ),
        (
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>order_status<｜tool▁sep｜>{"order": 7, "zip": "012"}'
            '<｜tool▁call▁end｜><｜tool▁call▁begin｜>refund<｜tool▁sep｜>{"items": ["a"]}<｜tool▁call▁end｜>'
            "<｜tool▁calls▁end｜>",
            ("", STATUS, REFUND),
        ),
        (
            'I look.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="order_status">\n'
            '<｜DSML｜parameter name="order" string="false">7</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="zip" string="true">012</｜DSML｜parameter>\n'
            "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
            ("I look.", STATUS),
        ),
        (
            "<|channel|>analysis<|message|>Which order?<|end|><|start|>assistant<|channel|>commentary<|message|>I look."
            "<|end|><|start|>assistant<|channel|>commentary to=functions.order_status <|constrain|>json<|message|>"
            '{"order": 7, "zip": "012"}<|call|>',
            ("I look.", STATUS),
        ),
        (
            ' to=functions.order_status<|channel|>commentary json<|message|>{"order": 7, "zip": "012"}<|call|>',
            ("", STATUS),
        ),
        (
            'analysisWhich order?assistantcommentary to=functions.order_status json{"order": 7, "zip": "012"}',
            ("", STATUS),
        ),
        ('{"name": "order_status", "arguments": {"order": 7, "zip": "012"}}', ("", STATUS)),
        (json.dumps({"type": "function", **REFUND}), ("", REFUND)),
        (json.dumps([STATUS, REFUND]), ("", STATUS, REFUND)),
    ],
    ids=[
        "hermes", "qwen3-coder", "glm", "llama", "mistral", "mistral-v11", "mistral-v11-decoded", "deepseek-r1",
        "deepseek-v3.1", "deepseek-v3.2", "gpt-oss", "gpt-oss-template", "gpt-oss-decoded", "bare", "chat-api", "list",
    ],
)  # fmt: skip
def test_each_familys_calls_become_one_text(text: str, expected: tuple[Any, ...]) -> None:
    words, *calls = expected
    found = in_one_form(text, TOOLS)
    assert found == written(words, calls)
    assert in_one_form(found, TOOLS) == found


@pytest.mark.parametrize(
    "text",
    [
        "On its way.",
        '{"name": "Anna", "arguments": {}}',
        '{"name": "order_status", "score": 1}',
        "[1, 2]",
        "<tool_call>broken</tool_call>",
        "<tool_call>\n<function=unknown>\n</function>\n</tool_call>",
        '<tool_call>{"name": "order_status"',
        '{"function": {"name": "Anna", "arguments": "{}"}}',
        '{"name": "refund", "arguments": "all"}',
        '{"name": ["refund"], "arguments": {}}',
        '{"function": {"name": {"refund": 1}, "arguments": {}}}',
        'One writes refund{"items": []}',
        'refund{"items": []} is how one writes it.',
        '[TOOL_CALLS]unknown[ARGS]{"order": 7}',
        '[TOOL_CALLS]refund[ARGS]{"order": 7',
        "<｜tool▁call▁begin｜>unknown<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        '<｜DSML｜function_calls><｜DSML｜invoke name="unknown"></｜DSML｜invoke></｜DSML｜function_calls>',
        'Write to=functions.refund, then {"items": []}',
    ],
)
def test_what_calls_no_tool_that_was_offered_stays(text: str) -> None:
    assert in_one_form(text, TOOLS) == text


@pytest.mark.parametrize("start", ["", "<tool_call>", "refund", "[TOOL_CALLS]refund[ARGS]", "to=functions.refund"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, " " * 100_000, "<|channel|>analysis" * 10_000])
def test_a_hostile_text_stays_and_holds_nothing_up(start: str, text: str) -> None:
    assert in_one_form(start + text, TOOLS) == start + text
    assert names(start + text) == ()


def test_arguments_of_any_depth_make_a_call_or_a_text() -> None:
    found = []
    for depth in range(900, 1_000):
        text = "[TOOL_CALLS]refund[ARGS]" + '{"a":' * depth + "1" + "}" * depth
        found.append(in_one_form(text, TOOLS) == text)
    assert found == sorted(found)


def test_without_tools_a_call_without_tags_is_a_text() -> None:
    text = '{"name": "refund", "arguments": {}}'
    assert in_one_form(text, []) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("In two days.", "In two days."),
        ({"days": 2, "café": None}, '{"days": 2, "café": null}'),
        ([1, "a"], '[1, "a"]'),
        ({"content": None, "tool_calls": [STATUS]}, written("", [STATUS])),
        ({"content": "I look.", "tool_calls": [STATUS, REFUND]}, written("I look.", [STATUS, REFUND])),
        ([{"name": "refund", "arguments": {}}], written("", [{"function": {"name": "refund", "arguments": {}}}])),
        ({"tool_calls": "none"}, '{"tool_calls": "none"}'),
        ([{"name": "Anna"}], '[{"name": "Anna"}]'),
    ],
)
def test_a_correction_in_json_is_a_text(value: Any, text: str) -> None:
    assert answer_text(value) == text


def test_schemas_come_in_the_form_of_the_chat_api_whatever_an_app_logs() -> None:
    assert [tool["function"]["name"] for tool in TOOLS] == ["order_status", "refund"]
    assert TOOLS[0]["function"]["parameters"]["properties"]["zip"] == {"type": "string"}
    assert schemas(TOOLS) == TOOLS
    assert schemas("none") == schemas([7, {"type": "web_search"}, {"function": "x"}]) == []


def test_the_tools_of_an_answer_are_named_once() -> None:
    assert names(written("", [REFUND, STATUS, REFUND])) == ("refund", "order_status")
    assert names("On its way.") == names("<tool_call>broken") == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("In two days.", (None, "In two days.")),
        ("<think>\nHm.\n</think>\n\nIn two days.", ("Hm.", "In two days.")),
        ("Hm.\n</think>\n\nIn two days.", ("Hm.", "In two days.")),
        ("<think>\n\n</think>\n\nIn two days.", (None, "In two days.")),
        ("<think>Hm, hm,", ("Hm, hm,", "")),
        ("use <think> in a tag", (None, "use <think> in a tag")),
        ("Write <think>…</think> first.", (None, "Write <think>…</think> first.")),
    ],
)
def test_reasoning_is_split_from_the_answer(text: str, expected: tuple[str | None, str]) -> None:
    assert reasoning.split(text) == expected


def test_after_a_prompt_that_opened_it_all_is_reasoning_until_it_ends() -> None:
    assert reasoning.split("Hm, hm,", opened=True) == ("Hm, hm,", "")
    assert reasoning.split("Hm.</think>Yes.", opened=True) == ("Hm.", "Yes.")


def test_json_arguments_survive() -> None:
    arguments = {"text": '</tool_call> "quoted" \n ü', "deep": [{"a": None}]}
    call = {"function": {"name": "refund", "arguments": json.dumps(arguments)}}
    assert in_one_form(written("", [call]), TOOLS) == written("", [call])
