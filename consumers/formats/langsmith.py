"""LangSmith's runs, as its API returns them and exports write them, and feedback on them.

Source: https://docs.langchain.com/langsmith/run-data-format
"""

from collections.abc import Iterator
from typing import Any

from retuned.consumers.common.tool_calls import are_calls
from retuned.consumers.formats import calls, traced, verdicts
from retuned.consumers.formats.events import Kind, PassedOver
from retuned.consumers.formats.messages import (
    Plain,
    joined_text,
    number,
    object_of,
    objects_of,
    seconds_between,
    without_nothing,
)

_CONVERSATIONS = ("conversation_id", "session_id", "thread_id")
_OF_A_SCORE = {"key", "score", "value", "comment"}
_JUDGES = ("model", "auto_eval")
_TAKEN = (*_CONVERSATIONS, "workload", "usage_metadata", "ls_invocation_params")


def is_run(value: Plain) -> bool:
    """Whether an object is a run, or feedback on one."""
    return value.keys() >= {"run_type", "inputs"} or (
        value.keys() >= {"run_id", "key"} and bool(value.keys() & {"score", "value"})
    )


def events(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the answer of a model's run, the feedback on a run, or the reason it is neither."""
    if "run_type" not in value:
        yield from _feedback(value)
    elif value["run_type"] != "llm":
        yield PassedOver("other_operation")
    elif value.get("error"):
        yield PassedOver("failed_call")
    elif not value.get("outputs"):
        yield PassedOver("request_alone")
    else:
        yield from calls.answers(_log(value))


def _log(run: Plain) -> Plain:
    extra = object_of(run.get("extra"))
    metadata = object_of(extra.get("metadata"))
    request = traced.request(run["inputs"])
    model = metadata.get("ls_model_name") or object_of(extra.get("invocation_params")).get("model")
    tools = request.get("tools") or object_of(extra.get("invocation_params")).get("tools")
    response = traced.response(_returned(run["outputs"]))
    if isinstance(response, dict):
        usage = response.get("usage") or response.get("usage_metadata") or metadata.get("usage_metadata")
        response = response | {"usage": usage, "metadata": None}
    began, ended = run.get("start_time"), run.get("end_time")
    return {
        "id": run.get("id"),
        "timestamp": ended or began,
        "workload": metadata.get("workload"),
        "request": {"model": model} | request | {"tools": tools, "metadata": None},
        "response": response,
        "conversation_id": next((metadata[name] for name in _CONVERSATIONS if metadata.get(name)), None),
        "latency_seconds": seconds_between(began, ended),
        "time_to_first_token_seconds": seconds_between(began, run.get("first_token_time")),
        "cost": number(run.get("total_cost")),
        "attributes": without_nothing({key: value for key, value in metadata.items() if key not in _TAKEN}),
    }


def _returned(outputs: Any) -> Any:
    """Returns what a function returned: the SDK writes an object as it is, and any other value as `output`."""
    if isinstance(outputs, dict) and outputs.keys() == {"output"} and not isinstance(outputs["output"], dict):
        return outputs["output"]
    return outputs


def _feedback(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    source = object_of(value.get("feedback_source")).get("type")
    score = verdicts.verdict(value["key"], value.get("score"), value.get("value"))
    yield from verdicts.feedback(
        value["run_id"],
        value["key"],
        score,
        timestamp=value.get("created_at"),
        source="judge" if source in _JUDGES else "user",
        id=value.get("id"),
        comment=value.get("comment"),
        correction=_correction(value.get("correction")),
    )


def _correction(value: Any) -> Any:
    """Returns the corrected answer, from an object as from the outputs of a run; None if it corrects an evaluator's
    score."""
    if not isinstance(value, dict):
        return value
    if value.keys() <= _OF_A_SCORE:
        return None
    choices = objects_of(object_of(traced.response(_returned(value))).get("choices"))
    message = object_of(choices[0].get("message")) if choices else {}
    text = joined_text(message.get("content"))
    if are_calls(message.get("tool_calls")):
        return {"content": text, "tool_calls": message["tool_calls"]}
    return text or value
