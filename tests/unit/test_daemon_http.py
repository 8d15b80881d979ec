"""The HTTP server on a real socket: what a client may take of it, and what it is answered."""

import json
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from fixtures.daemon.doors import Place
from fixtures.feedback.teaching import Teacher
from fixtures.kafka.brokers import until
from retuned.consumers.errors import StandsBy, StoreUnavailable
from retuned.consumers.file_import import Position
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.client import Client
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.operations.catalog import OPERATIONS
from retuned.daemon.operations.files import FileIntake
from retuned.daemon.settings import Settings
from retuned.daemon.transfer.exports import Export, content
from retuned.daemon.transfer.imports import to_bytes
from retuned.daemon.web import connections
from retuned.daemon.web.pass_on import Answer, Passing
from retuned.daemon.web.principals import add
from retuned.daemon.web.routes import PASSED_ON_AT_ONCE

LOOK, ACT = "may-look-at-it-all", "may-do-something-too"


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place(HttpSettings(port=0))
    yield made
    made.server.stop()


def is_closed(connection: socket.socket) -> bool:
    """Within its timeout, whatever is sent before."""
    try:
        while connection.recv(2**16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def test_who_sends_no_token_or_a_piece_of_one_is_nobody() -> None:
    made = Place(HttpSettings(port=0, viewer_token=LOOK, operator_token=ACT))  # type: ignore[arg-type]
    try:
        for headers in (
            {},
            *({"Authorization": given} for given in ("Bearer", "Basic Og==", f"Bearer {LOOK[:-1]}")),
        ):
            assert httpx.get(f"{made.url}/api/v1/status", headers=headers).status_code == 401
            assert httpx.post(made.command, headers=headers, json={}).status_code == 401
        for command in (made.command, f"{made.url}/api/v1/training/pause"):
            assert httpx.post(command, headers={"Authorization": f"Bearer {LOOK}"}, json={}).status_code == 403
            assert httpx.post(command, headers={"Authorization": f"Bearer {ACT}"}, json={}).status_code == 200
    finally:
        made.server.stop()


def test_idle_connections_take_no_others_place(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "most_connections", lambda: 10)
    with ExitStack() as stack:
        idle = [stack.enter_context(place.connect(b"GET / HTTP/1.1\r\n"[: number % 16])) for number in range(40)]
        assert place.well()
        closed = 0
        for connection in idle:
            connection.settimeout(0.2)
            closed += is_closed(connection)
        assert closed >= 30
        assert place.well()


def test_a_backup_is_asked_for_by_an_admin_with_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "principals.yaml"
    admin, operator = (add(file, role, role, None, datetime.now(UTC)) for role in ("admin", "operator"))  # type: ignore[arg-type]
    made = Place(HttpSettings(port=0, principals_file=file))

    def ask(token: str, **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.post(f"{made.url}/api/v1/backup", headers=headers, json=body, timeout=10)

    try:
        assert ask(admin, folder="/b").json() == {"folder": "/b", "keep": 7, "with_key": True}
        assert ask(admin, folder="/b", keep=2, with_key=False).json() == {"folder": "/b", "keep": 2, "with_key": False}
        assert ask(operator, folder="/b").status_code == 403
        assert ask(admin, folder="b").status_code == 409
        for wrong in ({}, {"folder": 1}, {"folder": "/b", "keep": True}, {"folder": "/b", "with_key": 1}):
            assert ask(admin, **wrong).status_code == 400, wrong
    finally:
        made.server.stop()


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"POST /api/v1/workloads/support/rollback HT",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: y",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHost:",
        b"POST /api/v1/workloads/support/rollback HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{",
    ],
)
def test_a_request_that_is_never_finished_is_closed(
    place: Place, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)
    with place.connect(begun) as connection:
        for _ in range(4):  # a byte now and then is no progress
            time.sleep(0.1)
            with suppress(OSError):
                connection.send(b" ")
        assert is_closed(connection)


def test_a_slow_answer_is_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(place.daemon, "command", lambda *_: time.sleep(1) or {"done": "slowly"})
    assert httpx.post(place.command, json={}, timeout=10).json() == {"done": "slowly"}


FILE = b"GET /static/htmx.min.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def unread(place: Place) -> socket.socket:
    """A client that asks for more than fits into its buffers, and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.settimeout(5)
    connection.connect(("127.0.0.1", place.port))
    connection.sendall(FILE * 200)
    return connection


def test_clients_that_read_no_answer_make_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "most_connections", lambda: 10)
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(unread(place))

        def served() -> bool:
            with suppress(httpx.TransportError):
                return place.well()
            return False

        until(served)  # once answers fill the buffers
        assert all(served() for _ in range(3))


def test_a_client_that_reads_no_answer_is_cut_off(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.5)
    with unread(place) as connection:

        def cut_off() -> bool:
            with suppress(OSError):
                connection.send(b"\r\n")
                return False
            return True

        until(cut_off)


def test_connections_are_kept_alive(place: Place) -> None:
    with httpx.Client() as client:
        for _ in range(3):
            assert client.post(place.command, json={"reason": "v1"}).status_code == 200
            assert client.get(f"{place.url}/healthz").status_code == 200
    assert place.daemon.commands == [{"reason": "v1", "asked_by": None}] * 3


@pytest.mark.parametrize("body", [b"[" * 200_000, b"[" * 50_000, b'{"reason": "' + b"x" * 10**6 + b'"}', b"{", b"\xff"])
def test_a_body_that_cannot_be_read_is_the_clients_error(place: Place, body: bytes) -> None:
    answer = httpx.post(place.command, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 413)
    assert answer.json()["error"]
    assert place.daemon.commands == []
    assert place.well()


@pytest.mark.parametrize("name", ["x" * 5_000, "é" * 200, "x" * 252, "%00", "..%2fw", "none"])
def test_a_report_that_cannot_be_is_not_found(place: Place, name: str) -> None:
    answer = httpx.get(f"{place.url}/reports/{name}")
    assert (answer.status_code, "error" in answer.json()) == (404, True)


def test_a_body_without_end_is_cut_off(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REST_SECONDS", 0.3)
    head = b"POST /api/v1/workloads/support/rollback HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for length in (b"Content-Length: 1500000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
        sent = 0
        with place.connect(head + length) as connection:
            try:
                while sent < 1_500_000_000:
                    sent += len(b"10000\r\n" + b"x" * 2**16 + b"\r\n")
                    connection.sendall(b"10000\r\n" + b"x" * 2**16 + b"\r\n")
                    time.sleep(0.001)
            except OSError:
                pass
        assert sent < 1_500_000_000
    assert place.well()


def test_headers_without_end_are_refused(place: Place) -> None:
    with place.connect(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n") as connection:
        try:
            for number in range(10_000):
                connection.sendall(b"X-%d: %s\r\n" % (number, b"x" * 1_000))
        except OSError:
            pass
        else:
            assert is_closed(connection)
    assert place.well()


def test_numbers_that_json_does_not_know_are_null(place: Place) -> None:
    b = (float("inf"), np.float64("-inf"), np.float32("nan"), Decimal("NaN"), Decimal("1.5"), np.int64(2))
    place.daemon.found = {"a": [float("nan"), {"b": b}]}
    null = {"a": [None, {"b": [None, None, None, None, 1.5, 2]}]}

    def strict(text: str) -> Any:
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    assert strict(httpx.get(f"{place.url}/api/v1/status").text) == null | {"warnings": [], "daemons": []}
    assert strict(httpx.get(f"{place.url}/api/v1/lineage/x").text) == null
    assert strict(httpx.get(f"{place.url}/api/v1/accounts").text) == [null]
    assert strict(httpx.get(f"{place.url}/api/v1/dead-letters?limit=99999").text) == [null] * 3
    assert strict(httpx.post(f"{place.url}/api/v1/dead-letters/replay", json={}).text) == null
    assert strict(httpx.post(place.command, json={}).text) == {"done": null}


def test_an_export_has_no_infinite_numbers(warehouse: Warehouse) -> None:
    teacher = Teacher(warehouse)
    for cost in (1.5, float("inf"), float("nan")):
        answer = teacher.ask("what is infinity", 'not "NaN"')
        warehouse.execute("UPDATE interactions SET cost = ? WHERE id = ?", [cost, answer])
    lines = b"".join(content(Export("interactions"), warehouse, Settings())).decode().splitlines()
    found = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) for line in lines]
    assert [row["cost"] for row in found] == [1.5, None, None]
    assert {row["response"] for row in found} == {'not "NaN"'}


@pytest.mark.parametrize(
    "name", ["agent/rows", "agent/rollback", "team/refunds", "a b", "Größe?#%2F", "退款", "a/../b", "w" * 256]
)
def test_any_workload_that_is_stored_can_be_commanded(place: Place, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked = []
    monkeypatch.setattr(place.daemon, "command", lambda *given: asked.append(given) or {"done": "it"})
    answer = httpx.post(f"{place.url}/api/v1/workloads/{quote(name, safe='')}/rollback", json={})
    assert answer.status_code == 200
    assert {name} == {value for given in asked for value in given if isinstance(value, str)} - {"rollback"}


def test_a_route_needs_a_workload_that_is_known_and_a_conversation(place: Place) -> None:
    place.daemon.found = {"workloads": {"support": {"model": "support@1"}}}
    url = f"{place.url}/api/v1/route"
    assert httpx.get(f"{url}?workload=support&conversation=c-1").json() == {"model": "support@1"}
    assert httpx.get(f"{url}?workload=other&conversation=c-1").status_code == 404
    for query in ("", "?workload=support", "?conversation=c-1", "?workload=support&conversation="):
        assert httpx.get(url + query).status_code == 400


class Led:
    """Another daemon that leads, as one that stands by knows it."""

    def __init__(self, url: str) -> None:
        self.url, self.passing = url, Passing(HttpSettings())

    def pass_on(self, method: str, path: str, headers: Mapping[str, str], body: bytes, seconds: float) -> Answer:
        return self.passing.pass_on(self.url, method, path, headers, body, seconds)


def test_one_that_stands_by_passes_on_what_the_leader_alone_can_answer() -> None:
    http = HttpSettings(port=0, viewer_token=LOOK, operator_token=ACT)  # type: ignore[arg-type]
    leader, standby = Place(http), Place(http)
    standby.daemon.led_by = Led(leader.url)
    leader.daemon.routed = {"workloads": {"of": "the leader"}, "withheld": {}}
    act, look = ({"Authorization": f"Bearer {token}"} for token in (ACT, LOOK))
    try:
        answer = httpx.post(standby.command, headers=act, json={"reason": "ä"})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert leader.daemon.commands == [{"reason": "ä", "asked_by": "operator"}]
        assert standby.daemon.commands == []
        assert httpx.get(f"{standby.url}/api/v1/routes", headers=act).json() == leader.daemon.routed
        assert httpx.post(standby.command, headers=look, json={}).status_code == 403
        refused = httpx.post(standby.command, headers=act, json={"reason": 1})
        assert (refused.status_code, refused.json()["error"]) == (400, "reason: expected a text, got 1")
        assert httpx.get(f"{standby.url}/api/v1/status", headers=act).status_code == 200  # it knows that itself
        browses = act | {"Accept": "text/html"}
        passed_on, page = (
            httpx.post(f"{place.url}/workloads/support/rollback", headers=browses, data={"reason": ""})
            for place in (standby, leader)
        )
        assert (passed_on.status_code, passed_on.text) == (400, page.text)
        for header in ("content-security-policy", "referrer-policy"):
            assert passed_on.headers[header] == page.headers[header]

        leader.daemon.led_by = Led(standby.url)  # nobody leads: it goes round no circle
        answer = httpx.post(standby.command, headers=act, json={})
        assert (answer.status_code, "took it for the leader" in answer.text) == (503, True)
        leader.server.stop()
        answer = httpx.post(standby.command, headers=act, json={})
        assert answer.status_code == 503
        assert f"the leader at {leader.url} does not answer" in answer.json()["error"]
    finally:
        leader.server.stop()
        standby.server.stop()


class Recorder:
    """A leader that answers everything alike."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, float]] = []

    def pass_on(self, method: str, path: str, _: Mapping[str, str], __: bytes, seconds: float) -> Answer:
        self.asked.append((method, path, seconds))
        return Answer(200, {"Content-Type": "application/json"}, b"{}")


def test_every_operation_that_the_leader_alone_may_do_is_passed_on_and_no_other(place: Place) -> None:
    place.daemon.led_by = leader = Recorder()
    passed_on = []
    for operation in OPERATIONS:
        for path in operation.paths:
            address = (
                f"/api/v1{path.format(workload='support', id='1', what='ledger', version='v', before='a', after='b')}"
            )
            httpx.request(operation.method, place.url + address, json={}, timeout=20)
            passed_on += [(operation.method, address)] if operation.by_leader else []
    assert [(method, path) for method, path, _ in leader.asked] == passed_on
    waits = {path.rpartition("/")[2]: seconds for _, path, seconds in leader.asked}
    assert (waits["routes"], waits["promote"]) == (5, 60)
    assert {waits[name] for name in ("check-drift", "accept-drift", "rebase", "evaluate")} == {900}


def test_a_leader_that_hangs_holds_up_nothing_that_another_daemon_answers_itself(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hangs, ThreadPoolExecutor(60) as clients:
        place.daemon.led_by = led = Led(f"http://127.0.0.1:{hangs.getsockname()[1]}")
        asked = [clients.submit(httpx.get, f"{place.url}/api/v1/routes", timeout=30) for _ in range(60)]
        commanded = clients.submit(httpx.post, place.command, json={}, timeout=30)
        until(lambda: sum(one.done() for one in asked) >= 60 - PASSED_ON_AT_ONCE)
        for path in ("/api/v1/status", "/api/v1/approvals"):  # by the threads that all share
            assert httpx.get(place.url + path, timeout=10).status_code == 200
        place.daemon.led_by = None
        assert httpx.get(f"{place.url}/api/v1/routes", timeout=10).json() == place.daemon.routed
        led.passing.drop()
        for one in (*asked, commanded):
            assert one.result().status_code == 503
        assert "try again" in commanded.result().json()["error"]
        assert any("leads no more" in one.result().json()["error"] for one in asked)


def test_a_form_that_is_passed_on_leads_the_browser_back_to_its_page(place: Place) -> None:
    standby = Place(HttpSettings(port=0))
    standby.daemon.led_by = Led(place.url)
    try:
        form = {"decision": "approve", "reason": "good"}
        answer = httpx.post(f"{standby.url}/approvals/1", data=form, headers={"Origin": standby.url})
        assert (answer.status_code, answer.headers["location"]) == (303, "/approvals/1")
        assert [one["id"] for one in place.daemon.commands] == ["1"]
        path = "/workloads/support/memory?state=active"
        form = {"id": "e1", "action": "freeze", "reason": "good"}
        answer = httpx.post(f"{standby.url}{path}", data=form, headers={"Origin": standby.url})
        # No scheme of the leader's: what the browser speaks ends at a proxy, or at the standby.
        assert (answer.status_code, answer.headers["location"]) == (303, path)
    finally:
        standby.server.stop()


def test_a_session_is_good_at_the_leader_that_has_the_same_key(tmp_path: Path) -> None:
    file = tmp_path / "principals.yaml"
    token = add(file, "otto", "operator", None, datetime.now(UTC))
    (tmp_path / "key").write_text("a-key-of-some-length\n")
    leader, standby, stranger = (
        Place(HttpSettings.model_validate({"port": 0, "principals_file": file, **key}))
        for key in (
            {"session_key": "a-key-of-some-length"},
            {"session_key_file": tmp_path / "key"},
            {"session_key": "another-key-of-some-length"},
        )
    )
    try:
        with httpx.Client(base_url=standby.url, headers={"Origin": standby.url}) as browser:
            assert browser.post("/sign-in", data={"token": token}).status_code == 303
            for led_by, status in ((leader, 303), (stranger, 401)):
                standby.daemon.led_by = Led(led_by.url)
                answer = browser.post("/approvals/1", data={"decision": "approve", "reason": "good"})
                assert answer.status_code == status, answer.text
        assert [one["user"] for one in leader.daemon.commands] == ["otto"]
        assert stranger.daemon.commands == []
    finally:
        for place in (leader, standby, stranger):
            place.server.stop()


def test_a_command_that_a_daemon_may_not_make_any_more_is_unavailable(place: Place) -> None:
    def refuse(*_: Any) -> Any:
        raise StandsBy("this daemon stands by")

    place.daemon.command = refuse  # type: ignore[method-assign]
    answer = httpx.post(place.command, json={})
    assert (answer.status_code, answer.json()["error"]) == (503, "this daemon stands by")


def test_how_far_a_file_was_taken_comes_whole_to_the_command(place: Place) -> None:
    asked: list[str] = []
    remote = FileIntake(Client(Settings(http={"port": place.port})))
    for position in (Position(60, 15), Position(None, 0)):
        place.daemon.position = lambda id, found=position: asked.append(id) or asdict(found)  # type: ignore[misc,method-assign]
        assert remote.position("import:0123456789abcdef") == position
    assert asked == ["0123456789abcdef"] * 2


def test_a_store_that_does_not_answer_an_import_is_unavailable_and_named(place: Place) -> None:
    def away(**_: Any) -> Any:
        raise StoreUnavailable("store.postgres_url: the database does not answer")

    place.daemon.position = away  # type: ignore[method-assign]
    place.daemon.take = away  # type: ignore[attr-defined]
    path = f"{place.url}/api/v1/imports/0123456789abcdef"
    rows = to_bytes(Batch(nexts={("import:0123456789abcdef", 0): 1}))
    for answer in (httpx.get(path), httpx.post(path, content=rows, headers={"Content-Type": "application/msgpack"})):
        assert answer.status_code == 503
        assert answer.json()["error"] == "store.postgres_url: the database does not answer"
