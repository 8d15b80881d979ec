"""A conversation as its model reads it: chat templates, what they refuse or leave out, and retrieved passages.

Runs in child processes alone.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError

from retuned.consumers.errors import RetunedError

Message = dict[str, Any]

_INSTRUCTING = ("system", "developer")
_WORD = re.compile(r"[A-Za-z0-9]+")


def with_context(messages: list[Message], passages: Sequence[str]) -> list[Message]:
    """The conversation with the passages before its last question, those that it does not hold already.

    The question becomes `Context:`, each passage, and `Question:` with the question, each after an empty line: what an
    app must send, too, if it wants the adapter's best answers and its own prompt does not show the passages.
    """
    shown = missing(messages, passages)
    asked = [number for number, turn in enumerate(messages) if turn["role"] == "user"]
    if not shown or not asked:
        return messages
    turn = messages[asked[-1]]
    told = "\n\n".join(["Context:", *shown, f"Question: {turn.get('content') or ''}"])
    return [*messages[: asked[-1]], {**turn, "content": told}, *messages[asked[-1] + 1 :]]


def shortened(messages: list[Message], passages: Sequence[str]) -> list[tuple[list[Message], Sequence[str]]]:
    """The conversation with its passages, whole and then shorter and shorter, for a model that does not read so much.

    The oldest turns go first, up to the next question; then the last passages, which retrieval ranks lowest. What
    instructs the model, the last question, what follows it, and the first passage stay whole: without one of these it
    would be another task.
    """
    asked = [number for number, turn in enumerate(messages) if turn["role"] == "user"]
    turns = [
        [turn for number, turn in enumerate(messages) if number >= start or turn["role"] in _INSTRUCTING]
        for start in [0, *asked[1:]]
    ]
    return [(kept, passages) for kept in turns] + [
        (turns[-1], passages[:count]) for count in range(len(passages) - 1, 0, -1)
    ]


def missing(messages: list[Message], passages: Sequence[str]) -> list[str]:
    """The passages that the conversation does not hold."""
    held = _squeezed(" ".join(turn.get("content") or "" for turn in messages))
    return [passage.strip() for passage in passages if passage.strip() and _squeezed(passage) not in held]


def same_text(one: str, other: str) -> bool:
    """Do they differ in white space and case at most?"""
    return _squeezed(one) == _squeezed(other)


def prompt_and_whole(tokenizer: Any, messages: list[Message], answer: str) -> tuple[list[int], list[int]]:
    """Token ids up to where the answer begins, and with it.

    A template may refuse a role (a system message, two turns of one side), or leave out what it has no words for (calls
    of tools and their results). Then the same is said in turns of user and assistant alone.

    Raises:
        RetunedError: the template refuses that, too.
    """
    messages = [_calls_parsed(turn) for turn in messages]
    if not tokenizer.chat_template:
        text = "".join(f"{turn['role']}: {turn.get('content') or ''}\n" for turn in _with_calls_told(messages))
        prompt: list[int] = tokenizer(text + "assistant: ").input_ids
        return prompt, [*prompt, *tokenizer(answer, add_special_tokens=False).input_ids]
    try:
        text = _rendered(tokenizer, messages)
        complete = _holds(text, messages)
    except (TemplateError, TypeError):  # a template may add None to a text
        complete = False
    if not complete:
        messages = _two_sided(messages)
        try:
            text = _rendered(tokenizer, messages)
        except (TemplateError, TypeError) as error:
            raise RetunedError(f"models.base: its chat template refuses a conversation ({error})") from error
    answered = _rendered(tokenizer, [*messages, {"role": "assistant", "content": answer}], to_be_answered=False)
    prompt, whole = (tokenizer(one, add_special_tokens=False).input_ids for one in (text, answered))
    return prompt, whole


def _rendered(tokenizer: Any, messages: list[Message], *, to_be_answered: bool = True) -> str:
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=to_be_answered, tokenize=False)
    return text


def _holds(text: str, messages: list[Message]) -> bool:
    """Did the template tell all that was said to the model? Told by the longest word of each message."""
    said = [turn.get("content") or "" for turn in messages if turn["role"] != "assistant"]
    said += [name for turn in messages for name, _ in _calls(turn)]
    return all(max(words, key=len) in text for words in map(_WORD.findall, said) if words)


def _calls(turn: Message) -> list[tuple[str, Any]]:
    """Name and arguments of each tool that a turn calls, as the chat API has them."""
    functions = [call.get("function") or {} for call in turn.get("tool_calls") or ()]
    return [(function.get("name") or "", function.get("arguments")) for function in functions]


def _calls_parsed(turn: Message) -> Message:
    """Arguments of calls as objects: the chat API has them as JSON text, which templates would quote once more."""
    if not turn.get("tool_calls"):
        return turn
    calls = []
    for call in turn["tool_calls"]:
        function = dict(call.get("function") or {})
        if isinstance(function.get("arguments"), str):
            with suppress(ValueError):  # a model may have called with what is no JSON: it stays a text
                function["arguments"] = json.loads(function["arguments"])
        calls.append({**call, "function": function})
    return {**turn, "content": turn.get("content") or "", "tool_calls": calls}


def _with_calls_told(messages: list[Message]) -> list[Message]:
    told = []
    for turn in messages:
        calls = [f"Call of {name}: {json.dumps(arguments, ensure_ascii=False)}" for name, arguments in _calls(turn)]
        content = turn.get("content") or ""
        if turn["role"] == "tool":
            content = f"Result of {turn['name']}: {content}" if turn.get("name") else f"Result: {content}"
        told.append({"role": turn["role"], "content": "\n".join([*([content] if content else []), *calls])})
    return told


def _two_sided(messages: list[Message]) -> list[Message]:
    """The conversation in turns of user and assistant that alternate: other roles become the user's."""
    turns: list[Message] = []
    for turn in _with_calls_told(messages):
        role = "assistant" if turn["role"] == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{turn['content']}"
        else:
            turns.append({"role": role, "content": turn["content"]})
    return turns


def _squeezed(text: str) -> str:
    return " ".join(text.split()).casefold()
