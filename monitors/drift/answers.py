"""Answers that form a closed set, labels or fields of JSON: columns whose values are compared."""

import json
import math
from collections.abc import Sequence
from typing import Any

ANSWER = "answer"
# A set is closed whose values come so often, on average, and are no longer.
ROWS_A_VALUE = 10
MOST_CHARACTERS = 200
# Of JSON: so many fields at most are compared, where nearly all answers are objects.
MOST_FIELDS = 10
NEARLY_ALL = 0.95


def closed_answers(answers: Sequence[str | None]) -> dict[str, list[Any]]:
    """Columns of the values of answers, one value for each answer; none where the answers form no closed set.

    Args:
        answers: of both windows; None: too long to be read.

    Returns:
        `answer`, the answer as a label; or, where the answers are JSON objects, `answer.<field>` for each field that
        has a closed set of values or is a number.
    """
    objects = [_object(answer) for answer in answers]
    if sum(found is not None for found in objects) < NEARLY_ALL * max(len(answers), 1):
        labels = [answer and answer.strip() for answer in answers]
        return {ANSWER: labels} if _closed(labels) else {}
    columns: dict[str, Any] = {}
    for field in dict.fromkeys(field for found in objects if found for field in found):
        values = [None if found is None else found.get(field) for found in objects]
        texts = [None if found is None else _text(found[field]) if field in found else "absent" for found in objects]
        if _closed(texts):
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
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _number(value: Any) -> float | None:
    try:
        return float(value) if type(value) in (int, float) and math.isfinite(float(value)) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _closed(values: Sequence[str | None]) -> bool:
    found = [value for value in values if value is not None]
    return (
        len(found) >= NEARLY_ALL * max(len(values), 1)
        and len(set(found)) <= len(found) / ROWS_A_VALUE
        and all(len(value) <= MOST_CHARACTERS for value in set(found))
    )
