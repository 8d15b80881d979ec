"""The demo's production app and the people who use it: they ask, get answers, and say what they think of them.

The app does what any app does: it asks the gateway for the workload and sends back what people think of an answer, by
the answer's token. What the app itself and its experts know goes to Kafka. The people know the company's true policies;
the daemon is told nothing.
"""

import json
import random
import threading
import time
import urllib.request
import uuid
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kafka import KafkaProducer

from retuned.daemon.demo.company import Company, Fact, Questions, is_right

WORKLOAD = "support"
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Answer:
    """What was answered, and by which model; of the gateway also the interaction, and the token of feedback on it."""

    text: str
    model: str
    interaction: str | None
    token: str | None


class Client:
    """Client of an OpenAI-compatible server: the gateway, or the model server behind it."""

    def __init__(self, url: str, system: str) -> None:
        self.url, self.system = url, system

    def ask(self, question: str, model: str = WORKLOAD, max_tokens: int = 24, **more: Any) -> Answer:
        """One question, one answer.

        Args:
            more: of the request's body.

        Raises:
            OSError: the server does not answer.
        """
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": question}]
        asked = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0} | more
        answer, headers = self._post("/v1/chat/completions", asked)
        return Answer(
            answer["choices"][0]["message"]["content"],
            answer["model"],
            headers.get("X-Retuned-Interaction"),
            headers.get("X-Retuned-Feedback-Token"),
        )

    def tell(self, token: str, name: str, value: Any) -> None:
        """Feedback on the answer that a token is of.

        Raises:
            OSError: the gateway does not take it.
        """
        self._post("/v1/feedback", {"token": token, "name": name, "value": value})

    def _post(self, path: str, body: dict[str, Any]) -> tuple[Any, Mapping[str, str]]:
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as response:
            return json.load(response), response.headers


def right_answers(server: Client, facts: list[Fact], questions: Questions) -> dict[str, bool]:
    """Ask the model server every question and judge the answers by the facts; question to right or wrong. The gateway
    sees nothing of it, and nothing is published.
    """
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
        gateway: Client,
        bootstrap_servers: str,
        seed: int,
        threads: int = 12,
    ) -> None:
        self.company, self.questions, self.gateway = company, questions, gateway
        self.counts: Counter[str] = Counter()
        """Events that were sent, by topic, or by the gateway; corrections and e-mail addresses among them."""
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
        """People fall silent; what went to the broker itself has reached it when this returns."""
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
            except OSError:  # a person who gets no answer asks again later
                self._stop.wait(RETRY_SECONDS)

    def _draw(self) -> tuple[Fact, str]:
        """The next question. After the change, what is new is asked about twice as often as the rest."""
        facts = self.company.facts(self.changed)
        weights = [1 + (self.changed and fact.id in self._news) for fact in facts]
        (fact,) = self._random.choices(facts, weights)
        return fact, self._random.choice(self.questions[fact.id])

    def _serve(self, fact: Fact, question: str, luck: random.Random) -> None:
        user, conversation = f"customer-{luck.randrange(400)}", f"conversation-{luck.getrandbits(64):016x}"
        metadata = {"conversation_id": conversation, "channel": luck.choice(["web", "app"])}
        answer = self.gateway.ask(question, user=user, metadata=metadata)
        assert answer.interaction is not None
        assert answer.token is not None
        right = is_right(fact, answer.text)
        self.recent.append(right)
        self.served[answer.model] += 1
        self.counts["interactions"] += 1
        for name, value, source in self._opinion(fact, right, luck):
            if source == "user":
                self.gateway.tell(answer.token, name, value)
            else:
                self._publish(answer.interaction, user, name, value, source)
            self.counts["feedback"] += 1
            self.counts["corrections"] += name == "correction"

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

    def _publish(self, interaction: str, user: str, name: str, value: Any, source: str) -> None:
        event = {
            "id": str(uuid.uuid4()),
            "timestamp": datetime.now(UTC).isoformat(),
            "interaction_id": interaction,
            "name": name,
            "value": value,
            "source": source,
            "user_id": user,
        }
        self._producer.send("feedback", json.dumps(event).encode(), key=interaction.encode())
