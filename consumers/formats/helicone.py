"""Helicone's requests, as its API returns them and exports write them.

Source: https://docs.helicone.ai/rest/request/post-v1requestquery
"""

from collections.abc import Iterator
from typing import Any

from retuned.consumers.formats import calls
from retuned.consumers.formats.events import Kind, PassedOver
from retuned.consumers.formats.messages import Plain, object_of, without_nothing
from retuned.consumers.formats.traced import decoded


def is_row(value: Plain) -> bool:
    """Whether an object is a request of Helicone."""
    return value.keys() >= {"request_id", "request_body", "response_body"}


def events(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the answer that a row logs, or the reason there is none."""
    request, response = decoded(value["request_body"]), decoded(value["response_body"])
    if not isinstance(request, dict):
        yield PassedOver("without_content")
        return
    status = value.get("response_status")
    if isinstance(status, int) and status >= 400:
        yield PassedOver("failed_call")
        return
    properties = dict(object_of(value.get("request_properties") or value.get("properties")))
    yield from calls.answers(
        {
            "id": value["request_id"],
            "timestamp": value.get("response_created_at") or value.get("request_created_at"),
            "workload": _pop(properties, "workload"),
            "request": request,
            "response": response,
            "conversation_id": _pop(properties, "Helicone-Session-Id"),
            "user_id": value.get("request_user_id") or value.get("user_id"),
            "latency_ms": value.get("delay_ms"),
            "cost": value.get("cost", value.get("costUSD")),
            "attributes": without_nothing(properties),
        }
    )


def _pop(properties: Plain, name: str) -> Any:
    key = next((key for key in properties if key.lower() == name.lower()), None)
    return None if key is None else properties.pop(key)
