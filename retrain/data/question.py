"""The identity of a question: which requests are the same one.

An approved answer is sent word for word to everybody who asks the same question, and votes on the same question are
added up. A wrong match gives a customer a wrong answer, or the answer about another person; a missed match costs a call
of the model. So two requests are the same only if the model read the same: each turn with its role, name and calls, the
instructions, passages, tools and arguments of the template. Only what carries no meaning for certain is left out: the
composition of characters (Unicode NFC), white space within and around lines, ids of calls. Case and the punctuation at
the end are left out only where the workload's own rows show that they never separate two approved answers (`Wording`).
Different texts may be equal after redaction: redacted instructions are told apart by their seal
(`consumers/privacy/sealing.py`), and where anything else was redacted, nothing may be remembered.

Votes (`examples.py`), splits, the memory and the gateway share this module, which needs no library.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retuned.consumers.common import tool_calls
from retuned.consumers.privacy.placeholders import PSEUDONYM, has_placeholder, unnumbered
from retuned.consumers.privacy.sealing import SEALED, leading
from retuned.retrain.data.identity import calls_of, last_question, text_turns

SCOPE_BYTES = 8
_BREAKS = re.compile(r"\r\n?|[\n\x0b\x0c\x85\u2028\u2029]")
_LETTER = r"[^\W\d_]"
_FIRST = re.compile(rf"^[¿¡(«\"“„]?{_LETTER}{{4,}}(?=[,.;:?!…)»\"”]*(?:\s|$))")
_END = re.compile(rf"(?<={_LETTER}{{4}})\s?[.?!…。？！؟।]+$")


@dataclass(frozen=True)
class Wording:
    """Features of a user's wording that never separate two approved answers of a workload.

    Attributes:
        case: the capital at the beginning of a message, of a word of four letters or more.
        end: punctuation at the end of a message, after such a word, with `¿` or `¡` at its beginning.
    """

    case: bool = False
    end: bool = False

    def __call__(self, text: str) -> str:
        """Returns a text without these features."""
        if self.end and (match := _END.search(text)):
            text = text[: match.start()].lstrip("¿¡")
        return _FIRST.sub(lambda match: _uncapitalised(match[0]), text) if self.case else text


@dataclass(frozen=True)
class Rules:
    """What makes no difference in a workload.

    Attributes:
        harmless: regular expressions of parts of the instructions, such as a line with today's date.
    """

    wording: Wording = field(default_factory=Wording)
    harmless: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns a fingerprint."""
        rules = json.dumps([self.wording.case, self.wording.end, self.harmless])
        return hashlib.sha256(rules.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def instructions(self, text: str) -> str:
        """Returns instructions without what makes no difference."""
        for pattern in self.harmless:
            text = re.sub(pattern, "", text)
        return spaced(text)


EXACT = Rules()


@dataclass(frozen=True)
class Question:
    """What a conversation asks.

    Attributes:
        key: 16 bytes, equal for the same question. The first 8 are a hash of instructions, passages, tools and
            arguments of the template, the others one of the conversation.
        text: the last message of a user.
        is_alone: whether the text is all that was asked, so that it can be compared with other questions.
        seal: of redacted instructions; None: nothing was redacted in them.
    """

    key: bytes
    text: str
    is_alone: bool
    seal: str | None = None


def spaced(text: str) -> str:
    """Returns a text in NFC without the white space that carries no meaning. Lines and their indentation stay."""
    text = unicodedata.normalize("NFC", unnumbered(text))
    lines = [line for line in _BREAKS.split(text) if line.strip()]
    words = [" ".join(line.split()) for line in lines]
    if len(lines) < 2:
        return "".join(words)
    margins = [line[: len(line) - len(line.lstrip())] for line in lines]
    return "\n".join(margin + line for margin, line in zip(["", *margins[1:]], words, strict=True))


def forms(
    turns: Sequence[Mapping[str, Any]],
    context: Sequence[Any] = (),
    tools: Any = None,
    extras: Mapping[str, Any] | None = None,
    rules: Rules = EXACT,
) -> tuple[str, str]:
    """Returns two texts that are both equal for the same question: of what the app sends with each question
    (instructions, passages, tools, arguments of the template), and of the conversation.

    Args:
        turns: as `text_turns` returns them.
        tools: as `tool_calls.schemas` returns them.
        extras: what else the model read, as the SQL macro `question_extras` returns it.
    """
    first = len(leading(turns))
    sent = [
        [_turn(turn, rules.instructions(turn["content"])) for turn in turns[:first]],
        [spaced(str(passage)) for passage in context],
        tools or None,
        {name: value for name, value in sorted((extras or {}).items()) if value is not None},
    ]
    asked = [_turn(turn, _said(turn, rules.wording)) for turn in turns[first:]]
    return _canonical(sent), _canonical(asked)


def question(
    messages: Any,
    context: Sequence[Any] | None = None,
    tools: Any = None,
    extras: Mapping[str, Any] | None = None,
    rules: Rules = EXACT,
) -> Question | None:
    """Returns what a conversation asks; None: nothing, it holds more than text, or something was redacted outside
    sealed instructions: the answer may be about one person.

    Texts are redacted, as in the warehouse.

    Args:
        messages: as in requests of OpenAI's chat API, of any content.
        tools: the tools that the model was offered, in a form that `tool_calls.schemas` reads.
        extras: see `forms`.
    """
    turns = [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    if not turns or len(turns) < len(messages) or not all(isinstance(turn.get("role"), str) for turn in turns):
        return None
    texts = text_turns(turns)
    text = last_question(texts or [])
    if texts is None or not text.strip():
        return None
    extras = {name: value for name, value in (extras or {}).items() if value is not None}
    first, seal = len(leading(texts)), extras.get(SEALED)
    beside = {name: value for name, value in extras.items() if name != SEALED}
    schemas = tool_calls.schemas(tools)
    if _is_redacted([texts[first:], context, beside]) or (seal is None and _is_redacted([texts[:first], tools])):
        return None
    sent, asked = forms(texts, context or (), schemas, extras, rules)
    return Question(_hash(sent) + _hash(asked), text, len(texts) - first == 1, seal)


def _uncapitalised(word: str) -> str:
    return word if word[1:] != word[1:].lower() else word.lower()


def _said(turn: Mapping[str, Any], wording: Wording) -> str:
    text = spaced(turn["content"])
    return wording(text) if turn["role"] == "user" else text


def _turn(turn: Mapping[str, Any], text: str) -> list[Any]:
    return [turn["role"], turn.get("name"), text, calls_of(turn)]


def _canonical(value: Any) -> str:
    return unicodedata.normalize("NFC", unnumbered(json.dumps(value, sort_keys=True, ensure_ascii=False)))


def _is_redacted(value: Any) -> bool:
    text = json.dumps(value, ensure_ascii=False)
    return has_placeholder(text) or bool(PSEUDONYM.search(text))


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:SCOPE_BYTES]
