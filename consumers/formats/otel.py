"""OpenTelemetry's GenAI spans and events onto ours.

Forms: OTLP JSON as the collector's Kafka exporter writes it (`resourceSpans`, `resourceLogs`, many in one message), a
span as the SDKs print it, and one object with attributes, nested or flat. Attributes: the current names and those
before 1.37, messages with `parts` and with `content`, whole or numbered (`gen_ai.prompt.0.content`), on the span or on
its events. `gen_ai.evaluation.result` is feedback of a judge on the answer with that `gen_ai.response.id`.
Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from retuned.consumers.formats.events import Kind, PassedOver
from retuned.consumers.formats.messages import (
    Plain,
    content_hash,
    instant,
    joined_text,
    object_of,
    objects_of,
    without_nothing,
)

EVALUATION = "gen_ai.evaluation.result"
DETAILS = "gen_ai.client.inference.operation.details"
EVENT_NAMES = (EVALUATION, DETAILS)
PROTOBUF = (
    "OTLP as protobuf, which a collector sends by default; set `encoding: otlp_json` for traces and logs in its Kafka "
    "exporter"
)
ANSWERS = ("chat", "text_completion", "generate_content")  # other operations are steps around an answer
OLD_MESSAGES = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
YES, NO = ("true", "yes"), ("false", "no")
CONTENT = ("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.prompt", "gen_ai.completion")
FAILED = (2, "2", "STATUS_CODE_ERROR", "ERROR")
DIGITS = re.compile("[0-9]{1,6}")

# What becomes a field, or is a message; all other attributes are kept as attributes.
_TAKEN = (
    *("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions", "gen_ai.prompt"),
    *("gen_ai.completion", "gen_ai.response.id", "gen_ai.response.finish_reasons", "gen_ai.conversation.id"),
    *("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "gen_ai.usage.output_tokens"),
    *("gen_ai.usage.completion_tokens", "gen_ai.response.time_to_first_chunk", "user.id", "enduser.id"),
    *("gen_ai.tool.definitions", "event.name"),
)


def is_otel(value: Any) -> bool:
    """Whether a decoded message is OTLP JSON, or carries attributes of GenAI."""
    if not isinstance(value, dict):
        return False
    if value.keys() & {"resourceSpans", "resourceLogs"}:
        return True
    attributes = _attributes(value.get("attributes")) or value
    return any(key.startswith("gen_ai.") for key in attributes) or _name(value, attributes) in EVENT_NAMES


def events(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Each span, event or log record: an answer or an evaluation as the fields of our event, or why it is neither."""
    for record, resource in _records(value):
        attributes = _attributes(record.get("attributes")) or {k: v for k, v in record.items() if "." in k}
        name = _name(record, attributes)
        if name == EVALUATION:
            yield from _evaluation(record, attributes)
            continue
        attached = [
            (_name(item, {}), _attributes(item.get("attributes")), item) for item in objects_of(record.get("events"))
        ]
        for attached_name, more, _ in attached:
            if attached_name != EVALUATION and attached_name not in OLD_MESSAGES:
                attributes = {**more, **attributes}
        if reason := _no_answer(name, attributes):
            yield PassedOver(reason)
        else:
            made = _interaction(record, attributes, resource, [(n, more) for n, more, _ in attached])
            reason = _unanswered(record, attributes, made)
            yield PassedOver(reason) if reason else ("interactions", made)
        for attached_name, more, item in attached:
            if attached_name == EVALUATION:
                answer = {"gen_ai.response.id": _answer_id(record, attributes)}
                yield from _evaluation({**_where(record), **item}, {**answer, **more})


def is_protobuf(payload: bytes) -> bool:
    """Whether a message is OTLP as protobuf: nothing but resources (field 1), the first of which has its own three.

    Source: https://github.com/open-telemetry/opentelemetry-proto, ExportTraceServiceRequest and ResourceSpans; those
    of logs and metrics have the same numbers.
    """
    resources = _fields(payload)
    if not resources or any(tag != 0x0A for tag, _ in resources):
        return False
    inner = _fields(resources[0][1])
    return bool(inner) and all(tag in (0x0A, 0x12, 0x1A) for tag, _ in inner or ())


def _fields(message: bytes) -> list[tuple[int, bytes]] | None:
    """The fields of a protobuf message whose fields all have a length and a number below 16; None of anything else."""
    fields, at = [], 0
    while at < len(message):
        tag, at, length, shift = message[at], at + 1, 0, 0
        while True:
            if at >= len(message) or shift > 28:
                return None
            byte = message[at]
            at, length, shift = at + 1, length | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        if tag & 0x87 != 2 or at + length > len(message):
            return None
        fields.append((tag, message[at : at + length]))
        at += length
    return fields


def _records(value: Plain) -> Iterator[tuple[Plain, Plain]]:
    """Spans and log records with the attributes of what sent them."""
    if not value.keys() & {"resourceSpans", "resourceLogs"}:
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
    """Why a span or log record is not about an answer of a model, by its attributes; else None."""
    if name in OLD_MESSAGES or name == "gen_ai.choice":
        return "message_alone"
    if any(key.startswith("gen_ai.") for key in attributes) or name == DETAILS:
        operation = attributes.get("gen_ai.operation.name")
        return None if operation is None or operation in ANSWERS else "other_operation"
    is_openinference = any(key == "openinference.span.kind" or key.startswith("llm.") for key in attributes)
    return "openinference" if is_openinference else "no_model_call"


def _unanswered(record: Plain, attributes: Plain, made: Plain) -> str | None:
    """Why a call of a model brought no answer; None where one is there, or ought to be."""
    if "response" in made:
        return None
    status = object_of(record.get("status"))
    if attributes.get("error.type") or (status.get("code") or status.get("status_code")) in FAILED:
        return "failed_call"
    return None if any(key.startswith(CONTENT) for key in attributes) or "messages" in made else "without_content"


def _interaction(record: Plain, attributes: Plain, resource: Plain, attached: list[tuple[str, Plain]]) -> Plain:
    answers = _messages(attributes, "gen_ai.output.messages", "gen_ai.completion")
    answers += [_choice(more) for name, more in attached if name == "gen_ai.choice"]
    prompt = _system(attributes) + _messages(attributes, "gen_ai.input.messages", "gen_ai.prompt")
    prompt += [_old_message(OLD_MESSAGES[name], more) for name, more in attached if name in OLD_MESSAGES]
    answer = answers[0] if answers else {}
    text = joined_text(answer.get("content"))
    if text is None and answer:
        text = ""
    reasons = _decoded(attributes.get("gen_ai.response.finish_reasons"))
    kept = {
        key: value
        for key, value in attributes.items()
        if key not in _TAKEN and not key.startswith(("gen_ai.prompt.", "gen_ai.completion."))
    }
    kept |= without_nothing({"tool_calls": answer.get("tool_calls"), "service.name": resource.get("service.name")})
    kept |= without_nothing(_where(record))
    began, ended = _times(record)
    return without_nothing(
        {
            "id": _answer_id(record, attributes),
            "timestamp": instant(ended),
            "workload": _first(attributes, "retuned.workload", "gen_ai.agent.name", "gen_ai.workflow.name")
            or _first(resource, "retuned.workload", "service.name")
            or attributes.get("service.name"),
            "model": _first(attributes, "gen_ai.response.model", "gen_ai.request.model"),
            "messages": prompt or None,
            "response": text,
            "conversation_id": _first(attributes, "gen_ai.conversation.id", "session.id"),
            "user_id": _first(attributes, "user.id", "enduser.id"),
            "latency_seconds": _seconds_between(began, ended),
            "time_to_first_token_seconds": attributes.get("gen_ai.response.time_to_first_chunk"),
            "input_tokens": _first(attributes, "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
            "output_tokens": _first(attributes, "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
            "finish_reason": reasons[0] if isinstance(reasons, list) and reasons else answer.get("finish_reason"),
            "attributes": kept or None,
        }
    )


def _evaluation(record: Plain, attributes: Plain) -> Iterator[tuple[Kind, Plain]]:
    """The verdict, and what the judge says of it as a comment."""
    name = attributes.get("gen_ai.evaluation.name")
    score, label = attributes.get("gen_ai.evaluation.score.value"), attributes.get("gen_ai.evaluation.score.label")
    about = attributes.get("gen_ai.response.id") or _answer_id(record, {})
    id = content_hash([about, name, score, label, _times(record)[1]])
    user = _first(attributes, "user.id", "enduser.id")
    common = {"timestamp": instant(_times(record)[1]), "interaction_id": about, "source": "judge", "user_id": user}
    common = without_nothing(common)
    yield "feedback", without_nothing({"id": id, "name": name, "value": _verdict(name, score, label), **common})
    explanation = attributes.get("gen_ai.evaluation.explanation")
    if isinstance(explanation, str) and explanation.strip():
        yield "feedback", {"id": id + "-comment", "name": "comment", "value": explanation, **common}


def _verdict(name: Any, score: Any, label: Any) -> Any:
    """The score, else the label; a boolean for the names of ours that are."""
    if isinstance(score, str):
        score = _decoded(score)
    value = label if score is None else score
    if name in ("helpful", "hallucination", "resolved", "escalated"):
        word = str(label).lower()
        return True if word in YES or score == 1 else False if word in NO or score == 0 else value
    return value


# --- messages --------------------------------------------------------------------------------------------------------


def _system(attributes: Plain) -> list[Plain]:
    instructions = _decoded(attributes.get("gen_ai.system_instructions"))
    if not instructions:
        return []
    return _chat({"role": "system", "parts": instructions} if isinstance(instructions, list) else
                 {"role": "system", "content": instructions})  # fmt: skip


def _messages(attributes: Plain, current: str, old: str) -> list[Plain]:
    """Chat messages from the attribute of the one name or the other, whole or numbered."""
    found = _decoded(attributes.get(current, attributes.get(old)))
    if found is None:
        found = _numbered(attributes, old + ".")
    if isinstance(found, str):
        return [{"role": "user" if old == "gen_ai.prompt" else "assistant", "content": found}]
    return [message for item in objects_of(found) for message in _chat(item)]


def _chat(message: Plain) -> list[Plain]:
    """One message as chat messages: results of tools are messages of their own there."""
    parts = message.get("parts")
    if not isinstance(parts, list):
        return [message]
    rest, calls, results = [], [], []
    for part in objects_of(parts):
        if part.get("type") == "tool_call":
            arguments = part.get("arguments")
            text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
            calls.append(
                {"id": part.get("id"), "type": "function", "function": {"name": part.get("name"), "arguments": text}}
            )
        elif part.get("type") == "tool_call_response":
            result = _text(part.get("response", part.get("result")))
            results.append({"role": "tool", "tool_call_id": part.get("id"), "content": result})
        else:
            rest.append(part)
    content = joined_text(rest)
    said = {
        **{key: value for key, value in message.items() if key != "parts"},
        "content": (content if content is not None else rest) if rest else None,
    }
    if calls:
        said["tool_calls"] = calls
    return [said, *results] if rest or calls or not results else results


def _old_message(role: str, attributes: Plain) -> Plain:
    given = without_nothing(
        {
            "tool_calls": _decoded(attributes.get("tool_calls")),
            "tool_call_id": attributes.get("id") if role == "tool" else None,
        }
    )
    return {"role": attributes.get("role", role), "content": _text(attributes.get("content")), **given}


def _choice(attributes: Plain) -> Plain:
    message = _decoded(attributes.get("message", attributes.get("content")))
    said = message if isinstance(message, dict) else {"content": message}
    calls = _decoded(attributes.get("tool_calls")) or said.get("tool_calls")
    return without_nothing(
        {**said, "role": "assistant", "finish_reason": attributes.get("finish_reason"), "tool_calls": calls}
    )


def _text(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


def _numbered(attributes: Plain, prefix: str) -> list[Any] | None:
    """`prefix0.role`, `prefix0.content`, `prefix1.…` as a list of objects; numbers inside are lists too."""
    tree: Plain = {}
    for key, value in attributes.items():
        if key.startswith(prefix):
            *path, last = key[len(prefix) :].split(".")
            node = tree
            for step in path:
                inner = node.setdefault(step, {})
                node = inner if isinstance(inner, dict) else {}
            node[last] = value
    listed = _listed(tree)
    return listed if isinstance(listed, list) else None


def _listed(node: Any) -> Any:
    if not isinstance(node, dict) or not node:
        return node
    if all(DIGITS.fullmatch(key) for key in node):
        return [_listed(node[key]) for key in sorted(node, key=int)]
    return {key: _listed(value) for key, value in node.items()}


# --- spans and records -----------------------------------------------------------------------------------------------


def _attributes(found: Any) -> Plain:
    """Attributes as one object: OTLP writes a list of keys and typed values."""
    if isinstance(found, dict):
        return found
    return {
        item["key"]: _any_value(item.get("value")) for item in objects_of(found) if isinstance(item.get("key"), str)
    }


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
    """The id that evaluations refer to, else the span's."""
    where = _where(record)
    if id := attributes.get("gen_ai.response.id"):
        return str(id)
    return f"{where['trace_id']}-{where['span_id']}" if where["span_id"] else content_hash(record)


def _times(record: Plain) -> tuple[Any, Any]:
    """When it began and when it ended or was recorded; None where that is not said."""
    began = record.get("startTimeUnixNano") or record.get("start_time")
    names = ("endTimeUnixNano", "end_time", "timeUnixNano", "observedTimeUnixNano", "timestamp", "time")
    return began, _first(record, *names)


def _seconds_between(began: Any, ended: Any) -> float | None:
    try:
        seconds = (int(ended) - int(began)) / 1e9  # both in nanoseconds
    except (TypeError, ValueError, OverflowError):
        try:
            between = msgspec.convert(ended, datetime) - msgspec.convert(began, datetime)
        except (msgspec.ValidationError, TypeError):
            return None
        seconds = between.total_seconds()
    return seconds if seconds >= 0 else None


def _first(values: Plain, *names: str) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def _decoded(value: Any) -> Any:
    """Spans carry structures as JSON text where they cannot carry them otherwise."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError:
        return value
