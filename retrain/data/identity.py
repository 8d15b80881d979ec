"""Normal forms of texts, in which answers and near questions are compared.

They leave out features of the writing. Which questions are the same is decided by `question.py`, which leaves out less.
This module needs no library, because the gateway needs it, too.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retuned.consumers.common import reasoning, tool_calls
from retuned.consumers.formats.messages import joined_text, object_of, objects_of
from retuned.consumers.privacy.placeholders import unnumbered
from retuned.consumers.privacy.sealing import INSTRUCTING
from retuned.retrain.scoring.invisible import INVISIBLE

_REASONING = ("reasoning_content", "reasoning")
"""Keys of reasoning in the messages of chat APIs."""
_GUILLEMETS = re.compile(r"(?<=[«‹])\s+|(?<!\s)\s++(?=[»›])")
_SPACED = re.compile(r"(?<=[\w\"'»›”)])\s+(?=[?!.…]+(?:\s*$|\s+[^\W\d_a-zß-öø-ÿ]))")
"""The space before the mark at the end of a sentence, as in French."""
_QUOTES = str.maketrans(dict.fromkeys("“”„«»‟", '"') | dict.fromkeys("‘’‚‛‹›`´", "'"))
_ENDS = ".,;:!?…。、！？؟।\"'"
_MARKS = frozenset(_ENDS + "¿¡")
_STOPS = ".,;:?…。、？"
_NON_JOINER = "\u200c"
"""The space within Persian words, which many people leave out of their questions. In answers it counts."""
_MONTH = (
    "(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    "nov(?:ember)?|dec(?:ember)?)"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
CLOCK = re.compile(
    r"\b\d{4}-\d\d-\d\d(?:[t ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:z|[+-]\d\d:?\d\d)?)?"
    r"|\b\d{1,2}(?:\.\d{1,2}\.\d{4}|/\d{1,2}/(?:\d{4}|\d\d))\b"  # 3.1.12 is a version
    r"|\b\d{1,2}:\d\d(?::\d\d)?(?:\s?[ap]m)?\b"
    r"|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b"
    rf"|\b(?:{_MONTH}\.? {_DAY}|{_DAY}\.? (?:of )?{_MONTH})\b(?:,? \d{{4}}\b)?",
    re.IGNORECASE,
)


def normalise(text: str) -> str:
    """Returns a text without features that carry no meaning: case, spacing, Unicode widths and quotes, punctuation at
    the end of words, and the numbers of placeholders (`<EMAIL_2>`), which count within one conversation.

    All other characters are kept: symbols, digits, emoji and superscripts ("C++" is not "C#", "x²" is not "x2"), and
    punctuation that stands alone (what does ; mean).
    """
    text = _SPACED.sub("", _GUILLEMETS.sub("", unnumbered(text))).translate(_QUOTES)
    if not text.isascii():
        text = "".join(char if _raised(char) else unicodedata.normalize("NFKC", char) for char in text)
        text = unicodedata.normalize("NFC", INVISIBLE.sub("", text.replace(_NON_JOINER, "")))
    words = text.casefold().split()
    return " ".join(map(_word, words)) if set().union(*words) - _MARKS else ""


def _word(word: str) -> str:
    bare = word.lstrip("¿¡\"'").rstrip(_ENDS)
    if bare[-1:].isdecimal():  # 5" and 5! differ from 5
        bare = word.lstrip("¿¡\"'").rstrip(_STOPS)
    return bare or word


def _raised(char: str) -> bool:
    return unicodedata.decomposition(char).startswith(("<super>", "<sub>"))


def text_hash(text: str) -> str:
    """Returns a stable hash of a text, 16 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fraction(text: str) -> float:
    """Returns a stable hash of a text as a number in [0, 1)."""
    return int(text_hash(text)[:13], 16) / 16**13


@dataclass(frozen=True)
class NearForm:
    """What a model read, in a form in which near questions are compared.

    Attributes:
        text: the conversation, normalised.
        scope: a hash of the system prompt, the context and the tools; empty without these.
    """

    text: str
    scope: str = ""

    def __str__(self) -> str:
        """Returns both as one text."""
        return f"{self.scope} {self.text}" if self.scope else self.text


def text_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Returns the messages with text content and without reasoning; None if one has other content, such as an image."""
    turns = []
    for turn in messages:
        text = joined_text(turn.get("content") or "")
        if text is None:
            return None
        if turn["role"] == "assistant":
            _, text = reasoning.split(text)  # models do not get the reasoning of earlier turns
            turn = {key: value for key, value in turn.items() if key not in _REASONING}
        turns.append({**turn, "content": text})
    return turns


def last_question(turns: Sequence[Mapping[str, Any]]) -> str:
    """Returns the last message of a user; empty if there is none."""
    return next((str(turn["content"]) for turn in reversed(turns) if turn["role"] == "user"), "")


def near_form(turns: Sequence[Mapping[str, Any]], context: Sequence[Any], tools: Any) -> NearForm:
    """Returns the near form of a conversation.

    It lacks case, punctuation, the order of passages, the numbers of placeholders, and dates and times in the system
    prompt, so that a question of today is near that of yesterday.

    Args:
        turns: as `text_turns` returns them.
        tools: as `tool_calls.schemas` returns them.
    """
    system = " ".join(turn["content"] for turn in turns if turn["role"] in INSTRUCTING)
    other = [(turn["role"], turn["content"]) for turn in turns if turn["role"] not in INSTRUCTING]
    given = [
        normalise(CLOCK.sub(" ", system)),
        sorted(normalise(str(passage)) for passage in context),
        unnumbered(json.dumps(tools, sort_keys=True)) if tools else "",
    ]
    # A normalised text has no line breaks, so no text can pass for several turns.
    conversation = "".join(f"\n{role} {normalise(text)}" for role, text in other).removeprefix("\nuser ")
    calls = " ".join(filter(None, map(calls_of, turns)))
    text = " ".join(filter(None, (conversation, calls)))
    return NearForm(text, text_hash(json.dumps(given)) if any(given) else "")


def calls_of(turn: Mapping[str, Any]) -> str:
    """Returns the names and arguments of a turn's tool calls; empty if it has none.

    Ids are ignored, because they differ each time, and so are the order of keys and the numbers of placeholders.
    """
    calls = objects_of(turn.get("tool_calls")) or objects_of([turn.get("function_call")])
    return " ".join(_call(object_of(call.get("function", call))) for call in calls)


def _call(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = tool_calls.parsed(arguments)
    try:
        text = json.dumps([function.get("name"), arguments], sort_keys=True, ensure_ascii=False)
    except RecursionError:
        text = str(function.get("arguments"))
    return unnumbered(tool_calls.whole(text))
