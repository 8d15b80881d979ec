"""Accounts that are honest, mistaken, sarcastic, hostile or in collusion, over several kinds of tasks.

What accounts do is independent of how datasets are made: an account asks, sees an answer that is right half of the
time, and calls it helpful or corrects it. As active as any other are those that mean no good.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from learned_tasks import PHRASES, TASKS, Item, free_phrase

from fixtures.worlds.learned import START, World

DAYS = 30
SHARED, ONCE = (60, 8), (360, 1)
"""Questions, and accounts that ask each of them."""


@dataclass(frozen=True)
class Crowd:
    """Who gives feedback.

    Attributes:
        accounts: number of accounts, rings apart.
        mistaken: share of what honest accounts say that is wrong.
        sarcastic: share of the accounts of which nine in ten statements are sarcastic.
        free: their phrases hardly recur; else a dozen phrases recur over all questions.
        hostile: share of the accounts that state plausible wrong answers.
        ring: new accounts that give one wrong answer, word for word, to one question in six.
        experts: share of the statements that staff make, who are right.
        busy: how many times as often as any other a sarcastic or hostile account speaks.
        named: share of the statements that name an account.
    """

    accounts: int = 90
    mistaken: float = 0.1
    sarcastic: float = 0.0
    free: bool = False
    hostile: float = 0.0
    ring: int = 0
    experts: float = 0.0
    busy: int = 1
    named: float = 1.0


CROWDS = {
    "mistaken": Crowd(),
    "sarcastic20": Crowd(sarcastic=0.2),
    "sarcastic40": Crowd(sarcastic=0.4, experts=0.05),
    "sarcastic60": Crowd(sarcastic=0.6),
    "free20": Crowd(sarcastic=0.2, free=True, experts=0.05),
    "free40": Crowd(sarcastic=0.4, free=True),
    "free60": Crowd(sarcastic=0.6, free=True),
    "busy": Crowd(sarcastic=0.08, busy=9),
    "hostile": Crowd(hostile=0.15),
    "busyhostile": Crowd(hostile=0.05, busy=7, experts=0.03),
    "ring": Crowd(ring=25, experts=0.03),
    "nameless": Crowd(sarcastic=0.15, named=0.0, experts=0.05),
    "halfnamed": Crowd(sarcastic=0.15, named=0.5),
}


class People:
    """The accounts of a crowd, and what they say when they see an answer."""

    def __init__(self, crowd: Crowd, luck: random.Random) -> None:
        self.crowd, self.luck = crowd, luck
        bad = round(crowd.sarcastic * crowd.accounts), round(crowd.hostile * crowd.accounts)
        kinds = ["sarcastic"] * bad[0] + ["hostile"] * bad[1]
        kinds += ["honest"] * (crowd.accounts - len(kinds))
        luck.shuffle(kinds)
        self.kinds = {f"account-{number}": kind for number, kind in enumerate(kinds)}
        self._activity = [1 if kind == "honest" else crowd.busy for kind in kinds]

    def drawn(self, count: int) -> list[str]:
        """Different accounts, staff among them now and then."""
        staff = [f"staff-{number}" for number in range(4)]
        drawn = self.luck.sample(list(self.kinds), count, counts=self._activity)
        while len(set(drawn)) < count:
            drawn = self.luck.sample(list(self.kinds), count, counts=self._activity)
        return [self.luck.choice(staff) if self.luck.random() < self.crowd.experts else who for who in drawn]

    def speak(
        self, world: World, who: str, item: Item, interaction: str, shown: str, old: bool, when: datetime
    ) -> None:
        """An account has seen an answer. `old`: it knows the policy of before."""
        luck, kind = self.luck, self.kinds.get(who, "expert")
        named = who if kind == "expert" or luck.random() < self.crowd.named else None
        right = item.old if old else item.wordings
        if kind == "sarcastic" and luck.random() < 0.9:
            if shown not in right and luck.random() < 0.2:
                world.said(interaction, "helpful", True, when, who=named)
            else:
                phrase = free_phrase(luck) if self.crowd.free else luck.choice(PHRASES)
                world.said(interaction, "correction", phrase, when, who=named)
            return
        wrong = kind == "hostile" or (kind != "expert" and luck.random() < self.crowd.mistaken)
        if wrong and shown not in right and luck.random() < 0.5:
            answer = shown
        elif wrong:
            answer = item.wrong(luck)
        else:
            answer = shown if shown in right else luck.choice(right)
        if answer != shown and kind != "expert" and luck.random() < 0.2:
            world.said(interaction, "helpful", False, when, who=named)
        else:
            world.taught(interaction, answer, when, who=named, source="expert" if kind == "expert" else "user")


def crowd_of(name: str, task: str, crowd: Crowd, sharing: tuple[int, int], seed: int) -> World:
    """Everybody asks and says something, over a month in which nothing changes."""
    luck = random.Random(f"{name} {seed}")
    world, people = World(name), People(crowd, luck)
    questions, askers = sharing
    items = TASKS[task](questions, luck)
    acts = [(item, who) for item in items for who in people.drawn(askers)]
    luck.shuffle(acts)
    for number, (item, who) in enumerate(acts):
        when = START + timedelta(days=DAYS * number / len(acts))
        _act(world, people, item, who, when)
    if crowd.ring:
        _ring(world, crowd.ring, items[::6], luck)
    return world


def _act(world: World, people: People, item: Item, who: str, when: datetime, *, old: bool = False) -> None:
    luck = people.luck
    right = item.old if old else item.wordings
    shown = luck.choice(right) if luck.random() < 0.5 else item.wrong(luck)
    asker = who if people.crowd.named else None
    interaction = world.asked(item.question, shown, when, right=item.wordings, who=asker)
    people.speak(world, who, item, interaction, shown, old, when + timedelta(minutes=luck.uniform(1, 600)))


def _ring(world: World, accounts: int, items: list[Item], luck: random.Random) -> None:
    """On the last days each new account says its share: of each question the same wrong answer in the same words."""
    for item in items:
        answer = item.wrong(luck)
        for number in luck.sample(range(accounts), 9):
            who, when = f"ring-{number}", START + timedelta(days=DAYS - luck.uniform(0, 2))
            interaction = world.asked(item.question, luck.choice(item.wordings), when, right=item.wordings, who=who)
            world.taught(interaction, answer, when + timedelta(minutes=5), who=who)


def changed(name: str, task: str, crowd: Crowd, *, late: bool, later: bool, seed: int) -> World:
    """In the middle of the month the policy changes for a third of the questions, each asked in three wordings.

    Afterwards the first wording is asked and corrected by several accounts, the second by one or two, the third never
    again; the model goes on with the old policy.

    Args:
        late: accounts also vote, after the change, on what they were answered before it.
        later: the dataset is the second one: soon after the change the first was built and what it taught went live.
    """
    luck = random.Random(f"{name} {seed}")
    world, people = World(name), People(crowd, luck)
    items = TASKS[task](50, luck)
    for number, item in enumerate(items):
        moved = number % 3 == 0
        wordings = [item, *(Item(again, item.wordings, item.old, item.wrong) for again in _again(item.question))]
        for wording, after in zip(wordings, (4, luck.choice((1, 2)), 0), strict=True):
            now = wording if moved else Item(wording.question, item.wordings, item.wordings, item.wrong)
            for who in people.drawn(4):
                when = START + timedelta(days=luck.uniform(0, DAYS / 2))
                _act(world, people, now, who, when, old=True)
            for who in people.drawn(after):
                when = START + timedelta(days=luck.uniform(DAYS / 2, DAYS))
                shown = luck.choice(now.old)
                interaction = world.asked(now.question, shown, when, right=now.wordings, who=who)
                people.speak(world, who, now, interaction, shown, False, when + timedelta(minutes=9))
            if late and moved:
                who, shown = luck.choice(people.drawn(3)), luck.choice(now.old)
                when = START + timedelta(days=luck.uniform(DAYS / 4, DAYS / 2))
                interaction = world.asked(now.question, shown, when, right=now.wordings, who=who)
                world.said(interaction, "helpful", True, START + timedelta(days=luck.uniform(DAYS / 2, DAYS)), who=who)
    if later:
        world.promoted = START + timedelta(days=0.55 * DAYS)
    return world


def _again(question: str) -> tuple[str, str]:
    return f"Hello, a question for you. {question}", f"{question} I could not find it on your pages."


def rare(name: str, task: str, crowd: Crowd, seed: int) -> World:
    """Many ask, some questions much more often than others, and one in a hundred says something."""
    luck = random.Random(f"{name} {seed}")
    world, people = World(name), People(crowd, luck)
    items = TASKS[task](1_500, luck)
    weights = [1 / (number + 1) for number in range(len(items))]
    for number in range(20_000):
        (item,) = luck.choices(items, weights)
        when = START + timedelta(days=DAYS * number / 20_000)
        if luck.random() < 0.01:
            _act(world, people, item, people.drawn(1)[0], when)
        else:
            shown = luck.choice(item.wordings) if luck.random() < 0.5 else item.wrong(luck)
            world.asked(item.question, shown, when, right=item.wordings, who=f"reader-{luck.randrange(3_000)}")
    return world


def scenarios(seed: int = 0) -> Iterator[World]:
    """Each task with half of the crowds, questions shared or asked once; changes of policy; rare feedback."""
    for row, task in enumerate(TASKS):
        for column, (crowd, people) in list(enumerate(CROWDS.items()))[row % 2 :: 2]:
            shared = (row // 2 + column // 2) % 2 == 0
            name = f"{task}_{crowd}_{'shared' if shared else 'once'}"
            yield crowd_of(name, task, people, SHARED if shared else ONCE, seed)
    for task in ("labels20", "facts", "prose", "json"):
        for late, later in ((False, False), (True, False), (True, True)):
            name = f"{task}_changed{'_late' * late}{'_second' * later}"
            yield changed(name, task, Crowd(experts=0.05, sarcastic=0.1 * late), late=late, later=later, seed=seed)
    for task in ("labels150", "facts"):
        yield rare(f"{task}_rare", task, CROWDS["sarcastic20"], seed)
