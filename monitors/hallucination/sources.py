"""Sources: the clauses of an answer's passages, what stands where in them, and how close they are to a claim."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from heapq import nlargest
from itertools import groupby, pairwise

from retuned.monitors.hallucination.clauses import INHERITED, Clause, read
from retuned.monitors.hallucination.values import LOOSE, Value, same
from retuned.monitors.hallucination.vocabulary import OPPOSITES, concept

MOST_CHARACTERS = 20_000
"""Of the passages of an answer, together, so much is read."""
SUBJECT = 0.6
"""What a clause is about to this degree is its subject."""
ANY_MONEY = "any money"
_MOST_PLACES = 64
"""Of a word that stands in more clauses than this, the first ones count: it tells little."""
_MOST_RIVALS = 32
_PERIODS = {"3600": "hour", "86400": "day", "604800": "week", "1 months": "month", "12 months": "year"}
_INCLUDED, _DAILY = concept("include"), concept("daily")


class Sources:
    """The clauses of the passages, and what stands where."""

    def __init__(self, clauses: list[Clause]) -> None:
        self.clauses = clauses
        self.denying = set[int]()
        """The clauses of sentences that deny something."""
        for _, group in groupby(range(len(clauses)), key=lambda index: clauses[index].sentence):
            sentence = list(group)
            if any(is_denying(clauses[index]) for index in sentence):
                self.denying.update(sentence)
        self.names = {name for clause in clauses for name in clause.names}
        self.equal: dict[str, list[tuple[Value, int]]] = defaultdict(list)
        """What may equal a value, by _keys, with the index of its clause."""
        self.held: dict[str, list[int]] = defaultdict(list)
        """Word or value's token to the clauses that hold it."""
        self.about: dict[str, dict[int, float]] = defaultdict(dict)
        """Word or value's token to the clauses that are about it, and how much."""
        for index, clause in enumerate(clauses):
            for value in clause.values:
                for key in [*_keys(value, stored=True), f"per {value.per}"]:
                    if len(self.equal[key]) < _MOST_PLACES:
                        self.equal[key].append((value, index))
            for token in dict.fromkeys(clause.sequence):
                if len(self.held[token]) < _MOST_PLACES:
                    self.held[token].append(index)
            for token, weight in clause.scope.items():
                if len(self.about[token]) < _MOST_PLACES:
                    self.about[token][index] = weight
        self.spans = {f"{seconds}" for clause in clauses for seconds in _spans(clause)}
        """Seconds between two times of a clause."""
        self.rivals = self._rivals()
        self.weight = {token: math.log(1 + len(clauses) / len(held)) for token, held in self.held.items()}

    def _rivals(self) -> dict[str, set[str]]:
        """Words of which one can stand where another should: modifiers of one word (standard and express delivery),
        names in one place (by Robin, by Agnieszka), numbered things (Flex 10, Flex 30), opposites."""
        groups: dict[str, set[str]] = defaultdict(set)
        modified = {word for clause in self.clauses for _, word in clause.modifiers}
        for clause in self.clauses:
            for word, head in clause.modifiers:
                if word not in modified:
                    groups[head].add(word)
            for place, word in clause.neighbours:
                if word in self.names:
                    groups[place].add(word)
            for value in clause.values:
                if value.kind.startswith("no. "):
                    groups[value.kind].add(value.token)
        rivals: dict[str, set[str]] = defaultdict(set)
        for group in groups.values():
            if 1 < len(group) <= 12:
                for word in group:
                    rivals[word] |= group - {word}
        for word, opposites in OPPOSITES.items():
            if found := opposites & self.held.keys():
                rivals[word] |= found
        return rivals

    def holding(self, value: Value) -> list[tuple[Value, int]]:
        """Where a value stands."""
        candidates = [found for key in _keys(value, stored=False) for found in self.equal.get(key, ())]
        found = [(other, index) for other, index in candidates if same(value, other)]
        for key in value.keys:  # what costs 5 euros a week is paid for a week
            found += self.equal.get(f"per {_PERIODS[key]}", ()) if key in _PERIODS else ()
        if value.kind == "%" and value.number and value.number < 1:  # half of what stands there
            found += self._shares(value.number)
        if value.kind == "times" and value.number == 1:  # once a year is annually
            found += [(value, index) for index in self.held.get(concept(value.per), ())]
        if value.kind == "weekday" and not found:
            found += [(value, index) for index in self.held.get(_DAILY, ())]
        if value.kind == "money" and value.number == 0:  # what is included costs nothing more
            found += [(value, index) for index in self.held.get(_INCLUDED, ())]
        return found

    def _shares(self, fraction: float) -> Iterator[tuple[Value, int]]:
        """Amounts of money that are a fraction of another."""
        for value, index in self.equal.get(ANY_MONEY, ()):
            if value.number and f"money {value.number / fraction:.12g}" in self.equal:
                yield value, index


def _spans(clause: Clause) -> Iterator[int]:
    times = [[int(key) for key in value.keys] for value in clause.values if value.kind == "time"]
    for one, other in pairwise(times):
        yield from ((end - start) * 60 for start in one for end in other if end > start)


def _keys(value: Value, *, stored: bool) -> Iterator[str]:
    """The keys under which a value is stored, or looked up: by its amount, and by its number where kinds may differ."""
    for key in value.keys:
        yield f"{value.kind} {key}"
        if stored and value.kind == "date":
            yield f"month {key.partition('-')[0]}"
    if stored and value.kind == "money":
        yield ANY_MONEY
    if value.number is None:
        return
    if value.kind in LOOSE:
        yield f"loose {value.number:g}"
    if (not value.kind) != stored:
        yield f"any {value.number:g}"
    if bool(value.kind) != stored:
        yield f"bare {value.number:g}"


@lru_cache(maxsize=256)
def sources_of(passages: tuple[str, ...]) -> Sources:
    """The passages, read; many answers share theirs."""
    left, clauses = MOST_CHARACTERS, list[Clause]()
    for passage in passages:
        clauses += read_once(passage[:left])
        left -= min(left, len(passage))
    return Sources(clauses)


@lru_cache(maxsize=1_024)
def read_once(passage: str) -> tuple[Clause, ...]:
    return tuple(read(passage))


class Match:
    """How close the clauses of the sources are to a claim: the weight of what both are about."""

    def __init__(self, claim: Clause, sources: Sources) -> None:
        self._about = sources.about
        self._parts = {
            token: (weight * sources.weight[token], 1.0 if weight == 1 else INHERITED)
            for token, weight in claim.scope.items()
            if token in sources.weight
        }
        self.scores: dict[int, float] = defaultdict(float)
        for token in self._parts:
            for index in sources.about[token]:
                self.scores[index] += self._part(token, index)
        self.closest = nlargest(_MOST_RIVALS, self.scores, key=lambda index: (self.scores[index], -index))
        """The closest clauses, the very closest first."""

    def _part(self, token: str, index: int) -> float:
        # What both take over from the clause before counts as if both said it.
        weight, full = self._parts[token]
        return weight * min(self._about[token].get(index, 0.0) / full, 1.0)

    def is_told_apart(self, others: Iterable[int], own: Iterable[int], without: Iterable[str]) -> bool:
        """Whether the claim has a word that some clauses are about, and none of some others fully."""
        return any(
            max((self._about[token].get(i, 0.0) for i in others), default=0.0) >= SUBJECT
            and max((self._about[token].get(i, 0.0) for i in own), default=0.0) < INHERITED
            for token in self._parts.keys() - set(without)
        )

    def best(self, indices: Iterable[int], without: Iterable[str]) -> float:
        """The closest of some clauses, when some words and values do not count."""
        left_out = [token for token in without if token in self._parts]
        return max(
            (self.scores.get(i, 0.0) - sum(self._part(token, i) for token in left_out) for i in indices), default=0.0
        )


def is_denying(clause: Clause) -> bool:
    return clause.exclusive or not all(clause.words.values())
