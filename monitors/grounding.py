"""Grounding: how far the passages that an answer was given support what it says. Words alone, no model."""

import re
from collections.abc import Sequence
from functools import lru_cache

from retuned.consumers.placeholders import unnumbered

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)|\n+")
_CLAUSE_END = re.compile(r"[,;:](?=\s)|\b(?:but|except|unless)\b")
_LIST_MARK = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s+")
_STOP_WORDS = frozenset(
    """
    a about after all also am an and any are as at be been before but by can could did do does for from get go had has
    have having he her here him his how i if in into is it its just like me more most my of on one only or other our
    out over own she should so some such than that the their them then there these they this those through to too
    under until up us was we were what when where which while who why will with would you your yours please
    """.split()  # noqa: SIM905 - as a list it is a page long
)
_NEGATIONS = frozenset(
    {
        "no",
        "not",
        "never",
        "none",
        "nothing",
        "nor",
        "neither",
        "cannot",
        "without",
        "excluded",
        "forbidden",
        "prohibited",
    }
)
_NUMBER_WORDS = dict(
    zip(
        ("zero", "two", "twice", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
        ("0", "2", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"),
        strict=True,
    )
)
# What is polite or honest, and claims nothing.
_NO_CLAIM = re.compile(
    r"\b(?:i (?:do not|don['’]t|cannot|can['’]t|am unable|am not able|am sorry|am afraid)"
    r"|i['’]m (?:sorry|afraid|unable|not (?:able|sure))"
    r"|(?:happy|glad|here) to help|hope (?:this|that) helps|let (?:me|us) know|feel free"
    r"|thank(?:s| you)|you['’]re welcome|have a (?:nice|good|great))\b",
    re.IGNORECASE,
)
_ENDINGS = ("ations", "ation", "ments", "ment", "ings", "ing", "ied", "ers", "ed", "er", "ly", "es", "s")


def grounding(answer: str, context: str | Sequence[str]) -> float:
    """How well the least supported sentence of an answer is supported by its context, from 0 to 1.

    A sentence scores the share of its content words whose stem is in the context. It is cut to a third for a number
    that the context does not have, by half for a name that it does not have, and by half when it negates what the
    closest sentence of the context affirms, or the reverse. Sentences that claim nothing (thanks, "I do not know")
    are passed over; an answer of nothing else scores 1. An answer with a claim and no context scores 0.

    It sees words, not meaning: a fact tied to the wrong subject passes, and a good paraphrase in other words is
    marked down. The method is lexical precision against the source (as in the entailed n-grams of Dhingra et al. 2019,
    "Handling divergent reference texts"), taken per sentence, so that one invention does not hide behind nine truths.
    """
    passages = [context] if isinstance(context, str) else list(context)
    sources = [words for passage in passages for words in _read(passage)]
    stems = frozenset[str]().union(*(source.stems for source in sources))
    numbers = frozenset[str]().union(*(source.numbers for source in sources))
    scores = [
        _support(_Words(sentence), sources, stems, numbers) for sentence in _sentences(answer) if _claims(sentence)
    ]
    return min(scores, default=1.0)


class _Words:
    """What a sentence, or a clause of one, is made of."""

    def __init__(self, sentence: str, *, whole: bool = True) -> None:
        self.clauses = [_Words(part, whole=False) for part in _CLAUSE_END.split(sentence)] if whole else []
        words = _WORD.findall(sentence)
        lower = [word.lower().replace("’", "'") for word in words]
        self.negated = any(word in _NEGATIONS or word.endswith("n't") for word in lower)
        content = [
            (word, small)
            for word, small in zip(words, lower, strict=True)
            if small not in _STOP_WORDS
            and small not in _NEGATIONS
            and small not in _NUMBER_WORDS
            and not small.endswith("n't")
        ]
        self.stems = frozenset(_stem(small) for _, small in content)
        # A capital inside a sentence marks a name; at its start it marks the start.
        self.names = frozenset(_stem(small) for word, small in content if word[0].isupper() and word != words[0])
        spelled = {_NUMBER_WORDS[word] for word in lower if word in _NUMBER_WORDS}
        self.numbers = frozenset(_plain_number(number) for number in _NUMBER.findall(unnumbered(sentence))) | spelled


@lru_cache(maxsize=1_024)
def _read(passage: str) -> tuple[_Words, ...]:
    """The sentences of a passage; many answers share one."""
    return tuple(_Words(sentence) for sentence in _sentences(passage))


def _support(claim: _Words, sources: list[_Words], stems: frozenset[str], numbers: frozenset[str]) -> float:
    if not claim.stems and not claim.numbers:
        return 1.0
    if not sources:
        return 0.0
    score = len(claim.stems & stems) / len(claim.stems) if claim.stems else 1.0
    if claim.numbers - numbers:
        score /= 3
    if claim.names - stems:
        score /= 2
    if any(_contradicted(clause, sources) for clause in claim.clauses):
        score /= 2
    return score


def _contradicted(clause: "_Words", sources: list["_Words"]) -> bool:
    """Whether the sources say a clause with a no where it has none, or without the no that it has.

    A word that the sources have beside a no alone is denied by them, whatever else stands there; without such a word
    the closest clause tells.
    """
    clauses = [part for sentence in sources for part in sentence.clauses]
    affirmed = frozenset[str]().union(*(part.stems for part in clauses if not part.negated))
    denied = frozenset[str]().union(*(part.stems for part in clauses if part.negated))
    if clause.stems & denied - affirmed:
        return not clause.negated
    closest = max(clauses, key=lambda part: (len(clause.stems & part.stems), part.negated == clause.negated))
    return clause.negated != closest.negated and 2 * len(clause.stems & closest.stems) >= max(len(clause.stems), 1)


def _sentences(text: str) -> list[str]:
    return [_LIST_MARK.sub("", part) for part in _SENTENCE_END.split(text) if part.strip()]


def _claims(sentence: str) -> bool:
    return not sentence.rstrip().endswith("?") and not _NO_CLAIM.search(sentence)


def _stem(word: str) -> str:
    """What a word shares with its other forms: "ship" of "shipped" and "ships", "librar" of "libraries"."""
    word = word.removesuffix("'s")
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    # What is left may still end as the form without the ending does: "deliveri" and "delivery", "clos" and "close".
    for vowel in ("e", "y", "i"):
        if word.endswith(vowel) and len(word) - len(vowel) >= 3:
            word = word[: -len(vowel)]
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiou" else word


def _plain_number(number: str) -> str:
    """ "1,000" and "1000", "3.50" and "3.5" are one number."""
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", number).replace(",", ".")
    return plain.rstrip("0").rstrip(".") if plain.count(".") == 1 else plain
