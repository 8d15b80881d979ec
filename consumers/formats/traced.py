"""Model calls in tracing tools: an input and an output, in the form of the traced framework."""

from typing import Any

import msgspec

from retuned.consumers.formats import anthropic, gemini, openai
from retuned.consumers.formats.messages import Plain, as_text, object_of, objects_of, with_calls

_ROLES = {
    "human": "user", "ai": "assistant", "AIMessageChunk": "assistant", "HumanMessage": "user", "AIMessage": "assistant",
    "SystemMessage": "system", "ToolMessage": "tool",
}  # fmt: skip
_SPEAKERS = {*_ROLES.values(), "developer", "function"}
_ANSWERS = ("output", "answer", "text", "completion", "response")
_REASONS = ("finish_reason", "stop_reason", "stopReason", "done_reason")
_OF_A_CALL = {"usage_metadata", "token_usage", *_REASONS}
"""What stands beside the text of an answer, and in no answer in JSON."""
_OF_AN_ERROR = {
    "error", "type", "error_type", "object", "status", "status_code", "code", "message", "request_id", "user_id",
}  # fmt: skip
_BLOCKS = {"text", "tool_use", "thinking", "redacted_thinking"}  # of Anthropic's messages


def decoded(value: Any) -> Any:
    """Decodes JSON in a text; returns any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "[", '"'):
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError:
            pass
    return value


def request(given: Any) -> Plain:
    """Returns the API request that an input holds; without messages if it holds none."""
    given = decoded(given)
    if isinstance(given, str):
        return {"messages": [{"role": "user", "content": given}]}
    if isinstance(given, list):
        return {"messages": _messages(given)}
    if not isinstance(given, dict):
        return {}
    if isinstance(given.get("messages"), list):
        return given | {"messages": _messages(given["messages"])}
    if isinstance(given.get("prompts"), list) and all(isinstance(text, str) for text in given["prompts"]):
        return {"messages": [{"role": "user", "content": text} for text in given["prompts"][:1]]}
    return {"messages": [chat_message(given)]} if _is_message(given) else given


def response(given: Any) -> Any:
    """Returns the API response that an output holds; None if it holds nothing.

    Any other value is an answer in JSON. It is kept whole, but for the text that an object holds by itself.
    """
    given = decoded(given)
    if isinstance(given, list):
        return _of_list(given)
    if isinstance(given, dict):
        return _of_object(given)
    return None if given is None else _choice({"content": as_text(given)})


def chat_message(message: Plain) -> Plain:
    """Returns a LangChain message as a chat message, and a chat message unchanged."""
    fields = message["kwargs"] if isinstance(message.get("kwargs"), dict) else message
    name = message.get("id")
    kind = name[-1] if isinstance(name, list) and name else fields.get("type")
    role = fields.get("role") or _ROLES.get(str(kind), kind)
    chat = {"role": _ROLES.get(str(role), role), "content": fields.get("content")}
    kept = {name: fields[name] for name in ("tool_calls", "function_call", "tool_call_id") if fields.get(name)}
    return with_calls(chat | kept)


def _of_list(given: list[Any]) -> Any:
    """Returns the response that a list holds: a stream, items or blocks of an API, messages, or an answer in JSON."""
    if openai.are_chunks(given) or anthropic.are_events(given) or gemini.are_chunks(given):
        return given
    if given and all(map(_is_item, given)):
        return {"output": given}
    if given and all(str(object_of(item).get("type")) in _BLOCKS for item in given):
        (message, *_) = anthropic.chat_messages({"role": "assistant", "content": given})
        return _choice(message)
    if messages := [message for message in _messages(given) if str(message["role"]) in _SPEAKERS]:
        replies = [message for message in messages if message["role"] == "assistant"]
        return _choice(replies[-1]) if replies else None
    return _choice({"content": as_text(given)}) if given else None


def _of_object(given: Plain) -> Any:
    """Returns the response that an object holds: one of an API, an error, a message, a text, or an answer in JSON."""
    if isinstance(given.get("generations"), list):
        return _generated(given)
    if _is_response(given) or _is_error(given):
        return given
    if _is_message(given):
        return _choice(chat_message(given))
    if given.keys() <= {"error", *_ANSWERS} and not any(value is not None for value in given.values()):
        return None
    texts = [given[name] for name in _ANSWERS if isinstance(given.get(name), str)]
    is_text = len(given) == 1 or given.keys() & _OF_A_CALL or isinstance(given.get("usage"), dict)
    return _choice({"content": texts[0] if texts and is_text else as_text(given)})


def _is_response(value: Plain) -> bool:
    """Whether an object is a response of OpenAI's or Anthropic's API."""
    choices, output = value.get("choices"), value.get("output")
    if isinstance(choices, list):
        return all(isinstance(one, dict) and one.keys() & {"message", "text", "finish_reason"} for one in choices)
    if isinstance(output, list) and output:
        return all(_is_item(item) or _is_message(object_of(item)) for item in output)
    return value.get("object") == "response" or anthropic.is_response(value)


def _is_item(value: Any) -> bool:
    """Whether a value is an item of the output of OpenAI's responses API."""
    kind = str(object_of(value).get("type"))
    return kind == "reasoning" or kind.endswith("_call") or (kind == "message" and "content" in value)


def _is_error(value: Plain) -> bool:
    """Whether an object is an error of an API, and no answer in JSON with a field of that name."""
    error, others = value.get("error"), {name for name in value if value[name] is not None} - _OF_AN_ERROR
    return bool(error) and ("message" in object_of(error) or not others)


def _messages(given: list[Any]) -> list[Plain]:
    if given and isinstance(given[0], list):  # a batch of prompts: the first one
        given = given[0]
    return [chat_message(message) for message in objects_of(given)]


def _is_message(value: Plain) -> bool:
    return ("content" in value and "role" in value) or ("kwargs" in value and isinstance(value.get("id"), list))


def _choice(message: Plain) -> Plain:
    return {"choices": [{"message": {"role": "assistant"} | message}]}


def _generated(given: Plain) -> Plain:
    """Returns a LangChain result as a chat completion."""
    first = given["generations"][0] if given["generations"] else None
    generation = object_of(first[0] if isinstance(first, list) and first else first)
    fields = generation.get("message")
    message = chat_message(fields) if isinstance(fields, dict) else {"content": generation.get("text")}
    kwargs = object_of(object_of(fields).get("kwargs", fields))
    metadata = object_of(kwargs.get("response_metadata"))
    about = object_of(given.get("llm_output"))
    usage = object_of(kwargs.get("usage_metadata")) or object_of(about.get("token_usage"))
    ended = (object_of(generation.get("generation_info")), metadata)
    reason = next((given[name] for given in ended for name in _REASONS if given.get(name)), None)
    model = metadata.get("model_name") or about.get("model_name")
    choice = {"message": {"role": "assistant"} | message, "finish_reason": reason}
    return {"id": about.get("id"), "model": model, "choices": [choice], "usage": usage}
