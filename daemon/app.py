"""The daemon: wiring and lifecycle in one straight line. Read `run` from top to bottom and you know the program."""

import ctypes
import gc
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from types import FrameType
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from retuned.consumers.common.extras import needing
from retuned.consumers.common.lead import alone
from retuned.consumers.errors import BrokerUnavailable, ConfigurationError
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.connection import check_broker
from retuned.consumers.kafka.contract import Source
from retuned.consumers.kafka.member_file import MemberFile
from retuned.consumers.kafka.publisher import KafkaPublisher
from retuned.consumers.kafka.source import open_source
from retuned.consumers.metrics import Metrics as ConsumerMetrics
from retuned.consumers.warehouse.connection import Warehouse, open_warehouse, utc_now
from retuned.consumers.warehouse.writer import stored_identities, stored_offsets
from retuned.daemon import overrides, tracing, workloads
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.jobs.parts import PartsFailed
from retuned.daemon.metrics import Metrics
from retuned.daemon.private import keep_private, tighten
from retuned.daemon.service import LocalService
from retuned.daemon.settings import Settings
from retuned.daemon.web.principals import Principals
from retuned.daemon.web.routes import application
from retuned.daemon.web.server import Server
from retuned.daemon.web.tls import server_tls
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain.metrics import Metrics as RetrainMetrics
from retuned.retrain.release import registry
from retuned.retrain.scoring.metric import check_metric
from retuned.retrain.training.base_model import check_base_model

if TYPE_CHECKING:
    from retuned.consumers.cluster.leadership import Member
    from retuned.daemon.cluster import Cluster

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
MOST_FILES = 65_536
STANDSTILL_SECONDS = 120.0
"""The ingest loop comes round within seconds, and within half a minute with the slowest batch, import or answer of a
broker that was measured. A group gives up on a member after 300 s (`max.poll.interval.ms`): this comes before."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def tune_interpreter() -> None:
    """For many short-lived objects, large buffers, and threads that mostly work outside of Python's lock."""
    # Events have no cycles: collecting less often is an eighth faster.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    # DuckDB and Arrow come back for the lock many times a batch; waiting 5 ms each time is a quarter slower.
    sys.setswitchinterval(0.0001)
    # Once glibc has seen a large buffer go (what a broker sent), it keeps the next ones, and the holes between them.
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 8 << 20)


def raise_file_limit() -> None:
    """Open as many files as this process may: many a shell and service begins with 1,024 of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MOST_FILES:
        most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


class App:
    """The parts of a daemon, and their lifecycle."""

    def __init__(self, settings: Settings) -> None:
        """Builds everything; nothing runs yet. What was built is undone when a later part fails.

        Raises:
            RetunedError: a part cannot be built; the text names the way out. A broker that refuses is one, a broker
                that is away is not: it is waited for.
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
            Principals(settings.http)  # what would let anybody in is refused before anything else is done
            server_tls(settings.http)
            for key, base in settings.bases().items():
                check_base_model(base, key)
            for name, own in settings.variants({"metric", "evaluate"}).items():
                with _of_entry(name):
                    check_metric(own)
            if settings.tracing.otlp_endpoint:
                self._stops.append(("tracing", tracing.start(settings.tracing)))
            try:
                log.info("broker: %s", check_broker(settings.kafka))
            except BrokerUnavailable as error:  # the page, a rollback and all jobs are of use without it, too
                log.warning("%s; starting without it", error)
            self.warehouse: Warehouse = open_warehouse(settings.warehouse)
            self._stops.append(("warehouse", self.warehouse.close))
            for notice in overrides.notices(settings.workloads, workloads.known(self.warehouse)):
                log.warning("%s", notice)

            self.publisher = KafkaPublisher(settings.kafka)
            self._stops.append(("publisher", self.publisher.close))
            consumer_metrics = ConsumerMetrics(self.registry)
            self.cluster: Cluster | None = None
            self.source: Source
            self.ingest: Ingest
            if settings.store.kind == "cluster":
                self.cluster = self._joined(consumer_metrics)
                self.source, self.ingest = self.cluster.source, self.cluster.follower
                self._stops.append(("leadership", self.cluster.stop))
            else:
                self.source = open_source(
                    settings.kafka,
                    lambda: stored_offsets(self.warehouse),
                    lambda: stored_identities(self.warehouse),
                    MemberFile(settings.warehouse.path),
                )
                self.ingest = Ingest(self.source, self.warehouse, settings, consumer_metrics, self.publisher)
            self._ingest_thread = threading.Thread(target=self._ingest, name="ingest")
            self._stops.append(("ingestion", self._stop_ingest))

            metrics = Metrics(self.registry)
            context = Context(
                self.warehouse,
                settings,
                self.publisher,
                metrics,
                MonitorMetrics(self.registry),
                RetrainMetrics(self.registry),
                self.stopping,
                utc_now,
                self.cluster.check if self.cluster else alone,
            )
            self.jobs = Jobs(context, self.fail)
            self._stops.append(("jobs", self.jobs.shutdown))

            intake = self.cluster.intake if self.cluster else None
            service = LocalService(self.jobs, self.ingest, self.started_at, intake)
            self.server = Server(application(service, self, settings), settings.http)
            metrics.warnings.set_function(lambda: len(self.warnings()))
            self._stops.append(("http", self.server.stop))
            metrics.build.labels(version("retuned")).set(1)
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
            self.cluster.start()  # which leads once no other daemon does
        else:
            self._lead()
        log.info("serving on %s", self.server.url)

    def stop(self) -> None:
        """Stop everything, last built first; each stop is bounded in time and safe to repeat."""
        self.stopping.set()
        with self._stop_lock:
            while self._stops:
                name, stop = self._stops.pop()
                log.debug("stopping %s", name)
                stop()

    def fail(self, error: BaseException) -> None:
        """The daemon cannot go on: remember why, and stop."""
        self.error = self.error or error
        self.stopping.set()

    def health(self) -> list[str]:
        """What is broken for good; empty when the process is sound."""
        if self.error is not None:
            return [str(self.error)]
        if not self._ingest_thread.is_alive():
            return ["ingestion is not running"]
        silent = self.ingest.seconds_without_progress
        if silent > STANDSTILL_SECONDS:
            return [f"ingestion stands still: its loop hangs since {silent:.0f} s; restart the daemon, nothing is lost"]
        return []

    def readiness(self) -> list[str]:
        """What is not there yet, or not there now; empty when events flow."""
        if not self.ingest.broker_up:
            return [self.ingest.broker_problem or f"kafka {self.settings.kafka.bootstrap_servers}: not connected yet"]
        if self.ingest.waiting_for:
            return [self.ingest.waiting_for]
        if self.cluster and self.cluster.problem:
            return [self.cluster.problem]
        return [f"the topic {topic} is not on the broker: create it" for topic in self.ingest.missing_topics]

    def warnings(self) -> list[str]:
        """What needs attention and stops nothing."""
        away = [self.cluster.problem or self.ingest.broker_problem] if self.cluster else []
        return [*filter(None, away), *self.server.warnings(), *self.warehouse.artifacts.problems()]

    def leader(self) -> "Cluster | None":
        """The cluster, for what its leader is to answer; None: this daemon leads, or is by itself."""
        return self.cluster if self.cluster is not None and not self.cluster.leads else None

    def daemons(self) -> "list[Member]":
        """Those of the cluster that were heard of lately."""
        return self.cluster.members if self.cluster else []

    # Inside

    def _joined(self, metrics: ConsumerMetrics) -> "Cluster":
        """Membership in a cluster: its segments are followed in the place of Kafka, and one daemon leads."""
        with needing("cluster", "store.kind cluster"):
            from retuned.daemon.cluster import Cluster
        self.registry.unregister(metrics.broker_up)  # ingesters read from Kafka, and have it
        return Cluster(self.settings, self.warehouse, self.registry, metrics, self.publisher, self._lead, self.fail)

    def _lead(self) -> None:
        """Do what one daemon alone may do: by itself, or as the leader of a cluster."""
        registry.reconcile(self.warehouse, self.settings)
        self.jobs.lead()

    def _ingest(self) -> None:
        try:
            self.ingest.run(self.stopping)
        except BaseException as error:  # noqa: BLE001  (whatever ends this thread ends the daemon)
            self.fail(error)
        finally:
            self.source.close()  # by the thread that polls: the client is not made for two

    def _stop_ingest(self) -> None:
        if self._ingest_thread.is_alive():
            self._ingest_thread.join(timeout=STOP_SECONDS)
        elif self._ingest_thread.ident is None:  # built, never started
            self.source.close()


def run(settings: Settings, ready: Callable[[App], None] | None = None) -> int:
    """Run the daemon until a signal or an error ends it; the first signal drains, the second forces.

    Args:
        ready: called once everything runs.

    Returns:
        The exit status: 0 after a signal.

    Raises:
        RetunedError: the daemon could not start, or could not go on.
    """
    app = App(settings)

    def on_signal(number: int, _: FrameType | None) -> None:
        if app.stopping.is_set():
            os._exit(128 + number)  # children die with this process, and DuckDB's file is whole at any moment
        log.info("%s: stopping; a run under way is resumed at the next start", signal.Signals(number).name)
        app.stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        app.start()
        if ready:
            ready(app)
        while not app.stopping.wait(1.0):
            pass
    finally:
        overdue = threading.Timer(STOP_SECONDS, _overdue)
        overdue.daemon = True
        overdue.start()
        app.stop()
        overdue.cancel()
    if app.error is not None:
        raise app.error
    log.info("stopped")
    return 0


@contextmanager
def _of_entry(name: str | None) -> Iterator[None]:
    """What is wrong with an entry of `workloads` names it."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"workloads.{name}: {error}" if name else str(error)) from error


def run_once(settings: Settings) -> None:
    """One pass: take in what the broker has, measure, watch new champions, check for drift, decide, retrain if it is
    time, ask experts, archive, remove what is old.

    Raises:
        PartsFailed: a job failed for some workloads; everything else was done.
        RetunedError: the pass could not be made.
    """
    if settings.store.kind == "cluster":
        raise ConfigurationError("run --once: the daemons of a cluster (store.kind) run all the time")
    app = App(settings)
    try:
        registry.reconcile(app.warehouse, settings)
        while app.ingest.step() or not app.ingest.caught_up:
            pass
        app.jobs.context.reconciler.run()  # a rollout takes no step before it is known what the replicas have
        failed = []
        for job in ("quality", "shadow", "watch", "drift", "resume", "labels", "announce", "archive", "retention"):
            try:
                app.jobs.run(job)
            except PartsFailed as error:
                failed.append(str(error))
        app.jobs.context.reconciler.run()
        if failed:
            raise PartsFailed("; ".join(failed))
    finally:
        app.stop()


def _overdue() -> None:
    log.error("not stopped after %g s: leaving by force; nothing that was stored is lost", STOP_SECONDS)
    os._exit(1)
