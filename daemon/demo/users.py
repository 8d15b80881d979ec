"""The demo's production app and the people who use it: they ask, get answers, and say what they think of them.

The app does what any app does: it asks the model server, and publishes the interaction and the feedback to Kafka.
The people know the company's true policies; the daemon is told nothing.
"""

import json
import random
import threading
import time
import urllib.request
import uuid
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kafka import KafkaProducer

from retuned.daemon.demo.company import Company, Fact, Questions, is_right

WORKLOAD = "support"


@dataclass(frozen=True)
class Answer:
    """What the model server said."""

    text: str
    model: str
    seconds: float
    input_tokens: int
    output_tokens: int


class ModelServer:
    """Client of the OpenAI-compatible server."""

    def __init__(self, url: str, system: str) -> None:
        self.url, self.system = url, system

    def messages(self, question: str) -> list[dict[str, str]]:
        """The conversation as the app sends it."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": question}]

    def ask(self, question: str, max_tokens: int = 24) -> Answer:
        """One question, one answer.

        Raises:
            OSError: the server does not answer.
        """
        body = {"model": WORKLOAD, "messages": self.messages(question), "max_tokens": max_tokens, "temperature": 0}
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        began = time.perf_counter()
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as response:
            answer = json.load(response)
        usage = answer["usage"]
        return Answer(
            answer["choices"][0]["message"]["content"],
            answer["model"],
            time.perf_counter() - began,
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )


def right_answers(server: ModelServer, facts: list[Fact], questions: Questions) -> dict[str, bool]:
    """Ask every question and judge the answers by the facts; question to right or wrong. Nothing of it is published."""
    asked = [(fact, question) for fact in facts for question in questions[fact.id]]
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda pair: server.ask(pair[1]).text, asked)
        return {question: is_right(fact, text) for (fact, question), text in zip(asked, answers, strict=True)}


class Users:
    """Threads that ask, each question decided by the seed, at a pace that the demo sets."""

    def __init__(
        self,
        company: Company,
        questions: Questions,
        server: ModelServer,
        bootstrap_servers: str,
        seed: int,
        threads: int = 12,
    ) -> None:
        self.company, self.questions, self.server = company, questions, server
        self.counts: Counter[str] = Counter()
        """Events sent, by topic, and e-mail addresses that stood in them."""
        self.served: Counter[str] = Counter()
        """Answers given, by the model that gave them."""
        self.recent: deque[bool] = deque(maxlen=60)
        """Whether the latest answers were right, by what the people know."""
        self.pause_seconds = 0.0
        """Between two questions, over all people."""
        self.changed = False
        self._random = random.Random(seed)
        self._news = {fact.id for fact in company.change.facts} | {fact.id for fact in company.change.new}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._next_at = 0.0
        self._producer = KafkaProducer(
            bootstrap_servers=bootstrap_servers,
            acks="all",
            linger_ms=20,
        )
        self._threads = [threading.Thread(target=self._live, name=f"user-{n}", daemon=True) for n in range(threads)]
        self.error: Exception | None = None

    def start(self) -> None:
        """People begin to ask."""
        for thread in self._threads:
            thread.start()

    def change_policies(self) -> None:
        """From now on the company's new policies are the truth, and people ask about what changed."""
        with self._lock:
            self.changed = True
            self.recent.clear()

    def stop(self) -> None:
        """People fall silent; everything they said has reached the broker when this returns."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)
        self._producer.flush(timeout=30)
        self._producer.close()

    # Inside

    def _live(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                wait = self._next_at - time.monotonic()
                if wait <= 0:
                    self._next_at = time.monotonic() + self.pause_seconds
                    fact, question = self._draw()
                    luck = random.Random(self._random.random())
            if wait > 0:
                self._stop.wait(min(wait, 0.2))
                continue
            try:
                self._serve(fact, question, luck)
            except OSError as error:
                if not self._stop.is_set():
                    self.error = error
                    return

    def _draw(self) -> tuple[Fact, str]:
        """The next question. After the change, what is new is asked about twice as often as the rest."""
        facts = self.company.facts(self.changed)
        weights = [1 + (self.changed and fact.id in self._news) for fact in facts]
        (fact,) = self._random.choices(facts, weights)
        return fact, self._random.choice(self.questions[fact.id])

    def _serve(self, fact: Fact, question: str, luck: random.Random) -> None:
        answer = self.server.ask(question)
        interaction, user = str(uuid.uuid4()), f"customer-{luck.randrange(400)}"
        right = is_right(fact, answer.text)
        self.recent.append(right)
        self.served[answer.model] += 1
        self._publish(
            "interactions",
            user,
            id=interaction,
            workload=WORKLOAD,
            model=answer.model,
            messages=self.server.messages(question),
            response=answer.text,
            conversation_id=interaction,
            user_id=user,
            latency_seconds=round(answer.seconds, 4),
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            finish_reason="stop",
            attributes={"channel": luck.choice(["web", "app"])},
        )
        for name, value, source in self._opinion(fact, right, luck):
            self._publish(
                "feedback",
                user,
                id=str(uuid.uuid4()),
                interaction_id=interaction,
                name=name,
                value=value,
                source=source,
                user_id=user,
            )

    def _opinion(self, fact: Fact, right: bool, luck: random.Random) -> list[tuple[str, Any, str]]:
        """Feedback on one answer: (name, value, source)."""
        habits = self.company.users
        said: list[tuple[str, Any, str]] = []
        if luck.random() < habits.rates:
            rated = right != (luck.random() < habits.mistaken)
            said += [("helpful", rated, "user"), ("hallucination", not rated, "user")]
        if right:
            said.append(("time_saved_seconds", round(luck.uniform(*habits.seconds_saved)), "app"))
            return said
        if luck.random() < habits.corrects:
            said.append(("correction", fact.answer, "expert" if luck.random() < 0.3 else "user"))
        if luck.random() < habits.escalates:
            said.append(("escalated", True, "app"))
            address = f"customer{luck.randrange(10_000)}@example.org"
            said.append(("comment", f"That was wrong. Please write to {address}.", "user"))
            self.counts["addresses"] += 1
        return said

    def _publish(self, topic: str, key: str, **event: Any) -> None:
        event["timestamp"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._producer.send(topic, json.dumps(event).encode(), key=key.encode())
        self.counts[topic] += 1
