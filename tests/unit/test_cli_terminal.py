"""What people see at a terminal: tables of workloads, runs and versions, as wide as the terminal and safe to print."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from fixtures.daemon.operations import ask, command
from fixtures.daemon.run_queues import RunQueue
from fixtures.feedback.teaching import Teacher
from fixtures.feedback.traffic import new_warehouse
from fixtures.kafka.brokers import free_port, until
from fixtures.worlds import fleet
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.daemon.cli import memory
from retuned.daemon.cli.command import LINES, Common
from retuned.daemon.cli.main import main
from retuned.daemon.cli.progress import follow
from retuned.daemon.operations.local import opened
from retuned.daemon.settings import load

Run = Callable[..., str]
"""Runs a command and returns what it prints."""


def deployed(folder: Path, workloads: int) -> Path:
    """The configuration of a warehouse with weeks of history."""
    warehouse = new_warehouse(folder)
    if workloads:
        fleet.fill(warehouse, datetime.now(UTC).replace(tzinfo=None), workloads, 200 * workloads)
    warehouse.close()
    file = folder / "retuned.yaml"
    places = {"warehouse": {"path": str(folder / "retuned.duckdb")}, "models": {"directory": str(folder / "models")}}
    file.write_text(yaml.safe_dump({**places, "http": {"port": free_port()}}))
    return file


@pytest.fixture(scope="module")
def thirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deployed(tmp_path_factory.mktemp("thirty"), 30)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(file: Path, *arguments: str, columns: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main([*arguments, "--config", str(file)]) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("columns", [80, 120])
def test_the_status_is_a_table_with_those_that_need_a_person_first(thirty: Path, run: Run, columns: int) -> None:
    shown = run(thirty, "status", columns=columns)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) < 70
    assert "\x1b" not in shown
    assert "7 of 30 workloads need a person." in lines
    rows = [line.split() for line in lines[lines.index(next(line for line in lines if "HELPFUL" in line)) + 1 :]]
    names = [row[0] for row in rows if row and re.fullmatch(r"[a-z]+\.[a-z]+-\d+", row[0])]
    assert set(names[:3]) == {"hr.payroll-3", "hr.warranty-13", "hr.vpn-23"}  # those whose quality fell
    assert len(names) == 30
    (quiet,) = (row for row in rows if row and row[0] == "it.vpn-2")
    assert (quiet[1][-1], quiet[-1]) == ("%", "Quiet")
    whole = " ".join(shown.split())
    assert re.search(r"hr\.payroll-3 \d+% -\d+( \d+)? Helpful \d+%, was \d+%; fell", whole)
    assert "support.delivery-5" in whole


def test_the_status_names_how_many_workloads_it_does_not_show(tmp_path: Path, run: Run) -> None:
    shown = run(deployed(tmp_path, 200), "status")
    assert "of 50 workloads need a person (the busiest of 200)." in shown
    assert len(shown.splitlines()) < LINES + 40
    assert "more that need nobody; --json has them all." in shown


def test_the_status_of_no_workload_states_what_to_do(tmp_path: Path, run: Run) -> None:
    assert "`retuned doctor` checks why" in run(deployed(tmp_path, 0), "status")


def test_one_workload_fits_a_screen_and_has_what_to_do(thirty: Path, run: Run) -> None:
    shown = run(thirty, "status", "support.delivery-5")
    lines = shown.splitlines()
    assert len(lines) < 24  # of a terminal as it opens
    assert max(map(len, lines)) <= 80
    assert lines[2] == "support.delivery-5: A better version waits for approval"
    assert "for `retuned approve support.delivery-5`" in " ".join(shown.split())
    assert "`retuned labels --workload support.delivery-5`" in shown
    found = json.loads(run(thirty, "status", "support.delivery-5", "--json"))
    assert list(found["workloads"]) == ["support.delivery-5"]
    assert found["workloads"]["support.delivery-5"]["attention"]["level"] == "warn"


def test_what_waits_for_approval_can_be_read_as_data(
    thirty: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [one["workload"] for one in json.loads(run(thirty, "approve", "--json"))] == ["support.delivery-5"]
    refuse = ["approve", "support.delivery-5", "--refuse", "--reason", "rude", "--json", "--config", str(thirty)]
    assert main(refuse) == 2  # it would not have been refused
    assert "--json lists what waits" in capsys.readouterr().err


def test_what_users_write_moves_no_cursor(tmp_path: Path, run: Run) -> None:
    file = deployed(tmp_path, 4)
    warehouse = new_warehouse(tmp_path)
    pause = {"workload": "hr.payroll-3", "created_at": utc_now(), "actor": "anna"}
    warehouse.insert("pauses", **pause, reason="a\x1b[2Jb\r\n\u202ec")
    warehouse.close()
    for arguments in (("status",), ("status", "hr.payroll-3")):
        shown = run(file, *arguments, columns=200)
        assert "a [2Jb" in " ".join(shown.split())
        assert not {"\x1b", "\r", "\u202e"} & set(shown)


def test_what_producers_name_moves_no_cursor(tmp_path: Path, run: Run) -> None:
    file, id, at = deployed(tmp_path, 0), "i\x1b[2J", utc_now()
    with opened(load(file)) as local:
        teacher = Teacher(local.warehouse, workload="support")
        row = teacher.correct("Where\x1b[2J?", "There.", "Here.", user_id="u\x1b[2J")
        local.warehouse.execute("UPDATE feedback SET id = ? WHERE id = ?", [id, row])
        asked = local.warehouse.rows("SELECT id FROM interactions")[0]["id"]
        local.warehouse.insert(
            "label_requests", id=id, created_at=at, workload="support", interaction_id=asked, reason="x\x1b[2J",
            detail="", announced=True,
        )  # fmt: skip
        local.warehouse.insert("dead_letters", topic="t", partition=0, offset=0, received_at=at, reason=id, detail=id)
    for arguments in (["rows", "support"], ["labels"], ["dead-letters", "list"]):
        shown = run(file, *arguments)
        assert ("[2J" in shown, "\x1b" in shown) == (True, False), arguments


def test_a_misspelled_workload_is_no_empty_list(thirty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["runs", "hr.vpm-9"], ["versions", "hr.vpm-9"], ["labels", "--workload", "hr.vpm-9"],
                      ["accounts", "hr.vpm-9"]):  # fmt: skip
        assert main([*arguments, "--config", str(thirty)]) == 1, arguments
        assert "workload hr.vpm-9: unknown" in capsys.readouterr().err, arguments


def test_a_terminal_with_colours_gets_them(thirty: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[1;31m" in run(thirty, "status")  # red: needs a person
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" not in run(thirty, "status")


def test_runs_are_listed_with_what_came_of_them(thirty: Path, run: Run) -> None:
    lines = run(thirty, "runs").splitlines()
    assert lines[0].split()[:1] == ["STARTED"]
    assert "hr.dunning-8" in lines[1]  # under way
    found = json.loads(run(thirty, "runs", "hr.dunning-8", "--json"))
    assert [one["state"] for one in found] == ["running"]
    assert run(thirty, "runs", "sales.vpn-9").startswith("No retraining yet.")


def test_every_list_shows_a_moment_alike_and_json_as_iso_8601(tmp_path: Path, run: Run) -> None:
    file, at = deployed(tmp_path, 10), datetime(2026, 3, 2, 9, 30, 15)
    name = "billing.dunning-1"
    with opened(load(file)) as local:
        insert = local.warehouse.insert
        insert("erasures", id="e", requested_at=at, requested_by="dpo", reason="a mail", state="done")
        insert("holds", id="h", placed_at=at, placed_by="otto", reason="case 17", released_at=at, released_by="otto")
        insert("dead_letters", topic="t", partition=0, offset=0, received_at=at, reason="invalid", detail="no id")
        insert(
            "datasets", version="d", workload=name, created_at=at, path="/x", card="{}", train=1,
            holdout=0, replay=0,
        )  # fmt: skip
        local.warehouse.execute("UPDATE approvals SET requested_at = $1, expires_at = $1", [at])
        local.warehouse.execute("UPDATE runs SET started_at = $1", [at])
        ask(local, "pause", workload=name, reason="the machine is needed")
    for arguments in (
        ["erasures"], ["hold", "list"], ["dead-letters", "list"], ["dataset", "list", name], ["approve"], ["runs"],
        ["audit", "list"], ["status", name],
    ):  # fmt: skip
        plain = run(file, *arguments, columns=160)
        days = re.findall(r"20\d\d-\d\d-\d\d.{0,10}", plain)
        assert [day for day in days if not re.match(r"\S+ \d\d:\d\d UTC", day)] == [], arguments
        assert days, arguments
        for time in re.findall(r'"(20\d\d-\d\d-\d\d.*?)"', run(file, *arguments, "--json")):
            assert re.fullmatch(r"\S+T\d\d:\d\d:\d\d\.\d{3}Z", time), arguments


def test_the_memory_is_listed_to_its_end(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    file = deployed(tmp_path, 1)
    with opened(load(file)) as local:
        workload = ask(local, "overview")["workloads"][0]["facts"]["workload"]
        for number in range(5):
            local.warehouse.insert(
                "memory_entries", id=f"e{number}", workload=workload, question_key=f"k{number}", question="Where?",
                answer="Here.", source="expert", since=utc_now(), added_at=utc_now(), state="active", sequence=number,
                changed_at=utc_now(), messages="[]", feedback_ids="[]", reason="",
            )  # fmt: skip
    for page in (2, 5, 10):
        monkeypatch.setattr(memory, "PAGE", page)
        found = json.loads(run(file, "memory", "list", workload, "--json"))
        assert sorted(one["id"] for one in found) == [f"e{number}" for number in range(5)], page


def test_versions_are_listed_with_scores_gate_and_share(tmp_path: Path, run: Run) -> None:
    file, at = deployed(tmp_path, 4), datetime(2026, 3, 2, 9)
    name, folder = "billing.dunning-1", str(tmp_path)
    row = {"base_model": "b", "base_hash": "h", "dataset_version": "d", "manifest": "{}", "workload": name}
    with opened(load(file)) as local:
        for number, version in enumerate(("aaaaaaaa", "bbbbbbbb")):
            more = {"run_id": f"run {number}", "created_at": at + timedelta(days=number), "path": folder}
            local.warehouse.insert("models", version=version, **row, **more)
            scores = json.dumps({"scores": {"candidate": 0.5 + number / 4, "champion": 0.625}})
            local.warehouse.insert(
                "runs", id=f"run {number}", workload=name, reasons="[]", state="succeeded", started_at=at,
                detail=scores,
            )  # fmt: skip
            local.warehouse.insert(
                "decisions", id=version, created_at=at, workload=name, kind="gate", outcome=bool(number),
                reasons="[]", figures="{}", run_id=f"run {number}",
            )  # fmt: skip
        local.jobs.context.rollout.promote(name, "bbbbbbbb", "operator", "by hand", at)
        untrained = "SELECT workload FROM interactions WHERE workload NOT IN (SELECT workload FROM models)"
        other = local.warehouse.rows(untrained)[0]["workload"]
    lines = [" ".join(line.split()) for line in run(file, "versions", name).splitlines()]
    newest, oldest = [line for line in lines if line.startswith("2026-03")]
    assert newest == f"2026-03-03 {name}@bbbbbbbb 0.750 0.625 passed champion 100%"
    assert oldest.startswith(f"2026-03-02 {name}@aaaaaaaa 0.500 0.625 refused")
    listed = json.loads(run(file, "versions", "--json"))
    assert [one["passed"] for one in listed if one["version"] in ("aaaaaaaa", "bbbbbbbb")] == [True, False]
    assert run(file, "versions", other) == "No version yet: nothing was trained.\n"


def test_the_incumbent_is_named_where_no_version_serves(tmp_path: Path, run: Run) -> None:
    file, name = deployed(tmp_path, 2), "billing.dunning-1"
    with opened(load(file)) as local:
        local.warehouse.execute("DELETE FROM aliases")
    assert "@base, the base model: no version is promoted" in " ".join(run(file, "status", name).split())
    incumbent = {"incumbent": {"url": "https://api.example/v1", "model": "commercial-mini"}}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"workloads": {name: incumbent}}))
    assert "@base, the incumbent commercial-mini: no" in " ".join(run(file, "status", name).split())


def test_what_the_incumbent_answers_by_rule_is_shown_with_its_cost(tmp_path: Path, run: Run) -> None:
    file, name = deployed(tmp_path, 2), "billing.dunning-1"
    with opened(load(file)) as local:
        row = {"created_at": datetime(2027, 3, 2, 9), "workload": name, "model": "*", "low": 0.1, "high": 0.9, "n": 100}
        for metric, source, value in (
            ("cascade_share", "length", 0.12), ("cascade_cost", "length", 0.0021), ("cascade_share", "tools", 0.05),
            ("cascade_helpful_rate", "user", 0.83),
        ):  # fmt: skip
            local.warehouse.insert("quality", metric=metric, source=source, value=value, **row)
    expected = "answered by the incumbent by rule: 12% length at 0.0021 each, 5% tools; helpful 83% by users"
    assert expected in " ".join(run(file, "status", name).split())


def test_watching_shows_it_again_until_it_is_stopped(
    thirty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = iter([None, None, KeyboardInterrupt()])

    def sleep(_: float) -> None:
        if (ends := next(looks)) is not None:
            raise ends

    monkeypatch.setattr("retuned.daemon.cli.screen.time.sleep", sleep)
    assert main(["runs", "--watch", "--config", str(thirty)]) == 130
    assert capsys.readouterr().out.count("STARTED") == 3


@pytest.fixture
def queue(warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunQueue]:
    Teacher(warehouse, "support").correct("where is my parcel", "on its way", "here")
    made = RunQueue(warehouse, tmp_path, monkeypatch)
    yield made
    made.stop.set()


def test_a_run_that_is_followed_shows_its_stages_until_it_ends(
    queue: RunQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"workload": "support", "run": queue.runs.ask("support", asked_by="an operator").run}
    thread = queue.work()
    until(lambda: queue.began or not thread.is_alive())
    ended: list[int] = []
    following = threading.Thread(target=lambda: ended.append(follow(queue.service, asked)))
    following.start()
    shown: list[str] = []
    until(lambda: shown.append(capsys.readouterr().err) or "support: train, step 1" in "".join(shown))
    assert ask(queue.service, "runs", workload="support")[0]["progress"]["steps"] == 9
    command(queue.service, "cancel", "support", {"reason": "the machine is needed"})
    following.join(20)
    thread.join(20)
    assert ended == [1]
    assert re.match(r"support: cancelled: .*the machine is needed", capsys.readouterr().out)


def test_retrain_follows_the_run_that_it_began(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Common, "asking", lambda _: nullcontext(queue.service))
    queue.at_train = lambda _: command(queue.service, "cancel", "support", {})
    status: list[Any] = []
    running = threading.Thread(target=lambda: status.append(main(["retrain", "support", "--follow"])))
    running.start()
    until(lambda: queue.runs.queue() or queue.began)
    thread = queue.work()
    running.join(30)
    thread.join(20)
    assert status == [1]
    assert "support: cancelled" in capsys.readouterr().out
