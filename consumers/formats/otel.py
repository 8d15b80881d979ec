"""Translates OpenTelemetry's GenAI spans and events into ours.

Forms: OTLP JSON as the collector's Kafka exporter writes it (`resourceSpans`, `resourceLogs`, many in one message), one
of its resources by itself, a span as the SDKs print it, and one object with attributes, nested or flat. Attributes: the
current names and those before 1.37, messages with `parts` and with `content`, whole or numbered
(`gen_ai.prompt.0.content`), on the span or on its events. `gen_ai.evaluation.result` is feedback of a judge on the
answer with that `gen_ai.response.id`. Spans of OpenInference and of Langfuse are read by their own modules.
Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from retuned.consumers.formats import langfuse, openinference, verdicts
from retuned.consumers.formats.events import Kind, PassedOver
from retuned.consumers.formats.messages import (
    TEXT_PARTS,
    Plain,
    as_text,
    content_hash,
    instant,
    is_short_id,
    joined_text,
    numbered,
    object_of,
    objects_of,
    present,
    reasoning_of,
    seconds_between,
    texts_of,
    tool_call,
    without_nothing,
)

EVALUATION = "gen_ai.evaluation.result"
DETAILS = "gen_ai.client.inference.operation.details"
EVENT_NAMES = (EVALUATION, DETAILS)
ANSWERS = ("chat", "text_completion", "generate_content")  # other operations are steps around an answer
CHOICE = "gen_ai.choice"
OLD_MESSAGES = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
CONTENT = ("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.prompt", "gen_ai.completion")
FAILED = (2, "2", "STATUS_CODE_ERROR", "ERROR")
EVENT_CONTENT = "gen_ai.event.content"  # more attributes of an event, as JSON (Azure AI Inference)
BATCHES = {"resourceSpans", "resourceLogs", "scopeSpans", "scopeLogs"}
LATENCY = "latency_seconds"

# Attributes that become fields or messages; all others stay attributes.
_TAKEN = (
    *("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions", "gen_ai.prompt"),
    *("gen_ai.completion", "gen_ai.response.id", "gen_ai.response.finish_reasons", "gen_ai.conversation.id"),
    *("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "gen_ai.usage.output_tokens"),
    *("gen_ai.usage.completion_tokens", "gen_ai.response.time_to_first_chunk", "user.id", "enduser.id"),
    *("gen_ai.tool.definitions", "event.name", EVENT_CONTENT),
)

_MESSAGE = ("role", "content", "parts", "tool_calls")
# What a message has without its content.
_BARE = ("role", "id", "index", "finish_reason", "name", "tool_call_id", "type", "event.name")


def is_batch(value: Plain) -> bool:
    """Whether a decoded message is a batch of spans or log records, possibly empty."""
    return bool(value.keys() & BATCHES)


def is_otel(value: Any) -> bool:
    """Whether a decoded message is OTLP JSON, or has GenAI attributes."""
    if not isinstance(value, dict):
        return False
    if value.keys() & BATCHES:
        return True
    attributes = _attributes(value.get("attributes")) or value
    return (
        any(key.startswith("gen_ai.") for key in attributes)
        or _name(value, attributes) in EVENT_NAMES
        or ("attributes" in value and (openinference.is_span(attributes) or langfuse.is_span(attributes)))
    )


def events(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields an answer or an evaluation for each span, event or log record, or the reason it is neither."""
    for record, resource in _records(value):
        attributes = _attributes(record.get("attributes")) or {k: v for k, v in record.items() if "." in k}
        name = _name(record, attributes)
        if name == EVALUATION:
            yield from _evaluation(record, attributes)
            continue
        attached = [(_name(item, {}), _of_event(item), item) for item in objects_of(record.get("events"))]
        extra = [more for n, more, _ in attached if n not in (EVALUATION, CHOICE, *OLD_MESSAGES)]
        if any(extra):  # the span's own attributes take precedence, then those of its first event
            attributes = {key: value for more in (*reversed(extra), attributes) for key, value in more.items()}
        if langfuse.is_span(attributes):
            yield from langfuse.events(langfuse.span_row(attributes, _row(record, resource)))
        elif reason := _no_answer(name, attributes):
            yield PassedOver(reason)
        else:
            fields, choices, is_captured = _interaction(
                record, attributes, resource, [(n, more) for n, more, _ in attached]
            )
            reason = _unanswered(record, attributes, fields, is_captured=is_captured)
            yield PassedOver(reason) if reason else ("interactions", fields)
            yield from [PassedOver("further_choice")] * (choices - 1)
            if reason == "without_content" and _where(record)["trace_id"] and not openinference.is_span(attributes):
                yield from _latency(fields)
        judged = [(more, item) for n, more, item in attached if n == EVALUATION]
        about, where = (_answer_id(record, attributes), _where(record)) if judged else ("", {})
        for more, item in judged:
            yield from _evaluation({**where, **item}, {"gen_ai.response.id": about, **more})


def _records(value: Plain) -> Iterator[tuple[Plain, Plain]]:
    """Yields spans and log records, each with the attributes of its resource."""
    if value.keys() & {"scopeSpans", "scopeLogs"}:
        value = {"resourceSpans": [value], "resourceLogs": [value]}
    if not value.keys() & BATCHES:
        resource = value.get("resource")
        yield value, _attributes(resource.get("attributes", resource) if isinstance(resource, dict) else None)
        return
    for groups, scopes, items in (
        ("resourceSpans", "scopeSpans", "spans"),
        ("resourceLogs", "scopeLogs", "logRecords"),
    ):
        for group in objects_of(value.get(groups)):
            resource = group.get("resource")
            sender = _attributes(resource.get("attributes")) if isinstance(resource, dict) else {}
            for scope in objects_of(group.get(scopes)):
                for item in objects_of(scope.get(items)):
                    yield item, sender


def _no_answer(name: str, attributes: Plain) -> str | None:
    """Returns the reason why the attributes are not those of a model's answer, else None."""
    if name in OLD_MESSAGES or name == CHOICE:
        return "message_alone"
    if any(key.startswith("gen_ai.") for key in attributes) or name == DETAILS:
        operation = attributes.get("gen_ai.operation.name")
        return None if operation is None or operation in ANSWERS else "other_operation"
    if openinference.is_span(attributes):
        return None if openinference.is_answer(attributes) else "other_operation"
    return "no_model_call"


def _unanswered(record: Plain, attributes: Plain, fields: Plain, *, is_captured: bool) -> str | None:
    """Returns the reason why a model call has no answer; None if it has one, or should have one."""
    if "response" in fields:
        return None
    status = object_of(record.get("status"))
    if attributes.get("error.type") or (status.get("code") or status.get("status_code")) in FAILED:
        return "failed_call"
    return None if is_captured or any(key.startswith(CONTENT) for key in attributes) else "without_content"


def _latency(fields: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the latency from a span without content, as the log record with the content has none."""
    if LATENCY in fields:
        about, seconds = fields["id"], fields[LATENCY]
        yield from verdicts.feedback(
            about, LATENCY, seconds, timestamp=fields.get("timestamp"), source="app", id=f"{about}-{LATENCY}"
        )


def _row(record: Plain, resource: Plain) -> Plain:
    """Returns a span as the fields of a Langfuse row, which is identified by the span."""
    began, ended = _times(record)
    where = _where(record)
    return {
        "id": where["span_id"],
        "traceId": where["trace_id"],
        "name": record.get("name"),
        "startTime": instant(began),
        "endTime": instant(ended),
        "workload": _first(resource, "retuned.workload", "service.name"),
    }


def _interaction(
    record: Plain, attributes: Plain, resource: Plain, attached: list[tuple[str, Plain]]
) -> tuple[Plain, int, bool]:
    """Returns the first answer of a call, the number of answers, and whether any content of the call was captured.

    What is not understood stays absent, and validation refuses the event.
    """
    if not any(key.startswith("gen_ai.") for key in attributes) and openinference.is_span(attributes):
        fields = _of_openinference(record, attributes, resource)
        return fields, 1, "messages" in fields
    answers = _messages(attributes, "gen_ai.output.messages", "gen_ai.completion")
    answers += [choice for name, more in attached if name == CHOICE and _has_content(choice := _choice(more))]
    prompt = _system(attributes) + _messages(attributes, "gen_ai.input.messages", "gen_ai.prompt")
    old = [_old_message(OLD_MESSAGES[name], more) for name, more in attached if name in OLD_MESSAGES]
    prompt += [message for message in old if _has_content(message)]
    answer = answers[0] if answers else {}
    text = texts_of(answer.get("content"))
    if text is None and (answer.get("tool_calls") or reasoning_of(answer) or answer.get("content", "") in (None, [])):
        text = ""  # the source states it
    reasons = _decoded(attributes.get("gen_ai.response.finish_reasons"))
    kept = {
        key: value
        for key, value in attributes.items()
        if key not in _TAKEN and not key.startswith(("gen_ai.prompt.", "gen_ai.completion."))
    }
    tools = _decoded(attributes.get("gen_ai.tool.definitions"))
    kept |= without_nothing({"tool_calls": answer.get("tool_calls"), "tools": tools or None})
    kept |= without_nothing({"reasoning_content": reasoning_of(answer)})
    kept |= without_nothing({"service.name": resource.get("service.name")})
    kept |= without_nothing(_where(record))
    began, ended = _times(record)
    fields = present(
        {
            "id": _answer_id(record, attributes),
            "timestamp": instant(ended),
            "workload": _first(attributes, "retuned.workload", "gen_ai.agent.name", "gen_ai.workflow.name")
            or _first(resource, "retuned.workload", "service.name")
            or attributes.get("service.name"),
            "model": _first(attributes, "gen_ai.response.model", "gen_ai.request.model"),
            "messages": None if any(map(_is_unknown, prompt)) else prompt or None,
            "response": text,
            "conversation_id": _first(attributes, "gen_ai.conversation.id", "session.id"),
            "user_id": _first(attributes, "user.id", "enduser.id"),
            "latency_seconds": seconds_between(began, ended),
            "time_to_first_token_seconds": attributes.get("gen_ai.response.time_to_first_chunk"),
            "input_tokens": _first(attributes, "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
            "output_tokens": _first(attributes, "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
            "finish_reason": (reasons[0] if isinstance(reasons, list) and reasons else None)
            or answer.get("finish_reason"),
            "attributes": kept or None,
        }
    )
    return fields, len(answers), bool(answers or prompt)


def _of_openinference(record: Plain, attributes: Plain, resource: Plain) -> Plain:
    fields = openinference.interaction(attributes)
    began, ended = _times(record)
    around = {
        "id": _answer_id(record, {}),
        "timestamp": instant(ended),
        "workload": attributes.get("retuned.workload") or _first(resource, "retuned.workload", "service.name"),
        LATENCY: seconds_between(began, ended),
        "time_to_first_token_seconds": next(
            (
                seconds_between(began, _times(event)[1])
                for event in objects_of(record.get("events"))
                if event.get("name") == openinference.FIRST_TOKEN
            ),
            None,
        ),
    }
    kept = without_nothing({"service.name": resource.get("service.name"), **_where(record)})
    return without_nothing(around) | fields | {"attributes": fields["attributes"] | kept}


def _evaluation(record: Plain, attributes: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the verdict, with the judge's explanation as a comment."""
    name = attributes.get("gen_ai.evaluation.name")
    score, label = attributes.get("gen_ai.evaluation.score.value"), attributes.get("gen_ai.evaluation.score.label")
    about = attributes.get("gen_ai.response.id")
    if not about or (is_short_id(about) and _where(record)["span_id"]):
        about = _answer_id(record, attributes)
    when = _times(record)[1]
    yield from verdicts.feedback(
        about,
        name,
        verdicts.verdict(name, _decoded(score), label),
        timestamp=instant(when),
        source="judge",
        content=[about, name, score, label, when],
        comment=attributes.get("gen_ai.evaluation.explanation"),
        user_id=_first(attributes, "user.id", "enduser.id"),
    )


# --- messages --------------------------------------------------------------------------------------------------------


def _system(attributes: Plain) -> list[Plain]:
    value = attributes.get("gen_ai.system_instructions")
    parts = _decoded(value)
    if not parts:
        return []
    return _chat({"role": "system", "parts": parts} if isinstance(parts, list) else
                 {"role": "system", "content": parts if isinstance(parts, str) else value})  # fmt: skip


def _messages(attributes: Plain, current: str, old: str) -> list[Plain]:
    """Returns the chat messages under the current or the old name, whole or numbered."""
    value = attributes.get(current, attributes.get(old))
    if value is None:
        value = numbered(attributes, old + ".")
    return [] if value in (None, "", [], "[]") else _read(value, "user" if old == "gen_ai.prompt" else "assistant")


def _read(value: Any, role: str) -> list[Plain]:
    """Returns the chat messages in a value; a value that holds none is the content of one, also if it is JSON."""
    plain = _decoded(value)
    items = plain if isinstance(plain, list) else [plain]
    if items and all(isinstance(item, dict) and not item.keys().isdisjoint(_MESSAGE) for item in items):
        return [message for item in items for message in _chat(item)]
    return [{"role": role, "content": plain if isinstance(plain, str) else _content(value)}]


def _content(value: Any) -> Any:
    """Returns the text of a content, or its parts; JSON that is no list of texts without types is itself the text.

    Amazon Bedrock writes texts without types.
    """
    plain = _decoded(value)
    if isinstance(plain, list) and plain and all(isinstance(part, dict) and part.keys() == {"text"} for part in plain):
        value = [{"type": "text", **part} for part in plain]
    text = joined_text(value)
    return value if text is None else text


def _has_content(message: Plain) -> bool:
    """Whether a message has more than what stays where content is not captured."""
    return not all(key in _BARE or key.startswith("gen_ai.") for key in message)


def _is_unknown(message: Plain) -> bool:
    """Whether the content of a message is under a name that is not known."""
    is_known = "content" in message or message.get("tool_calls") or reasoning_of(message)
    return not is_known and _has_content(message)


def _chat(message: Plain) -> list[Plain]:
    """Returns one message as chat messages: every tool result is a message of its own, and reasoning is apart."""
    parts = message.get("parts")
    if not isinstance(parts, list):
        return [message | {"content": _content(message["content"])} if "content" in message else message]
    rest, calls, results, thoughts = list[Any](), [], [], []
    for part in parts:
        if not isinstance(part, dict):
            rest.append(part)
        elif part.get("type") == "tool_call":
            calls.append(tool_call(part.get("id"), part.get("name"), as_text(part.get("arguments"))))
        elif part.get("type") == "tool_call_response":
            result = _text(part.get("response", part.get("result")))
            results.append({"role": "tool", "tool_call_id": part.get("id"), "content": result})
        elif part.get("type") == "reasoning":
            thoughts.append(_text(part.get("content")) or "")
        elif part.get("type") in TEXT_PARTS and isinstance(part.get("content"), str):
            rest.append({"type": "text", "text": part["content"]})
        else:
            rest.append(part)
    content = joined_text(rest)
    reply = {
        **{key: value for key, value in message.items() if key != "parts"},
        "content": (content if content is not None else rest) if rest else None,
    }
    if calls:
        reply["tool_calls"] = calls
    if thought := "\n".join(filter(None, thoughts)):
        reply["reasoning_content"] = thought
    return [reply, *results] if rest or calls or not results else results


def _old_message(role: str, attributes: Plain) -> Plain:
    kept = {key: value for key, value in attributes.items() if key not in _BARE and not key.startswith("gen_ai.")}
    if calls := _decoded(kept.pop("tool_calls", None)):
        kept = {"content": None, **kept, "tool_calls": calls}
    if "content" in kept:
        kept["content"] = _content(kept["content"])
    about = {"tool_call_id": attributes.get("id")} if role == "tool" and attributes.get("id") else {}
    return {"role": attributes.get("role", role), **kept, **about}


def _choice(attributes: Plain) -> Plain:
    rest = {key: value for key, value in attributes.items() if key not in ("message", "tool_calls")}
    if "message" in attributes:
        rest |= _read(attributes["message"], "assistant")[0]
    elif "content" in rest:
        rest["content"] = _content(rest["content"])
    calls = _decoded(attributes.get("tool_calls")) or rest.get("tool_calls")
    return {**rest, "role": "assistant", **without_nothing({"tool_calls": calls})}


def _text(value: Any) -> str | None:
    """Returns a text unchanged, and any other value as JSON; None for None."""
    return None if value is None else as_text(value)


# --- spans and records -----------------------------------------------------------------------------------------------


def _attributes(raw: Any) -> Plain:
    """Returns attributes as one object; OTLP has a list of keys and typed values."""
    if isinstance(raw, dict):
        return raw
    return {item["key"]: _any_value(item.get("value")) for item in objects_of(raw) if isinstance(item.get("key"), str)}


def _of_event(event: Plain) -> Plain:
    attributes = _attributes(event.get("attributes"))
    return attributes | object_of(_decoded(attributes.get(EVENT_CONTENT)))


def _any_value(value: Any) -> Any:
    if not isinstance(value, dict) or len(value) != 1:
        return value
    ((kind, inner),) = value.items()
    if kind == "intValue":
        return int(inner) if isinstance(inner, str) and re.fullmatch("-?[0-9]{1,19}", inner) else inner
    if kind == "arrayValue":
        values = object_of(inner).get("values")
        return [_any_value(item) for item in values] if isinstance(values, list) else []
    if kind == "kvlistValue":
        return _attributes(object_of(inner).get("values"))
    return inner if kind.endswith("Value") else value


def _name(record: Plain, attributes: Plain) -> str:
    name = attributes.get("event.name") or record.get("eventName") or record.get("event_name") or record.get("name")
    return name if isinstance(name, str) else ""


def _where(record: Plain) -> Plain:
    context = object_of(record.get("context"))
    return {
        "trace_id": record.get("traceId") or record.get("trace_id") or context.get("trace_id"),
        "span_id": record.get("spanId") or record.get("span_id") or context.get("span_id"),
    }


def _answer_id(record: Plain, attributes: Plain) -> str:
    """Returns the id that evaluations refer to, else that of the span, with an id that is too short to be unique."""
    where, id = _where(record), attributes.get("gen_ai.response.id")
    if id and not is_short_id(id):
        return str(id)
    own = f"{where['trace_id']}-{where['span_id']}" if where["span_id"] else content_hash(record)
    return f"{own}-{id}" if id else own


def _times(record: Plain) -> tuple[Any, Any]:
    """Returns the start, and the end or the time of recording; None where it is absent or 0."""
    began = record.get("startTimeUnixNano") or record.get("start_time")
    names = ("endTimeUnixNano", "end_time", "timeUnixNano", "observedTimeUnixNano", "timestamp", "time")
    return began, next((record[name] for name in names if record.get(name) not in (None, 0, "0", "")), None)


def _first(values: Plain, *names: str) -> Any:
    return next((values[name] for name in names if values.get(name) not in (None, "")), None)


def _decoded(value: Any) -> Any:
    """Decodes JSON text, in which spans carry nested values; returns any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError:
        return value
