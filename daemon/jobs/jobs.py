"""The jobs of a daemon, as a table: what runs when, and in which thread."""

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MISSED, JobExecutionEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

from retuned.consumers.common.logfields import about
from retuned.consumers.common.spans import span
from retuned.consumers.errors import RetunedError, StandsBy
from retuned.daemon.jobs import tasks
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.parts import FATAL
from retuned.daemon.jobs.runs import Runs, UnderWay
from retuned.daemon.reports.reports import Period, is_empty, report_id
from retuned.monitors.drift import check as drift
from retuned.retrain.release.reconciler import EVERY_SECONDS
from retuned.retrain.runner_settings import MOST_AT_A_TIME

log = logging.getLogger(__name__)

ARCHIVE_SECONDS = 3_600.0
CRON_GRACE_SECONDS = 3_600


@dataclass(frozen=True)
class Job:
    """A row of the table.

    Attributes:
        every: seconds, or a crontab in UTC; None: once, at the start.
        thread: jobs of one thread run one after the other.
        first: when it runs first, naive UTC; None: when the crontab says so, unless the daemon was away then.
        traced: whether each run is a span.
        everywhere: whether the daemons of a cluster that stand by do it, too.
    """

    id: str
    work: Callable[[], Any]
    every: float | str | None
    thread: str
    first: datetime | None
    traced: bool = True
    everywhere: bool = False


class Jobs:
    """The jobs, with or without their schedule."""

    def __init__(self, context: Context, fail: Callable[[BaseException], None]) -> None:
        """`fail` is called with an error after which the daemon cannot go on."""
        self.context, self._fail = context, fail
        self.runs = Runs(context)
        self._scheduler = BackgroundScheduler(
            job_defaults={"coalesce": True, "misfire_grace_time": None, "max_instances": 1}, timezone=UTC
        )

    def table(self) -> list[Job]:
        """Intervals count from what history says, so that a restart neither skips nor repeats a job."""
        context, runs, schedule = self.context, self.runs, self.context.settings.schedule
        soon = context.now()
        checked = drift.latest_at(context.warehouse)
        check_due = max(soon, checked + timedelta(seconds=schedule.drift_seconds)) if checked else soon
        jobs = [
            Job("quality", partial(tasks.measure_quality, context, runs), schedule.quality_seconds, "default", soon),
            # Quality and shadows may wait for a slow judge: a bad champion or canary must not.
            Job("watch", partial(tasks.watch_service, context), schedule.watch_seconds, "watch", soon),
            Job("shadow", partial(tasks.judge_shadows, context), schedule.watch_seconds, "shadow", soon),
            Job("drift", partial(tasks.check_drift, context, runs), schedule.drift_seconds, "drift", check_due),
            # These two wait for a broker that is away.
            Job("announce", partial(tasks.announce, context), schedule.quality_seconds, "announce", soon),
            Job("labels", partial(tasks.request_labels, context), schedule.labels_seconds, "announce", soon),
            # Looks at replicas in threads of its own.
            Job("targets", context.reconciler.tick, EVERY_SECONDS, "targets", soon, traced=False),
            Job(
                "storage",
                partial(tasks.show_storage, context),
                schedule.quality_seconds,
                "storage",
                soon,
                everywhere=True,
            ),
            Job("archive", partial(tasks.archive, context), ARCHIVE_SECONDS, "archive", soon, everywhere=True),
            Job("retention", partial(tasks.remove_old, context), ARCHIVE_SECONDS, "archive", soon),
            Job("resume", partial(tasks.resume, context, runs), None, "retrain", soon),
        ]
        if schedule.retrain_cron:
            ask = partial(tasks.ask_policy_on_schedule, context, runs)
            jobs.append(Job("retrain-cron", ask, schedule.retrain_cron, "default", None))
        if schedule.report_cron:  # a month that ended while the daemon was away is made up for
            jobs.append(Job("report", partial(tasks.report, context), schedule.report_cron, "retrain", soon))
        return jobs

    def run(self, id: str) -> Any:
        """Run a job of the table now, in this thread.

        Raises:
            StandsBy: another daemon of the cluster does it.
            PartsFailed: parts of it failed; the others were done.
        """
        job = next(job for job in self.table() if job.id == id)
        if not job.everywhere:
            self.context.lead()
        return self._traced(job)()

    def start(self) -> None:
        """Start the schedule, with the jobs that each daemon of a cluster does; `lead` adds the others."""
        for thread in {job.thread for job in self.table()}:
            self._scheduler.add_executor(ThreadPoolExecutor(1), thread)
        self._scheduler.add_executor(ThreadPoolExecutor(MOST_AT_A_TIME), "ray")  # threads that wait for a cluster
        self.runs.start = self._start_run
        self._scheduler.add_listener(self._on_event, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR | EVENT_JOB_MISSED)
        self._add(everywhere=True)
        self._scheduler.start()

    def lead(self) -> None:
        """Do all jobs from now on."""
        self._add(everywhere=False)
        self._show_latest_drift()

    def _add(self, *, everywhere: bool) -> None:
        for job in self.table():
            if job.everywhere != everywhere:
                continue
            options: dict[str, Any] = {"id": job.id, "executor": job.thread}
            if isinstance(job.every, str):
                options["trigger"] = CronTrigger.from_crontab(job.every, timezone=UTC)
            elif job.every is not None:
                options |= {"trigger": "interval", "seconds": job.every}
            if job.first is None:
                options["misfire_grace_time"] = CRON_GRACE_SECONDS
            else:
                options["next_run_time"] = job.first.replace(tzinfo=UTC)
            self._scheduler.add_job(self._scheduled(job), **options)

    def shutdown(self) -> None:
        """Stop the schedule and wait for the jobs; `context.stop` must be set, so that they end soon."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)
        self.context.reconciler.close()

    def report_so_far(self, workload: str) -> str:
        """Write the report of a workload's running month; where the schedule runs, in its turn. Returns its id.

        Raises:
            RetunedError: there is nothing to report.
        """
        period = Period.of("month", self.context.now())
        if is_empty(self.context.warehouse, workload, period):
            raise RetunedError(
                f"workload {workload}: nothing was asked in {period.name}, so there is no report; imported "
                "demonstrations are no traffic"
            )

        def write() -> None:
            tasks.write_reports(self.context, workload, [period])

        if self._scheduler.running:
            self._scheduler.add_job(write, id=f"report:{workload}", executor="retrain", replace_existing=True)
        else:
            write()
        return report_id(workload, period)

    def _scheduled(self, job: Job) -> Callable[[], Any]:
        """In its turn; while this daemon is not sure that it leads, which it tells by itself, its turns pass."""
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
        if not job.traced:
            return job.work

        def work() -> Any:
            with span(f"job {job.id}", job=job.id):
                return job.work()

        return work

    def _start_run(self, run: UnderWay) -> None:
        """Those on this machine take turns with reports, which load models too."""
        executor = "ray" if run.runner.kind == "ray" else "retrain"
        id = f"retrain:{uuid.uuid4().hex}"  # a run that is stopped may be started again before its job is forgotten
        self._scheduler.add_job(self.runs.make, args=[run], id=id, executor=executor)

    def _show_latest_drift(self) -> None:
        """Else the gauges would be absent until the next check, and alerts begin anew."""
        for workload in self.context.measured():
            check = drift.latest(self.context.warehouse, workload)
            if check is not None and not self.context.retired(workload):
                self.context.monitor_metrics.drift(check, counted=False)

    def _on_event(self, event: JobExecutionEvent) -> None:
        job = "retrain" if event.job_id == "resume" else event.job_id.partition(":")[0]
        with about(job=job):
            self._take_outcome(job, event)

    def _take_outcome(self, job: str, event: JobExecutionEvent) -> None:
        context = self.context
        if event.code == EVENT_JOB_MISSED:
            context.metrics.job_runs.labels(job, "missed").inc()
        elif event.exception is None:
            context.metrics.job_runs.labels(job, "succeeded").inc()
            context.metrics.job_last_success.labels(job).set(context.now().replace(tzinfo=UTC).timestamp())
            context.failures.pop(job, None)
        else:
            context.metrics.job_runs.labels(job, "failed").inc()
            context.failures[job] = str(event.exception)
            if isinstance(event.exception, FATAL):
                self._fail(event.exception)
            elif isinstance(event.exception, RetunedError):
                log.error("job %s: %s", job, event.exception)
            else:
                log.error("job %s failed: %s\n%s", job, event.exception, event.traceback)
