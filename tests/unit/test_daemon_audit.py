"""The audit: which requests and rules it has, and what it never has."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Annotated, Any, cast, get_args, get_type_hints

import pytest
import yaml
from starlette.testclient import TestClient
from typing_extensions import is_typeddict

from fixtures.daemon.doors import FakeDaemon
from fixtures.daemon.operations import BY_NAME, ask
from fixtures.daemon.promoting import model_row
from fixtures.feedback.traffic import interactions
from fixtures.kafka.brokers import free_port
from retuned.consumers.errors import RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.audit import COLUMNS, digest
from retuned.consumers.warehouse.audit import START as FIRST
from retuned.consumers.warehouse.connection import Warehouse, insert, utc_now
from retuned.daemon.operations.catalog import OPERATIONS
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.operations.operation import Caller, Content, Forbidden, Operation, Person, Request, operation
from retuned.daemon.settings import Settings, load
from retuned.daemon.web.principals import add
from retuned.daemon.web.routes import application
from retuned.retrain.queue import enqueue
from retuned.retrain.release import approve

HOST = "http://localhost:8321"
V1, V2 = "aaaaaaaa", "bbbbbbbb"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = tmp_path / "retuned.yaml"
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    principals = {"principals_file": str(tmp_path / "principals.yaml"), "port": free_port()}
    file.write_text(yaml.safe_dump({**folders, "http": principals, "kafka": {"bootstrap_servers": "127.0.0.1:1"}}))
    return load(file)


@pytest.fixture
def local(settings: Settings) -> Iterator[Local]:
    with opened(settings) as service:
        service.jobs.context.publisher = MemoryPublisher()
        with service.warehouse.transaction() as cursor:
            for version in (V1, V2):
                path = settings.models.directory / "support" / version
                path.mkdir(parents=True)
                insert(cursor, "models", **model_row(version, path, utc_now()))
        interactions(service.warehouse, ["Where is it?"], Random(1), start=utc_now() - timedelta(hours=1))
        yield service


def client(service: Local, settings: Settings, name: str, role: str, **more: Any) -> TestClient:
    file = settings.http.principals_file
    assert file is not None
    token = add(file, name, cast(Any, role), None, datetime.now(UTC), **more)
    made = application(service, cast(Any, FakeDaemon()), settings)
    return TestClient(made, HOST, headers={"Authorization": f"Bearer {token}"}, follow_redirects=False)


def entries(warehouse: Warehouse, *columns: str, **equal: str) -> list[tuple[Any, ...]]:
    """The rows of the audit in their order, as far as these columns are equal."""
    found = warehouse.rows("SELECT * FROM audit ORDER BY sequence")
    return [tuple(row[one] for one in columns) for row in found if all(row[k] == v for k, v in equal.items())]


def test_a_request_and_the_change_that_it_causes_share_an_id_and_name_who_asked(
    local: Local, settings: Settings
) -> None:
    otto = client(local, settings, "otto", "operator")
    answer = otto.post("/api/v1/workloads/support/promote", json={"version": V1, "reason": "because"})
    assert answer.status_code == 200
    columns = ("actor", "actor_kind", "action", "outcome", "workload", "subject", "reason")
    assert entries(local.warehouse, *columns) == [
        ("otto", "principal", "promote", "done", "support", V1, "because"),
        ("otto", "principal", "promoted", "done", "support", f"support@{V1}", None),
    ]
    assert set(entries(local.warehouse, "request_id")) == {(answer.headers["X-Request-Id"],)}


def test_a_page_names_its_request_as_the_audit_does_whatever_is_answered(local: Local, settings: Settings) -> None:
    otto, vera = client(local, settings, "otto", "operator"), client(local, settings, "vera", "viewer")
    page = {"Accept": "text/html"}
    promoted = otto.post("/workloads/support/promote", data={"version": V1, "reason": "because"}, headers=page)
    assert promoted.status_code == 303
    refused = vera.post("/workloads/support/promote", data={"version": V1, "reason": "because"}, headers=page)
    assert refused.status_code == 403
    read = otto.get("/answers", headers=page)
    ids = [answer.headers["X-Request-Id"] for answer in (promoted, refused, read)]
    assert [*dict.fromkeys(id for (id,) in entries(local.warehouse, "request_id"))] == ids


def test_a_rule_is_named_as_the_actor_of_what_it_does_by_itself(local: Local) -> None:
    rollout = local.jobs.context.rollout
    rollout.promote("support", V1, "gate", "it is better", utc_now())
    rollout.promote("support", V2, "gate", "it is better still", utc_now())
    rollout.rollback("support", "watch", "it does worse", utc_now())
    columns = ("actor", "actor_kind", "action", "subject", "reason", "request_id")
    assert entries(local.warehouse, *columns) == [
        ("gate", "rule", "promoted", f"support@{V1}", "it is better", None),
        ("gate", "rule", "promoted", f"support@{V2}", "it is better still", None),
        ("watch", "rule", "rolled_back", f"support@{V1}", "it does worse", None),
    ]


def test_runs_and_approvals_name_the_rule_that_asks_for_them(local: Local) -> None:
    rollout, now = local.jobs.context.rollout, utc_now()
    run = enqueue(local.warehouse, "support", ["drift"], now)
    approve.request(rollout, "support", V1, None, run, now)
    approve.expire(rollout, now + timedelta(days=365))
    name = f"support@{V1}"
    assert entries(local.warehouse, "actor", "actor_kind", "action", "subject") == [
        ("policy", "rule", "queued", run),
        ("gate", "rule", "approval_requested", name),
        ("approval", "rule", "approval_expired", name),
    ]


def test_an_entry_is_written_with_the_change_or_neither_is(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies between the change and its commit: nothing of both is there."""

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("retuned.retrain.release.rollout.deploy", killed)
        with pytest.raises(Killed):
            ask(local, "promote", workload="support", version=V1)
    assert entries(local.warehouse, "action") == []
    assert local.warehouse.rows("SELECT * FROM promotions") == []


def test_what_fails_or_is_refused_is_there_with_its_reason(local: Local, settings: Settings) -> None:
    with pytest.raises(RetunedError):
        ask(local, "promote", workload="support", version="cccccccc")
    bound = client(local, settings, "ada", "operator", workloads=("billing",))
    viewer = client(local, settings, "vera", "viewer")
    for _ in range(3):  # a program that tries again and again does not fill the audit
        assert bound.post("/api/v1/workloads/support/rollback", json={}).status_code == 403
    for _ in range(3):
        assert viewer.post("/api/v1/workloads/support/rollback", json={}).status_code == 403
    (failed, refused, least) = entries(local.warehouse, "actor", "action", "outcome", "details")
    assert failed[1:3] == ("promote", "failed")
    assert "no version cccccccc" in json.loads(failed[3])["problem"]
    assert refused[:3] == ("ada", "rollback", "refused")
    assert least[:3] == ("vera", "rollback", "refused")
    assert "role operator" in json.loads(least[3])["problem"]


def test_each_answer_with_conversations_is_one_entry_and_figures_are_none(local: Local, settings: Settings) -> None:
    otto = client(local, settings, "otto", "operator")
    for path in (
        "answers?text=secret+words",
        "exports/interactions",
        "interactions/support-0",
        "labels",
        "dead-letters",
    ):
        assert otto.get(f"/api/v1/{path}").status_code == 200, path
    for path in ("status", "overview", "versions", "runs", "openapi.json"):
        assert otto.get(f"/api/v1/{path}").status_code == 200, path
    found = entries(local.warehouse, "actor", "action", "subject")
    named = [("answers", None), ("export", "interactions"), ("interaction", "support-0"), ("labels", None)]
    assert found == [("otto", *one) for one in [*named, ("dead_letters", None)]]
    assert "secret" not in str(entries(local.warehouse, *COLUMNS))


def test_an_answer_with_a_field_for_texts_may_be_refused() -> None:
    """Whatever its method and the least role are."""
    texts = {"question", "answer", "payload", "content"}
    found = {one.name for one in OPERATIONS if texts & fields_of(one.shape or one.result)}
    assert found > {"labels", "rows", "memory_feed", "memory_lookup"}
    assert {one.name for one in OPERATIONS if one.name in found and not one.reads} == set()


def test_it_is_decided_of_each_untyped_answer_whether_it_holds_conversations() -> None:
    """A new one has to be decided about: `reads="conversations"`, or among these."""
    figures = {"audit_log", "history", "openapi", "overview", "position", "take", "work_on_label"}
    untyped = [one for one in OPERATIONS if "Any" in str(one.shape or one.result) or one.streams == "bytes"]
    assert {one.name for one in untyped if not (one.reads or one.shape)} == figures


def fields_of(kind: Any) -> set[str]:
    """The fields of an answer, and of the objects in it."""
    if is_typeddict(kind):
        own = get_type_hints(kind)
        return set(own).union(*map(fields_of, own.values()))
    return set[str]().union(*map(fields_of, get_args(kind)))


def test_who_may_not_read_conversations_is_refused_all_answers_with_texts(local: Local) -> None:
    nora = Caller("nora", conversations=False)
    reading = [one for one in OPERATIONS if one.reads]
    for one in reading:
        request = one.request.model_construct(workload="support", messages=[])
        with pytest.raises(Forbidden, match="nora may not read conversations"):
            local.perform(one, request, nora)
    assert entries(local.warehouse, "actor", "action", "outcome") == [("nora", one.name, "refused") for one in reading]


def test_who_reads_the_memory_is_there_and_a_gateway_that_polls_it_is_not(local: Local, settings: Settings) -> None:
    question = {"workload": "support", "messages": [{"role": "user", "content": "a secret"}]}
    for name in ("gateway", "operator"):
        asked = client(local, settings, name, name)
        assert asked.get("/api/v1/memory/feed").status_code == 200
        assert asked.post("/api/v1/memory/lookup", json=question).status_code == 200
    assert entries(local.warehouse, "actor", "action", "workload", "details") == [
        ("operator", "memory_feed", None, "{}"),
        ("operator", "memory_lookup", "support", '{"messages":"1 entries"}'),
    ]


def test_without_principals_a_gateway_fills_no_audit(local: Local) -> None:
    local.perform(BY_NAME["memory_feed"], BY_NAME["memory_feed"].parse({}), Caller())
    assert entries(local.warehouse, "action") == []


def test_each_refusal_is_there_with_its_workload(local: Local, settings: Settings) -> None:
    """Also of figures, which are read without a row."""
    boa = client(local, settings, "boa", "admin", workloads=("billing",))
    for path, status in (
        ("audit", 403),
        ("holds", 403),
        ("erasures", 403),
        ("accounts?workload=support", 403),
        ("workloads/support/status", 403),
        ("interactions/support-0", 403),
        ("versions?workload=billing", 404),
        ("workloads/billing/status", 404),
    ):
        assert boa.get(f"/api/v1/{path}").status_code == status, path
    assert boa.get("/api/v1/route", params={"workload": "support", "conversation": "c-1"}).status_code == 403
    found = entries(local.warehouse, "action", "outcome", "workload")
    named = [("accounts", "support"), ("workload_status", "support"), ("interaction", "support"), ("route", "support")]
    expected = [("audit", None), ("holds", None), ("erasures", None), *named]
    assert found == [(action, "refused", workload) for action, workload in expected]
    assert "c-1" not in str(entries(local.warehouse, "details"))


def test_a_request_that_names_ids_is_there_with_their_workloads(local: Local, settings: Settings) -> None:
    otto = client(local, settings, "otto", "operator")
    assert otto.get("/api/v1/interactions/support-0").status_code == 200
    rollout, now = local.jobs.context.rollout, local.jobs.context.now()
    approve.request(rollout, "support", V1, None, enqueue(local.warehouse, "support", ["drift"], now), now)
    (waiting,) = otto.get("/api/v1/approvals").json()
    refusal = {"decision": "refuse", "reason": "because"}
    assert otto.post(f"/api/v1/approvals/{waiting['id']}", json=refusal).status_code == 200
    assert entries(local.warehouse, "action", "workload", actor="otto", outcome="done")[:2] == [
        ("interaction", "support"),
        ("decide_approval", "support"),
    ]

    def decide(local: Local, request: Request, caller: Caller) -> dict[str, Any]:  # noqa: ARG001
        for workload in ("support", "billing", "support"):
            caller.check(workload)
        return {}

    made: Operation[Any, Any] = operation("POST", "/decide", least="operator", bound="own")(decide)
    local.ask(made, made.parse({}))
    (row,) = entries(local.warehouse, "workload", "details", action="decide")
    assert row == (None, '{"workloads":["billing","support"]}')


def test_an_unexpected_failure_is_there_without_its_text(local: Local) -> None:
    """It may have taken effect: what the first transaction wrote stays."""

    def change(local: Local, request: Request, caller: Caller) -> dict[str, Any]:  # noqa: ARG001
        local.warehouse.execute("UPDATE models SET path = path")
        raise ValueError("the answer was: a secret")

    made: Operation[Any, Any] = operation("POST", "/change", least="operator")(change)
    with pytest.raises(ValueError, match="a secret"):
        local.ask(made, made.parse({}))
    assert entries(local.warehouse, "action", "outcome", "details") == [
        ("change", "done", "{}"),
        ("change", "failed", '{"problem":"ValueError"}'),
    ]


def test_it_is_decided_of_each_field_whether_the_audit_may_keep_it() -> None:
    """A new one that holds text of a conversation, or personal data, is annotated with `Content`; a user, with
    `Person`."""
    kept = {
        "action", "actor", "after", "as_of", "before", "base", "folder", "id", "ids", "item", "metric",
        "model", "reason", "run", "segment", "since", "until", "user", "version", "what", "workload",
    }  # fmt: skip
    found = set[str]()
    for one in (one for one in OPERATIONS if one.is_public):
        for name, field in one.request.model_fields.items():
            if "str" in str(field.annotation) and not any(
                isinstance(mark, Content | Person) for mark in field.metadata
            ):
                found.add(name)
    assert found == kept


def test_a_principal_without_conversations_gets_figures_and_commands_and_no_text(
    local: Local, settings: Settings
) -> None:
    nora = client(local, settings, "nora", "operator", conversations=False)
    for path in (
        "answers",
        "exports/interactions",
        "interactions/support-0",
        "labels",
        "workloads/support/rows",
        "lineage/x",
    ):
        answer = nora.get(f"/api/v1/{path}")
        assert (answer.status_code, "may not read conversations" in answer.text) == (403, True), path
    assert nora.get("/api/v1/status").status_code == 200
    assert nora.post("/api/v1/workloads/support/promote", json={"version": V1}).status_code == 200
    browser = {"Accept": "text/html"}
    page = nora.get("/workloads/support", headers=browser)
    assert page.status_code == 200
    assert 'href="/answers' not in page.text
    assert nora.get("/answers", headers=browser).status_code == 403


def test_no_text_of_a_conversation_and_no_personal_data_is_in_the_audit(local: Local) -> None:
    with pytest.raises(RetunedError):
        ask(local, "answer_label", id="support-0", name="correction", value="the right answer", comment="a remark")
    with pytest.raises(RetunedError):
        ask(local, "decide_rows", action="edit", ids=["f0"], answer="taught words", reason="ann@example.com asked")
    found = str(entries(local.warehouse, *COLUMNS))
    assert "16 characters" in found
    assert "[EMAIL" in found.upper().replace("<", "[")
    for text in ("right answer", "a remark", "taught words", "ann@example.com"):
        assert text not in found


def test_a_user_whom_a_request_is_about_is_neither_its_author_nor_in_the_audit(local: Local) -> None:
    class About(Request):
        user: Annotated[str | None, Content()] = None

    def look_up(local: Local, request: About, caller: Caller) -> dict[str, Any]:  # noqa: ARG001
        raise RetunedError(f"user {request.user}: unknown")

    made: Operation[Any, Any] = operation("POST", "/look-up", least="admin")(look_up)
    with pytest.raises(RetunedError):
        local.ask(made, made.parse({"user": "anna-4711"}))
    assert "anna-4711" not in str(entries(local.warehouse, *COLUMNS))


def test_the_reason_of_a_change_is_redacted_wherever_it_is_kept(local: Local) -> None:
    """And an erasure's names no id that it erases: the receipt is kept for good."""
    because = "anna@example.com (u-4711) asked, call +49 171 2345678"
    ask(local, "pause", workload="support", reason=because)
    ask(local, "forget", user_id="u-4711", reason=because)
    ask(local, "promote", workload="support", version=V1, reason=because)
    tables = ("pauses", "erasures", "promotions")
    found = {table: str(local.warehouse.rows(f"SELECT * FROM {table}")) for table in tables}
    for table, text in found.items():
        assert "<EMAIL_1>" in text, table
        assert "anna@example.com" not in text, table
        assert "2345678" not in text, table
    assert "asked, call" in found["erasures"]
    assert "4711" not in found["erasures"]


def test_who_is_bound_to_workloads_learns_no_name_of_others(local: Local) -> None:
    interactions(local.warehouse, ["Where?"], Random(1), workload="rival.loans", start=utc_now() - timedelta(hours=1))
    bert = Caller("bert", workloads=("support*",))
    for name in ("pause", "retrain", "workload_status", "route"):
        given = {"workload": "support.x"} | ({"conversation": "c"} if name == "route" else {})
        made = BY_NAME[name]
        with pytest.raises(RetunedError, match=r"known are ") as refused:
            local.perform(made, made.parse(given), bert)
        assert "rival" not in str(refused.value)


def test_prompts_that_drift_found_are_for_those_who_may_read_conversations(local: Local, settings: Settings) -> None:
    feature = {"feature": "topic", "drifted": True, "example": "my question", "reference": "a", "current": "b"}
    local.warehouse.insert(
        "drift_checks", id="d1", created_at=utc_now(), workload="support", drifted=True, detail="topic moved",
        features=json.dumps([feature]), reference_rows=9, current_rows=9, severity=0.2, severity_low=0.1,
        severity_high=0.3,
    )  # fmt: skip
    viewer, operator = client(local, settings, "vera", "viewer"), client(local, settings, "otto", "operator")
    nora = client(local, settings, "nora", "operator", conversations=False)
    for one in (viewer, nora):
        for path in ("status", "overview", "workloads/support/status", "workloads/support/history?range=1d"):
            answer = one.get(f"/api/v1/{path}")
            assert (answer.status_code, "my question" in answer.text) == (200, False), path
        assert one.get("/api/v1/workloads/support/drift-examples").status_code == 403
        page = one.get("/workloads/support", headers={"Accept": "text/html"}).text
        assert "drift-examples" not in page
    found = operator.get("/api/v1/workloads/support/drift-examples").json()
    assert found == [{"feature": "topic", "example": "my question"}]
    assert "drift-examples" in operator.get("/workloads/support", headers={"Accept": "text/html"}).text
    shown = operator.get("/workloads/support/drift-examples", headers={"Accept": "text/html"})
    assert (shown.status_code, "my question" in shown.text) == (200, True)


def test_messages_are_counted_and_what_a_machine_looks_up_is_no_change(local: Local) -> None:
    class Talk(Request):
        messages: list[dict[str, Any]]

    def talk(local: Local, request: Talk, caller: Caller) -> dict[str, Any]:  # noqa: ARG001
        return {}

    for least in ("metrics", "operator"):
        made: Operation[Any, Any] = operation("POST", "/talk", least=cast(Any, least))(talk)
        local.ask(made, made.parse({"messages": [{"role": "user", "content": "a secret"}]}))
    assert entries(local.warehouse, "action", "details") == [("talk", '{"messages":"1 entries"}')]


def test_an_operation_without_a_transaction_is_there_too(local: Local, tmp_path: Path) -> None:
    ask(local, "backup", folder=str(tmp_path / "backups"))
    ((action, details),) = entries(local.warehouse, "action", "details")
    assert (action, json.loads(details)) == ("backup", {"folder": f"{tmp_path}/backups"})


def test_rows_form_a_chain_whoever_writes_at_the_same_time(local: Local) -> None:
    def read() -> None:
        for _ in range(5):
            ask(local, "labels")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = local.warehouse.rows("SELECT * FROM audit ORDER BY sequence")
    assert [row["sequence"] for row in found] == list(range(1, 21))
    assert [row["previous"] for row in found] == [FIRST, *(row["hash"] for row in found[:-1])]
    assert [row["hash"] for row in found] == [digest(row) for row in found]
