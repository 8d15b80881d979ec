"""The jobs that move old events to the archive, and remove other old data."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from retuned.consumers.errors import StandsBy
from retuned.consumers.warehouse.archive import TABLES, Archived, Kept, Span
from retuned.consumers.warehouse.archive import archive as move_to_archive
from retuned.consumers.warehouse.expiry import expire
from retuned.consumers.warehouse.holds import holds
from retuned.daemon import artifacts, workloads
from retuned.daemon.jobs import tasks
from retuned.daemon.jobs.context import Context
from retuned.daemon.policy import evidence
from retuned.monitors.drift import check as drift
from retuned.monitors.drift import windows as drift_windows
from retuned.monitors.money import roll_up
from retuned.monitors.quality import measure as quality
from retuned.monitors.watch import canary, memory
from retuned.monitors.watch import check as watch
from retuned.retrain.data import examples, label_requests, overrides
from retuned.retrain.memory import entries, statements
from retuned.retrain.release import retention, shadow
from retuned.retrain.release.routes import under_way

log = logging.getLogger(__name__)

DAY = timedelta(days=1)


def archive(context: Context) -> Archived:
    """Move old events to the archive, except those of windows, watches and future datasets. Delete shadow answers that
    no rollout needs any more, and archived events that `retention.delete_days` does not keep."""
    now, leads = context.now(), False
    with context.parts("archive") as parts:
        tables: Sequence[str] = ("dead_letters",)
        with parts.step("booking"):  # events in the archive are not booked any more
            with suppress(StandsBy):  # only the leader books
                context.lead()
                leads = True
                tasks.book(context, now)
            tables = TABLES
        with parts.step("shadow"):
            if not holds(context.warehouse):
                context.metrics.removed.labels("shadow_answer").inc(shadow.remove(context.warehouse, now - DAY))
        spans: list[Span] = []
        taught: list[str] = []
        for workload in context.workloads():
            needed = [Span(workload, datetime.min, datetime.max)]  # noqa: DTZ901  (no zone)
            with parts.workload(workload):
                settings = context.settings.for_workload(workload)
                sources = examples.sources(context.warehouse, workload, settings.dataset)
                sources += overrides.kept_interactions(context.warehouse, workload)
                needed = _needed(context, workload, now)
                taught += sources
            spans += needed
        done = move_to_archive(context.warehouse, context.settings, Kept(spans, taught), now, context.stop, tables)
        if done.files:
            log.info("archived %d rows in %d files, %d bytes", done.rows, done.files, done.bytes)
        with parts.step("deletion"):
            for table, rows in expire(context.warehouse, context.settings, now, is_audited=leads):
                context.metrics.removed.labels(table.removesuffix("s")).inc(rows)
    return done


def remove_old(context: Context) -> None:
    """Remove data that `retention` does not keep, except events: roll up, thin and delete rows, and delete folders.

    Nothing is removed of workloads that a legal hold covers.
    """
    warehouse, settings, now = context.warehouse, context.settings, context.now()
    for hold in (held := holds(warehouse)):
        log.info("retention is held by hold %s", hold.id)
    covered = {hold.workload for hold in held}
    with context.parts("retention") as parts:
        groups: dict[tuple[int | None, int | None, int], list[str]] = {}
        for workload in workloads.recorded(warehouse):
            own = settings.for_workload(workload)
            key = own.retention.detail_days, own.retention.history_days, own.drift.keep_reports
            if None not in covered and workload not in covered:
                groups.setdefault(key, []).append(workload)
        for (detail, history, keep_reports), names in groups.items():
            for step, kind, remove in _removals(context, names, detail, history, keep_reports, now):
                with parts.step(step):
                    context.metrics.removed.labels(kind).inc(remove())
        with parts.step("drift reports"):
            drift.sweep(warehouse, context.reports, now - DAY)
        for workload in retention.workloads(warehouse):
            with parts.workload(workload):
                if not holds(warehouse, workload):
                    _remove_files(context, workload, now)
        if settings.store.kind == "cluster":
            with parts.step("artifacts"):
                artifacts.settle(warehouse, settings)


def _removals(
    context: Context, names: list[str], detail: int | None, history: int | None, keep_reports: int, now: datetime
) -> Iterator[tuple[str, str, Callable[[], int]]]:
    """Yields the removals of rows of some workloads with the same retention.

    Args:
        detail: `retention.detail_days` of these workloads.
        history: `retention.history_days` of these workloads.
        keep_reports: `drift.keep_reports` of these workloads.

    Yields:
        The step, the kind of rows, and a function that removes them and returns their number.
    """
    warehouse = context.warehouse
    recent = None if detail is None else now - timedelta(days=detail)
    old = None if history is None else now - timedelta(days=history)
    before = old or datetime.min  # noqa: DTZ901  (no zone)

    def sum_up(since: datetime) -> int:
        with context.booking:
            return roll_up.roll_up(warehouse, names, now, now - since)

    if recent is not None:
        yield "ledger", "ledger", lambda: sum_up(recent)
        window = timedelta(
            seconds=max((context.settings.for_workload(name).windows.current_seconds for name in names), default=0.0)
        )
        yield "quality", "quality", lambda: quality.thin(warehouse, names, recent, now, window)
        yield "watch", "watch_check", lambda: watch.thin(warehouse, names, recent, before)
        yield "rollouts", "rollout_check", lambda: canary.thin(warehouse, names, recent, before)
    yield "shadow", "shadow_answer", lambda: shadow.remove_scores(warehouse, names, now - DAY)
    yield "drift", "drift_check", lambda: drift.thin(warehouse, names, keep_reports, recent, old)
    if old is not None:
        yield "decisions", "decision", lambda: evidence.forget(warehouse, names, old)
        yield "memory", "memory_use", lambda: memory.forget(warehouse, names, old)
        yield "memory", "memory_entry", lambda: entries.forget(warehouse, names, old)
        yield "memory", "memory_statement", lambda: statements.forget(warehouse, names, old)
        yield "requests for labels", "label_request", lambda: label_requests.forget(warehouse, names, old)


def _remove_files(context: Context, workload: str, now: datetime) -> None:
    """Remove old versions, datasets and folders of runs of a workload."""
    kept = context.settings.for_workload(workload).retention
    gone = retention.remove(context.warehouse, context.settings, workload, now, kept.versions, kept.failed_run_days)
    counts = {
        "version": gone.versions,
        "dataset": gone.datasets,
        "reduced_dataset": gone.reduced,
        "run_folder": gone.run_folders,
    }
    for kind, count in counts.items():
        context.metrics.removed.labels(kind).inc(count)
    if gone.versions or gone.datasets:
        log.info("%s: %d versions and %d datasets are removed", workload, gone.versions, gone.datasets)


def _needed(context: Context, workload: str, now: datetime) -> list[Span]:
    """Returns the periods of a workload that its drift windows, its watch and its rollout read."""
    spans, settings = [], context.settings.for_workload(workload)
    if windows := drift_windows.windows(context.warehouse, settings.windows, workload, now):
        spans.append(Span(workload, windows.reference.start, windows.reference.end))
        spans.append(Span(workload, windows.current.start, datetime.max))  # noqa: DTZ901  (no zone)
    watched = watch.in_force(context.warehouse, {workload: settings}).get(workload)
    if watched and watched.verdict == "go_on":
        compared = timedelta(seconds=settings.watch.compare_seconds)
        spans.append(Span(workload, watched.since - compared, watched.until))
    if running := under_way(context.warehouse, workload):
        # Slow answers are judged by the day before the rollout.
        spans.append(Span(workload, running.created_at - DAY, datetime.max))  # noqa: DTZ901  (no zone)
    return spans
