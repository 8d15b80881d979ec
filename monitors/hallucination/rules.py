"""Grounding: whether the passages that an answer was given say what it says. Rules on text alone, no model."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from heapq import nlargest

from retuned.monitors.hallucination.clauses import INHERITED, Clause, read, sentences
from retuned.monitors.hallucination.values import CONFLICTING, LOOSE, Value, same
from retuned.monitors.hallucination.vocabulary import OPPOSITES, concept

MOST_CHARACTERS = 20_000
"""Of the passages of an answer, together, so much is read."""
MOST_CLAIMS = 200
"""Of an answer so many clauses are judged."""
_MOST_PLACES = 64
"""Of a word that stands in more clauses than this, the first ones count: it tells little."""
_MOST_RIVALS = 32

# What is polite or honest, or sends elsewhere, and claims nothing; what follows a "but" does.
_NO_CLAIM = re.compile(
    r"\b(?:i (?:do not|don['’]t|cannot|can['’]t|could not|couldn['’]t|am unable|am not able|am sorry|am afraid)"
    r"|we (?:do not|don['’]t|cannot|can['’]t|could not|couldn['’]t) (?:know|find|say|tell|answer|confirm|see)"
    r"|(?:no|any|not have) (?:\w+ )?(?:information|details?) (?:about|on|regarding|concerning|whether|for)\b"
    r"|no (?:mention|indication)\b"
    r"|(?:says?|said|mentions?|tells?(?: me| us)?|states?) nothing"
    r"|(?:not|\w+n['’]t|never) (?:\w+ )?(?:mention|specif|state|say)"
    r"|^(?:please |(?:it(?: would be| is|['’]s) )?(?:best|better) to |i (?:suggest|recommend|would|['’]d) (?:\w+ )?)?"
    r"(?:check|ask|asking|contact|contacting|consult|consulting|checking|get in touch|reach out)\b(?!.*[\d@])"
    r"|(?:articles?|passages?|documents?|information|texts?|pages?) (?:that )?i(?:['’]ve been given| have) "
    r"(?:do not|does not|don['’]t|doesn['’]t) (?:\w+ )?(?:cover|contain|include|address|list|describe)"
    r"|(?:would|['’]d) rather not\b"
    r"|i['’]m (?:\w+ )?(?:sorry|afraid|unable|not (?:able|sure))|look(?:ing)? forward to"
    r"|(?:happy|glad|here) to help|hope (?:this|that) helps|let (?:me|us) know (?:if|whether)|feel free"
    r"|sorry to hear|(?:great|good) question|thank(?:s| you)|you['’]re welcome|have a (?:nice|good|great))\b",
    re.IGNORECASE,
)
# A sentence that wishes or greets; one that goes on behind a comma, or has a number, may claim something.
_WISH = re.compile(
    r"^(?:hello|hi|hey|good (?:morning|afternoon|evening|day|luck)|have (?:a|fun|an)\b|enjoy (?:your|the|it)\b"
    r"|how (?:lovely|nice|exciting|wonderful|great)|(?:that|it)['’]?s? (?:is )?(?:great|good|nice) to (?:hear|see)"
    r"|(?:great|lovely|nice|good|wonderful|glad|happy) to (?:hear|see|meet)|(?:we|i) (?:hope|wish|can['’]t wait)"
    r"|hope (?:you|to)|wishing you|all the best|best (?:wishes|of luck)|(?:kind|warm|best) regards|take care"
    r"|congratulations|no need to (?:be|worry)|no worries|don['’]t worry|safe travels|cheers)\b[^\d,:;–—]*$",
    re.IGNORECASE,
)
_MINE = re.compile(r"\b(?:my|our)\b", re.IGNORECASE)
_BUT = re.compile(r"\bbut\b", re.IGNORECASE)

# What a score is multiplied with for each fault of a clause: what is certain weighs more than what is likely.
FAULTS = {
    "value": 0.3, "name": 0.4, "denial": 0.4, "bound": 0.4, "period": 0.4,
    "subject": 0.5, "item": 0.5, "exclusive": 0.5,
}  # fmt: skip
_KNOWN = 0.25
"""Share of a sentence's words and values that its passages must know; with less it is an invention."""
_MARGIN = 0.02
"""Share of a clause's weight by which it must stand closer to a rival to count as said of that."""
_SUBJECT = 0.6
"""What a clause is about to this degree is its subject."""
_PERIODS = {"3600": "hour", "86400": "day", "604800": "week", "1 months": "month", "12 months": "year"}
_INCLUDED, _LIMITED, _DAILY, _COST = concept("include"), concept("limit"), concept("daily"), concept("cost")
_HOURS = frozenset({concept("open"), concept("close")})
_ANY_MONEY = "any money"


def grounding(answer: str, context: str | Sequence[str], question: str = "") -> float:
    """How well the least supported clause of an answer is supported by its context, from 0 to 1.

    Answer and context are read as clauses: words by their stems (some words of business stand for each other), denials,
    and values with their units, so that 24 months are two years and "half past six" is 18:30. A clause starts with 1
    and loses with each fault (FAULTS):

    - value: a number, amount, time, date, weekday or address that neither the context nor the question has (customers
      tell of their own case: "I come on Friday");
    - subject: it has the value, name or word, but says it of something else: the clauses of the context that hold a
      rival of it (another value of its kind, another name in its place, "express" beside "standard", an opposite) are
      closer to the claim than those that hold it;
    - name, item: a name, a further item of a list, or a party or way ("by your landlord"), that the context does
      not have, nor, of names, the customer's own case ("I live in York");
    - denial: said where the context denies it, or the reverse; a charge for what is free;
    - bound, period: at least against at most, before against after, a month against a year or a stay;
    - exclusive: said of all where the context says it of one only.

    A sentence of which the context knows next to nothing counts as invented. Sentences that claim nothing (thanks,
    "I do not know", "please ask there", questions) are passed over; an answer of nothing else scores 1. A claim without
    context scores 0. "These are three things:" counts the answer's own list.

    What it does not see: an invention made of words that the context has ("refunds if postponed" where they are given
    if cancelled), a yes to a wrong figure in the question, and languages other than English, of which it sees numbers
    alone. What follows by arithmetic or common knowledge, but for halves of prices and fixed holidays, it takes for
    invented. A paraphrase in wholly other words is marked down.

    The method is lexical precision against the source (as in the entailed n-grams of Dhingra et al. 2019, "Handling
    divergent reference texts"), taken per clause and value, as facts are checked one by one in FActScore (Min et al.
    2023): so one invention does not hide behind nine truths.
    """
    said = read("\n".join(claims(answer[:MOST_CHARACTERS])))[:MOST_CLAIMS]
    if not said:
        return 1.0
    sources = _sources((context,) if isinstance(context, str) else tuple(context))
    if not sources.clauses:
        return 0.0
    _take_over(said)
    asked = _Asked(question[:MOST_CHARACTERS])
    scores = [math.prod(FAULTS[fault] for fault in _faults(claim, sources, asked)) for claim in said]
    by_sentence = defaultdict[int, list[Clause]](list)
    for claim in said:
        if not claim.announces:
            by_sentence[claim.sentence].append(claim)
    return min([*scores, *(_familiarity(sentence, sources, asked) for sentence in by_sentence.values())])


def claims(answer: str) -> Iterator[str]:
    """The sentences that claim something."""
    for sentence in sentences(answer):
        if _NO_CLAIM.search(sentence) or _WISH.search(sentence):
            but = _BUT.search(sentence)
            sentence = sentence[but.end() :].strip() if but else ""
        if sentence and not sentence.endswith("?"):
            yield sentence


def _take_over(claims: list[Clause]) -> None:
    """What each claim is about. Unlike a source's, its scope is its own words and what leads up to them."""
    free = {claim.sentence for claim in claims if any(v.kind == "money" and v.number == 0 for v in claim.values)}
    for claim in claims:
        if claim.sentence in free:
            claim.words.pop(_COST, None)  # "paying by card is free" charges nothing
    for index, claim in enumerate(claims):
        if claim.announces:  # three things are needed: that counts the answer's own list
            counts = {value.token for value in claim.values if value.kind in {"", "count"}}
            claim.values = [value for value in claim.values if value.token not in counts]
            claim.sequence = [token for token in claim.sequence if token not in counts]
        scope: dict[str, float] = {}
        for before in range(index - 1, max(index - 7, -1), -1):
            other = claims[before]
            if other.sentence == claim.sentence:
                weight = 1.0 if other.condition or claim.pronoun else 0.3 if claim.own_subject else _SUBJECT
            elif before == index - 1 and claim.pronoun:
                weight = 0.8
            else:
                break
            for token in other.sequence:
                scope[token] = max(scope.get(token, 0.0), weight)
        for other in claim.lead:
            for token in other.sequence:
                scope.setdefault(token, 0.5)
        if index + 1 < len(claims) and claims[index + 1].sentence == claim.sentence and claims[index + 1].condition:
            for token in claims[index + 1].sequence:
                scope[token] = max(scope.get(token, 0.0), _SUBJECT)
        claim.scope = scope | dict.fromkeys(claim.sequence, 1.0)


class _Sources:
    """The clauses of the passages, and what stands where."""

    def __init__(self, clauses: list[Clause]) -> None:
        self.clauses = clauses
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
        for value, index in self.equal.get(_ANY_MONEY, ()):
            if value.number and f"money {value.number / fraction:.12g}" in self.equal:
                yield value, index


def _keys(value: Value, *, stored: bool) -> Iterator[str]:
    """The keys under which a value is stored, or looked up: by its amount, and by its number where kinds may differ."""
    for key in value.keys:
        yield f"{value.kind} {key}"
        if stored and value.kind == "date":
            yield f"month {key.partition('-')[0]}"
    if stored and value.kind == "money":
        yield _ANY_MONEY
    if value.number is None:
        return
    if value.kind in LOOSE:
        yield f"loose {value.number:g}"
    if (not value.kind) != stored:
        yield f"any {value.number:g}"
    if bool(value.kind) != stored:
        yield f"bare {value.number:g}"


@lru_cache(maxsize=256)
def _sources(passages: tuple[str, ...]) -> _Sources:
    """The passages, read; many answers share theirs."""
    left, clauses = MOST_CHARACTERS, list[Clause]()
    for passage in passages:
        clauses += _read(passage[:left])
        left -= min(left, len(passage))
    return _Sources(clauses)


@lru_cache(maxsize=1_024)
def _read(passage: str) -> tuple[Clause, ...]:
    return tuple(read(passage))


class _Asked:
    """What the question says of the customer's own case: an answer may repeat it."""

    def __init__(self, question: str) -> None:
        clauses = _read(question)
        self.values = [value for clause in clauses for value in clause.values][:MOST_CLAIMS]
        # "I live in York", not "do you serve York?", which is no reason to serve it.
        told = "\n".join(said for said in sentences(question) if not said.endswith("?") or _MINE.search(said))
        self.names = {name for clause in _read(told) for name in clause.names}


class _Match:
    """How close the clauses of the sources are to a claim: the weight of what both are about."""

    def __init__(self, claim: Clause, sources: _Sources) -> None:
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

    def best(self, indices: Iterable[int], without: Iterable[str]) -> float:
        """The closest of some clauses, when some words and values do not count."""
        left_out = [token for token in without if token in self._parts]
        return max(
            (self.scores.get(i, 0.0) - sum(self._part(token, i) for token in left_out) for i in indices), default=0.0
        )


def _familiarity(sentence: list[Clause], sources: _Sources, asked: _Asked) -> float:
    """How much of a sentence the sources know; a value counts as two words, and enough is 1."""
    words = [word for claim in sentence for word in claim.words]
    values = [value for claim in sentence for value in claim.values]
    known = sum(word in sources.held for word in words) + 2 * sum(
        bool(sources.holding(value)) or _among(value, asked.values) for value in values
    )
    total = len(words) + 2 * len(values)
    if not known and total > 2:
        return 0.0
    if len(words) > 3 and not any(word in sources.held for word in words):
        return 0.5  # numbers alone are found anywhere
    return min(0.7 * (known + 1) / (total + 2) / _KNOWN, 1.0)


def _among(value: Value, others: Iterable[Value]) -> bool:
    """Whether a value is among others, unit and all."""
    counts = {"", "count"}
    return any(
        (value.kind == other.kind and same(value, other))
        or (value.number == other.number and {value.kind, other.kind} <= counts)
        for other in others
    )


def _faults(claim: Clause, sources: _Sources, asked: _Asked) -> Iterator[str]:
    match = _Match(claim, sources)
    if any(word in claim.names and word not in sources.held and word not in asked.names for word in claim.words):
        yield "name"
    total = sum(sources.weight.get(token, 0.0) for token in claim.sequence)
    for value in claim.values:
        yield from _value_faults(value, claim, match, sources, _MARGIN * total, asked)
    if any(claim.words.values()) or claim.values:
        yield from (
            "subject"
            for token, weight in claim.scope.items()
            if weight >= _SUBJECT and _said_of_a_rival(token, claim, match, sources, total)
        )
    if match.closest and not claim.announces:
        yield from _closest_faults(claim, match.closest[0], sources)
        if _is_denied(claim, match, sources):
            yield "denial"
    for party in claim.objects:
        if len(party) >= 2 and not any(word in sources.held or word in asked.names for word in party):
            yield "item"
    if claim.item and claim.words and not any(word in sources.held for word in claim.words):
        yield "item"


def _value_faults(
    value: Value, claim: Clause, match: _Match, sources: _Sources, margin: float, asked: _Asked
) -> Iterator[str]:
    holding = sources.holding(value)
    if not holding:
        # "one" is seldom a number
        if not ((value.number == 1 and value.kind in {"", "count"}) or _among(value, asked.values)):
            yield "value"
        return
    held = {index for _, index in holding}
    # Of several weekdays each must be right; the other values of a clause may belong together.
    others = claim.values if value.kind != "weekday" else [value]
    kinds = {"", "count"} if value.kind == "count" else {value.kind}
    rivals = {
        index
        for index in match.closest
        if index not in held
        and any(
            other.kind in kinds
            and not (other.per and value.per and other.per != value.per)
            and not any(same(other, mine) for mine in others)
            for other in sources.clauses[index].values
        )
    }
    named = [word for word, weight in claim.scope.items() if weight >= _SUBJECT and word in sources.names]
    if any(sources.about[word].get(i, 0.0) >= INHERITED for word in named for i in held):
        # It stands with the claim's name: what is said of other names is no rival.
        rivals = {i for i in rivals if any(sources.about[word].get(i, 0.0) >= INHERITED for word in named)}
    if rivals:
        # What is taken over from a clause before has values of its own.
        left_out = (
            {value.token}
            | (_HOURS if claim.hours or any(sources.clauses[i].hours for i in held) else set())
            | {token for token, weight in claim.scope.items() if weight < 1 and token.startswith(f"{value.kind} ")}
        )
        if match.best(rivals, left_out) > match.best(held, left_out) + margin:
            yield "subject"
        if any(i in sources.held[word] for word in named for i in rivals) and not any(
            sources.about[word].get(i, 0.0) >= 0.5 for word in named for i in held
        ):
            yield "subject"  # the name stands with another value, and not with this one
    stated, place = max(holding, key=lambda found: match.scores.get(found[1], 0.0))
    if (value.bound, stated.bound) in CONFLICTING:
        yield "bound"
    if stated.per and value.per not in {"", stated.per} and concept(value.per) not in sources.clauses[place].words:
        yield "period"


def _said_of_a_rival(token: str, claim: Clause, match: _Match, sources: _Sources, total: float) -> bool:
    """Whether clauses about a rival of a word, and not about it, are closer to the claim than those about it."""
    if claim.words.get(token) is False or (token in _HOURS and claim.hours):
        return False
    rivals = {rival for rival in sources.rivals.get(token, ()) if claim.scope.get(rival, 0.0) < _SUBJECT}
    if not rivals:
        return False
    own = {index for index, weight in sources.about.get(token, {}).items() if weight >= INHERITED}
    if token in _HOURS:
        own |= {index for index in match.closest if sources.clauses[index].hours}
    if any(i in own for value in claim.values if value.token != token for _, i in sources.holding(value)):
        return False  # what the claim says of it stands with it
    others = {i for rival in rivals for i, weight in sources.about.get(rival, {}).items() if weight >= INHERITED} - own
    without = {token} | sources.rivals[token] | (claim.names if token in claim.names else set())
    mine, theirs = match.best(own, without), match.best(others, without)
    return theirs > mine + _MARGIN * total and (mine > 0 or theirs > 0.5 * total)


def _closest_faults(claim: Clause, closest: int, sources: _Sources) -> Iterator[str]:
    source = sources.clauses[closest]
    if claim.universal and source.exclusive:
        yield "exclusive"
    if claim.words.get(_LIMITED) is False and any(value.bound == "most" for value in source.values):
        yield "bound"
    known = [word for word in claim.words if word in sources.held and not (claim.hours and word in _HOURS)]
    if claim.words.get(_COST) and not any(value.kind == "money" for value in claim.values):
        amounts = [value.number for value in source.values if value.kind == "money"]
        if amounts and not any(amounts):
            yield "denial"  # a charge for what is free
    if known and any(claim.words.values()):
        # Its words must stand where its values do.
        places = [i for v in claim.values for u, i in sources.holding(v) if u.kind == v.kind]
        found = max(sum(sources.about[word].get(index, 0.0) > 0.2 for word in known) for index in places or [closest])
        if 2 * found < len(known) and (claim.item or len(known) > 1):
            yield "subject"


def _is_denied(claim: Clause, match: _Match, sources: _Sources) -> bool:
    names = [name for name in claim.names if name in sources.held]
    own = {i for name in names[:1] for i in sources.held[name] if all(i in sources.held[other] for other in names)}
    for word, affirmed in claim.words.items():
        # Where the sources have the claim's name and the word together, they deny the word.
        said = [sources.clauses[i].words[word] for i in own if word in sources.clauses[i].words]
        if affirmed and said and not any(said) and word not in names:
            return True
    for word, affirmed in claim.words.items():
        held = [i for i in sources.held.get(word, ()) if not sources.clauses[i].condition]
        if not held or not affirmed or claim.exclusive or any(sources.clauses[i].words.get(word, True) for i in held):
            continue
        # The sources have the word in denials alone: they deny the claim, if they speak of the same thing.
        rest = [token for token, weight in claim.scope.items() if weight >= _SUBJECT and token != word]
        if not rest or any(sources.about[t].get(i, 0.0) >= INHERITED for t in rest if t in sources.about for i in held):
            return True
    for index in match.closest:
        # "But not in the cabins" denies of them what stands before.
        source = sources.clauses[index]
        others = [word for word, affirmed in claim.words.items() if affirmed and word not in source.words]
        if (
            source.elliptic
            and all(claim.words.get(word) for word in source.words)
            and others
            and all(source.scope.get(word, 0.0) >= _SUBJECT for word in others if word in sources.held)
        ):
            return True
    best = match.scores[match.closest[0]]
    near = [
        sources.clauses[index]
        for index in match.closest
        if match.scores[index] >= 0.9 * best and any(index in sources.held.get(token, ()) for token in claim.sequence)
    ]
    return bool(near) and all(_deny(claim, source, sources) for source in near)


def _deny(claim: Clause, source: Clause, sources: _Sources) -> bool:
    """Whether one denies what the other affirms: by the word that the denial is about, or by most of their words."""
    shared = [word for word in claim.words if word in source.words]
    different = [word for word in shared if claim.words[word] != source.words[word]]
    if any(word in claim.predicates and word in source.predicates for word in set(shared).difference(different)):
        return False
    for word in different:
        if (word in claim.apart) != (word in source.apart) or word in claim.predicates or word in source.predicates:
            return True
    evidence = len(shared) + any(same(one, other) for one in claim.values for other in source.values)
    weight = sum(sources.weight[word] for word in different)
    return evidence > 1 and 2 * weight > sum(sources.weight[word] for word in shared)
