"""The gateway before an incumbent that speaks Anthropic's Messages API, by Anthropic's own client."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic

from fixtures.daemon import gateways
from fixtures.daemon.gateways import break_off
from fixtures.kafka.brokers import Broker, until
from fixtures.servers.incumbents import DATED, INCUMBENT, KEY, MODEL, OWN, Around, around_it

WORDS = ("Within", " 30", " days.")
USAGE = {"input_tokens": 9, "output_tokens": 4}
TOOLS: Any = [{"name": "look_up", "description": "Look it up", "input_schema": {"type": "object"}}]
QUESTION: Any = [{"role": "user", "content": "How long?"}]


def said(handler: Any, asked: dict[str, Any]) -> None:
    """An answer as a whole or as a stream; a call of the first tool if there are tools."""
    model = DATED if asked["model"] == MODEL else asked["model"]
    block: dict[str, Any] = {"type": "text", "text": "".join(WORDS)}
    if asked.get("tools"):
        block = {"type": "tool_use", "id": "t1", "name": asked["tools"][0]["name"], "input": {"order": 7}}
    reason = "tool_use" if asked.get("tools") else "end_turn"
    message = {"id": "m1", "type": "message", "role": "assistant", "model": model, "stop_sequence": None}
    if not asked.get("stream"):
        handler.json(200, message | {"content": [block], "stop_reason": reason, "usage": USAGE})
        return
    handler.begin_stream()
    usage = {"input_tokens": 9, "output_tokens": 1}
    sent(handler, "message_start", message=message | {"content": [], "stop_reason": None, "usage": usage})
    if asked.get("tools"):
        sent(handler, "content_block_start", index=0, content_block=block | {"input": {}})
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ('{"ord', 'er": 7}')]
    else:
        sent(handler, "content_block_start", index=0, content_block={"type": "text", "text": ""})
        deltas = [{"type": "text_delta", "text": word} for word in WORDS]
    for delta in deltas:
        sent(handler, "content_block_delta", index=0, delta=delta)
    sent(handler, "content_block_stop", index=0)
    ended = {"stop_reason": reason, "stop_sequence": None}
    sent(handler, "message_delta", delta=ended, usage={"output_tokens": 4})
    sent(handler, "message_stop")
    handler.wfile.write(b"0\r\n\r\n")


def sent(handler: Any, kind: str, **fields: Any) -> None:
    """One event of a stream."""
    handler.piece(f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode())


def overloaded(handler: Any, _: dict[str, Any]) -> None:
    handler.json(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})


@pytest.fixture(scope="module")
def module_around(tansu: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Around]:
    folder = tmp_path_factory.mktemp("anthropic")
    with around_it(folder, tansu, api="anthropic", cascade={"longer_than": 500}) as made:
        made.vendor.answer = made.own.answer = said
        yield made


@pytest.fixture
def around(module_around: Around) -> Around:
    module_around.vendor.answer = module_around.own.answer = said
    return module_around


def client(around: Around, **more: Any) -> Anthropic:
    """Anthropic's client as the app has it; its base URL alone is another one."""
    given = {"api_key": KEY, "max_retries": 0, "timeout": 60} | more
    return Anthropic(base_url=f"{around.gateway.url}/workloads/support", **given)


def ask(around: Around, messages: Any = QUESTION, **more: Any) -> Any:
    with client(around) as app:
        return app.messages.with_raw_response.create(model=MODEL, max_tokens=100, messages=messages, **more)


def route(around: Around, arm: dict[str, Any]) -> None:
    """Gives all conversations to an arm, and waits until the gateway has the route."""
    around.daemon.routed = {"workloads": {"support": gateways.route("support") | {"arms": [arm]}}}
    until(lambda: ask(around).headers["X-Retuned-Model"] == arm["model"])


def test_a_message_passes_on_untouched_and_is_recorded_with_its_cost(around: Around) -> None:
    route(around, INCUMBENT)
    messages = b'"system":"Be brief.","messages":[{"role":"user","content":"How long?"}]'
    body = b'{"model":"commercial-mini",  "max_tokens":100,' + messages + b"}"
    url = f"{around.gateway.url}/workloads/support/v1/messages"
    answer = httpx.post(url, content=body, headers={"x-api-key": KEY, "anthropic-version": "2023-06-01"}, timeout=60)
    assert answer.json()["content"] == [{"type": "text", "text": "Within 30 days."}]
    path, headers, sent_up = around.vendor.requests[-1]
    assert (path, headers["x-api-key"], headers["anthropic-version"], sent_up) == (
        "/v1/messages",
        KEY,
        "2023-06-01",
        body,
    )
    event = around.event(answer.headers["X-Retuned-Interaction"])
    assert [one["content"] for one in event["messages"]] == ["Be brief.", "How long?"]
    assert (event["model"], event["response"], event["attributes"]["incumbent"]) == (
        "support@base",
        "Within 30 days.",
        DATED,
    )
    assert (event["input_tokens"], event["output_tokens"]) == (9, 4)
    assert event["cost"] == pytest.approx((9 * 0.4 + 4 * 1.6) / 1e6)


def test_streams_with_tools_are_recorded_with_their_cost(around: Around) -> None:
    route(around, INCUMBENT)
    with client(around) as app:
        with app.messages.stream(model=MODEL, max_tokens=100, messages=QUESTION) as stream:
            assert "".join(stream.text_stream) == "Within 30 days."
            interaction = stream.response.headers["X-Retuned-Interaction"]
        with app.messages.stream(model=MODEL, max_tokens=100, messages=QUESTION, tools=TOOLS) as stream:
            (block,) = stream.get_final_message().content
            calls = stream.response.headers["X-Retuned-Interaction"]
    assert block.input == {"order": 7}
    event = around.event(interaction)
    assert (event["response"], event["finish_reason"], event["output_tokens"]) == ("Within 30 days.", "end_turn", 4)
    assert event["cost"] == pytest.approx((9 * 0.4 + 4 * 1.6) / 1e6)
    assert "cut_by" not in event["attributes"]
    (call,) = around.event(calls)["attributes"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("look_up", {"order": 7})


def test_a_version_answers_by_the_same_routes_and_the_incumbent_what_it_fails_to(around: Around) -> None:
    route(around, OWN)
    answer = ask(around, metadata={"user_id": "anna"})
    assert answer.parse().model == answer.headers["X-Retuned-Model"] == "support@1"
    assert KEY not in str(around.own.requests[-1][1])
    event = around.event(answer.headers["X-Retuned-Interaction"])
    assert (event["model"], event["user_id"], "cost" in event) == ("support@1", "anna", False)
    for fault in (overloaded, lambda handler, _: break_off(handler)):
        around.own.answer = fault
        answer = ask(around)
        assert (answer.parse().model, answer.headers["X-Retuned-Fallback"]) == (DATED, "support@1 failed")
    long = ask(around, [{"role": "user", "content": [{"type": "text", "text": "How long? " * 60}]}])
    assert (long.parse().model, long.headers["X-Retuned-Cascade"]) == (DATED, "length")


def test_errors_have_the_form_of_the_api(around: Around) -> None:
    route(around, INCUMBENT)
    around.vendor.answer = overloaded
    with pytest.raises(anthropic.InternalServerError, match="Overloaded"):
        ask(around)

    def half(handler: Any, _: dict[str, Any]) -> None:
        handler.begin_stream()
        sent(handler, "content_block_start", index=0, content_block={"type": "text", "text": "Within"})
        break_off(handler)

    around.vendor.answer = half
    with (
        client(around) as app,
        pytest.raises(anthropic.APIError, match="broke off"),
        app.messages.create(model=MODEL, max_tokens=9, messages=QUESTION, stream=True) as events,
    ):
        list(events)
    with (
        Anthropic(base_url=around.gateway.url, api_key=KEY, max_retries=0) as app,
        pytest.raises(anthropic.NotFoundError, match="neither a workload nor"),
    ):
        app.messages.create(model="unknown", max_tokens=9, messages=QUESTION)
    with around.app() as chat, pytest.raises(Exception, match="the incumbent of support answers /v1/messages"):
        chat.chat.completions.create(model=MODEL, messages=[])


def test_tokens_are_counted_by_whoever_answers(around: Around) -> None:
    route(around, INCUMBENT)
    around.vendor.answer = lambda handler, _: handler.json(200, {"input_tokens": 9})
    with client(around) as app:
        assert app.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens == 9
    assert around.vendor.requests[-1][0] == "/v1/messages/count_tokens"


def test_with_a_key_of_the_gateways_the_app_sends_none_to_the_incumbent(tmp_path: Path, tansu: Broker) -> None:
    (tmp_path / "key").write_text("sk-ant-the-key-of-the-gateway\n")
    with around_it(tmp_path, tansu, api="anthropic", key_file=str(tmp_path / "key")) as around:
        around.vendor.answer = around.own.answer = said
        route(around, INCUMBENT)
        for name in ("x-api-key", "api-key"):
            ask(around, extra_headers={name: KEY})
            _, headers, _ = around.vendor.requests[-1]
            assert headers["Authorization"] == "Bearer sk-ant-the-key-of-the-gateway"
            assert KEY not in str(headers)
