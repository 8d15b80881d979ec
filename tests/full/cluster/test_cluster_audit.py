"""The audit in a cluster: one chain, whichever daemon leads, with what daemons that stand by have answered."""

import json
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("obstore", reason="the extra cluster is not installed")

from fixtures.cluster.nodes import Node
from retuned.consumers.cluster import audit_entries
from retuned.consumers.cluster.postgres import Postgres
from retuned.consumers.errors import StandsBy, StoreUnavailable
from retuned.consumers.settings import StoreSettings
from retuned.consumers.warehouse.audit import Entry
from retuned.consumers.warehouse.checkpoints import check


@pytest.fixture
def leader(tmp_path: Path, database: str) -> Iterator[Node]:
    with closing(Node(tmp_path / "leader.duckdb", database, epoch=1)) as node:
        yield node


@pytest.fixture
def standby(tmp_path: Path, database: str, leader: Node) -> Iterator[Node]:  # noqa: ARG001
    with closing(Node(tmp_path / "standby.duckdb", database)) as node:
        node.control.follow()
        node.warehouse.trail.elsewhere = partial(audit_entries.leave, node.postgres)
        yield node


def actions(node: Node) -> list[str]:
    verdict = check(node.rows("audit"))
    assert verdict.problems == []
    return [row["action"] for row in node.rows("audit")]


def entry(action: str, id: str | None = None) -> Entry:
    return Entry("otto", "principal", action, request_id=id, details={"größe": 1})


def test_a_daemon_that_stands_by_has_the_leaders_rows_byte_for_byte(leader: Node, standby: Node) -> None:
    leader.warehouse.trail.record(entry("promote"))
    leader.warehouse.trail.record(entry("rollback"))
    standby.control.follow()
    assert actions(standby) == ["promote", "rollback"]
    assert standby.rows("audit") == leader.rows("audit")


def test_what_a_daemon_that_stands_by_answers_is_appended_by_the_leader(leader: Node, standby: Node) -> None:
    standby.warehouse.trail.record(entry("export", "r1"))
    leader.warehouse.trail.record(entry("promote"))
    assert audit_entries.take(leader.postgres, leader.warehouse) == 1
    assert audit_entries.take(leader.postgres, leader.warehouse) == 0
    standby.control.follow()
    assert actions(standby) == actions(leader) == ["promote", "export"]
    assert '"left_at"' in leader.rows("audit")[-1]["details"]


def test_an_entry_holds_whatever_sign_people_write(leader: Node, standby: Node) -> None:
    with pytest.raises(UnicodeEncodeError):  # as in a daemon that leads
        standby.warehouse.trail.record(Entry("otto", "principal", "export", details={"reason": "\ud800"}))
    standby.warehouse.trail.record(Entry("otto", "principal", "export", details={"reason": "a\0b ä"}))
    assert audit_entries.take(leader.postgres, leader.warehouse) == 1
    assert json.loads(leader.rows("audit")[-1]["details"])["reason"] == "a\0b ä"


def test_a_leader_that_is_killed_after_it_appended_appends_nothing_twice(
    leader: Node, standby: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    standby.warehouse.trail.record(entry("export", "r1"))
    rows = leader.postgres.rows

    def killed(name: str, *more: object) -> object:
        if name == "take_entries":
            raise Killed
        return rows(name, *more)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(leader.postgres, "rows", killed)
        with pytest.raises(Killed):
            audit_entries.take(leader.postgres, leader.warehouse)
    assert audit_entries.take(leader.postgres, leader.warehouse) == 0
    assert leader.postgres.rows("entries_left") == []
    assert actions(leader) == ["export"]


def test_another_leader_continues_the_chain(leader: Node, standby: Node) -> None:
    leader.warehouse.trail.record(entry("promote"))
    standby.control.follow()
    standby.warehouse.trail.record(entry("export"))
    standby.lead()
    leader.control.epoch = None
    audit_entries.take(standby.postgres, standby.warehouse)
    standby.warehouse.trail.record(entry("rollback"))
    leader.control.follow()
    assert actions(leader) == ["promote", "export", "rollback"]
    leader.lead()
    standby.control.epoch = None
    leader.warehouse.trail.record(entry("pause"))
    assert actions(leader) == ["promote", "export", "rollback", "pause"]


def test_a_daemon_that_can_reach_neither_refuses_to_answer(standby: Node) -> None:
    gone = Postgres(StoreSettings(postgres_url="postgresql://127.0.0.1:1/none"), answer_seconds=1)  # type: ignore[arg-type]
    standby.warehouse.trail.elsewhere = partial(audit_entries.leave, gone)
    with pytest.raises(StoreUnavailable):
        standby.warehouse.trail.record(entry("export"))
    standby.warehouse.trail.elsewhere = None
    with pytest.raises(StandsBy):
        standby.warehouse.trail.record(entry("export"))
