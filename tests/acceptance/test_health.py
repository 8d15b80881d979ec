"""What /healthz and the metrics say when the ingest loop hangs, and when the broker is away."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from fixtures.daemon.daemons import settings_for
from fixtures.kafka.brokers import Broker, until
from retuned.consumers.errors import BrokerUnavailable
from retuned.consumers.kafka.contract import Batch
from retuned.daemon import app
from retuned.daemon.settings import Settings


class Source:
    """Does what its test wants at each poll."""

    topic: ClassVar = {"topic": "interactions"}

    def __init__(self) -> None:
        self.released = threading.Event()
        self.hang = self.away = False
        self.waiting = 0
        self.ages: dict[str, float] = {}
        self.before_assignment = lambda _: None
        self.missing = frozenset[str]()
        self.waiting_for = ""

    def poll(self, _: int, __: float) -> Batch:
        self.released.wait(60 if self.hang else 0.02)
        if self.away:
            raise BrokerUnavailable("broker: not there")
        return Batch()

    def lag(self) -> int:
        return self.waiting

    def caught_up(self) -> bool:
        return self.waiting == 0

    def lag_seconds(self, _: float) -> dict[str, float]:
        return self.ages

    def close(self) -> None:
        pass


@pytest.fixture
def source(tansu: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Source, str, Any]]:
    made = Source()
    monkeypatch.setattr(app, "KafkaSource", lambda *_: made)
    monkeypatch.setattr(app, "STANDSTILL_SECONDS", 3.0)
    daemon = app.App(Settings(**settings_for(tansu, tmp_path, http={"port": 0})))
    daemon.start()
    yield made, daemon.server.url, daemon
    made.released.set()
    daemon.stop()


def code(url: str, path: str) -> int:
    try:
        return httpx.get(url + path, timeout=20).status_code
    except httpx.TransportError:  # not there, or busy
        return 0


def test_a_topic_that_is_missing_makes_it_unready_and_is_named(source: Any) -> None:
    fake, url, _ = source
    until(lambda: code(url, "/readyz") == 200)
    fake.missing = frozenset({"feedback"})
    assert httpx.get(f"{url}/readyz").text == "the topic feedback is not on the broker: create it\n"
    assert (code(url, "/readyz"), code(url, "/healthz")) == (503, 200)
    fake.missing = frozenset()
    fake.waiting_for = "consumer group 'x': another consumer is in it"
    assert "another consumer" in httpx.get(f"{url}/readyz").text
    fake.waiting_for = ""
    assert code(url, "/readyz") == 200


def test_a_loop_that_hangs_is_unhealthy_and_one_that_waits_for_a_broker_is_not(source: Any) -> None:
    fake, url, daemon = source
    until(lambda: code(url, "/readyz") == 200)
    fake.waiting = 7  # without a batch
    until(lambda: daemon.registry.get_sample_value("retuned_ingest_lag_events") == 7)
    assert daemon.registry.get_sample_value("retuned_ingest_last_progress_timestamp_seconds")
    fake.ages = {"interactions": 42.0}
    until(lambda: daemon.registry.get_sample_value("retuned_ingest_lag_seconds", fake.topic) == 42)
    assert httpx.get(f"{url}/api/v1/ingestion").json()["lag_seconds"] == fake.ages
    fake.away = True
    until(lambda: code(url, "/readyz") == 503)
    assert daemon.registry.get_sample_value("retuned_ingest_lag_seconds", fake.topic) is None  # not known any more
    assert code(url, "/healthz") == 200
    fake.away, fake.hang = False, True
    until(lambda: code(url, "/healthz") == 503)
    assert "stands still" in httpx.get(f"{url}/healthz").text
    fake.hang = False
    fake.released.set()
    until(lambda: code(url, "/healthz") == 200)
