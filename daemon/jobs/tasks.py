"""What the jobs do: each is a function of what it works with, and runs with or without a schedule."""

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from datetime import datetime, timedelta

from retuned.consumers.errors import BrokerUnavailable, RetunedError, StandsBy
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.archive import TABLES, Archived, Kept, Span, archived
from retuned.consumers.warehouse.archive import archive as move_to_archive
from retuned.daemon import artifacts
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.runs import Runs
from retuned.daemon.policy import evidence
from retuned.daemon.reports import reports
from retuned.monitors.blindness import blind, note
from retuned.monitors.drift import check as drift
from retuned.monitors.drift import windows as drift_windows
from retuned.monitors.money import ledger, roi
from retuned.monitors.money.outcomes import outcomes
from retuned.monitors.quality import measure as quality
from retuned.monitors.watch import canary
from retuned.monitors.watch import check as watch
from retuned.retrain import queue, versions
from retuned.retrain.data import examples, label_requests
from retuned.retrain.release import approve, retention, shadow
from retuned.retrain.release.routes import under_way

log = logging.getLogger(__name__)
JUDGED_AT_ONCE = 4
"""Workloads whose shadows are judged at the same time, each in a child."""
COMPLAINTS = timedelta(hours=1)
"""Complaints that are no older are exemplars of the metric of feedback."""


def measure_quality(context: Context, runs: Runs) -> None:
    """Measure quality, book the ledger, end requests for approval whose time is over, and ask the policy, for each
    workload."""
    now = context.now()
    with context.parts("quality") as parts:
        with parts.step("booking"):
            _book(context, now)
        with parts.step("approvals"):
            approve.expire(context.rollout, now)
        with parts.step("labels"):
            label_requests.settle(context.warehouse)
            _show_label_requests(context)
        measured, shown = context.measured(), context.shown()
        context.readings.keep(measured)
        for workload in measured:
            with parts.workload(workload):
                _measure(context, workload, now)
            with parts.workload(workload):
                runs.ask(workload)
            with parts.workload(workload):
                context.monitor_metrics.blindness(workload, blind(context.warehouse, workload))
        runs.wake()
        with parts.step("metrics"):
            under_way = {one.workload for one in runs.under_way()}
            context.metrics.keep(shown)
            context.monitor_metrics.keep(measured, shown)
            context.retrain_metrics.keep(measured, shown | under_way)


def show_storage(context: Context) -> None:
    """Show what the warehouse takes, and what is free beside it."""
    context.metrics.disk_free.set(shutil.disk_usage(context.warehouse.path.parent).free)
    context.metrics.storage(context.warehouse.size(), archived(context.warehouse))


def watch_service(context: Context) -> None:
    """Look at what the gate put into service lately, canaries and champions: take the next step, or take back what does
    worse than the one before."""
    with context.parts("watch") as parts:
        for workload in sorted(context.shown()):
            with parts.workload(workload):
                _watch_canary(context, workload)
            with parts.workload(workload):
                _watch_champion(context, workload)


def judge_shadows(context: Context) -> None:
    """Judge the answers of versions that are asked in shadow. Workloads take turns in a few threads: a judge may be
    slow."""

    def judge(workload: str) -> None:
        with parts.workload(workload):
            settings = context.settings.for_workload(workload)
            shadow.judge_pairs(context.warehouse, settings, workload, context.now(), context.stop)

    with context.parts("shadow") as parts, ThreadPoolExecutor(JUDGED_AT_ONCE, "shadow") as threads:
        turns = [threads.submit(copy_context().run, judge, workload) for workload in sorted(context.shown())]
        for turn in turns:
            turn.result()


def check_drift(context: Context, runs: Runs) -> None:
    """Compare the current window with the reference, for each workload, and ask the policy."""
    measured = context.measured()
    if (others := len(context.workloads()) - len(measured)) > 0:
        log.warning("%d more workloads have events than are measured: does a producer make up names?", others)
    with context.parts("drift") as parts:
        for workload in measured:
            with parts.workload(workload):
                if context.retired(workload):
                    context.monitor_metrics.drift_ended(workload)
                    continue
                try:
                    settings = context.settings.for_workload(workload)
                    check = drift.check(
                        context.warehouse, settings, workload, context.now(), context.reports, context.stop
                    )
                except Exception:
                    context.monitor_metrics.drift_unknown(workload)
                    raise
                needed = 2 * settings.windows.minimum_rows
                what = "conversations that the two windows of drift need (windows.minimum_rows in each)"
                found = needed - (check.missing or 0)
                note(context.warehouse, workload, "drift", found, needed, what, check.created_at)
                context.monitor_metrics.drift(check)
                if check.drifted:
                    log.info("drift in %s: %s", workload, check.detail)
                runs.ask(workload)


def check_drift_of(context: Context, workload: str, as_of: datetime | None) -> drift.DriftCheck:
    """Compare the windows of a workload as they were at a time; None: now.

    Raises:
        RetunedError: the time has not come yet.
        ChildFailed: the comparing failed.
    """
    if as_of is not None and as_of > context.now():
        raise RetunedError(f"check-drift: as_of: {as_of:%Y-%m-%d %H:%M} UTC has not come yet")
    settings, now = context.settings.for_workload(workload), as_of or context.now()
    check = drift.check(context.warehouse, settings, workload, now, context.reports, context.stop)
    if as_of is None:
        context.monitor_metrics.drift(check)
    return check


def accept_drift(context: Context, workload: str, actor: str, reason: str) -> str:
    """Make the current window of a workload the reference of its drift checks; what that is, in words.

    Raises:
        RetunedError: it holds too few conversations to be one.
    """
    settings, now = context.settings.for_workload(workload).windows, context.now()
    found = drift_windows.windows(context.warehouse, settings, workload, now)
    if found is None or found.current.conversations < settings.minimum_rows:
        raise RetunedError(
            f"workload {workload}: the current window holds {found.current.conversations if found else 0} "
            f"conversations, and a reference needs {settings.minimum_rows} (windows.minimum_rows)"
        )
    drift_windows.accept(context.warehouse, workload, found, actor, reason)
    context.monitor_metrics.drift_unknown(workload)
    log.info("%s: drift accepted by %s: %s", workload, actor, reason)
    return (
        f"the reference of drift checks begins at {found.current.start:%Y-%m-%d %H:%M} UTC, with "
        f"{found.current.conversations} conversations; what comes from now on is compared with it"
    )


def announce(context: Context) -> None:
    """Make metrics, links and announcements follow the changes of champions, and announce the requests for labels."""
    with context.parts("announce") as parts:
        for workload in context.rollout.changed():
            with parts.workload(workload):
                context.rollout.follow_up(workload)
        with parts.step("requests for labels"):
            _announce_label_requests(context)


def request_labels(context: Context) -> None:
    """Choose the answers whose label would teach most, for each workload that is trained, and ask experts."""
    with context.parts("labels") as parts:
        with parts.step("answers"):
            label_requests.settle(context.warehouse)
        for workload in context.measured():
            with parts.workload(workload):
                settings = context.settings.for_workload(workload)
                if settings.models.base is None or not settings.models.retrains(workload):
                    continue
                asked = label_requests.request(context.warehouse, settings, workload, context.now())
                if asked:
                    log.info("%s: %d answers are asked about (retuned labels lists them)", workload, asked)
        with parts.step("file"):
            _show_label_requests(context)
        with parts.step("requests for labels"):
            _announce_label_requests(context)


def archive(context: Context) -> Archived:
    """Move old events to the archive: not those of the windows, and not those that a dataset is made from. What was
    answered in shadow is deleted once no rollout needs it."""
    now = context.now()
    with context.parts("archive") as parts:
        tables: Sequence[str] = ("dead_letters",)
        with parts.step("booking"):  # what has left is not booked any more
            with suppress(StandsBy):  # the leader books
                context.lead()
                _book(context, now)
            tables = TABLES
        with parts.step("shadow"):
            removed = shadow.remove(context.warehouse, now - timedelta(days=1))
            context.metrics.removed.labels("shadow_answer").inc(removed)
        spans: list[Span] = []
        taught: list[str] = []
        for workload in context.workloads():
            needed = [Span(workload, datetime.min, datetime.max)]  # noqa: DTZ901  (no zone)
            with parts.workload(workload):
                settings = context.settings.for_workload(workload)
                sources = examples.sources(context.warehouse, workload, settings.dataset)
                needed = _needed(context, workload, now)
                taught += sources
            spans += needed
        kept = Kept(spans, taught)
        done = move_to_archive(context.warehouse, context.settings, kept, now, context.stop, tables)
        if done.files:
            log.info("archived %d rows in %d files, %d bytes", done.rows, done.files, done.bytes)
    return done


def remove_old(context: Context) -> None:
    """Remove what `retention` does not keep, but for events: sums, thins and deletes rows, and deletes folders."""
    warehouse, settings, now = context.warehouse, context.settings, context.now()
    kept = settings.retention
    recent = None if kept.detail_days is None else now - timedelta(days=kept.detail_days)
    old = None if kept.history_days is None else now - timedelta(days=kept.history_days)
    removed = context.metrics.removed
    with context.parts("retention") as parts:
        if recent is not None:
            with parts.step("ledger"), context.booking:
                removed.labels("ledger").inc(ledger.roll_up(warehouse, settings, now, now - recent))
            with parts.step("quality"):
                removed.labels("quality").inc(quality.thin(warehouse, recent, now))
            with parts.step("watch"):
                removed.labels("watch_check").inc(watch.thin(warehouse, recent, old or datetime.min))  # noqa: DTZ901
            with parts.step("rollouts"):
                removed.labels("rollout_check").inc(canary.thin(warehouse, recent, old or datetime.min))  # noqa: DTZ901
        with parts.step("shadow"):
            removed.labels("shadow_answer").inc(shadow.remove_scores(warehouse, now - timedelta(days=1)))
        with parts.step("drift"):
            removed.labels("drift_check").inc(drift.thin(warehouse, settings.drift.keep_reports, recent, old))
        with parts.step("drift reports"):
            drift.sweep(warehouse, context.reports, now - timedelta(days=1))
        if old is not None:
            with parts.step("decisions"):
                removed.labels("decision").inc(evidence.forget(warehouse, old))
            with parts.step("requests for labels"):
                removed.labels("label_request").inc(label_requests.forget(warehouse, old))
        for workload in retention.workloads(warehouse):
            with parts.workload(workload):
                gone = retention.remove(warehouse, settings, workload, now, kept.versions, kept.failed_run_days)
                for kind, count in (
                    ("version", gone.versions), ("dataset", gone.datasets), ("reduced_dataset", gone.reduced),
                    ("run_folder", gone.run_folders),
                ):  # fmt: skip
                    removed.labels(kind).inc(count)
                if gone.versions or gone.datasets:
                    log.info("%s: %d versions and %d datasets are removed", workload, gone.versions, gone.datasets)
        if settings.store.kind == "cluster":
            with parts.step("artifacts"):
                artifacts.settle(warehouse, settings)


def report(context: Context) -> None:
    """Write the reports of the month and of the quarter that ended last, where they are not there yet."""
    with context.parts("report") as parts:
        for workload in context.measured():
            with parts.workload(workload):
                ended = [reports.Period.of(kind, context.now()).before for kind in reports.MONTHS]
                there = reports.reports(context.reports, workload)
                missing = [period for period in ended if reports.report_id(workload, period) not in there]
                write_reports(context, workload, missing)


def write_reports(context: Context, workload: str, periods: Sequence[reports.Period]) -> None:
    """Write the reports of a workload for these periods."""
    settings = context.settings.for_workload(workload)
    written = reports.write(context.warehouse, settings, workload, periods, context.reports, context.stop)
    for page in written:
        log.info("a report of %s is written: %s", workload, page)


def ask_policy_on_schedule(context: Context, runs: Runs) -> None:
    """The configured time to retrain has come: ask the policy, for each workload."""
    with context.parts("retrain-cron") as parts:
        for workload in context.workloads():
            with parts.workload(workload):
                runs.ask(workload, scheduled=True)


def resume(context: Context, runs: Runs) -> None:
    """At the start: remove what a crash left of cancelled runs, then go on with those that are in line."""
    queue.sweep(context.rollout, runs.is_under_way)
    runs.run_waiting()


def _measure(context: Context, workload: str, now: datetime) -> None:
    """Bring what is known of a workload up to date, in the warehouse and in the metrics."""
    warehouse, settings = context.warehouse, context.settings.for_workload(workload)
    try:
        figures = quality.measure(warehouse, settings, workload, now, context.opinions, context.readings)
    except Exception:
        context.monitor_metrics.quality(workload, [])  # nothing is known now
        raise
    context.monitor_metrics.quality(workload, figures)
    totals = judgements.feedback_totals(warehouse, workload)
    complaints = judgements.latest_complaints(warehouse, workload, now - COMPLAINTS)
    context.monitor_metrics.feedback_totals(workload, totals, complaints)
    earned, by_version = roi.of_workload(warehouse, workload)
    tenure = next(iter(roi.tenures(warehouse, settings, workload, most=1)), None)
    left_out, became = roi.left_out(warehouse, workload), outcomes(warehouse, workload)
    context.monitor_metrics.roi(workload, earned, by_version, tenure, left_out, became)
    context.retrain_metrics.aliases(warehouse, workload)
    if context.retired(workload):
        context.retrain_metrics.quarantined.remove_by_labels({"workload": workload})
    else:
        context.retrain_metrics.quarantine(warehouse, workload)


def _watch_canary(context: Context, workload: str) -> None:
    waits = context.reconciler.step_waits_for(workload)
    seen = canary.check(context.warehouse, context.settings.for_workload(workload), workload, context.now(), waits)
    context.monitor_metrics.canary(workload, seen)
    if seen is None or seen.verdict == "hold":
        return
    reason, name = "; ".join(seen.reasons), versions.model_name(workload, seen.version)
    if seen.verdict == "roll_back":
        context.rollout.rollback(workload, "rollout", reason, context.now(), of=seen.version)
        log.warning("%s: the canary %s is taken back: %s", workload, name, reason)
    else:
        share = context.rollout.advance(workload, seen.experiment, seen.share, reason, context.now())
        log.info("%s: %s answers %.4g of the conversations now: %s", workload, name, share, reason)


def _watch_champion(context: Context, workload: str) -> None:
    seen = watch.check(context.warehouse, context.settings.for_workload(workload), workload, context.now())
    context.monitor_metrics.watch(workload, seen)
    if seen is None or seen.verdict == "keep":
        context.rollout.complete(workload, "; ".join(seen.reasons) if seen else "nothing is watched", context.now())
        return
    if seen.verdict == "go_on":
        return
    reason = "; ".join(seen.reasons)
    restored = context.rollout.rollback(workload, "watch", reason, context.now(), of=seen.version)
    log.warning(
        "%s: %s is taken back, %s serves again: %s", workload, seen.version, restored or "the base model", reason
    )


def _needed(context: Context, workload: str, now: datetime) -> list[Span]:
    """Which times of a workload its windows and its watch look at."""
    spans, settings = [], context.settings.for_workload(workload)
    if found := drift_windows.windows(context.warehouse, settings.windows, workload, now):
        spans.append(Span(workload, found.reference.start, found.reference.end))
        spans.append(Span(workload, found.current.start, datetime.max))  # noqa: DTZ901  (no zone)
    seen = watch.in_force(context.warehouse, {workload: settings}).get(workload)
    if seen and seen.verdict == "go_on":
        before = timedelta(seconds=settings.watch.compare_seconds)
        spans.append(Span(workload, seen.since - before, seen.until))
    if running := under_way(context.warehouse, workload):
        before = timedelta(days=1)  # what is slow is known from that day
        spans.append(Span(workload, running.created_at - before, datetime.max))  # noqa: DTZ901  (no zone)
    return spans


def _show_label_requests(context: Context) -> None:
    """Keep the file and the metrics of the requests for labels up to date."""
    shown, counts = context.shown(), label_requests.counts(context.warehouse)
    context.retrain_metrics.labels({workload: counted for workload, counted in counts.items() if workload in shown})
    label_requests.write_files(context.warehouse, context.settings)


def _announce_label_requests(context: Context) -> None:
    topic = context.settings.kafka.label_requests_topic
    if topic is None:
        return
    try:
        label_requests.announce_pending(context.warehouse, context.publisher, topic)
    except BrokerUnavailable as error:
        log.warning("%s; requests for labels wait", error)


def _book(context: Context, now: datetime) -> None:
    with context.booking:
        ledger.book(context.warehouse, context.settings, now)
