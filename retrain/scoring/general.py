"""What a model can do beside its workload: short prompts with answers that can be checked, which ship with the package.

Arithmetic, common knowledge, instructions, formats, reading, translation, and secrets that must not be told, in several
languages. They are no benchmark of a model's worth: they show what a training took away from its base model.
"""

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One of them.

    Attributes:
        kind: arithmetic, knowledge, format, json, translation, reading, classification, secrecy or instruction.
        language: of the prompt (ISO 639-1).
        messages: the conversation, as chat messages.
        check: how an answer is checked, one of: `contains`, words of which one must stand in it; `matches`, a regular
            expression for all of it; `json`, the object that it must be; `never`, what must not stand in it.
    """

    id: str
    kind: str
    language: str
    messages: list[dict[str, str]]
    check: dict[str, Any]

    def as_row(self) -> dict[str, Any]:
        """As a row of a dataset; one right answer is its completion, where the check names one."""
        expected = self.check.get("contains", [""])[0]
        return {
            "row_id": self.id,
            "messages": json.dumps(self.messages),
            "completion": json.dumps(self.check["json"]) if "json" in self.check else expected,
            "context": None,
            "topic": self.kind,
        }


def prompts() -> list[Prompt]:
    """All of them, in their order."""
    text = (files("retuned.retrain.data") / "general.jsonl").read_text(encoding="utf-8")
    return [Prompt(**json.loads(line)) for line in text.splitlines()]


def is_right(prompt: Prompt, answer: str) -> bool:
    """Whether an answer passes the prompt's check; an empty one never does."""
    answer = answer.strip()
    if not answer:
        return False
    ((how, expected),) = prompt.check.items()
    if how == "contains":
        return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in expected)
    if how == "matches":
        return re.fullmatch(expected, answer, re.IGNORECASE) is not None
    if how == "never":
        return not any(word in answer.casefold() for word in expected)
    try:
        return bool(json.loads(answer) == expected)
    except ValueError:
        return False
