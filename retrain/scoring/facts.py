"""The metric `facts`: values decide whether an answer is right; wording does not.

`consumers.common.values` reads the values: quantities, money, dates, times, addresses and codes. An answer that has
another value in place of one of the approved answer's, or no value at all, is wrong. One with the same values in the
same words is right. In all other cases (such as a negation in other words, or who pays whom) the metric abstains, and a
judge decides if one is configured.
"""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from retuned.consumers.common.languages import language_among
from retuned.consumers.common.tool_calls import OPENING
from retuned.consumers.common.values.read import read
from retuned.consumers.common.values.tables import LANGUAGES, Tables, tables
from retuned.consumers.common.values.value import Value, neighbours, opposed, same
from retuned.consumers.privacy.placeholders import unnumbered
from retuned.retrain.scoring.code import compared_code, is_code
from retuned.retrain.scoring.invisible import INVISIBLE
from retuned.retrain.scoring.json_fields import field_f1, fields, is_fenced
from retuned.retrain.scoring.judge import question_of
from retuned.retrain.scoring.score import Metric, Score
from retuned.retrain.scoring.words import marked, plain
from retuned.retrain.scoring.words import token_f1 as token_f1
from retuned.retrain.scoring.words import tokens as tokens

Outcome = Literal["same", "conflict", "missing", "open"]

_CONSTANTS = frozenset({"true", "false", "null"})
_CODE = re.compile(
    r"```|~~~|`[^`\n]+`|[=!<>]=|[{}\\]|\w\((?!e?s\))|\w\[\w+\]|;\s*$|(?:^|\s)--?[A-Za-z]|\s(?:&&?|\|\|?|[-=]>|=)\s|^[^\S\n]*=|\$\w*[A-Za-z]",
    re.MULTILINE,
)
"""Code within prose, where values have another meaning."""
_ZONE = re.compile(r"\b(?:UTC|GMT|BST|I?ST|[CEMW]ES?T|[ECMP][SD]T|MESZ|MEZ)\b")
_PAUSE = re.compile(r"\W*\w+[\"'”’»)]*(?:\s*[.,:;!?…–—]|\s+-\s|\s*\Z)")
"""A first word with a pause behind it, or the end."""
_STEM = 4
_FEW_WORDS = 4
"""The language of a text with fewer words is that of all texts together."""
_NAMES = frozenset({"code", "address", "ordinal"})
"""Kinds whose values do not exclude each other: an answer may omit one or add another."""


@dataclass(frozen=True)
class Comparison:
    """The result of comparing the values of two texts, and the reason."""

    outcome: Outcome
    reason: str


class Facts(Metric):
    """The metric: 1 for the values of the approved answer in its words, 0 if one differs or all are missing; else
    abstains."""

    name = "facts"
    meaning = "1 for the values of the approved answer in its words, 0 for other or missing values, else not judged"

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        """Returns the score with the reason. For JSON, the F1 of its fields."""
        if (document := fields(approved)) is not None:
            given = fields(answer, fenced=is_fenced(approved))
            value = 0.0 if given is None else field_f1(given, document)
            return Score(value, "" if value == 1 else "other fields")
        comparison = compared(answer, approved, question_of(example))
        if comparison.outcome == "same":
            return Score(1.0)
        return Score(None if comparison.outcome == "open" else 0.0, comparison.reason)

    def compare(self, one: str, other: str) -> bool | None:
        """Returns True for the same values in the same words, False if values conflict, else None."""
        documents = fields(one, fenced=is_fenced(other)), fields(other, fenced=is_fenced(one))
        if documents != (None, None):
            return documents[0] == documents[1]
        outcomes = {compared(one, other).outcome, compared(other, one).outcome}
        return False if "conflict" in outcomes else True if outcomes == {"same"} else None

    def key(self, answer: str) -> Hashable:
        language = _language(answer)
        if (document := fields(answer)) is not None:
            return document
        if not language:
            return super().key(answer)
        text = _text(answer, language)
        return (text.opening, *text.content)


@lru_cache(maxsize=50_000)
def compared(answer: str, approved: str, question: str = "") -> Comparison:
    """Compares an answer with the approved one by their values. Pure.

    Args:
        question: values that it states may be left out of the answer.
    """
    answer, approved, question = (unnumbered(text).strip() for text in (answer, approved, question))
    if not _CONSTANTS.isdisjoint({answer, approved}):
        return Comparison("same" if answer == approved else "conflict", f"it is not {approved}")
    if answer == approved:
        return Comparison("same", "")
    if not answer or not approved:
        return Comparison("missing", "it is empty")
    if OPENING in answer or OPENING in approved:
        return Comparison("open", "the answer or the approved one calls tools")
    if is_code(approved):
        equal, reason = compared_code(answer, approved)
        return Comparison("open" if equal is None else "same" if equal else "conflict", reason)
    if _CODE.search(approved):
        return Comparison("open", "there is code in the approved answer")
    if set(_ZONE.findall(answer)) != set(_ZONE.findall(approved)):
        return Comparison("open", "the times are of different zones")
    language, other = _language(approved), _language(answer)
    is_short = min(_words(approved), _words(answer)) < _FEW_WORDS
    if is_short:  # nobody knows the language of "60 minutes" by itself
        language = other = _language(f"{question}\n{approved}\n{answer}")
    if language is None or other is None:
        if plain(answer) == plain(approved):
            return Comparison("same", "")
        return Comparison("open", "the language is not English, German, French or Spanish")
    comparison = _compared_in(language, answer, approved, question)
    if comparison.outcome == "open" and other != language:
        return Comparison("open", "they are in different languages")
    if is_short and comparison.outcome in ("missing", "conflict"):  # in its language it may state the same
        others = [_compared_in(name, answer, approved, question) for name in LANGUAGES]
        if any(one.outcome == "same" for one in others):
            is_missing = comparison.outcome == "missing"
            return Comparison("same", "") if is_missing else Comparison("open", "their language is unknown")
    return comparison


def _compared_in(language: str, answer: str, approved: str, question: str) -> Comparison:
    mine, theirs = _text(answer, language), _text(approved, language)
    if plain(answer) == plain(approved) and mine.content == theirs.content:  # 5 MW and 5 mW differ in case alone
        return Comparison("same", "")
    return _by_values(mine, theirs, read(question, language)) or _by_words(mine, theirs)


class _Text:
    """A text as values and the words around them."""

    def __init__(self, text: str, language: str) -> None:
        text = INVISIBLE.sub("", text)
        self.tables, self.values = tables(language), read(text, language)
        self.hard = [value for value in self.values if not value.soft]
        words = marked(text, self.values, language)
        words = [one for one in words if one[1] is not None or one[0] not in self.tables.fillers] or words
        self.opening = _opening(text, words, self.tables)
        self.words = words[1:] if self.opening else words

    @property
    def content(self) -> list[str]:
        """Words and values, without fillers."""
        return [token if value is None else value.key + value.bound + value.per for token, value in self.words]

    @property
    def unbounded(self) -> list[str]:
        """Words and values, without the bounds of values."""
        return [token if value is None else value.key for token, value in self.words]

    @property
    def affirmed(self) -> list[str]:
        """Words and values, without negations."""
        return [token for token in self.content if token not in self.tables.denials]

    def beside(self, value: Value) -> set[str]:
        """Returns the stems of the words beside a value, such as the noun that a number counts."""
        place = next(place for place, (_, one) in enumerate(self.words) if one is value)
        near = self.words[max(place - 1, 0) : place + 2]
        return {token[:_STEM] for token, one in near if one is None}

    @property
    def has_quantities(self) -> bool:
        """Whether it states any quantity, in whatever form."""
        known = self.tables.vague | self.tables.units.keys() | self.tables.scales.keys()
        return any(value.kind not in _NAMES if value else token in known for token, value in self.words)

    @property
    def denies(self) -> bool:
        """Whether it is negated, as far as the number of negations shows."""
        denials = [token for token in self.content if token in self.tables.denials]
        paired = self.tables.language == "fr" and denials and denials[0] in ("ne", "n")
        return bool(denials) if paired else len(denials) % 2 == 1


_text = lru_cache(maxsize=20_000)(_Text)


def _opening(text: str, words: Sequence[tuple[str, Value | None]], known: Tables) -> str:
    """Returns `affirms` or `declines` if a text begins with yes or no, and pauses or ends there; else an empty text.
    "No refunds" denies, and answers nothing."""
    first = words[0][0] if words else ""
    if not _PAUSE.match(text):
        return ""
    return next((name for name in ("affirms", "declines") if first in known.list_of(name)), "")


def _by_values(mine: _Text, theirs: _Text, asked: Sequence[Value]) -> Comparison | None:
    """Compares by values alone; None if the values agree."""
    others = [
        value for value in mine.hard if not any(same(value, one) is not False for one in [*theirs.values, *asked])
    ]
    for wanted in theirs.hard:
        equal = [value for value in mine.values if same(value, wanted) is not False]
        if not equal:
            rivals = [value for value in others if value.kind == wanted.kind]
            if wanted.kind == "number":
                rivals = [value for value in rivals if mine.beside(value) & theirs.beside(wanted)]
            return _without(wanted, rivals, mine, theirs, asked)
        if all(opposed(value, wanted) for value in equal):
            if mine.unbounded == theirs.unbounded:
                return Comparison("conflict", f"{equal[0].bound} {_shown(wanted)}, not {wanted.bound}")
            return Comparison("open", "the bounds are opposite, and the wording differs")
    return Comparison("open", f"the answer adds {_shown(others[0])}") if others else None


def _without(wanted: Value, rivals: Sequence[Value], mine: _Text, theirs: _Text, asked: Sequence[Value]) -> Comparison:
    """Compares an answer that lacks a value of the approved one. `rivals` are its other values of that kind."""
    in_question = any(same(value, wanted) for value in asked)
    if rivals and not in_question:
        if not _replaces(mine, theirs, wanted) or any(neighbours(rival, wanted) for rival in rivals):
            return Comparison("open", f"{_shown(wanted)} may be put in another way")
        return Comparison("conflict", f"states {_shown(rivals[0])}, not {_shown(wanted)}")
    if in_question or mine.has_quantities or (mine.denies and wanted.number == 0) or wanted.kind in _NAMES:
        return Comparison("open", f"{_shown(wanted)} is missing, or put in another way")
    return Comparison("missing", f"{_shown(wanted)} is missing")


def _replaces(mine: _Text, theirs: _Text, wanted: Value) -> bool:
    """Returns whether the answer's values of a kind replace those of the approved one: as many values, or amounts none
    of which is equal. Days, times and names may be expressed in another way, such as "open on all days but Sunday".
    """
    of_kind = [value for value in mine.hard if value.kind == wanted.kind]
    if len(of_kind) == sum(value.kind == wanted.kind for value in theirs.hard):
        return True
    amounts = isinstance(wanted.readings[0], float)
    return amounts and not any(same(value, one) is not False for value in of_kind for one in theirs.hard)


def _by_words(mine: _Text, theirs: _Text) -> Comparison:
    """Compares the words of texts with the same values."""
    certain = all(any(same(value, wanted) for value in mine.values) for wanted in theirs.hard)
    if not certain:
        return Comparison("open", "a number can be read in two ways, or has no unit in one of them")
    opposite = {mine.opening, theirs.opening} == {"affirms", "declines"}
    if mine.content == theirs.content and not opposite:
        return Comparison("same", "")
    if mine.affirmed == theirs.affirmed and (opposite or mine.denies != theirs.denies):
        return Comparison("conflict", "the same words, one of them negated")
    if _swapped(mine, theirs):
        return Comparison("conflict", "the values changed places")
    bounds = {(value.key, value.bound, value.per) for value in mine.hard} == {
        (value.key, value.bound, value.per) for value in theirs.hard
    }
    if theirs.hard and bounds and not mine.denies and not _wording(theirs):
        return Comparison("same", "")
    if not theirs.hard:
        return Comparison("open", "there are no values, and the wording differs")
    return Comparison("open", "the values agree; the rest of the wording differs")


def _wording(text: _Text) -> list[str]:
    """Returns the words beside values; empty if the answer consists of values."""
    linking = {word for phrase in text.tables.list_of("to") for word in phrase.split()}
    return [token for token, value in text.words if value is None and token not in linking]


def _swapped(mine: _Text, theirs: _Text) -> bool:
    """Returns whether the same words have the same values in another order: the buyer pays 10 and the seller 5."""
    if [token if value is None else value.kind for token, value in mine.words] != [
        token if value is None else value.kind for token, value in theirs.words
    ]:
        return False
    linking = {word for phrase in mine.tables.list_of("to") for word in phrase.split()}
    if not any(value is None and token not in linking for token, value in _between(mine.words)):
        return False  # a list, whose order has no meaning
    return Counter(mine.content) == Counter(theirs.content)


def _between(words: Sequence[tuple[str, Value | None]]) -> Sequence[tuple[str, Value | None]]:
    places = [place for place, (_, value) in enumerate(words) if value is not None]
    return words[places[0] : places[-1]] if places else ()


def _shown(value: Value) -> str:
    return f"{value.text} ({value.kind})" if value.kind == "number" else value.text


def is_read(text: str) -> bool:
    """Returns whether a text may be in one of the languages whose values can be read."""
    return _language(text) is not None


def _language(text: str) -> str | None:
    return language_among(text, LANGUAGES)


def _words(text: str) -> int:
    return sum(any(map(str.isalpha, word)) for word in text.split())


# The values of a text.


def unsupported(answer: str, source: str) -> tuple[list[Value], list[Value]]:
    """Returns the values of an answer, and those of them that are in no reading a value of its source."""
    answer, source = unnumbered(answer), unnumbered(source)
    beside = _language(source) or "en"
    language = beside if _words(answer) < _FEW_WORDS else _language(answer) or "en"
    stated = [value for value in read(answer, language) if not value.soft]
    known = read(source, beside)
    return stated, [value for value in stated if all(same(value, other) is False for other in known)]


def exclude_each_other(value: Value) -> bool:
    """Returns whether values of this kind exclude each other: all but codes, addresses and ordinals."""
    return value.kind not in _NAMES


@lru_cache(maxsize=50_000)
def facts(text: str) -> frozenset[str]:
    """Returns the values of a text, each as its kind and amount: `day:30`, `money:4.99 EUR`."""
    text = unnumbered(text)
    return frozenset(value.key for value in read(text, _language(text) or "en") if not value.soft)


def values(stated: frozenset[str] | set[str]) -> set[str]:
    """Returns the facts that exclude each other within a kind: all but codes, addresses and ordinals."""
    return {fact for fact in stated if fact.partition(":")[0] not in _NAMES}


def conflicts(answer: str, reference: str) -> bool | None:
    """Returns whether the answer contradicts the reference; None if the values do not decide it.

    For JSON, whether it has a field that the reference lacks, or another value in a field.
    """
    if (document := fields(reference)) is not None:
        given = fields(answer)
        return None if given is None else bool(given - document)
    return {"conflict": True, "same": False, "missing": None, "open": None}[compared(answer, reference).outcome]
