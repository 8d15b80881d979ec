"""Approvals by HTTP, on the page and on the command line: who decides, what is shown, what is refused."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import yaml
from starlette.testclient import TestClient

from fixtures.daemon.doors import FakeDaemon
from fixtures.daemon.operations import ask
from fixtures.daemon.promoting import model_row
from fixtures.feedback.traffic import START, interactions
from fixtures.kafka.brokers import free_port
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.cli.main import main
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.settings import Settings, load
from retuned.daemon.web.principals import add
from retuned.daemon.web.routes import application
from retuned.retrain import versions
from retuned.retrain.release import approvals, approve
from retuned.retrain.release.approvals import Approval

HOST = "http://localhost:8321"
V1, V2 = "aaaaaaaa", "bbbbbbbb"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "retuned.yaml"
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    principals = {"principals_file": str(tmp_path / "principals.yaml"), "port": free_port()}
    file.write_text(yaml.safe_dump({**folders, "http": principals, "kafka": {"bootstrap_servers": "127.0.0.1:1"}}))
    return file


@pytest.fixture
def settings(config: Path) -> Settings:
    return load(config)


@pytest.fixture
def local(settings: Settings) -> Iterator[Local]:
    with opened(settings) as service:
        service.jobs.context.publisher = MemoryPublisher()
        yield service


def waits(service: Local, version: str = V1, workload: str = "support", run_id: str | None = None) -> Approval:
    """A version that the gate passed."""
    context = service.jobs.context
    path = context.settings.models.directory / workload / version
    path.mkdir(parents=True, exist_ok=True)
    if versions.find(service.warehouse, workload, version) is None:
        service.warehouse.insert("models", **model_row(version, path, utc_now(), workload))
    made = approve.request(context.rollout, workload, version, None, run_id or f"run-{workload}-{version}", utc_now())
    service.warehouse.insert(
        "decisions", id=f"{made.run_id}-gate", created_at=utc_now(), workload=workload, kind="gate", outcome=True,
        reasons='["The candidate scores 0.912.", "<b>Nothing</b> else."]', figures="{}", run_id=made.run_id,
    )  # fmt: skip
    return made


@pytest.fixture
def tokens(settings: Settings) -> dict[str, str]:
    file = settings.http.principals_file
    assert file is not None
    roles = {"vera": "viewer", "otto": "operator", "olga": "operator"}
    return {name: add(file, name, cast(Any, role), None, datetime.now(UTC)) for name, role in roles.items()}


def client(service: Local, settings: Settings, token: str | None = None) -> TestClient:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    process = cast(Any, FakeDaemon())
    return TestClient(application(service, process, settings), HOST, headers=headers, follow_redirects=False)


def champion(service: Local) -> str | None:
    return versions.aliases(service.warehouse, "support").get("champion")


# By HTTP


def test_the_principal_who_decides_is_kept_and_nobody_can_decide_again(
    local: Local, settings: Settings, tokens: dict[str, str]
) -> None:
    request, path = waits(local), "/api/v1/approvals"
    otto, olga = (client(local, settings, tokens[name]) for name in ("otto", "olga"))
    (listed,) = otto.get(path).json()
    assert (listed["id"], listed["state"], listed["gate_reasons"][0]) == (
        request.id, "waiting", "The candidate scores 0.912.",
    )  # fmt: skip
    body = {"decision": "approve", "reason": " the answers are right ", "user": "somebody else"}
    vera = client(local, settings, tokens["vera"])
    assert vera.get(path).status_code == 200
    assert vera.post(f"{path}/{request.id}", json=body).status_code == 403
    assert champion(local) is None
    done = otto.post(f"{path}/{request.id}", json=body)
    assert (done.status_code, done.json()) == (
        200, {"workload": "support", "state": "approved", "done": f"support@{V1} is the champion"},
    )  # fmt: skip
    assert champion(local) == V1
    (listed,) = otto.get(path).json()
    assert [listed[key] for key in ("state", "actor", "reason")] == ["approved", "otto", "the answers are right"]
    again = otto.post(f"{path}/{request.id}", json=body)  # the answer was lost on its way
    assert (again.status_code, again.json()) == (200, done.json())
    for who, other in ((olga, body), (otto, body | {"decision": "refuse"}), (otto, body | {"reason": "another"})):
        refused = who.post(f"{path}/{request.id}", json=other)
        assert refused.status_code == 409
        assert "approved by otto at " in refused.json()["error"]
    assert len(local.warehouse.rows("SELECT * FROM promotions")) == 1


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"reason": "fine"}, 400, "decision: expected approve or refuse"),
        ({"decision": "promote", "reason": "fine"}, 400, "decision: expected approve or refuse"),
        ({"decision": ["approve"], "reason": "fine"}, 400, "decision: expected approve or refuse"),
        ({"decision": "approve"}, 400, "reason: expected a text"),
        ({"decision": "approve", "reason": " \n"}, 400, "reason: expected a text"),
        ({"decision": "approve", "reason": "fine", "user": 5}, 400, "user: expected a text"),
    ],
)
def test_what_is_malformed_decides_nothing(
    local: Local, settings: Settings, tokens: dict[str, str], body: dict[str, Any], status: int, named: str
) -> None:
    request = waits(local)
    otto = client(local, settings, tokens["otto"])
    answer = otto.post(f"/api/v1/approvals/{request.id}", json=body)
    assert (answer.status_code, champion(local)) == (status, None)
    assert named in answer.json()["error"]


def test_a_request_that_is_not_there_is_not_found(local: Local, settings: Settings, tokens: dict[str, str]) -> None:
    otto, path = client(local, settings, tokens["otto"]), "/api/v1/approvals/none"
    assert otto.post(path, json={"decision": "approve", "reason": "fine"}).status_code == 404
    assert otto.get(path).status_code == 404


def test_where_nobody_shows_who_they_are_a_name_is_kept_as_a_claim(local: Local, tmp_path: Path) -> None:
    open_to_all = Settings(warehouse={"path": tmp_path / "w.duckdb"}, models={"directory": tmp_path / "models"})
    for version, user, actor in ((V1, "alice", "alice (without a token)"), (V2, None, "an operator")):
        request = waits(local, version)
        body = {"decision": "refuse", "reason": "no", "user": user}
        with client(local, open_to_all) as anybody:
            assert anybody.post(f"/api/v1/approvals/{request.id}", json=body).status_code == 200
        found = approvals.find(local.warehouse, request.id)
        assert found is not None
        assert found.actor == actor


def test_requests_of_one_workload_are_listed(local: Local, settings: Settings, tokens: dict[str, str]) -> None:
    for workload in ("support", "sales"):
        waits(local, V1, workload)
    asked = client(local, settings, tokens["vera"])
    assert len(asked.get("/api/v1/approvals").json()) == 2
    assert [one["workload"] for one in asked.get("/api/v1/approvals?workload=sales").json()] == ["sales"]


# On the page


def test_the_form_of_the_page_decides_for_who_may(local: Local, settings: Settings, tokens: dict[str, str]) -> None:
    request = waits(local)
    path, otto = f"/approvals/{request.id}", client(local, settings, tokens["otto"])
    page = otto.get(path)
    assert page.status_code == 200
    assert "&lt;b&gt;Nothing&lt;/b&gt; else." in page.text
    assert f"put {V1} into service?" in page.text
    assert 'value="refuse"' in page.text
    assert 'name="reason"' not in client(local, settings, tokens["vera"]).get(path).text
    form = {"decision": "refuse", "reason": "it is rude"}
    assert client(local, settings, tokens["vera"]).post(path, data=form).status_code == 403
    elsewhere = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert otto.post(path, data=form, headers=elsewhere).status_code == 403
    assert otto.post(path, json=form).status_code == 415
    assert otto.post(path, data={"decision": "refuse", "reason": ""}).status_code == 400
    assert [one["state"] for one in ask(local, "approvals", workload="support")] == ["waiting"]
    done = otto.post(path, data=form)
    assert (done.status_code, done.headers["location"]) == (303, path)
    shown = otto.get(path).text
    assert "Refused by otto" in shown
    assert "it is rude" in shown
    late = client(local, settings, tokens["olga"]).post(path, data=form | {"decision": "approve"})
    assert late.status_code == 409
    assert f"Approval of support@{V1}: refused by otto at " in late.text
    assert "Refused by otto" in late.text, "what is shown is what is so now"
    assert otto.get("/approvals/none").status_code == 404


def test_the_page_has_scripts_of_this_server_alone_and_sends_its_form_to_this_server_alone(
    local: Local, settings: Settings, tokens: dict[str, str]
) -> None:
    headers = client(local, settings, tokens["vera"]).get(f"/approvals/{waits(local).id}").headers
    policy = headers["Content-Security-Policy"]
    assert "form-action 'self'" in policy
    assert "script-src 'self';" in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["Referrer-Policy"] == "same-origin"


# On the command line


def run(config: Path, *arguments: str) -> int:
    return main(["--config", str(config), *arguments])


def test_the_command_lists_what_waits_and_decides_with_a_reason(
    config: Path, settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "carol")
    with opened(settings) as service:
        first = waits(service)
        waits(service, V2, "sales")
    assert run(config, "approve") == 0
    out = capsys.readouterr().out
    assert re.search(rf"support +{V1} +{first.requested_at:%Y-%m-%d %H:%M} UTC +{first.expires_at:%Y-%m-%d}", out)
    assert "The candidate scores 0.912." in out
    assert re.search(rf"sales +{V2} ", out)
    for wrong, said in (
        (["support"], "give the reason with --reason"),
        (["support", "--reason", " "], "give the reason with --reason"),
        (["support", V2, "--reason", "fine"], f"support@{V1} waits for approval, not {V2}"),
        (["sals", "--reason", "fine"], "workload sals: nothing waits for approval"),
    ):
        assert run(config, "approve", *wrong) == 1
        assert said in capsys.readouterr().err
    assert run(config, "approve", "support", V1, "--reason", "fine") == 0
    assert capsys.readouterr().out == f"support: support@{V1} is the champion\n"
    assert run(config, "approve", "sales", "--refuse", "--reason", "it is rude") == 0
    assert "refused by carol" in capsys.readouterr().out
    assert run(config, "approve") == 0
    printed = capsys.readouterr()
    assert (printed.out, "nothing waits for approval" in printed.err) == ("", True)
    with opened(settings) as service:
        decided = {one["workload"]: (one["state"], one["actor"]) for one in ask(service, "approvals")}
    assert decided == {"support": ("approved", "carol"), "sales": ("refused", "carol")}


def test_who_has_no_name_is_kept_by_number(config: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1001")

    monkeypatch.setattr("getpass.getuser", nameless)
    monkeypatch.setattr("os.getuid", lambda: 1001)
    with opened(settings) as service:
        waits(service)
    assert run(config, "approve", "support", "--reason", "fine") == 0
    with opened(settings) as service:
        assert ask(service, "approvals")[0]["actor"] == "user 1001"


# What waits, where people look anyway


def test_status_has_what_waits_and_what_was_decided(local: Local) -> None:
    interactions(local.warehouse, ["Where is my parcel?"], Random(0), start=START)
    local.jobs.context.now = lambda: START
    request = waits(local)
    ask(local, "decide_approval", id=request.id, decision="refuse", reason="no", user="otto")
    request = waits(local, V2)
    shown = ask(local, "status")["workloads"]["support"]["approvals"]
    assert [(one["version"], one["state"], one["actor"]) for one in shown] == [
        (V2, "waiting", None), (V1, "refused", "otto"),
    ]  # fmt: skip


def test_the_job_ends_what_nobody_decided_on(local: Local) -> None:
    request = waits(local)
    local.jobs.context.now = lambda: request.expires_at + timedelta(minutes=1)
    local.jobs.run("quality")
    assert [one["state"] for one in ask(local, "approvals")] == ["expired"]
