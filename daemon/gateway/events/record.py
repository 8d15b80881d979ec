"""The records of the buffer, and their conversion to events."""

from typing import Any

import msgspec

from retuned.consumers.formats import anthropic, openai
from retuned.consumers.formats.events import SHADOW_ANSWER, BadEvent
from retuned.consumers.formats.messages import objects_of
from retuned.consumers.privacy.sealing import SEALED

CUT = "incomplete"
"""The `finish_reason` of an answer that broke off; trainings leave such answers out."""

OWN = ("assignment", "cascade", "confidence", "memory", "cut_by", "incumbent", "incumbent_model", SEALED)
"""The attributes that the gateway alone sets, and the ingestion."""


class Incumbent(msgspec.Struct, frozen=True):
    """The workload's incumbent, as the server of an exchange.

    Attributes:
        prices: of a million input and output tokens; None: the answer has no cost of its own.
    """

    prices: tuple[float, float] | None


class Exchange(msgspec.Struct, tag="exchange", frozen=True):
    """A request and its answer, as the app sent and received them.

    Attributes:
        timestamp: when the request arrived, ISO 8601.
        model: the name under which the model's answers are stored.
        name: the server's name of the model. If the server reports another name, the answer is stored under that name.
        assignment: experiment and arm; None: there is no experiment.
        request: the body, JSON.
        response: the body, JSON or, of a stream, server-sent events.
        cut: the side that broke the answer off, `client` or `upstream`; None: it is complete.
        incumbent: None: a model server answered.
        rule: the rule by which the incumbent answered; None: it answered as an arm or as a fallback.
        confidence: the mean log-probability of a token; None: not known.
        memory: what the memory of corrections did, for the attribute of that name; None: nothing.
    """

    id: str
    timestamp: str
    workload: str
    model: str
    name: str
    conversation_id: str | None
    assignment: tuple[str, str] | None
    request: bytes
    response: bytes
    streamed: bool
    cut: str | None
    latency_seconds: float
    first_token_seconds: float | None
    incumbent: Incumbent | None = None
    rule: str | None = None
    confidence: float | None = None
    memory: dict[str, Any] | None = None


class Shadow(msgspec.Struct, tag="shadow", frozen=True):
    """A candidate's answer in shadow to the request of an exchange.

    Attributes:
        interaction_id: the id of the exchange.
        model: the name of the candidate.
        response, streamed: as in an exchange.
    """

    id: str
    timestamp: str
    interaction_id: str
    model: str
    response: bytes
    streamed: bool
    latency_seconds: float


class Vote(msgspec.Struct, tag="vote", frozen=True):
    """A feedback event, ready to be published."""

    interaction_id: str
    event: dict[str, Any]


Record = Exchange | Shadow | Vote

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Record).decode


def interaction(exchange: Exchange) -> dict[str, Any]:
    """Returns the event of an exchange, in the native format.

    Raises:
        BadEvent: the answer is not readable.
    """
    try:
        request = msgspec.json.decode(exchange.request, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BadEvent("not_json", str(error)) from error
    response = _answer(exchange)
    attributes: dict[str, Any] = dict.fromkeys(OWN)  # the app's metadata cannot set them
    if exchange.assignment:
        attributes["assignment"] = dict(zip(("experiment", "arm"), exchange.assignment, strict=True))
    if exchange.rule:
        attributes["cascade"] = exchange.rule
    if exchange.confidence is not None:
        attributes["confidence"] = exchange.confidence
    if exchange.memory:
        attributes["memory"] = exchange.memory
    event = _fields(
        {
            "request": request,
            "response": response,
            "id": exchange.id,
            "timestamp": exchange.timestamp,
            "workload": exchange.workload,
            "conversation_id": exchange.conversation_id,
            "latency_seconds": exchange.latency_seconds,
            "time_to_first_token_seconds": exchange.first_token_seconds,
            "attributes": attributes,
        }
    )
    if exchange.incumbent:
        _of_incumbent(event, exchange, exchange.incumbent)
    elif response.get("model") in (None, exchange.name):
        event["model"] = exchange.model
    cut = exchange.cut or ("upstream" if exchange.streamed and "finish_reason" not in event else None)
    if cut:
        event["finish_reason"] = CUT
        event["attributes"] = event.get("attributes", {}) | {"cut_by": cut}
    return event


def _of_incumbent(event: dict[str, Any], exchange: Exchange, incumbent: Incumbent) -> None:
    """Stores an incumbent's answer under the workload's name for it, with its cost.

    The model is stored as the server reports it, and as it was asked for: a server may have a name of its own for it.
    """
    models = {"incumbent": event.get("model"), "incumbent_model": exchange.name}
    event["attributes"] = event.get("attributes", {}) | models
    event["model"] = exchange.model
    if incumbent.prices and event.keys() >= {"input_tokens", "output_tokens"}:
        input_price, output_price = incumbent.prices
        event["cost"] = (event["input_tokens"] * input_price + event["output_tokens"] * output_price) / 1e6


def shadow_answer(shadow: Shadow) -> dict[str, Any]:
    """Returns the event of a candidate's answer: feedback named `shadow_answer` on the champion's answer.

    Raises:
        BadEvent: the answer is not readable.
    """
    response = _answer(shadow)
    fields = _fields({"request": {}, "response": response})
    if fields.get("response") is None:
        raise BadEvent("not_an_event", "there is no answer in it")
    names = ("response", "finish_reason", "input_tokens", "output_tokens")
    value = {name: fields[name] for name in names if name in fields}
    calls = fields.get("attributes", {}).get("tool_calls")
    return {
        "id": shadow.id,
        "timestamp": shadow.timestamp,
        "interaction_id": shadow.interaction_id,
        "name": SHADOW_ANSWER,
        "source": "app",
        "value": value
        | ({"tool_calls": calls} if calls else {})
        | {"model": shadow.model, "latency_seconds": shadow.latency_seconds},
    }


def _fields(log: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of an interaction, from a call of OpenAI's or of Anthropic's API."""
    return openai.interaction(anthropic.as_openai(log) if anthropic.is_response(log["response"]) else log)


def _answer(kept: Exchange | Shadow) -> Any:
    """Returns the response as an object of its API. Raises a BadEvent if it holds no answer."""
    try:
        return _streamed(kept.response) if kept.streamed else openai.whole(msgspec.json.decode(kept.response))
    except msgspec.DecodeError as error:
        raise BadEvent("not_json", str(error)) from error


def _streamed(body: bytes) -> Any:
    """Returns the answer of server-sent events. Chunks are known by their choices, as not all servers name them."""
    lines = [line[5:].strip() for line in body.splitlines() if line.startswith(b"data:")]
    events = [msgspec.json.decode(line) for line in lines if line not in (b"", b"[DONE]")]
    if anthropic.are_events(answers := [event for event in events if not openai.failed(event)]):
        return anthropic.joined(answers)
    if not any(chunk.get("choices") for chunk in objects_of(answers)):
        raise BadEvent("not_an_event", "a stream without an answer")
    return openai.joined(objects_of(answers))
