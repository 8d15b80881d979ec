"""The job of the memory of corrections, its feed, and what a restore and an erasure make of it."""

import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from doors import FakeDaemon
from erasing import now
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient
from teaching import Teacher

from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_existing
from retuned.consumers.warehouse.selection import Selection
from retuned.daemon.backup.create import back_up
from retuned.daemon.backup.restore import choose, restore
from retuned.daemon.cli.summary import details
from retuned.daemon.erasure.erasure import Erasures
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.metrics import Metrics
from retuned.daemon.operations.local import Local
from retuned.daemon.operations.memory import Feed, memory_feed
from retuned.daemon.operations.operation import Caller
from retuned.daemon.operations.state import workload_status
from retuned.daemon.settings import Settings
from retuned.daemon.web.routes import application
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.monitors.watch import memory
from retuned.retrain.memory import entries, keys, statements
from retuned.retrain.memory.feed import stated
from retuned.retrain.memory.lookup import look_up
from retuned.retrain.metrics import Metrics as RetrainMetrics

ON: dict[str, Any] = {"memory": {"mode": "context"}}


class Rig:
    """The jobs of a daemon at the time of a teacher."""

    def __init__(self, teacher: Teacher, **settings: Any) -> None:
        self.teacher, self.registry = teacher, CollectorRegistry()
        self.settings = Settings(warehouse=WarehouseSettings(path=teacher.warehouse.path), **settings)
        metrics = Metrics(self.registry), MonitorMetrics(self.registry), RetrainMetrics(self.registry)
        made: list[Any] = [teacher.warehouse, self.settings, None, *metrics, threading.Event()]
        self.jobs = Jobs(Context(*made, lambda: teacher.now + timedelta(seconds=1)), print)
        self.local = Local(self.jobs)

    def feed(self, after: int = 0, limit: int = 5_000, workloads: tuple[str, ...] | None = None) -> Any:
        return memory_feed.run(self.local, Feed(after=after, limit=limit), Caller("gateway", workloads=workloads))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"workload": "support", **labels})


@pytest.fixture
def rig(teacher: Teacher) -> Iterator[Rig]:
    made = Rig(teacher, workloads={"support": ON})
    yield made
    made.jobs.shutdown()


def correct(teacher: Teacher, count: int) -> None:
    for number in range(count):
        teacher.correct(f"Is item {number} in stock?", "No.", f"Yes, {number + 2} pieces.")


def test_without_a_workload_that_has_it_there_is_no_job(teacher: Teacher) -> None:
    for settings, expected in (({}, False), ({"workloads": {"support": ON}}, True), (ON, True)):
        assert ("memory" in {job.id for job in Rig(teacher, **settings).jobs.table()}) == expected


def test_a_workload_whose_memory_is_off_has_no_entries(teacher: Teacher, warehouse: Warehouse) -> None:
    other = Teacher(warehouse, "billing")
    other.correct("Is item 1 in stock?", "No.", "Yes.")
    correct(teacher, 1)
    rig = Rig(teacher, workloads={"support": ON})
    rig.jobs.run("memory")
    assert {one["workload"] for one in rig.feed()["entries"]} == {"support"}
    assert {name: one["mode"] for name, one in rig.feed()["modes"].items()} == {"billing": "off", "support": "context"}


def test_one_workload_that_fails_stops_no_other(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    Teacher(teacher.warehouse, "billing").correct("Is item 1 in stock?", "No.", "Yes.")
    correct(teacher, 1)
    follow = entries.follow

    def failing(warehouse: Warehouse, settings: Any, workload: str, now: Any) -> int:
        if workload == "billing":
            raise ValueError("broken")
        return follow(warehouse, settings, workload, now)

    rig = Rig(teacher, **ON)
    (job,) = (job for job in rig.jobs.table() if job.id == "memory")
    monkeypatch.setattr(entries, "follow", failing)
    with pytest.raises(Exception, match="workload billing: ValueError: broken"):
        job.work()
    assert [one["workload"] for one in rig.feed()["entries"]] == ["support"]
    monkeypatch.undo()
    job.work()  # it is tried again
    assert len(rig.feed()["entries"]) == 2


def test_a_gateway_follows_the_feed_page_by_page(rig: Rig, teacher: Teacher) -> None:
    correct(teacher, 5)
    rig.jobs.run("memory")
    seen, after, more = [], 0, True
    while more:
        page = rig.feed(after, limit=2)
        seen += [one["answer"] for one in page["entries"]]
        after, more = page["sequence"], page["more"]
    assert sorted(seen) == [f"Yes, {number} pieces." for number in range(2, 7)]
    teacher.correct("Is item 0 in stock?", "Yes, 2 pieces.", "No, sold out.")
    rig.jobs.run("memory")
    changed = rig.feed(after)["entries"]
    assert [(one["state"], one["answer"]) for one in changed] == [("superseded", ""), ("active", "No, sold out.")]
    assert rig.feed(workloads=("billing",))["entries"] == []


def test_an_entry_that_makes_answers_worse_is_withdrawn_until_a_person_puts_it_back(
    rig: Rig, teacher: Teacher, warehouse: Warehouse
) -> None:
    correct(teacher, 1)
    rig.jobs.run("memory")
    (entry,) = rig.feed()["entries"]
    with teacher.at_once():
        for number in range(300):
            held_out = number % 2 == 0
            memory = {"entries": [] if held_out else [entry["id"]], "held_out": [entry["id"]] if held_out else []}
            asked = teacher.ask("Is item 0 in stock?", "Yes.", attributes={"memory": memory})
            teacher.say(asked, "helpful", held_out, "user", f"user-{number}")
    rig.jobs.run("watch")
    assert rig.feed()["entries"] == []
    assert rig.value("retuned_memory_entries", state="withdrawn") == 1
    assert rig.value("retuned_memory_answers_total", outcome="held_out") == 150
    assert rig.value("retuned_memory_unhelpful_difference_ratio") == 1.0
    (row,) = warehouse.rows("SELECT * FROM memory_entries")
    assert "worse than those held out: unhelpful by user: 100% of 150 votes by 150 accounts" in row["reason"]
    rig.jobs.run("memory")
    assert rig.feed()["entries"] == []  # the correction is no newer than the withdrawal
    teacher.acts += 1
    entries.decide(warehouse, "unfreeze", [entry["id"]], "checked", "olga", teacher.now)
    teacher.acts += 1
    rig.jobs.run("watch")
    assert [one["id"] for one in rig.feed()["entries"]] == [entry["id"]]


def test_a_gateway_starts_over_after_a_restore(
    rig: Rig, teacher: Teacher, warehouse: Warehouse, tmp_path: Path
) -> None:
    correct(teacher, 1)
    rig.jobs.run("memory")
    folder = tmp_path / "backup"
    back_up(warehouse, rig.settings, folder, 1, teacher.now, threading.Event())
    other = Settings(
        warehouse={"path": tmp_path / "other" / "retuned.duckdb"}, models={"directory": tmp_path / "models"}
    )
    restore(other, choose(folder, None), replace=False, now=teacher.now)
    restored = open_existing(other.warehouse)
    (before, after) = (one.row("SELECT epoch FROM memory_epoch") for one in (warehouse, restored))
    assert before
    assert after
    assert before != after
    restored.close()


def test_an_erasure_takes_the_texts_of_entries_with_it(rig: Rig, teacher: Teacher, warehouse: Warehouse) -> None:
    correct(teacher, 2)
    rig.jobs.run("memory")
    kept, erased = sorted(rig.feed()["entries"], key=lambda one: str(one["question"]))
    erasures = rig.jobs.erasures
    id = erasures.request(Selection(interactions=["support-i3"]), "dpo", None)
    erasures.run()
    found = erasures.of(id)
    assert found is not None
    assert found["receipt"]["rows"]["memory_entries"] == 1
    (row,) = warehouse.rows("SELECT * FROM memory_entries WHERE state = 'removed'")
    assert (row["id"], row["question"], row["answer"], row["feedback_ids"]) == (erased["id"], "", "", "[]")
    assert [one["id"] for one in rig.feed()["entries"]] == [kept["id"]]
    assert not warehouse.rows("SELECT * FROM memory_statements WHERE interaction_id = 'support-i3'")


def erase(rig: Rig, interaction: str) -> None:
    erasures = Erasures(rig.teacher.warehouse, rig.settings, threading.Event(), now, lambda *_: None)
    id = erasures.request(Selection(interactions=[interaction]), "olga", "asked")
    erasures.run()
    found = erasures.of(id)
    assert found is not None
    assert found["state"] == "done"


def test_an_erasure_takes_entries_with_it_that_a_person_edited(
    rig: Rig, teacher: Teacher, warehouse: Warehouse
) -> None:
    correct(teacher, 2)
    rig.jobs.run("memory")
    (id,) = (one["id"] for one in rig.feed()["entries"] if one["question"] == "Is item 1 in stock?")
    for answer in ("Yes, many.", "Yes, very many."):
        teacher.acts += 1
        (edited,) = entries.decide(warehouse, "edit", [id], "wording", "olga", teacher.now, answer)
        id = edited["id"]
    erase(rig, "support-i3")
    assert [one["question"] for one in rig.feed()["entries"]] == ["Is item 0 in stock?"]
    gone = warehouse.rows(
        "SELECT state, question, messages FROM memory_entries WHERE question != 'Is item 0 in stock?'"
    )
    assert gone == [{"state": "removed", "question": "", "messages": "[]"}] * 3


def test_what_is_erased_while_the_memory_decides_does_not_come_back(
    rig: Rig, teacher: Teacher, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    correct(teacher, 2)
    find = entries.find

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.undo()
        found = find(*arguments)
        erase(rig, "support-i3")
        return found

    monkeypatch.setattr(entries, "find", interrupted)
    rig.jobs.run("memory")
    rows = warehouse.rows("SELECT question, state FROM memory_entries")
    assert rows == [{"question": "Is item 0 in stock?", "state": "active"}]


def test_tools_are_redacted_however_the_memory_learns_of_them(rig: Rig, teacher: Teacher, warehouse: Warehouse) -> None:
    mail = {"name": "mail", "description": "Writes to ann@example.com", "parameters": {"type": "object"}}
    tools: list[Any] = [{"type": "function", "function": mail}]
    text, redactor = "Is Bob in the office?", Redactor(rig.settings.privacy)
    question, offered = redactor.value([text, tools])
    assert "<EMAIL_1>" in str(offered)
    teacher.correct(question, "No.", "Yes.", attributes={"tools": offered})
    rig.jobs.run("memory")
    messages = [{"role": "user", "content": text}]
    (entry,) = rig.feed()["entries"]
    settings = rig.settings.for_workload("support")
    assert look_up(warehouse, settings, "support", messages, None, tools, None)["entries"] == [entry["id"]]
    by_hand = stated(redactor, messages, None, tools, "No.", "olga", teacher.now)
    assert by_hand.key == entry["key"] == keys.question(redactor.value(messages), None, redactor.value(tools)).key.hex()
    assert "Writes to <EMAIL_1>" in str(by_hand.tools)


@pytest.fixture
def page(rig: Rig) -> Iterator[TestClient]:
    app = application(rig.local, cast(Any, FakeDaemon()), rig.settings)
    with TestClient(app, "http://localhost:8321", follow_redirects=False) as client:
        yield client


def test_the_page_shows_the_life_of_each_correction_and_changes_it(
    rig: Rig, teacher: Teacher, page: TestClient
) -> None:
    correct(teacher, 1)
    rig.jobs.run("memory")
    (entry,) = rig.feed()["entries"]
    path = "/workloads/support/memory"
    shown = page.get(path).text
    assert "Is item 0 in stock?" in shown
    assert "Yes, 2 pieces." in shown
    assert "in the memory, after 1 s" in shown
    assert path in page.get("/workloads/support").text
    origin = {"origin": "http://localhost:8321"}
    wrong = page.post(path, data={"id": entry["id"], "action": "edit", "reason": "why"}, headers=origin)
    assert wrong.status_code == 409
    assert "name one entry, and give its answer" in wrong.text
    form = {"id": entry["id"], "action": "edit", "reason": "sold", "answer": "Yes, 1 piece."}
    assert page.post(path, data=form, headers=origin).status_code == 303
    assert [one["answer"] for one in rig.feed()["entries"]] == ["Yes, 1 piece."]
    old = page.get(f"{path}?state=superseded").text
    assert "Yes, 2 pieces." in old
    assert "Yes, 1 piece." not in old


def test_retention_deletes_old_statements_and_look_ups_and_keeps_entries(rig: Rig, teacher: Teacher) -> None:
    correct(teacher, 1)
    rig.jobs.run("memory")
    (entry,) = rig.feed()["entries"]
    teacher.ask("Is item 0 in stock?", "Yes.", attributes={"memory": {"entries": [entry["id"]], "held_out": []}})
    later = teacher.now + timedelta(days=1)
    memory.follow(teacher.warehouse)
    assert statements.forget(teacher.warehouse, ["support"], later) == 1
    assert memory.forget(teacher.warehouse, ["support"], later) == 1
    teacher.correct("Is item 0 in stock?", "Yes, 2 pieces.", "No, sold out.")
    rig.jobs.run("memory")
    assert [one["answer"] for one in rig.feed()["entries"]] == ["No, sold out."]
    assert entries.forget(teacher.warehouse, ["support"], later) == 1
    assert [one["answer"] for one in rig.feed()["entries"]] == ["No, sold out."]


def test_the_status_counts_entries_and_look_ups(rig: Rig, teacher: Teacher) -> None:
    correct(teacher, 2)
    rig.jobs.run("memory")
    (entry, _) = rig.feed()["entries"]
    teacher.ask("Is item 0 in stock?", "Yes.", attributes={"memory": {"entries": [entry["id"]], "held_out": []}})
    status: Any = rig.local.ask(workload_status, workload_status.parse({"workload": "support"}))
    assert dict(details("support", status))["memory"] == (
        "2 in force, 0 learned, 0 withdrawn; they helped 1 answer, 0 were held out"
    )


def test_the_page_of_the_workload_shows_what_the_memory_did_and_when(
    rig: Rig, teacher: Teacher, page: TestClient, warehouse: Warehouse
) -> None:
    path = "/workloads/support"
    correct(teacher, 3)
    rig.jobs.run("memory")
    kept, worse, learned = (one["id"] for one in rig.feed()["entries"])
    helped, held_out = ({"entries": [kept], "held_out": []}, {"entries": [], "held_out": [kept]})
    for used in (helped, helped, held_out):
        teacher.ask("Is item 0 in stock?", "Yes.", attributes={"memory": used})
    rig.jobs.run("watch")
    for id, state in ((worse, "withdrawn"), (learned, "retired")):
        warehouse.execute("UPDATE memory_entries SET state = ?, changed_at = ? WHERE id = ?", [state, teacher.now, id])
    shown = page.get(path).text
    for title in (
        r"\d corrections in the memory, ",
        r"1 withdrawn: they made answers worse, ",
        r"1 retired: a version has learned them, ",
        r"\d answers? helped by the memory at ",
    ):
        assert re.search(f"<title>{title}", shown), title
    counted = page.get("/api/v1/workloads/support/history").json()["memory"]
    totals = {name: sum(one[name] for one in counted) for name in ("added", "withdrawn", "retired", "helped")}
    assert totals == {"added": 3, "withdrawn": 1, "retired": 1, "helped": 2}
    assert "memory:" not in page.get(f"{path}?since=2020-01-01&until=2020-01-02").text
