"""The metric `tool_calls`: the tools that an answer calls, and their arguments."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from retuned.consumers.common.tool_calls import OPENING, Call, read
from retuned.retrain.scoring.json_fields import Field, field_f1, leaves
from retuned.retrain.scoring.score import Metric, Score
from retuned.retrain.scoring.text import Text


class ToolCalls(Metric):
    """The metric: F1 of names and arguments over the calls; 0 for calls that cannot be read.

    The calls of one answer are made in parallel, so their order does not count. Approved and given calls are paired so
    that the score is highest. Text beside calls does not count. If the approved answer has no calls, the answer must
    have none either, and is compared by its wording (see `Text`).
    """

    name = "tool_calls"
    meaning = "F1 of the calls, their names and arguments; 0 for calls that cannot be read"

    def __init__(self) -> None:
        self._text = Text()

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        """Returns the score. The answer is valid if its calls can be read and name tools of the example."""
        wanted = _calls(approved)
        if wanted is None:
            return Score(None, "the approved answer's calls cannot be read")
        given = _calls(answer)
        if given is None:
            return Score(0.0, "its calls cannot be read", valid=False)
        unknown = _unknown(given, example)
        if not wanted and not given:
            return replace(self._text.score(answer, approved, example), valid=True)
        detail = f"no such tool: {', '.join(unknown)}" if unknown else _difference(given, wanted)
        return Score(_f1(given, wanted), detail, valid=not unknown)

    def compare(self, one: str, other: str) -> bool | None:
        """Returns whether the calls are equal, in any order; without calls, compares as `Text` does."""
        mine, theirs = _calls(one), _calls(other)
        if not mine and not theirs:
            return self._text.compare(one, other)
        return mine is not None and theirs is not None and _f1(mine, theirs) == 1.0

    def key(self, answer: str) -> Hashable:
        calls = _calls(answer)
        return frozenset(_fields(call) for call in calls) if calls else super().key(answer)

    def unreadable(self, answer: str, example: Mapping[str, Any], *, inferred: bool = True) -> str:
        """Returns a reason if the calls cannot be read or name tools that were not offered."""
        calls = _calls(answer)
        if calls is None:
            return "its calls cannot be read"
        unknown = _unknown(calls, example)
        return f"no such tool: {', '.join(unknown)}" if unknown else ""

    def groups(self, approved: str) -> list[str]:
        """Returns `tool:` and the name of each called tool; `tool:none` if there are no calls."""
        return sorted({f"tool:{call.name}" for call in _calls(approved) or ()}) or ["tool:none"]


def has_calls(text: str) -> bool:
    """Returns whether an answer calls tools."""
    return OPENING in text and bool(_calls(text))


def _calls(text: str) -> list[Call] | None:
    try:
        return read(text)[1]
    except (ValueError, RecursionError):
        return None


def _tools(example: Mapping[str, Any]) -> set[str]:
    """Returns the names of the offered tools; empty if unknown."""
    try:
        offered = json.loads(example.get("tools") or "[]")
    except ValueError:
        return set()
    names = ((tool.get("function") or tool).get("name") for tool in offered if isinstance(tool, dict))
    return {name for name in names if isinstance(name, str)}


def _unknown(calls: Sequence[Call], example: Mapping[str, Any]) -> list[str]:
    """Returns the names of called tools that were not offered; empty if the offered tools are unknown."""
    known = _tools(example)
    return sorted({call.name for call in calls} - known) if known else []


def _f1(given: Sequence[Call], wanted: Sequence[Call]) -> float:
    """Returns the F1 of calls, each with equal weight. A missing or additional call scores 0."""
    from scipy.optimize import linear_sum_assignment

    mine, theirs = ([_fields(call) for call in calls] for calls in (given, wanted))
    pairs = np.array([[_pair(one, other) for other in theirs] for one in mine]).reshape(len(mine), len(theirs))
    rows, columns = linear_sum_assignment(pairs, maximize=True)
    return 2 * float(pairs[rows, columns].sum()) / (len(given) + len(wanted))


def _pair(one: tuple[str, frozenset[Field]], other: tuple[str, frozenset[Field]]) -> float:
    """Returns the F1 of two calls; 0 for different tools. The name counts as one field."""
    if one[0] != other[0]:
        return 0.0
    name: Field = ((), "name", one[0])
    return field_f1(one[1] | {name}, other[1] | {name})


def _fields(call: Call) -> tuple[str, frozenset[Field]]:
    return call.name, frozenset(leaves(call.arguments) if call.arguments not in ({}, None) else ())


def _difference(given: Sequence[Call], wanted: Sequence[Call]) -> str:
    """Describes the difference."""
    names, expected = sorted(call.name for call in given), sorted(call.name for call in wanted)
    if names != expected:
        return f"calls {', '.join(names) or 'nothing'} in place of {', '.join(expected) or 'nothing'}"
    return "" if _f1(given, wanted) == 1.0 else "other arguments"
