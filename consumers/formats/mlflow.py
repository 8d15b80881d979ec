"""MLflow's traces, as `Trace.to_json()` writes them: the model calls in them, and their assessments.

Source: https://mlflow.org/docs/3.0.1/tracing/tracing-schema
"""

from collections.abc import Iterator
from typing import Any

from retuned.consumers.formats import calls, openai, traced, verdicts
from retuned.consumers.formats.events import Kind, PassedOver
from retuned.consumers.formats.messages import Plain, object_of, objects_of, seconds_between, without_nothing

_CALLS = ("CHAT_MODEL", "LLM")
_SOURCES = {"HUMAN": "user", "LLM_JUDGE": "judge", "AI_JUDGE": "judge", "CODE": "app"}
_LONGEST_ID = 1_000  # characters; validation refuses it, but every span's id would repeat it
_EXPECTED = ("expected_response", "expected_output")


def is_trace(value: Plain) -> bool:
    """Whether an object is a trace."""
    return "trace_id" in object_of(value.get("info")) and "spans" in object_of(value.get("data"))


def events(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the answers and assessments of a trace. A single answer has the trace's id and its assessments."""
    info = value["info"]
    spans = [(span, _attributes(span)) for span in objects_of(value["data"]["spans"])]
    ids = [span.get("span_id") for span, attributes in spans if attributes.get("mlflow.spanType") in _CALLS]
    known, trace_id = {*map(str, ids)}, str(info["trace_id"])[:_LONGEST_ID]

    def answer(span_id: Any) -> str | None:
        if len(ids) == 1 and span_id in (None, ids[0]):
            return trace_id
        return None if span_id is None or str(span_id) not in known else f"{trace_id}-{span_id}"

    for span, attributes in spans:
        yield from _span(span, attributes, info, answer(span.get("span_id")))
    for item in objects_of(info.get("assessments")):
        about = answer(item.get("span_id"))
        yield from [PassedOver("about_a_trace")] if about is None else _assessment(item, about)


def _span(span: Plain, attributes: Plain, info: Plain, id: str | None) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    if id is None:
        yield PassedOver("other_operation")
        return
    if object_of(span.get("status")).get("code") in ("STATUS_CODE_ERROR", "ERROR"):
        yield PassedOver("failed_call")
        return
    response = traced.response(attributes.get("mlflow.spanOutputs"))
    if openai.failed(response):  # before the tags are copied
        yield PassedOver("request_alone" if response is None else "failed_call")
        return
    tags, metadata = object_of(info.get("tags")), object_of(info.get("trace_metadata"))
    began, ended = span.get("start_time_unix_nano"), span.get("end_time_unix_nano")
    kept = {key: value for key, value in tags.items() if not key.startswith("mlflow.") and key != "workload"}
    yield from calls.answers(
        {
            "id": id,
            "timestamp": ended,
            "workload": tags.get("workload") or metadata.get("workload"),
            "request": traced.request(attributes.get("mlflow.spanInputs")),
            "response": response,
            "conversation_id": metadata.get("mlflow.trace.session"),
            "user_id": metadata.get("mlflow.trace.user"),
            "latency_seconds": seconds_between(began, ended),
            "attributes": without_nothing({**kept, "trace_id": info["trace_id"]}),
        }
    )


def _assessment(item: Plain, about: str) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    name, feedback, expectation = (
        item.get("assessment_name"),
        object_of(item.get("feedback")),
        object_of(item.get("expectation")),
    )
    source = _SOURCES.get(str(object_of(item.get("source")).get("source_type")), "user")
    is_correction = isinstance(name, str) and name in _EXPECTED and isinstance(expectation.get("value"), str)
    yield from verdicts.feedback(
        about,
        name,
        verdicts.verdict(name, feedback.get("value")),
        timestamp=item.get("create_time"),
        source="expert" if is_correction and source == "user" else source,
        id=item.get("assessment_id"),
        comment=item.get("rationale"),
        correction=expectation.get("value") if is_correction else None,
    )


def _attributes(span: Plain) -> Plain:
    """Returns a span's attributes; MLflow writes each value as JSON."""
    return {key: traced.decoded(value) for key, value in object_of(span.get("attributes")).items()}
