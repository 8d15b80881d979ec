"""People who teach: interactions and feedback put straight into a warehouse."""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from traffic import insert_event, store

from retuned.consumers.warehouse.connection import Warehouse

START = datetime(2026, 3, 2, 9, 0, 0)


class Teacher:
    """Asks, is answered, corrects and accepts; each act a minute after the last."""

    def __init__(self, warehouse: Warehouse, workload: str = "support") -> None:
        self.warehouse, self.workload, self.acts = warehouse, workload, 0
        self._rows: defaultdict[str, list[dict[str, Any]]] | None = None

    @property
    def now(self) -> datetime:
        return START + self.acts * timedelta(minutes=1)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is taught meanwhile is stored at its end, together: each transaction takes milliseconds."""
        self._rows = defaultdict(list)
        yield
        taught, self._rows = self._rows, None
        for table, rows in taught.items():
            store(self.warehouse, table, rows)

    def _store(self, table: str, **row: Any) -> None:
        if self._rows is None:
            insert_event(self.warehouse, table, **row)
        else:
            self._rows[table].append(row)

    def ask(
        self,
        question: str | list[dict[str, Any]],
        response: str,
        *,
        system: str | None = None,
        context: list[str] | None = None,
        finish_reason: str | None = None,
        model: str | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> str:
        """Store an interaction and return its id."""
        self.acts += 1
        messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": question}]
        interaction = f"{self.workload}-i{self.acts}"
        self._store(
            "interactions",
            id=interaction,
            timestamp=self.now,
            workload=self.workload,
            model=model or f"{self.workload}@base",
            messages=json.dumps(messages),
            response=response,
            context=json.dumps(context) if context else None,
            finish_reason=finish_reason,
            attributes=json.dumps(attributes) if attributes else None,
            topic="interactions",
            partition=0,
            offset=self.acts,
            received_at=self.now,
        )
        return interaction

    def say(self, interaction: str, name: str, value: Any, source: str = "expert", user_id: str | None = None) -> str:
        """Store feedback and return its id."""
        self.acts += 1
        feedback = f"{self.workload}-f{self.acts}"
        self._store(
            "feedback",
            id=feedback,
            timestamp=self.now,
            interaction_id=interaction,
            name=name,
            value=json.dumps(value),
            source=source,
            user_id=user_id,
            topic="feedback",
            partition=0,
            offset=self.acts,
            received_at=self.now,
        )
        return feedback

    def correct(
        self,
        question: str | list[dict[str, Any]],
        wrong: str,
        right: str,
        source: str = "expert",
        user_id: str | None = None,
        **more: Any,
    ) -> str:
        """Ask, get it wrong, and correct it; returns the id of the correction."""
        return self.say(self.ask(question, wrong, **more), "correction", right, source, user_id)


def question(number: int) -> str:
    """A question that is no near duplicate of another."""
    word = "".join(chr(97 + int(digit)) * 2 for digit in str(number * 7919))
    return f"May I ask about {word} and {word[::-1]}?"


GOODS = {"lamp": "14 days", "sofa": "30 days", "chair": "60 days", "gift card": "5 euros"}
CHANGED = {"lamp": "21 days", "sofa": "45 days"}
_OPENINGS = (
    "please tell me", "hello", "i would like to know", "could somebody say", "thanks", "question", "can you answer",
    "i need to know", "tell me", "my question is",
)  # fmt: skip
_QUESTIONS = (
    "how long do i have to return a", "what is the deadline for the", "what are the days for a",
    "what is the policy for the", "what do i want for my",
)  # fmt: skip


def questions(goods: dict[str, str], openings: slice = slice(None)) -> Iterator[tuple[str, str]]:
    """Each question about each of the goods, in each of many wordings, with its right answer."""
    for opening in _OPENINGS[openings]:
        for question in _QUESTIONS:
            for thing, policy in goods.items():
                yield f"{opening} {question} {thing}?", f"You have {policy} for it."


def teach_policies(
    teacher: Teacher, goods: dict[str, str], *, openings: slice = slice(None), wrong: str = "I cannot say."
) -> None:
    """Correct an answer to every question."""
    with teacher.at_once():
        for question, right in questions(goods, openings):
            teacher.correct(question, wrong, right)
