"""What the leader of a cluster removes every hour: expired segments, left-over files, and rows in PostgreSQL."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from fixtures.kafka.ingestion import interaction

pytest.importorskip("obstore", reason="the extra cluster is not installed")

from prometheus_client import CollectorRegistry

from fixtures.cluster.doubles import KEY, Cluster, drain
from fixtures.kafka.brokers import until
from retuned.consumers.cluster import database as limits
from retuned.consumers.cluster import sweep
from retuned.consumers.cluster.database import Database, Wanted
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.errors import StoreUnavailable
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.metrics import Metrics
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.cluster import Cluster as Membership
from retuned.daemon.settings import Settings


def with_old_segments(cluster: Cluster, count: int) -> None:
    """Segments of which all but the last one are 40 days old."""
    ingester = cluster.ingester()
    for number in range(count):
        cluster.send(interaction(f"{number}"))
        drain(ingester)
    cluster.query(
        f"UPDATE retuned.segments SET received_at = now() - INTERVAL '40 days' WHERE number < {count} RETURNING 1"
    )


def test_segments_expire_in_parts_of_which_none_is_repeated(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with_old_segments(cluster, 7)
    monkeypatch.setattr(sweep, "SEGMENTS_AT_ONCE", 2)
    parts: list[int] = []

    class Counting(Database):
        def expire(self, days: int, up_to: int) -> int:
            if len(parts) == 1:
                parts.append(0)
                raise StoreUnavailable("no answer")
            parts.append(super().expire(days, up_to))
            return parts[-1]

    with closing(Counting(cluster.settings.store)) as database:
        with pytest.raises(StoreUnavailable):
            sweep.expire(database, 30, 7)
        expired = database.expired(0)
        assert expired is not None
        assert (expired.number, expired.rows) == (2, 2)
        assert sweep.expire(database, 30, 5) == 3, "up to a number"
        assert sweep.expire(database, 30, 7) == 1, "the last one is not old enough"
        assert parts == [2, 0, 2, 1, 0, 1, 0]
        expired = database.expired(0)
        assert expired is not None
        assert (expired.number, expired.rows) == (6, 6)
        assert sweep.sweep(database, cluster.objects) == 6
    assert cluster.query("SELECT number FROM retuned.segments") == [(7,)]
    assert len(cluster.files()) == 1


@pytest.fixture
def swept(cluster: Cluster, warehouse: Warehouse) -> Iterator[list[BaseException]]:
    """A leader with numbers of placeholders that are old enough to be forgotten; yields why it failed."""
    cluster.database().placeholder_numbers([Wanted(b"scope", b"value", "EMAIL")], {b"event": b"scope"})
    for table in ("placeholders", "numbered_events"):
        cluster.query(f"UPDATE retuned.{table} SET used_on = used_on - {limits.KEEP_DAYS + 1} RETURNING 1")
    store = {
        "kind": "cluster", "postgres_url": cluster.url, "objects_url": cluster.folder.as_uri(), "segment_days": 30,
    }  # fmt: skip
    settings = Settings(privacy={"user_key": KEY}, store=store, warehouse={"path": warehouse.path})
    registry, failed = CollectorRegistry(), list[BaseException]()
    member = Membership(
        settings, warehouse, registry, Metrics(registry), MemoryPublisher(), lambda: None, failed.append
    )
    member.start()
    yield failed
    member.stop()
    member.source.close()


@pytest.mark.parametrize("step", ["expire", "list"])
def test_a_step_that_fails_stops_no_other_one(
    cluster: Cluster,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    def fails(*_: object) -> int:
        raise StoreUnavailable(f"no answer to {step}")

    monkeypatch.setattr(Database if step == "expire" else Objects, step, fails)
    failed = request.getfixturevalue("swept")
    until(lambda: cluster.query("SELECT count(*) FROM retuned.placeholders") == [(0,)] or failed)
    assert failed == []
    what = {"expire": "old segments", "list": "unused files"}[step]
    assert f"no answer to {step}; the removal of {what} is tried again in an hour" in caplog.text
