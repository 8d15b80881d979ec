"""The control tables of a cluster: what one daemon changes, the others have, each change once and in one order."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import duckdb
import pytest

pytest.importorskip("obstore", reason="the extra cluster is not installed")

from fixtures.cluster.nodes import NOW, Node
from fixtures.cluster.servers import Postgres as Server
from fixtures.feedback.teaching import Teacher
from fixtures.models.datasets import build_dataset, teach, with_dataset
from retuned.consumers.cluster import control as module
from retuned.consumers.cluster.control import KEYS
from retuned.consumers.errors import (
    ConfigurationError,
    LeadershipLost,
    OutdatedWarehouse,
    StandsBy,
    StoreUnavailable,
)
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse import schema
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.retrain.data import overrides
from retuned.retrain.data.overrides import Overrides
from retuned.retrain.settings import ModelsSettings
from retuned.retrain.settings import Settings as RetrainSettings
from retuned.retrain.versions import QUERIES


@pytest.fixture
def leader(tmp_path: Path, database: str) -> Iterator[Node]:
    with closing(Node(tmp_path / "leader.duckdb", database, epoch=1)) as made:
        yield made


@pytest.fixture
def other(tmp_path: Path, database: str) -> Iterator[Node]:
    with closing(Node(tmp_path / "other.duckdb", database)) as made:
        yield made


def same(*nodes: Node) -> bool:
    """Whether they have the same rows in all control tables."""
    return all(len({repr(node.rows(table)) for node in nodes}) == 1 for table in KEYS)


def test_every_table_is_a_control_table_or_made_from_the_segments(leader: Node) -> None:
    """A new table belongs to one of the two: else what is in it is lost with its daemon."""
    made_from_segments = {
        "answer_minutes", "answer_minutes_position", "archived_ids", "archives", "batches", "control_positions",
        "dead_letters", "erasures_applied",
        "feedback", "feedback_totals", "followed_segments", "ingest_resumptions", "interactions", "judgements",
        "judgements_position", "memory_totals", "memory_uses", "memory_uses_position", "offsets",
        "rating_periods",
        "schema_migrations", "shadow_answers",
    }  # fmt: skip
    tables = {row["table_name"] for row in leader.warehouse.rows("SELECT table_name FROM duckdb_tables()")}
    assert tables == made_from_segments | KEYS.keys()
    for table, key in KEYS.items():
        columns = leader.warehouse.rows(
            "SELECT column_name FROM duckdb_columns() WHERE table_name = $table", {"table": table}
        )
        assert set(key) <= {row["column_name"] for row in columns}


def test_what_is_inserted_changed_and_deleted_is_so_everywhere(leader: Node, other: Node) -> None:
    leader.decide("a", figures='{"score": 0.1, "text": "ü\\u0000\\"\\n"}', run_id=None)
    leader.decide("b")
    leader.warehouse.insert("aliases", workload="support", alias="champion", version=None, created_at=NOW)
    leader.warehouse.execute(
        "INSERT INTO ledger_moments SELECT 'w', '', '', $now, 1, 2, 0.1, 'nan'::DOUBLE, 'inf'::DOUBLE, 0, 1e-300 "
        "ON CONFLICT DO UPDATE SET gain = gain + excluded.gain", {"now": NOW},
    )  # fmt: skip
    assert other.control.follow() == 5  # with the row that a new warehouse has
    assert same(leader, other)
    (moment,) = other.rows("ledger_moments")
    assert math.isnan(moment["cost"])
    assert moment["gain_squared"] == math.inf
    for _ in range(2):
        leader.warehouse.execute(
            "INSERT INTO ledger_moments SELECT 'w', '', '', $now, 1, 2, 0.1, 1, 0, 0, 1 "
            "ON CONFLICT DO UPDATE SET gain = gain + excluded.gain", {"now": NOW},
        )  # fmt: skip
    assert leader.warehouse.delete("DELETE FROM decisions WHERE id = 'a'") == 1
    leader.warehouse.execute("UPDATE decisions SET outcome = false, reasons = '[]'")
    other.control.follow()
    assert same(leader, other)
    assert other.decided() == ["b"]
    leader.decide("a")  # deleted, and there again
    leader.warehouse.execute(QUERIES["drop_alias"], {"workload": "support", "alias": "champion"})
    other.control.follow()
    assert same(leader, other)
    assert other.decided() == ["a", "b"]
    assert other.control.follow() == 0


def test_what_people_decide_about_rows_is_so_everywhere_and_a_standby_decides_nothing(
    leader: Node, other: Node
) -> None:
    teacher = Teacher(leader.warehouse)
    ids = teach(teacher, range(12), source="user", user_id="bert")
    overrides.decide_rows(leader.warehouse, "keep", ids[:2], "right", "anna", NOW)
    overrides.decide_rows(leader.warehouse, "edit", ids[:1], "shorter", "otto", NOW, "In 30 days.")
    overrides.decide_account(leader.warehouse, "trust", "bert", None, "our editor", "anna", NOW)
    settings = RetrainSettings(models=ModelsSettings(directory=leader.path.parent / "models"))
    build_dataset(leader.warehouse, with_dataset(settings), "support", teacher.now)
    other.control.follow()
    assert same(leader, other)
    assert Overrides.of(other.warehouse, "support") == Overrides.of(leader.warehouse, "support")
    assert {row["state"] for row in other.rows("row_states")} == {"taught", "held_out"}
    with pytest.raises(StandsBy):
        overrides.decide_rows(other.warehouse, "release", ids[:1], "no", "anna", NOW)
    with pytest.raises(StandsBy):
        overrides.decide_account(other.warehouse, "release", "bert", None, "he left", "anna", NOW)
    overrides.decide_account(leader.warehouse, "release", "bert", None, "he left", "anna", NOW)
    other.control.follow()
    assert same(leader, other)
    assert Overrides.of(other.warehouse, "support").accounts == {}


def test_a_transaction_is_one_change_whatever_it_holds(leader: Node, other: Node) -> None:
    before = leader.control.number
    with leader.warehouse.transaction() as cursor:
        cursor.execute("INSERT INTO pauses VALUES ('support', $now, 'anna', 'why', NULL, NULL)", {"now": NOW})
        cursor.execute("UPDATE pauses SET ended_by = 'bert'")
        cursor.execute("INSERT INTO blindness VALUES ('w', 'drift', 1, 2, 'x', $now)", {"now": NOW})
        cursor.execute("DELETE FROM blindness")
        cursor.execute("CREATE TEMP TABLE decisions_of_now AS SELECT 1")
    assert leader.control.number == before + 1
    other.control.follow()
    assert same(leader, other)
    assert [row["ended_by"] for row in other.rows("pauses")] == ["bert"]


def test_what_fails_or_is_taken_back_reaches_nobody(leader: Node, other: Node) -> None:
    before = leader.control.number
    with suppress(RuntimeError), leader.warehouse.transaction() as cursor:
        cursor.execute("INSERT INTO pauses VALUES ('support', $now, 'anna', 'why', NULL, NULL)", {"now": NOW})
        raise RuntimeError
    with pytest.raises(duckdb.Error):
        leader.warehouse.execute("INSERT INTO pauses VALUES (1)")
    leader.warehouse.execute("UPDATE batches SET last = last + 1")  # no control table
    assert leader.control.number == before
    other.control.follow()
    assert same(leader, other)


def test_one_that_stands_by_changes_nothing_of_them(other: Node) -> None:
    other.control.leader = "retuned-0 leads"
    with pytest.raises(StandsBy, match="this daemon stands by and changes nothing: retuned-0 leads"):
        other.decide("a")
    assert other.decided() == []
    other.warehouse.execute("UPDATE batches SET last = last + 1")


def test_a_leader_of_before_changes_nothing_once_there_is_another_one(leader: Node, other: Node) -> None:
    leader.decide("a")
    other.lead()
    other.decide("b")
    with pytest.raises(LeadershipLost, match="another daemon leads the cluster"):
        leader.decide("c")
    assert leader.decided() == ["a"]
    leader.control.follow()
    assert same(leader, other)
    assert leader.decided() == ["a", "b"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_answer_that_never_comes_costs_and_doubles_nothing(
    leader: Node, other: Node, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    ask = leader.postgres.rows

    def cut(name: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        if name == "change":
            if when == "after":
                ask(name, parameters)
            raise StoreUnavailable("cut")
        return ask(name, parameters)

    with monkeypatch.context() as patch:
        patch.setattr(leader.postgres, "rows", cut)
        with pytest.raises(StoreUnavailable):
            leader.decide("a")
    assert leader.decided() == []
    if when == "after":
        with pytest.raises(OutdatedWarehouse, match="the warehouse lacks changes"):
            leader.decide("b")
    leader.decide("c")
    assert leader.decided() == (["a", "c"] if when == "after" else ["c"])
    other.control.follow()
    assert same(leader, other)


def test_an_answer_that_is_lost_once_is_asked_for_again(
    leader: Node, other: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, tries = leader.postgres.rows, list[int]()

    def cut(name: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        found = ask(name, parameters)
        if name == "change" and not tries:
            tries.append(1)
            raise StoreUnavailable("cut")
        return found

    monkeypatch.setattr(leader.postgres, "rows", cut)
    before = leader.control.number
    leader.decide("a")
    assert (leader.decided(), leader.control.number) == (["a"], before + 1)
    other.control.follow()
    assert same(leader, other)


def test_a_commit_that_fails_after_postgresql_has_the_change_is_made_good(
    leader: Node, other: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: module.Recording, name: str) -> Any:
        if name == "commit" and self.changes:
            raise_error()
        return getattr(self._cursor, name)

    def raise_error() -> Callable[[], None]:
        raise duckdb.TransactionException("Failed to commit")

    with monkeypatch.context() as patch:
        patch.setattr(module.Recording, "__getattr__", fails)
        leader.decide("a")
    assert leader.decided() == ["a"]
    leader.decide("b")
    other.control.follow()
    assert same(leader, other)
    assert other.decided() == ["a", "b"]


def test_a_daemon_that_was_killed_between_the_two_commits_has_the_change_at_its_next_start(
    leader: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader.decide("a")

    class Killed(BaseException):
        pass

    def killed(self: module.Recording, name: str) -> Any:
        if name == "commit" and self.changes:
            raise Killed
        return getattr(self._cursor, name)

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(module.Recording, "__getattr__", killed)
        leader.decide("b")
    with closing(leader.again()) as again:
        assert again.decided() == ["a"]
        again.control.follow()
        assert again.decided() == ["a", "b"]


def test_positions_that_are_passed_are_not_kept(leader: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_POSITIONS", 5)
    for number in range(12):
        leader.decide(str(number))
    assert len(leader.rows("control_positions")) <= 5
    assert leader.rows("control_positions")[-1]["number"] == leader.control.number
    with closing(leader.again()) as again:
        assert again.control.number == leader.control.number


def test_many_threads_change_rows_and_all_have_them(leader: Node, other: Node) -> None:
    import threading

    def change(number: int) -> None:
        for turn in range(20):
            leader.decide(f"{number}-{turn}")

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        other.control.follow()
        thread.join()
    other.control.follow()
    assert len(other.decided()) == 80
    assert same(leader, other)


def test_a_warehouse_that_has_rows_gives_them_to_the_cluster_once(tmp_path: Path, database: str, other: Node) -> None:
    path = tmp_path / "first.duckdb"
    warehouse = open_warehouse(WarehouseSettings(path=path))
    for number in range(5):
        warehouse.insert("pauses", workload=f"w{number}", created_at=NOW, actor="anna", reason="why")
    warehouse.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHANGE_ROWS", 2)
        with closing(Node(path, database, epoch=1)) as first:
            other.control.follow()
            assert same(first, other)
            number = first.control.number
            first.control.publish_all()
            assert first.control.number == number


def test_a_warehouse_with_rows_of_its_own_is_refused_by_a_cluster_that_has_others(leader: Node, other: Node) -> None:
    leader.decide("a")
    other.warehouse.journal = None
    other.decide("of its own")
    with pytest.raises(ConfigurationError, match=r"other\.duckdb: it has decisions of its own, which are not part"):
        other.control.follow()
    assert other.decided() == ["of its own"]


def test_rows_of_an_older_version_have_the_defaults_of_new_columns(leader: Node, other: Node) -> None:
    leader.warehouse.insert(
        "runs", id="r", workload="w", reasons="[]", state="waiting", started_at=NOW, attempts=0, at_any_hour=False
    )
    leader.postgres.rows("report", {"instance": "i", "name": "n", "url": "*"})
    with leader.postgres.transaction() as connection:
        connection.execute(
            b"UPDATE retuned.control SET row = (row::jsonb - 'kind' || '{\"gone\": 1}')::text WHERE table_name = 'runs'"
        )
    other.control.follow()
    assert [row["kind"] for row in other.rows("runs")] == ["retrain"]


def test_rows_of_two_versions_keep_the_columns_that_each_has(leader: Node, other: Node) -> None:
    for workload in ("a", "b"):
        leader.warehouse.insert("pauses", workload=workload, created_at=NOW, actor="x", reason="r", ended_by="anna")
    with leader.postgres.transaction() as connection:
        connection.execute(
            b"UPDATE retuned.control SET row = (row::jsonb - 'ended_by')::text "
            b"WHERE table_name = 'pauses' AND key LIKE '%\"a\"%'"
        )
    other.control.follow()
    assert {row["workload"]: row["ended_by"] for row in other.rows("pauses")} == {"a": None, "b": "anna"}


def test_rows_of_a_newer_version_are_refused(leader: Node, other: Node) -> None:
    with leader.postgres.transaction() as connection:
        connection.execute(b"UPDATE retuned.last_change SET schema_version = 999, number = number + 1")
    with pytest.raises(ConfigurationError, match=f"have schema 999, which is newer than .*{schema.latest()}"):
        other.control.follow()


def test_a_database_that_was_set_back_is_refused(leader: Node, other: Node) -> None:
    leader.decide("a")
    other.control.follow()
    with leader.postgres.transaction() as connection:
        connection.execute(b"UPDATE retuned.last_change SET number = number - 1")
    with pytest.raises(ConfigurationError, match=r"it was reset, .* restore the warehouses of all daemons"):
        other.control.follow()
    with pytest.raises(ConfigurationError, match="it was reset"):
        leader.decide("b")
    assert leader.decided() == other.decided() == ["a"]


def test_another_history_with_equal_numbers_is_refused(leader: Node, other: Node) -> None:
    """As a replica has it that took over before it had the last changes: others were made in their place."""
    leader.decide("a")
    other.control.follow()
    assert leader.control.number == other.control.number
    with leader.postgres.transaction() as connection:
        connection.execute(b"UPDATE retuned.last_change SET number = number - 1, change = 'before'")
        connection.execute(b"UPDATE retuned.last_change SET number = number + 1, change = 'of another leader'")
    for follow in (other.control.follow, lambda: leader.decide("b")):
        with pytest.raises(ConfigurationError, match=r"not the change \d+ of warehouse .*: it was reset"):
            follow()
    with leader.postgres.transaction() as connection:
        connection.execute(b"UPDATE retuned.last_change SET number = number + 1, change = 'and the next one'")
    with pytest.raises(ConfigurationError, match="it was reset"):
        other.control.follow()
    assert other.decided() == ["a"]


def test_who_was_away_for_longer_than_deletions_are_told_reads_all_anew(leader: Node, other: Node) -> None:
    leader.decide("a")
    leader.decide("b")
    other.control.follow()
    leader.warehouse.execute("DELETE FROM decisions WHERE id = 'a'")
    with leader.postgres.transaction() as connection:
        connection.execute(b"UPDATE retuned.control SET changed_at = now() - INTERVAL '31 days'")
    leader.control.forget_deleted()
    assert leader.postgres.rows("changes", {"number": 0}).count(("decisions", '["a"]', None)) == 0
    other.control.follow()
    assert other.decided() == ["b"]
    assert same(leader, other)


def test_a_database_that_is_away_stops_the_change_alone(postgres: Server, leader: Node) -> None:
    import signal

    postgres.stop(signal.SIGKILL)
    try:
        with pytest.raises(StoreUnavailable, match="no connection to the database"):
            leader.decide("a")
        assert leader.decided() == []
        leader.warehouse.execute("UPDATE batches SET last = last + 1")
    finally:
        postgres.start()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(StoreUnavailable):
            leader.decide("b")
            break
    assert leader.decided() == ["b"]
