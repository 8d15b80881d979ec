"""The console over HTTP: what each role sees, and what experts who teach at the same time make of a request."""

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from doors import FakeDaemon
from fleet import fill
from starlette.testclient import TestClient

from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse import answer_minutes
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.settings import Settings
from retuned.daemon.web.principals import add
from retuned.daemon.web.recent import Recent
from retuned.daemon.web.routes import application
from retuned.retrain.data import label_requests

NOW = datetime(2026, 3, 30, 9, 0, 0)
STATIC = Path(__file__).parents[2] / "daemon" / "console" / "static"
ROLES = {"vera": "viewer", "ada": "labeller", "ben": "labeller", "cleo": "labeller", "otto": "operator"}
FALLS, UNRATED, APPROVAL = 3, 7, 5
"""Numbers of workloads of the fleet: quality fell, nobody rates, a version waits for approval."""


@pytest.fixture(params=[1])
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Local]:
    settings = Settings(
        warehouse={"path": tmp_path / "w.duckdb"},
        models={"directory": tmp_path / "models"},
        http={"principals_file": tmp_path / "principals.yaml"},
        workloads={"*": {"labels": {"opinions": request.param}}},
        kafka={"expert_topic": "experts"},
    )
    with opened(settings) as made:
        made.jobs.context.now = lambda: NOW
        made.jobs.context.publisher = MemoryPublisher()
        fill(made.warehouse, NOW, workloads=10, events=2_000)
        yield made


@pytest.fixture
def clients(service: Local) -> dict[str, TestClient]:
    file = service.settings.http.principals_file
    assert file is not None
    tokens = {name: add(file, name, cast(Any, role), None, datetime.now(UTC)) for name, role in ROLES.items()}
    app = application(service, cast(Any, FakeDaemon()), service.settings)
    return {
        name: TestClient(
            app,
            "http://localhost:8321",
            headers={"Authorization": f"Bearer {token}"},
            follow_redirects=False,
        )
        for name, token in tokens.items()
    }


def names(service: Local) -> list[str]:
    return [
        row["workload"]
        for row in service.warehouse.rows("SELECT DISTINCT workload FROM quality ORDER BY split_part(workload, '-', 2)")
    ]


def published(service: Local) -> list[tuple[str, Any, str | None]]:
    """Name and value of each event, and who sent it."""
    publisher = service.jobs.context.publisher
    assert isinstance(publisher, MemoryPublisher)
    return [(one["name"], one["value"], one.get("user_id")) for _, _, one in publisher.messages]


def test_the_overview_begins_with_what_needs_a_person(service: Local, clients: dict[str, TestClient]) -> None:
    page = clients["vera"].get("/").text
    of = names(service)
    assert "3 of 10 workloads need you" in page
    places = [page.index(f'/workloads/{of[number]}"') for number in (FALLS, APPROVAL, UNRATED)]
    assert places == sorted(places)
    assert "fell on Friday" in page
    found = clients["vera"].get("/api/v1/overview").json()
    assert [one["finding"]["level"] for one in found["workloads"][:3]] == ["bad", "warn", "warn"]
    assert clients["vera"].get("/?show=unrated").text.count('<th scope="row"') == 1


def test_the_overview_counts_each_answer_once(clients: dict[str, TestClient]) -> None:
    for _ in range(2):
        found = clients["vera"].get("/api/v1/overview").json()["workloads"]
        assert {one["facts"]["answers"] for one in found} == {200}


def test_what_was_accepted_is_no_drift_any_more(service: Local, clients: dict[str, TestClient]) -> None:
    workload = names(service)[FALLS]
    service.warehouse.execute("DELETE FROM quality")
    assert "Drift found today" in clients["vera"].get("/").text
    service.warehouse.insert(
        "drift_references",
        workload=workload,
        created_at=NOW,
        start=NOW - timedelta(days=1),
        actor="otto",
        reason="a sale",
    )
    service.jobs.context.now = lambda: NOW + timedelta(hours=1)
    clients["otto"].post("/api/v1/dead-letters/replay", json={})  # a command outdates what is kept
    page = clients["vera"].get("/").text
    assert "Drift found" not in page
    assert "as otto accepted" in clients["vera"].get(f"/workloads/{workload}").text


@pytest.mark.parametrize(
    ("path", "least"),
    [("/", "vera"), ("/workloads/{w}", "vera"), ("/system", "vera"), ("/teach", "ada"), ("/teach/mine", "ada"),
     ("/answers", "otto"), ("/workloads/{w}/rows", "otto"), ("/workloads/{w}/memory", "otto")],
)  # fmt: skip
def test_a_page_is_for_those_who_have_the_role(
    service: Local, clients: dict[str, TestClient], path: str, least: str
) -> None:
    order = list(ROLES)
    for name, client in clients.items():
        answer = client.get(path.format(w=names(service)[FALLS]))
        assert answer.status_code == (200 if order.index(name) >= order.index(least) else 403), (name, answer.text)
        if answer.status_code == 200:
            assert answer.headers["Content-Security-Policy"].startswith(
                "default-src 'none'; style-src 'self'; script-src 'self'"
            )
            assert ('href="/answers"' in answer.text) == (name == "otto")
            assert ("/teach" in answer.text) == (name != "vera")


def test_pages_hold_no_inline_script_or_style(service: Local, clients: dict[str, TestClient]) -> None:
    workload = names(service)[FALLS]
    for path in ("/", f"/workloads/{workload}", "/teach", "/answers", "/system", f"/workloads/{workload}/rows",
                 f"/workloads/{workload}/memory"):  # fmt: skip
        text = clients["otto"].get(path).text
        assert " style=" not in text
        assert " onclick=" not in text
        assert text.count("<script") == text.count('<script src="/static/')


def test_a_workload_shows_its_history_and_dates_choose_it(service: Local, clients: dict[str, TestClient]) -> None:
    path = f"/workloads/{names(service)[FALLS]}"
    page = clients["vera"].get(path).text
    assert "<polyline" in page
    assert "About 23%" in page
    old = clients["vera"].get(f"{path}?since=2026-03-05&until=2026-03-10").text
    assert "5 Mar" in old
    year = clients["vera"].get(f"/api/v1{path}/history?range=90d").json()
    assert year["frame"]["start"][:10] == (NOW - timedelta(days=27)).date().isoformat(), "of 28 days with figures"
    assert "28 Mar" not in old.replace("30 Mar", "")
    assert clients["vera"].get(f"{path}?since=yesterday").status_code == 400
    assert clients["vera"].get("/workloads/nothing").status_code == 404


def test_answers_are_found_by_text_rating_and_day(service: Local, clients: dict[str, TestClient]) -> None:
    workload, otto = names(service)[0], clients["otto"]
    found = otto.get("/api/v1/answers", params={"workload": workload, "text": "ORDER 17 "}).json()
    assert [one["question"] for one in found["answers"]] == ["How long does the refund of order 17 take?"]
    assert len(otto.get("/api/v1/answers").json()["answers"]) == 50
    assert otto.get("/api/v1/answers").json()["more"]
    assert otto.get("/api/v1/answers", params={"rating": "helpful"}).json()["answers"] == []
    assert otto.get("/api/v1/answers", params={"since": "2026-04-02"}).json()["answers"] == []
    assert otto.get("/api/v1/answers", params={"segment": "country"}).status_code == 400
    page = otto.get("/answers", params={"workload": workload, "text": "order 17 "}).text
    assert "How long does the refund of order 17 take?" in page


def test_an_expert_answers_and_gets_the_next(service: Local, clients: dict[str, TestClient]) -> None:
    ada = clients["ada"]
    first = ada.get("/api/v1/inbox").json()
    item = first["items"][0]["interaction_id"]
    assert (first["expert"], first["waiting"]) == ("ada", 60)
    page = ada.get("/teach").text
    assert "People called it wrong" in page
    answer = ada.post(
        f"/labels/{item}", data={"verdict": "correction", "correction": " Within 14 days. ", "comment": "new terms"}
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/teach")
    assert published(service) == [("correction", "Within 14 days.", "ada"), ("comment", "new terms", "ada")]
    then = ada.get("/api/v1/inbox").json()
    assert then["waiting"] == 59
    assert item not in [one["interaction_id"] for one in then["items"]]
    assert then["today"] == {"ada": 1}
    mine = ada.get("/teach/mine").text
    assert "<ins>" in mine
    ada.post(f"/labels/{item}", data={"verdict": "correction", "correction": "Within 30 days."})
    assert published(service)[-1] == ("correction", "Within 30 days.", "ada")
    assert clients["ben"].post(f"/labels/{item}", data={"verdict": "helpful yes"}).status_code == 303


def test_what_experts_did_goes_with_its_request(service: Local, clients: dict[str, TestClient]) -> None:
    first, second = (one["request_id"] for one in clients["ada"].get("/api/v1/inbox").json()["items"][:2])
    for item in (first, second):
        clients["ada"].post(f"/labels/{item}", data={"action": "skip"})
    service.warehouse.execute(
        "DELETE FROM interactions WHERE id = (SELECT interaction_id FROM label_requests WHERE id = ?)", [first]
    )
    label_requests.forget(service.warehouse, names(service), NOW + timedelta(days=1))
    assert [row["request_id"] for row in service.warehouse.rows("SELECT request_id FROM label_work")] == [second]


def test_what_is_skipped_comes_last_and_what_another_claimed_does_not_come(
    service: Local, clients: dict[str, TestClient]
) -> None:
    ada, ben = clients["ada"], clients["ben"]
    first, second = (one["request_id"] for one in ada.get("/api/v1/inbox").json()["items"][:2])
    ada.post(f"/labels/{first}", data={"action": "skip"})
    assert ada.get("/api/v1/inbox").json()["items"][0]["request_id"] == second
    assert ada.get("/api/v1/inbox").json()["waiting"] == 60
    assert ben.get("/api/v1/inbox").json()["items"][0]["request_id"] == first
    assert ben.post(f"/api/v1/labels/{first}/work", json={"state": "claimed"}).status_code == 200
    assert ada.get("/api/v1/inbox").json()["by_status"]["skipped"] == 1
    assert clients["cleo"].get("/api/v1/inbox").json()["items"][0]["request_id"] == second
    assert ada.post("/api/v1/labels/nothing/work", json={"state": "claimed"}).status_code == 404
    assert published(service) == []


@pytest.mark.parametrize("service", [2], indirect=True)
def test_two_experts_must_agree_and_a_third_decides(service: Local, clients: dict[str, TestClient]) -> None:
    item = clients["ada"].get("/api/v1/inbox").json()["items"][0]["interaction_id"]

    def answer(name: str, value: str) -> str:
        found = clients[name].post(f"/api/v1/labels/{item}", json={"name": "correction", "value": value})
        assert found.status_code == 200, found.text
        return str(found.json()["done"])

    assert answer("ada", "Within 14 days.") == "another expert's answer is awaited"
    assert published(service) == []
    assert item not in [one["interaction_id"] for one in clients["ada"].get("/api/v1/inbox").json()["items"]]
    assert answer("ben", "Within 30 days.") == "experts differ; one more decides"
    assert published(service) == []
    shown = clients["cleo"].get("/api/v1/inbox").json()["items"]
    assert next(one["status"] for one in shown if one["interaction_id"] == item) == "disputed"
    assert "experts differ" in clients["cleo"].get("/teach").text
    answer("cleo", "within 14  days.")
    assert published(service) == [("correction", "within 14  days.", "cleo")]
    assert clients["ada"].get("/api/v1/inbox").json()["agreement"] == [0, 1]


def test_a_broker_that_is_away_loses_no_answer(
    service: Local, clients: dict[str, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    from retuned.consumers.errors import BrokerUnavailable

    item = clients["ada"].get("/api/v1/inbox").json()["items"][0]["interaction_id"]

    def away(*_: Any) -> None:
        raise BrokerUnavailable("kafka: does not answer")

    monkeypatch.setattr(service.jobs.context.publisher, "publish", away)
    refused = clients["ada"].post(f"/labels/{item}", data={"verdict": "correction", "correction": "Within 14 days."})
    assert refused.status_code == 503
    assert "does not answer" in refused.text
    assert clients["ada"].get("/api/v1/inbox").json()["items"][0]["interaction_id"] == item


def test_a_stranger_to_the_files_of_the_console_finds_none_beside_them(clients: dict[str, TestClient]) -> None:
    for name, media in (
        ("console.css", "text/css"),
        ("console.js", "text/javascript"),
        ("htmx.min.js", "text/javascript"),
    ):
        answer = clients["vera"].get(f"/static/{name}", headers={"Authorization": ""})
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, media)
    for path in ("/static/nothing.js", "/static/..%2f__init__.py", "/static/../__init__.py", "/static/"):
        assert clients["vera"].get(path).status_code == 404


def test_vendored_files_are_what_their_list_states() -> None:
    listed = re.findall(r"\| `(\S+)` \|.*\| `([0-9a-f]{64})` \|", (STATIC / "VENDORED.md").read_text())
    assert [name for name, _ in listed] == ["htmx.min.js"]
    for name, digest in listed:
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest


def test_the_overview_takes_as_many_queries_for_ten_workloads_as_for_one(
    service: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retuned.daemon.console import overview

    count = 0
    rows = service.warehouse.rows

    def counted(*given: Any) -> Any:
        nonlocal count
        count += 1
        return rows(*given)

    monkeypatch.setattr(service.warehouse, "rows", counted)
    overview.facts(service.warehouse, names(service), NOW)
    assert count - 1 == 10  # `names` is one


def test_a_page_that_follows_asks_the_warehouse_nothing_for_itself(
    service: Local, clients: dict[str, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten open tabs cost what one costs: snapshots that all share."""
    monkeypatch.setattr(Recent.__init__, "__defaults__", (lambda: 0.0,))  # no snapshot grows old meanwhile
    app = application(service, cast(Any, FakeDaemon()), service.settings)
    client = TestClient(app, "http://localhost:8321", headers=dict(clients["vera"].headers))
    path, live = f"/workloads/{names(service)[FALLS]}", {"HX-Request": "true", "HX-Target": "live"}
    whole = client.get(path).text
    asked: list[str] = []

    def counted(answer: Any) -> Any:
        def of(sql: str, *more: Any) -> Any:
            asked.append(sql)
            return answer(sql, *more)

        return of

    for method in ("rows", "row"):
        monkeypatch.setattr(service.warehouse, method, counted(getattr(service.warehouse, method)))
    part = client.get(path, headers=live).text
    assert asked == []
    assert " ".join(part.split()) in " ".join(whole.split())
    assert "Helpful" in part
    assert client.get("/workloads/nothing", headers=live).status_code == 404


def test_names_of_strangers_are_text(service: Local, clients: dict[str, TestClient]) -> None:
    name = "a <b>/../ & c"
    service.warehouse.execute("UPDATE quality SET workload = ? WHERE workload = ?", [name, names(service)[FALLS]])
    answer_minutes.follow(service.warehouse)
    service.warehouse.execute("UPDATE answer_minutes SET workload = ? WHERE workload LIKE '%-3'", [name])
    page = clients["otto"].get("/").text
    assert "a &lt;b&gt;/../ &amp; c" in page
    assert "/workloads/a%20%3Cb%3E/../%20%26%20c" in page or "/workloads/a%20%3Cb%3E%2F..%2F%20%26%20c" in page
    assert json.dumps(name) not in page
