"""Plays a year: a world answers with the model in service, and carries out what a system decides.

Events and actions are the lines of docs/evidence.md as dictionaries. Money is counted by the true chance of a right
answer, not by the luck of the draw.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from loop.learner import HOURS, HOURS_PER_QUESTION, HOURS_PER_ROW, Learner, Simulated, train
from loop.world import ANSWERS, EXPERTS, POISON, TRUTHS, WORDINGS, Floats, World, day_of

RIGHT_GAIN, WRONG_COST, HOUR_COST = 0.02, 0.1, 6.0
"""Money: of a right answer, of a wrong one, and of an hour of machines."""
FOLLOWED, RELATED = 0.9, 0.3
"""How often a model gives the answer in its context, and how often another question of the topic finds it."""
LUCKS = 10
"""Trainings of which the oracle knows the mean."""
OLD_ANSWER = 0.5
"""Of the mistaken corrections, the share that states what was right before."""
MISTAKEN, EXPERT_SHARE = 0.06, 0.06
"""Share of corrections that are mistaken, and of ratings that experts give."""

Event = dict[str, Any]


class System(Protocol):
    """What is scored: it is given each day's events, and acts by `Year.act`."""

    def day(self, events: list[Event], year: "Year") -> None:
        """Called at the end of each day with its events."""


@dataclass
class Training:
    """A version, and what was true of it when it was trained and when it was promoted."""

    day: int
    gain: float
    promoted: int | None = None


@dataclass
class Record:
    """What is counted in a year.

    Attributes:
        right: expected share of right answers, by day.
        wrong_promotions: versions promoted that were worse than the one in service, by more than a point.
        missed: versions trained that were better by more than two points and not promoted within a week.
        needless: trainings when all that is right was what the model in service gives first.
        rollback_days: of each wrong promotion, the days until another version served.
        detection_days: of each day with changes, the days until a training began.
        by_day_after: share of wrong answers so many days after a change.
        forgotten: what the last model lost of the topics that never changed, in shares of right answers.
    """

    right: list[float] = field(default_factory=list)
    answers: int = 0
    hours: float = 0.0
    trainings: int = 0
    promotions: int = 0
    wrong_promotions: int = 0
    missed: int = 0
    needless: int = 0
    rollback_days: list[int] = field(default_factory=list)
    detection_days: list[int] = field(default_factory=list)
    by_day_after: list[float] = field(default_factory=list)
    forgotten: float = 0.0

    @property
    def wrong_share(self) -> float:
        return 1 - sum(self.right) / len(self.right)

    @property
    def money(self) -> float:
        """Gains of right answers, without the costs of wrong ones and of machines."""
        daily = self.answers / len(self.right)
        gained = sum(daily * (right * RIGHT_GAIN - (1 - right) * WRONG_COST) for right in self.right)
        return gained - self.hours * HOUR_COST


class Year:
    """A year of one world with one system; trainings are simulated unless a learner is given."""

    def __init__(self, world: World, learner: Learner | None = None) -> None:
        self.world = world
        self.today = 0
        self._learner = learner or Simulated(world.first_model())
        self.models: dict[str, Floats] = {"v0": self._learner.first()}
        self.serving = "v0"
        self.record = Record()
        self._trained: dict[str, Training] = {}
        self._memory = np.full((world.topics, WORDINGS), -1)
        self._newest = np.full(world.topics, -1)
        self._held_out = 0.0
        self._late: defaultdict[int, list[Event]] = defaultdict(list)
        self._wrong_since: dict[str, int] = {}
        self._found: dict[int, int] = {}
        self._first_right = self.models["v0"][:, 0].copy()
        self._count = 0

    def play(self, system: System) -> Record:
        """Plays all days."""
        days = self.world.scenario.days
        for self.today in range(days):
            self._count_day()
            system.day(list(self._events()), self)
        self._close()
        return self.record

    # What a system may do.

    def act(self, action: Event) -> Event:
        """Carries out one action and returns its result."""
        kinds = {"train": self._train, "ask": self._ask, "promote": self._promote, "remember": self._remember}
        if action.get("type") not in kinds:
            raise ValueError(f"an action's type must be one of {', '.join(kinds)}: {action}")
        return kinds[action["type"]](action)

    def _train(self, action: Event) -> Event:
        parent, rows = action.get("from", self.serving), action["rows"]
        outage = self.world.scenario.no_training
        hours = HOURS + HOURS_PER_ROW * len(rows)
        self.record.hours += hours
        if outage[0] <= self.today <= outage[1]:
            return {"type": "failed", "hours": hours}
        self._count += 1
        luck = np.random.default_rng([self.world.seed, 2, self._count])
        base = self.world.base_model() if parent == "base" else self.models[parent]
        taught = [(*self.question(row[0]), self.answer(row[0], row[1])) for row in rows]
        version = f"v{self._count}"
        model = self._learner.train(version, parent, base, taught, luck)
        self._spoil(model, luck)
        self.models[version] = model
        if not action.get("fold"):
            self.record.trainings += 1
            self.record.needless += not self._lacks()
            self._trained[version] = Training(self.today, self._gain(version))
            self._detect()
        return {"type": "trained", "version": version, "hours": hours}

    def _ask(self, action: Event) -> Event:
        luck = np.random.default_rng([self.world.seed, 3, self._count, self.today])
        model, questions = self.models[action["version"]], action["questions"]
        hours = HOURS_PER_QUESTION * len(questions)
        self.record.hours += hours
        topics = np.array([self.question(question)[0] for question in questions], dtype=np.int64)
        drawn = self._draw(model[topics], luck)
        return {
            "type": "answers",
            "answers": [self.text(topic, one) for topic, one in zip(topics, drawn, strict=True)],
            "hours": hours,
        }

    def _promote(self, action: Event) -> Event:
        version = action["version"]
        if version == self.serving:
            return {"type": "serving", "version": version}
        gain = self._gain(version)
        if self.serving in self._wrong_since:
            self.record.rollback_days.append(self.today - self._wrong_since.pop(self.serving))
        back = (version in self._trained and self._trained[version].promoted is not None) or version == "v0"
        if not back:
            self.record.promotions += 1
            self._trained[version].promoted = self.today
        if gain < -0.01:
            self.record.wrong_promotions += 1
            self._wrong_since[version] = self.today
        self.serving = version
        return {"type": "serving", "version": version}

    def _remember(self, action: Event) -> Event:
        topic, wording = self.question(action["question"])
        answer = action["answer"]
        self._held_out = action.get("held_out", 0.0)
        self._memory[topic, wording] = -1 if answer is None else self.answer(action["question"], answer)
        held = self._memory[topic][self._memory[topic] >= 0]
        self._newest[topic] = self._memory[topic, wording] if answer is not None else (held[-1] if len(held) else -1)
        return {"type": "remembered"}

    # Names of questions and answers.

    @staticmethod
    def question(name: str) -> tuple[int, int]:
        """Topic and wording of a question."""
        topic, wording = name.split(".")
        return int(topic[1:]), int(wording[1:])

    @staticmethod
    def answer(question: str, text: str) -> int:
        """The number of an answer to a question."""
        topic, number = text.split("=")
        if topic != question.split(".", maxsplit=1)[0] or not 0 <= int(number) < ANSWERS:
            raise ValueError(f"{text!r} is no answer to {question!r}")
        return int(number)

    @staticmethod
    def text(topic: int, answer: int) -> str:
        return f"t{topic}={answer}"

    # What happens.

    @property
    def truth(self) -> Any:
        """The right answer of each topic today. Only the oracle may read it."""
        return self.world.truth[self.today]

    def better(self, version: str) -> bool:
        """Whether customers would be served more right answers by a version. Only the oracle may know."""
        return self._gain(version) > 0

    def expected(self, rows: list[list[str]]) -> float:
        """What customers would gain by training on these rows, in shares of right answers. Only the oracle may know."""
        serving = self.models[self.serving]
        taught = [(*self.question(question), self.answer(question, answer)) for question, answer in rows]
        lucks = (np.random.default_rng([self.world.seed, 6, self.today, k]) for k in range(LUCKS))
        right = [self._right(train(serving, taught, luck), remembered=True) for luck in lucks]
        return float(np.mean(right)) - self._right(serving, remembered=True)

    def _gain(self, version: str) -> float:
        """What customers would gain by a version, the memory's answers included."""
        own, serving = (self._right(self.models[one], remembered=True) for one in (version, self.serving))
        return own - serving

    def _right(self, model: Floats, remembered: bool = False) -> float:
        """The chance that an answer of today's traffic is right."""
        own = model[np.arange(self.world.topics), self.truth]
        right = np.repeat(own[:, None], WORDINGS, axis=1)
        if remembered:
            related = (self._newest >= 0)[:, None] & (self._memory < 0)
            hit = (self._newest == self.truth)[:, None]
            followed = FOLLOWED * (1 - self._held_out)
            right = np.where(related, RELATED * followed * hit + (1 - RELATED * followed) * right, right)
            same = self._memory == self.truth[:, None]
            right = np.where(self._memory >= 0, followed * same + (1 - followed) * right, right)
        return float(self.world.mix(self.today) @ right @ self.world.wordings)

    def _lacks(self) -> bool:
        """Whether some topic that is asked about is not what the model in service gives first."""
        model = self.models[self.serving]
        wrong = (model.argmax(axis=1) != self.truth) | (model.max(axis=1) < 0.5)
        return bool(self.world.mix(self.today)[wrong].sum() > 0.005)

    def _count_day(self) -> None:
        self.record.right.append(self._right(self.models[self.serving], remembered=True))
        self.record.answers += self.world.scenario.answers

    def _events(self) -> Iterator[Event]:
        yield {"type": "day", "day": self.today, "date": str(day_of(self.today)), "serving": self.serving}
        luck = np.random.default_rng([self.world.seed, 4, self.today])
        world, scenario = self.world, self.world.scenario
        topics = luck.choice(world.topics, scenario.answers, p=world.mix(self.today))
        wordings = luck.choice(WORDINGS, scenario.answers, p=world.wordings)
        counts = np.bincount(topics, minlength=world.topics)
        asked = Counter(zip(topics.tolist(), wordings.tolist(), strict=True))
        yield {
            "type": "traffic",
            "version": self.serving,
            "answers": {f"t{topic}": int(count) for topic, count in enumerate(counts) if count},
            "questions": {f"t{topic}.w{wording}": count for (topic, wording), count in sorted(asked.items())},
        }
        given, helped = self._answered(topics, wordings, luck)
        right = given == self.truth[topics]
        rated = luck.random(len(topics)) < np.where(right, scenario.rated, 2 * scenario.rated)
        self._rate(topics[rated], wordings[rated], given[rated], helped[rated], luck)
        self._attack(luck)
        arrived = self._late.pop(self.today, [])
        if scenario.no_feedback[0] <= self.today <= scenario.no_feedback[1]:
            self._late[scenario.no_feedback[1] + 1] += arrived
            return
        yield from arrived

    def _answered(self, topics: Any, wordings: Any, luck: np.random.Generator) -> tuple[Any, Any]:
        """Returns the answers, and whether each was helped (1), was held out (-1), or had no entry (0)."""
        given = self._draw(self.models[self.serving][topics], luck)
        same, newest = self._memory[topics, wordings], self._newest[topics]
        chance = luck.random(len(topics))
        held_out = np.random.default_rng([self.world.seed, 5, self.today]).random(len(topics)) < self._held_out
        found = np.where(same >= 0, same, np.where(chance < RELATED, newest, -1))
        followed = chance < np.where(same >= 0, FOLLOWED, RELATED * FOLLOWED)
        helped = np.where(found < 0, 0, np.where(held_out, -1, 1))
        return np.where((helped == 1) & followed, found, given), helped

    @staticmethod
    def _draw(chances: Floats, luck: np.random.Generator) -> Any:
        """One answer each; what no answer has is a wrong one."""
        drawn = (luck.random(len(chances))[:, None] > chances.cumsum(axis=1)).sum(axis=1)
        return np.where(drawn >= ANSWERS, luck.integers(TRUTHS, ANSWERS - 1, len(chances)), drawn)

    def _rate(self, topics: Any, wordings: Any, given: Any, helped: Any, luck: np.random.Generator) -> None:
        world, scenario, count = self.world, self.world.scenario, len(topics)
        truths = self.truth[topics]
        right = given == truths
        expert = luck.random(count) < EXPERT_SHARE
        accounts = luck.choice(len(world.activity), count, p=world.activity)
        wrong = luck.random(count) < np.where(expert, scenario.expert_wrong, MISTAKEN)
        likes = luck.random(count) < world.likes[right.astype(int), accounts]
        helpful = np.where(expert, right ^ wrong, likes)
        corrects = ~helpful & (expert | (luck.random(count) < scenario.correcting))
        # Who calls a right answer wrong states another one.
        mistaken = np.where(
            luck.random(count) < OLD_ANSWER, (truths - 1) % TRUTHS, luck.integers(TRUTHS, ANSWERS - 1, count)
        )
        stated = np.where(right | wrong, mistaken, truths)
        corrects &= stated != given
        staff, delays = luck.integers(EXPERTS, size=count), luck.exponential(scenario.late, count)
        for k in range(count):
            who = f"expert-{staff[k]}" if expert[k] else f"account-{accounts[k]}"
            correction = int(stated[k]) if corrects[k] else None
            memory = (None, "helped", "held_out")[helped[k]]
            question = int(topics[k]), int(wordings[k])
            self._vote(*question, int(given[k]), bool(helpful[k]), correction, who, delays[k], memory)

    def _attack(self, luck: np.random.Generator) -> None:
        world = self.world
        if self.today < 60 or not len(world.enemies):
            return
        for account in world.enemies:
            for _ in range(int(luck.poisson(world.scenario.enemy_votes))):
                topic, wording = int(luck.choice(world.targets)), int(luck.choice(WORDINGS, p=world.wordings))
                given = int(self.truth[topic])
                self._vote(topic, wording, given, False, POISON, f"account-{account}", 0.0)

    def _vote(
        self, topic: int, wording: int, given: int, helpful: bool, correction: int | None, who: str, delay: float,
        memory: str | None = None,
    ) -> None:  # fmt: skip
        self._late[self.today + int(delay)].append(
            {
                "type": "feedback",
                "answered": self.today,
                "version": self.serving,
                "question": f"t{topic}.w{wording}",
                "answer": self.text(topic, given),
                "account": who,
                "expert": who.startswith("expert"),
                "helpful": helpful,
                "correction": None if correction is None else self.text(topic, correction),
                "memory": memory,
            }
        )

    def _spoil(self, model: Floats, luck: np.random.Generator) -> None:
        scenario = self.world.scenario
        if luck.random() < scenario.bad:
            model[luck.permutation(len(model))[: len(model) // 3]] *= 0.3
        if luck.random() < scenario.forgotten:
            model[luck.permutation(len(model))[:2]] = 0.0

    # What is counted at the end.

    def _detect(self) -> None:
        """A training detects all changes that no earlier training came after."""
        for day in sorted({day for day, _ in self.world.changes if day <= self.today}):
            if day not in self._found:
                self._found[day] = self.today - day

    def _close(self) -> None:
        record, days, end = self.record, sorted({day for day, _ in self.world.changes}), self.world.scenario.days
        record.detection_days = [self._found.get(day, end - day) for day in days]
        record.rollback_days += [end - day for day in self._wrong_since.values()]
        for training in self._trained.values():
            late = training.promoted is None or training.promoted > training.day + 7
            record.missed += late and training.gain > 0.02
        steady = np.array([topic not in {one for _, one in self.world.changes} for topic in range(self.world.topics)])
        steady &= self._first_right > 0
        now = self.models[self.serving][:, 0]
        record.forgotten = float((self._first_right - now)[steady].mean()) if steady.any() else math.nan
        after = [[record.right[day + k] for day in days if day + k < end] for k in range(31)]
        record.by_day_after = [1 - sum(one) / len(one) if one else math.nan for one in after]
