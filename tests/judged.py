"""Answers of two workloads and what people said of them, at random."""

import random
from datetime import datetime, timedelta
from typing import Any

from traffic import store

from retuned.consumers.warehouse.connection import Warehouse

START = datetime(2026, 3, 2)
HOUR = timedelta(hours=1)
WORKLOADS = ("support", "billing")


class History:
    """Events of two workloads over some weeks, drawn at random, in the order in which they came."""

    def __init__(self, warehouse: Warehouse, seed: int) -> None:
        self.warehouse, self._luck = warehouse, random.Random(seed)
        self._number = 0
        self.now = START

    def go_on(self) -> None:
        """What comes in some hours: answers, and feedback on those of any time, also on some that come later."""
        self.now += self._luck.randrange(1, 40) * HOUR
        asked = [self._interaction(self._next()) for _ in range(self._luck.randrange(8))]
        said = [self._feedback() for _ in range(self._luck.randrange(14))]
        for table, rows in (("interactions", asked), ("feedback", said)):
            if rows:
                store(self.warehouse, table, rows)

    def _next(self) -> int:
        self._number += 1
        # One in ten has an id that was used before, and is another answer.
        return self._luck.randrange(self._number) if self._luck.random() < 0.1 else self._number

    def _interaction(self, number: int) -> dict[str, Any]:
        imported = self._luck.random() < 0.1
        return self._event(f"i{number}") | {
            "workload": WORKLOADS[number % 2],
            "model": self._luck.choice(("base", f"{WORKLOADS[number % 2]}@v1", "demonstration")),
            "conversation_id": self._luck.choice((None, f"c{number // 6}")),
            "user_id": self._luck.choice((None, "anna", "carl")),
            "messages": '[{"role": "user", "content": "?"}]',
            "response": f"answer {number}",
            "topic": "import:x" if imported else "interactions",
        }

    def _feedback(self) -> dict[str, Any]:
        said = (
            ("helpful", "true"),
            ("helpful", "false"),
            ("hallucination", "true"),
            ("correction", '"so"'),
            ("rating", "1"),
        )
        name, value = self._luck.choice(said)
        return self._event(f"f{self._luck.random()}") | {
            "interaction_id": f"i{self._luck.randrange(self._number + 4)}",  # some never come, or later
            "name": name,
            "value": value,
            "source": self._luck.choice(("user", "user", "expert")),
            "user_id": self._luck.choice((None, "anna", "ben")),
            "topic": "feedback",
        }

    def _event(self, id: str) -> dict[str, Any]:
        when = self.now - self._luck.randrange(72) * HOUR - timedelta(microseconds=self._luck.randrange(10**9))
        return {"id": id, "timestamp": when, "received_at": self.now, "partition": 0, "offset": self._luck.randrange(9)}
