"""Columns made from answers that form a closed set: labels, or fields of JSON objects."""

import json
import math
from collections.abc import Sequence
from typing import Any

ANSWER = "answer"
# A closed set has at least this many rows per distinct value, and no value longer than this.
ROWS_A_VALUE = 10
MOST_CHARACTERS = 200
# JSON answers: the most fields that are compared, and the share of answers that must be objects.
MOST_FIELDS = 10
NEARLY_ALL = 0.95


def closed_answers(answers: Sequence[str | None]) -> dict[str, list[Any]]:
    """Returns the columns that answers form, with one value for each answer; empty if they form no closed set.

    Args:
        answers: the answers of both windows; None: too long to be read.

    Returns:
        `answer`, the answer as a label; or, for JSON objects, `answer.<field>` for each field that has a closed set
        of values or is a number.
    """
    objects = [_object(answer) for answer in answers]
    if sum(item is not None for item in objects) < NEARLY_ALL * max(len(answers), 1):
        labels = [answer and answer.strip() for answer in answers]
        return {ANSWER: labels} if _is_closed(labels) else {}
    columns: dict[str, Any] = {}
    for field in dict.fromkeys(field for item in objects if item for field in item):
        values = [None if item is None else item.get(field) for item in objects]
        texts = [None if item is None else _text(item[field]) if field in item else "absent" for item in objects]
        if _is_closed(texts):
            columns[f"{ANSWER}.{field}"] = texts
        elif sum(type(value) in (int, float) for value in values) >= NEARLY_ALL * len(values):
            columns[f"{ANSWER}.{field}"] = [_number(value) for value in values]
        if len(columns) == MOST_FIELDS:
            break
    return columns


def _object(answer: str | None) -> dict[str, Any] | None:
    if answer is None or not answer.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _number(value: Any) -> float | None:
    try:
        return float(value) if type(value) in (int, float) and math.isfinite(float(value)) else None
    except OverflowError:  # an integer with hundreds of digits
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_closed(values: Sequence[str | None]) -> bool:
    known = [value for value in values if value is not None]
    distinct = set(known)
    return (
        len(known) >= NEARLY_ALL * max(len(values), 1)
        and len(distinct) <= len(known) / ROWS_A_VALUE
        and all(len(value) <= MOST_CHARACTERS for value in distinct)
    )
