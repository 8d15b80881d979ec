"""The gateway as its users meet it: OpenAI's client before it, model servers behind it, a broker beside it."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from fixtures.daemon.doors import FakeDaemon, Place
from fixtures.daemon.gateways import (
    KEY,
    WORDS,
    Gateway,
    ModelServer,
    answered,
    break_off,
    gateway,
    model_server,
    published,
    read,
    route,
)
from fixtures.kafka.brokers import Broker, until
from retuned.consumers.formats.events import Bounds, Kind, decode
from retuned.consumers.settings import IngestSettings
from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.http_settings import HttpSettings
from retuned.retrain.release.assignment import bucket

CANARY = {"workloads": {"support": route("support", ("canary", "2", 0.25), ("champion", "1", 0.75), experiment="e1")}}


class Around:
    """What a gateway has around it."""

    def __init__(self, made: Gateway, servers: list[ModelServer], daemon: FakeDaemon, broker: Broker) -> None:
        self.gateway, self.servers, self.daemon, self.broker = made, servers, daemon, broker

    def event(self, kind: Kind, id: str, key: str = "id") -> dict[str, Any]:
        """The event that was published with this id, and that the daemon understands."""
        (found,) = (one for one in published(self.broker, self.gateway.topics[kind], id, key=key) if one[key] == id)
        decode(kind, json.dumps(found).encode(), Bounds.of(IngestSettings(), utc_now()))
        return found


@pytest.fixture(scope="module")
def around(tansu: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Around]:
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "keys").write_text(f"{KEY}\n")
    daemon = FakeDaemon()
    daemon.routed = CANARY
    place = Place(HttpSettings(port=0), daemon)
    sections = {
        "http": {"port": place.port},
        "gateway": {
            "feedback_keys_file": str(folder / "keys"),
            "cors_origins": ["https://shop.example"],
            "timeout_seconds": 2.0,
            "workloads": ["new"],
        },
    }
    models = ("base", "support@1", "support@2", "embed")
    try:
        with (
            model_server(*models) as one,
            model_server(*models) as two,
            gateway(folder, tansu, one, two, **sections) as made,
        ):
            until(lambda: made.metric("daemon_up"))
            yield Around(made, [one, two], daemon, tansu)
    finally:
        place.server.stop()


@pytest.fixture(autouse=True)
def _fresh(around: Around) -> Iterator[None]:
    yield
    around.daemon.routed = CANARY
    for server in around.servers:
        server.answer = answered
        server.models = ["base", "support@1", "support@2", "embed"]
        server.requests.clear()


SHADOW = {
    "workloads": {
        "support": route("support", ("canary", "2", 0.0), ("champion", "1", 1.0), experiment="e1", shadow=0.25)
    }
}


def last(around: Around, interaction: str) -> dict[str, Any]:
    """The event of an interaction."""
    return around.event("interactions", interaction)


def test_a_conversation_has_one_version_and_what_was_answered_is_published(around: Around) -> None:
    client = around.gateway.client()
    models = {}
    for conversation in [f"c-{number}" for number in range(12)] * 2:
        raw = client.chat.completions.with_raw_response.create(
            model="support",
            messages=[{"role": "user", "content": "How long?"}],
            user="u-1",
            extra_headers={"X-Retuned-Conversation": conversation},
        )
        answer = raw.parse()
        expected = "support@2" if bucket("e1", conversation) < 2_500 else "support@1"
        assert answer.model == raw.headers["X-Retuned-Model"] == expected
        assert "X-Retuned-Fallback" not in raw.headers
        models[conversation] = expected
    assert set(models.values()) == {"support@1", "support@2"}
    event = last(around, raw.headers["X-Retuned-Interaction"])
    assert (event["workload"], event["model"]) == ("support", models["c-11"])
    assert event["messages"] == [{"role": "user", "content": "How long?"}]
    assert event["response"] == f"Within 30 days. ({models['c-11']})"
    assert (event["conversation_id"], event["user_id"], event["finish_reason"]) == ("c-11", "u-1", "stop")
    assert (event["input_tokens"], event["output_tokens"]) == (9, 4)
    assert 0 < event["latency_seconds"] < 60
    arm = "canary" if models["c-11"] == "support@2" else "champion"
    assert event["attributes"]["assignment"] == {"experiment": "e1", "arm": arm}


def test_by_account_all_conversations_of_a_user_have_one_version(around: Around) -> None:
    around.daemon.routed = {"workloads": {"support": {**CANARY["workloads"]["support"], "unit": "account"}}}
    users = [next(one for one in map(str, range(100)) if (bucket("e1", one) < 2_500) is new) for new in (True, False)]

    def answered_by(user: str, conversation: str) -> str:
        asked = {"model": "support", "messages": [{"role": "user", "content": "How long?"}], "user": user}
        headers = {"X-Retuned-Conversation": conversation}
        return str(around.gateway.post("/v1/chat/completions", asked, **headers).headers["X-Retuned-Model"])

    until(lambda: answered_by(users[0], users[1]) == "support@2")
    for number in range(8):
        assert [answered_by(user, f"c-{number}") for user in users] == ["support@2", "support@1"]


def asked_of(around: Around, model: str) -> list[bytes]:
    return [body for one in around.servers for _, _, body in one.requests if json.loads(body)["model"] == model]


def in_shadow(around: Around, outcome: str) -> float:
    found = around.gateway.metric("shadow_total", outcome=outcome)
    assert found is not None
    return found


def follow_shadow(around: Around) -> dict[str, str]:
    """Have the gateway follow SHADOW; returns the headers of a conversation for which the candidate is asked, too."""
    around.daemon.routed = SHADOW
    conversation = next(one for one in map(str, range(100)) if bucket("e1", one) < 2_500)
    headers, before = {"X-Retuned-Conversation": conversation}, in_shadow(around, "recorded")
    until(lambda: around.gateway.chat(**headers).is_success and in_shadow(around, "recorded") > before)
    return headers


def test_a_candidate_is_asked_in_shadow_and_its_answer_is_no_interaction(around: Around) -> None:
    follow_shadow(around)
    for server in around.servers:
        server.requests.clear()
    recorded = in_shadow(around, "recorded")
    client, interactions = around.gateway.client(), {}
    for conversation in [f"c-{number}" for number in range(12)]:
        for stream in (False, True):
            raw = client.chat.completions.with_raw_response.create(
                model="support",
                messages=[{"role": "user", "content": f"How long, {conversation}?"}],
                stream=stream,
                extra_headers={"X-Retuned-Conversation": conversation},
            )
            assert raw.headers["X-Retuned-Model"] == "support@1"
            if stream:
                assert "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse()) == "".join(WORDS)
            if bucket("e1", conversation) < 2_500:
                interactions[raw.headers["X-Retuned-Interaction"]] = stream
    assert 0 < len(interactions) < 24
    until(lambda: in_shadow(around, "recorded") - recorded == len(interactions))
    shadowed, shown = asked_of(around, "support@2"), asked_of(around, "support@1")
    assert len(shadowed) == len(interactions)
    assert {body.replace(b"support@2", b"support@1") for body in shadowed} < {*shown}
    events = published(around.broker, around.gateway.topics["feedback"], *interactions, key="interaction_id")
    for event in events:
        if event["interaction_id"] in interactions:
            decode("feedback", json.dumps(event).encode(), Bounds.of(IngestSettings(), utc_now()))
            stream = interactions[event["interaction_id"]]
            assert (event["name"], event["source"]) == ("shadow_answer", "app")
            text = "".join(WORDS) if stream else f"{''.join(WORDS)} (support@2)"
            value = event["value"]
            assert (value["model"], value["response"], value["finish_reason"]) == ("support@2", text, "stop")
            assert value["latency_seconds"] > 0
            assert stream or (value["input_tokens"], value["output_tokens"]) == (9, 4)
    found = published(around.broker, around.gateway.topics["interactions"], *interactions)
    assert "support@2" not in {one["model"] for one in found if one["id"] in interactions}


def test_no_app_notices_what_becomes_of_a_candidate(around: Around) -> None:
    headers = follow_shadow(around)
    hangs, over = threading.Event(), threading.Event()

    def answer(handler: Any, asked: dict[str, Any]) -> None:
        if asked["model"] == "support@1":
            answered(handler, asked)
        elif what == "hangs":
            hangs.set()
            over.wait(20)
        elif what == "breaks":
            break_off(handler)
        elif what == "fails":
            handler.json(500, {"error": {"message": "no"}})
        else:
            handler.json(200, {"nothing": "known"})

    for server in around.servers:
        server.answer = answer
    for what, outcome in (("fails", "failed"), ("breaks", "failed"), ("odd", "unreadable"), ("hangs", "failed")):
        before = in_shadow(around, outcome)
        response = around.gateway.chat(**headers).raise_for_status()
        assert response.json()["model"] == "support@1"
        if what == "hangs":  # two seconds, after which it is given up
            assert hangs.wait(20)
            around.gateway.chat(**headers).raise_for_status()
        until(lambda outcome=outcome, before=before: in_shadow(around, outcome) > before)  # type: ignore[misc]
    over.set()
    for server in around.servers:
        server.answer, server.models = answered, ["base", "support@1"]
    before = in_shadow(around, "failed")
    until(lambda: around.gateway.chat(**headers).is_success and in_shadow(around, "failed") > before)


def test_both_servers_are_asked(around: Around) -> None:
    for _ in range(8):
        around.gateway.chat().raise_for_status()
    assert all(server.requests for server in around.servers)


def test_a_stream_comes_piece_by_piece_and_is_published_whole(around: Around) -> None:
    seen = threading.Event()

    def slowly(handler: Any, asked: dict[str, Any]) -> None:
        handler.begin_stream()
        handler.chunk(asked["model"], {"content": WORDS[0]})
        assert seen.wait(20), "the first piece was held back"
        for word in WORDS[1:]:
            handler.chunk(asked["model"], {"content": word})
        handler.chunk(asked["model"], {}, "stop")
        handler.end_stream()

    for server in around.servers:
        server.answer = slowly
    text = ""
    with around.gateway.client().chat.completions.with_streaming_response.create(
        model="support", messages=[{"role": "user", "content": "How long?"}], stream=True
    ) as raw:
        for chunk in raw.parse():
            text += chunk.choices[0].delta.content or ""
            seen.set()
        event = last(around, raw.headers["X-Retuned-Interaction"])
    assert text == event["response"] == "Within 30 days."
    assert event["finish_reason"] == "stop"
    assert 0 < event["time_to_first_token_seconds"] <= event["latency_seconds"]


def test_a_text_that_looks_like_the_end_of_a_stream_is_not_its_end(around: Around) -> None:
    seen = threading.Event()

    def quotes(handler: Any, asked: dict[str, Any]) -> None:
        handler.begin_stream()
        handler.piece(b'data: {"object":"chat.completion.chunk","choices":[{"delta":{"content":"[DONE]"}}]}\n\n')
        assert seen.wait(20)
        handler.chunk(asked["model"], {"content": " is said"}, "stop")
        handler.end_stream()

    for server in around.servers:
        server.answer = quotes
    with around.gateway.client().chat.completions.with_streaming_response.create(
        model="support", messages=[{"role": "user", "content": "How does it end?"}], stream=True
    ) as raw:
        for _ in raw.parse():
            seen.set()
    event = last(around, raw.headers["X-Retuned-Interaction"])
    assert (event["response"], event["finish_reason"]) == ("[DONE] is said", "stop")


def test_calls_of_tools_pass_both_ways(around: Around) -> None:
    call = {"index": 0, "id": "t1", "type": "function", "function": {"name": "refund", "arguments": '{"days"'}}

    def calling(handler: Any, asked: dict[str, Any]) -> None:
        handler.begin_stream()
        handler.chunk(asked["model"], {"tool_calls": [call]})
        handler.chunk(asked["model"], {"tool_calls": [{"index": 0, "function": {"arguments": ": 30}"}}]})
        handler.chunk(asked["model"], {}, "tool_calls")
        handler.end_stream()

    for server in around.servers:
        server.answer = calling
    tools = [{"type": "function", "function": {"name": "refund", "parameters": {"type": "object"}}}]
    with around.gateway.client().chat.completions.with_streaming_response.create(
        model="support", messages=[{"role": "user", "content": "Refund!"}], stream=True, tools=tools
    ) as raw:
        assert len(list(raw.parse())) == 3
    event = last(around, raw.headers["X-Retuned-Interaction"])
    assert event["attributes"]["tools"] == tools
    assert event["attributes"]["tool_calls"][0]["function"] == {"name": "refund", "arguments": '{"days": 30}'}


def test_what_is_not_the_model_passes_byte_by_byte(around: Around) -> None:
    body = b'{"messages": [{"role":"user", "content":"Gr\\u00fc\\u00dfe"}],\n "model" : "support",  "seed":1.50e2}'
    answer = httpx.post(f"{around.gateway.url}/v1/chat/completions", content=body, timeout=20)
    (sent,) = (body for server in around.servers for *_, body in server.requests)
    assert b'"messages":[{"role":"user", "content":"Gr\\u00fc\\u00dfe"}]' in sent
    assert b'"seed":1.50e2' in sent
    assert answer.content.startswith(b'{\n "id": "c1",')
    pinned = body.replace(b'"support"', b'"support@1"')
    httpx.post(f"{around.gateway.url}/v1/chat/completions", content=pinned, timeout=20).raise_for_status()
    assert pinned in [body for server in around.servers for *_, body in server.requests]


def test_embeddings_and_other_models_pass_and_are_not_recorded(around: Around) -> None:
    vector = around.gateway.client().embeddings.create(model="embed", input="parcel", encoding_format="float")
    assert vector.data[0].embedding == [0.25, -1.5]
    asked = {"model": "embed", "input": "parcel"}
    for more in ({}, {"X-Retuned-Workload": "support"}):  # a workload stands for what writes answers
        assert around.gateway.post("/v1/embeddings", asked, **more).json()["model"] == "embed"
    answer = around.gateway.chat(model="embed")
    assert answer.json()["model"] == "embed"
    assert "X-Retuned-Interaction" not in answer.headers


def test_a_version_that_is_on_no_server_falls_back_and_says_so(around: Around) -> None:
    conversation = next(f"c-{n}" for n in range(99) if bucket("e1", f"c-{n}") < 2_500)
    headers = {"X-Retuned-Conversation": conversation}
    for server in around.servers:
        server.models.remove("support@2")  # asked before it is noticed, too
    answer = around.gateway.chat(**headers)
    assert answer.json()["model"] == answer.headers["X-Retuned-Model"] == "support@1"
    assert answer.headers["X-Retuned-Fallback"] == "support@2 is on no server"
    for server in around.servers:
        server.models.remove("support@1")
    answer = around.gateway.chat(**headers)
    assert (answer.json()["model"], answer.headers["X-Retuned-Model"]) == ("base", "support@base")
    assert last(around, answer.headers["X-Retuned-Interaction"])["model"] == "support@base"
    assert around.gateway.metric("fallbacks_total", workload="support", model_name="support@base") == 1


def test_a_version_that_was_exchanged_since_the_last_look_is_answered_by_the_next_one(
    tansu: Broker, tmp_path: Path
) -> None:
    daemon = FakeDaemon()
    daemon.routed = {"workloads": {"support": route("support", ("champion", "1", 1.0))}}
    place = Place(HttpSettings(port=0), daemon)
    sections = {"http": {"port": place.port}, "gateway": {"poll_seconds": 3600}}
    try:
        with model_server("base", "support@1") as server, gateway(tmp_path, tansu, server, **sections) as made:
            until(lambda: made.metric("daemon_up"))
            assert made.chat().headers["X-Retuned-Model"] == "support@1"
            time.sleep(1)  # it looks out of turn once a second
            daemon.routed = {"workloads": {"support": route("support", ("champion", "2", 1.0))}}
            server.models = ["base", "support@2"]
            answer = made.chat()
            assert answer.headers["X-Retuned-Model"] == "support@2"
            assert "X-Retuned-Fallback" not in answer.headers
    finally:
        place.server.stop()


def test_a_server_that_has_something_else_under_a_versions_name_is_not_asked_for_it(around: Around) -> None:
    conversation = next(f"c-{n}" for n in range(99) if bucket("e1", f"c-{n}") < 2_500)
    headers = {"X-Retuned-Conversation": conversation}
    addresses = [server.url.removesuffix("/v1") for server in around.servers]
    around.daemon.routed = CANARY | {"withheld": {one: ["support@2"] for one in addresses}}
    until(lambda: around.gateway.chat(**headers).headers["X-Retuned-Model"] == "support@1")
    around.daemon.routed = CANARY | {"withheld": {addresses[0]: ["support@2"]}}
    until(lambda: around.gateway.chat(**headers).headers["X-Retuned-Model"] == "support@2")
    for server in around.servers:
        server.requests.clear()
    assert {around.gateway.chat(**headers).headers["X-Retuned-Model"] for _ in range(4)} == {"support@2"}
    assert (len(around.servers[0].requests), len(around.servers[1].requests)) == (0, 4)


def test_until_servers_have_a_new_champion_the_one_before_it_answers(around: Around) -> None:
    promoted = route("support", ("champion", "3", 1.0)) | {"previous": {"model": "support@1", "name": "support@1"}}
    around.daemon.routed = {"workloads": {"support": promoted}, "withheld": {}}
    until(lambda: around.gateway.chat().headers.get("X-Retuned-Fallback") == "support@3 is on no server")
    answer = around.gateway.chat()
    assert answer.json()["model"] == answer.headers["X-Retuned-Model"] == "support@1"
    for server in around.servers:
        server.models.append("support@3")
    until(lambda: around.gateway.chat().headers["X-Retuned-Model"] == "support@3")


def test_a_new_workload_is_answered_by_the_base_model(around: Around) -> None:
    answer = around.gateway.chat(model="new")
    assert answer.headers["X-Retuned-Model"] == "new@base"
    event = last(around, answer.headers["X-Retuned-Interaction"])
    assert (event["workload"], event["model"]) == ("new", "new@base")


def test_errors_are_those_that_the_client_knows(around: Around) -> None:
    client = around.gateway.client()
    messages: Any = [{"role": "user", "content": "How long?"}]
    with pytest.raises(openai.NotFoundError, match="workloads are new, support"):
        client.chat.completions.create(model="nobody", messages=messages)
    for server in around.servers:
        server.answer = lambda handler, _: handler.json(429, {"error": {"message": "too busy", "code": "busy"}})
    with pytest.raises(openai.RateLimitError, match="too busy"):
        client.chat.completions.create(model="support", messages=messages)
    gate = threading.Event()
    for server in around.servers:
        server.answer = lambda *_: bool(gate.wait(30))  # type: ignore[assignment, return-value]
    with pytest.raises(openai.InternalServerError, match=r"gateway\.timeout_seconds") as late:
        client.chat.completions.create(model="support", messages=messages)
    gate.set()
    assert late.value.status_code == 504
    for content in (b"[1]", b"{", b'{"messages": []}', b'{"model": 5}'):
        answer = httpx.post(f"{around.gateway.url}/v1/chat/completions", content=content, timeout=20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert httpx.get(f"{around.gateway.url}/v1/chat/completions", timeout=20).status_code == 405
    assert httpx.get(f"{around.gateway.url}/v1/files", timeout=20).json()["error"]["code"] == "unknown_url"


def test_a_server_that_breaks_off_gives_an_error_and_what_came_is_recorded(around: Around) -> None:
    def broken(handler: Any, asked: dict[str, Any]) -> None:
        handler.begin_stream()
        handler.chunk(asked["model"], {"content": WORDS[0]})
        handler.piece(b'data: {"id": "c1", "obj')
        break_off(handler)

    for server in around.servers:
        server.answer = broken
    got: list[str] = []
    with (
        around.gateway.client().chat.completions.with_streaming_response.create(
            model="support", messages=[{"role": "user", "content": "How long?"}], stream=True
        ) as raw,
        pytest.raises(openai.APIError, match="broke off"),
    ):
        read(raw.parse(), got)
    event = last(around, raw.headers["X-Retuned-Interaction"])
    assert got == [event["response"]] == [WORDS[0]]
    assert (event["finish_reason"], event["attributes"]["cut_by"]) == ("incomplete", "upstream")


def test_an_app_that_leaves_ends_the_request_and_what_it_got_is_recorded(around: Around) -> None:
    gone = threading.Event()

    def endless(handler: Any, asked: dict[str, Any]) -> None:
        handler.begin_stream()
        try:
            while True:
                handler.chunk(asked["model"], {"content": WORDS[0]})
        except OSError:  # the gateway has ended the connection
            gone.set()

    for server in around.servers:
        server.answer = endless
    with around.gateway.client().chat.completions.with_streaming_response.create(
        model="support", messages=[{"role": "user", "content": "How long?"}], stream=True
    ) as raw:
        next(iter(raw.parse()))
    assert gone.wait(20), "the server went on answering"
    event = last(around, raw.headers["X-Retuned-Interaction"])
    assert event["response"].startswith(WORDS[0])
    assert (event["finish_reason"], event["attributes"]["cut_by"]) == ("incomplete", "client")


def test_feedback_is_of_the_one_answer_that_its_token_is_of(around: Around) -> None:
    answer = around.gateway.chat()
    token, shown = (answer.headers[f"X-Retuned-{name}"] for name in ("Feedback-Token", "Interaction"))
    given = around.gateway.post(
        "/v1/feedback", {"token": token, "name": "helpful", "value": False}, Origin="https://shop.example"
    )
    assert given.status_code == 202
    assert given.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    event = around.event("feedback", shown, key="interaction_id")
    assert (event["name"], event["value"], event["source"]) == ("helpful", False, "user")
    assert event["id"] == given.json()["id"]
    other = around.gateway.chat().headers["X-Retuned-Interaction"]
    for forged in (token.replace(shown, other), token[:-1] + ("A" if token[-1] != "A" else "B"), "", "a.b.c", "ü"):
        refused = around.gateway.post("/v1/feedback", {"token": forged, "name": "helpful", "value": False})
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_token")
    wrong = around.gateway.post("/v1/feedback", {"token": token, "name": "helpful", "value": "no"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_feedback")
    elsewhere = around.gateway.post(
        "/v1/feedback", {"token": token, "name": "helpful", "value": True}, Origin="https://evil.example"
    )
    assert "Access-Control-Allow-Origin" not in elsewhere.headers
    asked = httpx.options(f"{around.gateway.url}/v1/feedback", headers={"Origin": "https://shop.example"}, timeout=20)
    assert (asked.status_code, asked.headers["Access-Control-Allow-Methods"]) == (204, "POST")


def test_without_keys_of_apps_the_server_gets_what_they_send(around: Around) -> None:
    around.gateway.chat(Authorization="Bearer sk-of-the-app")
    ((_, headers, _),) = (one for server in around.servers for one in server.requests)
    assert headers["Authorization"] == "Bearer sk-of-the-app"


def test_an_app_that_does_not_wait_for_its_answer_ends_the_request(around: Around) -> None:
    asked = threading.Event()

    def waits(handler: Any, _: dict[str, Any]) -> None:
        asked.set()
        handler.connection.recv(1)  # until the gateway ends the connection
        handler.close_connection = True

    for server in around.servers:
        server.answer = waits
    labels = {"model_name": "support@1", "code": "499"}
    before = around.gateway.metric("requests_total", **labels) or 0
    body = json.dumps({"model": "support@1", "messages": []}).encode()
    with socket.create_connection(("127.0.0.1", around.gateway.port), timeout=20) as app:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\n\r\n"
        app.sendall(head.encode() + body)
        assert asked.wait(20)
    until(lambda: (around.gateway.metric("requests_total", **labels) or 0) > before)


def test_a_connection_that_says_nothing_is_no_request(around: Around) -> None:
    with socket.create_connection(("127.0.0.1", around.gateway.port), timeout=20) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: nonsense\r\n\r\n")
        assert b" 400 " in connection.recv(4_096).splitlines()[0]
    assert around.gateway.answers("/healthz")


def test_long_and_packed_requests_are_read_or_refused(around: Around) -> None:
    url = f"{around.gateway.url}/v1/chat/completions"
    body = json.dumps({"model": "support", "messages": [{"role": "user", "content": "x" * 2_000_000}]}).encode()
    packed = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert httpx.post(url, content=body, timeout=20).status_code == 200
    assert httpx.post(url, content=gzip.compress(body), headers=packed, timeout=20).status_code == 200
    received = [one for server in around.servers for one in server.requests]
    assert [json.loads(sent)["messages"][0]["content"] for *_, sent in received] == ["x" * 2_000_000] * 2
    assert not any("Content-Encoding" in headers for _, headers, _ in received)
    for content, headers in ((b"x" * 9_000_000, {}), (gzip.compress(b"x" * 9_000_000), packed)):
        refused = httpx.post(url, content=content, headers=headers, timeout=20)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")


def test_an_app_that_waits_for_a_sign_before_it_sends_gets_it(around: Around) -> None:
    body = json.dumps({"model": "support", "messages": []}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", around.gateway.port), timeout=20) as app:
        app.sendall(head.encode())
        assert app.recv(4_096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        app.sendall(body)
        assert app.recv(4_096).startswith(b"HTTP/1.1 200 OK\r\n")
