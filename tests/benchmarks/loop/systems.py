"""Systems to compare with, in as few lines as each needs, and the oracle."""

from collections import defaultdict
from collections.abc import Callable

from scipy.stats import chi2_contingency

from loop.learner import HOURS, HOURS_PER_ROW
from loop.world import WORDINGS
from loop.year import HOUR_COST, RIGHT_GAIN, WRONG_COST, Event, Year

CORRECTIONS, COOL_DOWN, PAYS_WITHIN = 50, 7, 30
IN_CONTEXT = 20
"""Corrections that fit into a prompt."""
HELD_OUT = 5
"""One wording in so many is held out."""


class Never:
    """Serves the first model for ever."""

    def day(self, events: list[Event], year: Year) -> None:
        """Does nothing."""


class Feedback:
    """What all systems keep of the events: the newest answer that somebody called right, by question."""

    def __init__(self) -> None:
        self.newest: dict[str, str] = {}
        self.corrections = 0
        self.helpful: defaultdict[int, list[bool]] = defaultdict(list)
        self.traffic: list[dict[str, int]] = []

    def add(self, events: list[Event]) -> list[Event]:
        """Returns the corrections."""
        found = []
        for event in events:
            if event["type"] == "traffic":
                self.traffic.append(event["answers"])
            elif event["type"] == "feedback":
                self.helpful[event["answered"]].append(event["helpful"])
                if (stated := event["correction"] or (event["helpful"] and event["answer"])) and (
                    event["correction"] or event["question"] not in self.newest
                ):
                    self.newest[event["question"]] = stated
                if event["correction"]:
                    found.append(event)
        self.corrections += len(found)
        return found

    def rate(self, first: int, last: int) -> float | None:
        """The helpful rate of answers of these days; None: too few votes."""
        votes = [vote for day in range(first, last) for vote in self.helpful[day]]
        return sum(votes) / len(votes) if len(votes) >= 20 else None

    def drifted(self) -> bool:
        """Whether the mix of topics of the last week differs from the three weeks before (chi-squared, 1%)."""
        if len(self.traffic) < 28:
            return False
        weeks: list[dict[str, int]] = [defaultdict(int), defaultdict(int)]
        for place, day in enumerate(self.traffic[-28:]):
            for topic, count in day.items():
                weeks[place >= 21][topic] += count
        names = sorted(weeks[0].keys() | weeks[1].keys())
        return bool(chi2_contingency([[week.get(name, 0) for name in names] for week in weeks]).pvalue < 0.01)


class Retrains:
    """Retrains on the newest answer to each question when `when` holds, a cool-down apart.

    Args:
        gated: promotes only what scores higher on held-out questions; else all.
        takes_back: returns to the version before when the helpful rate of three days is below that before it.
    """

    def __init__(
        self, when: Callable[["Retrains", int], bool], *, gated: bool = False, takes_back: bool = False
    ) -> None:
        self.when, self.gated, self.takes_back = when, gated, takes_back
        self.feedback = Feedback()
        self.last, self.learned = 0, 0
        self.before: tuple[str, int, float | None] | None = None

    def day(self, events: list[Event], year: Year) -> None:
        """Trains, promotes, takes back."""
        self.feedback.add(events)
        today, serving = events[0]["day"], events[0]["serving"]
        if self.before and self.takes_back and today >= self.before[1] + 3:
            version, since, rate = self.before
            now = self.feedback.rate(today - 2, today + 1)
            if now is not None and rate is not None and now < rate:
                year.act({"type": "promote", "version": version})
            if now is not None or today > since + 14:
                self.before = None
            return
        if not self.feedback.newest or not self.when(self, today):
            return
        self.last, self.learned = today, self.feedback.corrections
        rows = [[question, answer] for question, answer in self.feedback.newest.items()]
        held = [row for row in rows if int(row[0].split(".w")[1]) % HELD_OUT == 0] if self.gated else []
        taught = [row for row in rows if row not in held]
        candidate = year.act({"type": "train", "rows": taught})
        if candidate["type"] == "failed" or (held and not self._better(candidate["version"], serving, held, year)):
            return
        self.before = serving, today, self.feedback.rate(today - 6, today + 1)
        year.act({"type": "promote", "version": candidate["version"]})

    @staticmethod
    def _better(candidate: str, serving: str, held: list[list[str]], year: Year) -> bool:
        questions, rights = [row[0] for row in held], [row[1] for row in held]
        scores = [
            sum(a == b for a, b in zip(answers, rights, strict=True))
            for version in (candidate, serving)
            for answers in [year.act({"type": "ask", "version": version, "questions": questions})["answers"]]
        ]
        return scores[0] > scores[1]


def monthly(system: Retrains, today: int) -> bool:
    return today - system.last >= 30


def at_drift(system: Retrains, today: int) -> bool:
    return today - system.last >= COOL_DOWN and system.feedback.drifted()


def at_corrections(system: Retrains, today: int) -> bool:
    return today - system.last >= COOL_DOWN and system.feedback.corrections - system.learned >= CORRECTIONS


class Remembers:
    """Puts corrections in front of the model as they come, and never trains: the newest `most` of them."""

    def __init__(self, most: int) -> None:
        self.most, self.feedback = most, Feedback()
        self.held: dict[str, str] = {}

    def day(self, events: list[Event], year: Year) -> None:
        """Remembers the day's corrections."""
        for event in self.feedback.add(events):
            self.held.pop(event["question"], None)
            self.held[event["question"]] = event["correction"]
            year.act({"type": "remember", "question": event["question"], "answer": event["correction"]})
        while len(self.held) > self.most:
            question = next(iter(self.held))
            del self.held[question]
            year.act({"type": "remember", "question": question, "answer": None})


class Oracle:
    """Knows what is right: remembers it on the day of a change, trains when that pays, and promotes what is better."""

    def day(self, events: list[Event], year: Year) -> None:
        """Acts on the truth of the day."""
        today, truth, mix = events[0]["day"], year.truth, year.world.mix(events[0]["day"])
        rows = [
            [f"t{topic}.w{wording}", year.text(topic, int(answer))]
            for topic, answer in enumerate(truth)
            if mix[topic] > 0
            for wording in range(WORDINGS)
        ]
        before = max(today - 1, 0)
        asked = (mix > 0) & (year.world.mix(before) == 0)
        if today == 0 or asked.any() or (truth != year.world.truth[before]).any():
            for question, answer in rows:
                year.act({"type": "remember", "question": question, "answer": answer})
        worth = year.world.scenario.answers * (RIGHT_GAIN + WRONG_COST) * PAYS_WITHIN
        cost = HOUR_COST * (HOURS + HOURS_PER_ROW * len(rows))
        # What a training gains is only asked where one that leaves nothing wrong would pay.
        if (1 - year.record.right[-1]) * worth > cost and year.expected(rows) * worth > cost:
            made = year.act({"type": "train", "rows": rows})
            if made["type"] == "trained" and year.better(made["version"]):
                year.act({"type": "promote", "version": made["version"]})


BASELINES: dict[str, Callable[[], "Never | Retrains | Remembers"]] = {
    "never": Never,
    "monthly": lambda: Retrains(monthly),
    "drift_alarms": lambda: Retrains(at_drift),
    "ungated": lambda: Retrains(at_corrections),
    "threshold_gate": lambda: Retrains(at_corrections, gated=True),
    "always_roll_back": lambda: Retrains(at_corrections, gated=True, takes_back=True),
    "in_context": lambda: Remembers(IN_CONTEXT),
    "retrieval": lambda: Remembers(10**6),
}
