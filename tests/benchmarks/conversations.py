"""Conversations of apps through a gateway, each with an eye on the versions that answer it."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import httpx

from fixtures.daemon.gateways import Gateway
from retuned.consumers.warehouse.connection import utc_now

AT_ONCE = 16
GOES_ON, TAKEN_BACK = "promote", "rollback"
ALLOWED = {GOES_ON: r"A*B*", TAKEN_BACK: r"A*B*A*"}
"""What may answer a conversation while version B is released in the place of A: it changes sides at a step, and at no
other time; the base model (0) never answers."""


@dataclass
class Conversations:
    """Conversations with a workload, each of which goes on as long as a release takes.

    Attributes:
        answered: ids of interactions.
        failed: requests that were not answered.
        mixed: conversations in which versions changed as they must not.
        first_asked: when the first request was sent that a version answered in this release, naive UTC.
        active: whether anybody asks.
    """

    gateway: Gateway
    workload: str
    tokens: int = 1
    answered: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    first_asked: dict[str, datetime] = field(default_factory=dict)
    active: bool = False
    _turns: dict[str, list[str]] = field(default_factory=dict)
    _number: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._client = httpx.Client(timeout=120, limits=httpx.Limits(max_connections=None))

    def begin(self) -> None:
        """New ones, for the next release."""
        with self._lock:
            self._number += 1
            self._turns = {f"release {self._number}, conversation {number}": [] for number in range(AT_ONCE)}
            self.first_asked = {}

    def end(self, candidate: str, kind: str) -> None:
        """A release has ended: look at what answered."""
        with self._lock:
            for conversation, models in self._turns.items():
                sides = "".join("B" if one == candidate else "0" if one.endswith("@base") else "A" for one in models)
                if not re.fullmatch(ALLOWED[kind], sides):
                    self.mixed.append(f"{conversation}: {sides}")
            self._turns = {}

    @contextmanager
    def going_on(self, clients: int) -> Iterator[None]:
        """While so many clients ask, each one thing after the other."""
        threads = [threading.Thread(target=self._talk, args=(number, clients)) for number in range(clients)]
        for thread in threads:
            thread.start()
        self.active = True
        try:
            yield
        finally:
            self.active = False
            self._stop.set()
            for thread in threads:
                thread.join()

    def _talk(self, number: int, of: int) -> None:
        while not self._stop.is_set():
            for conversation in list(self._turns)[number::of]:
                self.ask(conversation)
                if self._stop.wait(0.1):
                    return
            self._stop.wait(0.1)

    def ask(self, conversation: str) -> str | None:
        """Say something in a conversation; the model that answered."""
        body = {"model": self.workload, "prompt": "how long do i have to return an order", "max_tokens": self.tokens}
        headers, asked = {"X-Retuned-Conversation": conversation}, utc_now()
        try:
            answer = self._client.post(f"{self.gateway.url}/v1/completions", json=body, headers=headers)
        except httpx.HTTPError as error:
            self.failed.append(repr(error))
            return None
        if answer.status_code != 200:
            self.failed.append(f"{answer.status_code}: {answer.text}")
            return None
        model = answer.headers["X-Retuned-Model"]
        with self._lock:
            self.answered.append(answer.headers["X-Retuned-Interaction"])
            if conversation in self._turns:
                self._turns[conversation].append(model)
                self.first_asked[model] = min(asked, self.first_asked.get(model, asked))
        return model

    def all_with(self, model: str) -> bool:
        """Whether it gave the last answer of each."""
        with self._lock:
            return all(model in models[-1:] for models in self._turns.values())
