"""Who is answered what: roles, wrong tokens, pages of other sites, and what is logged of it."""

import logging
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import anyio
import httpx
import pytest
from starlette.testclient import TestClient

from fixtures.daemon.doors import FakeDaemon, Place, doors
from fixtures.kafka.brokers import until
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.roles import Role
from retuned.daemon.web import api, attempts
from retuned.daemon.web.attempts import FailedAttempts
from retuned.daemon.web.principals import add
from retuned.daemon.web.recent import Recent
from retuned.daemon.web.routes import ROUTES

NOBODY = "nobody"
COMMANDS = (
    "retrain", "rebase", "evaluate", "promote", "rollback", "report", "pause", "resume", "cancel", "check-drift",
    "accept-drift",
)  # fmt: skip
ROLES = get_args(Role)
# Each role may what is listed for it and for those above it, but viewers and labellers not what gateways may.
EXPECTED = {
    NOBODY: {
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/static/{name}"),
        ("GET", "/sign-in"),
        ("POST", "/sign-in"),
        ("GET", "/sign-in/oidc"),
        ("GET", "/sign-in/oidc/callback"),
        ("POST", "/sign-out"),
        ("GET", "/sign-out/oidc"),
    },
    "metrics": {("GET", "/metrics"), ("GET", "/api/v1/routes"), ("GET", "/api/v1/route")},
    "gateway": {("GET", "/api/v1/memory/feed"), ("POST", "/api/v1/memory/lookup")},
    "viewer": {
        ("GET", "/"),
        ("GET", "/events"),
        ("GET", "/system"),
        ("GET", "/workloads/{workload}"),
        ("GET", "/reports/{id}"),
        ("GET", "/api/v1/overview"),
        ("GET", "/api/v1/workloads/{workload}/history"),
        ("GET", "/approvals/{id}"),
        ("GET", "/api/v1/approvals"),
        ("GET", "/api/v1/approvals/{id}"),
        ("GET", "/api/v1/openapi.json"),
        ("GET", "/api/v1/status"),
        ("GET", "/api/v1/workloads/{workload}/status"),
        ("GET", "/api/v1/workloads/{workload}/plan"),
        ("GET", "/api/v1/runs"),
        ("GET", "/api/v1/versions"),
        ("GET", "/api/v1/ingestion"),
    },
    "labeller": {
        ("GET", "/teach"),
        ("GET", "/teach/mine"),
        ("GET", "/workloads/{workload}/teach"),
        ("POST", "/labels/{id}"),
        ("GET", "/api/v1/inbox"),
        ("GET", "/api/v1/inbox/mine"),
        ("POST", "/api/v1/labels/{id}/work"),
        ("GET", "/api/v1/labels"),
        ("POST", "/api/v1/labels/{id}"),
    },
    "operator": {
        ("GET", "/answers"),
        ("GET", "/api/v1/answers"),
        ("POST", "/workloads/{workload}/cancel"),
        ("POST", "/workloads/{workload}/rollback"),
        ("POST", "/workloads/{workload}/promote"),
        ("GET", "/workloads/{workload}/versions/{version}"),
        ("GET", "/api/v1/workloads/{workload}/versions/{version}"),
        ("POST", "/approvals/{id}"),
        ("POST", "/api/v1/approvals/{id}"),
        ("GET", "/api/v1/dead-letters"),
        ("GET", "/api/v1/diagnosis"),
        ("POST", "/api/v1/dead-letters/replay"),
        ("POST", "/api/v1/dead-letters/resume"),
        ("GET", "/api/v1/imports/{id}"),
        ("POST", "/api/v1/imports/{id}"),
        ("GET", "/api/v1/exports/{what}"),
        ("GET", "/api/v1/lineage/{id}"),
        ("GET", "/api/v1/explain/{id}"),
        ("GET", "/api/v1/workloads/{workload}/dataset/preview"),
        ("GET", "/api/v1/workloads/{workload}/rows"),
        ("GET", "/api/v1/workloads/{workload}/rows/page"),
        ("GET", "/workloads/{workload}/rows"),
        ("GET", "/workloads/{workload}/datasets"),
        ("GET", "/api/v1/workloads/{workload}/datasets"),
        ("GET", "/api/v1/datasets/{before}/{after}"),
        ("POST", "/workloads/{workload}/rows"),
        ("POST", "/api/v1/rows"),
        ("GET", "/api/v1/accounts"),
        ("GET", "/api/v1/holds"),
        ("POST", "/api/v1/accounts"),
        ("GET", "/workloads/{workload}/drift-examples"),
        ("GET", "/api/v1/workloads/{workload}/drift-examples"),
        ("GET", "/workloads/{workload}/memory"),
        ("POST", "/workloads/{workload}/memory"),
        ("GET", "/api/v1/workloads/{workload}/memory"),
        ("POST", "/api/v1/workloads/{workload}/memory"),
        ("GET", "/api/v1/memory/entries/{id}"),
        ("POST", "/api/v1/memory/entries"),
        ("GET", "/interactions/{id}"),
        ("GET", "/api/v1/interactions/{id}"),
        *(("POST", f"/api/v1/workloads/{{workload}}/{name}") for name in COMMANDS),
        ("POST", "/api/v1/training/pause"),
        ("POST", "/api/v1/training/resume"),
    },
    "admin": {
        ("POST", "/api/v1/workloads/{workload}/keep-erased"),
        ("POST", "/api/v1/backup"),
        ("GET", "/erasures"),
        ("POST", "/erasures"),
        ("GET", "/api/v1/erasures"),
        ("POST", "/api/v1/erasures"),
        ("POST", "/api/v1/erasures/preview"),
        ("GET", "/api/v1/erasures/{id}"),
        ("GET", "/api/v1/audit"),
        ("GET", "/api/v1/audit/log"),
        ("POST", "/api/v1/holds"),
        ("POST", "/api/v1/holds/{id}/release"),
    },
}
QUERY = {"/api/v1/route": "?workload=support&conversation=c-1"}
PARAMETERS = {
    "id": "0123456789abcdef", "what": "ledger", "workload": "support", "version": "3f2a91c0", "name": "console.css",
    "before": "d1", "after": "d2",
}  # fmt: skip
HOST = "http://localhost:8321"
ROLLBACK = "/api/v1/workloads/support/rollback"


def client(daemon: FakeDaemon, **http: Any) -> TestClient:
    return TestClient(doors(daemon, **http), HOST, client=("10.0.0.7", 50_000))


@pytest.fixture
def daemon() -> FakeDaemon:
    made = FakeDaemon()
    made.found = {
        "version": "0",
        "workloads": {},
        "as_of": "2026-03-02T09:00:00+00:00",
        "ingestion": {
            "interactions": 0,
            "feedback": 0,
            "dead_letters": 0,
            "lag_events": None,
            "set_aside": [],
            "broker_up": None,
        },
        "jobs": {"failures": {}},
        "storage": {"used": 0, "file": 0},
    }
    return made


@pytest.fixture(scope="module")
def principals(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, str]]:
    """A file with a principal of each role, which has the role's name, and the tokens by role."""
    file = tmp_path_factory.mktemp("principals") / "principals.yaml"
    made = {role: add(file, f"the-{role}", role, None, datetime.now(UTC)) for role in ROLES}
    return file.read_bytes(), made


@pytest.fixture
def file(tmp_path: Path, principals: tuple[bytes, dict[str, str]]) -> Path:
    copy = tmp_path / "principals.yaml"
    copy.write_bytes(principals[0])
    return copy


@pytest.fixture
def tokens(principals: tuple[bytes, dict[str, str]]) -> dict[str, str]:
    return principals[1]


@pytest.fixture
def guarded(daemon: FakeDaemon, file: Path) -> Iterator[TestClient]:
    with client(daemon, principals_file=file) as made:
        yield made


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_every_route_is_in_the_expected_matrix() -> None:
    assert {(one.method, one.path) for one in ROUTES} == set().union(*EXPECTED.values())


@pytest.mark.parametrize("who", [NOBODY, *ROLES])
def test_who_may_ask_what(guarded: TestClient, tokens: dict[str, str], who: str) -> None:
    order = list(EXPECTED)
    allowed = set().union(*(EXPECTED[role] for role in order[: order.index(who) + 1]))
    if who in ("viewer", "labeller"):
        allowed -= EXPECTED["gateway"]
    headers = bearer(tokens[who]) if who in tokens else {}
    for one in ROUTES:
        path = re.sub(r"{(\w+)(:\w+)?}", lambda found: PARAMETERS[found[1]], one.path)
        body = {"json": {}} if one.method == "POST" else {}
        if one.path == "/events" and (one.method, one.path) in allowed:
            continue  # it has no end
        answer = guarded.request(one.method, path, headers=headers, **body)  # type: ignore[arg-type]
        if (one.method, one.path) in allowed:
            assert answer.status_code not in (401, 403, 429), (who, one.path)
            assert answer.status_code < 500
        else:
            assert answer.status_code == (401 if who == NOBODY else 403), (who, one.path)
            assert answer.json()["error"]


def test_a_command_that_there_is_not_is_not_found(daemon: FakeDaemon) -> None:
    with client(daemon) as anybody:
        answer = anybody.post("/api/v1/workloads/support/promot", json={})
    assert (answer.status_code, "no such route" in answer.json()["error"]) == (404, True)
    assert daemon.commands == []


def test_without_principals_everything_is_answered_without_a_token(daemon: FakeDaemon) -> None:
    with client(daemon) as anybody:
        assert anybody.get("/api/v1/status").status_code == 200
        assert anybody.post(ROLLBACK, json={}).status_code == 200


def test_tokens_of_the_configuration_have_the_role_of_their_key(daemon: FakeDaemon) -> None:
    scrape, look, act = "may-scrape-and-route", "may-look-at-it-all", "may-do-something-too"
    with client(daemon, metrics_token=scrape, viewer_token=look, operator_token=act) as asked:
        for path, status in (("/metrics", 200), ("/api/v1/routes", 200), ("/api/v1/status", 403)):
            assert asked.get(path, headers=bearer(scrape)).status_code == status
        for path, viewer in (("/metrics", 200), ("/api/v1/status", 200), ("/api/v1/exports/ledger", 403)):
            assert asked.get(path, headers=bearer(look)).status_code == viewer
            assert asked.get(path, headers=bearer(act)).status_code == 200
        assert asked.get("/", auth=("anyone", look)).status_code == 200  # as a browser asks


def test_the_gateways_token_reads_routes_and_memory_and_no_more(daemon: FakeDaemon) -> None:
    own, scrape, look = "may-route-and-remember", "may-scrape-and-route", "may-look-at-it-all"
    with client(daemon, gateway_token=own, metrics_token=scrape, viewer_token=look) as asked:
        for path, status in (("/api/v1/routes", 200), ("/api/v1/memory/feed", 200), ("/api/v1/status", 403)):
            assert asked.get(path, headers=bearer(own)).status_code == status
        for other in (scrape, look):
            assert asked.get("/api/v1/memory/feed", headers=bearer(other)).status_code == 403


# Wrong tokens


def test_wrong_tokens_are_turned_away_and_valid_ones_never(
    daemon: FakeDaemon, file: Path, tokens: dict[str, str]
) -> None:
    application = doors(daemon, principals_file=file)
    here, there = (TestClient(application, HOST, client=(address, 50_000)) for address in ("10.0.0.7", "10.0.0.8"))
    status, right = "/api/v1/status", bearer(tokens["viewer"])
    for _ in range(30):  # who sends none tries none
        assert here.get(status).status_code == 401
    for number in range(attempts.MOST_FAILURES):
        assert here.get(status, headers=bearer(f"a-wrong-token-of-length-{number}")).status_code == 401
    refused = here.get(status, headers=bearer("another-wrong-token"))
    assert refused.status_code == 429
    assert 0 < int(refused.headers["Retry-After"]) <= attempts.WINDOW_SECONDS
    assert here.get(status, headers=right).status_code == 200  # behind an ingress everybody has its address
    assert here.get(status, headers=bearer("another-wrong-token")).status_code == 429
    assert there.get(status, headers=right).status_code == 200


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_failed_attempts_are_counted_by_address_and_forgotten_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    failed = FailedAttempts(clock)
    for number in range(attempts.MOST_FAILURES):
        assert failed.wait_seconds("10.0.0.7") == 0
        failed.add("10.0.0.7", f"token {number}")
        clock.now += 1
    assert failed.wait_seconds("10.0.0.7") == attempts.WINDOW_SECONDS - attempts.MOST_FAILURES
    assert failed.wait_seconds("10.0.0.8") == 0
    clock.now += failed.wait_seconds("10.0.0.7")
    assert failed.wait_seconds("10.0.0.7") == 0
    failed.add("10.0.0.7", "one more")
    assert failed.wait_seconds("10.0.0.7") == 1  # until the second one is a minute old
    monkeypatch.setattr(attempts, "MOST_ADDRESSES", 3)
    for last in range(3):
        failed.add(f"10.0.1.{last}", "token")
    assert failed.wait_seconds("10.0.0.7") == 0, "memory is bounded"


def test_a_program_with_one_outdated_token_locks_nobody_out(guarded: TestClient, tokens: dict[str, str]) -> None:
    for _ in range(5 * attempts.MOST_FAILURES):
        assert guarded.get("/metrics", headers=bearer("a-token-that-was-revoked")).status_code == 401
    assert guarded.get("/metrics", headers=bearer(tokens["metrics"])).status_code == 200


def test_one_client_of_ipv6_has_many_addresses() -> None:
    failed = FailedAttempts()
    for number in range(attempts.MOST_FAILURES):
        failed.add(f"2001:db8:1:2::{number:x}", f"token {number}")
    assert failed.wait_seconds("2001:db8:1:2:ffff::1") > 0
    assert failed.wait_seconds("2001:db8:1:3::1") == 0


@pytest.mark.parametrize(
    ("trusted", "client"),
    [
        (("127.0.0.1",), "203.0.113.9"),
        (("127.0.0.0/8",), "203.0.113.9"),
        (("10.0.0.0/8",), "127.0.0.1"),
        ((), "127.0.0.1"),
    ],
)
def test_a_trusted_proxy_alone_names_the_client(
    trusted: tuple[str, ...], client: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(HttpSettings(port=0, trusted_proxies=trusted))
    try:
        with caplog.at_level(logging.INFO, "retuned.access"):
            httpx.get(f"{place.url}/api/v1/status", headers={"X-Forwarded-For": "198.51.100.1, 203.0.113.9"})
            until(lambda: len(caplog.messages) == 1)
    finally:
        place.server.stop()
    assert caplog.messages[0].split()[1] == client  # what a client puts before it counts nowhere


def test_a_trusted_proxy_may_reach_a_daemon_that_listens_on_both_families(caplog: pytest.LogCaptureFixture) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    place = Place(HttpSettings(port=0, host="::", operator_token="may-do-something", trusted_proxies=("127.0.0.0/8",)))  # type: ignore[arg-type]
    try:
        with caplog.at_level(logging.INFO, "retuned.access"):
            for headers in ({}, {"X-Forwarded-For": "203.0.113.9"}):
                httpx.get(f"http://127.0.0.1:{place.port}/api/v1/status", headers=headers)
            until(lambda: len(caplog.messages) == 2)
    finally:
        place.server.stop()
    assert [message.split()[1] for message in caplog.messages] == ["127.0.0.1", "203.0.113.9"]


# Pages of other sites


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost:8321", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://LOCALHOST:8321"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://localhost:8321", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_a_page_of_another_site_commands_nothing(daemon: FakeDaemon, headers: dict[str, str], status: int) -> None:
    with client(daemon) as browser:
        assert browser.post(ROLLBACK, json={}, headers=headers).status_code == status
        assert len(daemon.commands) == (status == 200)
        assert browser.get("/", headers=headers).status_code == 200  # a link from another page


@pytest.mark.parametrize(
    ("http", "answered", "refused"),
    [
        ({}, ["localhost", "127.0.0.1:8321", "[::1]:8321"], ["evil.example", "retuned.example.com", ""]),
        (
            {"hosts": ["retuned.example.com", "*.internal"]},
            ["retuned.example.com", "RETUNED.example.com:443", "a.internal", "localhost"],
            ["evil.example", "internal.evil.example", "xretuned.example.com"],
        ),
        ({"host": "0.0.0.0", "operator_token": "may-do-something"}, ["anything.example", "10.0.0.7"], []),
        (
            {"host": "0.0.0.0", "operator_token": "may-do-something", "hosts": ["retuned.example.com"]},
            ["retuned.example.com", "127.0.0.1"],
            ["anything.example"],
        ),
    ],
)
def test_names_by_which_the_server_is_asked(
    daemon: FakeDaemon, http: dict[str, Any], answered: list[str], refused: list[str]
) -> None:
    with client(daemon, **http) as asked:
        for status, names in ((200, answered), (400, refused)):
            for name in names:
                assert asked.get("/healthz", headers={"Host": name}).status_code == status, name


@pytest.mark.parametrize("address", ["10.1.2.3:8321", "10.1.2.3", "[fd00::7]:8321"])
def test_probes_and_scrapers_ask_by_address_and_pages_are_shown_by_name(daemon: FakeDaemon, address: str) -> None:
    own = {"host": "::", "operator_token": "may-do-something", "metrics_token": "may-only-scrape-this"}
    with client(daemon, **own, hosts=["retuned.example.com"]) as asked:
        headers = {"Host": address, **bearer("may-only-scrape-this")}
        for path in ("/healthz", "/readyz", "/metrics"):
            assert asked.get(path, headers=headers).status_code == 200, path
            # A name that resolves to this machine is what a page of another site is asked by.
            for name in ("evil.example", "10.1.2.3.evil.example", f"{address}.evil.example", "", "[", "10.1.2.3@evil"):
                assert asked.get(path, headers=headers | {"Host": name}).status_code == 400, name
        assert asked.get("/metrics", headers={"Host": address}).status_code == 401
        for path in ("/sign-in", "/", "/api/v1/status", "/healthz/", "/static/console.css"):
            assert asked.get(path, headers=headers).status_code == 400, path


def test_browsers_are_told_to_be_careful(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.reports = tmp_path
    (tmp_path / "r1.html").write_text("<html>")
    with client(daemon) as browser:
        for path in ("/", "/reports/r1", "/api/v1/status", "/metrics", "/nowhere", "/reports/none"):
            answer = browser.get(path)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["X-Frame-Options"] == "DENY"
            assert answer.headers["Cache-Control"] == "no-store"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        policy = browser.get("/").headers["Content-Security-Policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy


# Who did what


def test_each_request_is_one_line_with_who_and_without_secrets(
    guarded: TestClient, tokens: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "retuned.access")
    operator = bearer(tokens["operator"])
    guarded.post(ROLLBACK, json={"reason": "rude"}, headers=operator)
    guarded.get("/api/v1/dead-letters?reason=a-secret", headers=operator)
    guarded.get("/api/v1/lineage/a%20b%1B", headers=operator)
    guarded.get("/api/v1/status", headers=bearer("a-wrong-token-of-somebody"))
    guarded.get("/api/v1/exports/ledger", headers=bearer(tokens["viewer"]))
    guarded.get("/nowhere/" + "x" * 5_000)
    for path in ("/healthz", "/readyz", "/metrics", "/api/v1/routes"):
        guarded.get(path, headers=bearer(tokens["metrics"]))
    guarded.get("/metrics")
    lines = [record.getMessage() for record in caplog.records if record.name == "retuned.access"]
    assert [re.sub(r" \d+\.\d{3} s$", "", line)[:60] for line in lines] == [
        f"the-operator 10.0.0.7 POST {ROLLBACK} 200"[:60],
        "the-operator 10.0.0.7 GET /api/v1/dead-letters 200",
        "the-operator 10.0.0.7 GET /api/v1/lineage/a%20b%1B 200",
        "- 10.0.0.7 GET /api/v1/status 401",
        "the-viewer 10.0.0.7 GET /api/v1/exports/ledger 403",
        f"- 10.0.0.7 GET /nowhere/{'x' * 60}"[:60],
        "- 10.0.0.7 GET /metrics 401",
    ]
    assert all(len(line) < 400 for line in lines)
    text = "\n".join(lines)
    assert not any(secret in text for secret in (*tokens.values(), "a-secret", "a-wrong-token"))


def test_a_command_is_told_who_asks_for_it(guarded: TestClient, tokens: dict[str, str], daemon: FakeDaemon) -> None:
    guarded.post(ROLLBACK, json={}, headers=bearer(tokens["admin"]))
    with client(daemon) as anybody:
        anybody.post(ROLLBACK, json={})
        assert anybody.post(ROLLBACK, json={"asked_by": "somebody else"}).status_code == 400
    assert [arguments["asked_by"] for arguments in daemon.commands] == ["the-admin", None]


# One computation for all


def many() -> httpx.Client:
    """For many requests at once."""
    return httpx.Client(limits=httpx.Limits(max_connections=100), timeout=30)


def test_the_status_is_computed_once_for_all_who_ask_and_anew_after_a_change(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "Recent", lambda compute, _: Recent(compute, 600.0))
    computed: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def status() -> Any:
        computed.append(1)
        begun.set()
        assert go_on.wait(20)
        return daemon.found | {"version": str(len(computed))}

    daemon.status = status  # type: ignore[method-assign]
    made = Place(HttpSettings(port=0), daemon)
    try:
        with ThreadPoolExecutor(60) as pool, many() as browsers:
            asked = [pool.submit(browsers.get, f"{made.url}/api/v1/status") for _ in range(60)]
            assert begun.wait(20)
            assert made.well()  # while all of them wait
            assert httpx.get(f"{made.url}/metrics", timeout=20).status_code == 200
            assert httpx.get(f"{made.url}/api/v1/labels", timeout=20).status_code == 200
            go_on.set()
            assert {one.result().json()["version"] for one in asked} == {"1"}
        assert httpx.post(made.command, json={}).status_code == 200
        assert httpx.get(f"{made.url}/api/v1/status").json()["version"] == "2"
    finally:
        go_on.set()
        made.server.stop()


def test_a_result_is_given_again_for_a_while_however_long_it_took() -> None:
    clock, results = Clock(), iter(range(10))

    def compute() -> int:
        clock.now += 5
        return next(results)

    async def ask() -> None:
        recent = Recent(compute, 2.0, clock)
        assert [await recent.get() for _ in range(3)] == [0, 0, 0]
        clock.now += 1.9
        assert await recent.get() == 0
        clock.now += 0.1
        assert await recent.get() == 1
        recent.outdate()
        assert [await recent.get() for _ in range(2)] == [2, 2]

    anyio.run(ask)


def test_what_changes_while_a_result_is_computed_outdates_it() -> None:
    async def ask() -> None:
        recent = Recent(lambda: recent.outdate() or next(results), 600.0)
        results = iter(range(10))
        assert [await recent.get() for _ in range(2)] == [0, 1]

    anyio.run(ask)


def test_slow_answers_do_not_hold_up_health(daemon: FakeDaemon) -> None:
    go_on, waiting = threading.Event(), threading.Semaphore(0)

    def lineage(id: str) -> Any:  # noqa: ARG001
        waiting.release()
        assert go_on.wait(20)
        return daemon.found

    daemon.lineage = lineage  # type: ignore[method-assign]
    made = Place(HttpSettings(port=0), daemon)
    try:
        with ThreadPoolExecutor(60) as pool, many() as browsers:
            asked = [pool.submit(browsers.get, f"{made.url}/api/v1/lineage/x") for _ in range(60)]
            for _ in range(40):  # threads that Starlette has
                assert waiting.acquire(timeout=20)
            assert made.well()
            assert httpx.get(f"{made.url}/metrics", timeout=20).status_code == 200
            go_on.set()
            assert {one.result().status_code for one in asked} == {200}
    finally:
        go_on.set()
        made.server.stop()


def test_a_broken_file_of_principals_is_in_the_status(daemon: FakeDaemon, tokens: dict[str, str], file: Path) -> None:
    headers = bearer(tokens["viewer"])
    made = Place(HttpSettings(port=0, principals_file=file), daemon)
    try:
        file.write_text("principals: nobody")
        (warning,) = httpx.get(f"{made.url}/api/v1/status", headers=headers).json()["warnings"]
        assert str(file) in warning
        assert str(file) in httpx.get(made.url, headers=headers).text
        assert httpx.get(f"{made.url}/readyz").status_code == 200
        assert made.well()
    finally:
        made.server.stop()
