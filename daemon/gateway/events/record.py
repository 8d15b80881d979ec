"""What is kept of an exchange, and the event that is made of it."""

from typing import Any

import msgspec

from retuned.consumers.formats import openai
from retuned.consumers.formats.events import SHADOW_ANSWER, BadEvent
from retuned.consumers.formats.messages import objects_of

CUT = "incomplete"
"""Why an answer ended that its client did not get to the end; trainings leave such answers out."""


class Exchange(msgspec.Struct, tag="exchange", frozen=True):
    """A request and what its client got, as they were sent.

    Attributes:
        timestamp: when the request came, ISO 8601.
        model: the name that answers of the model are stored under.
        name: what the server was asked for. What another model answers is stored under its reported name.
        assignment: experiment and arm; None: there is no experiment.
        request: the body, JSON.
        response: the body, JSON or, of a stream, server-sent events.
        cut: why the client did not get all of it; None: it did.
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


class Shadow(msgspec.Struct, tag="shadow", frozen=True):
    """What a candidate answered to the request of an exchange; nobody was shown it.

    Attributes:
        interaction_id: of the exchange.
        model: the name of the candidate.
        response, streamed: as those of an exchange.
    """

    id: str
    timestamp: str
    interaction_id: str
    model: str
    response: bytes
    streamed: bool
    latency_seconds: float


class Vote(msgspec.Struct, tag="vote", frozen=True):
    """An event of feedback, as it is published."""

    interaction_id: str
    event: dict[str, Any]


Record = Exchange | Shadow | Vote

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Record).decode


def interaction(exchange: Exchange) -> dict[str, Any]:
    """The event of an exchange, in retuned's own format.

    Raises:
        BadEvent: the answer is none.
    """
    try:
        request = msgspec.json.decode(exchange.request, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BadEvent("not_json", str(error)) from error
    response = _answer(exchange)
    attributes: dict[str, Any] = {}
    if exchange.assignment:
        attributes["assignment"] = dict(zip(("experiment", "arm"), exchange.assignment, strict=True))
    event = openai.interaction(
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
    if response.get("model") in (None, exchange.name):
        event["model"] = exchange.model
    cut = exchange.cut or ("upstream" if exchange.streamed and "finish_reason" not in event else None)
    if cut:
        event["finish_reason"] = CUT
        event["attributes"] = event.get("attributes", {}) | {"cut_by": cut}
    return event


def shadow_answer(shadow: Shadow) -> dict[str, Any]:
    """The event of what a candidate answered: feedback of that name on the champion's answer.

    Raises:
        BadEvent: the answer is none, or is not the candidate's.
    """
    response = _answer(shadow)
    made = openai.interaction({"request": {}, "response": response})
    if made.get("response") is None:
        raise BadEvent("not_an_event", "there is no answer in it")
    kept = ("response", "finish_reason", "input_tokens", "output_tokens")
    value = {name: made[name] for name in kept if name in made}
    calls = made.get("attributes", {}).get("tool_calls")
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


def _answer(of: Exchange | Shadow) -> Any:
    """The response as OpenAI's API has it. Raises a BadEvent when it is none."""
    try:
        return openai.whole(_streamed(of.response) if of.streamed else msgspec.json.decode(of.response))
    except msgspec.DecodeError as error:
        raise BadEvent("not_json", str(error)) from error


def _streamed(body: bytes) -> Any:
    """The data of server-sent events; a stream of a text completion as the completion."""
    data = [line[5:].strip() for line in body.splitlines() if line.startswith(b"data:")]
    found = [msgspec.json.decode(one) for one in data if one not in (b"", b"[DONE]")]
    chunks = [one for one in found if not openai.failed(one)]  # of a server that reports an error in its stream
    texts = [one for one in objects_of(chunks) if one.get("object") == "text_completion"]
    if not texts:
        return chunks
    firsts = [choice for one in texts for choice in objects_of(one.get("choices")) if not choice.get("index")]
    reasons = [choice["finish_reason"] for choice in firsts if choice.get("finish_reason")]
    text = "".join(str(choice.get("text") or "") for choice in firsts)
    last = {key: value for one in texts for key, value in one.items() if value is not None}
    return last | {"choices": [{"text": text, "finish_reason": reasons[-1] if reasons else None}]}
