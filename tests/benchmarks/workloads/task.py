"""What a workload of the benchmark is: questions that production was asked, what is right, and an exam."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A question with the answer that is right.

    Attributes:
        group: its class, field or language: the worst one is a figure.
        tools: schemas of the tools that the model may call.
        truth: what `Task.right` compares with, where that is not the answer itself.
    """

    messages: list[Message]
    answer: str
    group: str
    tools: list[dict[str, Any]] | None = None
    truth: Any = None


@dataclass(frozen=True)
class Task:
    """A workload.

    Attributes:
        asked: what production was asked: the loop learns from these and holds out a part.
        exam: questions that nothing but the exam reads.
        wrong: what production answers where it is wrong.
        right: how right an answer is, 0 to 1. It shares no code with the scores of the program.
        graded: what the metric is documented to give, written a second time; None: `right`.
        settings: sections of the configuration that differ from the default.
        judge: what a double of a judge says of what it is shown; None: there is none.
        max_new_tokens: of an answer in the exam.
    """

    name: str
    asked: list[Item]
    exam: list[Item]
    wrong: Callable[[Item, random.Random], str]
    right: Callable[[str, Item], float]
    graded: Callable[[str, Item], float] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    judge: Callable[[str], str] | None = None
    max_new_tokens: int = 64


class Skipped(Exception):
    """The data of a workload are not here; the message says where they come from."""


def data(name: str, source: str) -> Path:
    """A folder or file of the data that RETUNED_DATA names.

    Raises:
        Skipped: it is not there.
    """
    place = Path(os.environ.get("RETUNED_DATA", "")) / name
    if not os.environ.get("RETUNED_DATA") or not place.exists():
        raise Skipped(f"RETUNED_DATA names no folder with {name}; it comes from {source}")
    return place


def said(text: str, system: str | None = None) -> list[Message]:
    """A conversation of one question."""
    found = [{"role": "user", "content": text}]
    return [{"role": "system", "content": system}, *found] if system else found


def exact(answer: str, item: Item) -> float:
    """1 where the answer is the right text."""
    return float(answer.strip() == item.answer)
