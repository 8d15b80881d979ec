"""Vertex AI's log of requests and responses, as rows of its table in BigQuery.

Source: https://cloud.google.com/vertex-ai/generative-ai/docs/multimodal/request-response-logging
"""

import re
from collections.abc import Iterator

from retuned.consumers.formats import calls, gemini
from retuned.consumers.formats.events import Kind, PassedOver
from retuned.consumers.formats.messages import Plain, number, object_of
from retuned.consumers.formats.traced import decoded


def is_row(value: Plain) -> bool:
    """Whether an object is a row of Vertex AI's log."""
    return value.keys() >= {"full_request", "full_response"}


def events(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the answer that a row logs, or the reason there is none."""
    request, response = decoded(value["full_request"]), decoded(value["full_response"])
    if not isinstance(request, dict) or response is None:
        yield PassedOver("without_content")
        return
    when = value.get("logging_time")
    yield from calls.answers(
        {
            "timestamp": re.sub("^(.{10}) (.*) UTC$", r"\1T\2Z", when) if isinstance(when, str) else when,
            "request": {"model": value.get("model"), **request},
            "response": {"responseId": value.get("request_id")} | response
            if gemini.is_response(response)
            else response,
            "latency_ms": number(object_of(decoded(value.get("metadata"))).get("request_latency")),
        }
    )
