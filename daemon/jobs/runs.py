"""The queue of retrainings: the policy puts workloads in line, and one run after the other is made.

The queue is the table `runs`: a restart goes on with it.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from retuned.consumers.common.logfields import about
from retuned.consumers.common.spans import span
from retuned.consumers.errors import RetunedError
from retuned.daemon.jobs import holds
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.holds import Hold, hold
from retuned.daemon.policy import decision as policy
from retuned.daemon.policy import evidence
from retuned.monitors.blindness import note
from retuned.retrain import queue, run, versions
from retuned.retrain.data import label_requests
from retuned.retrain.training.base_model import check_base_model

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1


class Stop(threading.Event):
    """Set when the run under way has to end: by a command, with the daemon, or with the hours of training."""

    def __init__(self, run_id: str, workload: str, others: Callable[[], bool]) -> None:
        super().__init__()
        self.run_id, self.workload, self._others = run_id, workload, others

    def is_set(self) -> bool:
        return super().is_set() or self._others()

    def wait(self, timeout: float | None = None) -> bool:
        left = timeout
        while not self.is_set() and (left is None or left > 0):
            super().wait(POLL_SECONDS if left is None else min(left, POLL_SECONDS))
            left = None if left is None else left - POLL_SECONDS
        return self.is_set()


class Runs:
    """Which workloads wait to be retrained, and the run under way.

    Attributes:
        progress: what the run under way last reported; empty when none is.
        show: gets it too.
    """

    def __init__(self, context: Context, start: Callable[[], None]) -> None:
        """`start` has `run_waiting` called soon by the thread that trains, if there is one."""
        self._context, self._start = context, start
        self.progress: dict[str, Any] = {}
        self.show: Callable[[dict[str, Any]], None] = lambda _: None
        self._under_way: Stop | None = None
        self._held: dict[str, str] = {}  # run to the kind of hold that was logged
        self._lock = threading.Lock()

    def ask(
        self, workload: str, asked_by: str | None = None, scheduled: bool = False, at_any_hour: bool = False
    ) -> policy.Decision:
        """Decide whether to retrain; a yes is put in line, and a decision that says something new is stored."""
        context = self._context
        settings = context.settings.for_workload(workload)
        found = self.evidence(workload, asked_by, scheduled)
        rated = sum(period.total for period in found.ratings)
        needed = 2 * settings.policy.minimum_ratings if settings.policy.enabled else 0
        what = "ratings of the model in service (twice policy.minimum_ratings)"
        note(context.warehouse, workload, "policy", rated, needed, what, context.now())
        decision = policy.decide(found, settings.policy, context.now())
        if decision.retrain and (why := queue.untrainable(context.warehouse, settings, workload)):
            decision = _refused(decision, f"but {why}")
        models = settings.models
        asks = decision.lacks_labels and settings.labels.per_day > 0 and models.base and models.retrains(workload)
        if asks:
            decision = replace(decision, reasons=(*decision.reasons, "experts are asked for labels (retuned labels)"))
        context.metrics.decisions.labels(workload, "yes" if decision.retrain else "no").inc()
        news = evidence.store(context.warehouse, workload, decision, found, context.now())
        if asks and news:
            label_requests.request(context.warehouse, settings, workload, context.now())
        if decision.retrain:
            queue.put_in_line(context.warehouse, workload, decision.reasons, context.now(), at_any_hour)
            self.wake()
        return decision

    def rebase(self, workload: str, name: str, asked_by: str, reason: str) -> None:
        """Put a training on another base model in line, from all that the workload's champion learned.

        Args:
            name: the folder of that model, or the provider's name of it where a provider trains the workload.

        Raises:
            RetunedError: there is no model in the folder, or nothing to compare it with.
        """
        context, settings = self._context, self._context.settings.for_workload(workload)
        base = settings.base_named(name)
        if isinstance(base, Path):
            if not base.is_absolute():
                raise RetunedError(f"base {base}: expected an absolute path, of a folder on the daemon's machine")
            check_base_model(base, "base")
        if not settings.models.retrains(workload):
            raise RetunedError(f"workload {workload}: it is not one to retrain; add it to models.workloads")
        champion = versions.champion(context.warehouse, workload)
        if champion is None:
            raise RetunedError(
                f"workload {workload}: the base model serves, so there is nothing to train anew: set models.base to "
                f"{base}"
            )
        if champion.base_hash == versions.base_hash(base):
            raise RetunedError(f"workload {workload}: {champion.name} was trained on {base} already")
        if type(champion.base) is not type(base):
            raise RetunedError(
                f"workload {workload}: {champion.name} was trained on {champion.base}, and nothing is moved between a "
                f"folder and a provider; start anew with `retuned promote {workload} base`"
            )
        if isinstance(base, Path) and settings.evaluate.engine == "server":
            raise RetunedError(
                "evaluate.engine is server, which has one base model: set it to transformers to compare two"
            )
        why = f"asked for by {asked_by}: {champion.base_model} is to become {base}: {reason}"
        queue.put_in_line(context.warehouse, workload, [why], context.now(), base=base)
        self.wake()

    def evidence(self, workload: str, asked_by: str | None = None, scheduled: bool = False) -> policy.Evidence:
        """What is known about a workload now."""
        context = self._context
        settings = context.settings.for_workload(workload)
        found = evidence.gather(context.warehouse, settings, workload, context.now())
        paused = holds.paused(context.warehouse, workload)
        return replace(found, scheduled=scheduled, asked_by=asked_by, paused=paused)

    def queue(self) -> list[dict[str, Any]]:
        """The runs that wait or were interrupted, as they come next: id, workload, since, and what each waits for."""
        context, under_way = self._context, self._under_way
        found = []
        for row in queue.unfinished(context.warehouse):
            if under_way is not None and row["id"] == under_way.run_id:
                continue
            goes_on = "it begins" if row["state"] == "waiting" else "it goes on from its checkpoint"
            held = self._hold(row) or Hold("turn", f"{goes_on} when its turn comes")
            found.append(
                {
                    "run_id": row["id"],
                    "workload": row["workload"],
                    "kind": row["kind"],
                    "state": row["state"],
                    "since": row["started_at"],
                    "waits_for": held.kind,
                    "reason": held.reason,
                }
            )
        return found

    def wake(self) -> None:
        """Have the next run started when one may start and none is under way."""
        waiting = self.queue()
        self._show_pauses()
        self._context.metrics.waiting_runs(Counter((one["workload"], one["waits_for"]) for one in waiting))
        for one in waiting:
            if one["waits_for"] != "turn" and self._held.get(one["run_id"]) != one["waits_for"]:
                log.info("run %s of %s: %s", one["run_id"], one["workload"], one["reason"])
        self._held = {one["run_id"]: one["waits_for"] for one in waiting}
        ready = any(one["waits_for"] == "turn" for one in waiting)
        if ready and not self.progress and not self._context.stop.is_set():
            self._start()

    def run_waiting(self) -> list[run.RunResult]:
        """Take up whatever was interrupted, then retrain whatever waits, one after the other, as far as each may."""
        made = []
        while (stop := self._next()) is not None:
            made.append(self._make(stop))
        return made

    def pause(self, workload: str | None, actor: str, reason: str) -> None:
        """Let no run start, of one workload or of all; one under way stops at a checkpoint.

        Raises:
            RetunedError: it is paused already.
        """
        warehouse = self._context.warehouse
        if any(pause["workload"] == workload for pause in holds.pauses(warehouse)):
            raise RetunedError(f"{_named(workload)}: retraining is paused already")
        warehouse.insert("pauses", workload=workload, created_at=self._context.now(), actor=actor, reason=reason)
        log.info("%s: retraining is paused by %s: %s", _named(workload), actor, reason)
        self._show_pauses()
        with self._lock:
            if self._under_way is not None and workload in (None, self._under_way.workload):
                self._under_way.set()

    def _show_pauses(self) -> None:
        self._context.metrics.pauses.set(len(holds.pauses(self._context.warehouse)))

    def resume(self, workload: str | None, actor: str) -> None:
        """End a pause; what it stopped goes on.

        Raises:
            RetunedError: there is no such pause.
        """
        warehouse, now = self._context.warehouse, self._context.now()
        found = [pause["workload"] for pause in holds.pauses(warehouse)]
        if workload not in found:
            more = f"; in force: the pause of {', '.join(map(_named, found))}" if found else ""
            raise RetunedError(f"{_named(workload)}: retraining is not paused{more}")
        warehouse.execute(holds.QUERIES["end_pause"], {"workload": workload, "actor": actor, "now": now})
        log.info("%s: retraining goes on, asked for by %s", _named(workload), actor)
        self.wake()

    def cancel(self, workload: str, actor: str, reason: str) -> list[str]:
        """End the runs of a workload, under way or in line, and remove their files. Returns their ids.

        Raises:
            RetunedError: there is none, or its version serves already.
        """
        context, under_way = self._context, self._under_way
        error = f"cancelled by {actor}: {reason}"
        ids = queue.cancel(context.rollout, workload, error, context.now(), under_way.run_id if under_way else None)
        with self._lock:
            if self._under_way is not None and self._under_way.run_id in ids:
                self._under_way.set()
        log.info("workload %s: run %s: %s", workload, ", ".join(ids), error)
        return ids

    def on_progress(self, line: dict[str, Any]) -> None:
        """What the run under way reports."""
        self.progress = {**self.progress, **line}
        self._context.retrain_metrics.progress(line["workload"], line)
        self.show(self.progress)

    def _next(self) -> Stop | None:
        """The next run that may start, which is under way from now on."""
        context = self._context
        with self._lock:
            if context.stop.is_set():
                return None
            found = next((row for row in queue.unfinished(context.warehouse) if self._hold(row) is None), None)
            if found is None:
                return None
            hours = None if found["at_any_hour"] else context.settings.schedule.hours

            def others() -> bool:
                return context.stop.is_set() or (hours is not None and not hours.hold(context.now()))

            self.progress = {"stage": "starting", "workload": found["workload"]}
            self._under_way = Stop(found["id"], found["workload"], others)
            return self._under_way

    def _hold(self, row: dict[str, Any]) -> Hold | None:
        settings = self._context.settings.for_workload(row["workload"])
        return hold(self._context.warehouse, settings, row, self._context.now())

    def _make(self, stop: Stop) -> run.RunResult:
        context = self._context
        with (
            about(run=stop.run_id, workload=stop.workload),
            span("run", run=stop.run_id, workload=stop.workload) as traced,
        ):
            context.retrain_metrics.progress(stop.workload, {})  # one that hangs before its first line is stuck, too
            try:
                result = run.take_up(context.rollout, stop.run_id, context.now, stop, self.on_progress)
            finally:
                with self._lock:
                    self.progress, self._under_way = {}, None
                context.retrain_metrics.idle(stop.workload)
            traced.set(outcome=result.state, version=result.version, promoted=result.promoted)
            context.retrain_metrics.finished(result)
            with about(version=result.version):
                log.info("run %s of %s: %s: %s", result.run_id, result.workload, result.state, " ".join(result.reasons))
            return result


def _refused(decision: policy.Decision, why: str) -> policy.Decision:
    return replace(decision, retrain=False, reasons=(*decision.reasons, why))


def _named(workload: str | None) -> str:
    return "all workloads" if workload is None else f"workload {workload}"
