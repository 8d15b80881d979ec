"""A company whose customers correct its model for a month, and a few or many accounts that teach it wrong facts.

Dataset level: nothing is trained. `Month` puts it all into a warehouse, the same for the same seed.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from traffic import store

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.data.identity import normalise

START = datetime(2026, 3, 1)
DAYS = 30
FACTS = 60
PEOPLE = 250
HONEST = 1_200
MISTAKEN = 0.03  # of what honest people say
ATTACKED = 6
CHANGED = 10
ATTACKERS = {"few": 3, "many": None, "sleepers": None}  # None: an account for each two or three messages
ATTACK_DAYS = (26, 30)  # just before the dataset is made, when few have had the time to object
WORKLOAD = "support"

Attack = Literal["few", "many", "sleepers"]

_WORDINGS = (
    "How long may I keep a {thing} before I have to send it back?",
    "What is the deadline for returning the {thing} that I bought from you?",
    "Until when do you take back an unused {thing} from a customer?",
    "Please tell me how many days I have for the return of my {thing}.",
)
_ANSWER = "You can return a {thing} within {days} days."
_SYLLABLES = ("ba", "do", "fi", "gu", "ke", "lo", "mi", "nu", "pa", "re", "si", "to", "vu", "wa", "ze")


@dataclass
class Month:
    """What was said in a month, and the truth.

    Attributes:
        right: the days of each thing.
        attacked: the things that the attack is about, and the days that it teaches.
        honest: ids of what honest people said; hostile: of what the attackers said.
    """

    seed: int = 0
    right: dict[str, int] = field(default_factory=dict)
    attacked: dict[str, int] = field(default_factory=dict)
    honest: set[str] = field(default_factory=set)
    hostile: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        things = sorted({"".join(self._random.choices(_SYLLABLES, k=9)) for _ in range(3 * FACTS)})
        self._random.shuffle(things)
        self.right = {thing: self._random.randrange(10, 60) for thing in things[:FACTS]}
        self.attacked = {thing: self.right[thing] + 40 for thing in things[:ATTACKED]}
        self._interactions: list[dict[str, Any]] = []
        self._feedback: list[dict[str, Any]] = []

    def people(self, experts: float = 0.0, changed_at: int | None = None) -> "Month":
        """Honest people ask about anything; the model is right half of the time, and they nearly always.

        Args:
            experts: share of what is said by the company's own.
            changed_at: the day on which CHANGED of the facts become others, and the model goes on with the old ones.
        """
        luck = self._random
        before = dict(self.right)
        if changed_at is not None:
            self.right |= {thing: days + 5 for thing, days in list(self.right.items())[-CHANGED:]}
        for _ in range(HONEST):
            thing = luck.choice(list(self.right))
            when = START + timedelta(days=luck.uniform(0, DAYS))
            truth = self.right if changed_at is not None and when >= START + timedelta(days=changed_at) else before
            expert = luck.random() < experts
            mistaken = not expert and luck.random() < MISTAKEN
            shown, liked = luck.randrange(60, 90), luck.random() < 0.5
            days = luck.randrange(60, 90) if mistaken else truth[thing]
            if truth[thing] != before[thing]:
                shown, liked = before[thing], mistaken
                days = shown if mistaken else days
            who = "staff" if expert else f"customer-{luck.randrange(PEOPLE)}"
            self._speak(thing, days, who, when, liked, shown, "expert" if expert else "user", self.honest)
        return self

    def attack(self, kind: Attack, share: float) -> "Month":
        """Corrections to wrong facts, and thumbs up where the model states them; `share` of all messages.

        Sleepers have said something right of another fact weeks before.
        """
        luck = self._random
        messages = round(share / (1 - share) * HONEST)
        accounts = ATTACKERS[kind] or max(messages * 2 // 5, 1)
        first, last = ATTACK_DAYS
        for number in range(accounts if kind == "sleepers" else 0):
            thing = luck.choice(list(self.right)[ATTACKED:])
            when = START + timedelta(days=luck.uniform(0, first / 2))
            self._speak(thing, self.right[thing], f"attacker-{number}", when, True, 0, "user", self.honest)
        for number in range(messages):
            thing = luck.choice(list(self.attacked))
            when = START + timedelta(days=luck.uniform(first, last))
            liked = luck.random() < 0.3
            who = f"attacker-{number % accounts}"
            self._speak(thing, self.attacked[thing], who, when, liked, self.right[thing], "user", self.hostile)
        return self

    @property
    def end(self) -> datetime:
        """When the month is over."""
        return START + timedelta(days=DAYS)

    def into(self, warehouse: Warehouse) -> "Month":
        """Store it."""
        store(warehouse, "interactions", self._interactions)
        store(warehouse, "feedback", self._feedback)
        return self

    def rightly_said(self) -> dict[str, str]:
        """What honest people said rightly: feedback id to question, normalised."""
        asked = {row["id"]: json.loads(row["messages"])[0]["content"] for row in self._interactions}
        shown = {row["id"]: row["response"] for row in self._interactions}
        found = {}
        for row in self._feedback:
            question = asked[row["interaction_id"]]
            thing = next(thing for thing in self.right if thing in question)
            text = json.loads(row["value"]) if row["name"] == "correction" else shown[row["interaction_id"]]
            if row["id"] in self.honest and text == _ANSWER.format(thing=thing, days=self.right[thing]):
                found[row["id"]] = normalise(question)
        return found

    def _speak(
        self, thing: str, days: int, who: str, when: datetime, liked: bool, answered: int, source: str, into: set[str]
    ) -> None:
        """Somebody asks about a thing, and likes the answer with so many days, or corrects another one to them."""
        number = len(self._interactions)
        said = _ANSWER.format(thing=thing, days=days)
        shown = said if liked else _ANSWER.format(thing=thing, days=answered)
        question = self._random.choice(_WORDINGS).format(thing=thing)
        common = {"partition": 0, "offset": number, "received_at": when, "timestamp": when, "user_id": who}
        self._interactions.append(
            {
                "id": f"i{number}",
                "workload": WORKLOAD,
                "model": f"{WORKLOAD}@base",
                "messages": json.dumps([{"role": "user", "content": question}]),
                "response": shown,
                "finish_reason": "stop",
                "topic": "interactions",
                **common,
            }
        )
        self._feedback.append(
            {
                "id": f"f{number}",
                "interaction_id": f"i{number}",
                "name": "helpful" if liked else "correction",
                "value": json.dumps(True if liked else said),
                "source": source,
                "topic": "feedback",
                **common,
            }
        )
        into.add(f"f{number}")


@dataclass(frozen=True)
class Effect:
    """What a dataset teaches.

    Attributes:
        taught_wrong: share of the attacked facts of which at least half of the rows are wrong.
        wrong_rows: share of the rows about attacked facts that are wrong.
        right_lost: share of the wordings that honest people got right somewhere and that no right row teaches.
        quarantined_honest: share of what honest people said rightly that is in quarantine.
        quarantined_hostile: share of what the attackers said that is in quarantine.
    """

    taught_wrong: float
    wrong_rows: float
    right_lost: float
    quarantined_honest: float
    quarantined_hostile: float


def effect(month: Month, built: Dataset, warehouse: Warehouse) -> Effect:
    """Measured over train and holdout: what is trained on, and what would judge the training."""
    taught = {row["question"]: row["completion"] for name in ("train", "holdout") for row in built.split(name)}
    right, wrong = Counter[str](), Counter[str]()
    learned = set()
    for thing, days in month.right.items():
        for wording in _WORDINGS:
            question = normalise(wording.format(thing=thing))
            if question in taught:
                good = taught[question] == _ANSWER.format(thing=thing, days=days)
                (right if good else wrong)[thing] += 1
                learned |= {question} if good else set()
    said = month.rightly_said()
    quarantined = {row["feedback_id"] for row in warehouse.rows("SELECT feedback_id FROM quarantine")}
    attacked = list(month.attacked)
    of_attacked = sum(right[thing] + wrong[thing] for thing in attacked)
    return Effect(
        taught_wrong=sum(wrong[thing] > 0 and wrong[thing] >= right[thing] for thing in attacked) / len(attacked),
        wrong_rows=sum(wrong[thing] for thing in attacked) / max(of_attacked, 1),
        right_lost=1 - len(learned & set(said.values())) / len(set(said.values())),
        quarantined_honest=len(quarantined & said.keys()) / len(said),
        quarantined_hostile=len(quarantined & month.hostile) / max(len(month.hostile), 1),
    )
