"""The context of jobs: warehouse, settings, publisher, metrics and clock."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.kafka.contract import Publisher
from retuned.consumers.kafka.led import LedPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon import workloads
from retuned.daemon.jobs.parts import Parts, parts
from retuned.daemon.metrics import Metrics
from retuned.daemon.reports.reports import folder_of
from retuned.daemon.settings import Settings
from retuned.monitors.hallucination.opinions import Opinions
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.monitors.quality.readings import Readings
from retuned.retrain.metrics import Metrics as RetrainMetrics
from retuned.retrain.release.reconciler import Reconciler
from retuned.retrain.release.rollout import Rollout


@dataclass
class Context:
    """The context of every job.

    Attributes:
        stop: stops runs under way.
        publisher: for the announcements of the leader.
        lead: see `common.lead`.
        known_until: see `IngestLoop.known_until`; None: nothing is ingested.
        failures: the last error of each job that has not succeeded since.
        booking: held while the ledger is booked, because concurrent bookings conflict.
    """

    warehouse: Warehouse
    settings: Settings
    publisher: Publisher
    metrics: Metrics
    monitor_metrics: MonitorMetrics
    retrain_metrics: RetrainMetrics
    stop: threading.Event
    now: Callable[[], datetime]
    lead: Lead = alone
    known_until: Callable[[], datetime | None] | None = None
    failures: dict[str, str] = field(default_factory=dict)
    booking: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.publisher = LedPublisher(self.publisher, self.lead)
        self.opinions = Opinions(self.settings.quality, self.stop)
        self.readings = Readings()

    @cached_property
    def reconciler(self) -> Reconciler:
        """The reconciler of the targets."""
        return Reconciler(
            self.warehouse,
            self.settings,
            self.now,
            lambda replica: self.retrain_metrics.replica(replica),
            lambda workload, seconds: self.retrain_metrics.served(workload, seconds),
            lambda workload, enough: self.retrain_metrics.served_by_enough(workload, enough),
            self.lead,
        )

    @property
    def rollout(self) -> Rollout:
        """Changes champions and canaries."""
        show = partial(self.retrain_metrics.aliases, self.warehouse)
        topic, reconcile = self.settings.kafka.model_events_topic, self.reconciler.tick
        return Rollout(self.warehouse, self.settings, self.publisher, topic, show, reconcile, self.lead)

    def events_until(self) -> datetime:
        """Returns the time until which all events are stored, as far as known; without ingestion now."""
        if self.known_until is None:
            return self.now()
        return self.known_until() or datetime.min  # noqa: DTZ901  (naive UTC)

    @property
    def reports(self) -> Path:
        """The folder of drift reports and of reports of months and quarters."""
        return folder_of(self.warehouse)

    def workloads(self) -> list[str]:
        """Returns the workloads that have events."""
        return workloads.known(self.warehouse)

    def measured(self) -> list[str]:
        """Returns the workloads that are measured."""
        return workloads.measured(self.warehouse, self.now())

    def experts_needed(self, workload: str) -> int:
        """Returns how many experts must agree in a workload before an answer counts."""
        return self.settings.for_workload(workload).labels.opinions

    def retired(self, workload: str) -> bool:
        """Whether a workload has had no answer for a week."""
        return workloads.retired(self.warehouse, workload, self.now())

    def shown(self) -> set[str]:
        """Returns the workloads with metrics of their own: those that are measured or ever changed their champion."""
        return {*self.measured(), *self.rollout.changed()}

    def parts(self, job: str) -> AbstractContextManager[Parts]:
        """Run a job in parts; see `parts.parts`."""
        return parts(job, self.metrics.workload_failures, self.failures.get(job, ""))
