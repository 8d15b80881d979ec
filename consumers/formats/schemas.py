"""JSON Schemas of our events for producers, as in `deploy/schemas`."""

from typing import Any

import msgspec

from retuned.consumers.formats.events import Feedback, Interaction


def json_schemas() -> dict[str, dict[str, Any]]:
    """Returns the JSON Schemas (draft 2020-12) of both events by name: `interaction` and `feedback`."""
    schemas = {}
    for name, kind in (("interaction", Interaction), ("feedback", Feedback)):
        schema = msgspec.json.schema(kind)
        body = schema["$defs"][kind.__name__]
        schemas[name] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **body}
    message = {
        "type": "object",
        "properties": {"role": {"type": "string", "minLength": 1}, "content": {"type": ["string", "array", "null"]}},
        "required": ["role"],
    }
    call = {
        "type": "object",
        "properties": {
            "function": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "arguments": {}},
                "required": ["name", "arguments"],
            }
        },
        "required": ["function"],
    }
    answer = {
        "type": "object",
        "properties": {
            "content": {"type": ["string", "null"]},
            "tool_calls": {"anyOf": [{"type": "array", "items": call}, {"type": "null"}]},
            "reasoning_content": {"type": ["string", "null"]},
        },
    }
    nested = {
        "messages": {"type": "array", "minItems": 1, "items": message},
        "response": {"anyOf": [{"type": "string"}, answer]},
        "context": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}], "default": None},
        "tools": {"anyOf": [{"type": "array", "items": {"type": "object"}}, {"type": "null"}], "default": None},
        "attributes": {"anyOf": [{"type": "object"}, {"type": "null"}], "default": None},
    }
    for name, form in nested.items():
        described = schemas["interaction"]["properties"][name]
        described.pop("anyOf", None)
        described.pop("default", None)
        described.update(form)
    return schemas
