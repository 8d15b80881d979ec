"""A year of a workload: what is asked, what is right, who rates, and what changes on which day."""

import json
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

DAYS, START = 365, date(2026, 1, 1)
TOPICS, WORDINGS = 20, 8
TRUTHS, WRONG = 6, 5
"""Answers of a topic: those that are right one after the other, then wrong ones; the last of these is what enemies
teach."""
ANSWERS = TRUTHS + WRONG
POISON = ANSWERS - 1
ACCOUNTS, EXPERTS = 500, 3
KNOWN = 0.9
"""The probability with which the first model gives the answers that are right on day 0."""
BASE = 0.02
REAL_CHANGES = 12
"""Changes of one year of the archive that a world takes, with their days."""
TERMS = Path(__file__).with_name("terms.jsonl")

Changes = tuple[tuple[int, int], ...]
"""Days, and topics whose right answer is another one from then on."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scenario:
    """What happens within the year.

    Attributes:
        changes: number of topics that change, by day; drawn by popularity for each seed.
        days: how long it is played.
        real: changes come on the days of the real ones in `terms.jsonl`.
        new: number of topics that nobody asks about before `new_day`, and the share of the traffic then.
        ramp: days until that share is reached.
        season: by how much the mix of topics moves within the year, without any change of what is right.
        rated: share of right answers that are rated; of wrong ones twice as many.
        likes: how often users call a wrong and a right answer helpful; None: by account.
        late: mean days until a vote arrives.
        correcting: share of the votes against an answer that state another one.
        expert_wrong: share of the experts' corrections that are wrong.
        enemies: share of all accounts that teach wrong answers from day 60 on.
        enemy_votes: votes of each of them a day.
        bad: chance that a training makes a worse model: a third of the topics is lost.
        forgotten: chance that a training loses two topics wholly.
        no_training, no_feedback: first and last days of outages.
        drawn: all of this is drawn for each seed (see `_drawn`).
    """

    changes: dict[int, int] = field(default_factory=dict)
    days: int = DAYS
    real: bool = False
    new: int = 0
    new_share: float = 0.0
    new_day: int = 120
    ramp: int = 1
    season: float = 0.0
    answers: int = 300
    rated: float = 0.04
    likes: tuple[float, float] | None = None
    late: float = 0.7
    correcting: float = 0.4
    expert_wrong: float = 0.02
    enemies: float = 0.0
    enemy_votes: float = 0.0
    bad: float = 0.0
    forgotten: float = 0.0
    no_training: tuple[int, int] = (-1, -1)
    no_feedback: tuple[int, int] = (-1, -1)
    drawn: bool = False


CHANGE = Scenario(changes={100: 5, 230: 3})
SCENARIOS = {
    "change": CHANGE,
    "real_dates": Scenario(real=True),
    "quiet": Scenario(),
    "season": Scenario(season=1.5),
    "new_product": Scenario(new=5, new_share=0.25),
    "new_language": Scenario(new=12, new_share=0.3, ramp=60),
    "slow_worsening": Scenario(changes=dict.fromkeys(range(40, 340, 14), 1)),
    "poison_few": replace(CHANGE, enemies=0.008, enemy_votes=1.5),
    "poison_many": replace(CHANGE, enemies=0.15, enemy_votes=0.08),
    "mistaken_experts": replace(CHANGE, expert_wrong=0.3),
    "bad_candidates": replace(CHANGE, bad=0.35),
    "vanishing_classes": replace(CHANGE, forgotten=0.5),
    "outages": replace(CHANGE, no_training=(95, 125), no_feedback=(230, 244)),
    "late_feedback": replace(CHANGE, late=12.0),
    "real_feedback": replace(CHANGE, likes=(10 / 16, 26 / 28)),  # see `likes.py`
    "rated_1_percent": replace(CHANGE, rated=0.008),
    "rated_20_percent": replace(CHANGE, rated=0.17),
    "drawn": Scenario(drawn=True),
}

SHORT = {"four_months": Scenario(days=120, changes={30: 5, 75: 3})}
"""What is short enough for real trainings. It does not count in the means."""


class World:
    """What is true in one scenario, for one seed."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        scenario = _drawn(np.random.default_rng([seed, 7])) if scenario.drawn else scenario
        self.scenario, self.seed = scenario, seed
        luck = np.random.default_rng([seed, 1])
        self.topics = TOPICS + scenario.new
        popularity = (1 / np.arange(1, TOPICS + 1) ** 0.7)[luck.permutation(TOPICS)]
        self.popularity = popularity / popularity.sum()
        wordings = 1 / np.arange(1, WORDINGS + 1) ** 0.5
        self.wordings: Floats = wordings / wordings.sum()
        activity = luck.lognormal(0.0, 1.2, ACCOUNTS)
        self.activity: Floats = activity / activity.sum()
        rank = activity.argsort().argsort() / ACCOUNTS
        # Those who vote most are the most critical.
        self.likes: Floats = np.stack([0.3 - 0.2 * rank, 0.97 - 0.1 * rank])
        if scenario.likes is not None:
            self.likes = np.repeat(np.array(scenario.likes)[:, None], ACCOUNTS, axis=1)
        self.enemies = luck.permutation(ACCOUNTS)[: round(scenario.enemies * ACCOUNTS)]
        self.targets = luck.permutation(TOPICS)[:4]
        self.phase: Floats = luck.uniform(0, 2 * np.pi, TOPICS)
        self.changes = self._changes(luck)

    def _changes(self, luck: np.random.Generator) -> Changes:
        if self.scenario.real:
            begin = date(2021 + int(luck.integers(5)), 7, 1)
            days = [(date.fromisoformat(line["day"]) - begin).days for line in terms()]
            days = sorted(luck.permutation([day for day in days if 0 < day < DAYS])[:REAL_CHANGES].tolist())
            chosen = luck.choice(TOPICS, len(days), replace=False, p=self.popularity)
            found = list(zip(days, chosen.tolist(), strict=True))
        else:
            found = [
                (day, int(topic))
                for day, count in self.scenario.changes.items()
                for topic in luck.choice(TOPICS, count, replace=False, p=self.popularity)
            ]
        return tuple(sorted(found))

    @cached_property
    def truth(self) -> npt.NDArray[np.int64]:
        """Shape (days, topics): the right answer."""
        found = np.zeros((self.scenario.days, self.topics), dtype=np.int64)
        for day, topic in self.changes:
            found[day:, topic] = (found[day:, topic] + 1) % TRUTHS
        return found

    def mix(self, day: int) -> Floats:
        """The share of each topic in a day's traffic."""
        old = self.popularity * np.exp(self.scenario.season * np.sin(2 * np.pi * day / DAYS + self.phase))
        reached = np.clip((day - self.scenario.new_day + 1) / self.scenario.ramp, 0.0, 1.0)
        share = self.scenario.new_share * float(reached)
        new = np.full(self.scenario.new, share / max(self.scenario.new, 1))
        return np.concatenate([old / old.sum() * (1 - share), new])

    def first_model(self) -> Floats:
        """The model in service on day 0."""
        model = np.zeros((self.topics, ANSWERS))
        model[:TOPICS, 0] = KNOWN
        return model

    def base_model(self) -> Floats:
        """A model that learned nothing about the workload."""
        return np.full((self.topics, ANSWERS), BASE / ANSWERS)


def _drawn(luck: np.random.Generator) -> Scenario:
    """Draws a scenario that nobody chose: up to twelve days with changes, and other troubles in a third of years."""

    def trouble(low: float, high: float) -> float:
        return float(luck.uniform(low, high)) if luck.random() < 1 / 3 else 0.0

    def outage() -> tuple[int, int]:
        first = int(luck.integers(DAYS - 40))
        return (first, first + int(luck.integers(7, 40))) if luck.random() < 1 / 3 else (-1, -1)

    new = round(trouble(1, 12))
    days = luck.permutation(np.arange(20, DAYS - 20))[: luck.integers(13)]
    return Scenario(
        changes={int(day): int(luck.integers(1, 6)) for day in sorted(days)},
        new=new,
        new_share=float(luck.uniform(0.05, 0.4)) if new else 0.0,
        new_day=int(luck.integers(30, 300)),
        ramp=int(luck.integers(1, 90)),
        season=trouble(0.5, 2.0),
        rated=float(np.exp(luck.uniform(np.log(0.008), np.log(0.17)))),
        late=float(luck.exponential(3.0)),
        correcting=float(luck.uniform(0.1, 0.8)),
        expert_wrong=trouble(0.0, 0.3),
        enemies=trouble(0.005, 0.15),
        enemy_votes=float(luck.uniform(0.05, 1.5)),
        bad=trouble(0.0, 0.4),
        forgotten=trouble(0.0, 0.5),
        no_training=outage(),
        no_feedback=outage(),
    )


def terms() -> list[dict[str, str]]:
    """The real changes that `terms.py` extracted; none without the file."""
    return [json.loads(line) for line in TERMS.read_text(encoding="utf-8").splitlines()] if TERMS.exists() else []


def day_of(number: int) -> date:
    """The date of a day of the simulated year."""
    return START + timedelta(days=number)
