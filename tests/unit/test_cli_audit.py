"""`retuned audit`, beside a daemon and without one; the checkpoints and the states that a daemon records."""

import json
import resource
import shutil
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from fixtures.daemon.operations import ask
from fixtures.kafka.brokers import free_port, until
from retuned.consumers.errors import RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.daemon.app import App
from retuned.daemon.cli.main import main
from retuned.daemon.jobs.audit import Checkpoints, _append
from retuned.daemon.operations.local import opened
from retuned.daemon.settings import load
from retuned.daemon.web.principals import add, revoke


class Place:
    """A warehouse, its configuration with checkpoints, and the command line."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.config, self.key = folder / "retuned.yaml", folder / "key"
        self.checkpoints, self.principals = folder / "checkpoints", folder / "principals.yaml"
        self.settings: dict[str, Any] = {
            "warehouse": {"path": str(folder / "w.duckdb")},
            "models": {"directory": str(folder / "models")},
            "kafka": {"bootstrap_servers": "127.0.0.1:1"},
            "http": {"port": free_port(), "principals_file": str(self.principals)},
            "audit": {"key_file": str(self.key), "checkpoint_file": str(self.checkpoints)},
        }
        self.configure()

    def configure(self, **sections: Any) -> None:
        self.settings |= sections
        self.config.write_text(yaml.safe_dump(self.settings))

    def run(self, *words: str) -> tuple[int, str]:
        """The exit status, and what is printed on both streams."""
        self._capsys.readouterr()
        status = main([*words, "--config", str(self.config)])
        printed = self._capsys.readouterr()
        return status, printed.out + printed.err

    def record(self, *reasons: str) -> None:
        """One row for each reason to pause; an empty one resumes."""
        with opened(load(self.config)) as local:
            for reason in reasons:
                ask(local, "pause", reason=reason) if reason else ask(local, "resume")

    def checkpoint(self, publisher: MemoryPublisher | None = None) -> None:
        with opened(load(self.config)) as local:
            local.jobs.context.publisher = publisher or MemoryPublisher()
            checkpoints = Checkpoints(local.jobs.context)
            checkpoints()
            checkpoints()  # nothing new: no second line


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    made = Place(tmp_path, capsys)
    assert made.run("audit", "keygen", str(made.key))[0] == 0
    return made


def test_it_lists_what_was_done_newest_first(place: Place) -> None:
    place.record("the holidays", "", "more holidays")
    status, printed = place.run("audit", "list")
    assert status == 0
    assert [line.split()[0] for line in printed.splitlines()[1:]] == ["3", "2", "1"]
    assert "the holidays" in printed
    assert "ACTION" in printed
    found = json.loads(place.run("audit", "list", "--json", "--action", "resume")[1])
    assert [(row["sequence"], row["action"], row["actor_kind"]) for row in found] == [(2, "resume", "local")]


def test_an_export_is_verified_without_daemon_and_configuration(place: Place, tmp_path: Path) -> None:
    place.record("größer", "", "b")
    place.checkpoint()
    file = tmp_path / "audit.jsonl"
    assert place.run("audit", "export", "-o", str(file))[0] == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in (file.name, "checkpoints", "key.pub"):
        shutil.copy(tmp_path / name, elsewhere)
    status, printed = place.run(
        "audit", "verify", str(elsewhere / file.name), "--checkpoints", str(elsewhere / "checkpoints"),
        "--key", str(elsewhere / "key.pub"),
    )  # fmt: skip
    assert (status, "4 rows" in printed, "1 of 1 checkpoints agree: sound" in printed) == (0, True, True), printed


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("UPDATE audit SET reason = 'another one' WHERE sequence = 1", "row 1 was changed"),
        ("DELETE FROM audit WHERE sequence = 2", "row 2 is missing before row 3"),
        ("UPDATE audit SET sequence = 9 WHERE sequence = 4; UPDATE audit SET sequence = 4 WHERE sequence = 5; "
         "UPDATE audit SET sequence = 5 WHERE sequence = 9", "row 4 was changed"),
        ("DELETE FROM audit WHERE sequence > 3", "the end is cut off"),
        ("DELETE FROM audit", "the end is cut off"),
    ],
)  # fmt: skip
def test_tampering_with_the_file_is_found(place: Place, sql: str, problem: str) -> None:
    place.record("a", "", "b", "", "c")
    place.checkpoint()
    assert place.run("audit", "verify")[0] == 0
    path = str(place.folder / "w.duckdb")
    with duckdb.connect(path) as connection:
        connection.execute(sql)
    status, printed = place.run("audit", "verify")
    assert (status, problem in printed) == (1, True), printed
    status, printed = place.run(
        "audit", "verify", path, "--checkpoints", str(place.checkpoints), "--key", f"{place.key}.pub"
    )
    assert (status, problem in printed) == (1, True), printed


def test_a_warehouse_is_known_by_its_own_mark_and_not_by_the_first_byte_of_its_checksum(place: Place) -> None:
    place.record("a")
    path = place.folder / "w.duckdb"
    path.write_bytes(b"{" + path.read_bytes()[1:])
    status, printed = place.run("audit", "verify", str(path))
    assert (status, "no warehouse that can be read" in printed) == (1, True), printed


def test_a_checkpoint_by_another_key_is_refused(place: Place) -> None:
    place.record("a")
    place.checkpoint()
    assert place.run("audit", "keygen", str(place.folder / "other"))[0] == 0
    status, printed = place.run("audit", "verify", "--key", str(place.folder / "other.pub"))
    assert (status, "another key" in printed) == (1, True), printed


def test_checkpoints_go_to_a_file_and_a_topic_once_for_each_state(place: Place) -> None:
    publisher = MemoryPublisher()
    place.configure(audit=place.settings["audit"] | {"topic": "audit"})
    place.record("a")
    place.checkpoint(publisher)
    place.record("", "b")
    place.checkpoint(publisher)
    (first, second) = [json.loads(line) for line in place.checkpoints.read_text().splitlines()]
    # The second start sends the last one to the topic again: it may have been stopped before it was sent.
    assert [value for topic, _, value in publisher.messages if topic == "audit"] == [first, first, second]


@pytest.mark.parametrize("text", ["no json", "{}", '{"payload": "e30=", "payloadType": "x", "signatures": []}'])
def test_what_is_no_checkpoint_is_named_by_its_line(place: Place, text: str) -> None:
    place.record("a")
    place.checkpoint()
    with place.checkpoints.open("a") as file:
        file.write(text + "\n")
    status, printed = place.run("audit", "verify")
    assert (status, "line 2" in printed, "1 of 1 checkpoints agree: 1 problems" in printed) == (1, True, True), printed


def test_checkpoints_that_are_gone_are_a_problem(place: Place) -> None:
    place.record("a")
    place.checkpoint()
    assert place.run("audit", "verify")[0] == 0
    place.checkpoints.unlink()
    file = str(place.folder / "w.duckdb")
    for named in ((), (file, "--checkpoints", str(place.checkpoints), "--key", f"{place.key}.pub")):
        status, printed = place.run("audit", "verify", *named)
        assert (status, "no such file" in printed, "sound" in printed) == (1, True, False), printed


@pytest.mark.full
def test_checkpoints_that_were_emptied_or_cut_off_are_a_problem(place: Place) -> None:
    for reason in ("a", "b", "c"):
        place.record(reason, "")
        place.checkpoint()
    lines = place.checkpoints.read_text().splitlines(keepends=True)
    file, export = str(place.folder / "w.duckdb"), str(place.folder / "export")
    assert place.run("audit", "export", "-o", export)[0] == 0
    ways = ((), (file,), (export,))

    def verified(way: tuple[str, ...]) -> tuple[int, str]:
        return place.run("audit", "verify", *way, "--checkpoints", str(place.checkpoints), "--key", f"{place.key}.pub")

    for way in ways:
        assert verified(way)[0] == 0
    for left, problem in (
        ([], "the file is empty"),
        (["\n"], "line 1: no checkpoint"),
        (lines[:-1], "1 of 3 checkpoints that the audit names are missing: those of row 9"),
        (lines[1:], "1 of 3 checkpoints that the audit names are missing: those of row 3"),
        (lines[:1], "2 of 3 checkpoints that the audit names are missing: those of row 6, 9"),
    ):
        place.checkpoints.write_text("".join(left))
        for way in ways:
            status, printed = verified(way)
            assert (status, problem in printed, "sound" in printed) == (1, True, False), printed
    place.checkpoints.write_text("")
    status, printed = place.run("audit", "verify")  # as configured
    assert (status, "the file is empty" in printed) == (1, True), printed
    status, printed = place.run("audit", "verify", file)  # nothing is named to compare with
    assert (status, "none of 3 checkpoints was compared: sound" in printed) == (0, True), printed


def test_checkpoints_in_a_topic_alone_have_to_be_named(place: Place) -> None:
    place.configure(audit={"key_file": str(place.key), "topic": "audit"})
    place.record("a")
    publisher = MemoryPublisher()
    place.checkpoint(publisher)
    status, printed = place.run("audit", "verify")
    assert (status, "name the file with --checkpoints" in printed) == (1, True), printed
    place.checkpoints.write_text("".join(json.dumps(value) + "\n" for _, _, value in publisher.messages))
    status, printed = place.run("audit", "verify", "--checkpoints", str(place.checkpoints))
    assert (status, "1 of 1 checkpoints agree: sound" in printed) == (0, True), printed


def test_a_checkpoint_that_could_not_be_written_is_written_by_the_next_start(place: Place) -> None:
    place.record("a")
    place.checkpoints.mkdir()
    with pytest.raises(RetunedError, match="cannot be written"):
        place.checkpoint()
    place.checkpoints.rmdir()
    status, printed = place.run("audit", "verify")
    assert (status, "1 of 1 checkpoints that the audit names are missing" in printed) == (1, True), printed
    place.checkpoint()
    status, printed = place.run("audit", "verify")
    assert (status, "1 of 1 checkpoints agree: sound" in printed) == (0, True), printed


def test_a_line_that_was_written_in_part_spoils_no_other_one(place: Place) -> None:
    place.record("a")
    place.checkpoint()
    place.record("", "b")
    (first,) = place.checkpoints.read_bytes().splitlines(keepends=True)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(first) + 100, most))
        with pytest.raises(RetunedError, match="cannot be written"):
            _append(place.checkpoints, "x" * 1_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        signal.signal(signal.SIGXFSZ, ignored)
    assert place.checkpoints.read_bytes() == first  # nothing is left of a line for which the disk had no room
    place.checkpoints.write_bytes(first + first[:100])  # as a crash leaves it
    place.checkpoint()
    status, printed = place.run("audit", "verify")
    assert (status, "line 2: no checkpoint" in printed, "2 of 2" in printed, "1 problems" in printed) == (
        1, True, True, True
    ), printed  # fmt: skip


def test_checkpoints_need_a_key_and_a_start_needs_one_that_can_be_read(place: Place) -> None:
    place.configure(audit={"checkpoint_file": str(place.checkpoints)})
    assert "key_file" in place.run("audit", "list")[1]
    place.configure(audit={"key_file": str(place.config)})
    add(place.principals, "anna", "operator", None, datetime.now(UTC))
    status, printed = place.run("run")
    assert (status, "holds no private Ed25519 key" in printed) == (1, True), printed


@pytest.mark.full
def test_a_start_records_which_settings_changed_and_no_secret(place: Place) -> None:
    add(place.principals, "anna", "operator", None, datetime.now(UTC))
    started(place)
    place.configure(
        retention={"versions": 3},
        quality={"judge_key": "a-secret-value"},
        store={"objects_url": "s3://user:hidden@bucket/prefix"},
        workloads={"support": {"policy": {"minimum_ratings": 77}}},
    )
    started(place)
    first, second = [json.loads(row["details"]) for row in rows(place, "configuration")]
    assert first["changed"] == {}
    assert second["changed"]["retention.versions"] == [None, 3]
    assert second["changed"]["workloads.support.policy.minimum_ratings"] == [None, 77]
    assert second["changed"]["quality.judge_key"][1].strip("*") == ""
    assert second["changed"]["store.objects_url"] == [None, "s3://***@bucket/prefix"]
    assert not any(secret in str(second) for secret in ("a-secret-value", "hidden"))


@pytest.mark.full
def test_tokens_that_were_made_and_revoked_are_recorded_while_the_daemon_runs(place: Place) -> None:
    now = datetime.now(UTC)
    add(place.principals, "anna", "operator", None, now)
    app = App(load(place.config))
    try:
        app.start()
        token = add(place.principals, "bert", "viewer", None, now, ("billing",))
        revoke(place.principals, "anna", now)
        app._principals.find(token, now)  # as the next request does
        until(lambda: len(app.warehouse.rows("SELECT * FROM audit WHERE action = 'principals'")) == 2)
        (details,) = app.warehouse.rows("SELECT details FROM audit WHERE action = 'principals' AND sequence > 2")
    finally:
        app.stop()
    changed = json.loads(details["details"])["changed"]
    (anna,) = [pair for name, pair in changed.items() if name.startswith("anna ")]
    (bert,) = [pair for name, pair in changed.items() if name.startswith("bert ")]
    assert (anna[0]["role"], anna[1]) == ("operator", None)
    assert (bert[0], bert[1]["role"], bert[1]["workloads"]) == (None, "viewer", ["billing"])
    assert token not in str(details)


def started(place: Place) -> None:
    app = App(load(place.config))
    try:
        app.start()
    finally:
        app.stop()


def rows(place: Place, action: str) -> list[dict[str, Any]]:
    with opened(load(place.config)) as local:
        return local.warehouse.rows("SELECT * FROM audit WHERE action = $1 ORDER BY sequence", [action])
