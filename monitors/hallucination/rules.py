"""Grounding: whether the passages that an answer was given say what it says. Rules on text alone, no model."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from retuned.monitors.hallucination.claims import claims
from retuned.monitors.hallucination.clauses import INHERITED, Clause, read, sentences
from retuned.monitors.hallucination.evidence import score
from retuned.monitors.hallucination.scorer import Judgement
from retuned.monitors.hallucination.sources import (
    ANY_MONEY,
    MOST_CHARACTERS,
    SUBJECT,
    Match,
    Sources,
    is_denying,
    read_once,
    sources_of,
)
from retuned.monitors.hallucination.values import CONFLICTING, Value, same
from retuned.monitors.hallucination.vocabulary import concept

MOST_CLAIMS = 200
"""Of an answer so many clauses are judged."""
_MINE = re.compile(r"\b(?:my|our)\b", re.IGNORECASE)
_KNOWN = 0.25
"""Share of a sentence's words and values, about, that its passages must know."""
_MARGIN = 0.02
"""Share of a clause's weight by which it must stand closer to a rival to count as said of that."""
_LIMITED, _COST = concept("limit"), concept("cost")
_HOURS = frozenset({concept("open"), concept("close")})
_TOTALS = frozenset(map(concept, ("total", "altogether", "together", "all")))
_CENT = 0.005
_PARTS_OF_YEAR: dict[float | None, str] = {4: "quarter", 12: "month", 52: "week"}


def ground(answer: str, passages: tuple[str, ...], question: str = "") -> Judgement:
    """How far the passages bear out what an answer claims, and the sentences of it that they seem not to.

    Answer and context are read as clauses: words by their stems (some words of business stand for each other), denials,
    and values with their units, so that 24 months are two years and "half past six" is 18:30. The faults of a sentence
    (see `faults`) are evidence against it, and the score is how rare so much evidence is among answers that invent
    nothing and are as long (see `evidence.score`).

    Sentences that claim nothing (thanks, "I do not know", "please ask there", questions) are passed over; an answer of
    nothing else scores 1.

    What it does not see: an invention made of words that the context has ("refunds if postponed" where they are given
    if cancelled), a yes to a wrong figure in the question, and languages other than English, of which it sees numbers
    alone. What follows by arithmetic or common knowledge, but for halves and multiples of prices and fixed holidays, it
    takes for invented.

    The method is lexical precision against the source (as in the entailed n-grams of Dhingra et al. 2019, "Handling
    divergent reference texts"), taken per clause and value, as facts are checked one by one in FActScore (Min et al.
    2023).
    """
    found = faults(answer, passages, question)
    grounding = score((set().union(*claim.values()) for claim in found), len(sources_of(passages).clauses))
    return Judgement(grounding, tuple(sentence for claim in found for sentence, kinds in claim.items() if kinds))


def faults(answer: str, passages: tuple[str, ...], question: str = "") -> list[dict[str, set[str]]]:
    """What an answer claims, in order: the sentences that claim something, a list with what announces it together. Of
    each sentence its faults:

    - value: a number, amount, time, date, weekday or address that neither the context nor the question has (customers
      tell of their own case: "I come on Friday");
    - value_elsewhere, name_elsewhere, word_elsewhere: it has the value, name or word, but says it of something else:
      the clauses of the context that hold a rival of it (another value of its kind, another name in its place,
      "express" beside "standard", an opposite) are closer to the claim than those that hold it;
    - words_apart: its words do not stand together in the context;
    - name, item: a name, a further item of a list, or a party or way ("by your landlord"), that the context does
      not have, nor, of names, the customer's own case ("I live in York");
    - denied, perhaps_denied: said where the context denies it, or the reverse; a charge for what is free;
    - bound, period: at least against at most, before against after, a month against a year or a stay;
    - exclusive: said of all where the context says it of one only;
    - unknown: the context knows next to nothing of the sentence.

    A clause that the context has, word for word and value for value, has none but value, name, bound and period.
    "These are three things:" counts the answer's own list.
    """
    texts = list(sentences("\n".join(claims(answer[:MOST_CHARACTERS]))))
    said = read("\n".join(texts))[:MOST_CLAIMS]
    sources = sources_of(passages)
    _take_over(said)
    asked = _Asked(question[:MOST_CHARACTERS])
    by_sentence = defaultdict[int, list[Clause]](list)
    for claim in said:
        by_sentence[claim.sentence].append(claim)
    found = defaultdict[int, dict[str, set[str]]](dict)
    for number, clauses in by_sentence.items():
        denies = any(is_denying(claim) for claim in clauses)
        kinds = {fault for claim in clauses for fault in _faults(claim, sources, asked, denies=denies)}
        if not _is_familiar([claim for claim in clauses if not claim.announces], sources, asked):
            kinds.add("unknown")
        lead = clauses[0].lead
        found[lead[-1].sentence if lead else number].setdefault(texts[number], set()).update(kinds)
    return list(found.values())


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
                weight = 1.0 if other.condition or claim.pronoun else 0.3 if claim.own_subject else SUBJECT
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
                scope[token] = max(scope.get(token, 0.0), SUBJECT)
        claim.scope = scope | dict.fromkeys(claim.sequence, 1.0)


class _Asked:
    """What the question says of the customer's own case: an answer may repeat it."""

    def __init__(self, question: str) -> None:
        clauses = read_once(question)
        self.values = [value for clause in clauses for value in clause.values][:MOST_CLAIMS]
        # "I live in York", not "do you serve York?", which is no reason to serve it.
        told = "\n".join(said for said in sentences(question) if not said.endswith("?") or _MINE.search(said))
        self.names = {name for clause in read_once(told) for name in clause.names}


def _is_familiar(sentence: list[Clause], sources: Sources, asked: _Asked) -> bool:
    """Whether the sources know a fair share of a sentence; a value counts as two words."""
    words = [word for claim in sentence for word in claim.words]
    values = [(value, claim) for claim in sentence for value in claim.values]
    known = sum(word in sources.held for word in words) + 2 * sum(
        bool(sources.holding(value)) or _among(value, asked.values) or _follows(value, claim, sources)
        for value, claim in values
    )
    total = len(words) + 2 * len(values)
    if len(words) > 3 and not any(word in sources.held for word in words):
        return False  # numbers alone are found anywhere
    return total <= 2 or (known > 0 and known + 1 >= _KNOWN * (total + 2))


def _among(value: Value, others: Iterable[Value]) -> bool:
    """Whether a value is among others, unit and all."""
    counts = {"", "count"}
    return any(
        (value.kind == other.kind and same(value, other))
        or (value.number == other.number and {value.kind, other.kind} <= counts)
        for other in others
    )


def _faults(claim: Clause, sources: Sources, asked: _Asked, *, denies: bool) -> Iterator[str]:
    match = Match(claim, sources)
    if any(word in claim.names and word not in sources.held and word not in asked.names for word in claim.words):
        yield "name"
    is_there = _is_there(claim, sources)
    total = sum(sources.weight.get(token, 0.0) for token in claim.sequence)
    for value in claim.values:
        yield from _value_faults(value, claim, match, sources, _MARGIN * total, asked, is_there=is_there)
    if is_there:
        return
    if any(claim.words.values()) or claim.values:
        yield from (
            "word_elsewhere"
            for token, weight in claim.scope.items()
            if weight >= SUBJECT and _said_of_a_rival(token, claim, match, sources, total)
        )
    if match.closest and not claim.announces:
        yield from _closest_faults(claim, match.closest[0], sources)
        yield from _denials(claim, match, sources, denies=denies)
    for party in claim.objects:
        if len(party) >= 2 and not any(word in sources.held or word in asked.names for word in party):
            yield "item"
    if claim.item and claim.words and not any(word in sources.held for word in claim.words):
        yield "item"


def _is_there(claim: Clause, sources: Sources) -> bool:
    """Whether a clause of the sources has all words and values of a claim, each as it says them."""
    tokens = [token for token in claim.sequence if token in claim.words]
    places = (
        set(sources.held.get(tokens[0], ())) if tokens else {i for v in claim.values[:1] for _, i in sources.holding(v)}
    )
    return any(
        all(sources.clauses[i].words.get(word) == affirmed for word, affirmed in claim.words.items())
        and all(any(same(value, other) for other in sources.clauses[i].values) for value in claim.values)
        for i in places
    )


def _value_faults(
    value: Value, claim: Clause, match: Match, sources: Sources, margin: float, asked: _Asked, *, is_there: bool
) -> Iterator[str]:
    holding = sources.holding(value)
    if not holding:
        # "one" is seldom a number
        is_one = value.number == 1 and value.kind in {"", "count"}
        if not (is_one or _among(value, asked.values) or _follows(value, claim, sources)):
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
    named = [word for word, weight in claim.scope.items() if weight >= SUBJECT and word in sources.names]
    if any(sources.about[word].get(i, 0.0) >= INHERITED for word in named for i in held):
        # It stands with the claim's name: what is said of other names is no rival.
        rivals = {i for i in rivals if any(sources.about[word].get(i, 0.0) >= INHERITED for word in named)}
    if rivals and not is_there:
        # What is taken over from a clause before has values of its own.
        left_out = (
            {value.token}
            | (_HOURS if claim.hours or any(sources.clauses[i].hours for i in held) else set())
            | {token for token, weight in claim.scope.items() if weight < 1 and token.startswith(f"{value.kind} ")}
        )
        if match.best(rivals, left_out) > match.best(held, left_out) + margin and match.is_told_apart(
            rivals, held, left_out
        ):
            yield "value_elsewhere"
        if any(i in sources.held[word] for word in named for i in rivals) and not any(
            sources.about[word].get(i, 0.0) >= 0.5 for word in named for i in held
        ):
            yield "name_elsewhere"  # the name stands with another value, and not with this one
    stated, place = max(holding, key=lambda found: match.scores.get(found[1], 0.0))
    if (value.bound, stated.bound) in CONFLICTING:
        yield "bound"
    if stated.per and value.per not in {"", stated.per} and concept(value.per) not in sources.clauses[place].words:
        yield "period"


def _follows(value: Value, claim: Clause, sources: Sources) -> bool:
    """Whether a value follows from those of the sources: a sum that is a few times an amount, the hours between two
    times, so many times a year what is once a quarter or month."""
    if value.kind == "money" and value.number and not _TOTALS.isdisjoint(claim.words):
        amounts = {other.number for other, _ in sources.equal.get(ANY_MONEY, ()) if other.number}
        return any(abs(value.number / times - amount) < _CENT for times in range(2, 13) for amount in amounts)
    if value.kind == "times" and value.per == "year":
        return f"per {_PARTS_OF_YEAR.get(value.number)}" in sources.equal
    return value.kind == "duration" and not sources.spans.isdisjoint(value.keys)


def _said_of_a_rival(token: str, claim: Clause, match: Match, sources: Sources, total: float) -> bool:
    """Whether clauses about a rival of a word, and not about it, are closer to the claim than those about it."""
    if claim.words.get(token) is False or (token in _HOURS and claim.hours):
        return False
    rivals = {rival for rival in sources.rivals.get(token, ()) if claim.scope.get(rival, 0.0) < SUBJECT}
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


def _closest_faults(claim: Clause, closest: int, sources: Sources) -> Iterator[str]:
    source = sources.clauses[closest]
    if claim.universal and source.exclusive:
        yield "exclusive"
    if claim.words.get(_LIMITED) is False and any(value.bound == "most" for value in source.values):
        yield "bound"
    known = [word for word in claim.words if word in sources.held and not (claim.hours and word in _HOURS)]
    if claim.words.get(_COST) and not any(value.kind == "money" for value in claim.values):
        amounts = [value.number for value in source.values if value.kind == "money"]
        if amounts and not any(amounts):
            yield "denied"  # a charge for what is free
    if known and any(claim.words.values()):
        # Its words must stand where its values do.
        places = [i for v in claim.values for u, i in sources.holding(v) if u.kind == v.kind]
        found = max(sum(sources.about[word].get(index, 0.0) > 0.2 for word in known) for index in places or [closest])
        if 2 * found < len(known) and (claim.item or len(known) > 1):
            yield "words_apart"


def _denials(claim: Clause, match: Match, sources: Sources, *, denies: bool) -> Iterator[str]:
    """Denied: by the words that a denial stands before. Perhaps denied: by others, or by most of the words.

    Where the claim's sentence and the source's both deny something, what it is of is too uncertain.
    """
    if claim.exclusive:
        return  # only here: not elsewhere
    names = [name for name in claim.names if name in sources.held]
    own = {i for name in names[:1] for i in sources.held[name] if all(i in sources.held[other] for other in names)}
    for word, affirmed in claim.words.items():
        # Where the sources have the claim's name and the word together, they deny the word.
        said = [sources.clauses[i].words[word] for i in own if word in sources.clauses[i].words]
        if affirmed and said and not any(said) and word not in names:
            yield "denied"
    for word, affirmed in claim.words.items():
        held = [i for i in sources.held.get(word, ()) if not sources.clauses[i].condition]
        if not held or not affirmed or any(sources.clauses[i].words.get(word, True) for i in held):
            continue
        # The sources have the word in denials alone: they deny the claim, if they speak of the same thing.
        rest = [token for token, weight in claim.scope.items() if weight >= SUBJECT and token != word]
        if not rest or any(sources.about[t].get(i, 0.0) >= INHERITED for t in rest if t in sources.about for i in held):
            denials = [sources.clauses[i] for i in held]
            is_about = any(word in clause.predicates | clause.main | clause.apart for clause in denials)
            if is_about or not denies:
                yield "denied" if is_about else "perhaps_denied"
    for index in match.closest:
        # "But not in the cabins" denies of them what stands before.
        source = sources.clauses[index]
        others = [word for word, affirmed in claim.words.items() if affirmed and word not in source.words]
        if (
            source.elliptic
            and all(claim.words.get(word) for word in source.words)
            and others
            and all(source.scope.get(word, 0.0) >= SUBJECT for word in others if word in sources.held)
        ):
            yield "denied"
    best = match.scores[match.closest[0]]
    closest = [index for index in match.closest if match.scores[index] >= 0.9 * best]
    if denies and not sources.denying.isdisjoint(closest):
        return
    near = [
        sources.clauses[index]
        for index in closest
        if any(index in sources.held.get(token, ()) for token in claim.sequence)
    ]
    if near and all(_deny(claim, source, sources) for source in near):
        yield "perhaps_denied"


def _deny(claim: Clause, source: Clause, sources: Sources) -> bool:
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
