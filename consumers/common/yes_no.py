"""Asks a language model a yes-or-no question: as JSON if its server supports that, otherwise as one word."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retuned.consumers.common import reasoning
from retuned.consumers.common.chat import ChatFailed, Reply, reply
from retuned.consumers.sections import JudgeSettings

_REFUSED = frozenset({"status 400", "status 404", "status 415", "status 422", "status 501"})
_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


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
        self._instructions, self._settings, self._form = instructions, settings, 0
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
            ChatFailed: there is no verdict.
        """
        content = "\n\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in parts.items() if text)
        failed, tokens = ChatFailed("neither yes nor no in its answer"), 0
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
            if words := _WORD.findall(answer):
                self._form = max(self._form, number)
                return Verdict(_log_odds(answered, words[-1]), tokens)
        raise failed


def _log_odds(answered: Reply, word: str) -> float:
    """Returns the log-odds of yes at the token of the verdict; infinite without log-probabilities."""
    for token in reversed(answered.logprobs):
        if token.get("token", "").strip(' "').casefold() != word.casefold():
            continue
        odds = {"yes": 0.0, "no": 0.0}
        for candidate in [token, *token.get("top_logprobs", [])]:
            name = candidate.get("token", "").strip(' "').casefold()
            if name in odds:
                odds[name] = max(odds[name], math.exp(candidate["logprob"]))
        if all(odds.values()):
            return math.log(odds["yes"] / odds["no"])
    return math.inf if word.casefold() == "yes" else -math.inf
