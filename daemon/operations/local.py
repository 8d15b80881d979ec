"""Performs operations in the process that has the warehouse open."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from prometheus_client import CollectorRegistry

from retuned.consumers.common.logfields import about
from retuned.consumers.errors import RetunedError
from retuned.consumers.ingest import Ingest
from retuned.consumers.ingest_loop import IngestLoop
from retuned.consumers.intake import Intake, WarehouseIntake
from retuned.consumers.kafka.memory import MemoryLog, MemorySource
from retuned.consumers.kafka.publisher import KafkaPublisher
from retuned.consumers.metrics import Metrics as ConsumerMetrics
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.warehouse.audit import Cause, Entry, Kind, Outcome, caused_by, unsuccessful
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.mentions import without_users
from retuned.consumers.warehouse.opening import open_existing, open_warehouse
from retuned.daemon import artifacts
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.jsontext import through_json
from retuned.daemon.metrics import Metrics
from retuned.daemon.operations.operation import Caller, Forbidden, NotFound, Operation, Q, R
from retuned.daemon.overrides import GLOB
from retuned.daemon.process import user_of_machine
from retuned.daemon.settings import Settings
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain.metrics import Metrics as RetrainMetrics
from retuned.retrain.release.registry import reconcile

if TYPE_CHECKING:  # it needs the extra cluster
    from retuned.consumers.cluster.postgres import Postgres

log = logging.getLogger(__name__)

ANYBODY = "an operator"
REFUSED_SECONDS = 60.0


class Process(Protocol):
    """The parts of the status that the running daemon supplies."""

    def warnings(self) -> list[str]:
        """Returns conditions that need attention but stop nothing."""

    def daemons(self) -> Any:
        """Returns the members of the cluster, each a dataclass."""


class Local:
    """The context of operations: the warehouse, the jobs and, in a running daemon, ingestion."""

    def __init__(
        self,
        jobs: Jobs,
        ingest: IngestLoop | None = None,
        started_at: datetime | None = None,
        intake: Intake | None = None,
        process: Process | None = None,
    ) -> None:
        """`ingest`, `started_at` and `process` exist in a running daemon only, `intake` in a cluster only."""
        self.jobs, self.ingest, self.started_at = jobs, ingest, started_at
        self._cluster_intake, self._process = intake, process
        self.warehouse, self.settings = jobs.context.warehouse, jobs.context.settings
        self._refused: dict[tuple[str, str], float] = {}

    def ask(self, operation: Operation[Q, R], request: Q) -> R:
        """Returns the result as a client of a daemon receives it; see `Service`."""
        result: Any = self.perform(operation, request, Caller(is_local=True))
        if operation.streams == "items":
            result = map(through_json, result)
        elif operation.streams is None:
            result = through_json(result)
        return cast("R", result)

    def perform(self, operation: Operation[Q, R], request: Q, caller: Caller) -> R:
        """The result as the function of the operation returns it. Log lines of a command name who asks.

        Raises:
            Forbidden: who asks is bound to other workloads, or may not read this.
        """
        if operation.method == "POST" and (reason := getattr(request, "reason", None)):
            reason = self.redacted(operation.without_content(request, reason))
            request = request.model_copy(update={"reason": reason})
        user = operation.author(request)
        actor = caller.author(user) or (user_of_machine() if caller.is_local else ANYBODY)
        entry = operation.entry(request, caller, actor, self.pseudonym)
        is_recorded = operation.is_recorded(request, caller)
        changes = operation.method == "POST"
        try:
            with (
                about(workload=entry.workload, actor=self.actor(caller, user)),
                caused_by(entry) if is_recorded and changes else nullcontext(Cause(entry)) as cause,
            ):
                caller = replace(caller, on_check=partial(_name, cause, set()))
                operation.admit(request, caller)
                done = operation.run(self, request, caller)
            if is_recorded and not cause.written:  # before the answer, or its first piece, leaves
                self.warehouse.trail.record(cause.entry)
        except Forbidden as error:
            self._record_problem(cause.entry, "refused", operation.without_content(request, str(error)))
            raise
        except Exception as error:
            if is_recorded and changes:
                # What is unexpected may quote content: the log has it.
                is_known = isinstance(error, RetunedError)
                problem = operation.without_content(request, str(error)) if is_known else type(error).__name__
                self._record_problem(cause.entry, "failed", problem)
            raise
        return done

    def _record_problem(self, entry: Entry, outcome: Outcome, problem: str) -> None:
        """Records a request that was not carried out; an error of this one must not hide the error of that one.

        Refusals of one kind are recorded once a minute: a program that tries again must not fill the audit.
        """
        if outcome == "refused":
            kind, now = (entry.actor, entry.action), time.monotonic()
            if now - self._refused.get(kind, -REFUSED_SECONDS) < REFUSED_SECONDS:
                return
            self._refused[kind] = now
        try:
            self.warehouse.trail.record(unsuccessful(entry, outcome, self.redacted(problem)))
        except RetunedError as error:
            log.warning("audit: %s of %s by %s is not recorded: %s", entry.action, outcome, entry.actor, error)

    def refused(self, caller: Caller, action: str, workload: str | None, problem: str) -> None:
        """Records a request that the role of a principal does not allow."""
        kind: Kind = "principal" if caller.name else "local"
        entry = Entry(self.actor(caller), kind, action, workload=workload, request_id=caller.request_id)
        self._record_problem(entry, "refused", problem)

    # For the functions of operations

    def visible(self, caller: Caller) -> list[str] | None:
        """The workloads that have events and that the caller may ask about; None: all."""
        if caller.workloads is None:
            return None
        return [name for name in self.jobs.context.workloads() if caller.may_see(name)]

    def actor(self, caller: Caller, user: str | None = None) -> str:
        """Returns the name to record as the author of a change."""
        return caller.author(user) or ANYBODY

    def redacted(self, text: str) -> str:
        """Returns a person's sentence without personal data, as far as it is found, and with the pseudonyms of users of
        whom there are events."""
        return without_users(self.warehouse, self.jobs.erasures.keys, self.redactor().text(text))

    def pseudonym(self, user: str) -> str:
        """Returns the pseudonym of a user, given by id or pseudonym."""
        return self.jobs.erasures.keys.pseudonym_or_stored(user)

    def redactor(self) -> Redactor:
        """Returns a redactor for the texts of one request."""
        return Redactor(self.settings.privacy)

    def known(self, workload: str, caller: Caller, *more: str) -> str:
        """Returns the workload, if it has events or is among `more`.

        Raises:
            NotFound: the workload is unknown. The error names those that the caller may see.
        """
        known = {*self.jobs.context.workloads(), *more}
        if workload not in known:
            names = ", ".join(sorted(filter(caller.may_see, known)))
            raise NotFound(f"workload {workload}: unknown; known are {names or 'none yet: no event has arrived'}")
        return workload

    def only(self, workload: str | None, caller: Caller) -> str | None:
        """Returns the workload to which a request is limited; None: to none.

        Raises:
            Forbidden: the caller may not ask about it.
            NotFound: the workload has no events, and the configuration does not name it.
        """
        if workload is None:
            return None
        caller.check(workload)
        return self.known(workload, caller, *self.configured())

    def configured(self) -> list[str]:
        """Returns the workloads that the configuration names."""
        return [name for name in self.settings.workloads if not GLOB.intersection(name)]

    def process_state(self) -> dict[str, Any]:
        """Returns the warnings and the cluster's members, for the status."""
        warnings, daemons = (self._process.warnings(), self._process.daemons()) if self._process else ([], [])
        return {"warnings": warnings, "daemons": [asdict(member) | {"said": str(member)} for member in daemons]}

    @property
    def reports(self) -> Path:
        """The folder of the reports."""
        return self.jobs.context.reports

    @cached_property
    def intake(self) -> Intake:
        """The intake of the running daemon, or without one, of an ingestion that has no source.

        Raises:
            RetunedError: on a cluster, only a running daemon can store files.
        """
        if self._cluster_intake is not None:
            return self._cluster_intake
        if self.settings.store.kind == "cluster":
            raise RetunedError(
                f"http.port {self.settings.http.port}: no daemon runs there; on a cluster (store.kind), any running "
                "daemon stores files and replayed dead letters: start this one, or name another (http.host, "
                "http.port)"
            )
        if isinstance(self.ingest, Ingest):
            return WarehouseIntake(self.ingest)
        source = MemorySource(MemoryLog(), (), dict)
        metrics = ConsumerMetrics(CollectorRegistry())
        return WarehouseIntake(Ingest(source, self.warehouse, self.settings, metrics, self.jobs.context.publisher))


def _name(cause: Cause, workloads: set[str], workload: str) -> None:
    """Names a workload in the entry of a request; where there are several, its details list them.

    Args:
        workloads: those of the earlier calls.
    """
    workloads.add(workload)
    several = {"workloads": sorted(workloads)} if len(workloads) > 1 else {}
    details = {**cause.entry.details, **several}
    cause.entry = replace(cause.entry, workload=None if several else workload, details=details)


@contextmanager
def opened(
    settings: Settings, *, create: bool = True, show: Callable[[dict[str, Any]], None] | None = None
) -> Iterator[Local]:
    """Opens the warehouse in this process for one command; no daemon may be running.

    Args:
        create: whether to create the warehouse if there is none.
        show: shows the progress of a retraining in this process.

    Raises:
        WarehouseError: there is no warehouse, it has another version, or a daemon that does not answer on http.port
            has it open.
    """
    registry = CollectorRegistry()
    is_new = create and not settings.warehouse.path.exists()
    opening = open_warehouse if is_new else open_existing
    with (
        closing(opening(settings.warehouse)) as warehouse,
        closing(KafkaPublisher(settings.kafka)) as publisher,
        ExitStack() as stack,
    ):
        if settings.store.kind == "cluster":
            stack.callback(_stand_by(settings, warehouse).close)
            artifacts.keep(warehouse, settings)
        else:
            reconcile(warehouse, settings)
        context = Context(
            warehouse,
            settings,
            publisher,
            Metrics(registry),
            MonitorMetrics(registry),
            RetrainMetrics(registry),
            threading.Event(),
            utc_now,
        )
        jobs = Jobs(context, lambda _: None)
        if show is not None:
            jobs.runs.show = show
        try:
            yield Local(jobs)
        finally:
            jobs.shutdown()


def _stand_by(settings: Settings, warehouse: Warehouse) -> "Postgres":
    """Prevents changes to the warehouse of a stopped daemon of a cluster, which the other daemons would miss.

    Returns the connection, for the audit's entries.
    """
    from retuned.consumers.cluster import audit_entries
    from retuned.consumers.cluster.control import Control
    from retuned.consumers.cluster.postgres import Postgres

    postgres = Postgres(settings.store)
    warehouse.trail.elsewhere = partial(audit_entries.leave, postgres)
    control = Control(postgres, warehouse)
    control.leader = "in a cluster (store.kind), only daemons make changes; start this one, or name one that runs"
    return postgres
