"""The gateway in operation: kills, stops, what is away and comes back, keys, and more of it on one machine."""

import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from fixtures.daemon.doors import FakeDaemon, Place
from fixtures.daemon.gateways import (
    KEY,
    NOBODY,
    WORDS,
    Gateway,
    ModelServer,
    answered,
    gateway,
    model_server,
    published,
    read,
    route,
)
from fixtures.kafka.brokers import Broker, free_port, run_tansu, until
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.web import principals


@pytest.mark.full
def test_kafka_is_away_then_back_and_nothing_is_lost(tmp_path: Path) -> None:
    """Killed and started again meanwhile, and killed in the middle of a stream."""
    with model_server("base", "support@1") as server, run_tansu(tmp_path) as broker:
        broker.stop(signal.SIGKILL)
        sections = {"gateway": {"workloads": ["support"]}}
        with gateway(tmp_path, broker.bootstrap_servers, server, **sections) as made:
            shown = [made.chat().headers["X-Retuned-Interaction"] for _ in range(20)]
            streaming, hold = threading.Event(), threading.Event()

            def slowly(handler: Any, asked: dict[str, Any]) -> None:
                handler.begin_stream()
                handler.chunk(asked["model"], {"content": WORDS[0]})
                streaming.set()
                hold.wait(30)
                with suppress(OSError):
                    handler.end_stream()

            server.answer = slowly
            messages: Any = [{"role": "user", "content": "How long?"}]
            stream = made.client().chat.completions.create(model="support", messages=messages, stream=True)
            assert streaming.wait(20)
            made.stop(signal.SIGKILL)
            with pytest.raises((openai.APIError, httpx.HTTPError)):
                read(stream, [])
            hold.set()
            server.answer = answered
            made.start()
            shown += [made.chat().headers["X-Retuned-Interaction"] for _ in range(20)]
            assert all(file.stat().st_mode & 0o077 == 0 for file in [made.buffer, *made.buffer.iterdir()])
            assert made.metric("buffered_bytes")
            broker.start()
            until(lambda: made.metric("buffered_bytes") == 0, 60)
            found = [one["id"] for one in published(broker, made.topics["interactions"], *shown)]
            assert set(found) == set(shown)
            assert made.waiting() == 0
            assert made.stop() == 0


@pytest.mark.full
def test_killed_under_load_it_loses_nothing_that_was_answered_whole(tmp_path: Path) -> None:
    """Eight apps read streams while it is killed again and again, and Kafka is away. What an app got to the end of is
    published; of a stream that the kill cut nothing is, and the app has an error."""
    whole, cut = set[str](), set[str]()
    over = threading.Event()

    def in_pieces(handler: Any, asked: dict[str, Any]) -> None:
        handler.begin_stream()
        for word in WORDS:
            handler.chunk(asked["model"], {"content": word})
            over.wait(0.02)
        handler.chunk(asked["model"], {}, "stop")
        handler.end_stream()

    def ask(client: openai.OpenAI) -> None:
        while not over.is_set():
            interaction = ""
            try:
                raw = client.chat.completions.with_raw_response.create(
                    model="support", messages=[{"role": "user", "content": "How long?"}], stream=True
                )
                interaction = raw.headers["X-Retuned-Interaction"]
                got: list[str] = []
                read(raw.parse(), got)
                assert "".join(got) == "".join(WORDS)
                whole.add(interaction)
            except (openai.APIError, httpx.HTTPError):
                cut.add(interaction)

    with model_server("base") as server, run_tansu(tmp_path) as broker:
        server.answer = in_pieces
        broker.stop(signal.SIGKILL)
        own = {"workloads": ["support"]}
        with gateway(tmp_path, broker.bootstrap_servers, server, gateway=own) as made, ThreadPoolExecutor(8) as pool:
            apps = [pool.submit(ask, made.client()) for _ in range(8)]
            try:
                for kill in range(1, 4):
                    until(lambda kill=kill: len(whole) > 20 * kill)  # type: ignore[misc]
                    made.stop(signal.SIGKILL)
                    made.start()
                until(lambda: len(whole) > 80)
            finally:
                over.set()
            for app in apps:
                app.result()
            broker.start()
            until(lambda: made.metric("buffered_bytes") == 0, 60)
            found = [one["id"] for one in published(broker, made.topics["interactions"], *whole)]
            events = published(broker, made.topics["interactions"], *whole)
    assert cut - {""}
    assert whole <= set(found)
    assert len(cut & set(found)) <= 3 * 8  # recorded before its end was sent, as each has to be
    assert {(one["response"], one.get("finish_reason")) for one in events} == {("".join(WORDS), "stop")}


def test_a_stop_lets_answers_come_to_their_end(tansu: Broker, tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(handler: Any, asked: dict[str, Any]) -> None:
        handler.begin_stream()
        handler.chunk(asked["model"], {"content": WORDS[0]})
        begun.set()
        assert go_on.wait(30)
        handler.chunk(asked["model"], {"content": WORDS[1]}, "stop")
        handler.end_stream()

    with model_server("base") as server:
        server.answer = slowly
        with gateway(tmp_path, tansu, server, gateway={"workloads": ["support"]}) as made:
            messages: Any = [{"role": "user", "content": "How long?"}]
            text = ""
            for chunk in made.client().chat.completions.create(model="support", messages=messages, stream=True):
                text += chunk.choices[0].delta.content or ""
                if not go_on.is_set():
                    assert made.process is not None
                    made.process.send_signal(signal.SIGTERM)
                    until(lambda: not made.answers("/healthz"))  # it takes no new connection
                    go_on.set()
            assert made.process.wait(30) == 0
            (event,) = published(tansu, made.topics["interactions"])
    assert text == event["response"] == "".join(WORDS[:2])
    assert event["finish_reason"] == "stop"


def test_a_full_buffer_drops_and_counts_and_answers_go_on(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    own = {"workloads": ["support"], "buffer_bytes": 2_000, "feedback_keys_file": str(tmp_path / "keys")}
    with model_server("base") as server, gateway(tmp_path, NOBODY, server, gateway=own) as made:
        for _ in range(8):
            answer = made.chat()
            assert answer.status_code == 200
        dropped = made.metric("dropped_total", kind="interactions", reason="full")
        assert dropped is not None
        assert 0 < dropped < 8
        token = answer.headers["X-Retuned-Feedback-Token"]
        full = [made.post("/v1/feedback", {"token": token, "name": "helpful", "value": True}) for _ in range(15)]
        assert {one.status_code for one in full} >= {503}
        assert full[-1].json()["error"]["code"] == "buffer_full"


def test_feedback_of_experts_needs_their_token_and_goes_to_their_topic(tansu: Broker, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    file = tmp_path / "principals.yaml"
    token = principals.add(file, "ada", "labeller", None, datetime.now(UTC))
    sections = {
        "kafka": {"expert_topic": f"{tmp_path.name}.experts"},
        "gateway": {
            "workloads": ["support"],
            "feedback_keys_file": str(tmp_path / "keys"),
            "principals_file": str(file),
        },
    }
    with model_server("base") as server, gateway(tmp_path, tansu, server, **sections) as made:
        answer = made.chat()
        said = {
            "token": answer.headers["X-Retuned-Feedback-Token"],
            "name": "correction",
            "value": "Within 14 days.",
            "source": "expert",
        }
        refused = made.post("/v1/feedback", said)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_an_expert")
        assert "labeller" in refused.json()["error"]["message"]
        taken = made.post("/v1/feedback", said, Authorization=f"Bearer {token}")
        assert taken.status_code == 202
        (event,) = published(tansu, sections["kafka"]["expert_topic"])
    assert (event["id"], event["source"], event["user_id"]) == (taken.json()["id"], "expert", "ada")
    assert event["interaction_id"] == answer.headers["X-Retuned-Interaction"]


def test_keys_of_apps_and_of_servers(tmp_path: Path) -> None:
    ours, theirs = "the-key-of-an-app-0001", "the-key-of-the-server-1"
    (tmp_path / "clients").write_text(f"# apps\n{ours}\n")
    (tmp_path / "server").write_text(f"{theirs}\n")
    with model_server("base") as keyed, model_server("base") as open_to_all:
        own = {
            "workloads": ["support"],
            "client_keys_file": str(tmp_path / "clients"),
            "upstreams": [{"url": keyed.url, "key_file": str(tmp_path / "server")}, {"url": open_to_all.url}],
        }
        with gateway(tmp_path, NOBODY, gateway=own) as made:
            messages: Any = [{"role": "user", "content": "How long?"}]
            for key in ("sk-nobody-knows-this", theirs):
                with pytest.raises(openai.AuthenticationError):
                    made.client(key).chat.completions.create(model="support", messages=messages)
            assert not keyed.requests + open_to_all.requests
            assert httpx.get(f"{made.url}/metrics", timeout=20).status_code == 401
            client = made.client(ours, default_headers={"Cookie": "a=b"})
            for _ in range(4):
                client.chat.completions.create(model="support", messages=messages)
            assert {headers.get("Authorization") for _, headers, _ in keyed.requests} == {f"Bearer {theirs}"}
            assert {headers.get("Authorization") for _, headers, _ in open_to_all.requests} == {None}
            sent = [headers for server in (keyed, open_to_all) for _, headers, _ in server.requests]
            assert not {"cookie", "x-retuned-conversation"} & {name.lower() for headers in sent for name in headers}


@pytest.mark.full
def test_a_server_that_comes_back_is_asked_again_and_the_routes_outlive_the_daemon(tmp_path: Path) -> None:
    port = free_port()
    daemon = FakeDaemon()
    daemon.routed = {"workloads": {"support": route("support", ("champion", "1", 1.0))}}
    place = Place(HttpSettings(port=0), daemon)
    server = ModelServer("base", "support@1", port=port)
    try:
        with gateway(tmp_path, NOBODY, server, http={"port": place.port}) as made:
            until(lambda: made.metric("daemon_up"))
            assert made.chat().json()["model"] == "support@1"
            place.server.stop()
            server.close()
            away = made.chat()
            assert (away.status_code, away.json()["error"]["code"]) == (503, "no_model_server")
            assert away.headers["Retry-After"]
            until(lambda: not made.answers("/readyz"))
            server = ModelServer("base", "support@1", port=port)
            until(lambda: made.answers("/readyz"))
            assert made.chat().json()["model"] == "support@1"
            made.stop()
            made.start()  # while the daemon is away
            assert made.chat().headers["X-Retuned-Model"] == "support@1"
            assert made.metric("daemon_up") == 0
    finally:
        server.close()
        place.server.stop()


def test_a_second_gateway_may_share_the_port_and_not_the_buffer(tmp_path: Path) -> None:
    with model_server("base") as server, gateway(tmp_path, NOBODY, server) as made:
        other = tmp_path / "other"
        other.mkdir()
        second = Gateway(other, NOBODY, [server.url], gateway={"port": made.port, "buffer": str(made.buffer)})
        second.launch()
        assert second.process is not None
        assert second.process.wait(60) == 1
        assert "another gateway uses it" in second.log.read_text()
        third = Gateway(other, NOBODY, [server.url], gateway={"port": made.port})
        third.launch()
        try:
            until(lambda: "listens on" in third.log.read_text())
            made.end()
            until(lambda: third.answers("/healthz"))
        finally:
            third.end()


def test_a_server_that_takes_no_connection_is_passed_over(tmp_path: Path) -> None:
    """Its models were listed before."""
    port = free_port()
    stuck, other = ModelServer("base", port=port), ModelServer("base")
    try:
        own = {"workloads": ["support"], "poll_seconds": 600.0}
        with gateway(tmp_path, NOBODY, stuck, other, gateway=own) as made:
            stuck.close()
            with socket.create_server(("127.0.0.1", port), backlog=0):
                full = [socket.socket() for _ in range(4)]  # beyond its backlog, connections get no answer
                for one in full:
                    one.setblocking(False)
                    one.connect_ex(("127.0.0.1", port))
                for _ in range(4):
                    assert made.chat().status_code == 200
                for one in full:
                    one.close()
    finally:
        stuck.close()
        other.close()
