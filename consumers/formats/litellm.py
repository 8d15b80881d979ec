"""LiteLLM's StandardLoggingPayload, which its proxy and its callbacks log for each call.

Source: https://docs.litellm.ai/docs/proxy/logging_spec
"""

from collections.abc import Iterator
from typing import Any

from retuned.consumers.formats import calls
from retuned.consumers.formats.events import Kind, PassedOver
from retuned.consumers.formats.messages import Plain, is_short_id, object_of, without_nothing

_ANSWERS = ("completion", "responses", "anthropic_messages", "generate_content")
_REDACTED = "redacted-by-litellm"  # by `turn_off_message_logging`
_WORKLOAD_TAG = "workload:"
_OWNER = "user_api_key_user_id"  # of an app's key: the same for all of its users
_KEPT = ("request_tags", "model_group", "custom_llm_provider", "cache_hit", "model_id")


def is_payload(value: Plain) -> bool:
    """Whether an object is a StandardLoggingPayload."""
    return value.keys() >= {"messages", "call_type", "startTime"}


def events(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the answer that a payload logs, or the reason there is none."""
    if not any(name in str(value["call_type"]) for name in _ANSWERS):
        yield PassedOver("other_operation")
    elif value.get("status") == "failure":
        yield PassedOver("failed_call")
    elif value["messages"] in (None, _REDACTED, [{"role": "user", "content": _REDACTED}]):
        yield PassedOver("without_content")
    else:
        yield from calls.answers(_log(value))


def _log(value: Plain) -> Plain:
    parameters, metadata = object_of(value.get("model_parameters")), object_of(value.get("metadata"))
    response = value.get("response")
    if isinstance(response, str):
        response = {"choices": [{"message": {"content": response}}]}
    began, ended = value["startTime"], value.get("endTime")
    first = value.get("completionStartTime") if value.get("stream") else None
    is_input = isinstance(value["messages"], str) or "responses" in str(value["call_type"])
    given = object_of(metadata.get("requester_metadata")) | object_of(metadata.get("spend_logs_metadata"))
    users = (value.get("end_user"), metadata.get("user_api_key_end_user_id"), parameters.get("user"))
    kept = {key: value.get(key) or None for key in _KEPT} | {_OWNER: metadata.get(_OWNER) or None}
    return {
        "id": None if is_short_id(value.get("id")) else value.get("id"),  # most are that of the response
        "timestamp": ended or began,
        "workload": _workload(value.get("request_tags")) or given.get("workload") or metadata.get("workload"),
        "request": {
            "model": value.get("model"), "tools": parameters.get("tools"),
            "input" if is_input else "messages": value["messages"],
        },
        "response": response,
        "conversation_id": value.get("session_id") or value.get("trace_id"),
        "user_id": next((user for user in users if user), None),
        "latency_seconds": _between(began, ended),
        "time_to_first_token_seconds": _between(began, first),
        "cost": value.get("response_cost"),
        "attributes": given | without_nothing(kept),
    }  # fmt: skip


def _workload(tags: Any) -> str | None:
    named = (
        [tag for tag in tags if isinstance(tag, str) and tag.startswith(_WORKLOAD_TAG)]
        if isinstance(tags, list)
        else []
    )
    return named[0].removeprefix(_WORKLOAD_TAG) if named else None


def _between(began: Any, ended: Any) -> float | None:
    """Returns the seconds between two Unix times in seconds."""
    if isinstance(began, int | float) and isinstance(ended, int | float) and ended >= began:
        try:
            return float(ended) - float(began)
        except OverflowError:
            return None
    return None
