"""The work of the jobs, except archive and retention: functions that run with or without a schedule."""

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import datetime, timedelta

from retuned.consumers.common.times import shown
from retuned.consumers.errors import BrokerUnavailable, RetunedError
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.archive import archived
from retuned.daemon.erasure.erasure import Erasures
from retuned.daemon.erasure.files import deleted_reports
from retuned.daemon.jobs import memory
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.runs import Runs
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
from retuned.retrain.data import label_requests
from retuned.retrain.decision import again
from retuned.retrain.decision.pairs import Decision
from retuned.retrain.release import approve, erased, shadow
from retuned.retrain.training import shared_gpu

log = logging.getLogger(__name__)
JUDGED_AT_ONCE = 4
"""Workloads whose shadows are judged at a time, each in a child."""
COMPLAINTS = timedelta(hours=1)
"""Age up to which complaints are exemplars of the feedback metric."""


def measure_quality(context: Context, runs: Runs) -> None:
    """Measure quality, book the ledger, expire requests for approval, and ask the policy, for each workload."""
    now = context.now()
    with context.parts("quality") as parts:
        with parts.step("booking"):
            book(context, now)
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
            under_way = {run.workload for run in runs.under_way()}
            context.metrics.keep(shown)
            context.monitor_metrics.keep(measured, shown)
            context.retrain_metrics.keep(measured, shown | under_way)


def ask_opinions(context: Context) -> None:
    """Ask the judge and the detector of quality, which may be slow, about new answers of each workload."""
    with context.parts("opinions") as parts:
        for workload in context.measured():
            with parts.workload(workload):
                settings = context.settings.for_workload(workload)
                quality.judge(context.warehouse, settings, workload, context.now(), context.opinions)


def show_storage(context: Context, erasures: Erasures) -> None:
    """Update the metrics of the warehouse's size, of the free disk space, and of erasures that wait."""
    context.metrics.erasures(erasures.waiting())
    context.metrics.disk_free.set(shutil.disk_usage(context.warehouse.path.parent).free)
    context.metrics.storage(context.warehouse.size(), archived(context.warehouse))


def watch_service(context: Context) -> None:
    """Check canaries, new champions and the memory: take the next step, or take back a version that does worse than the
    previous one, or an entry that makes answers worse."""
    with context.parts("watch") as parts:
        for workload in sorted(context.shown()):
            with parts.workload(workload):
                _watch_canary(context, workload)
            with parts.workload(workload):
                _watch_champion(context, workload)
            with parts.workload(workload):
                memory.watch(context, workload)


def settle_erased(context: Context, runs: Runs) -> None:
    """Take versions that learned erased rows out of service, remove them, and ask for a retraining without the rows."""
    warehouse, now = context.warehouse, context.now()
    with context.parts("erased") as parts:
        for workload in erased.concerned(warehouse):
            with parts.workload(workload):
                if removed := erased.settle(context.rollout, workload, now):
                    log.info("%s: removed %s, which learned erased rows", workload, ", ".join(removed))
                if erased.due(warehouse, workload, now):
                    runs.ask(workload)
    context.retrain_metrics.erased(erased.standing(warehouse, context.settings, now))


def judge_shadows(context: Context) -> None:
    """Judge the answers of versions in shadow, for a few workloads at a time, because a judge may be slow."""

    def judge(workload: str) -> None:
        with parts.workload(workload):
            settings = context.settings.for_workload(workload)
            shadow.judge_pairs(context.warehouse, settings, workload, context.now(), context.stop)

    with context.parts("shadow") as parts, ThreadPoolExecutor(JUDGED_AT_ONCE, "shadow") as threads:
        judging = [threads.submit(copy_context().run, judge, workload) for workload in sorted(context.shown())]
        for future in judging:
            future.result()


def check_drift(context: Context, runs: Runs) -> None:
    """Compare the current window with the reference and ask the policy, for each workload."""
    measured = context.measured()
    if (others := len(context.workloads()) - len(measured)) > 0:
        log.warning("%d more workloads have events than are measured: does a producer invent names?", others)
    with context.parts("drift") as parts:
        for workload in measured:
            with parts.workload(workload):
                if context.retired(workload):
                    context.monitor_metrics.drift_ended(workload)
                else:
                    _check_drift(context, workload)
                    runs.ask(workload)


def check_drift_of(context: Context, workload: str, as_of: datetime | None) -> drift.DriftCheck:
    """Compare the windows of a workload as of a time; None: now.

    Raises:
        RetunedError: the time is in the future.
        ChildFailed: the comparison failed.
    """
    if as_of is not None and as_of > context.now():
        raise RetunedError(f"check-drift: as_of: {shown(as_of)} has not come yet")
    settings, now = context.settings.for_workload(workload), as_of or context.now()
    check = drift.check(context.warehouse, settings, workload, now, context.reports, context.stop)
    if as_of is None:
        context.monitor_metrics.drift(check)
    return check


def evaluate_again(context: Context, workload: str, version: str, metric: str | None) -> Decision:
    """Judge a version again, for information; see `retrain.decision.again`."""
    settings = context.settings.for_workload(workload)
    return again.evaluate_again(context.warehouse, settings, workload, version, metric, context.now(), context.stop)


def accept_drift(context: Context, workload: str, actor: str, reason: str) -> str:
    """Make the current window of a workload the reference of its drift checks. Returns a summary for people.

    Raises:
        RetunedError: the window holds too few conversations.
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
    log.info("%s: drift accepted by %s", workload, actor)
    return (
        f"the reference of drift checks begins at {shown(found.current.start)}, with "
        f"{found.current.conversations} conversations; later events are compared with it"
    )


def announce(context: Context) -> None:
    """Update metrics and links after changes of champions, and publish these changes and the requests for labels."""
    with context.parts("announce") as parts:
        for workload in context.rollout.changed():
            with parts.workload(workload):
                context.rollout.follow_up(workload)
        with parts.step("requests for labels"):
            _announce_label_requests(context)


def request_labels(context: Context) -> None:
    """Choose the answers whose label would teach most, for each workload that is trained, and request labels."""
    with context.parts("labels") as parts:
        with parts.step("answers"):
            label_requests.settle(context.warehouse)
        for workload in context.measured():
            with parts.workload(workload):
                settings = context.settings.for_workload(workload)
                if settings.models.base is None or not settings.models.retrains(workload):
                    continue
                requested = label_requests.request(context.warehouse, settings, workload, context.now())
                if requested:
                    log.info("%s: labels of %d answers are requested (retuned labels lists them)", workload, requested)
        with parts.step("file"):
            _show_label_requests(context)
        with parts.step("requests for labels"):
            _announce_label_requests(context)


def report(context: Context) -> None:
    """Write the missing reports of the last month and quarter, and of ended periods whose report an erasure deleted."""
    with context.parts("report") as parts:
        for workload in context.measured():
            with parts.workload(workload):
                now, existing = context.now(), reports.reports(context.reports, workload)
                due = [reports.Period.of(kind, now).before for kind in reports.MONTHS]
                due += [period for period in deleted_reports(context.warehouse, workload) if period.end <= now]
                missing = {period for period in due if reports.report_id(workload, period) not in existing}
                # Each shows figures of those before it.
                write_reports(context, workload, sorted(missing, key=lambda period: (period.end, period.kind)))


def write_reports(context: Context, workload: str, periods: Sequence[reports.Period]) -> None:
    """Write the reports of a workload for some periods."""
    settings = context.settings.for_workload(workload)
    written = reports.write(context.warehouse, settings, workload, periods, context.reports, context.stop)
    for page in written:
        log.info("%s: report written: %s", workload, page)


def resume(context: Context, runs: Runs) -> None:
    """At the start, remove the files of cancelled runs that a crash left and wake model servers, then resume the
    queue."""
    queue.sweep(context.rollout, runs.is_under_way)
    wake_servers(context)
    runs.run_waiting()


def wake_servers(context: Context) -> None:
    """Wake the servers of `train.gpu_servers` that still sleep. Only in the thread that trains, for whose runs they
    sleep."""
    for settings in context.settings.variants({"train"}).values():
        shared_gpu.wake(settings.train, context.lead)


def _measure(context: Context, workload: str, now: datetime) -> None:
    """Measure the quality of a workload, and update its metrics."""
    warehouse, settings = context.warehouse, context.settings.for_workload(workload)
    try:
        least = settings.cascade.helpful_rate if settings.incumbent.url else None
        figures = quality.measure(warehouse, settings, workload, now, context.opinions, context.readings, least)
    except Exception:
        context.monitor_metrics.quality(workload, [])  # absent, rather than outdated
        raise
    context.monitor_metrics.quality(workload, figures)
    totals = judgements.feedback_totals(warehouse, workload)
    complaints = judgements.latest_complaints(warehouse, workload, now - COMPLAINTS)
    context.monitor_metrics.feedback_totals(workload, totals, complaints)
    earned, by_version = roi.of_workload(warehouse, workload)
    tenure = next(iter(roi.tenures(warehouse, settings, workload, most=1)), None)
    left_out, resolved = roi.left_out(warehouse, workload), outcomes(warehouse, workload)
    context.monitor_metrics.roi(workload, earned, by_version, tenure, left_out, resolved)
    context.retrain_metrics.aliases(warehouse, workload)
    if context.retired(workload):
        context.retrain_metrics.quarantined.remove_by_labels({"workload": workload})
    else:
        context.retrain_metrics.quarantine(warehouse, workload)


def _check_drift(context: Context, workload: str) -> None:
    settings = context.settings.for_workload(workload)
    try:
        drift.forget_ahead(context.warehouse, workload, context.now())
        check = drift.check(context.warehouse, settings, workload, context.now(), context.reports, context.stop)
    except Exception:
        context.monitor_metrics.drift_unknown(workload)
        raise
    needed = 2 * settings.windows.minimum_rows
    what = "conversations that the two windows of drift need (windows.minimum_rows in each)"
    note(context.warehouse, workload, "drift", needed - (check.missing or 0), needed, what, check.created_at)
    if not check.missing:
        lack = check.lacking or {"found": 0, "needed": 0, "what": ""}
        note(context.warehouse, workload, "estimate", **lack, now=check.created_at)
    context.monitor_metrics.drift(check)
    if check.drifted:
        log.info("drift in %s: %s", workload, check.detail)


def _watch_canary(context: Context, workload: str) -> None:
    waits = context.reconciler.step_waits_for(workload)
    settings, known = context.settings.for_workload(workload), context.events_until()
    check = canary.check(context.warehouse, settings, workload, context.now(), waits, known)
    context.monitor_metrics.canary(workload, check)
    if check is None or check.verdict == "hold":
        return
    reason, name = "; ".join(check.reasons), versions.model_name(workload, check.version)
    if check.verdict == "roll_back":
        context.rollout.rollback(workload, "rollout", reason, context.now(), of=check.version)
        log.warning("%s: the canary %s is taken back: %s", workload, name, reason)
    else:
        share = context.rollout.advance(workload, check.experiment, check.share, reason, context.now())
        log.info("%s: %s answers %.4g of the conversations now: %s", workload, name, share, reason)


def _watch_champion(context: Context, workload: str) -> None:
    settings, known = context.settings.for_workload(workload), context.events_until()
    check = watch.check(context.warehouse, settings, workload, context.now(), known)
    context.monitor_metrics.watch(workload, check)
    if check is None or check.verdict == "keep":
        context.rollout.complete(workload, "; ".join(check.reasons) if check else "nothing is watched", context.now())
        return
    if check.verdict == "go_on":
        return
    reason = "; ".join(check.reasons)
    restored = context.rollout.rollback(workload, "watch", reason, context.now(), of=check.version)
    log.warning(
        "%s: %s is taken back, %s serves again: %s", workload, check.version, restored or "the base model", reason
    )


def _show_label_requests(context: Context) -> None:
    """Update the file and the metrics of the requests for labels."""
    shown, counts = context.shown(), label_requests.counts(context.warehouse)
    context.retrain_metrics.labels({workload: count for workload, count in counts.items() if workload in shown})
    label_requests.write_files(context.warehouse, context.settings)


def _announce_label_requests(context: Context) -> None:
    topic = context.settings.kafka.label_requests_topic
    if topic is None:
        return
    try:
        label_requests.announce_pending(context.warehouse, context.publisher, topic)
    except BrokerUnavailable as error:
        log.warning("%s; requests for labels are published later", error)


def book(context: Context, now: datetime) -> None:
    """Book the ledger."""
    settings = context.settings
    with context.booking:
        ledger.book(context.warehouse, settings, now, lambda workload: settings.for_workload(workload).incumbent.model)
