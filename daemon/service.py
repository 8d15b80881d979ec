"""What the HTTP server and the command line may ask of retuned, and the answers of one that has the warehouse open.

`daemon.remote` asks a running daemon instead, over HTTP.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from prometheus_client import CollectorRegistry

from retuned.consumers.common.logfields import about
from retuned.consumers.errors import RetunedError
from retuned.consumers.file_import import Position, Taken
from retuned.consumers.ingest import Ingest
from retuned.consumers.intake import Intake, WarehouseIntake
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.kafka.memory import MemoryLog, MemorySource
from retuned.consumers.kafka.publisher import KafkaPublisher
from retuned.consumers.metrics import Metrics as ConsumerMetrics
from retuned.consumers.warehouse.connection import Warehouse, open_existing, open_warehouse, utc_now
from retuned.consumers.warehouse.dead_letters import dead_letters
from retuned.daemon import artifacts, status
from retuned.daemon.backup.create import back_up
from retuned.daemon.interaction import interaction
from retuned.daemon.jobs import tasks
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.metrics import Metrics
from retuned.daemon.overrides import GLOB
from retuned.daemon.settings import Settings
from retuned.daemon.transfer.exports import Export, content, utc
from retuned.monitors.drift.check import DriftCheck
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain.data.label_requests import open_requests
from retuned.retrain.data.lineage import lineage
from retuned.retrain.metrics import Metrics as RetrainMetrics
from retuned.retrain.release import approvals, approve
from retuned.retrain.release.assignment import Route
from retuned.retrain.release.registry import reconcile
from retuned.retrain.release.routes import in_part, under_way
from retuned.retrain.release.served import served_routes
from retuned.retrain.run import RunResult
from retuned.retrain.versions import model_name

ANYBODY = "an operator"
COMMANDS = (
    "retrain", "rebase", "promote", "rollback", "report", "pause", "resume", "cancel", "check-drift", "accept-drift",
)  # fmt: skip
OF_ALL = ("pause", "resume")
"""Those that may also be about all workloads."""
Decision = Literal["approve", "refuse"]
VERDICTS: dict[Decision, Literal["approved", "refused"]] = {"approve": "approved", "refuse": "refused"}


class Service(Protocol):
    """What may be asked. Whatever is returned can be written as JSON; times may be `datetime` or ISO 8601.

    Every method raises a RetunedError whose text says why it cannot be done and what can.
    """

    def status(self) -> dict[str, Any]:
        """See `retuned.daemon.status`."""

    def ingestion(self) -> dict[str, Any]:
        """See `retuned.daemon.status.ingestion`."""

    def command(self, name: str, workload: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out one of `COMMANDS`.

        Args:
            workload: None: all of them, for those of `OF_ALL`.
            arguments: `version`, for `promote`; `base`, a folder or a provider's model, for `rebase`; `now`, for
                `retrain`: at any hour; `as_of`, a time in ISO 8601, for `check-drift`; the `reason`, for `promote`,
                `rollback`, `rebase`, `pause`, `cancel` and, where it has to be given, `accept-drift`; `asked_by`, the
                name of who asks. Reason and name are kept.

        Returns:
            The `workload` and what was `done`, in words.
        """

    def dead_letters(self, limit: int, reason: str | None) -> Iterable[dict[str, Any]]:
        """The newest dead letters, newest first."""

    def replay(self) -> dict[str, int]:
        """See `retuned.consumers.replay.replay`."""

    def resume_ingestion(self) -> dict[str, str]:
        """See `retuned.consumers.ingest.Ingest.resume`. Returns what was `done`, in words."""

    def labels(self, workload: str | None) -> list[dict[str, Any]]:
        """The answers that experts are asked to judge, oldest first."""

    def approvals(self, workload: str | None) -> list[dict[str, Any]]:
        """See `retuned.retrain.release.approvals.listed`."""

    def decide_approval(self, id: str, decision: Decision, reason: str, user: str | None) -> dict[str, Any]:
        """Approve or refuse what waits for approval.

        Args:
            user: who decides, by the name on the machine of the command.

        Returns:
            The `workload`, the `state` of the request, and what was `done`, in words.
        """

    def lineage(self, id: str) -> dict[str, Any]:
        """See `retuned.retrain.data.lineage`."""

    def export(self, export: Export) -> Iterator[bytes]:
        """See `retuned.daemon.transfer.exports.content`."""

    def backup(self, folder: Path, keep: int, *, with_key: bool) -> dict[str, Any]:
        """See `retuned.daemon.backup.create.back_up`; the folder is absolute."""

    def position(self, topic: str) -> Position:
        """See `retuned.consumers.file_import.position`."""

    def take(self, batch: Batch) -> Taken:
        """See `retuned.consumers.file_import.take`."""


class LocalService:
    """The service of the process that has the warehouse open."""

    def __init__(
        self,
        jobs: Jobs,
        ingest: Ingest | None = None,
        started_at: datetime | None = None,
        intake: Intake | None = None,
    ) -> None:
        """`ingest` and `started_at` are those of a running daemon; without one there are none. `intake` is of one of a
        cluster."""
        self.jobs, self._ingest, self._started_at, self._of_cluster = jobs, ingest, started_at, intake
        self.warehouse, self.settings = jobs.context.warehouse, jobs.context.settings

    def status(self) -> dict[str, Any]:
        return status.status(self.jobs, self._ingest, self._started_at)

    def ingestion(self) -> dict[str, Any]:
        return status.ingestion(self._ingest, self.warehouse, self.settings)

    def command(self, name: str, workload: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
        with about(workload=workload, actor=arguments.get("asked_by") or ANYBODY):
            return self._command(name, workload, arguments)

    def _command(self, name: str, workload: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
        reason, asked_by = _reason(arguments), arguments.get("asked_by") or ANYBODY
        said = str(arguments.get("reason") or "no reason was given")
        runs = self.jobs.runs
        if workload is None and name not in OF_ALL:
            raise RetunedError(f"{name}: name the workload")
        known = self.jobs.context.workloads()
        if name in OF_ALL:  # before its first event, too
            known = sorted({*known, *self._configured()})
        if workload is not None and workload not in known:
            raise RetunedError(
                f"workload {workload}: unknown; known are {', '.join(known) or 'none yet: no event has arrived'}"
            )
        if name == "pause":
            runs.pause(workload, asked_by, said)
            return {"workload": workload, "done": "no retraining starts until `retuned resume`; events go on"}
        if name == "resume":
            runs.resume(workload, asked_by)
            return {"workload": workload, "done": "; ".join(["retraining goes on", *self._waits(workload)])}
        assert workload is not None
        if name == "cancel":
            ids = runs.cancel(workload, asked_by, said)
            return {"workload": workload, "done": f"cancelled: run {', '.join(ids)}"}
        if name == "retrain":
            decision = runs.ask(workload, asked_by=asked_by, at_any_hour=arguments.get("now") is True)
            if not decision.retrain:
                raise RetunedError(f"workload {workload}: not retrained: {'; '.join(decision.reasons)}")
            made = runs.run_waiting()
            ended = [_outcome(result) for result in made if result.workload == workload]
            done = "; ".join(ended or [self._begun(workload), *self._waits(workload)])
            return {"workload": workload, "done": done, "reasons": list(decision.reasons)}
        if name == "rebase":
            base = arguments.get("base")
            if not isinstance(base, str) or not base:
                raise RetunedError("rebase: name the base model, by its folder or as its provider does")
            runs.rebase(workload, base, asked_by, said)
            runs.run_waiting()
            return {
                "workload": workload,
                "done": "; ".join([f"a training on {base} is in line", *self._waits(workload)]),
            }
        if name == "check-drift":
            check = tasks.check_drift_of(self.jobs.context, workload, utc("check-drift: as_of", arguments.get("as_of")))
            return {"workload": workload, "done": _found(check)}
        if name == "accept-drift":
            if not arguments.get("reason"):
                raise RetunedError("accept-drift: give the reason why what is asked now is as usual")
            accepted = tasks.accept_drift(self.jobs.context, workload, asked_by, said)
            return {"workload": workload, "done": accepted}
        if name == "report":
            report = self.jobs.report_so_far(workload)
            return {"workload": workload, "done": f"the report of this month so far will be at /reports/{report}"}
        rollout = self.jobs.context.rollout
        if name == "promote":
            version = arguments.get("version")
            if not isinstance(version, str) or not version:
                raise RetunedError("promote: name the version, for example 3f2a91c0")
            serving = rollout.promote(workload, version, "operator", reason, self.jobs.context.now())
            return {"workload": workload, "done": _serves(workload, serving)}
        running = under_way(self.warehouse, workload)
        previous = rollout.rollback(workload, "operator", reason, self.jobs.context.now())
        done = f"{_serves(workload, previous)} again"
        if running is not None and running.state == "canary":
            done = f"{model_name(workload, running.version)} is taken back; {_serves(workload, previous)}"
        return {"workload": workload, "done": done}

    def _begun(self, workload: str) -> str:
        """Whether a run of a workload that was asked for has begun or waits."""
        runs = self.jobs.runs
        is_under_way = any(one.workload == workload for one in runs.under_way())
        if any(one["workload"] == workload for one in runs.queue()):
            return "a retraining is in line" + (" behind the one under way" if is_under_way else "")
        return "a retraining is under way"

    def _waits(self, workload: str | None) -> list[str]:
        """What keeps runs of a workload, or of any, from starting."""
        found = (
            one["reason"]
            for one in self.jobs.runs.queue()
            if workload in (None, one["workload"]) and one["waits_for"] != "turn"
        )
        return list(dict.fromkeys(found))

    def dead_letters(self, limit: int, reason: str | None) -> Iterable[dict[str, Any]]:
        return dead_letters(self.warehouse, limit, reason)

    def replay(self) -> dict[str, int]:
        return self._intake.replay()

    def resume_ingestion(self) -> dict[str, str]:
        self._intake.resume()
        return {"done": "what waits on the broker will be taken in, however many dead letters it makes"}

    def labels(self, workload: str | None) -> list[dict[str, Any]]:
        return open_requests(self.warehouse, workload)

    def routes(self) -> dict[str, Any]:
        """What gateways follow: the `Route` of each of the `workloads`, see `retuned.retrain.release.served`, and what
        is `withheld`, see `Reconciler`."""
        return {
            "workloads": {name: asdict(route) for name, route in self._routes().items()},
            "withheld": self.jobs.context.reconciler.withheld(),
        }

    def route(self, workload: str, conversation: str) -> dict[str, Any]:
        """What answers a conversation, and what does where that is on no server.

        Raises:
            RetunedError: nothing is known of the workload.
        """
        found = self._routes()
        if workload not in found:
            raise RetunedError(
                f"workload {workload}: no model of it was ever put into service, and the configuration does not name "
                f"it; known are {', '.join(found) or 'none'}"
            )
        route = found[workload]
        arm = route.arm(conversation)
        return {
            "workload": workload,
            "experiment": route.experiment,
            "arm": arm.arm,
            "model": arm.model,
            "name": arm.name,
            "instead": [{"model": one.model, "name": one.name} for one in route.instead(arm)],
        }

    def _routes(self) -> dict[str, Route]:
        return served_routes(self.warehouse, self.settings, self._configured())

    def _configured(self) -> list[str]:
        """The workloads that the configuration names."""
        return [name for name in self.settings.workloads if not GLOB.intersection(name)]

    def approvals(self, workload: str | None) -> list[dict[str, Any]]:
        return approvals.listed(self.warehouse, workload)

    def approval(self, id: str) -> dict[str, Any] | None:
        """A request by its id, as `approvals` lists it; None: there is none."""
        return next(iter(approvals.listed(self.warehouse, id=id)), None)

    def decide_approval(self, id: str, decision: Decision, reason: str, user: str | None) -> dict[str, Any]:
        context, actor = self.jobs.context, user or ANYBODY
        with about(actor=actor):
            verdict = approvals.Verdict(id, VERDICTS[decision], actor, reason)
            settled = approve.decide(context.rollout, verdict, context.now())
        running = under_way(self.warehouse, settled.workload)
        if settled.state == "refused":
            done = str(settled)
        elif running is not None and running.version == settled.version:
            done = f"{settled.name} {in_part(running.share)}"
        else:
            done = _serves(settled.workload, settled.version)
        return {"workload": settled.workload, "state": settled.state, "done": done}

    def lineage(self, id: str) -> dict[str, Any]:
        return lineage(self.warehouse, id)

    def interaction(self, id: str) -> dict[str, Any]:
        """See `retuned.daemon.interaction`."""
        return interaction(self.warehouse, id)

    def export(self, export: Export) -> Iterator[bytes]:
        return content(export, self.warehouse, self.settings)

    def backup(self, folder: Path, keep: int, *, with_key: bool) -> dict[str, Any]:
        if not folder.is_absolute() or keep < 1:
            raise RetunedError(f"backup {folder}: expected an absolute path, and at least one backup to keep")
        now, stop = self.jobs.context.now(), self.jobs.context.stop
        return asdict(back_up(self.warehouse, self.settings, folder, keep, now, stop, with_key=with_key))

    def position(self, topic: str) -> Position:
        return self._intake.position(topic)

    def take(self, batch: Batch) -> Taken:
        return self._intake.take(batch)

    @property
    def reports(self) -> Path:
        """The folder of the reports."""
        return self.jobs.context.reports

    @cached_property
    def _intake(self) -> Intake:
        """Of the running daemon; without one, of ingestion that has no source to read from.

        Raises:
            RetunedError: the warehouse follows segments, which it takes a daemon to do.
        """
        if self._of_cluster is not None:
            return self._of_cluster
        if self.settings.store.kind == "cluster":
            raise RetunedError(
                f"http.port {self.settings.http.port}: no daemon runs there; on a cluster (store.kind) one that runs "
                "stores files and replayed dead letters, whichever it is: start this one, or name another (http.host, "
                "http.port)"
            )
        if self._ingest is not None:
            return WarehouseIntake(self._ingest)
        source = MemorySource(MemoryLog(), (), dict)
        metrics = ConsumerMetrics(CollectorRegistry())
        return WarehouseIntake(Ingest(source, self.warehouse, self.settings, metrics, self.jobs.context.publisher))


def _serves(workload: str, version: str | None) -> str:
    name = model_name(workload, version)
    return f"{name} is the champion" if version else f"no champion: {name}, the base model, serves"


def _found(check: DriftCheck) -> str:
    """What a drift check found, for a person."""
    as_of = f"as of {check.created_at:%Y-%m-%d %H:%M} UTC"
    if check.drifted is None:
        return f"{as_of}: {check.detail}"
    rows = f"{check.current_rows:,} conversations against {check.reference_rows:,} of the reference"
    text = f"{as_of}, {rows}: {check.detail}"
    if check.drifted:
        interval = f"{check.severity_low:.0%} to {check.severity_high:.0%}"
        text += f" About {check.severity:.0%} of the events changed ({interval})."
    return f"{text} Report: /reports/{check.id}" if check.report else text


def _outcome(result: RunResult) -> str:
    """What came of a run, for a person.

    Raises:
        RetunedError: it failed.
    """
    said = " ".join(result.reasons)
    if result.state == "failed":
        raise RetunedError(f"workload {result.workload}: the retraining failed: {said}")
    if result.state != "succeeded":
        return f"the retraining is {result.state}: {said}"
    name = model_name(result.workload, result.version)
    if not result.promoted:
        return f"{name} is trained and not promoted: {said}"
    serves = "is the champion" if result.share == 1.0 else in_part(result.share)
    return f"{name} {serves}: {said}"


def _reason(arguments: dict[str, Any]) -> str:
    """Why a change was asked for, and by whom, where that is known."""
    reason, asked_by = arguments.get("reason"), arguments.get("asked_by")
    asked = f"asked for by {asked_by or ANYBODY}"
    if not reason:
        return asked
    return f"{reason} ({asked})" if asked_by else str(reason)


@contextmanager
def opened(settings: Settings, *, create: bool = True) -> Iterator[LocalService]:
    """The service on the warehouse, opened by this process for one command; no daemon may be running.

    Args:
        create: whether to create a warehouse where there is none.

    Raises:
        WarehouseError: there is none, it is of another version, or a daemon that does not answer on http.port has it
            open.
    """
    registry = CollectorRegistry()
    is_new = create and not settings.warehouse.path.exists()
    opening = open_warehouse if is_new else open_existing
    with closing(opening(settings.warehouse)) as warehouse, closing(KafkaPublisher(settings.kafka)) as publisher:
        if settings.store.kind == "cluster":
            _stand_by(settings, warehouse)
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
        try:
            yield LocalService(jobs)
        finally:
            jobs.shutdown()


def _stand_by(settings: Settings, warehouse: Warehouse) -> None:
    """Let nothing be changed in the warehouse of a cluster's daemon that does not run: the others would not know."""
    from retuned.consumers.cluster.control import Control
    from retuned.consumers.cluster.postgres import Postgres

    Control(
        Postgres(settings.store), warehouse
    ).leader = "in a cluster (store.kind) daemons make changes; start this one, or ask one that runs"
