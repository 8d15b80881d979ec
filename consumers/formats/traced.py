"""Model calls in tracing tools: an input and an output, in the form of the traced framework."""

from typing import Any

import msgspec

from retuned.consumers.formats.messages import Plain, object_of, objects_of, tool_call

_ROLES = {
    "human": "user", "ai": "assistant", "AIMessageChunk": "assistant", "HumanMessage": "user", "AIMessage": "assistant",
    "SystemMessage": "system", "ToolMessage": "tool",
}  # fmt: skip
_ANSWERS = ("output", "answer", "text", "completion", "response")


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
    """Returns the API response that an output holds. An object of another kind is taken as an answer in JSON."""
    given = decoded(given)
    if isinstance(given, str):
        return _choice({"content": given})
    if isinstance(given, list):
        replies = [message for message in _messages(given) if message.get("role") == "assistant"]
        return _choice(replies[-1]) if replies else None
    if not isinstance(given, dict):
        return None
    if isinstance(given.get("generations"), list):
        return _generated(given)
    if given.keys() & {"choices", "error"} or isinstance(given.get("output"), list) or given.get("type") == "message":
        return given
    if _is_message(given):
        return _choice(chat_message(given))
    texts = [given[name] for name in _ANSWERS if isinstance(given.get(name), str)]
    return _choice({"content": texts[0] if texts else msgspec.json.encode(given).decode()}) if given else None


def chat_message(message: Plain) -> Plain:
    """Returns a LangChain message as a chat message, and a chat message unchanged."""
    fields = message["kwargs"] if isinstance(message.get("kwargs"), dict) else message
    name = message.get("id")
    kind = name[-1] if isinstance(name, list) and name else fields.get("type")
    role = fields.get("role") or _ROLES.get(str(kind), kind)
    chat = {"role": _ROLES.get(str(role), role), "content": fields.get("content")}
    if calls := objects_of(fields.get("tool_calls")):
        chat["tool_calls"] = [_tool_call(call) for call in calls]
    if fields.get("tool_call_id"):
        chat["tool_call_id"] = fields["tool_call_id"]
    return chat


def _messages(given: list[Any]) -> list[Plain]:
    if given and isinstance(given[0], list):  # a batch of prompts: the first one
        given = given[0]
    return [chat_message(message) for message in objects_of(given)]


def _is_message(value: Plain) -> bool:
    return ("content" in value and "role" in value) or ("kwargs" in value and isinstance(value.get("id"), list))


def _tool_call(call: Plain) -> Plain:
    if "function" in call or "name" not in call:
        return call
    arguments = msgspec.json.encode(call.get("args")).decode()
    return tool_call(call.get("id"), call["name"], arguments)


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
    reason = object_of(generation.get("generation_info")).get("finish_reason") or metadata.get("finish_reason")
    model = metadata.get("model_name") or about.get("model_name")
    choice = {"message": {"role": "assistant"} | message, "finish_reason": reason}
    return {"id": about.get("id"), "model": model, "choices": [choice], "usage": usage}
