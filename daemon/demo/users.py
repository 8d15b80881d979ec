"""The demo's app and its customers: they ask the gateway, and give feedback on the answers.

Feedback of customers goes to the gateway with the token of the answer; what the app itself and its experts know goes
to Kafka. Customers know the company's true policies; the daemon does not.
"""

import json
import random
import threading
import urllib.request
import uuid
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from kafka import KafkaProducer

from retuned.daemon.demo.company import Company, Fact, Questions, is_right

WORKLOAD = "support"
NIGHT_SECONDS = 8.0
THREADS = 36


class Client:
    """Client of an OpenAI-compatible server: the gateway, or the model server behind it."""

    def __init__(self, url: str, system: str) -> None:
        self.url, self.system = url, system

    def ask(self, question: str, model: str = WORKLOAD, **more: Any) -> tuple[str, str, Mapping[str, str]]:
        """Asks one question; returns the answer, the model that gave it, and the headers. `more` are further fields."""
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": question}]
        asked = {"model": model, "messages": messages, "max_tokens": 24, "temperature": 0} | more
        answer, headers = self.post("/v1/chat/completions", asked)
        return answer["choices"][0]["message"]["content"], answer["model"], headers

    def post(self, path: str, body: dict[str, Any]) -> tuple[Any, Mapping[str, str]]:
        """Sends JSON; returns the answer and its headers.

        Raises:
            OSError: the server does not answer.
        """
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as response:
            return json.load(response), response.headers


def right_answers(server: Client, model: str, facts: list[Fact], questions: Questions) -> dict[str, bool]:
    """Asks a model all questions; returns whether each answer is right by the facts."""
    asked = [(fact, question) for fact in facts for question in questions[fact.id]]
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda pair: server.ask(pair[1], model)[0], asked)
        return {question: is_right(fact, text) for (fact, question), text in zip(asked, answers, strict=True)}


class Users:
    """Threads that ask; the seed decides each question."""

    def __init__(
        self, company: Company, questions: Questions, gateway: Client, bootstrap_servers: str, seed: int
    ) -> None:
        self.company, self.questions, self.gateway = company, questions, gateway
        self.counts: Counter[str] = Counter()
        """Events by topic, and the corrections and e-mail addresses among them."""
        self.served: Counter[str] = Counter()
        """Answers by model."""
        self.night = False
        """Whether few customers are awake: while two cores train, they can serve few."""
        self._recent: deque[bool] = deque(maxlen=60)
        self._changed = False
        self._random = random.Random(seed)
        self._news = {fact.id for fact in (*company.change.facts, *company.change.new)}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._producer = KafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", linger_ms=20)
        self._threads = [threading.Thread(target=self._live, args=[number], daemon=True) for number in range(THREADS)]

    @property
    def sent(self) -> dict[str, int]:
        """Events by topic."""
        return {topic: self.counts[topic] for topic in ("interactions", "feedback")}

    def summary(self) -> str:
        """Describes what customers have done so far."""
        right = f", {sum(self._recent) / len(self._recent):.0%} of the latest answers right" if self._recent else ""
        return f"{self.counts['interactions']} questions, {self.counts['corrections']} corrections{right}"

    def start(self) -> None:
        """Customers begin to ask."""
        for thread in self._threads:
            thread.start()

    def change_policies(self) -> None:
        """From now on the new policies are true, and customers ask about what changed."""
        with self._lock:
            self._changed = True
            self._recent.clear()

    def stop(self) -> None:
        """Ends the threads; returns once the broker has what they sent. Safe to repeat."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=60)
        self._producer.flush(timeout=30)
        self._producer.close()

    def _live(self, number: int) -> None:
        while not self._stop.is_set():
            if self.night and self._stop.wait(NIGHT_SECONDS if number == 0 else 0.2):
                break
            if self.night and number:
                continue
            with self._lock:
                fact, question = self._draw()
                luck = random.Random(self._random.random())
            try:
                self._ask(fact, question, luck)
            except OSError:  # a customer who gets no answer asks again later
                self._stop.wait(1.0)

    def _draw(self) -> tuple[Fact, str]:
        """Returns the next question. After the change, what is new is asked about twice as often as the rest."""
        facts = self.company.facts(self._changed)
        weights = [1 + (self._changed and fact.id in self._news) for fact in facts]
        (fact,) = self._random.choices(facts, weights)
        return fact, self._random.choice(self.questions[fact.id])

    def _ask(self, fact: Fact, question: str, luck: random.Random) -> None:
        user, conversation = f"customer-{luck.randrange(400)}", f"conversation-{luck.getrandbits(64):016x}"
        metadata = {"conversation_id": conversation, "channel": luck.choice(["web", "app"])}
        text, model, headers = self.gateway.ask(question, user=user, metadata=metadata)
        token, interaction = headers["X-Retuned-Feedback-Token"], headers["X-Retuned-Interaction"]
        right = is_right(fact, text)
        self._recent.append(right)
        self.served[model] += 1
        self.counts["interactions"] += 1
        for name, value, source in self._opinion(fact, right, luck):
            if source == "user":
                self.gateway.post("/v1/feedback", {"token": token, "name": name, "value": value})
            else:
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
            self.counts["feedback"] += 1
            self.counts["corrections"] += name == "correction"

    def _opinion(self, fact: Fact, right: bool, luck: random.Random) -> list[tuple[str, Any, str]]:
        """Returns the feedback on one answer: name, value, source."""
        habits, found = self.company.users, list[tuple[str, Any, str]]()
        if luck.random() < habits.rates:
            rated = right != (luck.random() < habits.mistaken)
            found += [("helpful", rated, "user"), ("hallucination", not rated, "user")]
        if right:
            return [*found, ("time_saved_seconds", round(luck.uniform(*habits.seconds_saved)), "app")]
        if luck.random() < habits.corrects:
            found.append(("correction", fact.answer, "expert" if luck.random() < 0.3 else "user"))
        if luck.random() < habits.escalates:
            comment = f"That was wrong. Please write to customer{luck.randrange(10_000)}@example.org."
            found += [("escalated", True, "app"), ("comment", comment, "user")]
            self.counts["addresses"] += 1
        return found
