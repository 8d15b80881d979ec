"""Experts answer label requests: on the page and by the API; who may, what is sent, what is refused."""

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from fixtures.daemon.doors import FakeDaemon
from fixtures.feedback.teaching import Teacher
from fixtures.feedback.traffic import BOUNDS, insert_event
from retuned.consumers.errors import BrokerUnavailable, RetunedError
from retuned.consumers.formats.events import Feedback, decode
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import insert, utc_now
from retuned.daemon.console import teach
from retuned.daemon.operations.console import Inbox, MyAnswers, WorkOnLabel, inbox, my_answers, work_on_label
from retuned.daemon.operations.labels import AnswerLabel, answer_label, labels
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.operations.operation import Caller
from retuned.daemon.operations.rows import DecideRows, PreviewDataset, decide_rows, preview_dataset
from retuned.daemon.settings import Settings
from retuned.daemon.web.principals import add
from retuned.daemon.web.routes import application
from retuned.retrain.data import label_requests

REASONS = {"uncertain": "May I return a lamp?", "calibration": "Is a sofa heavy?", "conflict": "Who is the boss?"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        warehouse={"path": tmp_path / "w.duckdb"},
        http={"principals_file": tmp_path / "principals.yaml"},
        kafka={"expert_topic": "experts"},
    )


@pytest.fixture
def service(settings: Settings) -> Iterator[Local]:
    """With a request of each kind."""
    with opened(settings) as made:
        made.jobs.context.publisher = MemoryPublisher()
        teacher = Teacher(made.warehouse)
        for reason, question in REASONS.items():
            first = teacher.correct(question, "<b>Certainly.</b>", "Mister Smith.", "user", "u1")
            second = teacher.correct(question, "Certainly.", "Anna.", "user", "u2")
            pair = {"first_feedback_id": first, "second_feedback_id": second} if reason == "conflict" else {}
            (interaction,) = (
                row["interaction_id"]
                for row in made.warehouse.rows("SELECT interaction_id FROM feedback WHERE id = $1", [first])
            )
            with made.warehouse.transaction() as cursor:
                insert(
                    cursor, "label_requests", id=reason, created_at=teacher.now, workload="support", score=None,
                    interaction_id=interaction, reason=reason, detail="Why not?", announced=True, **pair,
                )  # fmt: skip
        yield made


@pytest.fixture
def clients(service: Local, settings: Settings) -> dict[str, TestClient]:
    file = settings.http.principals_file
    assert file is not None
    tokens = {
        name: add(file, name, cast(Any, role), None, datetime.now(UTC))
        for name, role in (("vera", "viewer"), ("ada", "labeller"))
    }
    made = application(service, cast(Any, FakeDaemon()), settings)
    return {
        name: TestClient(
            made, "http://localhost:8321", headers={"Authorization": f"Bearer {token}"}, follow_redirects=False
        )
        for name, token in tokens.items()
    }


def asked_about(client: TestClient) -> dict[str, str]:
    return {one["reason"]: one["interaction_id"] for one in client.get("/api/v1/labels").json()}


def sent(service: Local) -> list[tuple[str, str, Any, str]]:
    """Topic, interaction, name and value of what was published; each is an event of an expert."""
    publisher = service.jobs.context.publisher
    assert isinstance(publisher, MemoryPublisher)
    found = []
    for topic, key, message in publisher.messages:
        event = decode("feedback", json.dumps(message).encode(), BOUNDS)
        assert isinstance(event, Feedback)
        assert (event.source, event.user_id, event.interaction_id) == ("expert", "ada", key)
        found.append((topic, event.interaction_id, event.name, event.value))
    return found


def test_an_expert_judges_on_the_page(service: Local, clients: dict[str, TestClient]) -> None:
    """The requests are about three answers, and one more about an answer that another request is about, too."""
    ada, asked = clients["ada"], asked_about(clients["ada"])
    with service.warehouse.transaction() as cursor:
        insert(
            cursor, "label_requests", id="both", created_at=utc_now(), workload="support", score=None,
            interaction_id=asked["uncertain"], reason="calibration", detail="Why not?", announced=True,
        )  # fmt: skip
    assert clients["vera"].get("/teach").status_code == 403
    for id, question in (*REASONS.items(), ("both", REASONS["uncertain"])):
        assert question in ada.get(f"/teach?item={id}").text
    page = ada.get("/teach?item=conflict").text
    assert page.index("Mister Smith.") < page.index("Anna.")
    assert "&lt;b&gt;Certainly.&lt;/b&gt;" in ada.get("/teach?item=uncertain").text
    for id, form in (
        ("uncertain", {"verdict": "correction", "correction": " Within 14 days. "}),
        ("calibration", {"verdict": "hallucination no", "correction": ""}),
        ("conflict", {"verdict": "same no", "correction": ""}),
    ):
        answer = ada.post(f"/labels/{id}", data=form)
        assert answer.status_code == 303
        assert answer.headers["location"].endswith(f"saved={id}")
    assert sent(service) == [
        ("experts", asked["uncertain"], "correction", "Within 14 days."),
        ("experts", asked["calibration"], "hallucination", False),
        ("experts", asked["conflict"], "same", False),
    ]
    # What was answered is not asked again; the other request about the same answer is.
    assert [one["request_id"] for one in ada.get("/api/v1/inbox").json()["items"]] == ["both"]
    for form in ({"name": "helpful", "value": "true"}, {"verdict": "helpful"}, {"verdict": "helpful maybe"}):
        problem = ada.post("/labels/uncertain", data=form)
        assert problem.status_code == 400
        assert "verdict: choose one of the answers, as hallucination no, hallucination yes," in problem.text
    problem = ada.post("/labels/uncertain", data={"verdict": "correction", "correction": " "})
    assert problem.status_code == 409
    assert "correction: expected the right answer, a text" in problem.text
    assert "May I return a lamp?" in problem.text
    assert ada.post("/labels/both", data={"verdict": "hallucination yes"}).status_code == 303
    assert ada.get("/api/v1/inbox").json()["items"] == []


def test_a_program_answers_and_what_does_not_answer_is_refused(
    service: Local, clients: dict[str, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, asked = clients["ada"], asked_about(clients["ada"])
    path = f"/api/v1/labels/{asked['uncertain']}"
    for where, body, status, named in (
        (path, {"name": "same", "value": True}, 409, "one with the reason uncertain by helpful or correction"),
        (path, {"name": "helpful", "value": "yes"}, 409, "helpful: expected true or false"),
        (path, {"value": True}, 400, "name: expected correction or helpful"),
        ("/api/v1/labels/nothing", {"name": "helpful", "value": True}, 409, "no request about nothing is open"),
    ):
        refused = ada.post(where, json=body)
        assert (refused.status_code, named in refused.json()["error"]) == (status, True), refused.text
    assert clients["vera"].post(path, json={"name": "helpful", "value": True}).status_code == 403
    assert sent(service) == []
    assert ada.post(path, json={"name": "helpful", "value": True}).json()["interaction_id"] == asked["uncertain"]
    assert sent(service) == [("experts", asked["uncertain"], "helpful", True)]

    def away(*_: Any) -> None:
        raise BrokerUnavailable("kafka: it does not answer")

    monkeypatch.setattr(service.jobs.context.publisher, "publish_all", away)
    assert ada.post(path, json={"name": "helpful", "value": False}).status_code == 503


def test_of_two_experts_who_agree_at_the_same_moment_one_answer_is_sent(
    service: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both read what others answered before either has written."""
    several(service, 2)
    read, about = threading.Barrier(2), teach.about

    def together(*arguments: Any) -> Any:
        found = about(*arguments)
        with suppress(threading.BrokenBarrierError):
            read.wait(0.5)
        return found

    monkeypatch.setattr(teach, "about", together)
    threads = [threading.Thread(target=answer, args=(service, who)) for who in ("ada", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cast(Any, service.jobs.context.publisher).messages) == 1
    assert service.perform(inbox, Inbox(), Caller("cleo"))["by_status"] == {"answered": 1, "open": 2}


def test_a_request_is_open_again_once_fewer_experts_have_to_agree(service: Local) -> None:
    several(service, 2)
    assert "another expert's answer is awaited" in answer(service, "ada")
    several(service, 1)
    for who in ("ada", "cleo"):
        assert service.perform(inbox, Inbox(), Caller(who))["waiting"] == 3
    assert "it counts as feedback" in answer(service, "ada")
    assert len(cast(Any, service.jobs.context.publisher).messages) == 1


def test_an_answer_against_those_who_agree_is_not_sent(service: Local) -> None:
    several(service, 2)
    for who in ("ada", "bob"):
        answer(service, who)
    assert "enough experts agree on another answer" in answer(service, "cleo", value=False)
    assert len(cast(Any, service.jobs.context.publisher).messages) == 1


@pytest.mark.parametrize("state", ["claimed", "skipped"])
@pytest.mark.parametrize("opinions", [1, 2])
def test_what_an_expert_answered_stays_when_they_claim_or_skip_it(service: Local, opinions: int, state: str) -> None:
    """As with the browser's Back and then Skip."""
    several(service, opinions)
    work = WorkOnLabel(id="uncertain", state=cast(Any, state))
    assert service.perform(work_on_label, work, Caller("ada"))["state"] == state
    answer(service, "ada")
    before = service.warehouse.rows("SELECT * FROM label_work")
    assert service.perform(work_on_label, work, Caller("ada"))["state"] == "answered"
    assert service.warehouse.rows("SELECT * FROM label_work") == before
    assert len(service.perform(my_answers, MyAnswers(), Caller("ada"))) == 1


def test_of_two_experts_who_claim_a_request_the_second_is_refused(service: Local) -> None:
    claim = WorkOnLabel(id="uncertain", state="claimed")
    for _ in range(2):
        assert service.perform(work_on_label, claim, Caller("ada"))["state"] == "claimed"
    with pytest.raises(RetunedError, match="another expert has claimed this request, for 15 minutes"):
        service.perform(work_on_label, claim, Caller("bob"))
    service.warehouse.execute("UPDATE label_work SET since = since - INTERVAL 15 MINUTE")
    assert service.perform(work_on_label, claim, Caller("bob"))["state"] == "claimed"


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_change_that_ends_an_agreement_which_was_sent_is_refused(service: Local, is_closed: bool) -> None:
    """Nobody else is asked any more, so nobody could decide."""
    several(service, 2)
    for who in ("ada", "bob"):
        answer(service, who)
    if is_closed:
        service.warehouse.execute("UPDATE label_requests SET answered_at = created_at WHERE id = 'uncertain'")
    before = service.warehouse.rows("SELECT * FROM label_work ORDER BY expert")
    with pytest.raises(RetunedError, match="nobody else is asked; a change counts if 2 experts agree on it"):
        answer(service, "ada", value=False)
    assert service.warehouse.rows("SELECT * FROM label_work ORDER BY expert") == before
    assert "it counts as feedback" in answer(service, "ada")


def test_a_change_on_which_enough_experts_agree_counts(service: Local) -> None:
    several(service, 2)
    for who, value in (("ada", True), ("cleo", False), ("bob", True)):
        answer(service, who, value=value)
    service.warehouse.execute("UPDATE label_requests SET answered_at = created_at WHERE id = 'uncertain'")
    assert "it counts as feedback" in answer(service, "ada", value=False)
    values = [message["value"] for _, _, message in cast(Any, service.jobs.context.publisher).messages]
    assert values == [True, False]


def test_a_vote_and_its_comment_are_sent_together(service: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(
        service.jobs.context.publisher,
        "publish_all",
        lambda topic, messages: batches.append((topic, [message["name"] for _, message in messages])),
    )
    asked = AnswerLabel(id="uncertain", name="helpful", value=False, comment="a remark")
    service.perform(answer_label, asked, Caller("ada"))
    assert batches == [("experts", ["helpful", "comment"])]
    assert service.warehouse.rows("SELECT action, workload FROM audit") == [
        {"action": "answer_label", "workload": "support"}
    ]


@pytest.mark.parametrize(("name", "value"), [("correction", "Within 14 days."), ("helpful", False)])
@pytest.mark.parametrize("comment", ["a remark", None])
def test_an_answer_that_is_sent_again_after_a_lost_reply_is_one(
    service: Local, name: Any, value: Any, comment: str | None
) -> None:
    request = AnswerLabel(id="uncertain", name=name, value=value, comment=comment)
    first = service.perform(answer_label, request, Caller("ada"))
    assert service.perform(answer_label, request, Caller("ada")) == first
    assert len(arrive(service)) == (2 if comment else 1)
    assert service.perform(answer_label, request, Caller("ada")) == first
    assert arrive(service) == []
    service.perform(answer_label, AnswerLabel(id="uncertain", name="helpful", value=True), Caller("ada"))
    assert len(arrive(service)) == 1
    service.perform(answer_label, request, Caller("ada"))  # a change back is a new statement
    assert len(arrive(service)) == (2 if comment else 1)


@pytest.mark.parametrize("lost", ["before it was sent", "after it was sent"])
def test_an_answer_that_is_sent_again_after_an_error_has_the_same_ids(
    service: Local, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    publisher, published = cast(Any, service.jobs.context.publisher), list[str]()
    publish_all = publisher.publish_all

    def failing(topic: str, messages: Any) -> None:
        published.extend(event["id"] for _, event in messages)
        if lost == "after it was sent":
            publish_all(topic, messages)
        raise BrokerUnavailable("no reply")

    request = AnswerLabel(id="uncertain", name="correction", value="Within 14 days.", comment="a remark")
    with monkeypatch.context() as patched:
        patched.setattr(publisher, "publish_all", failing)
        with pytest.raises(BrokerUnavailable):
            service.perform(answer_label, request, Caller("ada"))
    assert len(service.perform(labels, labels.parse({}), Caller("ada"))) == 3  # it is still open
    service.perform(answer_label, request, Caller("ada"))
    sent = [event["id"] for _, _, event in publisher.messages]
    assert set(sent) == set(published)
    assert len(published) == 2


def test_a_correction_that_is_changed_while_the_broker_is_down_is_not_taught(
    service: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.perform(answer_label, AnswerLabel(id="uncertain", name="correction", value="Never."), Caller("ada"))
    arrive(service)
    later = AnswerLabel(id="uncertain", name="correction", value="Within 14 days.")

    def failing(*_: Any) -> None:
        raise BrokerUnavailable("no reply")

    with monkeypatch.context() as patched:
        patched.setattr(service.jobs.context.publisher, "publish_all", failing)
        with pytest.raises(BrokerUnavailable):
            service.perform(answer_label, later, Caller("ada"))
    service.perform(answer_label, later, Caller("ada"))
    assert len(arrive(service)) == 1
    taught = [row["answer"] for row in previewed(service) if row["state"] == "taught"]
    assert "Never." not in taught


def test_an_answer_in_which_only_what_is_redacted_changed_is_a_change(service: Local) -> None:
    for address in ("anna@example.com", "bob@example.com"):
        request = AnswerLabel(id="uncertain", name="correction", value=f"Write to {address}")
        service.perform(answer_label, request, Caller("ada"))
    values = [message["value"] for _, _, message in cast(Any, service.jobs.context.publisher).messages]
    assert values == ["Write to anna@example.com", "Write to bob@example.com"]


def test_an_answer_that_waits_for_another_expert_is_stored_redacted(service: Local) -> None:
    """It is published as it was written: what is read from the topic gets the numbers of the conversation."""
    several(service, 2)
    words = {"value": "Write to anna@example.com", "comment": "bob@example.com said so"}
    for who in ("ada", "bob"):
        service.perform(answer_label, AnswerLabel(id="uncertain", name="correction", **words), Caller(who))
        stored = str(service.warehouse.rows("SELECT value, comment FROM label_work"))
        assert "Write to <EMAIL_" in stored
        assert "example.com" not in stored
    values = [message["value"] for _, _, message in cast(Any, service.jobs.context.publisher).messages]
    assert "Write to anna@example.com" in values


@pytest.mark.parametrize(
    ("id", "later", "is_read"),
    [
        ("uncertain", ("helpful", False), True),
        ("uncertain", ("helpful", False), False),
        ("uncertain", ("correction", "Anna, once more."), True),
        ("conflict", ("same", True), True),
    ],
)
def test_a_correction_is_not_taught_once_its_expert_has_answered_otherwise(
    service: Local, id: str, later: tuple[str, Any], is_read: bool
) -> None:
    """It may still be in the topic, and not in the warehouse."""
    service.perform(answer_label, AnswerLabel(id=id, name="correction", value="Never."), Caller("ada"))
    if is_read:
        arrive(service)
    service.perform(answer_label, AnswerLabel(id=id, name=cast(Any, later[0]), value=later[1]), Caller("ada"))
    arrive(service)
    rows = previewed(service)
    assert "Never." not in [row["answer"] for row in rows if row["state"] == "taught"]
    (withdrawn,) = (row for row in rows if row["answer"] == "Never.")
    assert (withdrawn["state"], withdrawn["reason"]) == ("overruled", "dropped")
    assert "ada" in withdrawn["detail"]


def test_an_operator_who_kept_a_correction_outranks_its_expert(service: Local) -> None:
    service.perform(answer_label, AnswerLabel(id="uncertain", name="correction", value="Never."), Caller("ada"))
    (id,) = arrive(service)
    service.perform(decide_rows, DecideRows(action="keep", ids=[id], reason="as in the terms"), Caller("otto"))
    answer(service, "ada", value=False)
    arrive(service)
    assert "Never." in [row["answer"] for row in previewed(service) if row["state"] == "taught"]


def test_what_was_typed_about_a_request_that_is_gone_stands_in_the_form_of_no_other(
    service: Local, clients: dict[str, TestClient]
) -> None:
    service.warehouse.execute("UPDATE label_requests SET answered_at = created_at WHERE id = 'uncertain'")
    form = {"verdict": "correction", "correction": "Within 14 days.", "comment": "the <b>terms</b>"}
    page = clients["ada"].post("/labels/uncertain", data=form)
    assert (page.status_code, "no request about uncertain is open" in page.text) == (409, True)
    lost, _, shown = page.text.partition('<form class="card pad"')
    assert "What you typed was not saved" in lost
    assert "<dd>Within 14 days.</dd>" in lost
    assert "<dd>the &lt;b&gt;terms&lt;/b&gt;</dd>" in lost
    assert 'action="/labels/calibration"' in shown
    for typed in ("Within 14 days.", "terms", "checked"):
        assert typed not in shown


def test_a_turn_with_calls_of_tools_alone_is_shown(service: Local, clients: dict[str, TestClient]) -> None:
    """OpenAI's API allows it."""
    call = {"id": "c1", "type": "function", "function": {"name": "find_order", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Where is my lamp?"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "shipped"},
    ]
    service.warehouse.execute("UPDATE interactions SET messages = ?", [json.dumps(messages)])
    page = clients["ada"].get("/teach")
    assert page.status_code == 200
    assert "<dd>Where is my lamp?</dd>" in page.text
    assert "find_order" in page.text


def test_a_line_ends_as_in_the_answer_that_was_edited(service: Local, clients: dict[str, TestClient]) -> None:
    """Browsers send CR and LF."""
    form = {"verdict": "correction", "correction": "One\r\nTwo\r\n  - three"}
    assert clients["ada"].post("/labels/uncertain", data=form).status_code == 303
    assert [value for *_, value in sent(service)] == ["One\nTwo\n  - three"]


def test_white_space_and_case_are_a_change(service: Local, clients: dict[str, TestClient]) -> None:
    code = "for y in x:\n    print(y)\n    stop()"
    service.warehouse.execute("UPDATE interactions SET response = ?", [code])
    path = "/api/v1/labels/uncertain"
    refused = clients["ada"].post(path, json={"name": "correction", "value": f" {code}\n"})
    assert (refused.status_code, "unchanged" in refused.text) == (409, True)
    fixed = code.replace("    stop", "stop")
    assert clients["ada"].post(path, json={"name": "correction", "value": fixed}).status_code == 200


def test_long_texts_are_shown_without_a_comparison(
    service: Local, clients: dict[str, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the browser; what is compared for a page is bounded altogether."""
    ada, long = clients["ada"], "word " * 1_100
    service.warehouse.execute("UPDATE interactions SET response = ?", [long])
    for id, right in (("uncertain", f"{long}more"), ("conflict", "Short.")):
        assert ada.post(f"/api/v1/labels/{id}", json={"name": "correction", "value": right}).status_code == 200
    compared: list[str] = []
    diff = teach.diff
    monkeypatch.setattr(teach, "diff", lambda *texts: compared.append(texts[1]) or diff(*texts))
    page = ada.get("/teach/mine").text
    assert compared == ["Short."]
    assert f"<dt>Right answer</dt><dd>{long}more</dd>" in page
    ada.get("/teach?saved=uncertain")
    assert compared == ["Short."], "of what was just saved alone"


def test_what_became_of_an_answer_is_that_of_the_latest(service: Local) -> None:
    def became() -> list[str | None]:
        return [one["state"] for one in service.perform(my_answers, MyAnswers(), Caller("ada"))]

    for value, state in (("Never.", "taught"), ("Within 30 days.", "waiting")):
        service.perform(answer_label, AnswerLabel(id="uncertain", name="correction", value=value), Caller("ada"))
        assert became() == [None]
        (id,) = arrive(service)
        service.warehouse.insert(
            "row_states", workload="support", feedback_id=id, interaction_id="i", state=state, reason="", detail="",
            quarantined=False, dataset_version="d", decided_at=utc_now(),
        )  # fmt: skip
        assert became() == [state]


def arrive(service: Local) -> list[str]:
    """What was published is read from the topic; returns the ids."""
    messages = cast(Any, service.jobs.context.publisher).messages
    stored = service.warehouse.rows("SELECT count(*) AS n FROM feedback")[0]["n"]
    ids = []
    for number, (_, _, event) in enumerate(messages, stored):
        insert_event(
            service.warehouse, "feedback", id=event["id"], timestamp=utc_now(), interaction_id=event["interaction_id"],
            name=event["name"], value=json.dumps(event["value"]), source=event["source"], user_id=event["user_id"],
            topic="feedback", partition=0, offset=1_000 + number, received_at=utc_now(),
        )  # fmt: skip
        ids.append(event["id"])
    messages.clear()
    label_requests.settle(service.warehouse)
    return ids


def previewed(service: Local) -> list[dict[str, Any]]:
    found = service.perform(preview_dataset, PreviewDataset(workload="support"), Caller("otto"))
    rows: list[dict[str, Any]] = json.loads(b"".join(found))["rows"]
    return rows


def several(service: Local, opinions: int) -> None:
    settings = service.settings.model_copy(
        update={"labels": service.settings.labels.model_copy(update={"opinions": opinions})}
    )
    service.settings = service.jobs.context.settings = settings


def answer(service: Local, who: str, value: bool = True) -> str:
    request = AnswerLabel(id="uncertain", name="helpful", value=value)
    return str(service.perform(answer_label, request, Caller(who))["done"])
