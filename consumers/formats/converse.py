"""Amazon Bedrock's Converse API: a request and its response in the form of OpenAI's chat completions.

Source: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html
"""

from typing import Any

import msgspec

from retuned.consumers.formats.messages import (
    Plain,
    object_of,
    objects_of,
    sum_of,
    tool,
    tool_call,
    turn,
    without_nothing,
)

_LEFT_OUT = ("cachePoint", "reasoningContent")


def is_response(value: Any) -> bool:
    """Whether an object is an answer of the Converse API."""
    return isinstance(value, dict) and "message" in object_of(value.get("output"))


def as_openai(log: Plain) -> Plain:
    """Returns a logged request and its response in the form of chat completions."""
    request, response = log["request"], log["response"]
    usage = object_of(response.get("usage"))
    messages = [message for item in objects_of(request.get("messages")) for message in _messages(item)]
    if system := [part for part in objects_of(request.get("system")) if isinstance(part.get("text"), str)]:
        messages = [*turn("system", [_part(part) for part in system], [], []), *messages]
    message = object_of(response["output"]["message"])
    (answer, *_) = _messages(message | {"role": "assistant"})
    thoughts = [object_of(part.get("reasoningContent")) for part in objects_of(message.get("content"))]
    texts = [object_of(thought.get("reasoningText")).get("text") for thought in thoughts]
    answer["reasoning_content"] = "\n".join(text for text in texts if isinstance(text, str)) or None
    chat_request = {
        "model": request.get("modelId", request.get("model")),
        "messages": messages or request.get("messages"),
        "tools": [
            tool(spec.get("name"), spec.get("description"), object_of(spec.get("inputSchema")).get("json"))
            for item in objects_of(object_of(request.get("toolConfig")).get("tools"))
            if isinstance(spec := item.get("toolSpec"), dict)
        ],
        "metadata": object_of(request.get("requestMetadata")),
    }
    counts = {
        "prompt_tokens": sum_of(usage, "inputTokens", "cacheReadInputTokens", "cacheWriteInputTokens"),
        "completion_tokens": usage.get("outputTokens"),
    }
    return {"latency_ms": object_of(response.get("metrics")).get("latencyMs")} | log | {
        "request": without_nothing(chat_request),
        "response": {
            "choices": [{"message": answer, "finish_reason": response.get("stopReason")}],
            "usage": counts | object_of(response.get("usage")),
        },
    }  # fmt: skip


def _messages(message: Plain) -> list[Plain]:
    """Returns one message as chat messages."""
    parts, tools, results = [], [], []
    for block in objects_of(message.get("content")):
        if isinstance(use := block.get("toolUse"), dict):
            arguments = msgspec.json.encode(use.get("input")).decode()
            tools.append(tool_call(use.get("toolUseId"), use.get("name"), arguments))
        elif isinstance(result := block.get("toolResult"), dict):
            texts = [_result(part) for part in objects_of(result.get("content"))]
            results.append({"role": "tool", "tool_call_id": result.get("toolUseId"), "content": "\n".join(texts)})
        elif isinstance(cited := block.get("citationsContent"), dict):
            parts += [_part(part) for part in objects_of(cited.get("content"))]
        elif not any(name in block for name in _LEFT_OUT):
            parts.append(_part(block))
    return turn(message.get("role"), parts, tools, results)


def _part(block: Plain) -> Plain:
    """Returns a block as a part of a chat message, with its type."""
    return {"type": "text", **block} if isinstance(block.get("text"), str) else {"type": next(iter(block), ""), **block}


def _result(part: Plain) -> str:
    text = part.get("text")
    return text if isinstance(text, str) else msgspec.json.encode(part.get("json", part)).decode()
