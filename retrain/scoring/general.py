"""General prompts with checkable answers, which ship with the package.

They cover arithmetic, common knowledge, instructions, formats, reading, translation and keeping secrets, in several
languages. They are no benchmark of models: they show which abilities of the base model a training has removed.
"""

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """A general prompt.

    Attributes:
        kind: arithmetic, knowledge, format, json, translation, reading, classification, secrecy or instruction.
        language: the language of the prompt (ISO 639-1).
        messages: the conversation, as chat messages.
        check: the check of an answer, one of: `contains`, words of which it must contain one; `matches`, a regular
            expression that it must match completely; `json`, the object that it must be; `never`, words that it must
            not contain.
    """

    id: str
    kind: str
    language: str
    messages: list[dict[str, str]]
    check: dict[str, Any]

    def as_row(self) -> dict[str, Any]:
        """Returns the prompt as a row of a dataset. The completion is a right answer, if the check names one."""
        expected = self.check.get("contains", [""])[0]
        return {
            "row_id": self.id,
            "messages": json.dumps(self.messages),
            "completion": json.dumps(self.check["json"]) if "json" in self.check else expected,
            "context": None,
            "topic": self.kind,
        }


def prompts() -> list[Prompt]:
    """Returns all general prompts."""
    text = (files("retuned.retrain.data") / "general.jsonl").read_text(encoding="utf-8")
    return [Prompt(**json.loads(line)) for line in text.splitlines()]


def is_right(prompt: Prompt, answer: str) -> bool:
    """Returns whether an answer passes the prompt's check. An empty one never does."""
    answer = answer.strip()
    if not answer:
        return False
    ((kind, expected),) = prompt.check.items()
    if kind == "contains":
        return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in expected)
    if kind == "matches":
        return re.fullmatch(expected, answer, re.IGNORECASE) is not None
    if kind == "never":
        return not any(word in answer.casefold() for word in expected)
    try:
        return bool(json.loads(answer) == expected)
    except ValueError:
        return False
