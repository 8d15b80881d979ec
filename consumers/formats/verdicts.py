"""What evaluators and people said of an answer, as tools of tracing and evaluation keep it, as feedback."""

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
    """The verdict, and the comment and the correction that came with it, each as a feedback of its own.

    Args:
        content: what an id is made of, where there is none.
        correction: a text, or the object or the array that the answer should have been.
    """
    common = {"timestamp": timestamp, "interaction_id": about, "source": source, "user_id": user_id}
    said = [("comment", comment)] if _is_text(comment) else []
    if _is_text(correction) or (correction and isinstance(correction, dict | list)):
        said.append(("correction", correction))
    if value is None and not said:
        yield PassedOver("no_verdict")
        return
    id = id or content_hash(content or [about, name, value, timestamp])
    if value is not None:
        yield "feedback", without_nothing({"id": id, "name": name, "value": value, **common})
    for kind, told in said:
        yield "feedback", without_nothing({"id": f"{id}-{kind}", "name": kind, "value": told, **common})


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def verdict(name: Any, score: Any, label: Any = None) -> Any:
    """The score, else the label; a boolean for the names of ours that are."""
    value = label if score is None else score
    if isinstance(name, str) and name in BOOLEANS and not isinstance(value, bool):
        word = str(label).lower()
        return True if word in _YES or score == 1 else False if word in _NO or score == 0 else value
    return value
