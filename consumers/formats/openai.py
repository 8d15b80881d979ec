"""OpenAI's requests and responses: chat completions, completions and responses; streams and batches of them.

Source: https://platform.openai.com/docs/api-reference
"""

from collections.abc import Iterable
from typing import Any

from retuned.consumers.formats.events import BadEvent
from retuned.consumers.formats.messages import (
    Plain,
    content_hash,
    in_seconds,
    instant,
    is_short_id,
    joined_text,
    object_of,
    objects_of,
    present,
    reasoning_of,
    texts_of,
    tool_call,
    with_calls,
    without_nothing,
)

CHUNK = "chat.completion.chunk"
TEMPLATE = ("functions", "documents", "chat_template_kwargs", "chat_template")
"""Fields of requests that chat templates read, beside messages and tools."""
_CALLS = ("function_call", "custom_tool_call")
_RESULTS = ("function_call_output", "custom_tool_call_output")
_FINISHED = ("completed", "incomplete")
_RESPONSES = ("chat.completion", "text_completion", "response", CHUNK)


def are_chunks(value: Any) -> bool:
    """Whether a value is the list of chunks of a streamed chat completion, of which servers may name only some."""
    return (
        isinstance(value, list)
        and all(isinstance(item, dict) and isinstance(item.get("choices"), list) for item in value)
        and any(item.get("object") == CHUNK for item in value)
    )


def is_response(value: Plain) -> bool:
    """Whether an object is a response without its request."""
    return value.get("object") in _RESPONSES


def is_batch_line(value: Plain) -> bool:
    """Whether an object is a line of a batch's input or output, or both joined."""
    answer = value.get("response")
    return "custom_id" in value and (
        isinstance(value.get("body"), dict)
        or isinstance(value.get("result"), dict)
        or (isinstance(answer, dict) and "body" in answer)
    )


def batch_log(line: Plain) -> Plain | None:
    """Returns a line of a batch as a request with its response; None if it holds the request alone.

    Raises:
        BadEvent: the line holds the response alone.
    """
    if "response" not in line and "result" not in line:
        return None
    if not isinstance(line.get("body"), dict):
        raise BadEvent(
            "not_an_event",
            "a line of a batch's output, without its request; join the batch's files by their custom_id: "
            "jq -cs 'group_by(.custom_id)[] | add' input.jsonl output.jsonl",
        )
    answer = object_of(line.get("response"))
    return {"request": line["body"], "response": answer.get("body") or {"error": line.get("error") or "no answer"}}


def failed(response: Any) -> bool:
    """Whether a call returned an error instead of an answer."""
    if isinstance(response, dict):
        return bool(response.get("error")) and not (response.get("choices") or response.get("output"))
    return response is None


def choices(response: Any) -> int:
    """Returns the number of answers in a response."""
    return len(objects_of(object_of(response).get("choices"))) or 1


def whole(response: Any) -> Plain:
    """Joins a streamed response, from chunks or events of the responses API; returns an object unchanged.

    Raises:
        BadEvent: the value is neither.
    """
    if are_chunks(response):
        return joined(response)
    if isinstance(response, list):
        ends = [
            item for item in objects_of(response) if item.get("type") in ("response.completed", "response.incomplete")
        ]
        if ends and isinstance(ends[-1].get("response"), dict):
            final: Plain = ends[-1]["response"]
            return final
    if not isinstance(response, dict):
        raise BadEvent("not_an_event", f"response: expected an object, got {type(response).__name__}")
    return response


def interaction(log: Plain) -> Plain:
    """Returns the fields of an interaction from an OpenAI request, its response and the fields beside them."""
    request, response = log["request"], log["response"]
    message, text, finish_reason = _answer(response)
    metadata = object_of(request.get("metadata")) | object_of(response.get("metadata"))
    usage = object_of(response.get("usage"))
    latency = in_seconds(log.get("latency_ms"))
    kept = request.get("conversation") or response.get("conversation")
    conversation = log.get("conversation_id") or kept or metadata.get("conversation_id")
    before = kept or request.get("previous_response_id") or response.get("previous_response_id")
    attributes = metadata | {
        "client_id": log.get("client_id"),
        "tools": request.get("tools") or None,
        **{name: request.get(name) or None for name in TEMPLATE},
        "tool_calls": message.get("tool_calls") or None,
        "reasoning_content": reasoning_of(message),
        **object_of(log.get("attributes")),
    }
    answer_id = None if is_short_id(response.get("id")) else response.get("id")
    return present(
        {
            "id": log.get("id") or answer_id or content_hash(log),
            "timestamp": instant(log.get("timestamp") or response.get("created") or response.get("created_at")),
            "workload": log.get("workload") or log.get("workload_id") or metadata.get("workload"),
            "model": response.get("model") or request.get("model"),
            "messages": _prompt(request, before),
            "response": text,
            "context": log.get("context"),
            "conversation_id": conversation.get("id") if isinstance(conversation, dict) else conversation,
            "user_id": log.get("user_id") or request.get("user") or request.get("safety_identifier"),
            "latency_seconds": log.get("latency_seconds") if latency is None else latency,
            "time_to_first_token_seconds": log.get("time_to_first_token_seconds"),
            "input_tokens": usage.get("prompt_tokens", usage.get("input_tokens")),
            "output_tokens": usage.get("completion_tokens", usage.get("output_tokens")),
            "cost": log.get("cost"),
            "finish_reason": finish_reason,
            "attributes": without_nothing(attributes) or None,
        }
    )


def _answer(response: Plain) -> tuple[Plain, str | None, str | None]:
    """Returns the first choice as a message, its text, and its finish reason."""
    if choices := objects_of(response.get("choices")):
        choice = choices[0]
        message = with_calls(object_of(choice.get("message")))
        text = choice.get("text", texts_of(message.get("content")))
        if text is None:
            beside = message.get("tool_calls") or reasoning_of(message)  # reasoning may be cut off before the answer
            spoken = object_of(message.get("audio")).get("transcript")
            text = message.get("refusal") or spoken or ("" if beside or _is_empty(choice) else None)
        return message, text, choice.get("finish_reason")
    output, status = objects_of(response.get("output")), response.get("status")
    texts = [texts_of(item.get("content")) for item in output if item.get("type", "message") == "message"]
    calls = [_tool_call(item) for item in output if item.get("type") in _CALLS]
    text = "\n".join(text for text in texts if text)
    message = {"tool_calls": calls} if calls else {}
    has_ended = status in _FINISHED and isinstance(response.get("output"), list)
    is_empty = has_ended and all(item.get("type") == "reasoning" for item in output)
    return message, text if text or calls or is_empty else None, status


def _is_empty(choice: Plain) -> bool:
    """Whether an answer ended with nothing in it: no text, and no sound or image instead."""
    message = object_of(choice.get("message"))
    is_bare = message.get("content", "") is None and not (message.get("audio") or message.get("images"))
    return is_bare and bool(choice.get("finish_reason"))


def joined(stream: Iterable[Plain]) -> Plain:
    """Joins the chunks of a chat completion or of a text completion, first choice only."""
    response, texts, thoughts, reason, calls = Plain(), list[Any](), list[str](), None, _Calls()
    for chunk in stream:
        response |= {key: chunk[key] for key in ("id", "created", "model", "usage") if chunk.get(key)}
        for choice in objects_of(chunk.get("choices")):
            if choice.get("index"):
                continue
            delta = object_of(choice.get("delta"))
            reason = choice.get("finish_reason") or reason
            texts += [choice.get("text"), delta.get("content"), delta.get("refusal")]
            thoughts.append(reasoning_of(delta) or "")
            for part in objects_of(delta.get("tool_calls")):
                calls.add(part)
            if isinstance(function := delta.get("function_call"), dict):  # the older form, of one call
                calls.add({"type": "function", "function": function})
    text = "".join(text for text in texts if isinstance(text, str))
    thought = "".join(thoughts) or None
    message = without_nothing({"content": text, "reasoning_content": thought, "tool_calls": calls.made() or None})
    return response | {"choices": [{"message": message, "finish_reason": reason}]}


class _Calls:
    """The tool calls of a stream, whose arguments come in pieces."""

    def __init__(self) -> None:
        self._all: list[tuple[Plain, list[str]]] = []
        self._latest: dict[str, tuple[Plain, list[str]]] = {}

    def add(self, part: Plain) -> None:
        """Adds a piece. A new id begins a new call, because some servers number none of their calls, or all alike."""
        index, id, function = str(part.get("index")), part.get("id"), object_of(part.get("function"))
        latest = self._latest.get(index)
        if latest is None or (id and latest[0]["id"] not in (None, id)):
            latest = self._latest[index] = tool_call(None, None, ""), []
            self._all.append(latest)
        call, arguments = latest
        call |= {key: part[key] for key in ("id", "type") if part.get(key)}
        call["function"] |= {"name": function["name"]} if function.get("name") else {}
        if isinstance(function.get("arguments"), str):
            arguments.append(function["arguments"])

    def made(self) -> list[Plain]:
        """Returns the calls in the order of their beginnings."""
        made = [(call, call["function"] | {"arguments": "".join(pieces)}) for call, pieces in self._all]
        return [without_nothing(call | {"function": function}) for call, function in made]


def _prompt(request: Plain, before: Any) -> Any:
    """Returns the messages of a request: of a chat, of a completion's prompt, or of the responses API's input.

    A message that is no text stands for a conversation `before` the input, which OpenAI keeps: nothing is learned from
    a question without its history, and it is compared with no other.
    """
    if "messages" in request:
        return request["messages"]
    prompt = request.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    instructions, given = request.get("instructions"), request.get("input")
    messages = [{"role": "system", "content": instructions}] if isinstance(instructions, str) else []
    if before:
        messages.append(_reference(object_of(before).get("id", before)))
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    items = [_input_item(item) for item in objects_of(given)]
    return [*messages, *(item for item in items if "role" in item)] or None


def _reference(id: Any) -> Plain:
    return {"role": "assistant", "content": [{"type": "item_reference", "id": id}]}


def _input_item(item: Plain) -> Plain:
    """Returns an item of the responses API as a chat message; one without a role is a step of the answer before."""
    if item.get("type") == "item_reference":
        return _reference(item.get("id"))
    if item.get("type") in _CALLS:
        return {"role": "assistant", "content": None, "tool_calls": [_tool_call(item)]}
    if item.get("type") in _RESULTS:
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    text = joined_text(item.get("content"))
    if text is None or "role" not in item or item.keys() & {"tool_calls", "tool_call_id"}:  # of the chat API already
        return item
    return {"role": item["role"], "content": text}


def _tool_call(item: Plain) -> Plain:
    return tool_call(item.get("call_id"), item.get("name"), item.get("arguments", item.get("input")))
