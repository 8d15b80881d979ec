"""Coerces the types of our own events where the intended value is unambiguous."""

from typing import Any

from retuned.consumers.formats.messages import Plain, instant

_IDS = ("id", "conversation_id", "user_id", "interaction_id")
_COUNTS = ("input_tokens", "output_tokens")
_PASSAGE_TEXTS = ("text", "page_content", "content")


def is_feedback(value: Plain) -> bool:
    """Whether an object has the fields of feedback."""
    return value.keys() >= {"interaction_id", "name"}


def is_interaction(value: Plain) -> bool:
    """Whether an object has the fields of an interaction."""
    response = value.get("response")
    is_message = isinstance(response, dict) and not response.keys().isdisjoint(("content", "tool_calls"))
    return "messages" in value and (isinstance(response, str) or is_message)


def coerced(fields: Plain) -> Plain:
    """Returns the fields with times, ids, counts and context in the schema's types; validation checks the rest."""
    event = dict(fields)
    if "timestamp" in event:
        event["timestamp"] = instant(event["timestamp"])
    for name in _IDS:
        if type(event.get(name)) is int:
            event[name] = str(event[name])
    for name in _COUNTS:
        count = event.get(name)
        if isinstance(count, float) and count.is_integer():
            event[name] = int(count)
    if "context" in event:
        event["context"] = _passages(event["context"])
    return event


def _passages(context: Any) -> Any:
    """Returns a list of texts for one text, or for the objects that retrievers return."""
    if isinstance(context, str):
        return [context]
    return [_passage(item) for item in context] if isinstance(context, list) else context


def _passage(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    return next((item[name] for name in _PASSAGE_TEXTS if isinstance(item.get(name), str)), item)
