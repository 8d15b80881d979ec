"""One daemon of a cluster leads: another one soon after it was killed or frozen, and never two."""

import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import psycopg
import pytest

pytest.importorskip("obstore", reason="the extra cluster is not installed")

from fixtures.cluster.servers import Postgres as Server
from fixtures.kafka.brokers import Proxy, until
from retuned.consumers.cluster import leadership as module
from retuned.consumers.cluster.control import Control
from retuned.consumers.cluster.leadership import Leadership, hand_over
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.cluster.postgres import Postgres
from retuned.consumers.errors import ConfigurationError, LeadershipLost, StandsBy
from retuned.consumers.kafka.led import LedPublisher
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import StoreSettings, WarehouseSettings
from retuned.consumers.warehouse.connection import utc_now
from retuned.consumers.warehouse.opening import open_warehouse


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)


class Daemon:
    """What of one has a part in it: a thread may be held up, as a process is that is frozen."""

    def __init__(self, folder: Path, name: str, database: str, followed: Callable[[], int] = lambda: 0) -> None:
        self.settings = StoreSettings(postgres_url=database)  # type: ignore[arg-type]
        self.warehouse = open_warehouse(WarehouseSettings(path=folder / f"{name}.duckdb"))
        self.postgres, self.own = Postgres(self.settings), Postgres(self.settings)
        self.control = Control(self.own, self.warehouse)
        self.led = threading.Event()
        self.leadership = Leadership(self.postgres, self.control, name, f"http://*/{name}", followed, self.led.set)
        self.stop, self.frozen, self.error = threading.Event(), threading.Event(), list[BaseException]()
        self.thread = threading.Thread(target=self._run)
        self._report, self.leadership._report = self.leadership._report, self._report_unless_frozen  # type: ignore[method-assign]
        self.thread.start()

    def _report_unless_frozen(self) -> float:
        while self.frozen.is_set():
            time.sleep(0.01)
        return self._report()

    def _run(self) -> None:
        try:
            self.leadership.run(self.stop)
        except BaseException as error:  # noqa: BLE001
            self.error.append(error)

    def close(self) -> None:
        self.stop.set()
        self.frozen.clear()
        self.thread.join()
        self.leadership.close()
        self.own.close()
        self.warehouse.close()

    def pause(self, workload: str) -> None:
        self.warehouse.insert("pauses", workload=workload, created_at=utc_now(), actor="anna", reason="why")

    def pauses(self) -> list[str]:
        return [row["workload"] for row in self.warehouse.rows("SELECT workload FROM pauses ORDER BY ALL")]


def test_one_leads_and_the_other_follows_until_it_has_ended(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 600.0)  # one that leaves is not waited for
    first = Daemon(tmp_path, "first", database)
    assert first.led.wait(20)
    with closing(Daemon(tmp_path, "second", database)) as second:
        until(lambda: second.leadership.leader_url == "http://127.0.0.1/first")
        first.leadership.check()
        with pytest.raises(StandsBy, match="this daemon stands by and changes nothing: first leads"):
            second.leadership.check()
        assert [(one.name, one.leads) for one in second.leadership.members] == [("first", True), ("second", False)]
        first.pause("a")
        until(lambda: second.pauses() == ["a"])
        with pytest.raises(StandsBy):
            second.pause("b")
        first.close()
        assert second.led.wait(20)
        second.leadership.check()
        assert second.leadership.leader_url is None
        second.pause("c")
        assert second.pauses() == ["a", "c"]
        assert second.error == first.error == []


def test_one_that_is_frozen_leads_no_more_and_ends_itself_when_it_wakes_up(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(module, "MARGIN_SECONDS", 0.5)
    with closing(Daemon(tmp_path, "first", database)) as first, closing(Daemon(tmp_path, "second", database)) as second:
        until(lambda: first.led.is_set() or second.led.is_set())
        frozen, other = (first, second) if first.led.is_set() else (second, first)
        frozen.frozen.set()
        until(lambda: not frozen.leadership.leads)
        assert not other.led.is_set(), "it gives up before another one may begin"
        with pytest.raises(StandsBy, match="another daemon may lead by now"):
            frozen.leadership.check()
        assert other.led.wait(20)
        other.pause("a")
        with pytest.raises(LeadershipLost):
            frozen.pause("b")  # of before it knows
        frozen.frozen.clear()
        frozen.thread.join(20)
        assert isinstance(frozen.error[0], LeadershipLost)
        assert other.pauses() == ["a"]


def test_the_leader_alone_publishes_and_deletes(tmp_path: Path, database: str) -> None:
    with closing(Daemon(tmp_path, "first", database)) as first:
        assert first.led.wait(20)
        with closing(Daemon(tmp_path, "second", database)) as second:
            until(lambda: second.leadership.leader_url is not None)
            store = StoreSettings(objects_url=(tmp_path / "objects").as_uri())
            for daemon in (second, first):
                publisher, objects = MemoryPublisher(), Objects(store, lead=daemon.leadership.check)
                objects.put("a", b"")
                refuses = nullcontext() if daemon is first else pytest.raises(StandsBy)
                with refuses:
                    LedPublisher(publisher, daemon.leadership.check).publish("events", "w", {"event": "promoted"})
                with refuses:
                    objects.delete(["a"])
                acted = daemon is first
                assert publisher.messages == ([("events", "w", {"event": "promoted", "epoch": 1})] if acted else [])
                assert (tmp_path / "objects" / "a").exists() is not acted


def test_one_that_is_cut_off_is_followed_once_it_leads_no_more(
    tmp_path: Path, postgres: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL sees at once that its connection has ended; by its own clock it leads for a while yet."""
    monkeypatch.setattr(module, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(module, "MARGIN_SECONDS", 0.5)
    way = Proxy(postgres.port)
    through = database.replace(f":{postgres.port}/", f":{way.port}/")
    with closing(way), closing(Daemon(tmp_path, "first", through)) as first:
        assert first.led.wait(20)
        with closing(Daemon(tmp_path, "second", database)) as second:
            until(lambda: second.leadership.leader_url is not None)
            way.refuses = True
            way.cut()
            led = list[tuple[bool, bool]]()
            until(lambda: led.append((first.leadership.leads, second.leadership.leads)) or led[-1][1])
            assert led[0] == (True, False)
            assert (True, True) not in led
            with pytest.raises(StandsBy, match="another daemon may lead by now"):
                first.leadership.check()
            assert second.leadership.check() == 2
            way.refuses = False
            first.thread.join(20)
            assert isinstance(first.error[0], LeadershipLost)


def test_a_lease_begins_when_a_daemon_becomes_the_leader(database: str) -> None:
    """It had reported long before: it had much to follow first."""
    with closing(Postgres(StoreSettings(postgres_url=database))) as postgres:  # type: ignore[arg-type]
        for name in ("first", "second"):
            postgres.rows("report", {"instance": name, "name": name, "url": "*"})
        with postgres.transaction() as connection:
            connection.execute(b"UPDATE retuned.daemons SET beat_at = now() - INTERVAL '10 seconds'")
        assert postgres.rows("lead", {"instance": "first", "seconds": 5.0}) == [(1,)]
        assert postgres.rows("lead", {"instance": "second", "seconds": 5.0}) == [(None,)]
        postgres.rows("leave", {"instance": "first"})
        assert postgres.rows("lead", {"instance": "second", "seconds": 5.0}) == [(2,)]


def test_the_one_that_leads_goes_on_after_the_database_was_away(
    tmp_path: Path, postgres: Server, database: str
) -> None:
    with closing(Daemon(tmp_path, "first", database)) as first:
        assert first.led.wait(20)
        postgres.stop(signal.SIGKILL)
        until(lambda: first.leadership.problem.startswith("store.postgres_url: "))
        postgres.start()
        until(lambda: first.leadership.problem == "" and first.leadership.leads)
        first.pause("a")
        assert first.error == []


def test_one_that_lacks_segments_leaves_it_to_another_one(tmp_path: Path, database: str) -> None:
    """As one does that cannot read the storage."""
    settings = StoreSettings(postgres_url=database)  # type: ignore[arg-type]
    with closing(Postgres(settings)) as postgres, postgres.transaction() as connection:
        connection.execute(b"UPDATE retuned.last_segment SET number = 3")
    has = [2]
    with closing(Daemon(tmp_path, "behind", database, lambda: has[0])) as behind:
        until(lambda: behind.leadership.problem == "")
        time.sleep(0.3)
        assert not behind.led.is_set()
        assert not any(one.leads for one in behind.leadership.members)
        with closing(Daemon(tmp_path, "other", database, lambda: 3)) as other:
            assert other.led.wait(20)
            until(lambda: behind.control.leader == "other leads")
        has[0] = 3
        assert behind.led.wait(20)


def test_one_that_falls_behind_before_it_begins_gives_the_lock_back(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.5)
    asked = list[int]()

    def has() -> int:
        """Segments come between its first look and its second one."""
        asked.append(1)
        return 0 if len(asked) > 1 else 3

    with closing(Postgres(StoreSettings(postgres_url=database))) as postgres:  # type: ignore[arg-type]
        with postgres.transaction() as connection:
            connection.execute(b"UPDATE retuned.last_segment SET number = 3")
        with closing(Daemon(tmp_path, "first", database, has)) as first:
            until(lambda: len(asked) > 1)
            until(lambda: postgres.rows("lead", {"instance": "another", "seconds": 0.5}) != [(None,)])
            assert not first.led.is_set()


def test_daemons_are_told_apart_and_gone_when_they_have_ended(tmp_path: Path, database: str) -> None:
    with closing(Daemon(tmp_path, "first", database)) as first:
        assert first.led.wait(20)
        second = Daemon(tmp_path, "second", database)
        until(lambda: len(first.leadership.members) == 2)
        both = [("first leads", True), ("second stands by", False)]
        assert [(str(one), one.this) for one in first.leadership.members] == both
        assert str(module.Member("second", False, 26.4, False)) == "second is silent for 26 s"
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                """INSERT INTO retuned.daemons SELECT gone, name, url, backend, beat_at - INTERVAL '30 seconds'
                FROM retuned.daemons, (VALUES ('killed')) AS before(gone) WHERE name = 'second'"""
            )
        seen = first.leadership.members
        until(lambda: first.leadership.members is not seen)
        assert [one.name for one in first.leadership.members] == ["first", "second"], "it was started again"
        second.close()
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("UPDATE retuned.daemons SET beat_at = now() - INTERVAL '30 s' WHERE instance = 'killed'")
        silent = ["first leads", "second is silent for 30 s"]
        until(lambda: [str(one) for one in first.leadership.members] == silent)


def test_what_is_no_url_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigurationError, match="not a database URL; expected postgresql://") as refused:
        Postgres(StoreSettings(postgres_url="retuned:s3cret@127.0.0.1"))  # type: ignore[arg-type]
    assert "s3cret" not in str(refused.value)


def test_a_warehouse_is_handed_over_once_and_to_a_cluster_of_which_no_daemon_runs(
    tmp_path: Path, database: str
) -> None:
    settings = StoreSettings(postgres_url=database)  # type: ignore[arg-type]
    warehouse = open_warehouse(WarehouseSettings(path=tmp_path / "old.duckdb"))
    warehouse.insert("pauses", workload="a", created_at=utc_now(), actor="anna", reason="why")
    with closing(Postgres(settings)) as postgres:
        hand_over(postgres, warehouse)
    warehouse.close()
    with closing(Daemon(tmp_path, "first", database)) as first:
        assert first.led.wait(20)
        assert first.pauses() == ["a"]
        warehouse = open_warehouse(WarehouseSettings(path=tmp_path / "other.duckdb"))
        with (
            closing(Postgres(settings)) as postgres,
            pytest.raises(ConfigurationError, match="daemons have already used this database"),
        ):
            hand_over(postgres, warehouse)
        warehouse.close()
