"""The gateway before a commercial API: requests pass on untouched until a version of the workload answers them."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from fixtures.daemon.doors import FakeDaemon
from fixtures.daemon.gateways import answered, break_off, gateway, model_server, route
from fixtures.kafka.brokers import Broker, until
from fixtures.servers.incumbents import DATED, INCUMBENT, KEY, MODEL, OWN, Around, around_it, dated, error
from retuned.retrain.release.assignment import bucket


@pytest.fixture(scope="module")
def module_around(tansu: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Around]:
    with around_it(tmp_path_factory.mktemp("incumbent"), tansu, timeout_seconds=2.0) as made:
        yield made


@pytest.fixture
def around(module_around: Around) -> Around:
    module_around.vendor.answer, module_around.own.answer = dated, answered
    module_around.route(OWN)
    return module_around


def test_on_the_first_day_requests_pass_on_untouched_and_answers_are_recorded(tmp_path: Path, tansu: Broker) -> None:
    with model_server(MODEL) as vendor:
        vendor.answer = dated
        incumbent = {"url": vendor.url, "model": MODEL, "input_price": 0.4, "output_price": 1.6}
        with gateway(tmp_path, tansu, workloads={"support": {"incumbent": incumbent}}) as made:
            assert made.answers("/readyz")
            assert [one.id for one in made.client().models.list()] == ["support"]
            body = b'{"model":"commercial-mini",  "messages":[{"role":"user","content":"How long?"}],"seed":1.0}'
            url = f"{made.url}/workloads/support/v1/chat/completions?api-version=7"
            answer = httpx.post(url, content=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
            assert answer.json()["model"] == DATED
            (path, headers, sent), *more = vendor.requests
            assert (path, headers["Authorization"], sent, more) == (
                "/v1/chat/completions?api-version=7", f"Bearer {KEY}", body, [],
            )  # fmt: skip
            found = Around(made, vendor, vendor, FakeDaemon(), tansu).event(answer.headers["X-Retuned-Interaction"])
            assert (found["workload"], found["model"]) == ("support", "support@base")
            assert found["attributes"]["incumbent"] == DATED
            assert found["cost"] == pytest.approx((9 * 0.4 + 4 * 1.6) / 1e6)


def test_a_stream_and_its_tools_pass_on_untouched(around: Around) -> None:
    around.route(INCUMBENT)
    tools: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    assert {chunk.model for chunk in around.stream(tools=tools)} == {DATED}
    (_, _, sent) = around.vendor.requests[0]
    assert json.loads(sent)["tools"] == tools
    assert not around.own.requests


def test_a_version_of_its_own_answers_and_never_gets_the_key(around: Around) -> None:
    answer = around.ask()
    assert answer.parse().model == answer.headers["X-Retuned-Model"] == "support@1"
    (_, headers, _), *_ = around.own.requests
    assert KEY not in str(headers)
    assert not around.vendor.requests
    found = around.event(answer.headers["X-Retuned-Interaction"])
    assert found["model"] == "support@1"
    assert "cost" not in found


KEY_HEADERS = ("api-key", "x-api-key", "Ocp-Apim-Subscription-Key", "x-goog-api-key", "cf-aig-authorization")
HARMLESS = {"user-agent": "an-app/1", "traceparent": "00-1-2-01", "x-request-id": "r-1"}


def ask_with_keys(around: Around, **more: str) -> httpx.Response:
    """Asks with the key in each place in which some API takes it."""
    url = f"{around.gateway.url}/workloads/support/v1/chat/completions?api-version=7&api-key={KEY}"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "How long?"}]}
    return httpx.post(url, json=body, headers=dict.fromkeys(KEY_HEADERS, KEY) | HARMLESS | more, timeout=60)


def test_a_key_is_the_incumbents_wherever_it_stands(around: Around) -> None:
    shadow = {"arm": "canary", "model": "support@2", "name": "support@2", "share": 0.0}
    given = route("support", experiment="e1", shadow=1.0) | {"arms": [shadow, OWN]}
    around.daemon.routed = {"workloads": {"support": given}}
    until(lambda: around.ask() and "support@2" in around.own.asked())
    assert ask_with_keys(around).headers["X-Retuned-Model"] == "support@1"

    def asked() -> list[str]:
        received = [
            ({name.lower(): value for name, value in headers.items()}, body) for _, headers, body in around.own.requests
        ]
        return [json.loads(body)["model"] for headers, body in received if headers.items() >= HARMLESS.items()]

    until(lambda: set(asked()) == {"support@1", "support@2"})
    assert KEY not in str(around.own.requests)
    around.own.answer = error(500, "out of memory")
    assert ask_with_keys(around).status_code == 200
    ((path, headers, _),) = around.vendor.requests
    assert path == f"/v1/chat/completions?api-version=7&api-key={KEY}"
    assert [headers[name] for name in KEY_HEADERS] == [KEY] * len(KEY_HEADERS)


def test_where_the_gateway_has_a_key_nobody_gets_that_of_the_app(tmp_path: Path, tansu: Broker) -> None:
    (tmp_path / "key").write_text("sk-the-key-of-the-gateway\n")
    with around_it(tmp_path, tansu, key_file=str(tmp_path / "key")) as around:
        around.route(INCUMBENT)
        assert ask_with_keys(around, Authorization=f"Bearer {KEY}").status_code == 200
        ((path, headers, _),) = around.vendor.requests
        assert path == "/v1/chat/completions?api-version=7"
        assert headers["Authorization"] == "Bearer sk-the-key-of-the-gateway"
        assert KEY not in str(headers)
        around.route(OWN | {"arm": "canary", "share": 0.5}, INCUMBENT | {"share": 0.5}, experiment="e1")
        around.vendor.answer = error(401, "the gateway's key has expired")
        assert {around.ask(f"c-{number}").headers["X-Retuned-Model"] for number in range(20)} == {"support@1"}


def test_an_embedding_is_the_incumbents_by_the_model_that_the_app_names(around: Around) -> None:
    around.vendor.models.append("embed-small")
    around.vendor.answer = answered
    try:
        with around.app() as app:
            answer = app.embeddings.with_raw_response.create(
                model="embed-small", input="parcel", encoding_format="float"
            )
        assert answer.parse().model == "embed-small"
        assert "X-Retuned-Interaction" not in answer.headers
    finally:
        around.vendor.models.remove("embed-small")
    assert [path for path, *_ in around.vendor.requests] == ["/v1/embeddings"]
    assert set(around.own.asked()) <= {"support@2"}  # what an earlier test asked in shadow may still come


def test_what_a_model_server_fails_to_answer_the_incumbent_answers(around: Around) -> None:
    release = threading.Event()

    def hang(handler: Any, _: dict[str, Any]) -> None:
        release.wait(20)
        break_off(handler)

    before = around.gateway.metric("fallbacks_total", model_name="support@base") or 0
    faults = (
        *(error(500, "out of memory"), error(429, "too many requests"), error(401, "who?"), error(403, "not you")),
        *(lambda handler, _: break_off(handler), hang, lambda handler, _: handler.json(200, {"error": {"code": 500}})),
    )
    try:
        for fault in faults:
            around.own.answer = fault
            answer = around.ask()
            assert answer.parse().choices[0].message.content == f"Within 30 days. ({DATED})"
            assert answer.headers["X-Retuned-Model"] == "support@base"
            assert answer.headers["X-Retuned-Fallback"] == "support@1 failed"
            found = around.event(answer.headers["X-Retuned-Interaction"])
            assert (found["model"], found["attributes"]["incumbent"]) == ("support@base", DATED)
    finally:
        release.set()
    assert len(around.vendor.requests) == len(faults)
    assert around.gateway.metric("fallbacks_total", model_name="support@base") == before + len(faults)


def test_what_the_incumbent_fails_to_answer_the_version_answers_that_others_get(around: Around) -> None:
    canary = {"arm": "canary", "model": "support@2", "name": "support@2", "share": 0.25}
    around.route(canary, INCUMBENT | {"share": 0.75}, experiment="e1")
    mine = next(one for one in map(str, range(100)) if bucket("e1", one) >= 2_500)
    before = around.gateway.metric("fallbacks_total", model_name="support@2") or 0
    for fault in (error(503, "overloaded"), error(429, "slow down"), lambda handler, _: break_off(handler)):
        around.vendor.answer = fault
        answer = around.ask(mine)
        assert answer.parse().model == answer.headers["X-Retuned-Model"] == "support@2"
        assert answer.headers["X-Retuned-Fallback"] == "support@base failed"
        assert "cost" not in around.event(answer.headers["X-Retuned-Interaction"])
    assert around.gateway.metric("fallbacks_total", model_name="support@2") == before + 3
    around.own.models.remove("support@2")

    def is_the_incumbents() -> bool:
        try:
            around.ask(mine)
        except openai.RateLimitError as found:
            return "slow down" in str(found)
        except openai.InternalServerError:  # until the gateway has seen that no server has the version any more
            return False
        raise AssertionError

    try:
        around.vendor.answer = error(429, "slow down")
        until(is_the_incumbents)
    finally:
        around.own.models.append("support@2")


def test_an_incumbent_that_does_not_answer_in_the_place_of_a_version_is_not_asked_again(around: Around) -> None:
    """It may have begun to process the request."""
    release = threading.Event()
    around.own.models.remove("support@1")
    try:
        until(lambda: around.ask().headers["X-Retuned-Model"] == "support@base")
        around.vendor.answer = lambda *_: release.wait(20)
        around.vendor.requests.clear()
        with pytest.raises(openai.InternalServerError):
            around.ask()
        assert len(around.vendor.requests) == 1
    finally:
        release.set()
        around.own.models.append("support@1")


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_an_incumbent_that_closes_a_kept_connection_gets_nothing_twice(around: Around, seconds: float) -> None:
    around.route(INCUMBENT)
    used: list[Any] = []

    def closes(handler: Any, asked: dict[str, Any]) -> None:
        if handler.connection not in used:
            used.append(handler.connection)
            dated(handler, asked)
        else:
            time.sleep(seconds)
            break_off(handler)

    around.vendor.answer = closes
    around.ask()
    around.vendor.requests.clear()
    with pytest.raises(openai.InternalServerError, match="sent once and is not sent again"):
        around.ask()
    assert len(around.vendor.requests) == 1


def test_a_version_in_shadow_answers_nobody_even_if_the_incumbent_fails(around: Around) -> None:
    shadow = {"arm": "canary", "model": "support@2", "name": "support@2", "share": 0.0}
    around.daemon.routed = {"workloads": {"support": route("support", experiment="e1", shadow=1.0)}}
    around.daemon.routed["workloads"]["support"]["arms"] = [shadow, INCUMBENT]
    until(lambda: around.ask().headers["X-Retuned-Model"] == "support@base")
    around.vendor.answer = error(503, "overloaded")
    with pytest.raises(openai.InternalServerError, match="overloaded"):
        around.ask()


def test_an_error_of_the_app_is_passed_on_and_costs_no_second_answer(around: Around) -> None:
    around.own.answer = error(400, "max_tokens is too large")
    with pytest.raises(openai.BadRequestError, match="max_tokens is too large"):
        around.ask()
    assert not around.vendor.requests


def test_a_stream_that_breaks_off_is_not_begun_anew(around: Around) -> None:
    def half(handler: Any, asked: dict[str, Any]) -> None:
        handler.begin_stream()
        handler.chunk(asked["model"], {"content": "Within"})
        break_off(handler)

    around.own.answer = half
    with pytest.raises(openai.APIError, match="broke off"):
        around.stream()
    assert not around.vendor.requests


def test_a_stream_of_which_nothing_has_come_is_answered_by_the_incumbent(around: Around) -> None:
    def begun(handler: Any, _: dict[str, Any]) -> None:
        handler.begin_stream()
        break_off(handler)

    around.own.answer = begun
    assert {chunk.model for chunk in around.stream()} == {DATED}
    assert len(around.vendor.requests) == 1


@pytest.mark.parametrize(("code", "answers"), [(500, True), (None, True), (400, False)])
def test_a_stream_that_begins_with_an_error_of_the_server_is_answered_by_the_incumbent(
    around: Around, code: int | None, answers: bool
) -> None:
    def fail(handler: Any, _: dict[str, Any]) -> None:
        handler.begin_stream()
        handler.piece(b": a comment\n\n")
        handler.piece(b"data: " + json.dumps({"error": {"message": "EngineDead", "code": code}}).encode() + b"\n\n")
        handler.end_stream()

    around.own.answer = fail
    if answers:
        assert {chunk.model for chunk in around.stream()} == {DATED}
    else:
        with pytest.raises(openai.APIError, match="EngineDead"):
            around.stream()
    assert len(around.vendor.requests) == answers


def test_conversations_are_divided_between_candidate_and_incumbent(around: Around) -> None:
    canary = {"arm": "canary", "model": "support@2", "name": "support@2", "share": 0.25}
    around.route(canary, INCUMBENT | {"share": 0.75}, experiment="e1")
    for conversation in [f"c-{number}" for number in range(20)] * 2:
        expected = "support@2" if bucket("e1", conversation) < 2_500 else "support@base"
        assert around.ask(conversation).headers["X-Retuned-Model"] == expected
    assert set(around.own.asked()) == {"support@2"}
    assert set(around.vendor.asked()) == {MODEL}


def test_without_fallback_a_failure_is_the_apps(tmp_path: Path, tansu: Broker) -> None:
    (tmp_path / "key").write_text("sk-the-key-of-the-gateway\n")
    settings = {"fallback": False, "key_file": str(tmp_path / "key")}
    with around_it(tmp_path, tansu, **settings) as around:
        around.route(OWN)
        around.own.answer = error(500, "out of memory")
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            around.ask()
        assert not around.vendor.requests
        around.own.models.remove("support@1")
        answer = around.ask()
        assert answer.headers["X-Retuned-Fallback"] == "support@1 is on no server"
        (_, headers, _), *_ = around.vendor.requests
        assert headers["Authorization"] == "Bearer sk-the-key-of-the-gateway"


def test_an_incumbent_that_fails_is_seen_in_metrics_and_log(around: Around) -> None:
    around.route(INCUMBENT)
    assert around.gateway.metric("upstream_up", upstream=around.vendor.url) == 1
    around.vendor.answer = error(503, "overloaded")
    with pytest.raises(openai.InternalServerError, match="overloaded"):
        around.ask()
    assert around.gateway.metric("upstream_up", upstream=around.vendor.url) == 0
    assert f"{around.vendor.url}: the incumbent fails" in around.gateway.log.read_text()
    around.vendor.answer = dated
    around.ask()
    assert around.gateway.metric("upstream_up", upstream=around.vendor.url) == 1
    assert f"{around.vendor.url}: the incumbent answers again" in around.gateway.log.read_text()


def test_a_workload_that_nobody_knows_is_refused(around: Around) -> None:
    url = f"{around.gateway.url}/workloads/un%20known/v1/chat/completions"
    answer = httpx.post(url, json={"model": MODEL, "messages": []}, timeout=60)
    assert answer.status_code == 404
    assert "model 'un known': neither a workload nor" in answer.json()["error"]["message"]
