"""After the demo's change of policy: the wrong answers that customers get with weights alone, with the memory alone,
with both and with neither.

    make demo
    python tests/benchmarks/run.py memory.demo

The versions are the two that `make demo` has left behind (RETUNED_DEMO: another folder): one has learned the policies
of before, the other was trained after the change. `REQUESTS` questions follow the change, drawn, rated and corrected
as in the demo. Half-way the second version comes into service, where weights are retrained. The memory follows what is
stored after each `BATCH` of questions, with its default settings: a tenth of the conversations is held out, and only
the same question is helped, as the demo has too few questions to bound errors on related ones. An entry retires if the
second version gives its answer without help. Answers are greedy.

- `memory_wrong_answers_share_…`: the share of wrong answers among all of these, by arm; `…_before` and `…_after`: in
  each half; `memory_answer`, `both_answer`: with the mode `answer`.
- `memory_exam_wrong_share_…`: at the end, on wordings that nobody ever asked or corrected.
- `memory_retired_share`: of the entries at half-way, those that the second version had learned.
"""

import json
import os
import random
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fixtures.feedback.teaching import Teacher
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.demo.company import Company, Fact, is_right, load, split_questions
from retuned.daemon.demo.server import Chat, Models
from retuned.retrain.memory import entries
from retuned.retrain.memory.feed import Reading
from retuned.retrain.memory.lookup import look_up
from retuned.retrain.settings import Settings

BUILD = Path(__file__).parents[2] / "build"
FIRST, SECOND = "first", "second"
REQUESTS, BATCH, CUSTOMERS = 720, 20, 400
QUIET = timedelta(days=5)
"""Accounts are older than that at the change, so their corrections count."""


@dataclass(frozen=True)
class Arm:
    """What follows the corrections."""

    name: str
    retrains: bool
    mode: str


ARMS = (
    Arm("neither", False, "off"),
    Arm("weights", True, "off"),
    Arm("memory", False, "context"),
    Arm("memory_answer", False, "answer"),
    Arm("both", True, "context"),
    Arm("both_answer", True, "answer"),
)


class Answers:
    """Greedy answers of the versions of a demo, remembered."""

    def __init__(self, demo: Path) -> None:
        result = json.loads((demo / "result.json").read_text(encoding="utf-8"))
        self.seed: int = result["seed"]
        promoted = [one for one in result["workload"]["promotions"] if one["event"] == "promoted"]
        promoted.sort(key=lambda one: str(one["created_at"]))
        self._models, self._known = Models(BUILD / "smollm2-135m-instruct"), dict[tuple[str, str], str]()
        for name, one in zip((FIRST, SECOND), promoted, strict=True):
            self._models.load(name, str(demo / "data" / "models" / "support" / one["version"]))

    def of(self, model: str, chats: list[list[dict[str, str]]]) -> list[str]:
        keys = [(model, json.dumps(messages)) for messages in chats]
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        for start in range(0, len(new), BATCH):
            asked = new[start : start + BATCH]
            found = self._models.answers(model, [Chat(model, json.loads(messages), 24) for _, messages in asked])
            self._known |= {key: one["choices"][0]["message"]["content"] for key, one in zip(asked, found, strict=True)}
        return [self._known[key] for key in keys]


class Shop:
    """The company after its change, and a warehouse that knows its customers from before."""

    def __init__(self, folder: Path, company: Company, answers: Answers, arm: Arm) -> None:
        self.company, self.answers, self.arm, self.model = company, answers, arm, FIRST
        self.asked, self.exam = split_questions(company, answers.seed)
        self.facts = company.facts(True)
        models = {"base": BUILD / "smollm2-135m-instruct", "directory": folder}
        self.settings = Settings(models=models, memory={"mode": arm.mode}, metric={"name": "exact"})  # type: ignore[arg-type]
        self.warehouse = open_warehouse(WarehouseSettings(path=folder / "w.duckdb"))
        self.teacher = Teacher(self.warehouse)
        for number in range(CUSTOMERS):
            fact = company.before[number % len(company.before)]
            asked = self.teacher.ask(self.asked[fact.id][0], fact.answer, system=company.system)
            self.teacher.say(asked, "helpful", True, "user", f"customer-{number}")
        self.follow()
        self.teacher.acts += QUIET // timedelta(minutes=1)

    def now(self) -> datetime:
        return self.teacher.now

    def follow(self) -> None:
        """As the daemon's job does each second."""
        if self.arm.mode != "off":
            entries.follow(self.warehouse, self.settings, "support", self.now())

    def chat(self, question: str) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.company.system}, {"role": "user", "content": question}]

    def retire(self) -> dict[str, float]:
        """The second version serves, and entries leave that it has learned."""
        self.model = SECOND
        active = entries.active(self.warehouse, "support")
        own = self.answers.of(SECOND, [self.chat(row["question"]) for row in active])
        learned = [row["id"] for row, text in zip(active, own, strict=True) if text == row["answer"]]
        with self.warehouse.transaction() as cursor:
            changes = [entries.Change(id, "retired", "the second version gives the answer", SECOND) for id in learned]
            entries.apply(cursor, "support", changes, self.now())
        return {"memory_retired_share": len(learned) / len(active)} if active else {}

    def replies(self, asked: list[tuple[str, str]]) -> list[tuple[str, dict[str, Any] | None]]:
        """Answers the questions of conversations; also the attribute `memory` of each."""
        chats, found = [], []
        for conversation, question in asked:
            system, user = self.chat(question)
            help = look_up(self.warehouse, self.settings, "support", Reading([system, user]), conversation)
            chats.append([system, help["message"], user] if help["message"] else [system, user])
            found.append(help)
        asks = [chat for chat, help in zip(chats, found, strict=True) if not help["answer"]]
        texts = iter(self.answers.of(self.model, asks))
        return [
            (
                help["answer"] or next(texts),
                {name: help[name] for name in ("entries", "held_out", "mode", "match")} if help["match"] else None,
            )
            for help in found
        ]

    def serve(self) -> dict[str, float]:
        luck, wrong, figures = random.Random(1), list[bool](), dict[str, float]()
        news = {fact.id for fact in (*self.company.change.facts, *self.company.change.new)}
        weights = [1 + (fact.id in news) for fact in self.facts]
        for start in range(0, REQUESTS, BATCH):
            self.follow()
            if self.arm.retrains and start == REQUESTS // 2:
                figures = self.retire()
            drawn = luck.choices(self.facts, weights, k=BATCH)
            asked = [(f"c-{start + number}", luck.choice(self.asked[fact.id])) for number, fact in enumerate(drawn)]
            for fact, (_, question), (text, help) in zip(drawn, asked, self.replies(asked), strict=True):
                wrong.append(not is_right(fact, text))
                self.opinion(random.Random(luck.random()), fact, question, text, help)
        self.follow()
        exam = [(fact, question) for fact in self.facts for question in self.exam[fact.id]]
        replies = self.replies([(f"exam-{number}", question) for number, (_, question) in enumerate(exam)])
        missed = [not is_right(fact, text) for (fact, _), (text, _) in zip(exam, replies, strict=True)]
        name, half = f"memory_wrong_answers_share_{self.arm.name}", REQUESTS // 2
        return figures | {
            name: sum(wrong) / REQUESTS,
            f"{name}_before": sum(wrong[:half]) / half,
            f"{name}_after": sum(wrong[half:]) / half,
            f"memory_exam_wrong_share_{self.arm.name}": sum(missed) / len(missed),
        }

    def opinion(self, luck: random.Random, fact: Fact, question: str, text: str, help: dict[str, Any] | None) -> None:
        """What a customer of the demo makes of an answer, or an expert."""
        habits, customer, right = self.company.users, f"customer-{luck.randrange(CUSTOMERS)}", is_right(fact, text)
        answered = self.teacher.ask(
            question, text, system=self.company.system, model=f"support@{self.model}",
            attributes={"memory": help} if help else None,
        )  # fmt: skip
        if luck.random() < habits.rates:
            self.teacher.say(answered, "helpful", right != (luck.random() < habits.mistaken), "user", customer)
        if not right and luck.random() < habits.corrects:
            source = "expert" if luck.random() < 0.3 else "user"
            self.teacher.say(answered, "correction", fact.answer, source, customer)


def main() -> dict[str, float]:
    """Takes a minute or two on two idle cores."""
    demo = Path(os.environ.get("RETUNED_DEMO", BUILD / "demo"))
    if not (demo / "result.json").is_file():
        print(f"{demo} holds no demo: run `make demo` first, or set RETUNED_DEMO", file=sys.stderr)
        return {}
    company, answers = load(None), Answers(demo)
    figures: dict[str, float] = {}
    for arm in ARMS:
        with tempfile.TemporaryDirectory() as name:
            shop = Shop(Path(name), company, answers, arm)
            with closing(shop.warehouse):
                found = shop.serve()
        print(found, file=sys.stderr, flush=True)
        figures |= found
    return figures


if __name__ == "__main__":
    for figure, value in main().items():
        print(f"{figure:50} {value:.4g}")
