"""The product's decisions in the simulated year, by its own functions: nothing of them is copied here.

- which statement is right: `retrain.data.truth.discover` and `retrain.data.crowd.Crowd`
- which answers wait because they were replaced on other questions: `retrain.data.moved.Moved`
- when to retrain, and whether that pays: `daemon.policy.decision.decide`
- whether a candidate is promoted: `retrain.decision.gate.decide`, with folds where the holdout is too small
- whether it is taken back: `monitors.watch.comparison`, on votes clustered by account (`monitors.rates`)
- what the memory holds: an expert's correction, or one that two independent accounts give and that is upheld

This module only carries events to these functions, as the warehouse's queries do in production, with default settings.
Parts can be left out by name.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import permutations
from types import MappingProxyType
from typing import Any

import numpy as np

from fixtures.worlds.candidates import Row
from loop.systems import Feedback
from loop.world import ANSWERS
from loop.year import HOUR_COST, RIGHT_GAIN, WRONG_COST, Event, Year
from retuned.daemon.policy.decision import Evidence, decide
from retuned.daemon.policy.payoff import Money, PastRun
from retuned.daemon.policy.ratings import UNRATED, Ratings
from retuned.daemon.settings import PolicySettings
from retuned.monitors.rates.estimate import evidence_effect
from retuned.monitors.rates.votes import Votes, of_units
from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch import comparison as watch
from retuned.monitors.watch.counts import Reference, counts_of
from retuned.retrain.data.crowd import Crowd, Statement
from retuned.retrain.data.examples import Example
from retuned.retrain.data.moved import Moved
from retuned.retrain.data.truth import Question, Verdict, Vote, discover
from retuned.retrain.decision import gate
from retuned.retrain.memory.settings import MemorySettings
from retuned.retrain.scoring.exact import Exact
from retuned.retrain.settings import DatasetSettings, GateSettings

PARTS = ("policy", "vetting", "gate", "watch", "memory", "second_account")
"""Parts that can be left out; also `training`, which leaves the memory alone. Without `second_account` the memory takes
the correction of one account, if it is upheld."""
POLICY, GATE, WATCH, DATASET, MEMORY = (
    PolicySettings(), GateSettings(), WatchSettings(), DatasetSettings(), MemorySettings()
)  # fmt: skip
EPOCH, DAY = datetime(2026, 1, 1), timedelta(days=1)
READ_DAYS = 60
"""Statements of so many days are read, for speed."""
CROWD_DAYS = 28
"""Who copies whom is looked at so often for the memory, for speed; for each dataset, anew."""
LOOK_DAYS = 3
"""The policy looks so often, for speed."""
INDEPENDENT = 2
FOLDS = 4
RECENT_DAYS, CONVERSATIONS = 14, 1_000
"""Days of traffic of which so many conversations are drawn, to count what is asked."""


@dataclass(frozen=True)
class Run:
    """A run that trained."""

    day: int
    statements: int
    past: PastRun


@dataclass(frozen=True)
class Watched:
    """A promotion that is watched."""

    version: str
    previous: str
    day: int


class Ours:
    """The product, without the named parts."""

    def __init__(self, without: Collection[str] = ()) -> None:
        self.without = frozenset(without)
        self.feedback = Feedback()
        self.log: list[Event] = []
        self.first_seen: dict[str, datetime] = {}
        self.champion_day, self.learned_until = 0, 0
        self.runs: list[Run] = []
        self.refused = self.tries = 0
        self.taken_back = False
        self.watched: Watched | None = None
        self.held: dict[str, str] = {}
        self.last_drift: list[bool] = []
        self.daily: list[Ratings] = []
        self.asked: list[dict[str, int]] = []
        self.by_topic = defaultdict[str, list[Event]](list)
        self.crowd: Crowd | None = None
        self.crowd_day = 0

    def day(self, events: list[Event], year: Year) -> None:
        """What the daemon does on a day, in its order."""
        today, serving = events[0]["day"], events[0]["serving"]
        corrections = self.feedback.add(events)
        for event in events:
            if event["type"] == "traffic":
                self.asked.append(event["questions"])
            if event["type"] == "feedback":
                event |= {"arrived": today, "number": len(self.log)}
                self.log.append(event)
                self.by_topic[event["question"].split(".")[0]].append(event)
                self.first_seen.setdefault(event["account"], EPOCH + today * DAY)
        if "memory" not in self.without and corrections:
            self._remember(corrections, today, year)
        if self.watched and "watch" not in self.without and self._fails(today):
            year.act({"type": "promote", "version": self.watched.previous})
            self.watched, self.taken_back, self.champion_day = None, True, today
            self.refused += 1
            return
        if "training" not in self.without and today % LOOK_DAYS == 0 and self._retrains(today):
            self._run(today, serving, year)

    # Memory.

    def _remember(self, corrections: Sequence[Event], today: int, year: Year) -> None:
        asked = {event["question"] for event in corrections if self._may_hold(event)}
        if not asked:
            return
        topics = {question.split(".")[0] for question in asked}
        recent = [one for topic in topics for one in self.by_topic[topic] if one["arrived"] > today - READ_DAYS]
        recent.sort(key=lambda one: one["number"])
        if self.crowd is None or today - self.crowd_day >= CROWD_DAYS:
            self.crowd, self.crowd_day = self._table(self._recent(today), ()).crowd, today
        found = self._table(recent, asked, self.crowd)
        for question in sorted(asked):
            verdict, answer = found.verdicts[question], found.answer(question)
            if answer is not None and (verdict.by_expert or found.independent(question) >= self._needed):
                self._hold(question, answer, year)
                # What it replaced is replaced for related questions, too.
                old = found.before(question)
                for other in [one for one, text in self.held.items() if text == old]:
                    self._hold(other, None, year)

    def _may_hold(self, event: Event) -> bool:
        """Whether an expert gave the answer, or another account, too."""
        same = (one["account"] for one in self.by_topic[event["question"].split(".")[0]]
                if one["question"] == event["question"] and _text(one) == event["correction"])  # fmt: skip
        return event["expert"] or len(set(same)) >= self._needed

    @property
    def _needed(self) -> int:
        return 1 if "second_account" in self.without else INDEPENDENT

    def _hold(self, question: str, answer: str | None, year: Year) -> None:
        if self.held.get(question) == answer:
            return
        self.held.pop(question, None)
        if answer is not None:
            self.held[question] = answer
        act = {"type": "remember", "question": question, "answer": answer, "held_out": MEMORY.holdout_share}
        year.act(act)

    def _retire(self, version: str, year: Year) -> None:
        """An entry goes once the version in service gives its answer without it."""
        if self.held:
            questions = list(self.held)
            answers = year.act({"type": "ask", "version": version, "questions": questions})["answers"]
            for question, answer in zip(questions, answers, strict=True):
                if self.held[question] == answer:
                    self._hold(question, None, year)

    # Watch.

    def _fails(self, today: int) -> bool:
        assert self.watched is not None
        one = self.watched
        age = (today + 1 - one.day - 1) * DAY
        before, days = self._votes(one.previous, one.day - 27, one.day)
        after, _ = self._votes(one.version, one.day + 1, today)
        accounts = sorted(before.keys() | after.keys())
        units = np.array(
            [[*before.get(name, (0, 0)), *after.get(name, (0, 0)), 1] for name in accounts], dtype=np.float64
        ).reshape(-1, 5)
        votes = Votes(units, units[:, :4].sum(axis=0, keepdims=True))
        if age < DAY or not days:
            return False
        weeks = max(min(4, len(days) // 7), 1)
        counts = counts_of(
            Reference("week", 7 * DAY, weeks), votes, votes, np.array(list(days.values()), dtype=np.float64)
        )
        kinds = {("helpful", "user"): [counts]}
        compared = [watch.compare("helpful", "user", [counts], WATCH)]
        verdict, _ = watch.decide(compared, age, age, watch.power(kinds, age, WATCH), WATCH)
        if verdict == "keep":
            self.watched = None
        return verdict == "roll_back"

    def _votes(
        self, version: str | None, first: int, last: int
    ) -> tuple[dict[str, tuple[float, float]], dict[int, tuple[float, float]]]:
        """Bad votes and all votes of users on answers of these days: of each account and of each day."""
        units, days = defaultdict[str, list[bool]](list), defaultdict[int, list[bool]](list)
        for vote in reversed(self.log):
            if vote["arrived"] < first:
                break
            if version in (None, vote["version"]) and first <= vote["answered"] <= last and _counts(vote):
                units[vote["account"]].append(not vote["helpful"])
                days[vote["answered"]].append(not vote["helpful"])
        return (
            {name: (float(sum(bad)), float(len(bad))) for name, bad in units.items()},
            {day: (float(sum(bad)), float(len(bad))) for day, bad in days.items()},
        )

    # Policy.

    def _retrains(self, today: int) -> bool:
        self.last_drift.append(self.feedback.drifted())
        if "policy" in self.without:
            last = self.runs[-1].day if self.runs else 0
            return today - last >= 30
        evidence = self._evidence(today)
        return decide(evidence, POLICY, EPOCH + (today + 1) * DAY).retrain

    def _evidence(self, today: int) -> Evidence:
        since_run = self.runs[-1].statements if self.runs else 0
        new = [one for one in self.log[min(since_run, self.learned_until) :] if one["correction"]]
        untried = [one for one in new if one["number"] >= since_run]
        ratings = self._ratings(today)
        return Evidence(
            drifted=tuple(reversed(self.last_drift[-POLICY.drift_checks :])) if self._since_change(today) else (),
            ratings=ratings,
            new_corrections=sum(one["answered"] > self.champion_day for one in untried),
            untried_corrections=len(untried),
            corrections_to_learn=sum(one["number"] >= self.learned_until for one in new),
            taken_back=self.taken_back,
            refused_runs=self.refused,
            last_run_finished_at=EPOCH + self.runs[-1].day * DAY if self.runs else None,
            money=self._money(today, ratings),
        )

    def _since_change(self, today: int) -> bool:
        last = max(self.runs[-1].day if self.runs else 0, self.champion_day)
        return today - last >= POLICY.drift_checks

    def _ratings(self, today: int) -> tuple[Ratings, ...]:
        while len(self.daily) < today:
            units = [
                (votes - bad, votes) for bad, votes in self._votes(None, len(self.daily), len(self.daily))[0].values()
            ]
            helpful, total = (int(sum(one[side] for one in units)) for side in (0, 1))
            effect = evidence_effect(of_units(units)) if any(votes > 1 for _, votes in units) else 1.0
            self.daily.append(Ratings(helpful, total, effect) if units else UNRATED)
        return tuple(self.daily[self.champion_day + 1 if self.champion_day else 0 :])

    def _money(self, today: int, ratings: Sequence[Ratings]) -> Money | None:
        if not self.runs:
            return None
        rated = sum(ratings[-30:], UNRATED)
        answers = sum(sum(day.values()) for day in self.feedback.traffic[-30:])
        return Money(
            currency="EUR", gains=answers * rated.rate * (RIGHT_GAIN + WRONG_COST),
            days=float(min(today + 1, 30)), answers=answers, ratings=rated, hourly_rate=HOUR_COST,
            runs=tuple(run.past for run in self.runs[-10:]),
        )  # fmt: skip

    # A run.

    def _run(self, today: int, serving: str, year: Year) -> None:
        table = self._table(self._recent(today))
        rights = table.current()
        held = {question: answer for question, answer in rights.items() if _held_out(question)}
        fresh = {one["question"] for one in self.log[self.learned_until :]}
        new = [[question, answer] for question, answer in rights.items() if question in fresh and question not in held]
        old = [[question, answer] for question, answer in rights.items() if question not in fresh | held.keys()]
        rows = [*new, *_spread(old, round(len(new) * DATASET.replay_share / (1 - DATASET.replay_share)))]
        if not rows:
            return
        made = year.act({"type": "train", "rows": rows})
        if made["type"] == "failed":
            self._finish(Run(today, len(self.log), PastRun(len(new), 3_600 * made["hours"], False)), False)
            return
        version = made["version"]
        judged = {question: answer for question, answer in held.items() if question in fresh}
        earlier = {question: answer for question, answer in held.items() if question not in fresh}
        decision = self._judged(serving, version, judged, earlier, rows, new, year)
        promoted = decision.outcome or "gate" in self.without
        figures = decision.figures
        past = PastRun(
            len(new), 3_600 * made["hours"], promoted, figures.get("score_champion"), figures.get("score_candidate")
        )
        self._finish(Run(today, len(self.log), past), promoted)
        if promoted:
            year.act({"type": "promote", "version": version})
            self.watched = Watched(version, serving, today)
            self.champion_day, self.learned_until, self.tries, self.taken_back = today, len(self.log), 0, False
            self._retire(version, year)

    def _finish(self, run: Run, promoted: bool) -> None:
        self.runs.append(run)
        self.refused = 0 if promoted else self.refused + 1

    def _judged(
        self, serving: str, version: str, judged: Mapping[str, str], earlier: Mapping[str, str],
        rows: Sequence[list[str]], new: Sequence[list[str]], year: Year,
    ) -> Any:  # fmt: skip
        asked = self._asked()
        champion, candidate = (_answers(one, judged, year, asked) for one in (serving, version))
        regression = [_answers(one, earlier, year) for one in (serving, version)]
        decision = gate.decide(champion, candidate, *regression, GATE, tries=self.tries, conversations=asked.total())
        self.tries += 1
        if decision.outcome or not gate.lacks_evidence(decision) or len(new) > GATE.fold_rows or len(new) < FOLDS:
            return decision
        for fold in range(FOLDS):
            part = dict(row for k, row in enumerate(new) if k % FOLDS == fold)
            rest = [row for row in rows if row[0] not in part]
            made = year.act({"type": "train", "rows": rest, "fold": True})
            if made["type"] == "failed":
                return decision
            champion += _answers(serving, part, year, asked)
            candidate += _answers(made["version"], part, year, asked)
        folded = gate.decide(
            champion, candidate, *regression, GATE, tries=self.tries, folded=len(new), conversations=asked.total()
        )
        self.tries += 1
        return folded

    def _asked(self) -> Counter[str]:
        """How often a sample of recent conversations asks each question."""
        recent = sum(map(Counter, self.asked[-RECENT_DAYS:]), Counter[str]())
        drawn = np.random.default_rng(len(self.asked)).multivariate_hypergeometric(
            list(recent.values()), min(CONVERSATIONS, recent.total())
        )
        return Counter(dict(zip(recent, drawn.tolist(), strict=True)))

    def _table(self, log: Sequence[Event], asked: Collection[str] | None = None, crowd: Crowd | None = None) -> "Table":
        return Table(log, self.first_seen, "vetting" not in self.without, asked, crowd)

    def _recent(self, today: int) -> list[Event]:
        return [one for one in self.log if one["arrived"] > today - READ_DAYS]


class Known(Crowd):
    """Compares all accounts once, as a year asks for the same ones many times. The weights are those of `Crowd`."""

    @cached_property
    def _same(self) -> Any:
        numbers = list(self._index.values())
        sources = np.array([self._index.get(self.source(name), -1) for name in self._index])
        return self._alike(numbers) | ((sources[:, None] == sources[None, :]) & (sources >= 0)[:, None])

    def shares(self, accounts: Sequence[str]) -> list[float]:
        """See `Crowd.shares`."""
        if len(accounts) < 2:
            return [1.0] * len(accounts)
        numbers = np.array([self._index.get(name, -1) for name in accounts])
        alike = self._same[np.ix_(numbers, numbers)] & (numbers >= 0)[:, None] & (numbers >= 0)[None, :]
        np.fill_diagonal(alike, True)
        shares: list[float] = (1 / alike.sum(axis=1)).tolist()
        return shares


class Table:
    """What is right by the statements of people; without vetting, the newest one."""

    def __init__(
        self,
        log: Iterable[Event],
        first_seen: Mapping[str, datetime],
        vetted: bool,
        asked: Collection[str] | None,
        crowd: Crowd | None,
    ) -> None:
        self.stated = defaultdict[str, list[Event]](list)
        for one in log:
            self.stated[one["question"]].append(one)
        self._texts = {
            question: sorted({text for one in own if (text := _text(one)) is not None} | {own[0]["answer"]})
            for question, own in self.stated.items()
        }
        questions = {question: self._question(question) for question in self.stated}
        known = {question: one for question, one in questions.items() if any(v.kind != "declined" for v in one.votes)}
        self.crowd = crowd or self._crowd(known, first_seen)
        self._questions = questions
        none = Verdict(None, 0.0)
        self.verdicts = dict.fromkeys(questions, none)
        if vetted:
            chosen = [name for name in known if asked is None or name in asked]
            truth = discover(self._with_elsewhere(known, chosen), self.crowd)
            self.verdicts |= zip(chosen, truth.verdicts, strict=True)
        else:
            for name, one in known.items():
                last = [vote for vote in one.votes if vote.kind != "declined"][-1]
                self.verdicts[name] = Verdict(last.claim, 1.0, by_expert=True)

    def answer(self, question: str) -> str | None:
        """The answer that is right; None: it is not known."""
        claim = self.verdicts[question].claim
        return None if claim is None else self._texts[question][claim]

    def current(self) -> dict[str, str]:
        """The answers to teach or to evaluate, by question: without those that were replaced on other questions."""
        today = {question: self._row(question, answer)
                 for question in self.verdicts if (answer := self.answer(question)) is not None}  # fmt: skip
        every = [self._row(question, text) for question in today for text in self._texts[question]
                 if any(_text(one) == text for one in self.stated[question])]  # fmt: skip
        moved = Moved(every, today, Exact(), self._contradictions(today), self.crowd)
        return {question: row.completion for question, row in today.items() if not moved.outdated(row)}

    def _contradictions(self, today: Mapping[str, Example]) -> Iterator[tuple[Example, str]]:
        """The answers that users give after an expert gave another one, each with its account."""
        for question, right in today.items():
            if not self.verdicts[question].by_expert:
                continue
            last = {one["account"]: text for one in self.stated[question] if (text := _text(one)) is not None}
            for one in self.stated[question]:
                text = _text(one)
                if text is None or one["expert"] or right.completion in (text, last[one["account"]]):
                    continue
                if _at(one) >= right.timestamp:
                    yield self._row(question, text), one["account"]

    def _row(self, question: str, answer: str) -> Example:
        """The newest statement of an answer, an expert's before others, as a row of a dataset."""
        own = (one for one in self.stated[question] if _text(one) == answer)
        said = max(own, key=lambda one: (one["expert"], one["number"]))
        at = _at(said)
        kind, rejected = ("correction", said["answer"]) if said["correction"] else ("accepted", None)
        source = "expert" if said["expert"] else "user"
        return Example(
            f"{question} {answer}", question, question, question, "[]", answer, kind, source, rejected, None, "",
            str(said["number"]), at, at,
        )  # fmt: skip

    def before(self, question: str) -> str | None:
        """The answer that was right before it changed."""
        claim = self.verdicts[question].before
        return None if claim is None else self._texts[question][claim]

    def independent(self, question: str) -> float:
        """How many independent accounts gave the answer last."""
        claim = self.verdicts[question].claim
        final = self._questions[question].final
        return self.crowd.independent((vote.account, vote.at) for vote in final if vote.claim == claim)

    def _question(self, question: str) -> Question:
        texts, votes = self._texts[question], []
        for one in self.stated[question]:
            text = _text(one)
            if text is None and one["helpful"]:
                continue
            kind = "correction" if one["correction"] else "accepted" if one["helpful"] else "declined"
            claim = texts.index(text if text is not None else one["answer"]) if (text or one["answer"]) in texts else -1
            if claim >= 0:
                votes.append(Vote(str(one["number"]), one["account"], claim, _at(one), kind, one["expert"]))
        votes.sort(key=lambda vote: vote.at)
        every = frozenset(range(len(texts)))
        return Question(votes, [every - {claim} for claim in range(len(texts))], wrong_answers=ANSWERS - 1)

    def _crowd(self, known: Mapping[str, Question], first_seen: Mapping[str, datetime]) -> Crowd:
        statements = {
            name: [
                Statement(vote.account, self._texts[name][vote.claim], vote.at, vote.kind == "correction")
                for vote in one.votes
            ]
            for name, one in known.items()
        }
        quiet = [one for own in statements.values() if len({each.text for each in own}) == 1 for one in own]
        return Known((one for own in statements.values() for one in own), first_seen, quiet)

    def _with_elsewhere(self, known: Mapping[str, Question], chosen: Iterable[str]) -> list[Question]:
        """Adds the votes on other questions that have the same two answers."""
        pairs = defaultdict[tuple[str, str], list[tuple[str, str, datetime]]](list)
        for name, one in known.items():
            for old, new in permutations(self._texts[name], 2):
                claim = self._texts[name].index(old)
                pairs[old, new] += [
                    (name, vote.account, vote.at)
                    for vote in one.final
                    if vote.claim == claim and vote.kind != "declined"
                ]
        found = []
        for name in chosen:
            one, texts = known[name], self._texts[name]
            elsewhere = {
                (a, b): [(who, at) for other, who, at in pairs[texts[a], texts[b]] if other != name]
                for a, b in permutations(range(len(texts)), 2)
            }
            found.append(Question(one.votes, one.rivals, {}, one.wrong_answers, elsewhere, self._until))
        return found

    @cached_property
    def _until(self) -> datetime:
        return max(vote.at for one in self._questions.values() for vote in one.votes)


def _at(event: Event) -> datetime:
    return EPOCH + event["answered"] * DAY + event["number"] * timedelta(seconds=1)


def _text(event: Event) -> str | None:
    """The answer that an event states to be right."""
    return event["correction"] or (event["answer"] if event["helpful"] else None)


def _counts(vote: Event) -> bool:
    """Whether a vote is a user's and came within a day."""
    return not vote["expert"] and vote["arrived"] <= vote["answered"] + 1


def _held_out(question: str) -> bool:
    share = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4]) / 2**32
    return share < DATASET.holdout_share


def _spread(rows: Sequence[list[str]], most: int) -> list[list[str]]:
    """So many rows, in turn from each topic."""
    place = defaultdict[str, int](int)
    ranked = []
    for row in rows:
        topic = row[0].split(".")[0]
        place[topic] += 1
        ranked.append((place[topic], row))
    return [row for _, row in sorted(ranked)[:most]]


def _answers(
    version: str, rights: Mapping[str, str], year: Year, asked: Mapping[str, int] = MappingProxyType({})
) -> list[Any]:
    """The gate's rows of a version's answers."""
    if not rights:
        return []
    answers = year.act({"type": "ask", "version": version, "questions": list(rights)})["answers"]
    return [
        Row(question, float(answer == right), slices=(f"topic:{question.split('.')[0]}",), asked=asked.get(question, 0))
        for (question, right), answer in zip(rights.items(), answers, strict=True)
    ]
