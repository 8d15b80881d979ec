"""The queue of retrainings, and the runs under way: one at a time on this machine, several on a cluster.

The queue is the table `runs`, so that a restart resumes it.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from datetime import timedelta
from typing import Any

from retuned.consumers.common.logfields import about
from retuned.consumers.common.spans import span
from retuned.consumers.errors import RetunedError, StandsBy
from retuned.daemon.jobs import holds, requests
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.holds import Hold, hold
from retuned.daemon.jobs.progress import words
from retuned.daemon.jobs.under_way import UnderWay
from retuned.daemon.policy import decision as policy
from retuned.daemon.policy import evidence
from retuned.retrain import queue, run
from retuned.retrain.run import RunResult
from retuned.retrain.runner_settings import MOST_AT_A_TIME

log = logging.getLogger(__name__)

LOG_EVERY = timedelta(minutes=1)
"""Interval of log lines within a long stage of a run. Each new stage is logged, too."""


class Runs:
    """The queue, and the runs under way.

    Attributes:
        start: starts a run in a thread of the schedule; None: there is no schedule.
        show: called with each report of a run.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.start: Callable[[UnderWay], None] | None = None
        self.show: Callable[[dict[str, Any]], None] = lambda _: None
        self._under_way: dict[str, UnderWay] = {}  # by run
        self._held: dict[str, str] = {}  # run to the kind of hold that was logged
        self._lock = threading.Lock()

    def ask(self, workload: str, asked_by: str | None = None, at_any_hour: bool = False) -> policy.Decision:
        """Decide whether to retrain a workload, and if so, queue a run."""
        context = self._context
        decision = requests.decide(context, workload, self.evidence(workload, asked_by))
        if decision.retrain:
            run_id = queue.enqueue(
                context.warehouse, workload, decision.reasons, context.now(), at_any_hour, cause=decision.cause
            )
            decision = replace(decision, run=run_id)
            self.wake()
        return decision

    def rebase(self, workload: str, folder: str, asked_by: str, reason: str) -> None:
        """Queue a training on another base model; see `requests.rebase`."""
        requests.rebase(self._context, workload, folder, asked_by, reason)
        self.wake()

    def evidence(self, workload: str, asked_by: str | None = None) -> policy.Evidence:
        """Returns the present evidence about a workload."""
        return requests.evidence_of(self._context, workload, asked_by)

    def under_way(self) -> list[UnderWay]:
        """Returns the runs under way, in the order of their start."""
        with self._lock:
            return list(self._under_way.values())

    def is_under_way(self, run_id: str) -> bool:
        """Whether a run is under way in this process."""
        return run_id in self._under_way

    def queue(self) -> list[dict[str, Any]]:
        """Returns the runs that wait or were interrupted, in order: id, workload, since, and the reason for waiting."""
        context, under_way = self._context, self.under_way()
        started, standing = {active.run_id for active in under_way}, holds.standing(context.warehouse)
        found = []
        for row in queue.unfinished(context.warehouse):
            if row["id"] in started:
                continue
            held = self._hold(standing, row) or self._limit(row, under_way)
            held = held or Hold("turn", self._elsewhere(row) or f"{_starts(row)} when its turn comes")
            found.append(
                {
                    "run_id": row["id"],
                    "workload": row["workload"],
                    "kind": row["kind"],
                    "state": row["state"],
                    "passed": row["passed"],
                    "since": row["started_at"],
                    "waits_for": held.kind,
                    "reason": held.reason,
                }
            )
        return found

    def wake(self) -> None:
        """Start the runs that may start, if there is a schedule, and update the metrics of the others."""
        if self.start is not None:
            while (next_run := self._next()) is not None:
                self.start(next_run)
        waiting = self.queue()
        self._count_pauses()
        self._context.metrics.waiting_runs(Counter((row["workload"], row["waits_for"]) for row in waiting))
        for row in waiting:
            if row["waits_for"] != "turn" and self._held.get(row["run_id"]) != row["waits_for"]:
                log.info("run %s of %s waits: %s", row["run_id"], row["workload"], row["waits_for"])
        self._held = {row["run_id"]: row["waits_for"] for row in waiting}

    def make(self, under_way: UnderWay) -> RunResult:
        """Execute a run in a thread of the schedule, then start the next one."""
        result = self._make(under_way)
        self.wake()
        return result

    def run_waiting(self, workload: str | None = None) -> list[RunResult]:
        """Execute the runs of the queue that may start, of one workload or of all, as many at a time as allowed.

        With a schedule they start there, whatever their workload, and nothing is returned. Without one, all have ended
        on return. An error that ends one, or Ctrl-C, stops the others at their checkpoints.
        """
        if self.start is not None:
            self.wake()
            return []
        results: list[RunResult] = []
        working: set[Future[RunResult]] = set()
        with ThreadPoolExecutor(MOST_AT_A_TIME, "run") as threads:
            try:
                while True:
                    while (next_run := self._next(workload)) is not None:
                        working.add(threads.submit(copy_context().run, self._make, next_run))
                    if not working:
                        return results
                    ended, working = wait(working, return_when=FIRST_COMPLETED)
                    results += [future.result() for future in ended]
            except BaseException:
                for other in self.under_way():
                    other.set()
                raise

    def pause(self, workload: str | None, actor: str, reason: str) -> None:
        """Pause retraining of one workload or of all (None). Runs under way stop at a checkpoint.

        Raises:
            RetunedError: it is paused already.
        """
        warehouse = self._context.warehouse
        if any(pause["workload"] == workload for pause in holds.pauses(warehouse)):
            raise RetunedError(f"{_named(workload)}: retraining is paused already")
        warehouse.insert("pauses", workload=workload, created_at=self._context.now(), actor=actor, reason=reason)
        log.info("%s: retraining is paused by %s", _named(workload), actor)
        self._count_pauses()
        for active in self.under_way():
            if workload in (None, active.workload):
                active.set()

    def _count_pauses(self) -> None:
        self._context.metrics.pauses.set(len(holds.pauses(self._context.warehouse)))

    def resume(self, workload: str | None, actor: str) -> None:
        """End a pause; interrupted runs resume.

        Raises:
            RetunedError: there is no such pause.
        """
        warehouse, now = self._context.warehouse, self._context.now()
        paused = [pause["workload"] for pause in holds.pauses(warehouse)]
        if workload not in paused:
            more = f"; in force: the pause of {', '.join(map(_named, paused))}" if paused else ""
            raise RetunedError(f"{_named(workload)}: retraining is not paused{more}")
        warehouse.execute(holds.QUERIES["end_pause"], {"workload": workload, "actor": actor, "now": now})
        log.info("%s: retraining is resumed by %s", _named(workload), actor)
        self.wake()

    def cancel(self, workload: str, actor: str, reason: str, run_id: str | None = None) -> list[str]:
        """Cancel one run of a workload or all of them, under way or queued, and remove their files. Returns their ids.

        Raises:
            RetunedError: there is none, or its version serves already.
        """
        context, error = self._context, f"cancelled by {actor}: {reason}"
        under_way = {active.run_id: active for active in self.under_way()}
        ids = queue.cancel(context.rollout, workload, error, context.now(), under_way, run_id)
        for run_id in under_way.keys() & ids:
            under_way[run_id].set()
        log.info("workload %s: run %s: cancelled by %s", workload, ", ".join(ids), actor)
        return ids

    def on_progress(self, line: dict[str, Any]) -> None:
        """Take a report of a run under way: log it, and update metrics."""
        under_way = self._under_way[line["run_id"]]
        is_new_stage = line["stage"] != under_way.progress["stage"]
        now = self._context.now()
        under_way.report(line, now)
        if is_new_stage or now - under_way.logged_at >= LOG_EVERY:
            under_way.logged_at = now
            log.info("run %s of %s: %s", under_way.run_id, under_way.workload, words(under_way.progress))
        self._context.retrain_metrics.progress(line["workload"], line)
        self.show(under_way.progress)

    def _next(self, workload: str | None = None) -> UnderWay | None:
        """Returns the next run that may start, of one workload or of all, and marks it as under way; None: no run may
        start. Runs whose reason has ended while they waited are cancelled instead."""
        context = self._context
        while (next_run := self._claim(workload)) is not None:
            ended = True
            try:
                ended = evidence.has_ended(context.warehouse, next_run.workload, next_run.run_id, context.now())
                if not ended:
                    return next_run
                error = "cancelled by retuned: an erasure was its only reason, and needs no further run now"
                with suppress(RetunedError):  # a person was faster
                    queue.cancel(context.rollout, next_run.workload, error, context.now(), (), next_run.run_id)
                    log.info("run %s of %s: %s", next_run.run_id, next_run.workload, error)
            finally:
                if ended:
                    with self._lock:
                        del self._under_way[next_run.run_id]
        return None

    def _claim(self, workload: str | None) -> UnderWay | None:
        """Returns the next run of the queue that may start, and marks it as under way; None: no run may start."""
        context = self._context
        with self._lock:
            if context.stop.is_set():
                return None
            others, standing = list(self._under_way.values()), holds.standing(context.warehouse)
            for row in queue.unfinished(context.warehouse, workload):
                if row["id"] in self._under_way or self._limit(row, others) is not None:
                    continue
                if self._hold(standing, row) is None:
                    self._under_way[row["id"]] = next_run = self._new(row)
                    return next_run
            return None

    def _new(self, row: dict[str, Any]) -> UnderWay:
        context = self._context
        hours = None if row["at_any_hour"] else context.settings.schedule.hours

        def must_stop() -> bool:
            return context.stop.is_set() or (hours is not None and not hours.hold(context.now()))

        return UnderWay(row, context.settings.for_workload(row["workload"]).runner, context.now(), must_stop)

    def _hold(self, standing: holds.Standing, row: dict[str, Any]) -> Hold | None:
        settings = self._context.settings.for_workload(row["workload"])
        return hold(standing, settings, row, self._context.now())

    def _limit(self, row: dict[str, Any], under_way: list[UnderWay]) -> Hold | None:
        """Returns the limit that a run waits for: one run per workload, and so many per place; None: it may start."""
        for active in under_way:
            if active.workload == row["workload"]:
                return Hold("turn", f"{_starts(row)} when run {active.run_id} of this workload has ended")
        runner = self._context.settings.for_workload(row["workload"]).runner
        beside = [active.workload for active in under_way if active.runner.place == runner.place]
        if len(beside) < runner.limit:
            return None
        limit = f"at most {runner.limit} at a time" + (" (runner.at_a_time)" if runner.kind == "ray" else "")
        return Hold(
            "turn",
            f"{_starts(row)} when its turn comes: on {runner.place} {limit}, and {len(beside)} under way",
        )

    def _elsewhere(self, row: dict[str, Any]) -> str | None:
        """Returns the reason if the leader of the cluster, another daemon, executes a run; else None."""
        try:
            self._context.lead()
        except StandsBy:
            return "the leader executes it" if row["state"] == "running" else None
        return None

    def _make(self, under_way: UnderWay) -> RunResult:
        context, run_id, workload = self._context, under_way.run_id, under_way.workload
        with about(run=run_id, workload=workload), span("run", run=run_id, workload=workload) as traced:
            context.retrain_metrics.progress(workload, {})  # a run that hangs before its first report is stuck, too
            try:
                result = run.resume(context.rollout, run_id, context.now, under_way, self.on_progress)
            finally:
                context.retrain_metrics.idle(workload)
                with self._lock:
                    del self._under_way[run_id]
            traced.set(outcome=result.state, version=result.version, promoted=result.promoted)
            context.retrain_metrics.finished(result)
            with about(version=result.version):
                # A cancellation has the sentence of who asked for it.
                reasons = "" if result.state == "cancelled" else f": {' '.join(result.reasons)}"
                log.info("run %s of %s: %s%s", result.run_id, result.workload, result.state, reasons)
            return result


def _starts(row: dict[str, Any]) -> str:
    return "it begins" if row["state"] == "waiting" else "it resumes from its checkpoint"


def _named(workload: str | None) -> str:
    return "all workloads" if workload is None else f"workload {workload}"
