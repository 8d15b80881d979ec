"""The job of the memory of corrections, its feed, and what a restore and an erasure make of it."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from fixtures.daemon.doors import FakeDaemon
from fixtures.feedback.erasing import now
from fixtures.feedback.teaching import START, Teacher
from fixtures.kafka import ingestion
from retuned.consumers.errors import RetunedError
from retuned.consumers.kafka.memory import MemoryLog
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.opening import open_existing
from retuned.consumers.warehouse.selection import Selection
from retuned.daemon.backup.create import back_up
from retuned.daemon.backup.restore import choose, restore
from retuned.daemon.cli.summary import details
from retuned.daemon.erasure.erasure import Erasures
from retuned.daemon.gateway.memory.lookup import Memory as GatewayMemory
from retuned.daemon.gateway.memory.pages import decode
from retuned.daemon.gateway.metrics import Metrics as GatewayMetrics
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
from retuned.retrain.memory import entries, statements
from retuned.retrain.memory.feed import Reading, stated
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


MAIL = [{"type": "function", "function": {"name": "mail", "description": "Writes to help@example.com"}}]


class Customers:
    """Customers whose app sends instructions with each question, through the ingestion."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        self._rig, self._log = rig, MemoryLog()
        self._ingestion = ingestion.Rig(ingestion.settings_for(folder), rig.teacher.warehouse, self._log)

    def ask(self, customer: int, system: str, text: str = "Which plan is it?", **more: Any) -> str:
        """Returns the id of the answer."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        id, at = f"{customer}-{text}", utc_now().isoformat() + "Z"
        event = ingestion.interaction(id, timestamp=at, workload="support", messages=messages, **more)
        self._ingestion.send(event | {"user_id": f"user {customer}"})
        return id

    def correct(self, answer: str, right: str) -> list[str]:
        """Has an expert correct an answer, and returns the answers that the memory has then."""
        at = utc_now().isoformat() + "Z"
        self._ingestion.send(
            ingestion.feedback(
                f"{answer} corrected", answer, timestamp=at, name="correction", value=right, source="expert"
            )
        )
        self._ingestion.drain()
        self._rig.teacher.acts = (utc_now() - START) // timedelta(minutes=1)
        self._rig.jobs.run("memory")
        return [one["answer"] for one in self._rig.feed()["entries"]]

    def look_up(self, system: str, text: str = "Which plan is it?", **more: Any) -> list[str]:
        """Returns the ids of the entries that an app without the gateway gets."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        settings = self._rig.settings.for_workload("support")
        found: list[str] = look_up(self._rig.teacher.warehouse, settings, "support", Reading(messages, **more), None)[
            "entries"
        ]
        return found

    def gateway(self, system: str, text: str = "Which plan is it?", **more: Any) -> list[str]:
        """Returns the ids of the entries that a gateway applies."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        fields = {name: json.dumps(value).encode() for name, value in (("messages", messages), *more.items())}

        async def ask() -> list[str]:
            memory = GatewayMemory(self._rig.settings.privacy, GatewayMetrics(CollectorRegistry()))
            try:
                page = decode(json.dumps(self._rig.feed(), default=str).encode())
                await memory.apply(page.entries)
                help = await memory.find(fields, "support", "unit", page.modes["support"])
                return help.entries if help else []
            finally:
                memory.close()

        return asyncio.run(ask())


@pytest.fixture
def customers(rig: Rig, tmp_path: Path) -> Customers:
    return Customers(rig, tmp_path)


@pytest.mark.parametrize("mode", ["context", "answer"])
def test_an_answer_about_one_customer_is_given_to_no_other(teacher: Teacher, tmp_path: Path, mode: str) -> None:
    """Each request names its customer in the system prompt, where redaction leaves the same words."""
    customers = Customers(
        Rig(teacher, workloads={"support": {"memory": {"mode": mode, "holdout_share": 0.0}}}), tmp_path
    )
    system = "You help the customer {}@example.com, IBAN DE89370400440532013000."
    asked = [customers.ask(number, system.format(f"customer{number}")) for number in range(30)]
    assert customers.correct(asked[0], "You are on the Platinum plan.") == []
    for customer in ("customer0", "customer1"):
        assert customers.look_up(system.format(customer)) == customers.gateway(system.format(customer)) == []


def test_the_companys_own_address_in_the_instructions_keeps_no_answer_from_anybody(customers: Customers) -> None:
    system = "You sell lamps. In doubt, name help@example.com.\nCall +49 171 2345678 at night."
    asked = [customers.ask(number, system, attributes={"tools": MAIL}) for number in range(30)]
    (entry,) = customers.correct(asked[0], "Plan A.") and customers.look_up(system, tools=MAIL)
    assert customers.gateway(system, tools=MAIL) == [entry]
    for other in (system.replace("help@", "sales@"), system.replace("2345678", "2345679")):
        assert customers.look_up(other, tools=MAIL) == customers.gateway(other, tools=MAIL) == []
    tools = json.loads(json.dumps(MAIL).replace("help@", "sales@"))
    assert customers.look_up(system, tools=tools) == customers.gateway(system, tools=tools) == []


def test_the_address_of_most_customers_of_an_app_is_not_the_companys(customers: Customers) -> None:
    """One customer asks again and again; and a company that nine in ten requests belong to is not all of them."""
    system = "You help {}@example.com."
    asked = [customers.ask(0, system.format("ann"), f"Which plan is number {number}?") for number in range(30)]
    assert customers.correct(asked[0], "Plan A.") == []
    others = [customers.ask(number, system.format("ann" if number % 10 else "ben")) for number in range(1, 60)]
    assert customers.correct(others[1], "Plan B.") == []


def test_passages_that_differ_in_a_redacted_address_alone_are_two_questions(customers: Customers) -> None:
    passage = "{}@example.com is on the Platinum plan."
    asked = customers.ask(0, "Be brief.", context=[passage.format("ann")])
    assert customers.correct(asked, "Platinum.") == []
    assert customers.look_up("Be brief.", context=[passage.format("ann")]) == []
    assert customers.look_up("Be brief.", context=[passage.format("ben")]) == []


def test_a_person_adds_an_answer_under_the_instructions_of_the_workload_alone(
    customers: Customers, rig: Rig, warehouse: Warehouse
) -> None:
    def add(system: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": "Which plan is it?"}]
        return stated(warehouse, rig.settings, "support", Reading(messages), "A.", "olga", utc_now()).key

    own, of_ann = "In doubt, name help@example.com.", "You help ann@example.com."
    for number in range(30):
        customers.ask(number, own)
    asked = customers.ask(99, own, "And now?")
    customers.correct(asked, "Now.")
    assert add(own)
    with pytest.raises(RetunedError, match=r"privacy\.keep"):
        add(of_ann)


def test_entries_get_the_keys_of_todays_rules_and_end_where_they_have_none(
    rig: Rig, teacher: Teacher, warehouse: Warehouse
) -> None:
    """As after an upgrade, and after a part of the instructions was called harmless."""
    for day in (1, 2):
        teacher.correct("Are you open?", "No.", f"Yes, until {day}.", system=f"You sell lamps.\nToday is {day} May.")
    teacher.correct("Which plan?", "A.", "B.", system="Be brief.")
    rig.jobs.run("memory")
    assert len(rig.feed()["entries"]) == 3
    personal = json.dumps(
        [{"role": "system", "content": "You help <EMAIL_1>."}, {"role": "user", "content": "Which plan?"}]
    )
    warehouse.execute("UPDATE memory_entries SET question_key = 'old'")
    warehouse.execute("UPDATE memory_entries SET messages = ? WHERE answer = 'B.'", [personal])
    warehouse.execute("DELETE FROM memory_positions")
    harmless = {"harmless_instructions": ["Today is .*"]}
    after = Rig(teacher, workloads={"support": ON | {"dataset": harmless}})
    after.jobs.run("memory")
    rows = warehouse.rows("SELECT answer, state, reason FROM memory_entries ORDER BY added_at, answer")
    ended = {row["answer"]: row["reason"] for row in rows if row["state"] == "retired"}
    assert "redacted" in ended["B."]
    assert "newer" in ended["Yes, until 1."]
    system = "You sell lamps.\nToday is 9 May."
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Are you open?"}]
    settings = after.settings.for_workload("support")
    found = look_up(warehouse, settings, "support", Reading(messages), None)
    assert found["message"] is not None
    assert "Yes, until 2." in found["message"]["content"]


@pytest.fixture
def page(rig: Rig) -> Iterator[TestClient]:
    app = application(rig.local, cast(Any, FakeDaemon()), rig.settings)
    with TestClient(app, "http://localhost:8321", follow_redirects=False) as client:
        yield client


def test_a_look_up_takes_a_prompt_as_long_as_a_request_to_the_gateway(
    rig: Rig, teacher: Teacher, page: TestClient
) -> None:
    passage = "All about lamps. " * 5_000
    asked = {"messages": [{"role": "user", "content": "Is item 0 in stock?"}], "context": [passage]}
    teacher.correct("Is item 0 in stock?", "No.", "Yes.", context=[passage])
    rig.jobs.run("memory")
    found = page.post("/api/v1/memory/lookup", json={"workload": "support", **asked})
    assert found.status_code == 200
    assert found.json()["entries"] == []  # memory.max_prompt_bytes
    longer = Rig(teacher, workloads={"support": {"memory": {"mode": "context", "max_prompt_bytes": 2**20}}})
    with TestClient(
        application(longer.local, cast(Any, FakeDaemon()), longer.settings), "http://localhost:8321"
    ) as client:
        assert client.post("/api/v1/memory/lookup", json={"workload": "support", **asked}).json()["entries"] != []
    too_long = {"workload": "support", **asked, "context": ["x" * rig.settings.gateway.max_body_bytes]}
    refused = page.post("/api/v1/memory/lookup", json=too_long)
    assert (refused.status_code, "gateway.max_body_bytes" in refused.text) == (413, True)


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
