"""Clauses: what a text says, piece by piece. Its words with what is denied, its values, and what each is about."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from retuned.consumers.privacy.placeholders import unnumbered
from retuned.monitors.hallucination.values import Token, Value, money, tokens
from retuned.monitors.hallucination.vocabulary import (
    AUXILIARIES,
    COSTS,
    DENIALS,
    DENYING,
    DETERMINERS,
    EXCEPTIONS,
    EXCLUSIVE,
    FREE,
    NOT_DENIED,
    NOT_DONE,
    OPPOSITES,
    PHRASES,
    PRONOUNS,
    STOP_WORDS,
    UNIVERSAL,
    US,
    concept,
    stem,
)

INHERITED = 0.9
"""How much a clause is about what the one before it, of the same sentence, is about."""
_LOOSE = 0.5
_FOLLOWING = 0.55
_NEAR = 6
"""Clauses of a sentence further apart than this say nothing of each other."""

_LONGEST = 64
"""Words and values of a clause; a longer one is cut."""

_SENTENCE_END = re.compile(r"[.!?]+[\"”’)]?(?=\s)|\n+")
_LAST_WORD = re.compile(r"[^\W\d_]+\Z")
_LIST_MARK = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*•])\s+")
_LEAD = re.compile(r"^\W*(?:yes|no|sure|sorry|of course|certainly|absolutely|unfortunately)\b[\s,.!–-]*", re.IGNORECASE)
_CONTRACTED = frozenset("s ll re ve d m".split())
_ABBREVIATIONS = frozenset("dr mr mrs ms prof st approx incl excl tel vs ca".split())
_BREAKS = frozenset("and but while whereas although though because if when whenever then so which who".split())
_CONDITIONS = frozenset(
    "with for if when on in at as after during to since because once by under from above over below".split()
)
_PREPOSITIONS = frozenset("to by from through via with at".split())
_AROUND = frozenset("in on for of after before during within until till as about against".split())
_LISTED = frozenset({"weekday", "date", "time", "month"})
_BOUNDING = frozenset("more longer later less fewer earlier only just".split())
_COST, _FREE, _OTHERWISE = concept("cost"), money(0.0), concept("otherwise")


@dataclass(slots=True)
class Clause:
    """A clause of a sentence.

    Attributes:
        sentence: the number of its sentence in the text.
        sequence: concepts and the tokens of values, in order.
        words: concepts, and whether they are affirmed.
        values: the values it states, in order.
        kinds: the values' tokens and their kinds.
        names: those of its words that have a capital within the sentence, and codes.
        predicates: those of its words that a denial stands right before.
        apart: those of its words that are denied by themselves (without flash, unworn), not with the clause.
        subject: its words before the first auxiliary verb, or the first word.
        main: the word that an auxiliary verb stands before.
        modifiers: words with the word right behind each.
        neighbours: names with what stands right before or behind them.
        own_subject: it does not take over what the clause before it is about.
        pronoun: it, they and the like stand for its subject.
        condition: it says when or for whom the next one holds.
        item: it may be an item of a list.
        bare: it has neither verb, pronoun, denial nor value, as far as that can be seen.
        elliptic: all that it says is what the clause before it does not hold for: "but not on Sundays".
        hours: from when until when: that is about opening and closing alike.
        objects: the words behind each of its prepositions of a party or a way (to, by, from).
        announces: a colon ends it, what it speaks of comes behind.
        lead: the clauses that announce the list in whose lines it stands.
        us: somebody who speaks or is spoken to is in it.
        universal, exclusive: it speaks of all (both, every), of one only.
        scope: what it is about. Its own words weigh 1, those of clauses nearby less.
    """

    sentence: int
    sequence: list[str] = field(default_factory=list)
    words: dict[str, bool] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    predicates: set[str] = field(default_factory=set)
    apart: set[str] = field(default_factory=set)
    subject: set[str] = field(default_factory=set)
    main: set[str] = field(default_factory=set)
    modifiers: list[tuple[str, str]] = field(default_factory=list)
    neighbours: list[tuple[str, str]] = field(default_factory=list)
    own_subject: bool = False
    pronoun: bool = False
    condition: bool = False
    item: bool = False
    bare: bool = False
    elliptic: bool = False
    hours: bool = False
    objects: list[list[str]] = field(default_factory=list)
    announces: bool = False
    lead: list["Clause"] = field(default_factory=list)
    us: bool = False
    universal: bool = False
    exclusive: bool = False
    scope: dict[str, float] = field(default_factory=dict)


def read(text: str) -> list[Clause]:
    """The clauses of a text, in time linear in its length."""
    clauses: list[Clause] = []
    lead: list[Clause] = []
    for number, sentence in enumerate(sentences(text)):
        found = _Reader(tokens(_LEAD.sub("", sentence)), number).clauses
        clauses += found
        if sentence.endswith(":"):
            lead = found[-_NEAR:]
        else:
            for clause in found:
                clause.lead = lead
            if lead and found:
                found[0].item |= found[0].bare
            if sentence[-1] in ".!?":
                lead = []
    _look_around(clauses)
    return clauses


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, without list marks; a line holds at least one."""
    text = unnumbered(text)
    begin = 0
    for end in _SENTENCE_END.finditer(text):
        before = _LAST_WORD.search(text[max(end.start() - 8, begin) : end.start()])
        goes_on = text[end.end() : end.end() + 2].strip()[:1].islower()
        if end[0] == "." and (goes_on or (before and before[0].lower() in _ABBREVIATIONS)):
            continue
        if sentence := _LIST_MARK.sub("", text[begin : end.end()] + " ").strip():
            yield sentence
        begin = end.end()
    if sentence := _LIST_MARK.sub("", text[begin:]).strip():
        yield sentence


def _look_around(clauses: list[Clause]) -> None:
    """Fill in the scopes. A clause takes over the subject of the one before it, unless it has one of its own."""
    first: dict[int, int] = {}
    for index, clause in enumerate(clauses):
        first.setdefault(clause.sentence, index)
    for index, clause in enumerate(clauses):
        begin = first[clause.sentence]
        bare = not clause.words and not clause.us
        earlier = 1.0 if bare else INHERITED
        before = INHERITED if _OTHERWISE not in clause.words else _LOOSE  # where a condition does not hold
        around = [
            (other, before if other.condition else earlier) for other in clauses[max(begin, index - _NEAR) : index]
        ]
        # If the train is late, you get a refund: a condition is about what follows from it.
        following = INHERITED if clause.condition else _FOLLOWING
        for other in clauses[index + 1 : index + 1 + _NEAR]:
            if other.sentence != clause.sentence:
                break
            around.append((other, following))
            following = _FOLLOWING
        if begin:
            start = first[clauses[begin - 1].sentence]
            weight = 0.6 if clauses[begin].pronoun else 0.25
            around += [(other, weight) for other in clauses[max(start, begin - _NEAR) : begin]]
        around += [(other, INHERITED) for other in clause.lead]
        kinds = set(clause.kinds.values())
        for other, weight in [*around, (clause, 1.0)]:
            for token in other.sequence:
                # A clause with a name, subject, value or opposite of its own is not about those of its neighbours.
                foreign = other is not clause and (
                    (clause.names and token in other.names)
                    or (clause.own_subject and token in other.subject)
                    or other.kinds.get(token) in kinds
                    or not OPPOSITES.get(token, frozenset()).isdisjoint(clause.words)
                )
                clause.scope[token] = max(clause.scope.get(token, 0.0), min(weight, _LOOSE) if foreign else weight)


def _full(word: str) -> str:
    """It's is it, we'll is we; a customer's stays."""
    head, mark, tail = word.partition("'")
    return head if mark and tail in _CONTRACTED and head in STOP_WORDS else word


class _Reader:
    """Reads the tokens of one sentence from left to right."""

    def __init__(self, given: list[Token], number: int) -> None:
        self.given, self.number, self.at = given, number, 0
        self.clauses: list[Clause] = []
        self.before_denied = False
        self.last_word_at = -9
        self._open()
        while self.at < len(given):
            token = given[self.at]
            if len(self.clause.sequence) >= _LONGEST:
                self._break()
            if token.values:
                self._values(token)
            elif token.code or token.text[0].isalpha():
                self._word(token)
            elif self._ends(token.text):
                self.clause.announces = token.text == ":"
                self._break(subject=token.text == ";", listed=token.text in ",:")
            self.at += 1
        self._close()

    def _open(self, *, subject: bool = False) -> None:
        self.clause = Clause(self.number, own_subject=subject)
        self.denied = self.rest_denied = self.next_denied = self.next_predicate = False
        self.begun = self.between = self.until = self.in_object = False
        self.costs = self.nothing = self.joined = self.listed = False
        self.plain, self.last_word = True, ""

    def _close(self, *, goes_on: bool = False) -> None:
        clause = self.clause
        if self.nothing and self.costs:
            self._value(_FREE)
        elif self.nothing:
            self.denied = not self.denied
        if self.last_word in AUXILIARIES | {"not"} and self.clauses and clause.words:
            # Open fires are not: what the clause before says is left out.
            main = self.clauses[-1].main
            clause.words |= dict.fromkeys(main, True)
            clause.sequence += main
            clause.predicates |= main
        if self.listed and self.plain and self.before_denied and not clause.values and len(clause.words) < 4:
            self.denied = True  # not on books, films and games
        if self.denied:
            clause.words = {word: not affirmed for word, affirmed in clause.words.items()}
        before = self.clauses[-1] if self.clauses and self.joined and self.denied else None
        if before and before.bare and 0 < len(before.words) <= 3 and all(before.words.values()):
            before.words = dict.fromkeys(before.words, False)  # the lift pass and rental gear are not included
        times = [value for value in clause.values if value.kind == "time"]
        clause.hours = self.until or len(times) > 1
        clause.subject |= set(clause.sequence[:1])
        clause.bare = self.plain and not clause.values
        clause.elliptic = (
            bool(self.clauses)
            and self.denied
            and not clause.main
            and 0 < len(clause.words) < 3
            and not clause.values
            and not any(clause.words.values())
        )
        if self.joined and self.clauses and self.clauses[-1].bare:
            clause.exclusive |= self.clauses[-1].exclusive  # only owners and accountants
        clause.item = (self.joined or (self.listed and goes_on)) and clause.bare
        if clause.sequence:
            self.clauses.append(clause)

    def _break(
        self, *, subject: bool = False, excepted: bool = False, joined: bool = False, listed: bool = False
    ) -> None:
        if self.clause.sequence:
            self._close(goes_on=joined or listed)
            self.before_denied = self.denied
            self._open(subject=subject)
        self.denied = excepted and not self.before_denied
        self.joined, self.listed = joined, listed or joined

    def _text(self, ahead: int) -> str:
        at = self.at + ahead
        return self.given[at].text if 0 <= at < len(self.given) else ""

    def _lists(self) -> bool:
        """Whether this comma or "and" stands between two days, dates or times, or before the next of several names."""
        if not 0 < self.at < len(self.given) - 1:
            return False
        before, behind = self.given[self.at - 1], self.given[self.at + 1]
        if before.values and behind.values:
            kind = before.values[0].kind
            return kind == behind.values[0].kind and (kind in _LISTED or kind.startswith("no. "))
        return before.capital and behind.capital and self._text(2) in {"", ".", ",", "and", "or", "!", ";"}

    def _ends(self, mark: str) -> bool:
        """Whether a mark ends a clause; a dash between two values is a range."""
        if mark in "–—":
            return not (0 < self.at < len(self.given) - 1 and all(self.given[self.at + i].values for i in (-1, 1)))
        return mark in ",;:)" and not (mark == "," and self._lists())

    def _values(self, token: Token) -> None:
        self.begun, self.in_object = True, False
        for value in token.values:
            self._value(value)

    def _value(self, value: Value) -> None:
        if value in self.clause.values:
            return
        self.clause.values.append(value)
        self.clause.kinds[value.token] = value.kind
        self.clause.sequence.append(value.token)
        if value.kind == "money":
            self.clause.sequence.append(_COST)  # a price is about a cost, named or not

    def _word(self, token: Token) -> None:
        self.after_auxiliary = self.last_word in AUXILIARIES | {"not", "be", "been"}
        self.last_word = word = _full(token.text)
        clause = self.clause
        if self._breaks(word):
            return
        self.plain &= word not in AUXILIARIES and word not in PRONOUNS and word not in US and word not in DENIALS
        self.rest_denied &= word not in US and word not in {"is", "are", "was", "were", "can", "may", "must", "will"}
        if word in AUXILIARIES and not clause.subject:
            clause.subject = set(clause.words)
        clause.us |= word in US
        clause.universal |= word in UNIVERSAL
        clause.exclusive |= word in EXCLUSIVE
        if not self.begun:
            self.begun = True
            clause.own_subject |= word in DETERMINERS and bool(self.clauses)
            clause.pronoun = word in PRONOUNS
            clause.condition |= word in _CONDITIONS
        self.between |= word == "between"
        self.until |= word in {"until", "till"}
        if word in _PREPOSITIONS:
            clause.objects.append([])
        elif word in AUXILIARIES or word in _AROUND:
            self.in_object = False
        self.in_object |= word in _PREPOSITIONS
        if self._is_free(word) or self._is_denial(token, word):
            return
        self.costs |= word in COSTS
        if (phrase := PHRASES.get((word, self._text(1)))) is not None:
            self.at += 1
            self._add(token, stem(phrase))
        elif token.code:
            self._add(token, word)
        elif word.startswith("un") and len(word) > 5:
            self.next_denied = not self.next_denied
            self._add(token, concept(word[2:]))
        elif word not in STOP_WORDS:
            self._add(token, concept(word))

    def _breaks(self, word: str) -> bool:
        if word == "and" and (self.between or self._lists()):
            self.between = False
            return True
        as_long_as = word == "long" and self._text(-1) == self._text(1) == "as"
        provided = word in {"provided", "providing"} and self._text(1) in {"that", "it", "you", "they", "the", "nobody"}
        if word in EXCEPTIONS:
            self._break(excepted=True)
        elif word in _BREAKS or as_long_as or provided or (word == "or" and self.listed and self.plain):
            self._break(joined=word in {"and", "or"})
            self.begun |= word in _CONDITIONS
            self.clause.condition |= word in _CONDITIONS
        else:
            return False
        return True

    def _add(self, token: Token, word: str) -> None:
        clause = self.clause
        denied = self.rest_denied ^ self.next_denied
        self.next_denied = False
        if denied:
            clause.apart.add(word)
        if self.after_auxiliary and not clause.main:
            clause.main.add(word)
        if self.next_predicate:
            clause.predicates.add(word)
            self.next_predicate = False
        if self.last_word_at == self.at - 1 and clause.sequence:
            clause.modifiers.append((clause.sequence[-1], word))
        self.last_word_at = self.at
        clause.sequence.append(word)
        clause.words[word] = not denied or clause.words.get(word, False)
        if self.in_object:
            clause.objects[-1].append(word)
        if token.capital:
            clause.names.add(word)
        before, behind = self._text(-1), self._text(1)
        if before and before not in DETERMINERS:
            clause.neighbours.append((f"{before} ", word))
        if behind not in {"", "and"}:
            clause.neighbours.append((f" {behind}", word))

    def _is_free(self, word: str) -> bool:
        """Free of charge is an amount of money; free of nuts and sugar-free deny."""
        if word in FREE:
            self._value(_FREE)
            return True
        if word != "free":
            return False
        words, sequence = self.clause.words, self.clause.sequence
        if self._text(1) == "to":
            self._add(self.given[self.at], concept("allow"))
        elif self._text(1) in {"of", "from"} and not {self._text(2), self._text(3)} & COSTS:
            self.rest_denied = True
        elif self._text(-1) == "-" and sequence:
            words[sequence[-1]] = not words.get(sequence[-1], True)
        elif self.denied:  # it is not free
            self.denied = False
            self._add(self.given[self.at], _COST)
        else:
            self._value(_FREE)
            if self._text(1) == "of":
                self.at += 2
        return True

    def _is_denial(self, token: Token, word: str) -> bool:
        following = self._text(1)
        if word in DENYING:
            self.denied = not self.denied
            self._add(token, concept(DENYING[word]))
            self.clause.predicates.add(self.clause.sequence[-1])
        elif word == "nothing":
            self.nothing = True
        elif word == "non":
            self.next_denied = True
        elif (word, following) in {("rule", "out"), ("ruled", "out"), ("off", "limits")}:
            self.denied = not self.denied
            self.at += 1
        elif word not in DENIALS and not word.endswith("n't"):
            return False
        elif following in NOT_DENIED:
            self.at += 1
        elif (word, following) == ("no", "longer") and self._text(2) != "than":
            self.denied = not self.denied
            self.next_predicate = True
            self.at += 1
        elif word == "not" and self.last_word_at == self.at - 1 and following.endswith("ed"):
            self.next_predicate = self.next_denied = True  # bikes not collected
        elif following not in _BOUNDING and not self._is_bound() and not self._is_nothing_to_pay(word):
            self.next_predicate = True
            if word == "without" or word in NOT_DONE or self._text(-1) in {"have", "has", "had"}:
                self.rest_denied = True
            else:
                self.denied = not self.denied
        return True

    def _is_bound(self) -> bool:
        """Whether a denial is one of a comparison: not larger than, must not exceed."""
        ahead = [self._text(i) for i in range(1, 5)]
        return "exceed" in ahead or any(
            (a.endswith("er") or a in {"more", "less"}) and b == "than" for a, b in pairwise(ahead)
        )

    def _is_nothing_to_pay(self, word: str) -> bool:
        """No fee, without extra charge, do not have to pay, you pay no postage: nothing, as an amount of money."""
        if word == "no" and self._text(-1) in {"pay", "pays"} and self._text(-2) == "you":
            self._value(_FREE)
            return True
        ahead = 1
        if word in {"no", "without"}:
            ahead = next((ahead for ahead in (1, 2, 3) if self._text(ahead) in COSTS - {"extra"}), 0)
        elif word in {"cannot", "can't", "neither", "nor"}:
            ahead = 0
        else:
            while self._text(ahead) in {"be", "have", "need", "to", "get", "required"}:
                ahead += 1
            ahead *= self._text(ahead) in {"charge", "charged", "cost", "pay"} and "back" not in {
                self._text(ahead + behind) for behind in (1, 2, 3)
            }
        if not ahead:
            return False
        self._value(_FREE)
        for _ in range(1, ahead):
            self.at += 1
            if word in {"no", "without"} and not self.given[self.at].values:
                self._word(self.given[self.at])
        self.at += 1
        return True
