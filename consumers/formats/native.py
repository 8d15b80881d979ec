"""Our own events as people send them without reading the schema: types that leave no doubt are coerced."""

from typing import Any

from retuned.consumers.formats.messages import Plain, instant

_IDS = ("id", "conversation_id", "user_id", "interaction_id")
_COUNTS = ("input_tokens", "output_tokens")
_PASSAGE_TEXTS = ("text", "page_content", "content")


def is_feedback(value: Plain) -> bool:
    """Whether an object has the fields that tell feedback."""
    return value.keys() >= {"interaction_id", "name"}


def is_interaction(value: Plain) -> bool:
    """Whether an object has the fields that tell an interaction."""
    response = value.get("response")
    is_message = isinstance(response, dict) and not response.keys().isdisjoint(("content", "tool_calls"))
    return "messages" in value and (isinstance(response, str) or is_message)


def coerced(fields: Plain) -> Plain:
    """The fields of an event with the types of the schema: times, ids, counts, context. Others stay, to be checked."""
    found = dict(fields)
    if "timestamp" in found:
        found["timestamp"] = instant(found["timestamp"])
    for name in _IDS:
        if type(found.get(name)) is int:
            found[name] = str(found[name])
    for name in _COUNTS:
        count = found.get(name)
        if isinstance(count, float) and count.is_integer():
            found[name] = int(count)
    if "context" in found:
        found["context"] = _passages(found["context"])
    return found


def _passages(context: Any) -> Any:
    """A list of texts of one text, or of objects as retrievers return them."""
    if isinstance(context, str):
        return [context]
    return [_passage(item) for item in context] if isinstance(context, list) else context


def _passage(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    return next((item[name] for name in _PASSAGE_TEXTS if isinstance(item.get(name), str)), item)
