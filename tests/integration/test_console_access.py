"""Sessions of browsers, and principals who are bound to workloads, on a warehouse of several."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from fixtures.daemon.doors import FakeDaemon
from fixtures.worlds.fleet import fill
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.settings import Settings
from retuned.daemon.web import principals
from retuned.daemon.web.routes import ROUTES, application
from retuned.daemon.web.sessions import COOKIE, Sessions

HOST = "http://localhost:8321"
SECONDS = 12 * 3600
PAGE = {"Accept": "text/html", "Origin": HOST}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "principals.yaml"
    principals.add(made, "root", "admin", None, datetime.now(UTC))
    return made


@pytest.fixture
def service(tmp_path: Path, file: Path) -> Iterator[Local]:
    settings = Settings(
        warehouse={"path": tmp_path / "w.duckdb"},
        models={"directory": tmp_path / "models"},
        http={"principals_file": file},
        kafka={"expert_topic": "experts"},
    )
    with opened(settings) as made:
        made.jobs.context.publisher = MemoryPublisher()
        fill(made.warehouse, utc_now(), workloads=10, events=200)
        yield made


@pytest.fixture
def names(service: Local) -> list[str]:
    return [row["workload"] for row in service.warehouse.rows("SELECT DISTINCT workload FROM interactions ORDER BY 1")]


def token(file: Path, name: str, role: str, *workloads: str) -> str:
    return principals.add(file, name, cast(Any, role), None, datetime.now(UTC), workloads or None)


def browser(service: Local, host: str = HOST) -> TestClient:
    app = application(service, cast(Any, FakeDaemon()), service.settings)
    return TestClient(app, host, headers={"Accept": "text/html"}, follow_redirects=False)


def sign_in(client: TestClient, secret: str, **more: str) -> Any:
    return client.post("/sign-in", data={"token": secret, **more})


# Sessions


def test_a_browser_is_led_to_sign_in_and_back(service: Local, file: Path) -> None:
    secret = token(file, "ada", "labeller")
    client = browser(service)
    asked = client.get("/teach?item=l1-0")
    assert (asked.status_code, asked.headers["location"]) == (303, "/sign-in?next=%2Fteach%3Fitem%3Dl1-0")
    page = client.get(asked.headers["location"])
    assert 'value="/teach?item=l1-0"' in page.text
    assert "script-src 'self';" in page.headers["Content-Security-Policy"]
    wrong = sign_in(client, "retuned_not-the-token-at-all")
    assert (wrong.status_code, "The token is unknown, or has expired." in wrong.text) == (401, True)
    assert COOKIE not in client.cookies
    begun = sign_in(client, secret, next="/teach?item=l1-0")
    assert (begun.status_code, begun.headers["location"]) == (303, "/teach?item=l1-0")
    cookie = begun.headers["set-cookie"]
    for flag in ("HttpOnly", "SameSite=strict", f"Max-Age={SECONDS}", "Path=/"):
        assert flag in cookie
    assert "Secure" not in cookie
    assert secret not in cookie
    assert "Sign out" in client.get("/teach").text
    assert client.get("/api/v1/exports/ledger").status_code == 403, "a session has the role of its principal"
    assert "Secure" in sign_in(browser(service, "https://localhost:8321"), secret).headers["set-cookie"]
    assert client.get("/api/v1/labels", headers={"Cookie": ""}).status_code == 401


def test_a_link_in_a_message_leads_to_its_page_though_no_strict_cookie_comes_along(service: Local, file: Path) -> None:
    client = browser(service)
    sign_in(client, token(file, "ada", "labeller"))
    page = client.get("/teach?item=l1-0", headers={"Cookie": "", "Sec-Fetch-Site": "cross-site"})
    assert page.status_code == 200
    assert '<meta http-equiv="refresh" content="0; url=/teach?item=l1-0">' in page.text
    assert "Sign out" in client.get("/teach?item=l1-0", headers={"Sec-Fetch-Site": "same-origin"}).text
    known = client.get("/teach", headers={"Cookie": "", "Sec-Fetch-Site": "same-origin"})
    assert (known.status_code, known.headers["location"]) == (303, "/sign-in?next=%2Fteach")
    strange = client.get(f"{HOST}//evil.example/", headers={"Cookie": "", "Sec-Fetch-Site": "cross-site"})
    assert "evil.example" not in strange.text


@pytest.mark.parametrize(
    "where", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", "/\n/x"]
)
def test_a_link_to_sign_in_leads_to_no_other_site(service: Local, file: Path, where: str) -> None:
    assert sign_in(browser(service), token(file, "vera", "viewer"), next=where).headers["location"] == "/"


def test_who_signs_out_is_out_even_with_the_old_cookie(service: Local, file: Path) -> None:
    client = browser(service)
    sign_in(client, token(file, "vera", "viewer"))
    old = client.cookies[COOKIE]
    assert client.get("/").status_code == 200
    assert client.post("/sign-out", headers={"Origin": HOST}).headers["location"] == "/sign-in"
    assert client.get("/").status_code == 303
    assert client.get("/", headers={"Cookie": f"{COOKIE}={old}"}).status_code == 303


def test_a_session_ends_with_its_token(service: Local, file: Path) -> None:
    client = browser(service)
    sign_in(client, token(file, "vera", "viewer"))
    assert client.get("/").status_code == 200
    principals.revoke(file, "vera", datetime.now(UTC))
    assert client.get("/").status_code == 303
    token(file, "vera", "admin")
    assert client.get("/").status_code == 303, "the name is that of another token now"


def test_a_session_ends_in_time_and_cannot_be_made_longer(service: Local, file: Path) -> None:
    token(file, "vera", "viewer")
    known = principals.Principals(service.settings.http)
    now = datetime.now(UTC)
    (vera,) = known.named("vera", now)
    keyed = service.settings.http.model_copy(update={"session_key": SecretStr("a-key-of-some-length")})
    sessions, others = Sessions(known, keyed), Sessions(known, service.settings.http)
    cookie = sessions.begin(vera, now)
    assert sessions.find(cookie, now) == vera
    assert Sessions(known, keyed).find(cookie, now) == vera, "of another daemon with the same key"
    assert others.find(cookie, now) is None
    assert sessions.find(cookie, now + timedelta(seconds=SECONDS + 1)) is None
    name, ends, signature = cookie.split("~")
    for forged in (
        f"{name}~{int(ends) + 9}~{signature}",
        f"otto~{ends}~{signature}",
        f"{name}~{ends}~é",
        "",
        "~",
        "~1~",
    ):
        assert sessions.find(forged, now) is None


def test_a_change_in_a_session_comes_from_a_page_of_this_server(service: Local, file: Path) -> None:
    client = browser(service)
    sign_in(client, token(file, "ada", "labeller"))
    item = client.get("/api/v1/inbox").json()["items"][0]["request_id"]
    form = {"verdict": "helpful yes"}
    assert client.post(f"/labels/{item}", data=form).status_code == 403
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.post(f"/labels/{item}", data=form, headers=headers).status_code == 403
    assert client.post(f"/api/v1/labels/{item}", json={"name": "helpful", "value": True}).status_code == 403
    assert service.jobs.context.publisher.messages == []  # type: ignore[attr-defined]
    assert client.post(f"/labels/{item}", data=form, headers={"Origin": HOST}).status_code == 303
    assert len(service.jobs.context.publisher.messages) == 1  # type: ignore[attr-defined]


def test_without_principals_nobody_signs_in(tmp_path: Path) -> None:
    with opened(Settings(warehouse={"path": tmp_path / "w.duckdb"})) as local:
        client = browser(local)
        assert client.get("/").status_code == 200
        assert client.get("/sign-in").headers["location"] == "/"


# Principals of some workloads


@pytest.mark.full
def test_who_is_bound_to_workloads_is_shown_no_other(service: Local, file: Path, names: list[str]) -> None:
    """Whatever the role and whatever is asked; on pages and by the API."""
    own, others = names[0], names[1:]
    client = browser(service)
    client.headers["Authorization"] = f"Bearer {token(file, 'otto', 'admin', own)}"
    rows = service.warehouse.rows("SELECT workload, min(id) AS id FROM interactions GROUP BY ALL")
    interactions = {row["workload"]: row["id"] for row in rows}
    values = {"what": "interactions", "version": "3f2a91c0", "name": "console.css", "before": "d1", "after": "d2"}
    seen, refused = [], []
    for route in ROUTES:
        if route.method != "GET" or route.path == "/events":
            continue
        for workload in (own, others[0]):
            known = values | {"workload": workload, "id": interactions[workload]}
            path = re.sub(r"{(\w+)}", lambda found, known=known: known[found[1]], route.path)
            answer = client.get(path)
            assert not [name for name in others if name in answer.text], (path, answer.text)
            (refused if answer.status_code == 403 else seen).append(path)
            if "{workload}" in route.path or "/interactions/" in route.path:
                assert (answer.status_code == 403) == (workload != own), (path, answer.text)
    for path in ("/", "/teach", f"/workloads/{own}", "/answers", "/api/v1/overview", "/api/v1/labels", "/api/v1/inbox"):
        assert path in seen
        assert own in client.get(path).text or path in ("/teach", "/api/v1/labels", "/api/v1/inbox")
    for path in ("/system", "/metrics", "/api/v1/status", "/api/v1/dead-letters", "/api/v1/exports/interactions"):
        assert path in refused


def test_who_is_bound_to_workloads_sees_no_answer_of_an_expert_to_others(service: Local, file: Path) -> None:
    """Also not their own of before, when they were bound to other workloads."""
    requests = {row["workload"]: row["id"] for row in service.warehouse.rows("SELECT workload, id FROM label_requests")}
    own, other = sorted(requests)[:2]
    client, answer = browser(service), {"name": "helpful", "value": True}
    for workload in (own, other):
        client.headers["Authorization"] = f"Bearer {token(file, 'ada', 'labeller', workload)}"
        assert client.post(f"/api/v1/labels/{requests[workload]}", json=answer).status_code == 200
        principals.revoke(file, "ada", datetime.now(UTC))
    client.headers["Authorization"] = f"Bearer {token(file, 'ada', 'labeller', own)}"
    assert [one["workload"] for one in client.get("/api/v1/inbox/mine").json()] == [own]
    assert client.get("/api/v1/inbox").json()["today"] == {"ada": 1}
    for path in ("/teach/mine", f"/teach?saved={requests[other]}"):
        assert other not in client.get(path).text
    client.headers["Authorization"] = f"Bearer {token(file, 'otto', 'operator')}"
    assert client.get("/api/v1/inbox").json()["today"] == {"ada": 2}


def test_who_is_bound_to_workloads_changes_nothing_of_others(service: Local, file: Path) -> None:
    requests = {row["workload"]: row["id"] for row in service.warehouse.rows("SELECT workload, id FROM label_requests")}
    own, other = sorted(requests)[:2]
    client = browser(service)
    client.headers["Authorization"] = f"Bearer {token(file, 'ada', 'admin', own)}"
    answer = {"name": "helpful", "value": True}
    assert client.post(f"/api/v1/labels/{requests[other]}", json=answer).status_code == 403
    assert client.post(f"/api/v1/labels/{requests[other]}/work", json={"state": "skipped"}).status_code == 403
    assert client.post(f"/labels/{requests[other]}", data={"verdict": "helpful yes"}).status_code == 403
    for route in ROUTES:
        if route.method == "POST" and route.path.startswith("/api/v1/workloads/"):
            path = route.path.replace("{workload}", other)
            body = {"version": "v", "reason": "r", "run": "r"}
            assert client.post(path, json=body).status_code in (400, 403), path
    for path in ("training/pause", "dead-letters/replay", "accounts", "backup"):
        body = {"accounts": {"action": "ban", "account": "a", "reason": "r"}, "backup": {"folder": "/tmp/x"}}.get(
            path, {}
        )
        assert client.post(f"/api/v1/{path}", json=body).status_code == 403, path
    assert service.jobs.context.publisher.messages == []  # type: ignore[attr-defined]
    assert service.warehouse.rows("SELECT * FROM label_work") == []
    assert client.post(f"/api/v1/labels/{requests[own]}", json=answer).status_code == 200


def test_a_glob_binds_to_all_that_it_matches(service: Local, file: Path, names: list[str]) -> None:
    client = browser(service)
    client.headers["Authorization"] = f"Bearer {token(file, 'ada', 'labeller', 'support.*', 'hr.*')}"
    found = {one["facts"]["workload"] for one in client.get("/api/v1/overview").json()["workloads"]}
    assert found == {name for name in names if name.startswith(("support.", "hr."))}
    renewed = principals.rotate(file, "ada", None, datetime.now(UTC))
    client.headers["Authorization"] = f"Bearer {renewed}"
    assert len(client.get("/api/v1/overview").json()["workloads"]) == len(found), "another token is bound, too"
