"""What a command makes of whatever listens on the daemon's port."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from fixtures.daemon.operations import ask
from fixtures.kafka.brokers import free_port
from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.daemon import client
from retuned.daemon.cli.main import main
from retuned.daemon.client import Client
from retuned.daemon.operations.local import opened
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

    do_POST = do_GET

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


def remote(port: int) -> Client:
    return Client(Settings(http={"port": port}))


def test_whether_anything_listens(listener: Listener) -> None:
    assert remote(listener.server_port).is_up()
    assert not remote(free_port()).is_up()


@pytest.mark.parametrize("host", ["retuned.invalid", "192.0.2.1"])
@pytest.mark.parametrize(
    "command", [["import", "a.jsonl"], ["pause", "--reason", "r"], ["forget", "--user", "u", "--yes"]]
)
def test_no_warehouse_here_is_in_the_place_of_that_of_a_daemon_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.2)
    Path("a.jsonl").write_text('{"question": "Where?", "answer": "Here."}\n')
    Path("retuned.yaml").write_text(f"http: {{host: {host}, client_token: the-token-of-anna}}")
    with opened(Settings()):
        pass
    assert main(command) == 1
    printed, problem = capsys.readouterr()
    assert (printed, f"http.host {host}: no connection to the daemon on port 8321" in problem) == ("", True), problem
    with opened(Settings()) as local:
        assert local.warehouse.rows("FROM pauses") == local.warehouse.rows("FROM erasures") == []


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost", "0.0.0.0", "::"])
def test_where_the_daemon_is_on_this_machine_its_warehouse_is_here(host: str) -> None:
    http = {"host": host, "port": free_port(), "operator_token": "may-do-something"}
    assert not Client(Settings(http=http)).is_up()  # type: ignore[arg-type]


def test_an_address_of_this_machine_is_here() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 1))  # sends nothing
        except OSError:
            pytest.skip("this machine has loopback addresses alone")
        own = probe.getsockname()[0]
    assert not Client(Settings(http={"host": own, "port": free_port()})).is_up()  # type: ignore[arg-type]


def test_what_is_given_is_asked_for(listener: Listener) -> None:
    listener.body = b"[]"
    assert ask(remote(listener.server_port), "dead_letters", limit=5, reason="not json & more") == []
    assert listener.seen == "/api/v1/dead-letters?limit=5&reason=not+json+%26+more"
    assert ask(remote(listener.server_port), "labels") == []
    assert listener.seen == "/api/v1/labels"


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
        ask(Client(Settings(http={"port": listener.server_port, **http})), "status")  # type: ignore[arg-type]
        assert listener.authorization == sent


@pytest.mark.parametrize(("status", "body"), [(200, b"hello"), (200, b"[]"), (404, b"<html>"), (500, b"[1]")])
def test_what_is_not_retuned_is_named(listener: Listener, status: int, body: bytes) -> None:
    listener.status, listener.body = status, body
    port = listener.server_port
    with pytest.raises(ConfigurationError, match=rf"http\.port: what listens on {port} answered .* and is not retuned"):
        ask(remote(port), "status")


def test_a_refusal_is_the_daemons_own_text(listener: Listener) -> None:
    listener.status, listener.body = 409, b'{"error": "workload x: unknown"}'
    with pytest.raises(RetunedError, match=r"^workload x: unknown$"):
        ask(remote(listener.server_port), "lineage", id="x")


def test_who_lacks_a_token_is_told_the_key(listener: Listener) -> None:
    for listener.status in (401, 403):
        listener.body = b'{"error": "no"}'
        with pytest.raises(RetunedError, match=r"^no; set http\.client_token"):
            ask(remote(listener.server_port), "status")


def test_a_daemon_that_stops_between_two_requests() -> None:
    with pytest.raises(RetunedError, match=r"went away in the middle .*; run the command again"):
        ask(remote(free_port()), "status")


def test_what_takes_long_is_waited_for_and_what_hangs_is_not(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    send = httpx.Client.send

    def sent(client: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
        waits.append(request.extensions["timeout"]["read"])
        return send(client, request, **more)

    monkeypatch.setattr(httpx.Client, "send", sent)
    service = remote(listener.server_port)
    for name, values in (
        ("replay", {}),
        ("check_drift", {"workload": "w"}),
        ("evaluate", {"workload": "w", "version": "v"}),
    ):
        ask(service, name, **values)
    ask(service, "status")
    assert waits == [3_600, 3_600, 3_600, 30]


def test_no_proxy_gets_the_token(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    assert ask(remote(listener.server_port), "status") == {}


@pytest.mark.processes
def test_a_command_that_asks_the_daemon_prints_its_answer_alone(listener: Listener, tmp_path: Path) -> None:
    listener.body = b"[]"
    config = tmp_path / "retuned.yaml"
    config.write_text(f"http: {{port: {listener.server_port}}}\n")
    command = [sys.executable, "-m", "retuned.daemon.cli.main", "labels", "--json", "--config", str(config)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
