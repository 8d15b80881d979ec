"""Who may erase, by the API and on the page; and what the audit keeps of it."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from fixtures.daemon.doors import FakeDaemon
from fixtures.feedback.erasing import traces
from fixtures.feedback.traffic import insert_event
from fixtures.kafka.ingestion import interaction
from retuned.daemon.operations import erasure as operations
from retuned.daemon.operations.fields import Nothing
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.settings import Settings
from retuned.daemon.web.principals import add
from retuned.daemon.web.routes import application

HOST = "http://localhost:8321"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        warehouse={"path": tmp_path / "w.duckdb"},
        models={"directory": tmp_path / "models"},
        http={"principals_file": tmp_path / "principals.yaml"},
    )  # type: ignore[arg-type]


@pytest.fixture
def local(settings: Settings) -> Iterator[Local]:
    with opened(settings) as service:
        pseudonym = service.jobs.erasures.keys.pseudonym("ann@shop")
        event = interaction("i1", user_id=pseudonym, workload="support", timestamp=datetime(2026, 3, 2, 9))
        event |= {"messages": json.dumps(event["messages"]), "topic": "t", "partition": 0, "offset": 0}
        event["received_at"] = event["timestamp"]
        insert_event(service.warehouse, "interactions", **event)
        yield service


def client(local: Local, settings: Settings, role: str) -> TestClient:
    assert settings.http.principals_file is not None
    token = add(settings.http.principals_file, role, cast("Any", role), None, datetime.now(UTC))
    process = cast("Any", FakeDaemon())
    headers = {"Authorization": f"Bearer {token}"}
    return TestClient(application(local, process, settings), HOST, headers=headers, follow_redirects=False)


def test_an_administrator_erases_by_the_api_and_the_audit_names_no_user(local: Local, settings: Settings) -> None:
    operator, admin = client(local, settings, "operator"), client(local, settings, "admin")
    asked = {"user_id": "ann@shop"}
    for path in ("/api/v1/erasures", "/api/v1/erasures/preview", "/erasures"):
        assert operator.post(path, json=asked).status_code == 403
    found = admin.post("/api/v1/erasures/preview", json=asked).json()
    assert found["tables"] == {"interactions": 1}
    unclear = admin.post("/api/v1/erasures", json=asked | {"conversation_id": "c"})
    assert unclear.status_code == 409
    assert "select by one of" in unclear.json()["error"]
    id = admin.post("/api/v1/erasures", json=asked | {"reason": "by mail"}).json()["id"]
    done = admin.get(f"/api/v1/erasures/{id}").json()
    assert (done["state"], done["requested_by"], done["reason"]) == ("done", "admin", "by mail")
    assert local.warehouse.rows("SELECT * FROM interactions") == []
    assert [one["id"] for one in admin.get("/api/v1/erasures").json()] == [id]
    assert admin.get("/api/v1/erasures/none").status_code == 404
    rows = local.warehouse.rows("SELECT actor, action, details::VARCHAR AS details FROM audit ORDER BY sequence")
    assert ("admin", "forget") in {(row["actor"], row["action"]) for row in rows}
    assert ("erasure", "erased") in {(row["actor"], row["action"]) for row in rows}
    assert "ann@shop" not in str(rows)


def test_what_people_write_and_ask_names_no_user_in_tables_logs_status_and_audit(
    local: Local, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "retuned")

    def logged() -> str:
        return "\n".join(one.getMessage() for one in caplog.records if one.name.startswith("retuned"))

    pseudonym = local.jobs.erasures.keys.pseudonym("u-4711")
    event = interaction("own-1", user_id=pseudonym, workload="support", timestamp=datetime(2026, 3, 2, 9))
    event |= {"messages": json.dumps(event["messages"]), "conversation_id": "conv-9"}
    event |= {"topic": "t", "partition": 0, "offset": 1, "received_at": event["timestamp"]}
    insert_event(local.warehouse, "interactions", **event)
    admin = client(local, settings, "admin")
    because = f"see own-1, conv-9, {pseudonym}, user u-4711 (user=u-4711); u-4711."
    assert admin.post("/api/v1/workloads/support/pause", json={"reason": because}).status_code == 200
    asked = {"account": "u-4711", "action": "ban", "reason": because}
    assert admin.post("/api/v1/accounts", json=asked).status_code == 200
    assert admin.post("/api/v1/holds", json={"account": "u-4711", "reason": because}).status_code == 200
    (hold,) = admin.get("/api/v1/holds").json()
    assert admin.post(f"/api/v1/holds/{hold['id']}/release", json={"reason": because}).status_code == 200
    found = admin.get("/api/v1/answers", params={"user": "u-4711", "since": "2026-03-01", "until": "2026-03-03"})
    assert [one["id"] for one in found.json()["answers"]] == ["own-1"]
    for table in ("pauses", "account_decisions", "holds", "audit"):
        rows = str(local.warehouse.rows(f"SELECT * FROM {table}"))
        assert pseudonym in rows, table
        assert "u-4711" not in rows, table
    assert "u-4711" not in admin.get("/api/v1/status").text
    assert "u-4711" not in logged()
    (row,) = local.warehouse.rows("SELECT details::VARCHAR AS details FROM audit WHERE action = 'answers'")
    assert json.loads(row["details"])["user"] == pseudonym

    assert admin.post("/api/v1/erasures", json={"user_id": "u-4711", "reason": because}).status_code == 200
    assert traces(tmp_path, "u-4711") == {}
    (pause,) = local.warehouse.rows("SELECT reason FROM pauses")
    erased = "<ERASED>"
    assert pause["reason"] == f"see {erased}, {erased}, {erased}, user {erased} (user={erased}); {erased}."
    assert pause["reason"] in json.dumps(admin.get("/api/v1/status").json())
    for column in ("reason", "release_reason"):
        (one,) = local.warehouse.rows(f"SELECT {column} FROM holds")
        assert one[column] is not None
        assert one[column].startswith("see <ERASED>, <ERASED>, <ERASED>, user ")
    for id in ("own-1", "conv-9", "u-4711", pseudonym):
        assert id not in logged()


def test_the_page_shows_what_is_found_before_it_offers_to_erase(local: Local, settings: Settings) -> None:
    admin = client(local, settings, "admin")
    assert client(local, settings, "operator").get("/erasures").status_code == 403
    assert 'value="erase"' not in admin.get("/erasures").text
    shown = admin.post("/erasures", data={"user_id": "ann@shop", "reason": "by mail", "action": "preview"})
    assert "1 rows of interactions" in shown.text
    (form,) = (one for one in re.findall("<form.*?</form>", shown.text, re.DOTALL) if 'value="erase"' in one)
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form))
    assert fields == {"user_id": "ann@shop", "reason": "by mail"}
    assert form.count("<input") == len(fields), "what is erased is what was shown: nothing can be edited"
    assert len(local.warehouse.rows("SELECT * FROM interactions")) == 1
    refused = admin.post("/erasures", data={"action": "erase"})
    assert (refused.status_code, "select by one of" in refused.text) == (409, True)
    done = admin.post("/erasures", data=fields | {"action": "erase"})
    assert (done.status_code, done.headers["location"]) == (303, "/erasures")
    assert local.warehouse.rows("SELECT * FROM interactions") == []
    assert "receipt" in admin.get("/erasures").text


def test_without_principals_the_erased_user_is_not_taken_for_who_asks(local: Local) -> None:
    asked = operations.forget.parse({"user_id": "ann@shop", "user": "root"})
    id = local.ask(operations.forget, asked)["id"]
    (done,) = [one for one in local.ask(operations.erasures, Nothing()) if one["id"] == id]
    assert done["requested_by"] == "root"
    rows = local.warehouse.rows("SELECT actor, details::VARCHAR AS details, subject FROM audit")
    assert "root" in {row["actor"] for row in rows}
    assert "ann@shop" not in str(rows)
