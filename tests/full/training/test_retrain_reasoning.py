"""Templates of models that think before they answer, as they come with the models: what is learned, what is asked."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from retuned.consumers.errors import RetunedError
from retuned.retrain.training.base_model import load_tokenizer
from retuned.retrain.training.batches import encode
from retuned.retrain.training.chat_templates import answer_in

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "order_status",
            "description": "Where an order is.",
            "parameters": {"type": "object", "properties": {"order": {"type": "integer"}, "zip": {"type": "string"}}},
        },
    }
]
CALLED = '<tool_call>\n{"name": "order_status", "arguments": {"order": 7, "zip": "012"}}\n</tool_call>'
# With which these models end their turns.
ENDS = ["<|eot_id|>", "<｜end▁of▁sentence｜>", "<|end|>", "<end_of_turn>", "<turn|>", "<|return|>"]
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "where is order 7"}]


def template(name: str) -> str:
    """A model's own chat template; TRL has copies of them."""
    spec = find_spec("trl")
    assert spec
    assert spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


class Written:
    """A row in a template: its prompt, its completion, and what would be read if a model wrote that."""

    def __init__(self, base: Path, name: str, row: dict[str, Any] | None = None, **more: Any) -> None:
        tokenizer = load_tokenizer(base)
        tokenizer.chat_template = template(name)
        tokenizer.bos_token = "<|im_start|>"  # some templates begin with one
        tokenizer.add_tokens(ENDS, special_tokens=True)
        whole = {"row_id": "r", "messages": json.dumps(TURNS), "completion": "in Oslo", "context": None} | (row or {})
        found = encode(tokenizer, whole, 4_096, **more)
        self.prompt, self.completion = tokenizer.decode(found.prompt), tokenizer.decode(found.completion)
        tools = json.loads(whole.get("tools") or "[]")
        written = tokenizer.decode(found.completion, skip_special_tokens=True)
        self.read = answer_in(tokenizer, written, found.prompt, tools)


EMPTY = "<think>\n\n</think>\n\n"
NO_THINKING = {"template_variables": {"enable_thinking": False}}


@pytest.mark.parametrize(
    ("name", "ending", "more"),
    [
        ("qwen3", f"assistant\n{EMPTY}", {}),
        ("qwen3", f"assistant\n{EMPTY}", NO_THINKING),
        ("qwen3_6", f"assistant\n{EMPTY}", {}),
        ("deepseek_r1_distill", f"<｜Assistant｜>{EMPTY}", {}),
        ("nemotron_3_nano", "<think>\n\n</think>\n\n", {}),
        ("glm4moe", "<|assistant|>\n<think></think>\n", {}),
        ("gptoss", "<|start|>assistant<|channel|>final<|message|>", {}),
        ("qwen2_5", "assistant\n", {}),
    ],
)
def test_an_answer_alone_is_learned_and_every_model_is_asked_to_answer_at_once(
    base: Path, name: str, ending: str, more: dict[str, Any]
) -> None:
    found = Written(base, name, {"reasoning": "Oslo it is."}, **more)
    assert found.prompt.endswith(ending)
    assert found.completion.startswith("in Oslo")
    assert "think" not in found.completion
    assert found.read == "in Oslo"


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_6", "qwen3_8", "deepseek_r1_distill", "nemotron_3_nano", "glm4moe", "qwen2_5"]
)
def test_reasoning_is_learned_whole_where_it_is_wanted(base: Path, name: str) -> None:
    found = Written(base, name, {"reasoning": "Oslo it is."}, keep_reasoning=True)
    whole = found.prompt + found.completion
    assert whole.count("<think>") == whole.count("</think>") == 1
    assert not found.prompt.rstrip().endswith("</think>")
    thought, _, answer = found.completion.partition("</think>")
    assert "Oslo it is." in thought
    assert answer.strip().startswith("in Oslo")
    assert found.read == "in Oslo"


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6", "deepseek_r1_distill", "nemotron_3_nano"])
def test_without_reasoning_an_empty_block_is_learned_where_reasoning_is(base: Path, name: str) -> None:
    found = Written(base, name, keep_reasoning=True)
    whole = found.prompt + found.completion
    assert whole.count("<think>") == whole.count("</think>") == 1
    assert found.completion.partition("</think>")[2].strip().startswith("in Oslo")


def test_a_model_that_is_still_thinking_has_given_no_answer(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    assert answer_in(tokenizer, "hm, hm,", tokenizer("assistant\n<think>\n").input_ids) == ""
    assert answer_in(tokenizer, "hm, hm,", tokenizer("assistant\n").input_ids) == "hm, hm,"
    assert answer_in(tokenizer, "<think>hm", tokenizer("assistant\n").input_ids) == ""


def test_a_template_whose_answer_does_not_follow_its_prompt_is_one_clear_line(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}Answer!{% endif %}"
    )
    row = {"row_id": "r", "messages": json.dumps(TURNS), "completion": "in Oslo", "context": None}
    with pytest.raises(RetunedError, match=r"which ends with '.*Answer!'; set train\.chat_template_kwargs"):
        encode(tokenizer, row, 1_024)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("qwen2_5", '<tool_call>\n{"name": "order_status"'),
        ("qwen3", '<tool_call>\n{"name": "order_status"'),
        ("qwen3_6", "<tool_call>\n<function=order_status>\n<parameter=order>\n7"),
        ("glm4moe", "<tool_call>order_status\n<arg_key>order</arg_key>"),
        ("llama3_1", '{"name": "order_status", "parameters": '),
        ("nemotron_3_nano", "<tool_call>\n<function=order_status>"),
    ],
)
@pytest.mark.parametrize("words", ["", "I look it up.\n"])
def test_calls_are_written_as_the_template_writes_them_and_read_again(
    base: Path, name: str, form: str, words: str
) -> None:
    if words and name == "llama3_1":
        form = CALLED  # Llama's template would leave the words out
    found = Written(base, name, {"completion": words + CALLED, "tools": json.dumps(TOOLS)})
    assert "Where an order is." in found.prompt
    assert found.completion.startswith(words.strip())
    assert form in found.completion
    assert found.read == words + CALLED


@pytest.mark.parametrize("name", ["gptoss", "deepseekv3"])
def test_calls_that_are_not_learned_in_the_templates_form_are_read_in_it(base: Path, name: str) -> None:
    """What a base model or a server writes, with its special tokens or without."""
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = template(name)
    tokenizer.bos_token = "<|im_start|>"
    given: Any = {"order": 7, "zip": "012"}
    function = {"name": "order_status", "arguments": given if name == "gptoss" else json.dumps(given)}
    called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    whole = tokenizer.apply_chat_template([TURNS[1], called], tools=TOOLS, tokenize=False)
    turn = "assistant" if name == "gptoss" else "<｜Assistant｜>"
    written = whole.partition("where is order 7")[2].partition(turn)[2]
    assert "order_status" in written
    bare = re.sub(r"<\|\w+\|>|<｜end▁of▁sentence｜>", "", written).strip()
    for text in (written, bare):
        assert answer_in(tokenizer, text, tokenizer("hm").input_ids, TOOLS) == CALLED


# As Mistral's since version 11 of its tokenizer, in fewer words.
MISTRAL = (
    "{% for message in messages %}{% if message.role == 'user' %}{% if loop.last or not loop.nextitem.role == 'user' %}"
    "[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]{{ message.content }}[/INST]"
    "{% elif message.role == 'system' %}[SYSTEM_PROMPT]{{ message.content }}[/SYSTEM_PROMPT]"
    "{% else %}{{ message.content }}{% for call in message.tool_calls or [] %}"
    "[TOOL_CALLS]{{ call.function.name }}[ARGS]{{ call.function.arguments | tojson }}{% endfor %}<|im_end|>{% endif %}"
    "{% endfor %}"
)


def test_mistrals_calls_are_learned_in_its_form_and_read_without_its_special_tokens(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = MISTRAL
    tokenizer.add_tokens(["[TOOL_CALLS]", "[ARGS]"], special_tokens=True)
    row = {"row_id": "r", "messages": json.dumps(TURNS), "completion": CALLED, "context": None}
    found = encode(tokenizer, row | {"tools": json.dumps(TOOLS)}, 4_096)
    assert tokenizer.decode(found.completion).startswith('[TOOL_CALLS]order_status[ARGS]{"order": 7, "zip": "012"}')
    written = tokenizer.decode(found.completion, skip_special_tokens=True)
    assert "TOOL_CALLS" not in written
    assert answer_in(tokenizer, written, found.prompt, TOOLS) == CALLED


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "gemma", "llama3", "phi3", "lfm2_2_5", "gemma4"])
def test_where_a_template_has_no_form_that_can_be_read_calls_are_json_in_tags(base: Path, name: str) -> None:
    found = Written(base, name, {"completion": CALLED, "tools": json.dumps(TOOLS)})
    assert "Where an order is." in found.prompt
    assert found.completion.startswith(CALLED)
    assert found.read == CALLED


def test_a_tool_is_not_told_because_the_question_has_its_words(base: Path) -> None:
    asked = [{"role": "user", "content": "Where an order is. order_status"}]
    row = {"messages": json.dumps(asked), "completion": CALLED, "tools": json.dumps(TOOLS)}
    assert '"properties"' in Written(base, "gemma", row).prompt


def test_without_a_template_tools_are_told_too(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = None
    row = {"row_id": "r", "messages": json.dumps(TURNS[1:]), "completion": CALLED, "context": None}
    found = encode(tokenizer, row | {"tools": json.dumps(TOOLS)}, 4_096)
    assert "Where an order is." in tokenizer.decode(found.prompt)
    assert tokenizer.decode(found.completion).startswith(CALLED)
