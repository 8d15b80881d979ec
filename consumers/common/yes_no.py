"""Asks a language model a yes-or-no question: as JSON if its server supports that, otherwise as one word."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retuned.consumers.common import reasoning
from retuned.consumers.common.chat import ChatFailed, Reply, reply
from retuned.consumers.sections import JudgeSettings

_REFUSED = frozenset({"status 400", "status 404", "status 415", "status 422", "status 501"})
_FENCE = re.compile(r"```\w*\n(.*?)\n?```", re.DOTALL)
_WORD = re.compile(r"(?<![^\W_])(?:yes|no)(?![^\W_])", re.IGNORECASE)
_ALONE = re.compile(
    r"^[\W_]*(yes|no)(?![^\W_]|\s*[-–'’]?[^\W_])|(?<![^\W_])(yes|no)[\W_]*$", re.IGNORECASE | re.MULTILINE
)
"""The word at the start of a line and not part of a sentence, as in "No difference", or at the end of a line."""


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict.

    Attributes:
        odds: the log-odds of yes against no; infinite if the server gives no log-probabilities.
        tokens: the tokens used.
    """

    odds: float
    tokens: int


class YesNo:
    """A yes-or-no question, asked in the first form that the server accepts.

    Args:
        name: the key of the answer in JSON.
        instructions: the question; how to answer is added.
    """

    def __init__(self, name: str, instructions: str, settings: JudgeSettings) -> None:
        self._name, self._instructions, self._settings, self._form = name, instructions, settings, 0
        schema = {
            "type": "object",
            "properties": {name: {"type": "string", "enum": ["yes", "no"]}},
            "required": [name],
            "additionalProperties": False,
        }
        as_json = {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}
        in_json = f'Answer with a JSON object: {{"{name}": "yes"}} or {{"{name}": "no"}}.'
        in_a_word, probabilities = "Answer with one word: Yes or No.", {"logprobs": True, "top_logprobs": 10}
        self._forms: tuple[tuple[str, dict[str, Any]], ...] = (
            (in_json, {"response_format": as_json, **probabilities}),
            (in_a_word, probabilities),
            (in_a_word, {}),
        )

    def ask(self, parts: Mapping[str, str]) -> Verdict:
        """Asks about texts, each shown under its name except empty ones. Thread-safe.

        Raises:
            ChatFailed: there is no verdict, or the reply contains both words.
        """
        content = "\n\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in parts.items() if text)
        failed, tokens = ChatFailed("no clear yes or no in its answer"), 0
        for number in range(self._form, len(self._forms)):
            form, more = self._forms[number]
            system = {"role": "system", "content": f"{self._instructions} {form}"}
            try:
                answered = reply([system, {"role": "user", "content": content}], self._settings, **more)
            except ChatFailed as error:
                if str(error) not in _REFUSED:
                    raise
                failed = error
                continue
            tokens += answered.tokens
            _, answer = reasoning.split(answered.text)
            if found := self._found(answer):
                self._form = max(self._form, number)
                word, start = found
                return Verdict(_log_odds(answered, word, answer[start:]), tokens)
            failed = ChatFailed("no clear yes or no in its answer")
        raise failed

    def _found(self, answer: str) -> tuple[str, int] | None:
        """Returns the verdict and its place in an answer: the field of the JSON object, or else the only one of the
        two words, which stands alone on its line or at an end of it; None if there is no such verdict."""
        fenced = _FENCE.fullmatch(answer)
        try:
            read = json.loads(fenced[1] if fenced else answer)
        except ValueError:
            read = None
        if isinstance(read, dict):
            word = str(read.get(self._name)).casefold()
            if word not in ("yes", "no"):
                return None
            field = re.search(rf'"{self._name}"\s*:\s*"(?={word}")', answer, re.IGNORECASE)
            return word, field.end() if field else len(answer)
        alone = list(_ALONE.finditer(answer))
        if not alone or len({word.casefold() for word in _WORD.findall(answer)}) > 1:
            return None
        group = alone[-1].lastindex or 0
        return alone[-1][group].casefold(), alone[-1].start(group)


def _log_odds(answered: Reply, word: str, rest: str) -> float:
    """Returns the log-odds of yes at the token of the verdict; infinite without log-probabilities.

    Args:
        rest: the reply from the word on.
    """
    certain = math.inf if word == "yes" else -math.inf
    texts = [str(token.get("token", "")).lower() for token in answered.logprobs]
    place = "".join(texts).rfind(rest.lower())
    for token, text in zip(answered.logprobs, texts, strict=True):
        if not 0 <= place < len(text):
            place -= len(text)
            continue
        if _bare(text) != word:
            return certain
        odds = {"yes": 0.0, "no": 0.0}
        for candidate in [token, *(token.get("top_logprobs") or [])]:
            name = _bare(candidate.get("token", ""))
            if name in odds:
                odds[name] = max(odds[name], math.exp(candidate["logprob"]))
        return math.log(odds["yes"] / odds["no"]) if all(odds.values()) else certain
    return certain


def _bare(token: str) -> str:
    """Returns a token's letters and digits, in lower case."""
    return re.sub(r"[\W_]", "", token).lower()
