"""Renders conversations by the model's chat template, and works around what templates refuse or leave out.

Used in child processes only.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from string import ascii_letters
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError

from retuned.consumers.common import reasoning, tool_calls
from retuned.consumers.common.call_forms import in_one_form
from retuned.consumers.errors import RetunedError

Message = dict[str, Any]

_PROBE = "retuned_9f3a51"  # a placeholder for text
_CUT = "retuned_c07a1e"  # the text on either side is tokenized on its own
_CLOCK = "strftime_now"
_DATED = (
    f"{{%- macro {_CLOCK}(format) -%}}{{%- set written = namespace(text=format) -%}}"
    "{%- for directive, value in retuned_day.items() -%}"
    "{%- set written.text = written.text | replace(directive, value) -%}"
    "{%- endfor -%}{{- written.text -}}{%- endmacro %}\n"
)
"""Precedes a chat template in place of transformers' function of this name, which returns the current time. That cannot
be replaced by a variable, as transformers passes no functions to templates. Its line end is not rendered."""
_UNDATED = date(2026, 1, 1)
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
    day: date | None = None,
) -> tuple[list[int], list[int]]:
    """Returns the token ids of the prompt and of the completion: the answer and the end of its turn.

    A template may refuse a role (a system message, two turns of one side), or leave out parts that it does not support
    (tools, tool calls and their results). The conversation then takes another form: tools in the system message, or
    only turns of user and assistant. Tool calls take the template's own form if it can be parsed again, else that of
    `tool_calls.written`. Only what the template writes becomes special tokens of the completion: an answer that
    explains `<|im_end|>` does not end there.

    Args:
        answer: with its tool calls (see `tool_calls.written`), without its reasoning.
        tools: the schemas that the model is offered (see `tool_calls.schemas`).
        thought: the reasoning before the answer, which is learned with it.
        keep_reasoning: the completion includes the block of reasoning, even an empty one. Otherwise the prompt ends
            with an empty, closed block, so that the model answers at once.
        variables: the template's variables, such as `enable_thinking`.
        day: the date for templates that write the current one: equal rows have equal tokens, whenever they are
            encoded. None: always the same.

    Raises:
        RetunedError: the template refuses the conversation, or does not continue its own prompt.
    """
    messages = [_calls_parsed(turn) for turn in messages]
    answer, thought = _as_text(tokenizer, answer), thought and _as_text(tokenizer, thought)
    if not tokenizer.chat_template:
        prompt = "".join(
            f"{turn['role']}: {turn.get('content') or ''}\n"
            for turn in _with_calls_in_text(_with_tools_in_text(messages, tools))
        )
        ids: list[int] = tokenizer(f"{prompt}assistant: ").input_ids
        return ids, _ids(tokenizer, _with_thought(thought, answer))
    chat, prompt = _chat(tokenizer, variables, messages, tools, day or _UNDATED)
    opening, ending = chat.around(prompt, thought)
    completion = chat.native_calls(prompt, thought, opening, answer) or f"{answer}{ending}"
    if keep_reasoning or not opening.strip():
        completion = opening + completion
    else:
        prompt += opening
    start, whole = (_ids(tokenizer, text) for text in (prompt, prompt + completion))
    if whole[: len(start)] == start:
        return start, whole[len(start) :]
    return start, _ids(tokenizer, completion)


def answer_in(tokenizer: Any, written: str, prompt: Sequence[int], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Returns the answer in a model's output: without reasoning, with tool calls in the form of `tool_calls.written`.

    The answer is empty if the reasoning did not end.
    """
    opened = reasoning.OPEN_AT_THE_END.search(tokenizer.decode(prompt[-_TAIL_TOKENS:])) is not None
    _, answer = reasoning.split(written, opened=opened)
    return in_one_form(answer, tools)


@dataclass(frozen=True)
class _Chat:
    """A conversation in one form, rendered by its template.

    Attributes:
        variables: the template's variables.
        day: the date that the template writes as the current one.
        tools: the tools passed to the template; none if the messages describe them.
    """

    tokenizer: Any
    variables: Mapping[str, Any]
    messages: list[Message]
    day: date
    tools: Sequence[Mapping[str, Any]] = ()

    def text(self, answer: Message | None = None) -> str:
        """Renders the conversation up to the answer, or with it."""
        tools = [dict(tool) for tool in self.tools] or None
        variables = dict(self.variables)
        if _CLOCK in str(self.tokenizer.chat_template):  # a text, or several by name
            template = _DATED + self.tokenizer.get_chat_template(tools=tools)
            variables |= {"chat_template": template, "retuned_day": _written(self.day)}
        text: str = self.tokenizer.apply_chat_template(
            [*self.messages, *([answer] if answer else [])],
            tools=tools,
            add_generation_prompt=answer is None,
            tokenize=False,
            **variables,
        )
        return text

    def is_whole(self) -> bool:
        """Whether the template renders the tools and every turn, in order and with any content."""
        marked, anywhere, in_order = _probe(self.messages)
        text = replace(self, messages=marked).text()
        once = all(text.count(marker) == 1 for marker in in_order)
        if not once or in_order != sorted(in_order, key=text.find) or any(marker not in text for marker in anywhere):
            return False
        return not self.tools or self.text() != replace(self, tools=()).text()

    def around(self, prompt: str, thought: str | None) -> tuple[str, str]:
        """Returns what the template writes between prompt and answer, such as reasoning, and after the answer.

        Raises:
            RetunedError: the template does not continue its prompt.
        """
        try:
            rest = self._after(prompt, thought, {"role": "assistant", "content": _PROBE})
        except (TemplateError, TypeError) as error:
            raise RetunedError(f"models.base: its chat template refuses an answer ({error})") from error
        if rest is None or _PROBE not in rest:
            raise RetunedError(
                "models.base: its chat template renders an answered conversation differently from the prompt to it, "
                f"which ends with {prompt[-_SHOWN:]!r}; set train.chat_template_kwargs so that the answer follows the "
                "prompt, or correct the template"
            )
        opening, _, ending = rest.partition(_PROBE)
        return opening, ending

    def native_calls(self, prompt: str, thought: str | None, opening: str, answer: str) -> str | None:
        """Returns an answer with tool calls in the template's own form; None if that form cannot be parsed again."""
        try:
            words, calls = tool_calls.read(answer)
        except ValueError:
            return None
        if not calls or not self.tools:
            return None
        # Mistral's templates require ids of nine characters.
        called = [{"id": f"{number:09}", **call.as_message()} for number, call in enumerate(calls)]
        try:
            rest = self._after(prompt, thought, {"role": "assistant", "content": words, "tool_calls": called})
        except (TemplateError, TypeError):
            return None
        if rest is None or not rest.startswith(opening):
            return None
        completion = rest.removeprefix(opening)
        seen = self.tokenizer.decode(_ids(self.tokenizer, completion), skip_special_tokens=True).strip()
        return completion if in_one_form(seen, self.tools) == answer.replace(_CUT, "") else None

    def _after(self, prompt: str, thought: str | None, answer: Message) -> str | None:
        """Returns the text after the prompt, with reasoning in the template's form or, failing that, in tags."""
        if thought:
            rest = self._rest(prompt, thought, {**answer, "reasoning_content": thought})
            if rest is not None and thought in rest:
                return rest
            answer = {**answer, "content": _with_thought(thought, answer["content"])}
        return self._rest(prompt, thought, answer)

    def _rest(self, prompt: str, thought: str | None, answer: Message) -> str | None:
        """Returns the text after the prompt; None if the rendered conversation does not continue it."""
        whole = self.text(answer)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        opened = reasoning.OPEN_AT_THE_END.search(prompt)
        if opened and whole.startswith(prompt[: opened.start()]):
            # The template opens a block of reasoning in the prompt, and leaves it out once there is an answer.
            reply = reasoning.CLOSED_EMPTY.sub("", whole[opened.start() :], count=1)
            return f"{thought or ''}\n{reasoning.CLOSING}\n\n{reply}"
        bare = prompt.rstrip()
        return whole[len(bare) :].lstrip() if whole.startswith(bare) else None


def _ids(tokenizer: Any, text: str) -> list[int]:
    parts = (tokenizer(part, add_special_tokens=False).input_ids for part in text.split(_CUT))
    return [id for part in parts for id in part]


def _as_text(tokenizer: Any, text: str) -> str:
    """Cuts what spells a special token behind its first character, so that it is tokenized as the text that it is."""
    return _special(tokenizer).sub(lambda found: f"{found[0][0]}{_CUT}{found[0][1:]}", text)


@lru_cache(maxsize=4)
def _special(tokenizer: Any) -> re.Pattern[str]:
    """Returns a pattern of the special tokens, but the marks of calls: `tool_calls.written` puts them into answers."""
    marks = (tool_calls.OPENING, tool_calls.CLOSING)
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(re.escape(token) for token in tokens if token not in marks) or "(?!)")


@lru_cache(maxsize=1_024)
def _written(day: date) -> dict[str, str]:
    """Returns what `strftime` writes for each of its directives."""
    directives = [f"%{flag}{letter}" for flag in ("", "-") for letter in ascii_letters]
    written = {directive: day.strftime(directive) for directive in directives}
    return {directive: text for directive, text in written.items() if "%" not in text} | {"%%": "%"}


def _chat(
    tokenizer: Any, variables: Mapping[str, Any], messages: list[Message], tools: Sequence[Mapping[str, Any]], day: date
) -> tuple[_Chat, str]:
    """Returns the conversation in the first form that its template renders completely, and its prompt.

    Raises:
        RetunedError: the template refuses even the plainest form, or does not render all of it.
    """
    with_tools = _with_tools_in_text(messages, tools)
    forms = (
        _Chat(tokenizer, variables, messages, day, tools),
        _Chat(tokenizer, variables, with_tools, day),
        _Chat(tokenizer, variables, _two_sided(with_tools), day),
    )
    reason = "it leaves out, repeats or reorders turns"
    for chat in forms:
        try:
            if chat.is_whole():
                return chat, chat.text()
        except (TemplateError, TypeError) as error:  # TypeError: a template may concatenate None
            reason = str(error)
    raise RetunedError(f"models.base: its chat template refuses a conversation ({reason})")


def _probe(messages: list[Message]) -> tuple[list[Message], list[str], list[str]]:
    """Replaces each text and each called tool's name by a marker.

    Returns:
        the messages, the markers allowed anywhere (system messages), and those required once and in order.
    """
    marked: list[Message] = []
    anywhere: list[str] = []
    in_order: list[str] = []
    for number, turn in enumerate(messages):
        marker, calls = f"{_PROBE}_{number:04}", turn.get("tool_calls") or ()
        names = [f"{marker}_{place:04}" for place, _ in enumerate(calls)]
        marked.append({**turn, "content": f"{marker}_text"} if turn.get("content") else dict(turn))
        if calls:  # several templates leave out the assistant's text beside tool calls
            marked[-1]["tool_calls"] = [
                {**call, "function": {**call["function"], "name": name}}
                for call, name in zip(calls, names, strict=True)
            ]
        elif turn.get("content"):
            (anywhere if turn["role"] == "system" else in_order).append(f"{marker}_text")
        in_order += names
    return marked, anywhere, in_order


def _calls_parsed(turn: Message) -> Message:
    """Decodes the arguments of tool calls: the chat API has them as JSON text, which templates would quote again."""
    if not turn.get("tool_calls"):
        return turn
    calls = []
    for call in turn["tool_calls"]:
        function = dict(call.get("function") or {})
        if isinstance(function.get("arguments"), str):
            with suppress(ValueError):  # a model may have written invalid JSON, which stays text
                function["arguments"] = json.loads(function["arguments"])
        calls.append({**call, "function": function})
    return {**turn, "content": turn.get("content") or "", "tool_calls": calls}


def _with_tools_in_text(messages: list[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Describes the tools in the system message, for templates that do not support tools."""
    if not tools:
        return messages
    offered = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    description = f"{_TOOLS}\n{offered}\n\n{_HOW_TO_CALL}"
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0].get('content') or ''}\n\n{description}".lstrip()}
        return [first, *messages[1:]]
    return [{"role": "system", "content": description}, *messages]


def _with_calls_in_text(messages: list[Message]) -> list[Message]:
    turns = []
    for turn in messages:
        content = turn.get("content") or ""
        if turn["role"] == "tool":
            content = f"Result of {turn['name']}: {content}" if turn.get("name") else f"Result: {content}"
        calls = [call for call in turn.get("tool_calls") or () if (call.get("function") or {}).get("name")]
        turns.append({"role": turn["role"], "content": tool_calls.written(content, calls)})
    return turns


def _two_sided(messages: list[Message]) -> list[Message]:
    """Returns alternating turns of user and assistant; other roles become the user's."""
    turns: list[Message] = []
    for turn in _with_calls_in_text(messages):
        role = "assistant" if turn["role"] == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{turn['content']}"
        else:
            turns.append({"role": role, "content": turn["content"]})
    return turns


def _with_thought(thought: str | None, answer: str) -> str:
    return reasoning.written(thought, answer) if thought else answer
