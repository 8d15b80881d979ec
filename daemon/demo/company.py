"""The demo's company: what is true, what changes, how people ask. Data; `company.yaml` documents its form."""

import random
import re
from collections.abc import Iterator
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from retuned.consumers.common import yamltext
from retuned.consumers.errors import ConfigurationError
from retuned.consumers.sections import Section, Share

MINIMUM_QUESTIONS = 14
EXAM_QUESTIONS = 4

Text = Annotated[str, Field(min_length=1)]
# A lone text is a list of one.
Values = Annotated[
    tuple[Text, ...], Field(min_length=1), BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]
Questions = dict[str, tuple[str, ...]]


class Users(Section):
    """How simulated customers behave; all probabilities are of one question."""

    rates: Share
    mistaken: Share
    corrects: Share
    escalates: Share
    seconds_saved: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]


class ChangedFact(Section):
    """What a fact becomes."""

    id: Text
    answer: Text
    value: Values


class StatedFact(ChangedFact):
    """A fact as the file states it."""

    topic: str = ""
    questions: Annotated[tuple[Text, ...], Field(min_length=MINIMUM_QUESTIONS)]


class Fact(StatedFact):
    """A fact at one time. `other_values` are its values at other times: an answer with one of them is not right."""

    other_values: tuple[str, ...] = ()


class Change(Section):
    """What the company changes."""

    facts: Annotated[tuple[ChangedFact, ...], Field(min_length=1)]
    new: tuple[StatedFact, ...] = ()


class Company(Section):
    """A company before and after its change."""

    name: Text
    system: Text
    users: Users
    before: Annotated[tuple[StatedFact, ...], Field(min_length=1, alias="facts")]
    change: Change

    def facts(self, changed: bool) -> list[Fact]:
        """Returns what is true before the change, or after it."""
        later = {fact.id: fact for fact in self.change.facts}
        found = []
        for stated in [*self.before, *(self.change.new if changed else ())]:
            now: ChangedFact = stated
            other = later.get(stated.id)
            if changed and other is not None:
                now, other = other, stated
            then = {"answer": now.answer, "value": now.value, "other_values": other.value if other else ()}
            found.append(Fact(**stated.model_dump() | then))
        return found


def load(path: Path | None) -> Company:
    """Reads and checks a company; None is the one that comes with retuned.

    Raises:
        ConfigurationError: the file cannot be read or does not have the form; the text names the file and the key.
    """
    source = files("retuned.daemon.demo") / "company.yaml" if path is None else path
    try:
        data = yamltext.parse(source.read_bytes(), f"company {source}")
    except OSError as error:
        raise ConfigurationError(f"company {source}: cannot be read ({error}); check --company") from error
    try:
        company = Company.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"company {source}: {key}: {first['msg']}") from error
    for problem in _problems(company):
        raise ConfigurationError(f"company {source}: {problem}")
    return company


def is_right(fact: Fact, answer: str) -> bool:
    """Returns whether an answer holds the fact's value (whole words, in any case) and none of its other values."""
    return all(_holds(answer, value) for value in fact.value) and not any(
        _holds(answer, value) for value in fact.other_values
    )


def split_questions(company: Company, seed: int) -> tuple[Questions, Questions]:
    """Returns each fact's wordings that customers ask, and those for the examination, which no training ever sees."""
    asked: Questions = {}
    exam: Questions = {}
    for fact in company.facts(changed=True):
        shuffled = list(fact.questions)
        random.Random(f"{seed} {fact.id}").shuffle(shuffled)
        exam[fact.id], asked[fact.id] = tuple(shuffled[:EXAM_QUESTIONS]), tuple(shuffled[EXAM_QUESTIONS:])
    return asked, exam


def _problems(company: Company) -> Iterator[str]:
    """Yields what the form alone does not catch, each as a sentence that begins with its key."""
    low, high = company.users.seconds_saved
    if low > high:
        yield f"users.seconds_saved: the shortest, {low:g}, is longer than the longest, {high:g}"
    placed: list[tuple[str, StatedFact]] = [(f"facts.{fact.id}", fact) for fact in company.before]
    placed += [(f"change.new.{fact.id}", fact) for fact in company.change.new]
    changes = [(f"change.facts.{later.id}", later) for later in company.change.facts]
    for group in (placed, changes):
        ids = [fact.id for _, fact in group]
        yield from (f"{key}: the id is used twice" for at, (key, fact) in enumerate(group) if fact.id in ids[:at])
    for key, later in changes:
        if later.id not in {fact.id for fact in company.before}:
            yield f"{key}: no such fact stands under facts; a new fact belongs under change.new"

    wordings: dict[tuple[str, ...], str] = {}
    for key, fact in placed:
        for question in fact.questions:
            if before := wordings.get(_tokens(question)):
                yield f"{key}.questions: {question!r} is also asked under {before}"
            wordings[_tokens(question)] = key

    # Every value a fact ever has: it stands in its answer, in no question of the fact, and belongs to one fact alone.
    questions = {fact.id: fact.questions for _, fact in placed}
    values = [(key, value, statement) for key, statement in [*placed, *changes] for value in statement.value]
    for key, value, statement in values:
        if not _tokens(value):
            yield f"{key}.value: {value!r} has no word or number in it"
        if not _holds(statement.answer, value):
            yield f"{key}.value: {value!r} does not stand in the answer {statement.answer!r}"
        for question in questions[statement.id]:
            if _holds(question, value):
                yield f"{key}.questions: {question!r} gives the value away"
    for (one_key, one, _), (other_key, other, _) in combinations(values, 2):
        if one_key != other_key and (_holds(one, other) or _holds(other, one)):
            yield f"{other_key}.value: {other!r} cannot be told from {one!r} of {one_key}.value"


def _holds(text: str, value: str) -> bool:
    words, wanted = _tokens(text), _tokens(value)
    return any(words[start : start + len(wanted)] == wanted for start in range(len(words) - len(wanted) + 1))


def _tokens(text: str) -> tuple[str, ...]:
    """Returns numbers with their decimals, and words; signs and punctuation are left out."""
    return tuple(re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_]+", text.casefold()))
