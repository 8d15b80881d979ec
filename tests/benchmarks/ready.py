"""How long a daemon with 3 million events takes after kill -9: until it is ready, and until it stores an event again.

On Apache Kafka where KAFKA_HOME names a distribution, else on Tansu; with the session timeout of the defaults.
"""

import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.daemon.daemons import App, Daemon, running, settings_for
from fixtures.kafka.brokers import no_apache_kafka, run_apache_kafka, run_tansu
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse

EVENTS = 3_000_000
BUILD = """
INSERT INTO interactions BY NAME
SELECT
    'e' || n AS id, now()::TIMESTAMP - to_seconds($events - n) AS timestamp, 'support' AS workload,
    'support@base' AS model, 'c' || n AS conversation_id,
    '[{"role":"user","content":"Where is my parcel, order A-' || n || '? ' || sha256('q' || n) || '"}]' AS messages,
    'It left on Monday. ' || sha256('a' || n) AS response, 0.5 AS latency_seconds,
    $topic AS topic, 0 AS partition, n - $events AS "offset", timestamp AS received_at
FROM range($events) AS numbers(n)
"""


def build(settings: dict[str, Any]) -> None:
    """A warehouse with the events of 35 days."""
    warehouse = open_warehouse(WarehouseSettings(**settings["warehouse"]))
    warehouse.execute(BUILD, {"events": EVENTS, "topic": settings["kafka"]["interactions_topic"]})
    warehouse.checkpoint()
    warehouse.close()


def count(daemon: Daemon) -> float:
    """Events that this life of the daemon has stored."""
    return daemon.metric("retuned_events_total", topic=daemon.settings["kafka"]["interactions_topic"]) or 0.0


def until_stored(daemon: Daemon, app: App) -> None:
    app.answered("Where is it?", "On its way.")
    app.flush()
    daemon.until(lambda: count(daemon) > 0, "an event that is stored")


def main() -> dict[str, float]:
    """Takes about two minutes on two cores."""
    run_broker = run_tansu if no_apache_kafka() else run_apache_kafka
    with tempfile.TemporaryDirectory() as name, run_broker(Path(name) / "broker") as broker:
        folder = Path(name) / "daemon"
        folder.mkdir()
        settings = settings_for(broker, folder, schedule={})
        del settings["kafka"]["session_timeout_seconds"]
        broker.create_topics(*(settings["kafka"][f"{kind}_topic"] for kind in ("interactions", "feedback")))
        build(settings)
        app = App(settings)
        with running(folder, settings) as daemon:
            until_stored(daemon, app)
            daemon.stop(signal.SIGKILL)
            began = time.perf_counter()
            daemon.start()
            ready = time.perf_counter() - began
            until_stored(daemon, app)
            stored = time.perf_counter() - began
        app.close()
    return {"ready_seconds_3m": ready, "ready_until_stored_seconds_3m": stored}


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
