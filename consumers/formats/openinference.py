"""Spans of OpenInference (Arize Phoenix and others): model calls in attributes `llm.…`.

Source: https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md
"""

from typing import Any

from retuned.consumers.formats import traced
from retuned.consumers.formats.messages import (
    Plain,
    is_short_id,
    numbered,
    object_of,
    objects_of,
    present,
    texts_of,
    tool_call,
    without_nothing,
)

KIND = "openinference.span.kind"
FIRST_TOKEN = "First Token Stream Event"
_HIDDEN = "__REDACTED__"
_TAKEN = (
    "input.value", "output.value", "input.mime_type", "output.mime_type", "llm.model_name", "llm.finish_reason",
    "llm.token_count.prompt", "llm.token_count.completion", "llm.token_count.total", "llm.cost.total", "session.id",
    "user.id", "metadata", "llm.invocation_parameters", KIND,
)  # fmt: skip
_MESSAGES = ("llm.input_messages.", "llm.output_messages.", "llm.tools.")
_CONTENT = (*_MESSAGES, "input.value", "output.value")


def is_span(attributes: Plain) -> bool:
    """Whether attributes belong to an OpenInference span."""
    return KIND in attributes or any(key == "llm.model_name" or key.startswith(_MESSAGES) for key in attributes)


def is_answer(attributes: Plain) -> bool:
    """Whether the span is a model call."""
    return bool(attributes.get(KIND, "LLM") == "LLM")


def interaction(attributes: Plain) -> Plain:
    """Returns the fields of an interaction. Without recorded content, messages and response are absent."""
    output = traced.decoded(attributes.get("output.value"))
    answers = [_message(item) for item in objects_of(numbered(attributes, "llm.output_messages."))]
    prompt = [_message(item) for item in objects_of(numbered(attributes, "llm.input_messages."))]
    if not prompt and not answers:  # a framework that records input and output only
        prompt, answers = _plain(attributes)
    if any(value == _HIDDEN and key.startswith(_CONTENT) for key, value in attributes.items()):
        prompt, answers = [], []
    # Spans of the responses API have separate messages for reasoning and for each tool call.
    texts = [text for answer in answers if (text := texts_of(answer.get("content")))]
    calls = [call for answer in answers for call in objects_of(answer.get("tool_calls"))]
    tools = [
        traced.decoded(object_of(item.get("tool")).get("json_schema"))
        for item in objects_of(numbered(attributes, "llm.tools."))
    ]
    metadata = object_of(traced.decoded(attributes.get("metadata")))
    kept = {key: value for key, value in attributes.items() if key not in _TAKEN and not key.startswith(_MESSAGES)}
    answer_id = object_of(output).get("id")
    return present(
        {
            "id": None if is_short_id(answer_id) else answer_id,
            "workload": metadata.get("workload"),
            "model": attributes.get("llm.model_name"),
            "messages": prompt or None,
            "response": "\n".join(texts) if texts else "" if calls else None,
            "conversation_id": attributes.get("session.id"),
            "user_id": attributes.get("user.id"),
            "input_tokens": attributes.get("llm.token_count.prompt"),
            "output_tokens": attributes.get("llm.token_count.completion"),
            "cost": attributes.get("llm.cost.total"),
            "finish_reason": attributes.get("llm.finish_reason"),
            "attributes": metadata | kept | without_nothing({"tool_calls": calls or None, "tools": tools or None}),
        }
    )


def _plain(attributes: Plain) -> tuple[list[Plain], list[Plain]]:
    """Returns prompt and answer from the attributes for input and output."""
    input, output = attributes.get("input.value"), attributes.get("output.value")
    choices = object_of(traced.response(output)).get("choices") if output != _HIDDEN else None
    messages = traced.request(input).get("messages") if input not in (None, _HIDDEN) else None
    return objects_of(messages), [object_of(choice.get("message")) for choice in objects_of(choices)[:1]]


def _message(item: Plain) -> Plain:
    message = object_of(item.get("message"))
    content = message.get("content")
    if parts := [object_of(part.get("message_content")) for part in objects_of(message.get("contents"))]:
        parts = [part for part in parts if part.get("type") != "reasoning"]
        content = texts_of(parts) if all(part.get("type") == "text" for part in parts) else parts
    calls = [_tool_call(object_of(call.get("tool_call"))) for call in objects_of(message.get("tool_calls"))]
    chat: dict[str, Any] = {"role": message.get("role"), "content": content}
    return chat | without_nothing({"tool_calls": calls or None, "tool_call_id": message.get("tool_call_id")})


def _tool_call(call: Plain) -> Plain:
    function = object_of(call.get("function"))
    return tool_call(call.get("id"), function.get("name"), function.get("arguments"))
