"""A conversation as its model reads and writes it: chat templates, and what they refuse or leave out.

Runs in child processes alone.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError

from retuned.consumers.common import reasoning, tool_calls
from retuned.consumers.common.call_forms import in_one_form
from retuned.consumers.errors import RetunedError

Message = dict[str, Any]

_WORD = re.compile(r"[A-Za-z0-9]+")
_PROBE = "retuned-9f3a51"  # stands for an answer
_SHOWN = 40
_TAIL_TOKENS = 32
_TOOLS = "You may call these tools:"
_HOW_TO_CALL = (
    "To call one, write its name and its arguments as JSON:\n"
    f'{tool_calls.OPENING}\n{{"name": "…", "arguments": {{…}}}}\n{tool_calls.CLOSING}'
)


def prompt_and_completion(
    tokenizer: Any,
    messages: list[Message],
    answer: str,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    thought: str | None = None,
    keep_reasoning: bool = False,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of what the model is to write: the answer and the end of its turn.

    A template may refuse a role (a system message, two turns of one side), or leave out what it has no words for
    (tools, calls of them and their results). Then the same is said in other words: tools in the system message, or all
    of it in turns of user and assistant alone. Calls are written as the template writes them, where they can be read
    again, else as `tool_calls.written` does.

    Args:
        answer: with its calls (see `tool_calls.written`), without its reasoning.
        tools: the schemas that the model is offered (see `tool_calls.schemas`).
        thought: the reasoning before the answer, which is learned with it.
        keep_reasoning: a block of reasoning, be it empty, is learned as part of the completion. Else it belongs to the
            prompt, empty and closed, so that each model answers at once.
        variables: of the template, as `enable_thinking`.

    Raises:
        RetunedError: the template refuses the conversation, or does not continue its own prompt.
    """
    messages = [_calls_parsed(turn) for turn in messages]
    if not tokenizer.chat_template:
        prompt = "".join(
            f"{turn['role']}: {turn.get('content') or ''}\n"
            for turn in _with_calls_told(_with_tools_told(messages, tools))
        )
        ids: list[int] = tokenizer(f"{prompt}assistant: ").input_ids
        return ids, tokenizer(_thought_and(thought, answer), add_special_tokens=False).input_ids
    chat, prompt = _chat(tokenizer, variables, messages, tools)
    opening, ending = chat.around(prompt, thought)
    completion = chat.native_calls(prompt, thought, opening, answer) or f"{answer}{ending}"
    if keep_reasoning or not opening.strip():
        completion = opening + completion
    else:
        prompt += opening
    start, whole = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, prompt + completion))
    if whole[: len(start)] == start:
        return start, whole[len(start) :]
    return start, tokenizer(completion, add_special_tokens=False).input_ids


def answer_in(tokenizer: Any, written: str, prompt: Sequence[int], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """The answer in what a model wrote after a prompt: no reasoning, calls as `tool_calls.written` has them.

    Empty where the reasoning came to no end.
    """
    opened = reasoning.OPEN_AT_THE_END.search(tokenizer.decode(prompt[-_TAIL_TOKENS:])) is not None
    _, answer = reasoning.split(written, opened=opened)
    return in_one_form(answer, tools)


@dataclass(frozen=True)
class _Chat:
    """A conversation as its template writes it.

    Attributes:
        variables: of the template.
        tools: as the template takes them; none where the messages tell of them.
    """

    tokenizer: Any
    variables: Mapping[str, Any]
    messages: list[Message]
    tools: Sequence[Mapping[str, Any]] = ()

    def text(self, answer: Message | None = None) -> str:
        """Up to where the answer begins, or with it."""
        found: str = self.tokenizer.apply_chat_template(
            [*self.messages, *([answer] if answer else [])],
            tools=[dict(tool) for tool in self.tools] or None,
            add_generation_prompt=answer is None,
            tokenize=False,
            **self.variables,
        )
        return found

    def around(self, prompt: str, thought: str | None) -> tuple[str, str]:
        """What the template writes between prompt and answer, the reasoning for example, and after the answer.

        Raises:
            RetunedError: it does not go on from its prompt.
        """
        try:
            rest = self._after(prompt, thought, {"role": "assistant", "content": _PROBE})
        except (TemplateError, TypeError) as error:
            raise RetunedError(f"models.base: its chat template refuses an answer ({error})") from error
        if rest is None or _PROBE not in rest:
            raise RetunedError(
                "models.base: with an answer, its chat template writes a conversation otherwise than the prompt to it, "
                f"which ends with {prompt[-_SHOWN:]!r}; set train.chat_template_kwargs so that the answer follows the "
                "prompt, or correct the template"
            )
        opening, _, ending = rest.partition(_PROBE)
        return opening, ending

    def native_calls(self, prompt: str, thought: str | None, opening: str, answer: str) -> str | None:
        """An answer that calls tools in the template's own form; None where it has none that could be read again."""
        try:
            words, calls = tool_calls.read(answer)
        except ValueError:
            return None
        if not calls or not self.tools:
            return None
        # Mistral's templates ask for ids of nine signs.
        called = [{"id": f"{number:09}", **call.as_message()} for number, call in enumerate(calls)]
        try:
            rest = self._after(prompt, thought, {"role": "assistant", "content": words, "tool_calls": called})
        except (TemplateError, TypeError):
            return None
        if rest is None or not rest.startswith(opening):
            return None
        completion = rest.removeprefix(opening)
        ids = self.tokenizer(completion, add_special_tokens=False).input_ids
        seen = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return completion if in_one_form(seen, self.tools) == answer else None

    def _after(self, prompt: str, thought: str | None, answer: Message) -> str | None:
        """What follows the prompt, with the reasoning as the template writes it, or else in tags before the words."""
        if thought:
            rest = self._rest(prompt, thought, {**answer, "reasoning_content": thought})
            if rest is not None and thought in rest:
                return rest
            answer = {**answer, "content": _thought_and(thought, answer["content"])}
        return self._rest(prompt, thought, answer)

    def _rest(self, prompt: str, thought: str | None, answer: Message) -> str | None:
        """What follows the prompt; None where the whole does not extend it."""
        whole = self.text(answer)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        opened = reasoning.OPEN_AT_THE_END.search(prompt)
        if opened and whole.startswith(prompt[: opened.start()]):
            # The template opens a block of reasoning for each answer, and leaves it out once the answer is there.
            said = reasoning.CLOSED_EMPTY.sub("", whole[opened.start() :], count=1)
            return f"{thought or ''}\n{reasoning.CLOSING}\n\n{said}"
        bare = prompt.rstrip()
        return whole[len(bare) :].lstrip() if whole.startswith(bare) else None


def _chat(
    tokenizer: Any, variables: Mapping[str, Any], messages: list[Message], tools: Sequence[Mapping[str, Any]]
) -> tuple[_Chat, str]:
    """The conversation in the first form that its template takes as a whole, and its prompt.

    Raises:
        RetunedError: the template refuses the plainest form too.
    """
    told = _with_tools_told(messages, tools)
    for chat in (_Chat(tokenizer, variables, messages, tools), _Chat(tokenizer, variables, told)):
        with suppress(TemplateError, TypeError):  # a template may add None to a text
            text = chat.text()
            if _holds(text, chat.messages) and not (chat.tools and text == replace(chat, tools=()).text()):
                return chat, text
    chat = _Chat(tokenizer, variables, _two_sided(told))
    try:
        return chat, chat.text()
    except (TemplateError, TypeError) as error:
        raise RetunedError(f"models.base: its chat template refuses a conversation ({error})") from error


def _holds(text: str, messages: list[Message]) -> bool:
    """Did the template tell all that was said to the model? Told by the longest word of each message."""
    said = [turn.get("content") or "" for turn in messages if turn["role"] != "assistant"]
    said += [name for turn in messages for name in _called(turn)]
    return all(max(words, key=len) in text for words in map(_WORD.findall, said) if words)


def _called(turn: Message) -> list[str]:
    """The names of the tools that a turn calls."""
    return [(call.get("function") or {}).get("name") or "" for call in turn.get("tool_calls") or ()]


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


def _with_tools_told(messages: list[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation with the tools in its system message, for templates that do not know of tools."""
    if not tools:
        return messages
    offered = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    told = f"{_TOOLS}\n{offered}\n\n{_HOW_TO_CALL}"
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0].get('content') or ''}\n\n{told}".lstrip()}
        return [first, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]


def _with_calls_told(messages: list[Message]) -> list[Message]:
    told = []
    for turn in messages:
        content = turn.get("content") or ""
        if turn["role"] == "tool":
            content = f"Result of {turn['name']}: {content}" if turn.get("name") else f"Result: {content}"
        calls = [call for call in turn.get("tool_calls") or () if (call.get("function") or {}).get("name")]
        told.append({"role": turn["role"], "content": tool_calls.written(content, calls)})
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


def _thought_and(thought: str | None, answer: str) -> str:
    return reasoning.written(thought, answer) if thought else answer
