"""A short form of `make chaos`: the same faults, with few events (all of them take minutes); and what a kill costs."""

import signal
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.daemon.daemons import App, running, settings_for
from fixtures.faults.faults import FAULTS, no_small_disk, small_disk, survive
from fixtures.kafka.brokers import Broker


@pytest.mark.parametrize(
    ("name", "events", "seconds"),
    [
        ("second daemon in the group", 1_000, 1.0),
        ("disk full", 3_000, 3.0),
        ("batch broken on the broker", 2_000, 2.0),
        ("transactions, daemon killed", 2_000, 2.0),
    ],
)
def test_nothing_is_lost_or_doubled(
    apache_kafka: Broker, tmp_path: Path, name: str, events: int, seconds: float
) -> None:
    fault = FAULTS[name]
    if fault.place is small_disk and (reason := no_small_disk()):
        pytest.skip(reason)
    row = survive(fault, apache_kafka, tmp_path, events, seconds)
    assert row["times"] > 0
    assert (row["lost"], row["doubled"]) == (0, 0)
    assert row["stored"] + row["told"] == row["sent"] == events


def test_a_killed_daemon_is_not_waited_for_by_the_next_one(apache_kafka: Broker, tmp_path: Path) -> None:
    """Its session, which the broker keeps up for a minute, ends at once; that of another daemon does not."""
    settings = settings_for(apache_kafka, tmp_path)
    settings["kafka"]["session_timeout_seconds"] = 60.0
    apache_kafka.create_topics(settings["kafka"]["interactions_topic"], settings["kafka"]["feedback_topic"])
    with closing(App(settings)) as app, running(tmp_path, settings) as daemon:
        app.answered("first", "an answer")
        app.flush()
        daemon.until(lambda: daemon.status()["ingestion"]["interactions"] == 1, "the first event")
        daemon.stop(signal.SIGKILL)
        app.answered("second", "an answer")
        app.flush()
        daemon.start()
        daemon.until(lambda: daemon.status()["ingestion"]["interactions"] == 2, "the second event", 30.0)
