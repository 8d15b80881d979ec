"""API calls as apps log them: a request with its response, of OpenAI, Anthropic, Bedrock or Gemini."""

from collections.abc import Iterator
from typing import Any

from retuned.consumers.formats import anthropic, converse, gemini, openai
from retuned.consumers.formats.events import BadEvent, Kind, PassedOver
from retuned.consumers.formats.messages import Plain

_APIS = (anthropic, converse, gemini)  # beside OpenAI's
ALONE = 'no request: a response without its request; send both as {"workload": …, "request": …, "response": …}'


def is_call(value: Plain) -> bool:
    """Whether an object is a call, or a response or batch line without its request."""
    return (
        ("response" in value and isinstance(value.get("request"), dict))
        or openai.is_response(value)
        or openai.is_batch_line(value)
        or anthropic.is_response(value)
        or converse.is_response(value)
        or gemini.is_response(value)
        or openai.are_chunks(value.get("chunks"))
    )


def events(value: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the answer of a call.

    Raises:
        BadEvent: the object is a response without its request.
    """
    if isinstance(value.get("request"), dict):
        yield from answers(value)
    elif openai.is_batch_line(value):
        log = openai.batch_log(value)
        yield from [PassedOver("request_alone")] if log is None else answers(log)
    else:
        raise BadEvent("not_an_event", ALONE)


def answers(log: Plain) -> Iterator[tuple[Kind, Plain] | PassedOver]:
    """Yields the first answer to a request; further choices are counted."""
    response: Any = log["response"]
    has_failed = openai.failed(response)
    if gemini.are_chunks(response):
        response = gemini.joined(response)
    if has_failed or gemini.is_blocked(response):
        yield PassedOver("failed_call")
        return
    if anthropic.are_events(response):
        response = anthropic.joined(response)
    log = {**log, "response": openai.whole(response)}
    for api in _APIS:
        if api.is_response(response):
            log = api.as_openai(log)
    yield "interactions", openai.interaction(log)
    for _ in range(openai.choices(log["response"]) - 1):
        yield PassedOver("further_choice")
