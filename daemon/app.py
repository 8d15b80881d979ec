"""The daemon: its wiring and its lifecycle. Read `App.__init__` and `run` from top to bottom to know the program."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from retuned.consumers.common.extras import needing
from retuned.consumers.common.lead import alone
from retuned.consumers.common.signing import private_key
from retuned.consumers.common.text import first_line
from retuned.consumers.errors import BrokerUnavailable, ConfigurationError, RetunedError
from retuned.consumers.ingest import Ingest
from retuned.consumers.ingest_loop import IngestLoop
from retuned.consumers.kafka.connection import check_broker
from retuned.consumers.kafka.contract import Source
from retuned.consumers.kafka.member_file import MemberFile
from retuned.consumers.kafka.publisher import KafkaPublisher
from retuned.consumers.kafka.source import KafkaSource
from retuned.consumers.metrics import Metrics as ConsumerMetrics
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.consumers.warehouse.writer import stored_identities, stored_offsets
from retuned.daemon import overrides, tracing, workloads
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.jobs import audit
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.jobs.parts import FATAL, PartsFailed
from retuned.daemon.metrics import Metrics
from retuned.daemon.operations.local import Local
from retuned.daemon.private import keep_private, tighten
from retuned.daemon.process import exit_on_signals, interrupt_on_signals, raise_file_limit, tune_interpreter
from retuned.daemon.settings import Settings
from retuned.daemon.web.oidc import Provider
from retuned.daemon.web.principals import Principals
from retuned.daemon.web.routes import application
from retuned.daemon.web.server import Server, bind
from retuned.daemon.web.sessions import Sessions
from retuned.daemon.web.tls import server_tls
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain.metrics import Metrics as RetrainMetrics
from retuned.retrain.release import registry
from retuned.retrain.release.licence import check_licence
from retuned.retrain.scoring.metric import check_metric
from retuned.retrain.training.base_model import check_base_model

if TYPE_CHECKING:
    from retuned.consumers.cluster.leadership import Member
    from retuned.daemon.cluster import Cluster

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
STANDSTILL_SECONDS = 120.0
"""A round of the ingest loop takes seconds, and half a minute at most in measurements of slow batches, imports and
brokers. A group drops a member after 300 s (`max.poll.interval.ms`), so this comes first."""


class App:
    """The parts of a daemon, and their lifecycle."""

    def __init__(self, settings: Settings) -> None:
        """Build everything; nothing runs yet. If a part fails, the parts before it are stopped.

        Raises:
            RetunedError: a part cannot be built; the text states what to do. A broker that refuses is an error; the
                daemon waits for a broker that is unreachable.
        """
        self.settings = settings
        self.stopping = threading.Event()
        self.error: BaseException | None = None
        self.started_at: datetime = utc_now()
        self._stops: list[tuple[str, Callable[[], None]]] = []
        self._stop_lock = threading.Lock()
        try:
            self.registry = CollectorRegistry()
            for collector in (ProcessCollector, PlatformCollector, GCCollector):
                collector(registry=self.registry)
            keep_private()
            tighten(settings)
            for _, attempt in preconditions(settings):
                attempt()
            address = bind(settings.http)
            self._stops.append(("address", address.close))
            # Port 0 is any free port: from here on the settings have the one that others can reach.
            http = settings.http.model_copy(update={"port": address.getsockname()[1]})
            self.settings = settings = settings.model_copy(update={"http": http})
            if settings.tracing.otlp_endpoint:
                self._stops.append(("tracing", tracing.start(settings.tracing)))
            _try_broker(settings)
            self.warehouse: Warehouse = open_warehouse(settings.warehouse)
            self._stops.append(("warehouse", self.warehouse.close))
            for notice in overrides.notices(settings.workloads, workloads.known(self.warehouse)):
                log.warning("%s", notice)

            self.publisher = KafkaPublisher(settings.kafka)
            self._stops.append(("publisher", self.publisher.close))
            metrics = ConsumerMetrics(self.registry)
            self.cluster: Cluster | None = None
            self.source: Source
            self.ingest: IngestLoop
            if settings.store.kind == "cluster":
                self.cluster = self._join_cluster(metrics)
                self.source, self.ingest = self.cluster.source, self.cluster.follower
                self._stops.append(("leadership", self.cluster.stop))
            else:
                self.source = _kafka_source(settings, self.warehouse)
                self.ingest = Ingest(self.source, self.warehouse, settings, metrics, self.publisher)
            self._ingest_thread = threading.Thread(target=self._ingest, name="ingest")
            self._stops.append(("ingestion", self._stop_ingest))

            self.jobs = Jobs(self._context(), self.fail)
            self._stops.append(("jobs", self.jobs.shutdown))
            if self.cluster:
                self.jobs.erasures.segments = self.cluster.erase_segments
                self.jobs.erasures.problem_of_segment = self.cluster.problem_of_segment
                self.jobs.erasures.numbers = self.cluster.erase_numbers

            intake = self.cluster.intake if self.cluster else None
            service = Local(self.jobs, self.ingest, self.started_at, intake, self)
            served = application(service, self, settings)
            self._principals: Principals = served.state.principals
            self._principals.on_change = lambda: threading.Thread(target=self._record_principals, name="audit").start()
            self.server = Server(served, settings.http, address)
            self._stops.append(("http", self.server.stop))
            self.jobs.context.metrics.warnings.set_function(lambda: len(self.warnings()))
            self.jobs.context.metrics.build.labels(version("retuned")).set(1)
            self.jobs.context.metrics.currency.labels(settings.roi.currency).set(1)
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Start the threads: ingestion, jobs, HTTP."""
        tune_interpreter()
        raise_file_limit()
        self._ingest_thread.start()
        self.jobs.start()
        self.server.start()
        if self.cluster:
            self.cluster.start()  # calls _lead once no other daemon leads
        else:
            self._lead()
        log.info("serving on %s", self.server.url)

    def stop(self) -> None:
        """Stop everything, in reverse order of building; each stop is bounded in time and safe to repeat."""
        self.stopping.set()
        with self._stop_lock:
            while self._stops:
                name, stop = self._stops.pop()
                log.debug("stopping %s", name)
                stop()

    def fail(self, error: BaseException) -> None:
        """Stop the daemon because of an error that it cannot survive; the first one is raised at the end."""
        self.error = self.error or error
        self.stopping.set()

    def health(self) -> list[str]:
        """Returns problems that only a restart solves; empty: the process is healthy."""
        if self.error is not None:
            return [str(self.error)]
        if not self._ingest_thread.is_alive():
            return ["ingestion is not running"]
        silent = self.ingest.seconds_without_progress
        if silent > STANDSTILL_SECONDS and not self.warehouse.turns.is_alone:  # an erasure rewrites the file
            return [
                f"ingestion stands still: its loop has hung for {silent:.0f} s; restart the daemon, nothing is lost"
            ]
        return []

    def readiness(self) -> list[str]:
        """Returns what keeps events from flowing; empty: they flow."""
        if not self.ingest.broker_up:
            return [self.ingest.broker_problem or f"kafka {self.settings.kafka.bootstrap_servers}: not connected yet"]
        if self.ingest.waiting_for:
            return [self.ingest.waiting_for]
        if self.cluster and self.cluster.problem:
            return [self.cluster.problem]
        return [f"the topic {topic} is not on the broker: create it" for topic in self.ingest.missing_topics]

    def warnings(self) -> list[str]:
        """Returns problems that need attention but stop nothing."""
        unreachable = [self.cluster.problem or self.ingest.broker_problem] if self.cluster else []
        return [*filter(None, unreachable), *self.server.warnings(), *self.warehouse.artifacts.problems()]

    def leader(self) -> "Cluster | None":
        """Returns the cluster, if another daemon leads it; None: this daemon leads, or there is no cluster."""
        return self.cluster if self.cluster is not None and not self.cluster.leads else None

    def daemons(self) -> "list[Member]":
        """Returns the daemons of the cluster that reported lately."""
        return self.cluster.members if self.cluster else []

    # Inside

    def _join_cluster(self, metrics: ConsumerMetrics) -> "Cluster":
        """Join the cluster: this daemon follows segments instead of Kafka, and one daemon leads."""
        with needing("cluster", "store.kind cluster"):
            from retuned.daemon.cluster import Cluster
        self.registry.unregister(metrics.broker_up)  # only ingesters read Kafka
        return Cluster(self.settings, self.warehouse, self.registry, metrics, self.publisher, self._lead, self.fail)

    def _context(self) -> Context:
        return Context(
            self.warehouse,
            self.settings,
            self.publisher,
            Metrics(self.registry),
            MonitorMetrics(self.registry),
            RetrainMetrics(self.registry),
            self.stopping,
            utc_now,
            self.cluster.check if self.cluster else alone,
            lambda: self.ingest.known_until,
        )

    def _lead(self) -> None:
        """Do the work of a leader: that of a cluster, or a daemon without one."""
        registry.reconcile(self.warehouse, self.settings)
        audit.record_start(self.warehouse, self.settings)
        self._record_principals()
        self.jobs.lead()

    def _record_principals(self) -> None:
        """Record changed tokens: by the leader, for the daemons of a cluster may share the file."""
        if self.leader() is not None:
            return
        try:
            audit.record_principals(self.warehouse, self._principals.described())
        except RetunedError as error:
            log.warning("audit: changed tokens are recorded at the next start: %s", error)

    def _ingest(self) -> None:
        try:
            self.ingest.run(self.stopping)
        except BaseException as error:  # noqa: BLE001  (any error in this thread ends the daemon)
            self.fail(error)
        finally:
            self.source.close()  # in the thread that polls: the client is not thread-safe

    def _stop_ingest(self) -> None:
        if self._ingest_thread.is_alive():
            self._ingest_thread.join(timeout=STOP_SECONDS)
        elif self._ingest_thread.ident is None:  # never started
            self.source.close()


def run(settings: Settings, ready: Callable[[App], None] | None = None) -> int:
    """Run the daemon until a signal or an error ends it. The first signal drains, the second one exits at once.

    Args:
        ready: called once everything runs.

    Returns:
        The exit status: 0 after a signal.

    Raises:
        RetunedError: the daemon could not start, or had to stop.
    """
    app = App(settings)
    exit_on_signals(app.stopping)
    try:
        app.start()
        if ready:
            ready(app)
        while not app.stopping.wait(1.0):
            pass
    finally:
        overdue = threading.Timer(STOP_SECONDS, _overdue, [app.error or sys.exception()])
        overdue.daemon = True
        overdue.start()
        app.stop()
        overdue.cancel()
    if app.error is not None:
        raise app.error
    log.info("stopped")
    return 0


ONCE = (
    "erasures",  # first: nothing is measured or learned of what people took back
    "opinions",
    "quality",
    "shadow",
    "watch",
    "erased",
    "drift",
    "resume",
    "labels",
    "announce",
    "archive",
    "retention",
)
"""The jobs of one pass, in their order."""


def run_once(settings: Settings) -> None:
    """Make one pass: read what the broker has, erase what was requested, measure, watch new champions, take versions
    that learned erased rows out of service, check for drift, decide, retrain if it is time, request labels, archive,
    and remove old data.

    Raises:
        PartsFailed: the broker does not answer, a topic is missing, or jobs failed; everything else was done.
        RetunedError: the pass could not be made.
    """
    if settings.store.kind == "cluster":
        raise ConfigurationError("run --once: the daemons of a cluster (store.kind) run all the time")
    app = App(settings)
    interrupt_on_signals()
    try:
        failed = []
        registry.reconcile(app.warehouse, settings)
        try:
            app.ingest.read_until(app.started_at)
            failed += [f"the topic {topic} is not on the broker: create it" for topic in app.ingest.missing_topics]
        except BrokerUnavailable as error:
            failed.append(f"{error}; no events were read, and the jobs ran on those that are stored")
        app.jobs.context.reconciler.run()  # a rollout takes no step before the state of the replicas is known
        for job in ONCE:
            try:
                app.jobs.run(job)
            except FATAL:
                raise
            except (RetunedError, OSError) as error:
                failed.append(str(error))
        app.jobs.context.reconciler.run()
        if failed:
            raise PartsFailed("; ".join(failed))
    finally:
        app.stop()


def preconditions(settings: Settings) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Yields what a start tries before it opens anything, by name; `retuned check` tries the same, and more.

    Each returns what it found, or None, and raises a ConfigurationError where a start is refused. Access control comes
    first.
    """
    yield "http", lambda: _access(settings.http)
    yield "audit", lambda: _signing(settings.audit.key_file)
    yield "warehouse", lambda: _limits(settings.warehouse)
    for key, base in settings.bases().items():
        name = "base model" if key == "models.base" else f"base model of {key}"
        yield name, partial(_base_model, base, settings.models.allowed_licences, key)
    for workload, own in settings.variants({"metric", "evaluate"}).items():
        yield f"metric of {workload}" if workload else "metric", partial(_metric, own, workload)
    yield "tracing", lambda: tracing.check(settings.tracing)


def _access(settings: HttpSettings) -> None:
    principals = Principals(settings)
    server_tls(settings)
    sessions = Sessions(principals, settings)
    if settings.oidc:
        Provider(settings.oidc, sessions.key)


def _signing(key_file: Path | None) -> str | None:
    if key_file is None:
        return None
    private_key(key_file)
    return f"{key_file} signs"


def _limits(settings: WarehouseSettings) -> None:
    """Tries the limits that only DuckDB can read, without the file."""
    for key in ("memory_limit", "checkpoint_threshold"):
        try:
            duckdb.connect(config={key: getattr(settings, key)}).close()
        except duckdb.Error as error:
            raise ConfigurationError(f"warehouse.{key}: {first_line(error)}") from error


def _base_model(base: Path | None, licences: Collection[str] | None, key: str) -> str:
    found = check_base_model(base, key)
    check_licence(base, licences, key)
    return found


def _metric(settings: Settings, workload: str | None) -> str | None:
    try:
        return check_metric(settings)
    except ConfigurationError as error:
        raise ConfigurationError(f"workloads.{workload}: {error}" if workload else str(error)) from error


def _try_broker(settings: Settings) -> None:
    """Stop a start with a broker that refuses; page, rollback and jobs work without one that is unreachable."""
    try:
        log.info("broker: %s", check_broker(settings.kafka))
    except BrokerUnavailable as error:
        log.warning("%s; starting without it", error)


def _kafka_source(settings: Settings, warehouse: Warehouse) -> KafkaSource:
    return KafkaSource(
        settings.kafka,
        lambda: stored_offsets(warehouse),
        lambda: stored_identities(warehouse),
        MemberFile(settings.warehouse.path),
    )


def _overdue(cause: BaseException | None) -> None:
    if cause is not None:
        log.error("stopping: %s", cause)
    log.error("not stopped after %g s: exiting at once; nothing that was stored is lost", STOP_SECONDS)
    os._exit(1)
