"""What a command makes of whatever listens on the daemon's port."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from brokers import free_port

from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.daemon.remote import RemoteService
from retuned.daemon.settings import Settings


class Listener(ThreadingHTTPServer):
    """Answers every request alike."""

    status, body, seen = 200, b"{}", ""
    authorization: str | None = None


class _Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_GET(self) -> None:
        self.server.seen = self.path
        self.server.authorization = self.headers["Authorization"]
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener(("127.0.0.1", 0), _Handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def remote(port: int) -> RemoteService:
    return RemoteService(Settings(http={"port": port}))


def test_whether_anything_listens(listener: Listener) -> None:
    assert remote(listener.server_port).is_up()
    assert not remote(free_port()).is_up()


def test_what_is_given_is_asked_for(listener: Listener) -> None:
    listener.body = b"[]"
    assert remote(listener.server_port).dead_letters(5, "not json & more") == []
    assert listener.seen == "/api/v1/dead-letters?limit=5&reason=not+json+%26+more"
    assert remote(listener.server_port).labels(None) == []
    assert listener.seen == "/api/v1/labels?"


def test_the_clients_own_token_is_sent_before_the_operators(listener: Listener, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("the-token-of-anna\n")
    both = {"operator_token": "may-do-something", "viewer_token": "may-look-at-it-all"}
    for http, sent in (
        ({}, None),
        ({"viewer_token": "may-look-at-it-all"}, None),
        (both, "Bearer may-do-something"),
        (both | {"client_token_file": file}, "Bearer the-token-of-anna"),
        ({"client_token": "the-token-of-bert"}, "Bearer the-token-of-bert"),
    ):
        RemoteService(Settings(http={"port": listener.server_port, **http})).status()  # type: ignore[arg-type]
        assert listener.authorization == sent


@pytest.mark.parametrize(("status", "body"), [(200, b"hello"), (200, b"[]"), (404, b"<html>"), (500, b"[1]")])
def test_what_is_not_retuned_is_named(listener: Listener, status: int, body: bytes) -> None:
    listener.status, listener.body = status, body
    port = listener.server_port
    with pytest.raises(ConfigurationError, match=rf"http\.port: what listens on {port} answered .* and is not retuned"):
        remote(port).status()


def test_a_refusal_is_the_daemons_own_text(listener: Listener) -> None:
    listener.status, listener.body = 409, b'{"error": "workload x: unknown"}'
    with pytest.raises(RetunedError, match=r"^workload x: unknown$"):
        remote(listener.server_port).lineage("x")


def test_who_lacks_a_token_is_told_the_key(listener: Listener) -> None:
    for listener.status in (401, 403):
        listener.body = b'{"error": "no"}'
        with pytest.raises(RetunedError, match=r"^no; set http\.client_token"):
            remote(listener.server_port).status()


def test_a_daemon_that_stops_between_two_requests() -> None:
    with pytest.raises(RetunedError, match=r"went away in the middle .*; run the command again"):
        remote(free_port()).status()


def test_what_takes_long_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = {}

    def opened(_: RemoteService, __: str, path: str, ___: object, timeout_seconds: float) -> BytesIO:
        waits[path] = timeout_seconds
        return BytesIO(b"{}")

    monkeypatch.setattr(RemoteService, "_open", opened)
    service = remote(1)
    service.replay()
    service.command("check-drift", "support", {})
    service.status()
    assert waits["dead-letters/replay"] == waits["workloads/support/check-drift"] == 3_600
    assert waits["status"] == 30
