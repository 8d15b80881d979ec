"""People who teach: interactions and feedback put straight into a warehouse."""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import duckdb
from traffic import store

from retuned.consumers.warehouse.connection import Warehouse

START = datetime(2026, 3, 2, 9, 0, 0)


class _Unwritten:
    """Rows that are written, together, before the warehouse is next used: each transaction takes milliseconds."""

    @classmethod
    def of(cls, warehouse: Warehouse) -> "_Unwritten":
        """Those of all who teach in it."""
        found: object = warehouse.cursor.__self__
        return found if isinstance(found, cls) else cls(warehouse)

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse, self._cursor, self._close = warehouse, warehouse.cursor, warehouse.close
        self._rows = defaultdict[str, list[dict[str, Any]]](list)
        self._writing = threading.RLock()
        warehouse.cursor, warehouse.close = self._cursor_after, self._close_after  # type: ignore[method-assign]

    def add(self, table: str, row: dict[str, Any]) -> None:
        self._rows[table].append(row)

    def _write(self) -> None:
        with self._writing:
            rows = dict(self._rows)
            self._rows.clear()
            for table, taught in rows.items():
                store(self._warehouse, table, taught)

    def _cursor_after(self) -> duckdb.DuckDBPyConnection:
        self._write()
        return self._cursor()

    def _close_after(self) -> None:
        self._write()
        self._close()


class Teacher:
    """Asks, is answered, corrects and accepts; each act a minute after the last."""

    def __init__(self, warehouse: Warehouse, workload: str = "support") -> None:
        self.warehouse, self.workload, self.acts = warehouse, workload, 0
        self._unwritten = _Unwritten.of(warehouse)

    @property
    def now(self) -> datetime:
        return START + self.acts * timedelta(minutes=1)

    def _store(self, table: str, **row: Any) -> None:
        self._unwritten.add(table, row)

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
    for question, right in questions(goods, openings):
        teacher.correct(question, wrong, right)
