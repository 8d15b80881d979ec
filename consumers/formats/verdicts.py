"""Turns scores, comments and corrections of tracing and evaluation tools into feedback."""

from collections.abc import Iterator
from typing import Any

from retuned.consumers.formats.events import BOOLEANS, Kind, PassedOver
from retuned.consumers.formats.messages import Plain, content_hash, without_nothing

_YES, _NO = ("true", "yes"), ("false", "no")


def feedback(
    about: Any,
    name: Any,
    value: Any,
    *,
    timestamp: Any,
    source: str,
    id: str | None = None,
    content: Any = None,
    comment: Any = None,
    correction: Any = None,
    user_id: Any = None,
) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the verdict, its comment and its correction, each as one feedback event.

    Args:
        content: the values from which an id is derived if there is none.
        correction: a text, or the object or the array that the answer should have been.
    """
    common = {"timestamp": timestamp, "interaction_id": about, "source": source, "user_id": user_id}
    statements = [("comment", comment)] if _is_text(comment) else []
    if _is_text(correction) or (correction and isinstance(correction, dict | list)):
        statements.append(("correction", correction))
    if value is None and not statements:
        yield PassedOver("no_verdict")
        return
    id = id or content_hash(content or [about, name, value, timestamp])
    if value is not None:
        yield "feedback", without_nothing({"id": id, "name": name, "value": value, **common})
    for kind, statement in statements:
        yield "feedback", without_nothing({"id": f"{id}-{kind}", "name": kind, "value": statement, **common})


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def verdict(name: Any, score: Any, label: Any = None) -> Any:
    """Returns the score, else the label; a boolean where our name for it requires one."""
    value = label if score is None else score
    if isinstance(name, str) and name in BOOLEANS and not isinstance(value, bool):
        word = str(label).lower()
        return True if word in _YES or score == 1 else False if word in _NO or score == 0 else value
    return value
