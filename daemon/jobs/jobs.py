"""The schedule: a table of jobs, each with its interval and its thread."""

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MISSED, JobExecutionEvent
from apscheduler.executors.pool import ThreadPoolExecutor

from retuned.consumers.common.logfields import about
from retuned.consumers.common.spans import span
from retuned.consumers.errors import Busy, Cancelled, RetunedError, StandsBy
from retuned.consumers.warehouse.selection import Selection
from retuned.daemon.erasure.applied import AppliedErasures
from retuned.daemon.erasure.erasure import Erasures
from retuned.daemon.jobs import cleanup, memory, requests, tasks
from retuned.daemon.jobs.audit import Checkpoints
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.parts import FATAL
from retuned.daemon.jobs.runs import Runs
from retuned.daemon.jobs.scheduler import Every, Scheduler
from retuned.daemon.jobs.under_way import UnderWay
from retuned.daemon.reports.reports import Period, is_empty, report_id
from retuned.daemon.settings import crontab
from retuned.monitors.drift import check as drift
from retuned.retrain.release.reconciler import EVERY_SECONDS
from retuned.retrain.runner_settings import MOST_AT_A_TIME

log = logging.getLogger(__name__)

ARCHIVE_SECONDS = 3_600.0
ERASURES_SECONDS = 10.0


@dataclass(frozen=True)
class Job:
    """A row of the table.

    Attributes:
        every: seconds, or a crontab in UTC; None: once, at the start.
        thread: jobs of one thread run one after the other.
        first: time of the first run, naive UTC.
        traced: whether each run is a span.
        everywhere: whether standby daemons of a cluster run it, too.
    """

    id: str
    work: Callable[[], Any]
    every: float | str | None
    thread: str
    first: datetime
    traced: bool = True
    everywhere: bool = False


class Jobs:
    """The jobs, with or without their schedule."""

    def __init__(self, context: Context, fail: Callable[[BaseException], None]) -> None:
        """`fail` is called with an error that the daemon cannot survive."""
        self.context, self._fail = context, fail
        self.runs = Runs(context)
        end_runs = partial(requests.end_runs, context, self.runs)
        self.erasures = Erasures(context.warehouse, context.settings, context.stop, context.now, end_runs)
        self._applied = AppliedErasures(context.warehouse, context.settings, context.stop)
        self._under_way: dict[str, object] = {}
        self.erasures.readers = lambda: {**self._under_way}
        self._checkpoints = Checkpoints(context)
        defaults = {"coalesce": True, "misfire_grace_time": None, "max_instances": 1}
        self._scheduler = Scheduler(job_defaults=defaults, timezone=UTC)

    def table(self) -> list[Job]:
        """Returns the jobs. Drift checks continue the interval from before a restart."""
        context, runs, schedule = self.context, self.runs, self.context.settings.schedule
        soon = context.now()
        checked = drift.latest_at(context.warehouse)
        interval = timedelta(seconds=schedule.drift_seconds)
        check_due = max(soon, min(checked, soon) + interval) if checked else soon
        jobs = [
            Job("quality", partial(tasks.measure_quality, context, runs), schedule.quality_seconds, "default", soon),
            # In threads of their own, because they may wait for a slow judge.
            Job("opinions", partial(tasks.ask_opinions, context), schedule.quality_seconds, "opinions", soon),
            Job("shadow", partial(tasks.judge_shadows, context), schedule.watch_seconds, "shadow", soon),
            Job("watch", partial(tasks.watch_service, context), schedule.watch_seconds, "watch", soon),
            Job("erased", partial(tasks.settle_erased, context, runs), schedule.watch_seconds, "watch", soon),
            Job("drift", partial(tasks.check_drift, context, runs), schedule.drift_seconds, "drift", check_due),
            # These two may wait for an unreachable broker.
            Job("announce", partial(tasks.announce, context), schedule.quality_seconds, "announce", soon),
            Job("labels", partial(tasks.request_labels, context), schedule.labels_seconds, "announce", soon),
            # Checks replicas in threads of its own.
            Job("targets", context.reconciler.tick, EVERY_SECONDS, "targets", soon, traced=False),
            Job(
                "storage",
                partial(tasks.show_storage, context, self.erasures),
                schedule.quality_seconds,
                "storage",
                soon,
                everywhere=True,
            ),
            Job("archive", partial(cleanup.archive, context), ARCHIVE_SECONDS, "archive", soon, everywhere=True),
            Job("retention", partial(cleanup.remove_old, context), ARCHIVE_SECONDS, "archive", soon),
            Job(
                "apply-erasures", self._apply_erasures, ERASURES_SECONDS, "archive", soon, traced=False, everywhere=True
            ),
            # In the thread of the archive, which moves rows between the warehouse and files.
            Job("erasures", self._run_erasures, ERASURES_SECONDS, "archive", soon, traced=False),
            Job("resume", partial(tasks.resume, context, runs), None, "retrain", soon),
        ]
        if any(one.memory.mode != "off" for one in context.settings.variants({"memory"}).values()):
            follow = memory.Follower(context)
            jobs.append(Job("memory", follow, memory.EVERY_SECONDS, "memory", soon, traced=False))
        if any(one.train.gpu_servers_sleep for one in context.settings.variants({"train"}).values()):
            wake = partial(tasks.wake_servers, context)
            jobs.append(Job("gpu-servers", wake, schedule.quality_seconds, "retrain", soon, traced=False))
        audit = context.settings.audit
        if audit.checkpoint_file or audit.topic:
            jobs.append(Job("audit", self._checkpoints, audit.checkpoint_seconds, "announce", soon, traced=False))
        if schedule.report_cron:  # also at the start: a month may have ended while the daemon was down
            jobs.append(Job("report", partial(tasks.report, context), schedule.report_cron, "retrain", soon))
        return jobs

    def run(self, id: str) -> Any:
        """Run a job of the table now, in this thread.

        Raises:
            StandsBy: another daemon of the cluster runs it.
            PartsFailed: parts of it failed; the others succeeded.
        """
        job = next(job for job in self.table() if job.id == id)
        if not job.everywhere:
            self.context.lead()
        return self._traced(job)()

    def start(self) -> None:
        """Start the schedule with the jobs that every daemon of a cluster runs; `lead` adds the others."""
        for thread in {job.thread for job in self.table()}:
            self._scheduler.add_executor(ThreadPoolExecutor(1), thread)
        self._scheduler.add_executor(ThreadPoolExecutor(MOST_AT_A_TIME), "ray")  # its threads wait for a Ray cluster
        self.runs.start = self._start_run
        self._scheduler.add_listener(self._on_event, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR | EVENT_JOB_MISSED)
        self._add(everywhere=True)
        self._scheduler.start()

    def lead(self) -> None:
        """Run all jobs from now on, once the rows are deleted that were erased while this daemon was down."""
        while not self.context.stop.is_set():
            try:
                self._applied.delete()
                break
            except Busy:  # a query runs for long; it may have read the rows, but writes nothing
                self.context.stop.wait(1)
        self._add(everywhere=False)
        self._show_latest_drift()

    def _add(self, *, everywhere: bool) -> None:
        for job in self.table():
            if job.everywhere != everywhere:
                continue
            first = job.first.replace(tzinfo=UTC)
            options: dict[str, Any] = {"id": job.id, "executor": job.thread, "next_run_time": first}
            if job.every is not None:
                options["trigger"] = crontab(job.every) if isinstance(job.every, str) else Every(job.every)
            self._scheduler.add_job(self._scheduled(job), **options)

    def shutdown(self) -> None:
        """Stop the schedule and wait for the jobs; `context.stop` must be set, so that they end soon."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)
        self.context.reconciler.close()

    def report_so_far(self, workload: str) -> str:
        """Write the report of a workload's current month; with a schedule, in its thread. Returns the report's id.

        Raises:
            RetunedError: there is nothing to report.
        """
        period = Period.of("month", self.context.now())
        if is_empty(self.context.warehouse, workload, period):
            raise RetunedError(
                f"workload {workload}: there was no traffic in {period.name}, so there is no report; imported "
                "demonstrations do not count"
            )

        def write() -> None:
            with self._noted(f"report:{workload}"):
                tasks.write_reports(self.context, workload, [period])

        if self._scheduler.running:
            self._scheduler.add_job(write, id=f"report:{workload}", executor="retrain", replace_existing=True)
        else:
            write()
        return report_id(workload, period)

    def erase(self, selection: Selection, by: str, reason: str | None) -> str:
        """Request an erasure, and begin with it; without a schedule, carry it out. Returns its id."""
        id = self.erasures.request(selection, by, reason)
        if self._scheduler.running:
            self._scheduler.add_job(self._run_erasures, id="erasures:now", executor="archive", replace_existing=True)
        else:
            self.erasures.run(id)
        return id

    def _run_erasures(self) -> None:
        with _waiting():
            self.erasures.run()

    def _apply_erasures(self) -> None:
        with _waiting():
            self._applied.apply()

    def _scheduled(self, job: Job) -> Callable[[], Any]:
        """Returns the work of a job for the schedule, which skips a leader's job while this daemon does not lead."""
        work = self._traced(job)

        def in_turn() -> Any:
            if not job.everywhere:
                try:
                    self.context.lead()
                except StandsBy:
                    return None
            return work()

        return in_turn

    def _traced(self, job: Job) -> Callable[[], Any]:
        def work() -> Any:
            with self._noted(job.id, job.thread), span(f"job {job.id}", job=job.id) if job.traced else nullcontext():
                return job.work()

        return work

    @contextmanager
    def _noted(self, id: str, thread: str = "retrain") -> Iterator[None]:
        """Notes a run of a job that may read events. Erasures share a thread with the archive, and they end the runs
        that are resumed."""
        if thread != "archive" and id != "resume":
            self._under_way[id] = object()
        try:
            yield
        finally:
            self._under_way.pop(id, None)

    def _start_run(self, run: UnderWay) -> None:
        """Schedule a run. Runs on this machine share a thread with reports, which load models too."""
        executor = "ray" if run.runner.kind == "ray" else "retrain"
        id = f"retrain:{uuid.uuid4().hex}"  # a run that was stopped may start again before its job is removed
        self._scheduler.add_job(self.runs.make, args=[run], id=id, executor=executor)

    def _show_latest_drift(self) -> None:
        """Set the drift gauges at the start, so that alerts do not start over."""
        for workload in self.context.measured():
            check = drift.latest(self.context.warehouse, workload)
            if check is not None and not self.context.retired(workload):
                self.context.monitor_metrics.drift(check, counted=False)

    def _on_event(self, event: JobExecutionEvent) -> None:
        job = "retrain" if event.job_id == "resume" else event.job_id.partition(":")[0]
        with about(job=job):
            self._note_outcome(job, event)

    def _note_outcome(self, job: str, event: JobExecutionEvent) -> None:
        context = self.context
        if event.code == EVENT_JOB_MISSED:
            context.metrics.job_runs.labels(job, "missed").inc()
        elif event.exception is None:
            context.metrics.job_runs.labels(job, "succeeded").inc()
            context.metrics.job_last_success.labels(job).set(context.now().replace(tzinfo=UTC).timestamp())
            context.metrics.job_failures.labels(job).set(0)
            context.failures.pop(job, None)
        else:
            context.metrics.job_runs.labels(job, "failed").inc()
            context.metrics.job_failures.labels(job).inc()
            context.failures[job] = str(event.exception)
            if isinstance(event.exception, FATAL):
                self._fail(event.exception)
            elif isinstance(event.exception, RetunedError):
                log.error("job %s: %s", job, event.exception)
            else:
                log.error("job %s failed: %s\n%s", job, event.exception, event.traceback)


@contextmanager
def _waiting() -> Iterator[None]:
    """An erasure that has to wait is no failure of its job: the next run continues."""
    with suppress(Busy, Cancelled):
        yield
