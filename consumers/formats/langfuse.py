"""Langfuse: rows of its API and its exports (traces, observations, scores), and the spans of its SDKs.

Source: https://api.reference.langfuse.com
"""

import re
from collections.abc import Iterator
from typing import Any

from retuned.consumers.formats import calls, openai, traced, verdicts
from retuned.consumers.formats.events import Kind, PassedOver
from retuned.consumers.formats.messages import Plain, object_of, objects_of, seconds_between, without_nothing

_TYPES = frozenset(
    ["SPAN", "EVENT", "GENERATION", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL"]
)  # fmt: skip
_SOURCES = {"EVAL": "judge", "ANNOTATION": "expert"}
_ABOUT = ("traceId", "trace_id", "subject")
_SPAN = "langfuse.observation."
_TRACE_METADATA, _METADATA = "langfuse.trace.metadata.", "langfuse.observation.metadata."


def is_row(value: Plain) -> bool:
    """Whether an object is a row of Langfuse, named in camel case or with underscores."""
    if "type" in value and str(value["type"]).upper() in _TYPES:
        return "startTime" in value or "start_time" in value
    if "observations" in value:
        return "timestamp" in value and isinstance(value["observations"], list)
    is_score = "dataType" in value or "data_type" in value
    return is_score and "name" in value and "value" in value and not value.keys().isdisjoint(_ABOUT)


def events(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the answers and scores of a row; a trace may hold many."""
    value = _camel(value)
    if "observations" in value:
        yield from _trace(value)
    elif "dataType" in value:
        yield from _score(value)
    else:
        yield from _observation(value, {})


def is_span(attributes: Plain) -> bool:
    """Whether attributes belong to a span of Langfuse's SDK."""
    return _SPAN + "type" in attributes


def span_row(attributes: Plain, span: Plain) -> Plain:
    """Returns a span of the SDK as a row of the API.

    Args:
        span: `id`, `traceId`, `startTime`, `endTime`.
    """
    own = {key.removeprefix(_SPAN): value for key, value in attributes.items() if key.startswith(_SPAN)}
    metadata = {
        key.removeprefix(prefix): traced.decoded(value)
        for prefix in (_TRACE_METADATA, _METADATA)
        for key, value in attributes.items()
        if key.startswith(prefix)
    }
    return {
        **span,
        "type": str(own["type"]).upper(),
        "input": own.get("input"),
        "output": own.get("output"),
        "model": own.get("model.name"),
        "completionStartTime": traced.decoded(own.get("completion_start_time")),
        "usageDetails": traced.decoded(own.get("usage_details")),
        "costDetails": traced.decoded(own.get("cost_details")),
        "level": own.get("level"),
        "metadata": metadata,
        "userId": attributes.get("user.id"),
        "sessionId": attributes.get("session.id"),
    }


def _trace(trace: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    trace = trace | {"metadata": _metadata(trace)}
    rows = [_camel(row) for row in objects_of(trace["observations"])]
    answers = [row.get("id") for row in rows if row.get("type") == "GENERATION"]
    for row in rows:
        yield from _observation(row, trace)
    for score in objects_of(trace.get("scores")):
        score = _camel(score)
        yield from _score(score, answers[0] if len(answers) == 1 else None)


def _observation(row: Plain, trace: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    if str(row.get("type")).upper() != "GENERATION":
        yield PassedOver("other_operation")
    elif row.get("level") == "ERROR":
        yield PassedOver("failed_call")
    elif row.get("input") is None and row.get("output") is None:
        yield PassedOver("without_content")
    elif row.get("output") is None:
        yield PassedOver("request_alone")
    elif openai.failed(response := traced.response(row["output"])):  # checked before the trace's metadata is copied
        yield PassedOver("failed_call")
    else:
        yield from calls.answers(_log(row, trace, response))


def _log(row: Plain, trace: Plain, response: Any) -> Plain:
    metadata = {**_metadata(trace), **_metadata(row)}
    usage = object_of(row.get("usageDetails")) or object_of(row.get("usage"))
    if isinstance(response, dict):
        counts = {"prompt_tokens": usage.get("input"), "completion_tokens": usage.get("output")}
        response = response | ({"usage": counts} if usage else {})
    began, ended = row.get("startTime"), row.get("endTime")
    kept = {
        "name": row.get("name"),
        "prompt_name": row.get("promptName"),
        "trace_id": row.get("traceId") or trace.get("id"),
    }
    return {
        "id": row.get("id"),
        "timestamp": ended or began,
        "workload": metadata.pop("workload", None) or row.get("workload"),
        "request": {"model": row.get("model")} | traced.request(row.get("input")),
        "response": response,
        "conversation_id": row.get("sessionId") or trace.get("sessionId") or metadata.pop("session_id", None),
        "user_id": row.get("userId") or trace.get("userId"),
        "latency_seconds": seconds_between(began, ended),
        "time_to_first_token_seconds": seconds_between(began, row.get("completionStartTime")),
        "cost": object_of(row.get("costDetails")).get("total", row.get("calculatedTotalCost")),
        "attributes": metadata | without_nothing(kept),
    }


def _score(score: Plain, answer: Any = None) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the feedback of a score, which names its observation in `observationId`, or since version 3 of the API in
    `subject`.

    Args:
        answer: the observation that a score of the trace is about.
    """
    subject = object_of(score.get("subject"))
    about = score.get("observationId") or (subject.get("id") if subject.get("kind") == "observation" else answer)
    if about is None:
        yield PassedOver("about_a_trace")
        return
    value, label, correction = score.get("value"), score.get("stringValue"), None
    if score.get("dataType") == "BOOLEAN":
        value = value in (1, True, "True", "true")
    elif score.get("dataType") == "CATEGORICAL":
        value = label if label is not None else value
    elif score.get("dataType") == "CORRECTION":  # its name is always "output"
        correction = traced.decoded(label if label is not None else value)
        value = label = None
    yield from verdicts.feedback(
        about,
        score.get("name"),
        verdicts.verdict(score.get("name"), value, label),
        timestamp=score.get("timestamp") or score.get("createdAt"),
        source=_SOURCES.get(str(score.get("source")), "user"),
        id=score.get("id"),
        comment=score.get("comment"),
        correction=correction,
    )


def _metadata(row: Plain) -> Plain:
    return dict(object_of(traced.decoded(row.get("metadata"))))


def _camel(row: Plain) -> Plain:
    return {re.sub("_([a-z])", lambda found: found[1].upper(), key): value for key, value in row.items()}
