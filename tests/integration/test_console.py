"""The console over HTTP: what each role sees, and what experts who teach at the same time make of a request."""

import hashlib
import html
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from fixtures.daemon.doors import FakeDaemon
from fixtures.worlds.fleet import fill
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse import answer_minutes
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.settings import Settings
from retuned.daemon.web.principals import add
from retuned.daemon.web.recent import Recent
from retuned.daemon.web.routes import PAGES, application
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
    assert "2 of 10 workloads need you" in page, "an approval needs an operator"
    assert "3 of 10 workloads need you" in clients["otto"].get("/").text
    places = [page.index(f'/workloads/{of[number]}"') for number in (FALLS, UNRATED, APPROVAL)]
    assert places == sorted(places)
    assert "fell on Friday, 27 Mar 10:00 UTC" in page, "the first figure below the interval of a week before"
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
    assert "Drift found today 08:00 UTC" in clients["vera"].get("/").text
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


@pytest.mark.parametrize(
    ("query", "problem"),
    [("since=foo", "since: expected a text such as 2027-01-31, got &#39;foo&#39;"),
     ("since=2026-02-31", "such as 2027-01-31"),
     ("rating=zz", "rating: expected"), ("page=-1", "page: expected a number from 0 to 1000"), ("page=zz", "a number"),
     ("segment=foo", "expected name=value"), ("nothing=1", "nothing: unknown")],
)  # fmt: skip
def test_a_search_that_cannot_be_read_is_refused_on_a_page(
    clients: dict[str, TestClient], query: str, problem: str
) -> None:
    answer = clients["otto"].get(f"/answers?{query}", headers={"Accept": "text/html"})
    assert (answer.status_code, problem in answer.text) == (400, True), answer.text
    assert 'href="/answers"' in answer.text


def test_an_export_holds_what_the_search_finds_or_is_not_offered(
    service: Local, clients: dict[str, TestClient]
) -> None:
    workload, link = names(service)[FALLS], re.compile(r'href="(/api/v1/exports/interactions[^"]*)"')

    def exported(**query: str) -> set[str] | None:
        found = link.search(clients["otto"].get("/answers", params=query).text)
        if found is None:
            return None
        lines = clients["otto"].get(html.unescape(found[1])).text.splitlines()
        return {json.loads(line)["timestamp"][:10] for line in lines}

    service.warehouse.execute(
        "UPDATE interactions SET timestamp = timestamp - INTERVAL 20 DAY WHERE hash(id) % 2 = 0 AND workload = ?",
        [workload],
    )
    days = exported(workload=workload, since="2026-03-09", until="2026-03-10")
    assert days is not None
    assert "2026-03-10" in days, "the last day is in the search"
    assert max(days) < "2026-03-11"
    assert min(exported(workload=workload) or ["none"]) >= "2026-03-23", "the days that are searched"
    for name, value in (("text", "order"), ("rating", "helpful"), ("model", "m"), ("user", "u"), ("segment", "a=b")):
        assert exported(workload=workload, **{name: value}) is None
    page = clients["otto"].get("/answers", params={"text": "order"}).text
    assert "clear the other filters to export" in page


@pytest.mark.full
def test_no_page_fails_on_a_query_that_it_does_not_know(service: Local, clients: dict[str, TestClient]) -> None:
    names_of = ("show", "range", "since", "until", "state", "reason", "before", "after", "item", "saved", "skipped")
    of = {"workload": names(service)[APPROVAL], "id": f"a{APPROVAL}", "version": "8c01dd2e", "name": "console.css"}
    pages = [one.path.format(**of) for one in PAGES if one.method == "GET" and one.path not in ("/events", "/erasures")]
    for path in pages:
        for name in names_of:
            answer = clients["otto"].get(path, params={name: "\u00e9'%"}, headers={"Accept": "text/html"})
            assert answer.status_code < 500, (path, name)


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
    for rating, name, value in (
        ("helpful", "helpful", True), ("unhelpful", "helpful", False), ("corrected", "corrected", True)
    ):  # fmt: skip
        rated = otto.get("/api/v1/answers", params={"rating": rating, "workload": workload}).json()["answers"]
        assert rated
        assert {one[name] for one in rated} == {value}
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
    assert (answer.status_code, answer.headers["location"]) == (303, f"/teach?saved={item}")
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


def queue(client: TestClient, **query: str) -> tuple[list[str], str, dict[str, str]]:
    """Of the inbox's page: the ids in its list, the one that is current, and the fields of the form."""
    page = client.get("/teach", params=query).text
    (current,) = re.findall(r'\?item=([\w-]+)" aria-current', page) or [""]
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
    return re.findall(r'<li><a href="/teach\?item=([\w-]+)"', page), current, fields


def test_what_was_saved_is_shown_and_the_next_one_follows(clients: dict[str, TestClient]) -> None:
    ada = clients["ada"]
    ids, _, _ = queue(ada)
    _, current, fields = queue(ada, item=ids[4])
    assert (current, fields["next"]) == (ids[4], ids[5])
    saved = ada.post(f"/labels/{ids[4]}", data={"verdict": "helpful no", **fields})
    assert saved.headers["location"] == f"/teach?item={ids[5]}&saved={ids[4]}"
    page = ada.get(saved.headers["location"]).text
    assert "Saved." in page
    assert "Wrong, and I do not know what is right" in page
    assert f'<a href="/teach?item={ids[4]}">Change it</a>' in page
    assert re.findall(r'badge">(\d+)', page) == ["59"]
    assert "<b>59</b> answers wait for you" in page
    kept = ada.post(f"/labels/{ids[5]}", data={"verdict": "correction", "correction": " ", "comment": "see the terms"})
    assert kept.status_code == 409
    assert 'value="correction" required checked' in kept.text
    assert 'value="see the terms"' in kept.text


def test_what_is_skipped_and_all_that_waits_can_be_found(clients: dict[str, TestClient]) -> None:
    ada = clients["ada"]
    ids, first, fields = queue(ada)
    skipped = ada.post(f"/labels/{first}", data={"action": "skip", **fields})
    assert skipped.headers["location"] == f"/teach?item={ids[1]}&skipped={first}"
    page = ada.get(skipped.headers["location"]).text
    assert f'<a href="/teach?item={first}">1 skipped</a>' in page
    shown, current, fields = queue(ada, item=first)
    assert (shown[-1], current, fields) == (first, first, {})
    seen, later = set[str](), ids[1]
    while later:
        seen.update(queue(ada, item=later)[0])
        later = next(iter(re.findall(r'item=([\w-]+)">Later', ada.get("/teach", params={"item": later}).text)), "")
    assert len(seen) == 60


def test_an_expert_sees_and_changes_what_they_answered(service: Local, clients: dict[str, TestClient]) -> None:
    ada = clients["ada"]
    _, first, _ = queue(ada)
    ada.post(f"/labels/{first}", data={"verdict": "helpful yes", "comment": "as in the terms"})
    service.warehouse.execute("UPDATE label_requests SET answered_at = ? WHERE id = ?", [NOW, first])
    mine = ada.get("/teach/mine").text
    assert "<dt>It answered</dt><dd>Within 21 days.</dd><dt>You chose</dt><dd>Right as it is</dd>" in mine
    assert "as in the terms" in mine
    assert "no model of this workload is trained" in mine
    change = ada.get(f"/teach?item={first}").text
    assert "You answered this" in change
    assert 'value="helpful yes" required checked' in change
    assert 'value="as in the terms"' in change
    assert ">\nWithin 21 days.</textarea>" in change
    form = {"action": "change", "verdict": "correction", "correction": "Within 14 days."}
    answer = ada.post(f"/labels/{first}", data=form)
    assert answer.headers["location"] == f"/teach/mine?saved={first}"
    assert "Saved." in ada.get(answer.headers["location"]).text
    assert published(service)[-1] == ("correction", "Within 14 days.", "ada")
    assert 'value="correction" required checked' in ada.get(f"/teach?item={first}").text
    others = clients["ben"].get(f"/teach?item={first}").text
    assert "needs no answer any more" in others
    assert f'action="/labels/{first}"' not in others


def test_a_correction_that_changes_nothing_is_refused(service: Local, clients: dict[str, TestClient]) -> None:
    item = clients["ada"].get("/api/v1/inbox").json()["item"]
    for same in (item["answer"], f" {item['answer']}\n"):
        page = clients["ada"].post(f"/labels/{item['id']}", data={"verdict": "correction", "correction": same})
        assert (page.status_code, "the answer that was given, unchanged" in page.text) == (409, True)
        assert "“Right as it is”" in page.text
        assert " autofocus>" in page.text
    refused = clients["ada"].post(f"/api/v1/labels/{item['id']}", json={"name": "correction", "value": item["answer"]})
    assert (refused.status_code, published(service)) == (409, [])
    assert clients["ada"].get("/api/v1/inbox").json()["waiting"] == 60


@pytest.mark.parametrize("service", [1, 2], indirect=True)
def test_the_overview_and_the_inbox_count_the_same(service: Local, clients: dict[str, TestClient]) -> None:
    opinions = service.settings.for_workload("support").labels.opinions
    ids, _, _ = queue(clients["ada"])
    for id in ids[:5]:
        assert clients["ada"].post(f"/labels/{id}", data={"verdict": "helpful no"}).status_code == 303
    clients["ben"].post(f"/labels/{ids[0]}", data={"verdict": "helpful no"})
    clients["otto"].post("/api/v1/dead-letters/replay", json={})  # a command outdates what is kept
    states = clients["ada"].get("/api/v1/overview").json()["workloads"]
    assert sum(one["facts"]["labels"] for one in states) == (55 if opinions == 1 else 59)
    page = clients["ada"].get("/teach").text
    assert re.findall(r'badge">(\d+)', page) == ["55" if opinions == 1 else "59"]
    assert "<b>55</b> answers wait for you" in page
    assert ("4 for other experts" in page) == (opinions == 2)


def test_a_labeller_is_shown_what_labellers_may_do(clients: dict[str, TestClient]) -> None:
    ada = clients["ada"]
    page = ada.get("/").text
    assert "Review" not in page
    assert "2 of 10 workloads need you" in page
    assert "the whole conversation" not in ada.get("/teach").text
    assert "the whole conversation" in clients["otto"].get("/teach").text
    refused = ada.get("/answers", headers={"Accept": "text/html"})
    assert refused.status_code == 403
    assert re.findall(r'<a href="(/[^"]*)"', refused.text) == ["/", "/teach", "/system", "/"]
    assert "This is for the role operator; ada has the role labeller." in refused.text


def test_an_approval_that_is_decided_asks_nothing_any_more(service: Local, clients: dict[str, TestClient]) -> None:
    otto, path = clients["otto"], f"/approvals/a{APPROVAL}"
    page = otto.get(path).text
    assert "put 8c01dd2e into service?" in page
    assert "It answers all conversations at once" in page
    assert "Read these before you decide" not in clients["ada"].get(path).text
    assert otto.post(path, data={"decision": "refuse", "reason": "too early"}).status_code == 303
    page = otto.get(path).text
    assert "8c01dd2e is refused</h1>" in page
    assert "Answers side by side" in page
    assert "Read these before you decide" not in page
    assert "Nothing else waits for approval." in page
    service.warehouse.execute("UPDATE approvals SET state = 'waiting', id = 'other'")
    service.warehouse.insert(
        "approvals", id="a5", workload=names(service)[APPROVAL], version="8c01dd2e", run_id="r5", requested_at=NOW,
        expires_at=NOW, state="expired", decided_at=NOW, announced=True,
    )  # fmt: skip
    assert 'Still waiting for approval: <a href="/approvals/other">' in otto.get(path).text


def test_a_row_shows_what_was_decided_and_what_each_decision_does(
    service: Local, clients: dict[str, TestClient]
) -> None:
    otto, path = clients["otto"], f"/workloads/{names(service)[0]}/rows"
    set_aside = f"{path}?state=set_aside&reason=outvoted"
    page = otto.get(set_aside).text
    for text in ("taught although a rule sets it aside", "kept, and rehearsed in every dataset", "never taught"):
        assert text in page
    assert ">release<" not in page, "there is nothing to release"
    assert ">\nWithin 14 days, and at once for gift cards.</textarea>" in page
    row = otto.get(f"/api/v1{set_aside}").json()[0]
    otto.post(set_aside, data={"id": row["feedback_id"], "action": "keep", "reason": "it is right"})
    page = " ".join(otto.get(set_aside).text.split())
    assert "<b>Kept</b> in the next dataset<br><small>otto: it is right</small>" in page
    assert ">release<" in page
    service.warehouse.execute("UPDATE row_states SET decided_at = ?", [NOW + timedelta(hours=1)])
    assert "in the next dataset<br>" not in otto.get(set_aside).text
    taught = otto.get(f"/api/v1{path}?state=taught").json()
    service.warehouse.execute(
        "UPDATE row_states SET reason = 'duplicates', detail = ? WHERE feedback_id = ?",
        [f"{taught[1]['feedback_id']} gives the same answer", taught[0]["feedback_id"]],
    )
    page = otto.get(f"{path}?state=taught&reason=duplicates").text
    assert f'<a href="/interactions/{taught[1]["interaction_id"]}">another row</a> gives the same answer' in page


@pytest.mark.parametrize(
    ("path", "shown"),
    [("/approvals/nothing", "<p>No such request for approval.</p>"),
     ("/workloads/{w}/versions/nope", "no such version."),
     ("/nothing", "<p>There is no such page.</p>"), ("/workloads/nope/teach", "Workload nope: unknown")],
)  # fmt: skip
def test_what_is_not_found_is_explained_in_words_of_the_page(
    service: Local, clients: dict[str, TestClient], path: str, shown: str
) -> None:
    answer = clients["otto"].get(path.format(w=names(service)[0]), headers={"Accept": "text/html"})
    assert (answer.status_code, shown in answer.text) == (404, True), answer.text
    assert "/api/v1" not in answer.text
    assert "<code>retuned" not in answer.text
    assert "`retuned" not in answer.text


def test_an_approval_shows_all_that_the_gate_compared(service: Local, clients: dict[str, TestClient]) -> None:
    workload, path = names(service)[APPROVAL], f"/approvals/a{APPROVAL}"
    version = f"/workloads/{workload}/versions/8c01dd2e"
    page, whole = (" ".join(clients["otto"].get(one).text.split()) for one in (path, version))
    assert f'<a href="{version}">' in page
    table = re.search(r"<h2>What the gate compared</h2>.*?</section>", whole)
    assert table is not None
    assert table[0] in page
    assert version not in clients["vera"].get(path).text
    service.warehouse.execute("DELETE FROM evaluations")
    page = clients["otto"].get(version).text
    assert ("0 of 0" in page, page.count("not measured")) == (False, 2)


def test_required_reasons_are_marked(service: Local, clients: dict[str, TestClient]) -> None:
    for path in (f"/approvals/a{APPROVAL}", f"/workloads/{names(service)[0]}/rows"):
        page = clients["otto"].get(path).text
        assert len(re.findall(r'name="reason"[^>]* required', page)) == page.count("(required)") > 0


def test_a_sum_of_money_is_not_shown_as_a_quantity_as_well(service: Local, clients: dict[str, TestClient]) -> None:
    workload = names(service)[FALLS]
    service.warehouse.execute("UPDATE ledger SET unit = 'hours' WHERE item = 'time_saved'")
    page = clients["vera"].get(f"/workloads/{workload}").text
    booked = dict(re.findall(r"<tr><td>(time saved|inference)</td><td class=\"n\">(.*?)</td>", page))
    assert (booked["inference"], booked["time saved"].endswith(" hours")) == ("", True)


def test_who_gives_a_wrong_token_is_not_offered_to_continue(clients: dict[str, TestClient]) -> None:
    assert "Already signed in?" in clients["vera"].get("/sign-in").text
    wrong = clients["vera"].post("/sign-in", data={"token": "wrong", "next": "/"})
    assert (wrong.status_code, "Already signed in?" in wrong.text) == (401, False)


def test_an_edited_row_shows_both_answers_and_an_edit_changes_something(
    service: Local, clients: dict[str, TestClient]
) -> None:
    otto, path = clients["otto"], f"/workloads/{names(service)[0]}/rows?state=taught"
    row = otto.get(f"/api/v1{path}").json()[0]
    form = {"id": row["feedback_id"], "action": "edit", "reason": "a day more"}
    refused = otto.post(path, data=form | {"answer": f"{row['answer']}\n"})
    assert (refused.status_code, "the answer is unchanged" in refused.text) == (409, True)
    assert otto.get(f"/api/v1{path}").json()[0]["decision"] is None
    for _ in range(2):  # again, as after a lost response
        done = otto.post(f"{path}&saved=x", data=form | {"answer": "Within 15 days."})
        assert (done.status_code, done.headers["location"]) == (303, f"{path}&saved={row['feedback_id']}")
    page = " ".join(otto.get(done.headers["location"]).text.split())
    assert f'role="status">Saved. Edited: {html.escape(row["question"])}</div>' in page
    assert f'Within 15 days.<br><small class="soft">until then: {row["answer"]}</small>' in page
    service.warehouse.execute("UPDATE row_states SET decided_at = ?", [NOW + timedelta(hours=1)])
    page = " ".join(otto.get(path).text.split())
    assert f'Within 15 days.<br><small class="soft">before the edit: {row["answer"]}</small>' in page
    assert "Saved." not in page
    assert otto.post(path, data=form | {"answer": "Within 15 days.", "reason": "other"}).status_code == 409


def test_an_interaction_lists_who_stated_what(clients: dict[str, TestClient]) -> None:
    page = " ".join(clients["otto"].get("/interactions/i1-1").text.split())
    assert "<th>when</th><th>what</th><th>by</th><th>value</th>" in page
    assert "(3 against, 0 for). Not answered yet." in page
    assert "No feedback yet." in clients["otto"].get("/interactions/i0-1").text


def test_the_system_page_states_what_its_figures_ask_for(clients: dict[str, TestClient]) -> None:
    page = clients["vera"].get("/system").text
    for text in ("not asked: no daemon runs", "Act if it grows.", "nothing to do", "not yet"):
        assert text in page
    assert "MB used" not in page


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
    answer("cleo", "Within 14 days.")
    assert published(service) == [("correction", "Within 14 days.", "cleo")]
    assert clients["ada"].get("/api/v1/inbox").json()["agreement"] == [0, 1]


@pytest.mark.parametrize("service", [2], indirect=True)
def test_a_comment_is_kept_with_an_answer_that_does_not_settle_the_request(
    service: Local, clients: dict[str, TestClient]
) -> None:
    ids, _, _ = queue(clients["ada"])

    def answer(name: str, correction: str, **form: str) -> None:
        form |= {"verdict": "correction", "correction": correction}
        assert clients[name].post(f"/labels/{ids[0]}", data=form).status_code == 303

    def shown(name: str) -> str:
        return " ".join(clients[name].get("/teach", params={"item": ids[0]}).text.split())

    answer("ada", "Within 14 days.", comment="as in the terms, says ada@example.com")
    assert published(service) == []
    assert "<dt>Comment</dt><dd>as in the terms, says &lt;EMAIL_1&gt;</dd>" in clients["ada"].get("/teach/mine").text
    assert 'value="as in the terms, says &lt;EMAIL_1&gt;"' in shown("ada")
    assert "as in the terms" not in shown("ben"), "an opinion of one's own"
    answer("ada", "Within 14 days.", comment="as in the new terms", action="change")
    answer("ben", "Within 30 days.", comment="<b>as ever</b>")
    assert published(service) == []
    settles = shown("cleo")
    assert "<dt>ada chose</dt><dd>Wrong, this is right: “Within 14 days.”</dd>" in settles
    assert "<dt>Comment of ada</dt><dd>as in the new terms</dd>" in settles
    assert "<dt>Comment of ben</dt><dd>&lt;b&gt;as ever&lt;/b&gt;</dd>" in settles
    assert "Comment of ada" not in shown("ada")
    assert "Comment of ben" in shown("ada")
    answer("cleo", "Within 14 days.", comment="I asked them")
    assert published(service) == [
        ("correction", "Within 14 days.", "cleo"),
        ("comment", "as in the new terms", "ada"),
        ("comment", "I asked them", "cleo"),
    ]
    answer("cleo", "Within 14 days.", comment="They are sure", action="change")
    assert published(service)[3:] == [("correction", "Within 14 days.", "cleo"), ("comment", "They are sure", "cleo")]
    assert "<dd>as ever</dd>" not in clients["cleo"].get("/teach/mine").text
    assert "<dd>&lt;b&gt;as ever&lt;/b&gt;</dd>" in clients["ben"].get("/teach/mine").text


def test_a_broker_that_is_away_loses_no_answer(
    service: Local, clients: dict[str, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    from retuned.consumers.errors import BrokerUnavailable

    item = clients["ada"].get("/api/v1/inbox").json()["items"][0]["interaction_id"]

    def away(*_: Any) -> None:
        raise BrokerUnavailable("kafka: does not answer")

    monkeypatch.setattr(service.jobs.context.publisher, "publish_all", away)
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
    assert count - 1 == 11  # `names` is one


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
