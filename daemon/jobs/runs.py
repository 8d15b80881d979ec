"""The queue of retrainings: the policy puts workloads in line, and one run after the other is made."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from retuned.daemon.jobs.context import Context
from retuned.daemon.policy import decision as policy
from retuned.daemon.policy import evidence
from retuned.retrain import run

log = logging.getLogger(__name__)


class Runs:
    """Which workloads wait to be retrained, and the run under way.

    Attributes:
        progress: what the run under way last reported; empty when none is.
    """

    def __init__(self, context: Context, start: Callable[[], None]) -> None:
        """`start` has `run_waiting` called soon by the thread that trains, if there is one."""
        self._context, self._start = context, start
        self.progress: dict[str, Any] = {}
        self._waiting: dict[str, tuple[str, ...]] = {}  # workload to reasons
        self._lock = threading.Lock()

    def ask(self, workload: str, asked_by: str | None = None, scheduled: bool = False) -> policy.Decision:
        """Decide whether to retrain; a yes is put in line, and a decision that says something new is stored."""
        context, models = self._context, self._context.settings.models
        found = self.evidence(workload, asked_by, scheduled)
        decision = policy.decide(found, context.settings.policy, context.now())
        if models.base is None and decision.retrain:
            decision = _refused(decision, "but there is no base model (models.base)")
        if models.workloads is not None and workload not in models.workloads and decision.retrain:
            decision = _refused(decision, "but this workload is not one to retrain (models.workloads)")
        context.metrics.decisions.labels(workload, "yes" if decision.retrain else "no").inc()
        evidence.store(context.warehouse, workload, decision, found, context.now())
        if decision.retrain:
            with self._lock:
                self._waiting.setdefault(workload, decision.reasons)
            self.wake()
        return decision

    def evidence(self, workload: str, asked_by: str | None = None, scheduled: bool = False) -> policy.Evidence:
        """What is known about a workload now."""
        context = self._context
        in_line = workload == self.progress.get("workload") or workload in self._waiting
        found = evidence.gather(context.warehouse, context.settings, workload, context.now())
        return replace(found, running=found.running or in_line, scheduled=scheduled, asked_by=asked_by)

    def wake(self) -> None:
        """Have the next run started when one waits and none is under way."""
        with self._lock:
            idle = bool(self._waiting) and not self.progress
        if idle and not self._context.stop.is_set():
            self._start()

    def resume(self) -> None:
        """Take up the runs that a stop or a crash interrupted, then whatever waits."""
        context = self._context
        self.progress = {"stage": "resuming"}
        while self._make(lambda: run.resume(context.rollout, context.now, context.stop, self.on_progress)):
            if context.stop.is_set():
                return
        self.run_waiting()

    def run_waiting(self) -> None:
        """Retrain whatever waits, one workload after the other."""
        context = self._context
        while not context.stop.is_set():
            with self._lock:
                if not self._waiting:
                    return
                workload, reasons = next(iter(self._waiting.items()))
                del self._waiting[workload]
                self.progress = {"stage": "starting", "workload": workload}
            self._make(
                lambda workload=workload, reasons=reasons: run.retrain(  # type: ignore[misc]
                    context.rollout, workload, reasons, context.now, context.stop, self.on_progress
                )
            )

    def on_progress(self, line: dict[str, Any]) -> None:
        """What the run under way reports."""
        self.progress = {**self.progress, **line}
        self._context.retrain_metrics.progress(line["workload"], line)

    def _make(self, work: Callable[[], run.RunResult | None]) -> run.RunResult | None:
        try:
            result = work()
        finally:
            self.progress = {}
        if result is not None:
            self._context.retrain_metrics.finished(result)
            log.info("run %s of %s: %s: %s", result.run_id, result.workload, result.state, " ".join(result.reasons))
        return result


def _refused(decision: policy.Decision, why: str) -> policy.Decision:
    return replace(decision, retrain=False, reasons=(*decision.reasons, why))
