"""Slow and hostile clients, and servers that fail: other apps are answered, and no event is lost."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from openai import APIError

from fixtures.daemon.gateways import (
    NOBODY,
    WORDS,
    Answer,
    Gateway,
    answered,
    break_off,
    gateway,
    model_server,
    published,
)
from fixtures.kafka.brokers import Broker, free_port, until

BODY = json.dumps({"model": "support", "messages": [{"role": "user", "content": "How long?"}]}).encode()
STREAM = json.dumps({"model": "support", "messages": [], "stream": True}).encode()


def own(**more: Any) -> dict[str, Any]:
    return {"gateway": {"workloads": ["support"], **more}}


def head(length: int) -> bytes:
    return f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: {length}\r\n\r\n".encode()


@contextmanager
def connections(made: Gateway, count: int, sent: bytes = b"", **options: int) -> Iterator[list[socket.socket]]:
    """Clients that have sent so much, and go on sending nothing and taking nothing."""
    opened = []
    try:
        for _ in range(count):
            one = socket.socket()
            opened.append(one)
            for name, value in options.items():
                one.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
            one.settimeout(60)
            one.connect(("127.0.0.1", made.port))
            if sent:
                one.sendall(sent)
        yield opened
    finally:
        for one in opened:
            one.close()


def ended(connection: socket.socket) -> bytes:
    """What comes of a connection until the gateway closes it."""
    received = b""
    try:
        while piece := connection.recv(65_536):
            received += piece
    except ConnectionResetError:
        pass
    return received


@pytest.mark.full
@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", head(500) + BODY[:20]], ids=["nothing", "headers", "bodies"])
def test_more_idle_connections_than_files_keep_nobody_out_and_lose_no_event(
    tansu: Broker, tmp_path: Path, sent: bytes
) -> None:
    with (
        model_server("base") as server,
        gateway(tmp_path, tansu, server, files=128, **own()) as made,
        connections(made, 111, sent),
    ):
        assert made.answers("/healthz")
        with ThreadPoolExecutor(4) as apps:
            answers = list(apps.map(lambda _: made.chat(), range(40)))
        assert {answer.status_code for answer in answers} == {200}
        assert made.answers("/healthz")
        shown = [answer.headers["X-Retuned-Interaction"] for answer in answers]
        found = {event["id"] for event in published(tansu, made.topics["interactions"], *shown)}
        assert found >= {*shown}
        assert made.metric("dropped_total", kind="interactions", reason="disk") == 0


@pytest.mark.full
def test_a_client_that_sends_slowly_is_disconnected(tmp_path: Path) -> None:
    with model_server("base") as server, gateway(tmp_path, NOBODY, server, **own(client_seconds=0.5)) as made:
        with connections(made, 1, b"POST /v1/chat") as (headers,):
            assert ended(headers) == b""
        with connections(made, 1, head(500) + BODY[:20]) as (body,):
            assert ended(body).startswith(b"HTTP/1.1 408 ")
        assert made.chat().status_code == 200
        assert len(server.requests) == 1


def test_a_connection_that_is_not_used_is_closed(tmp_path: Path) -> None:
    with (
        model_server("base") as server,
        gateway(tmp_path, NOBODY, server, **own(idle_seconds=0.5)) as made,
        connections(made, 1, head(len(BODY)) + BODY) as (used,),
        connections(made, 1) as (unused,),
    ):
        assert ended(used).startswith(b"HTTP/1.1 200 ")
        assert ended(unused) == b""


def test_an_app_that_does_not_read_its_stream_holds_neither_a_server_nor_the_gateway(
    tansu: Broker, tmp_path: Path
) -> None:
    over = threading.Event()

    def endless(handler: Any, asked: dict[str, Any]) -> None:
        handler.begin_stream()
        try:
            while True:
                handler.chunk(asked["model"], {"content": "x" * 10_000})
        except OSError:  # the gateway has ended the connection
            over.set()

    with model_server("base") as server, gateway(tmp_path, tansu, server, **own(client_seconds=1.0)) as made:
        server.answer = endless
        with connections(made, 1, head(len(STREAM)) + STREAM, SO_RCVBUF=4_096):
            assert over.wait(60)
        until(lambda: made.metric("in_flight") == 1)  # that of this scrape
        (event,) = published(tansu, made.topics["interactions"])
        assert (event["finish_reason"], event["attributes"]["cut_by"]) == ("incomplete", "client")


def test_an_app_that_does_not_read_a_long_answer_is_disconnected(tmp_path: Path) -> None:
    def long(handler: Any, asked: dict[str, Any]) -> None:
        handler.json(200, {"model": asked["model"], "choices": [], "padding": "x" * 8_000_000})

    with model_server("base") as server, gateway(tmp_path, NOBODY, server, **own(client_seconds=1.0)) as made:
        server.answer = long
        with connections(made, 1, head(len(BODY)) + BODY, SO_RCVBUF=4_096) as (app,):
            until(lambda: server.requests)
            until(lambda: made.metric("open_connections") == 1)  # that of this scrape
            assert len(ended(app)) < 8_000_000
        server.answer = answered
        assert made.chat().status_code == 200


def test_while_all_connections_have_answers_under_way_new_requests_are_refused_and_probes_answered(
    tmp_path: Path,
) -> None:
    over = threading.Event()

    def waits(handler: Any, asked: dict[str, Any]) -> None:
        over.wait(60)
        answered(handler, asked)

    with model_server("base") as server, gateway(tmp_path, NOBODY, server, **own(max_connections=32)) as made:
        server.answer = waits
        with connections(made, 16, head(len(BODY)) + BODY) as apps:
            until(lambda: len(server.requests) == 16)
            refused = made.chat()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
            assert made.metric("refused_total", code="busy")
            assert refused.headers["Retry-After"]
            assert made.answers("/healthz")
            over.set()
            assert all(app.recv(20).startswith(b"HTTP/1.1 200 ") for app in apps)
        until(lambda: made.chat().status_code == 200)
        assert len(server.requests) == 17


OUT_OF_MEMORY = {"error": {"message": "out of memory"}}


def stream_an_error(handler: Any, _: dict[str, Any]) -> None:
    handler.begin_stream()
    handler.piece(b"data: " + json.dumps(OUT_OF_MEMORY).encode() + b"\n\n")
    handler.end_stream()


@pytest.mark.full
@pytest.mark.parametrize(
    "fail",
    [
        lambda handler, _: handler.json(500, OUT_OF_MEMORY),
        lambda handler, _: handler.json(200, OUT_OF_MEMORY),
        stream_an_error,
    ],
    ids=["by its status", "in its answer", "in its stream"],
)
def test_a_server_that_fails_at_once_is_soon_asked_no_more(tmp_path: Path, fail: Answer) -> None:
    with (
        model_server("base") as good,
        model_server("base") as bad,
        gateway(tmp_path, NOBODY, good, bad, **own()) as made,
    ):

        def slowly(handler: Any, asked: dict[str, Any]) -> None:
            time.sleep(0.05)  # so that the one that fails is the least busy
            answered(handler, asked)

        good.answer = slowly
        bad.answer = fail
        with ThreadPoolExecutor(4) as apps:
            failures = list(apps.map(lambda _: "out of memory" in made.chat().text, range(60)))
        assert failures.count(True) == len(bad.requests) < 10  # three, those that were under way, and trials
        assert made.metric("upstream_ejected", upstream=bad.url) == 1
        assert made.metric("ejections_total", upstream=bad.url)
        assert made.metric("upstream_up", upstream=bad.url) == 1


def test_a_server_that_closes_after_reading_costs_one_attempt(tmp_path: Path) -> None:
    with (
        model_server("base") as one,
        model_server("base") as two,
        model_server("base") as three,
        gateway(tmp_path, NOBODY, one, two, three, **own()) as made,
    ):
        servers = (one, two, three)
        for server in servers:
            server.answer = lambda handler, _: break_off(handler)
        answer = made.chat()
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
        assert "not sent again" in answer.json()["error"]["message"]
        assert sum(len(server.requests) for server in servers) == 1


def test_a_request_on_a_connection_that_the_server_has_given_up_is_sent_once_more(tmp_path: Path) -> None:
    """Whether the server has read it is unknown: it is sent on a new connection, and never a third time."""
    seen: list[socket.socket] = []

    def gives_up(handler: Any, asked: dict[str, Any]) -> None:
        if handler.connection in seen or not willing:
            break_off(handler)
        else:
            seen.append(handler.connection)
            answered(handler, asked)

    willing = True
    with model_server("base") as server, gateway(tmp_path, NOBODY, server, **own(poll_seconds=600)) as made:
        server.answer = gives_up
        assert [made.chat().status_code for _ in range(2)] == [200, 200]
        assert len(server.requests) == 3
        assert made.chat().status_code == 200
        willing = False
        server.requests.clear()
        answer = made.chat()
        assert answer.status_code == 502
        times = {1: "once", 2: "twice"}[len(server.requests)]
        assert f"was sent {times} and is not sent again" in answer.json()["error"]["message"]


def test_a_server_that_closes_a_kept_connection_after_its_work_is_the_only_one_that_gets_the_request(
    tmp_path: Path,
) -> None:
    """Neither it nor another one gets it again, and the error says so."""

    def works_and_closes(handler: Any, _: dict[str, Any]) -> None:
        time.sleep(0.5)
        break_off(handler)

    with (
        model_server("base") as one,
        model_server("base") as two,
        gateway(tmp_path, NOBODY, one, two, **own(poll_seconds=600)) as made,
    ):
        assert {made.chat().status_code for _ in range(4)} == {200}  # both have a connection that is kept
        for server in (one, two):
            server.answer = works_and_closes
            server.requests.clear()
        answer = made.chat()
        assert len(one.requests) + len(two.requests) == 1
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
        assert "sent once and is not sent again" in answer.json()["error"]["message"]


def pours(handler: Any, content: bytes, seconds: float = 0.0, *, streams: bool = False) -> None:
    """Sends the same without an end."""
    handler.begin_stream() if streams else handler.send_response(200)
    if not streams:
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(10**12))
        handler.end_headers()
    with suppress(OSError):  # the gateway has ended the connection
        while True:
            handler.piece(content) if streams else handler.wfile.write(content)
            time.sleep(seconds)
    handler.close_connection = True


def drips_headers(handler: Any, _: dict[str, Any]) -> None:
    with suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.1)
    handler.close_connection = True


BOUNDS = {"max_answer_bytes": 1_000_000, "max_line_bytes": 300_000, "max_answer_seconds": 2.0}
EVENT = b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": "x"}}]}).encode() + b"\n\n"


@pytest.mark.full
@pytest.mark.parametrize(
    ("answer", "status", "code", "bound"),
    [
        (lambda handler, _: pours(handler, b" " * 10_000), 502, "upstream_failed", "max_answer_bytes"),
        (lambda handler, _: pours(handler, b" ", 0.1), 504, "upstream_timeout", "max_answer_seconds"),
        (drips_headers, 504, "upstream_timeout", "max_answer_seconds"),
    ],
    ids=["long", "byte by byte", "headers byte by byte"],
)
def test_an_answer_that_passes_a_bound_is_cut_counted_and_ejects_its_server(
    tmp_path: Path, answer: Answer, status: int, code: str, bound: str
) -> None:
    with (
        model_server("base") as good,
        model_server("base") as bad,
        gateway(tmp_path, NOBODY, good, bad, **own(**{bound: BOUNDS[bound]})) as made,
    ):
        bad.answer = answer
        while (made.metric("ejections_total", upstream=bad.url) or 0) < 1:
            found = made.chat()
            if found.status_code != 200:
                assert (found.status_code, found.json()["error"]["code"]) == (status, code)
                assert f"gateway.{bound}" in found.json()["error"]["message"]
        assert made.metric("answers_cut_total", upstream=bad.url, bound=bound) == 3
        assert made.metric("answers_cut_total", upstream=good.url, bound=bound) == 0
        assert {made.chat().status_code for _ in range(4)} == {200}
        assert len(bad.requests) == 3


@pytest.mark.full
@pytest.mark.parametrize(
    ("content", "seconds", "bound"),
    [
        (EVENT * 100, 0.0, "max_answer_bytes"),
        (b": nothing\n" * 100, 0.0, "max_answer_bytes"),
        (b"x" * 10_000, 0.0, "max_line_bytes"),
        (EVENT, 0.1, "max_answer_seconds"),
        (b":", 0.1, "max_answer_seconds"),
    ],
    ids=["events", "comments", "a line", "event by event", "byte by byte"],
)
def test_a_stream_that_passes_a_bound_ends_with_an_error(
    tmp_path: Path, tansu: Broker, content: bytes, seconds: float, bound: str
) -> None:
    with model_server("base") as server, gateway(tmp_path, tansu, server, **own(**{bound: BOUNDS[bound]})) as made:
        server.answer = lambda handler, _: pours(handler, content, seconds, streams=True)
        with (
            pytest.raises(APIError, match=f"gateway.{bound}"),
            made.client().chat.completions.create(model="support", messages=[], stream=True) as chunks,
        ):
            list(chunks)
        assert made.metric("answers_cut_total", upstream=server.url, bound=bound) == 1
        if content.startswith(EVENT):
            (event,) = published(tansu, made.topics["interactions"])
            assert (event["finish_reason"], event["attributes"]["cut_by"]) == ("incomplete", "upstream")


def test_no_answer_takes_more_memory_or_time_than_the_default_bounds(tmp_path: Path) -> None:
    """Others are answered meanwhile."""

    def peak(made: Gateway) -> int:
        assert made.process
        status = Path(f"/proc/{made.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) // 1024

    with model_server("base") as server, gateway(tmp_path, NOBODY, server, **own()) as made:
        before = peak(made)
        server.answer = lambda handler, _: pours(handler, b" " * 2**20)
        assert "gateway.max_answer_bytes" in made.chat().text
        assert peak(made) - before < 200  # MiB
        server.answer = lambda handler, _: pours(handler, b"x" * 2**16, streams=True)
        waits = []
        with ThreadPoolExecutor(1) as apps:
            asked = apps.submit(made.post, "/v1/chat/completions", json.loads(STREAM))
            while not asked.done():
                began = time.monotonic()
                assert made.answers("/healthz")
                waits.append(time.monotonic() - began)
        assert "gateway.max_line_bytes" in asked.result().text
        assert max(waits) < 1


def test_it_listens_and_asks_by_ipv6(tmp_path: Path) -> None:
    port = free_port()
    with model_server("base", host="::1") as server:
        with gateway(tmp_path, NOBODY, server, **own(host="[::]", port=port)) as made:
            assert made.chat().status_code == 200  # by IPv4
            made.url = f"http://[::1]:{port}"
            answer = made.chat()
            assert answer.json()["choices"][0]["message"]["content"].startswith("".join(WORDS))
            assert f"http://[::]:{port}" in made.log.read_text()
        assert server.url.startswith("http://[::1]:")
