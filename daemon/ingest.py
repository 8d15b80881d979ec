"""`retuned ingest`: wiring and lifecycle of one ingester. Several share the consumer group; see `cluster.ingester`."""

import logging
import threading
from importlib.metadata import version

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from retuned.consumers.cluster.database import Database
from retuned.consumers.cluster.ingester import Ingester
from retuned.consumers.cluster.metrics import Metrics as SegmentMetrics
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.kafka.publisher import KafkaPublisher
from retuned.consumers.kafka.source import KafkaSource
from retuned.consumers.metrics import Metrics
from retuned.daemon.app import STANDSTILL_SECONDS, STOP_SECONDS
from retuned.daemon.process import exit_on_signals, raise_file_limit, tune_interpreter
from retuned.daemon.settings import Settings
from retuned.daemon.web.routes import process_application
from retuned.daemon.web.server import Server

log = logging.getLogger(__name__)


class IngestProcess:
    """The parts of an ingester, and what the HTTP server shows of them."""

    def __init__(self, settings: Settings) -> None:
        """Builds everything; nothing runs yet.

        Raises:
            RetunedError: a setting is missing or wrong. Kafka, the database and the storage are not asked yet.
        """
        self.error: BaseException | None = None
        self.stopping = threading.Event()
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._database, objects = Database(settings.store), Objects(settings.store)
        self._publisher = KafkaPublisher(settings.kafka)
        self._source = KafkaSource(settings.kafka, self._database.offsets, self._database.identities, shared=True)
        metrics, segment_metrics = Metrics(self.registry), SegmentMetrics(self.registry)
        segment_metrics.build.labels(version("retuned")).set(1)
        self.ingester = Ingester(
            self._source, self._database, objects, settings, metrics, segment_metrics, self._publisher
        )
        self._thread = threading.Thread(target=self._ingest, name="ingest")
        self.server = Server(process_application(self, settings), settings.http)

    def start(self) -> None:
        """Start the threads: ingestion, HTTP."""
        tune_interpreter()
        raise_file_limit()
        self._thread.start()
        self.server.start()
        log.info("ingesting; health and metrics on %s", self.server.url)

    def stop(self) -> None:
        """Give up the batch in hand, leave the group, and stop; safe to repeat."""
        self.stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        self.server.stop()
        self._publisher.close()
        self._database.close()

    def health(self) -> list[str]:
        """What is broken for good; empty when the process is sound."""
        if self.error is not None:
            return [str(self.error)]
        silent = self.ingester.seconds_without_progress
        if silent > STANDSTILL_SECONDS:
            return [f"ingestion stands still: its loop has hung for {silent:.0f} s; restart it, nothing is lost"]
        return []

    def readiness(self) -> list[str]:
        """What is not there yet, or not there now; empty when events flow."""
        if not (self.ingester.broker_up and self.ingester.store_up):
            return [self.ingester.problem or "not connected yet"]
        return [f"the topic {topic} is not on the broker: create it" for topic in self.ingester.missing_topics]

    def leader(self) -> None:
        """Its routes need none."""

    def _ingest(self) -> None:
        try:
            self.ingester.run(self.stopping)
        except BaseException as error:  # noqa: BLE001  (whatever ends this thread ends the process)
            self.error = error
            self.stopping.set()
        finally:
            self._source.close()  # by the thread that polls: the client is not made for two


def run(settings: Settings) -> int:
    """Ingest until a signal or an error ends it; the first signal stops, the second forces.

    Returns:
        The exit status: 0 after a signal.

    Raises:
        RetunedError: it could not start, or could not go on.
    """
    process = IngestProcess(settings)
    exit_on_signals(process.stopping)
    try:
        process.start()
        while not process.stopping.wait(1.0):
            pass
    finally:
        process.stop()
    if process.error is not None:
        raise process.error
    log.info("stopped")
    return 0
