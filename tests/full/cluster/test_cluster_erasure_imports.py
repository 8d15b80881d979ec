"""Imports into a cluster beside an erasure: all daemons store the same rows, and none of the person's."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="the extra cluster is not installed")
pytest.importorskip("moto", reason="the extra test is not installed")

from prometheus_client import CollectorRegistry

from fixtures.cluster.doubles import Cluster
from fixtures.feedback.cluster_erasing import Daemon
from fixtures.feedback.erasing import ANSWERS, MINE, SECRET, logged_events, not_anns, traces
from fixtures.kafka.brokers import until
from fixtures.kafka.importing import written
from retuned.consumers.cluster.intake import SegmentIntake
from retuned.consumers.file_import import Position, Taken
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.metrics import Metrics
from retuned.consumers.warehouse.selection import Request
from retuned.daemon.transfer.imports import import_files


class Killed(BaseException):
    """The process ends here."""


class Intake:
    """What takes the rows of a file at a daemon, with something that happens after so many batches."""

    def __init__(self, daemon: Daemon, batches: int = 0, then: Callable[[], None] = lambda: None) -> None:
        cluster = daemon.cluster
        self._intake = SegmentIntake(
            cluster.database(), cluster.objects, daemon.ingest, daemon.settings, Metrics(CollectorRegistry()),
            MemoryPublisher(),
        )  # fmt: skip
        self._batches, self._then = batches, then

    def position(self, topic: str) -> Position:
        return self._intake.position(topic)

    def take(self, batch: Batch) -> Taken:
        taken = self._intake.take(batch)
        self._batches -= 1
        if not self._batches:
            self._then()
        return taken


@pytest.fixture
def daemons(cluster: Cluster, tmp_path: Path) -> Iterator[list[Daemon]]:
    """A leader and another one, which follow the segments."""
    with ExitStack() as stack:
        yield [stack.enter_context(following(cluster, tmp_path / name, name == "a")) for name in ("a", "b")]


@contextmanager
def following(cluster: Cluster, folder: Path, leads: bool) -> Iterator[Daemon]:
    daemon, stop = Daemon(cluster, folder, leads=leads), threading.Event()
    batches = daemon.settings.ingest.model_copy(update={"batch_events": 10})
    daemon.settings = daemon.settings.model_copy(update={"ingest": batches})
    thread = threading.Thread(target=daemon.ingest.run, args=(stop,))
    thread.start()
    try:
        yield daemon
    finally:
        stop.set()
        thread.join()
        daemon.close()


def erase(leader: Daemon) -> None:
    id = leader.erasures.request(Request(user_id="ann@shop").selection(leader.erasures.keys), "dpo", None)
    leader.erasures.run()
    assert (leader.erasures.of(id) or {})["state"] == "done"


def have_others_alone(leader: Daemon, other: Daemon) -> None:
    other.control.follow()
    other.applied.apply()
    for daemon in (leader, other):
        until(lambda daemon=daemon: daemon.ids("interactions") == not_anns("interactions"))
        assert traces(daemon.folder, SECRET, MINE) == {}
    until(lambda: leader.ids("feedback") == other.ids("feedback"))
    assert traces(leader.cluster.folder, SECRET, MINE) == {}


@pytest.mark.parametrize("batches", [0, 1, 6, 12])
def test_an_erasure_before_and_in_the_middle_of_an_import(
    daemons: list[Daemon], tmp_path: Path, batches: int, capsys: pytest.CaptureFixture[str]
) -> None:
    leader, other = daemons
    path = written(tmp_path / "logs.jsonl", *logged_events())
    if not batches:
        erase(leader)
    intake = Intake(other, batches, lambda: erase(leader))
    assert import_files([path], None, None, other.settings, intake) == 0
    assert ("erased" in capsys.readouterr().out) == (batches < 12)
    have_others_alone(leader, other)


def test_an_erasure_while_a_segment_of_an_import_is_written(
    daemons: list[Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, other = daemons
    path, intake, puts = written(tmp_path / "logs.jsonl", *logged_events()), Intake(other), list[str]()
    put = type(leader.cluster.objects).put

    def put_meanwhile(self: Any, key: str, content: bytes) -> None:
        put(self, key, content)
        puts.append(key)
        if len(puts) == 9:
            erase(leader)

    monkeypatch.setattr(type(leader.cluster.objects), "put", put_meanwhile)
    assert import_files([path], None, None, other.settings, intake) == 0
    have_others_alone(leader, other)


def test_an_import_that_is_killed_and_resumed_at_another_daemon_after_an_erasure(
    daemons: list[Daemon], tmp_path: Path
) -> None:
    leader, other = daemons
    path = written(tmp_path / "logs.jsonl", *logged_events())

    def killed() -> None:
        raise Killed

    with pytest.raises(Killed):
        import_files([path], None, None, other.settings, Intake(other, 6, killed))
    assert len(other.ids("interactions")) == ANSWERS // 2
    erase(leader)
    assert import_files([path], None, None, leader.settings, Intake(leader)) == 0
    have_others_alone(leader, other)
    assert (
        import_files([written(tmp_path / "again.jsonl", *logged_events())], None, None, other.settings, Intake(other))
        == 0
    )
    have_others_alone(leader, other)
