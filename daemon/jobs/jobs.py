"""The scheduled jobs: measure quality, drift and new champions, decide, retrain, ask experts, archive, report.

Each runs without the schedule too.
"""

import json
import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MISSED, JobExecutionEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

from retuned.consumers.errors import BrokerUnavailable, RetunedError
from retuned.consumers.kafka.contract import Publisher
from retuned.consumers.warehouse.archive import TABLES, Archived, Kept, Span, archive, archived
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.jobs.parts import FATAL, Parts, parts
from retuned.daemon.jsontext import as_json
from retuned.daemon.metrics import Metrics
from retuned.daemon.policy import payoff, policy
from retuned.daemon.reports import reports
from retuned.daemon.settings import Settings
from retuned.monitors.drift import check as drift
from retuned.monitors.hallucination.opinions import Opinions
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.monitors.money import ledger, roi
from retuned.monitors.quality import measure as quality
from retuned.monitors.rates import rate_on
from retuned.monitors.watch import check as watch
from retuned.monitors.windows import in_service_since, windows
from retuned.retrain import run
from retuned.retrain.data import examples
from retuned.retrain.data import label_requests as labels
from retuned.retrain.metrics import Metrics as RetrainMetrics
from retuned.retrain.release.rollout import Rollout

log = logging.getLogger(__name__)
SQL = named_queries("retuned.daemon.policy", "evidence.sql")
ARCHIVE_SECONDS = 3_600.0
MOST_WORKLOADS, BUSY = 50, timedelta(days=7)
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  (the warehouse keeps UTC without a zone)


class Jobs:
    """The jobs, their schedule, and the requests to retrain that wait for their turn."""

    def __init__(
        self,
        warehouse: Warehouse,
        settings: Settings,
        publisher: Publisher,
        metrics: Metrics,
        monitor_metrics: MonitorMetrics,
        retrain_metrics: RetrainMetrics,
        stop: threading.Event,
        fail: Callable[[BaseException], None],
        now: Callable[[], datetime],
    ) -> None:
        """`fail` is told of an error after which the daemon cannot go on; `stop` ends a run under way."""
        self.warehouse, self.settings, self.publisher = warehouse, settings, publisher
        self.metrics, self.monitor_metrics, self.retrain_metrics = metrics, monitor_metrics, retrain_metrics
        self.stop, self.fail, self.now = stop, fail, now
        self.progress: dict[str, Any] = {}
        """What the run under way last said; empty when none is."""
        self.failures: dict[str, str] = {}
        """The last error of each job that has not succeeded since."""
        self._waiting: dict[str, tuple[str, ...]] = {}  # workload to reasons
        self._opinions = Opinions(settings.quality, stop)
        self._lock = threading.Lock()
        self._booking = threading.Lock()
        self._scheduler: BackgroundScheduler | None = None

    @property
    def rollout(self) -> Rollout:
        """How champions are changed."""
        return Rollout(self.warehouse, self.settings, self.publisher, self.settings.kafka.model_events_topic)

    # The schedule

    def start(self) -> None:
        """Start the schedule. Intervals count from what history says, so a restart neither skips nor repeats a job."""
        schedule = self.settings.schedule
        scheduler = BackgroundScheduler(
            executors={
                "default": ThreadPoolExecutor(1),
                "watch": ThreadPoolExecutor(1),  # quality may wait for a slow judge, a bad champion must not
                "announce": ThreadPoolExecutor(1),  # waits for a broker that is away
                "drift": ThreadPoolExecutor(1),
                "archive": ThreadPoolExecutor(1),
                "retrain": ThreadPoolExecutor(1),
            },
            job_defaults={"coalesce": True, "misfire_grace_time": None, "max_instances": 1},
            timezone=UTC,
        )
        scheduler.add_listener(self._on_event, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR | EVENT_JOB_MISSED)
        soon = self.now()
        scheduler.add_job(
            self.watch, "interval", seconds=schedule.quality_seconds, id="quality", next_run_time=_aware(soon)
        )
        last = (self.warehouse.row(SQL["last_check"]) or {})["created_at"]
        due = max(soon, last + timedelta(seconds=schedule.drift_seconds)) if last else soon
        scheduler.add_job(
            self.check_drift,
            "interval",
            seconds=schedule.drift_seconds,
            id="drift",
            executor="drift",
            next_run_time=_aware(due),
        )
        scheduler.add_job(
            self.watch_champions,
            "interval",
            seconds=schedule.watch_seconds,
            id="watch",
            executor="watch",
            next_run_time=_aware(soon),
        )
        scheduler.add_job(
            self.archive,
            "interval",
            seconds=ARCHIVE_SECONDS,
            id="archive",
            executor="archive",
            next_run_time=_aware(soon),
        )
        scheduler.add_job(
            self.announce,
            "interval",
            seconds=schedule.quality_seconds,
            id="announce",
            executor="announce",
            next_run_time=_aware(soon),
        )
        scheduler.add_job(
            self.request_labels,
            "interval",
            seconds=schedule.labels_seconds,
            id="labels",
            executor="announce",
            next_run_time=_aware(soon),
        )
        if schedule.retrain_cron:
            trigger = CronTrigger.from_crontab(schedule.retrain_cron, timezone=UTC)
            scheduler.add_job(self.on_schedule, trigger, id="retrain-cron", misfire_grace_time=3_600)
        if schedule.report_cron:  # a month that ended while the daemon was away is made up for
            trigger = CronTrigger.from_crontab(schedule.report_cron, timezone=UTC)
            scheduler.add_job(
                self.report,
                trigger,
                id="report",
                executor="retrain",
                misfire_grace_time=None,
                next_run_time=_aware(soon),
            )
        for workload in self.workloads():
            check = drift.latest(self.warehouse, workload)
            if check is not None:  # else the gauges would be absent until the next check, and alerts begin anew
                self.monitor_metrics.drift(check, counted=False)
        scheduler.add_job(self.resume, id="resume", executor="retrain", next_run_time=_aware(soon))
        self._scheduler = scheduler
        scheduler.start()

    def shutdown(self) -> None:
        """Stop the schedule and wait for the jobs; `stop` must be set, so that they end soon."""
        if self._scheduler and self._scheduler.running:
            self._scheduler.shutdown(wait=True)

    # The jobs

    def workloads(self) -> list[str]:
        """The workloads that have events."""
        return [row["workload"] for row in self.warehouse.rows(SQL["workloads"])]

    def measured(self) -> list[str]:
        """The workloads that are measured: all of them, or those with the most events lately.

        Their names come from producers: one that sends a new one with each event must not fill Prometheus, nor the day.
        """
        known = self.workloads()
        if len(known) <= MOST_WORKLOADS:
            return known
        since = self.now() - BUSY
        found = self.warehouse.rows(SQL["busiest"], {"since": since, "most": MOST_WORKLOADS})
        return sorted(row["workload"] for row in found)

    def watch(self) -> None:
        """Measure quality, book the ledger, and ask the policy, for each workload."""
        now = self.now()
        with self._parts("quality") as parts:
            with parts.step("storage"):
                self.metrics.disk_free.set(shutil.disk_usage(self.warehouse.path.parent).free)
                self.metrics.storage(self.warehouse.size(), archived(self.warehouse))
            with parts.step("booking"):
                self._book(now)
            with parts.step("labels"):
                labels.settle(self.warehouse)
                self._show_labels()
            for workload in self.measured():
                with parts.workload(workload):
                    self._measure(workload, now)
                with parts.workload(workload):
                    self.ask_policy(workload)
            self._kick()

    def announce(self) -> None:
        """Make links and announcements follow the changes of champions, and announce the requests for labels."""
        with self._parts("announce") as parts:
            for workload in self.rollout.changed():
                with parts.workload(workload):
                    self.rollout.follow_up(workload)
            with parts.step("requests for labels"):
                self._announce_labels()

    def watch_champions(self) -> None:
        """Look at the champions that the gate promoted lately, and take back what does worse than the one before."""
        with self._parts("watch") as parts:
            for workload in sorted({*self.measured(), *self.rollout.changed()}):
                with parts.workload(workload):
                    self._watch_champion(workload)

    def request_labels(self) -> None:
        """Choose the answers whose label would teach most, for each workload that is trained, and ask experts."""
        models = self.settings.models
        with self._parts("labels") as parts:
            with parts.step("answers"):
                labels.settle(self.warehouse)
            for workload in self.measured() if models.base is not None else []:
                if models.workloads is not None and workload not in models.workloads:
                    continue
                with parts.workload(workload):
                    asked = labels.request(self.warehouse, self.settings, workload, self.now())
                    if asked:
                        log.info("%s: %d answers are asked about (retuned labels lists them)", workload, asked)
            with parts.step("file"):
                self._show_labels()
            with parts.step("requests for labels"):
                self._announce_labels()

    def check_drift(self) -> None:
        """Compare the current window with the reference, for each workload, and ask the policy."""
        measured = self.measured()
        if (others := len(self.workloads()) - len(measured)) > 0:
            log.warning("%d more workloads have events than are measured: does a producer make up names?", others)
        with self._parts("drift") as parts:
            for workload in measured:
                with parts.workload(workload):
                    try:
                        check = drift.check(
                            self.warehouse, self.settings, workload, self.now(), self.reports, self.stop
                        )
                    except Exception:
                        self.monitor_metrics.drift_failed(workload)
                        raise
                    self.monitor_metrics.drift(check)
                    if check.drifted:
                        log.info("drift in %s: %s", workload, check.detail)
                    self.ask_policy(workload)

    def archive(self) -> Archived:
        """Move old events to the archive: not those of the windows, and not those that a dataset is made from."""
        now = self.now()
        with self._parts("archive") as parts:
            tables: Sequence[str] = ("dead_letters",)
            with parts.step("booking"):  # what has left is not booked any more
                self._book(now)
                tables = TABLES
            with parts.step("thinning"):
                quality.thin(self.warehouse, now)
            spans: list[Span] = []
            taught: list[str] = []
            for workload in self.workloads():
                needed = [Span(workload, datetime.min, datetime.max)]  # noqa: DTZ901  (no zone)
                with parts.workload(workload):
                    sources = examples.sources(self.warehouse, workload, self.settings.dataset)
                    needed = self._needed(workload, now)
                    taught += sources
                spans += needed
            done = archive(self.warehouse, self.settings, Kept(spans, taught), now, self.stop, tables)
            if done.files:
                log.info("archived %d rows in %d files, %d bytes", done.rows, done.files, done.bytes)
        return done

    def report(self) -> None:
        """Write the reports of the month and of the quarter that ended last, where they are not there yet."""
        with self._parts("report") as parts:
            for workload in self.measured():
                with parts.workload(workload):
                    ended = [reports.Period.of(kind, self.now()).before for kind in reports.MONTHS]
                    there = reports.reports(self.reports, workload)
                    self._report(workload, [one for one in ended if reports.report_id(workload, one) not in there])

    def report_so_far(self, workload: str) -> str:
        """Write the report of a workload's running month; where the schedule runs, in its turn. Returns its id."""
        period = reports.Period.of("month", self.now())
        if self._scheduler and self._scheduler.running:
            self._scheduler.add_job(
                self._report,
                args=[workload, [period]],
                id=f"report:{workload}",
                executor="retrain",
                replace_existing=True,
            )
        else:
            self._report(workload, [period])
        return reports.report_id(workload, period)

    def _report(self, workload: str, periods: Sequence[reports.Period]) -> None:
        for page in reports.write(self.warehouse, self.settings, workload, periods, self.reports, self.stop):
            log.info("a report of %s is written: %s", workload, page)

    def on_schedule(self) -> None:
        """The configured time to retrain has come."""
        with self._parts("retrain-cron") as parts:
            for workload in self.workloads():
                with parts.workload(workload):
                    self.ask_policy(workload, scheduled=True)

    def resume(self) -> None:
        """Take up the runs that a stop or a crash interrupted, then whatever waits."""
        self.progress = {"stage": "resuming"}
        while self._run(lambda: run.resume(self.rollout, self.now, self.stop, self._on_progress)):
            if self.stop.is_set():
                return
        self.retrain_waiting()

    def retrain_waiting(self) -> None:
        """Retrain whatever was asked for, one workload after the other."""
        while not self.stop.is_set():
            with self._lock:
                if not self._waiting:
                    return
                workload, reasons = next(iter(self._waiting.items()))
                del self._waiting[workload]
                self.progress = {"stage": "starting", "workload": workload}
            self._run(
                lambda workload=workload, reasons=reasons: run.retrain(  # type: ignore[misc]
                    self.rollout,
                    workload,
                    reasons,
                    self.now,
                    self.stop,
                    self._on_progress,
                )
            )

    # The policy

    def ask_policy(self, workload: str, asked_by: str | None = None, scheduled: bool = False) -> policy.Decision:
        """Decide whether to retrain; a yes is put in line, and a decision that says something new is stored."""
        evidence = self.evidence(workload, asked_by, scheduled)
        decision = policy.decide(evidence, self.settings.policy, self.now())
        if self.settings.models.base is None and decision.retrain:
            decision = replace(
                decision, retrain=False, reasons=(*decision.reasons, "but there is no base model (models.base)")
            )
        trained = self.settings.models.workloads
        if trained is not None and workload not in trained and decision.retrain:
            decision = replace(
                decision,
                retrain=False,
                reasons=(*decision.reasons, "but this workload is not one to retrain (models.workloads)"),
            )
        self._store(workload, decision, evidence)
        if decision.retrain:
            with self._lock:
                self._waiting.setdefault(workload, decision.reasons)
            self._kick()
        return decision

    def evidence(self, workload: str, asked_by: str | None = None, scheduled: bool = False) -> policy.Evidence:
        """What is known about a workload now."""
        now = self.now()
        champion = self.warehouse.row(SQL["champion"], {"workload": workload}) or {}
        last_run = self.warehouse.row(SQL["last_run"], {"workload": workload}) or {}
        windows = self.settings.windows
        ratings = self.warehouse.row(
            SQL["ratings"],
            {
                "workload": workload,
                "since": in_service_since(self.warehouse, windows, workload, now) or now,
                "now": now,
                "current_seconds": windows.current_seconds,
                "current_events": windows.current_events,
                "reference_seconds": windows.reference_seconds,
            },
        )
        corrections = self.warehouse.row(
            SQL["corrections"],
            {
                "workload": workload,
                "since_dataset": champion.get("learned_until") or EPOCH,
                "since_run": last_run.get("learned_until") or EPOCH,
                "promoted_at": champion.get("promoted_at") or EPOCH,
            },
        )
        assert ratings is not None
        assert corrections is not None
        drifted = self.warehouse.rows(
            SQL["drift"],
            {
                "workload": workload,
                "since": last_run.get("finished_at") or EPOCH,
                "checks": self.settings.policy.drift_checks,
            },
        )
        return policy.Evidence(
            drifted=tuple(row["drifted"] for row in drifted),
            ratings_before=payoff.Ratings(ratings["before_helpful"], ratings["before_total"]),
            ratings_now=payoff.Ratings(ratings["now_helpful"], ratings["now_total"]),
            taken_back=bool(last_run.get("taken_back")),
            new_corrections=corrections["new"],
            untried_corrections=corrections["untried"],
            corrections_to_learn=corrections["to_learn"],
            last_run_finished_at=last_run.get("finished_at"),
            # One that was interrupted goes on before another begins.
            running=workload == self.progress.get("workload")
            or workload in self._waiting
            or bool(last_run and last_run["finished_at"] is None),
            scheduled=scheduled,
            asked_by=asked_by,
            money=self._money(workload, now),
        )

    @property
    def reports(self) -> Path:
        """The folder of the reports: of drift checks, and of months and quarters."""
        return self.warehouse.path.parent / "reports"

    # Inside

    def _money(self, workload: str, now: datetime) -> payoff.Money | None:
        """What answers earned over the latest payback time, and what runs took; None before the first run."""
        runs = self.warehouse.rows(SQL["past_runs"], {"workload": workload})
        if not runs:
            return None
        since = now - timedelta(days=self.settings.policy.payback_days)
        earned = self.warehouse.row(SQL["earned"], {"workload": workload, "since": since})
        assert earned is not None
        # Of less than a day nothing is projected: a lively hour is no day of such hours.
        days = max((now - (earned["first_at"] or now)) / timedelta(days=1), 1.0)
        return payoff.Money(
            currency=self.settings.roi.currency,
            gains=earned["gains"],
            days=days,
            answers=earned["answers"],
            ratings=payoff.Ratings(earned["helpful"], earned["ratings"]),
            hourly_rate=rate_on(self.settings.roi.training_hourly_rate, now.date()) or 0.0,
            runs=tuple(payoff.PastRun(**run) for run in runs),
        )

    def _run(self, work: Callable[[], run.RunResult | None]) -> run.RunResult | None:
        try:
            result = work()
        finally:
            self.progress = {}
        if result is not None:
            self.retrain_metrics.finished(result)
            log.info("run %s of %s: %s: %s", result.run_id, result.workload, result.state, " ".join(result.reasons))
        return result

    def _parts(self, job: str) -> AbstractContextManager[Parts]:
        return parts(job, self.metrics.workload_failures, self.failures.get(job, ""))

    def _measure(self, workload: str, now: datetime) -> None:
        """Bring what is known of a workload up to date, in the warehouse and in the metrics."""
        figures = quality.measure(self.warehouse, self.settings, workload, now, self._opinions)
        self.monitor_metrics.quality(workload, figures)
        latest = next(iter(roi.tenures(self.warehouse, self.settings, workload)), None)
        self.monitor_metrics.roi(
            workload,
            roi.summary(self.warehouse, workload),
            roi.versions(self.warehouse, workload),
            latest,
            roi.left_out(self.warehouse, workload),
        )
        self.retrain_metrics.aliases(self.warehouse, workload)
        self.retrain_metrics.quarantine(self.warehouse, workload)

    def _watch_champion(self, workload: str) -> None:
        seen = watch.check(self.warehouse, self.settings, workload, self.now())
        self.monitor_metrics.watch(workload, seen)
        if seen is None or seen.verdict != "roll_back":
            return
        restored = self.rollout.rollback(
            workload,
            actor="watch",
            reason="; ".join(seen.reasons),
            now=self.now(),
            of=seen.version,
        )
        self.retrain_metrics.aliases(self.warehouse, workload)
        log.warning(
            "%s: %s is taken back, %s serves again: %s",
            workload,
            seen.version,
            restored or "the base model",
            "; ".join(seen.reasons),
        )

    def _needed(self, workload: str, now: datetime) -> list[Span]:
        """Which times of a workload its windows and its watch look at."""
        spans = []
        if found := windows(self.warehouse, self.settings.windows, workload, now):
            spans.append(Span(workload, found.reference.start, found.reference.end))
            spans.append(Span(workload, found.current.start, datetime.max))  # noqa: DTZ901  (no zone)
        if (seen := watch.latest(self.warehouse, workload)) and seen.verdict == "go_on":
            before = timedelta(seconds=self.settings.watch.compare_seconds)
            spans.append(Span(workload, seen.since - before, seen.until))
        return spans

    def _show_labels(self) -> None:
        """Keep the file and the metrics of the requests for labels up to date."""
        self.retrain_metrics.labels(labels.counts(self.warehouse))
        if self.settings.labels.file is not None:
            labels.write_file(self.warehouse, self.settings.labels.file)

    def _announce_labels(self) -> None:
        if self.settings.kafka.label_requests_topic is None:
            return
        try:
            labels.announce_pending(self.warehouse, self.publisher, self.settings.kafka.label_requests_topic)
        except BrokerUnavailable as error:
            log.warning("%s; requests for labels wait", error)

    def _book(self, now: datetime) -> None:
        with self._booking:  # of two bookings at once the second fails
            ledger.book(self.warehouse, self.settings, now)

    def _on_progress(self, line: dict[str, Any]) -> None:
        self.progress = {**self.progress, **line}
        self.retrain_metrics.progress(line["workload"], line)

    def _kick(self) -> None:
        """Wake the retrain job when something waits and it is not at work."""
        with self._lock:
            idle = bool(self._waiting) and not self.progress
        if idle and self._scheduler and self._scheduler.running and not self.stop.is_set():
            self._scheduler.add_job(self.retrain_waiting, id="retrain", executor="retrain", replace_existing=True)

    def _store(self, workload: str, decision: policy.Decision, evidence: policy.Evidence) -> None:
        self.metrics.decisions.labels(workload, "yes" if decision.retrain else "no").inc()
        last = self.warehouse.row(SQL["last_decision"], {"workload": workload})
        news = (
            last is None
            or last["outcome"] != decision.retrain
            or _gist(json.loads(last["reasons"])) != _gist(decision.reasons)
        )
        if not (decision.retrain or news):
            return
        self.warehouse.insert(
            "decisions",
            id=uuid.uuid4().hex,
            created_at=self.now(),
            workload=workload,
            kind="retrain",
            outcome=decision.retrain,
            reasons=json.dumps(decision.reasons),
            figures=as_json(
                {
                    "drifted": list(evidence.drifted),
                    "helpful_rate_before": evidence.ratings_before.rate,
                    "ratings_before": evidence.ratings_before.total,
                    "helpful_rate_now": evidence.ratings_now.rate,
                    "ratings_now": evidence.ratings_now.total,
                    "new_corrections": evidence.new_corrections,
                    "untried_corrections": evidence.untried_corrections,
                    "corrections_to_learn": evidence.corrections_to_learn,
                    "payoff": asdict(decision.payoff) if decision.payoff else None,
                }
            ),
            run_id=None,
        )
        if decision.retrain:
            log.info("retraining %s: %s", workload, "; ".join(decision.reasons))

    def _on_event(self, event: JobExecutionEvent) -> None:
        job = "retrain" if event.job_id == "resume" else event.job_id.partition(":")[0]
        if event.code == EVENT_JOB_MISSED:
            self.metrics.job_runs.labels(job, "missed").inc()
        elif event.exception is None:
            self.metrics.job_runs.labels(job, "succeeded").inc()
            self.metrics.job_last_success.labels(job).set(self.now().replace(tzinfo=UTC).timestamp())
            self.failures.pop(job, None)
        else:
            self.metrics.job_runs.labels(job, "failed").inc()
            self.failures[job] = str(event.exception)
            if isinstance(event.exception, FATAL):
                self.fail(event.exception)
            elif isinstance(event.exception, RetunedError):
                log.error("job %s: %s", job, event.exception)
            else:
                log.error("job %s failed: %s\n%s", job, event.exception, event.traceback)


def _aware(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC)


def _gist(reasons: list[str] | tuple[str, ...]) -> list[str]:
    """Reasons without their figures: a count that moved is not a new reason."""
    return ["".join(c for c in reason if not c.isdigit()) for reason in reasons]
