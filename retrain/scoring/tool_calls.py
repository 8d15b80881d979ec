"""The metric `tool_calls`: which tools an answer calls, and with which arguments."""

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from retuned.consumers.common.tool_calls import OPENING, Call, read
from retuned.retrain.scoring.json_fields import Field, field_f1, leaves
from retuned.retrain.scoring.score import Metric, Score
from retuned.retrain.scoring.text import Text


class ToolCalls(Metric):
    """The metric: F1 of names and arguments over the calls; 0 for calls that cannot be read.

    The calls of one answer are made together, so that none rests on another's result and their order does not count:
    each approved call is compared with the given one that it is paired with, by the pairing that scores most. Words
    beside calls do not count. An approved answer without calls must be met without calls, by its wording (see `Text`).
    """

    name = "tool_calls"
    meaning = "F1 of the calls, their names and arguments; 0 for calls that cannot be read"

    def __init__(self) -> None:
        self._text = Text()

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        """The score; valid: the calls can be read, and the example's tools have their names."""
        wanted = _calls(approved)
        if wanted is None:
            return Score(None, "the approved answer's calls cannot be read")
        given = _calls(answer)
        if given is None:
            return Score(0.0, "its calls cannot be read", valid=False)
        unknown = _unknown(given, example)
        if not wanted and not given:
            found = self._text.score(answer, approved, example)
            return Score(found.value, found.detail, valid=True)
        detail = f"no such tool: {', '.join(unknown)}" if unknown else _difference(given, wanted)
        return Score(_f1(given, wanted), detail, valid=not unknown)

    def same(self, one: str, other: str) -> bool:
        """The same calls, in whatever order; without calls, the same text."""
        mine, theirs = _calls(one), _calls(other)
        if not mine and not theirs:
            return self._text.same(one, other)
        return mine is not None and theirs is not None and _f1(mine, theirs) == 1.0

    def key(self, answer: str) -> Hashable:
        """Its calls, in any order; without any, its words."""
        calls = _calls(answer)
        return frozenset(_fields(call) for call in calls) if calls else super().key(answer)

    def unreadable(self, answer: str, example: Mapping[str, Any]) -> str:
        """That its calls cannot be read, or which tools it calls that were not offered."""
        calls = _calls(answer)
        if calls is None:
            return "its calls cannot be read"
        unknown = _unknown(calls, example)
        return f"no such tool: {', '.join(unknown)}" if unknown else ""

    def groups(self, approved: str) -> list[str]:
        """`tool:` and the name of each tool that is called; `tool:none` where none is."""
        return sorted({f"tool:{call.name}" for call in _calls(approved) or ()}) or ["tool:none"]


def has_calls(text: str) -> bool:
    """Whether an answer calls tools."""
    return OPENING in text and bool(_calls(text))


def _calls(text: str) -> list[Call] | None:
    try:
        return read(text)[1]
    except (ValueError, RecursionError):
        return None


def _tools(example: Mapping[str, Any]) -> set[str]:
    """The names of the tools that were offered; none where the example does not say."""
    try:
        offered = json.loads(example.get("tools") or "[]")
    except ValueError:
        return set()
    found = ((one.get("function") or one).get("name") for one in offered if isinstance(one, dict))
    return {name for name in found if isinstance(name, str)}


def _unknown(calls: Sequence[Call], example: Mapping[str, Any]) -> list[str]:
    """The names of called tools that were not offered; none where the example does not say which were."""
    known = _tools(example)
    return sorted({call.name for call in calls} - known) if known else []


def _f1(given: Sequence[Call], wanted: Sequence[Call]) -> float:
    """Each call counts the same; one that is missing or too many scores 0."""
    from scipy.optimize import linear_sum_assignment

    mine, theirs = ([_fields(call) for call in calls] for calls in (given, wanted))
    pairs = np.array([[_pair(one, other) for other in theirs] for one in mine]).reshape(len(mine), len(theirs))
    rows, columns = linear_sum_assignment(pairs, maximize=True)
    return 2 * float(pairs[rows, columns].sum()) / (len(given) + len(wanted))


def _pair(one: tuple[str, frozenset[Field]], other: tuple[str, frozenset[Field]]) -> float:
    """1 for the same call, 0 for another tool; the name counts as one field."""
    if one[0] != other[0]:
        return 0.0
    name: Field = ((), "name", one[0])
    return field_f1(one[1] | {name}, other[1] | {name})


def _fields(call: Call) -> tuple[str, frozenset[Field]]:
    return call.name, frozenset(leaves(call.arguments) if call.arguments not in ({}, None) else ())


def _difference(given: Sequence[Call], wanted: Sequence[Call]) -> str:
    """What differs, for people."""
    said, meant = sorted(call.name for call in given), sorted(call.name for call in wanted)
    if said != meant:
        return f"calls {', '.join(said) or 'nothing'} in place of {', '.join(meant) or 'nothing'}"
    return "" if _f1(given, wanted) == 1.0 else "other arguments"
