"""The state of a label request: a pure function of what experts did with it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

Status = Literal["open", "mine", "taken", "skipped", "answered", "second", "disputed"]
CLAIM = timedelta(minutes=15)
"""A claim without an answer ends after this."""


@dataclass(frozen=True)
class Work:
    """What one expert did with a request. `value` is JSON; `sent`: the answer, or the same one of another expert, was
    published as feedback."""

    expert: str
    state: Literal["claimed", "skipped", "answered"]
    since: datetime
    name: str | None = None
    value: str | None = None
    sent: bool | None = None
    comment: str | None = None


def agreeing(work: Iterable[Work], own: Work) -> list[Work]:
    """Returns the answers that are the same as `own`, which is among `work` and among them."""
    answers = [one for one in work if one.state == "answered"]
    return next(same for same in _alike(answers) if own in same)


def status(work: Iterable[Work], expert: str, now: datetime, opinions: int = 1) -> Status:
    """Returns the status of a request for one expert.

    `answered`: enough experts agree, and the answer is on its way to the warehouse. `second`: this expert has answered
    and another opinion is awaited. `disputed`: the answers differ, and one more expert decides. `taken`: another expert
    works on it. `skipped`: this expert passed it over. `mine`: this expert claimed it. Otherwise `open`; so is, for all
    experts, a request on which enough of them agree although no answer was sent: fewer have to agree than before.

    Args:
        opinions: how many experts must agree.
    """
    work = list(work)
    answers = [one for one in work if one.state == "answered"]
    own = next((one for one in work if one.expert == expert), None)
    agreed = [same for same in _alike(answers) if len(same) >= opinions]
    if any(one.sent for same in agreed for one in same):
        return "answered"
    if own is not None and own.state == "answered":
        if agreed:
            return "open"
        return "disputed" if len(_alike(answers)) > 1 else "second"
    if own is not None and own.state == "skipped":
        return "skipped"
    if is_taken(work, expert, now):
        return "taken"
    return "mine" if own is not None else "disputed" if len(_alike(answers)) > 1 else "open"


def is_taken(work: Iterable[Work], expert: str, now: datetime) -> bool:
    """Whether another expert has claimed a request."""
    return any(one.expert != expert and one.state == "claimed" and now - one.since < CLAIM for one in work)


def agreement(requests: Iterable[Sequence[Work]]) -> tuple[int, int]:
    """Of the requests that two or more experts answered: on how many all agree, and how many they are."""
    shared = [answers for work in requests if len(answers := [one for one in work if one.state == "answered"]) > 1]
    return sum(len(_alike(answers)) == 1 for answers in shared), len(shared)


def _alike(answers: Sequence[Work]) -> list[list[Work]]:
    """The answers by what they state: case and space within a text may mean something."""
    groups: dict[tuple[str | None, Any], list[Work]] = {}
    for one in answers:
        value = json.loads(one.value or "null")
        key = value.strip() if isinstance(value, str) else value
        groups.setdefault((one.name, key), []).append(one)
    return list(groups.values())
