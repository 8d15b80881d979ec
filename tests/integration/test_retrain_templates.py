"""Conversations as chat templates take them: tools, refused roles, retrieved passages."""

import json
from datetime import datetime, tzinfo
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import pytest
from transformers.utils import chat_template_utils

from retuned.consumers.errors import RetunedError
from retuned.retrain.data.passages import with_context
from retuned.retrain.training.base_model import load_tokenizer
from retuned.retrain.training.batches import encode
from retuned.retrain.training.chat_templates import _Chat, answer_in

# As Gemma's: no system message, and user and assistant in turn.
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen's: calls and results have forms of their own.
TOOLS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    "<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = {"id": "c1", "type": "function", "function": {"name": "order_status", "arguments": '{"order": 7}'}}
CALLED = '<tool_call>\n{"name": "order_status", "arguments": {"order": 7}}\n</tool_call>'
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "where is order 7"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "in Oslo"},
]


ROLES = ("user", "assistant", "user")


def prompt(base: Path, messages: list[dict[str, Any]], template: str | None = None, **more: Any) -> str:
    tokenizer = load_tokenizer(base)
    if template is not None:
        tokenizer.chat_template = template or None
    row = {"row_id": "r", "messages": json.dumps(messages), "completion": "in Oslo now", "context": None}
    found = encode(tokenizer, row | more.pop("row", {}), 1_024, **more)
    assert tokenizer.decode(found.completion).startswith("in Oslo now<|im_end|>")
    text: str = tokenizer.decode(found.prompt)
    return text


def test_a_template_that_knows_tools_gets_them_as_they_are(base: Path) -> None:
    text = prompt(base, TURNS, TOOLS)
    assert "<|im_start|>system\nBe brief.<|im_end|>" in text
    assert '<call>order_status {"order": 7}</call>' in text  # an object, not JSON in a string
    assert text.endswith("<|im_start|>tool\nin Oslo<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_that_leaves_calls_out_gets_them_in_words(base: Path) -> None:
    assert prompt(base, TURNS) == (
        "<|im_start|>user\nBe brief.\n\nwhere is order 7<|im_end|>\n"
        f"<|im_start|>assistant\n{CALLED}<|im_end|>\n"
        "<|im_start|>user\nResult: in Oslo<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_that_refuses_a_role_is_told_otherwise(base: Path) -> None:
    assert prompt(base, TURNS[:2], STRICT) == (
        "<|im_start|>user\nBe brief.\n\nwhere is order 7<|im_end|>\n<|im_start|>assistant\n"
    )
    twice = [TURNS[1], {"role": "user", "content": "please"}]
    assert "where is order 7\n\nplease" in prompt(base, twice, STRICT)
    assert "<|im_start|>system\nBe brief." in prompt(base, TURNS[:2])


def test_a_template_that_refuses_everything_is_one_clear_line(base: Path) -> None:
    with pytest.raises(RetunedError, match=r"chat template refuses a conversation \(no\)"):
        prompt(base, TURNS[:2], "{{ raise_exception('no') }}")


def test_without_a_template_tools_are_told_in_words(base: Path) -> None:
    assert prompt(base, TURNS, "") == (
        f"system: Be brief.\nuser: where is order 7\nassistant: {CALLED}\ntool: Result: in Oslo\nassistant: "
    )


@pytest.mark.parametrize("answer", ["It ends with <|im_end|>, then waits.", CALLED.replace("7", '"<|im_end|>"')])
@pytest.mark.parametrize("template", [None, TOOLS, ""])
def test_an_answer_that_spells_a_special_token_is_taught_as_that_text(
    template: str | None, answer: str, base: Path
) -> None:
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = tokenizer.chat_template if template is None else template or None
    tools = [{"type": "function", "function": {"name": "order_status", "parameters": {}}}]
    row = {"messages": json.dumps(TURNS[1:2]), "completion": answer, "tools": json.dumps(tools), "reasoning": answer}
    for keep in (False, True):
        found = encode(tokenizer, {"row_id": "r", "context": None} | row, 1_024, keep_reasoning=keep).completion
        seen = tokenizer.decode(found, skip_special_tokens=True)
        assert answer_in(tokenizer, seen, found[:0], tools) == answer
        assert found.index(tokenizer.eos_token_id) >= len(found) - 2  # only a line break may follow


def test_passages_stand_before_the_last_question(base: Path) -> None:
    turns = [*TURNS[:2], {"role": "assistant", "content": "which one"}, {"role": "user", "content": "number 7"}]
    row = {"context": json.dumps(["Order 7: Oslo.", "Order 8: Riga."])}
    text = prompt(base, turns, row=row)
    assert "user\nContext:\n\nOrder 7: Oslo.\n\nOrder 8: Riga.\n\nQuestion: number 7<|im_end|>" in text
    assert "user\nwhere is order 7<|im_end|>" in text
    assert "Riga" not in prompt(base, turns, row=row, context=False)


def test_passages_that_the_conversation_holds_are_not_said_again() -> None:
    turns = [{"role": "system", "content": "Use this:\n  order 7:\n  OSLO."}, {"role": "user", "content": "where"}]
    assert with_context(turns, ["Order 7: Oslo.", " "]) == turns
    told = with_context(turns, ["Order 7: Oslo.", "Order 8: Riga."])
    assert told[1]["content"] == "Context:\n\nOrder 8: Riga.\n\nQuestion: where"
    assert turns[1]["content"] == "where"


def test_a_passage_that_is_the_answer_itself_stays_out(base: Path) -> None:
    row = {"context": json.dumps(["In  Oslo now", "Order 8: Riga."])}
    text = prompt(base, TURNS[:2], row=row)
    assert "Riga" in text
    assert "Oslo" not in text


def leaving_out(condition: str) -> str:
    """A template that writes turns where a condition holds."""
    return (
        f"{{% for message in messages %}}{{% if {condition} %}}<|im_start|>{{{{ message['role'] }}}}\n"
        "{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


@pytest.mark.parametrize(
    "system",
    ["Отвечай кратко.", "Να απαντάς σύντομα.", "请简短回答。", "Be brief about order 7.", "…", "order"],
)
def test_a_system_message_that_a_template_drops_is_told_otherwise(system: str, base: Path) -> None:
    turns = [{"role": "system", "content": system}, {"role": "user", "content": "Be brief: where is order 7"}]
    told = f"<|im_start|>user\n{system}\n\nBe brief: where is order 7<|im_end|>\n<|im_start|>assistant\n"
    assert prompt(base, turns, leaving_out("message['role'] != 'system'")) == told


@pytest.mark.parametrize(
    "condition", ["not loop.first", "loop.index != 2", "loop.last"], ids=["the first", "an answer", "all but the last"]
)
def test_a_template_that_leaves_a_turn_out_in_every_form_is_refused(condition: str, base: Path) -> None:
    """The same words in all turns: none of them tells which one is missing."""
    turns = [{"role": role, "content": "order 7"} for role in ROLES]
    with pytest.raises(RetunedError, match="leaves out, repeats or reorders turns"):
        prompt(base, turns, leaving_out(condition))


def test_a_template_that_reorders_turns_is_refused_and_one_that_moves_the_system_message_is_not(base: Path) -> None:
    turns = [{"role": role, "content": "order 7"} for role in ROLES]
    with pytest.raises(RetunedError, match="leaves out, repeats or reorders turns"):
        prompt(base, turns, leaving_out("true").replace("in messages", "in messages | reverse"))
    last = (
        "{% set asked = (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}"
        "{% for message in messages if message['role'] != 'system' %}<|im_start|>{{ message['role'] }}\n"
        "{% if message == asked %}{{ messages[0]['content'] }}\n{% endif %}{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )  # as one of Mistral's
    numbered = [{**turn, "content": f"order {number}"} for number, turn in enumerate(turns, 5)]
    assert "<|im_start|>user\nBe brief.\norder 7<|im_end|>" in prompt(base, [TURNS[0], *numbered], last)


class Day(datetime):
    """The clock of transformers, which chat templates read."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls(2026, 3, 7, 23, 59, tzinfo=tz)


class NextDay(Day):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls(2026, 3, 8, 0, 1, tzinfo=tz)


DATED = '  {% set day = strftime_now("%A %-d %b %Y") %}\n<|im_start|>{{ day + ".\n" }}\n' + TOOLS
"""As Llama 3.2's, SmolLM3's and gpt-oss's: with the current date. It begins with white space and a block."""


def test_a_template_that_writes_the_date_writes_that_of_the_row(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a training that goes on after midnight learns the same tokens."""
    for clock in (Day, NextDay):
        monkeypatch.setattr(chat_template_utils, "datetime", clock)
        assert "<|im_start|>Saturday 7 Mar 2026." in prompt(base, TURNS, DATED, row={"timestamp": Day.now()})
        assert "<|im_start|>Saturday 7 Mar 2026." in prompt(base, TURNS, DATED, row={"timestamp": "2026-03-07 23:59"})
        assert "<|im_start|>Thursday 1 Jan 2026." in prompt(base, TURNS, DATED)
        assert "strftime_now" not in prompt(base, TURNS, TOOLS)


@pytest.mark.parametrize("name", ["llama3_2", "gptoss", "own"])
def test_the_date_is_all_that_differs_from_what_a_server_renders(
    name: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = DATED
    if name != "own":
        spec = find_spec("trl")  # it has copies of the templates of models
        assert spec
        assert spec.origin
        tokenizer.chat_template = (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text()
    tokenizer.bos_token = "<|im_start|>"
    served = tokenizer.apply_chat_template(TURNS[:2], tokenize=False, add_generation_prompt=True)
    chat = _Chat(tokenizer, {}, TURNS[:2], Day.now().date())
    assert chat.text() == served
    assert "2026" in served
    monkeypatch.setattr(chat_template_utils, "datetime", NextDay)
    assert chat.text() == served
