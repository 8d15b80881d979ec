"""The queue of retrainings: the policy puts workloads in line, and their runs are made in that order, one at a time on
this machine, several on a cluster.

The queue is the table `runs`: a restart goes on with it.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from retuned.consumers.common.logfields import about
from retuned.consumers.common.spans import span
from retuned.consumers.errors import RetunedError, StandsBy
from retuned.daemon.jobs import holds
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.holds import Hold, hold
from retuned.daemon.jobs.progress import words
from retuned.daemon.policy import decision as policy
from retuned.daemon.policy import evidence
from retuned.monitors.blindness import note
from retuned.retrain import queue, run, versions
from retuned.retrain.data import label_requests
from retuned.retrain.runner_settings import MOST_AT_A_TIME, RunnerSettings
from retuned.retrain.training.base_model import check_base_model

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
LOG_EVERY = timedelta(minutes=1)
"""The log has a line of each stage of a run, and one so often during a long one."""


class UnderWay(threading.Event):
    """A run under way; set when it has to end: by a command, with the daemon, or with the hours of training.

    Attributes:
        progress: what it last reported.
        logged_at: when the log last had that.
    """

    def __init__(
        self, row: dict[str, Any], runner: RunnerSettings, since: datetime, others: Callable[[], bool]
    ) -> None:
        """`others` is whether it has to end for another reason than a command."""
        super().__init__()
        self.run_id, self.workload, self.kind = row["id"], row["workload"], row["kind"]
        self.runner, self.since, self._others = runner, since, others
        self.progress: dict[str, Any] = {"stage": "starting"}
        self.logged_at = since

    def is_set(self) -> bool:
        return super().is_set() or self._others()

    def wait(self, timeout: float | None = None) -> bool:
        left = timeout
        while not self.is_set() and (left is None or left > 0):
            super().wait(POLL_SECONDS if left is None else min(left, POLL_SECONDS))
            left = None if left is None else left - POLL_SECONDS
        return self.is_set()

    def as_dict(self) -> dict[str, Any]:
        """What the status shows of it."""
        return self.progress | {
            "run_id": self.run_id,
            "workload": self.workload,
            "kind": self.kind,
            "runner": self.runner.kind,
            "since": self.since,
        }


class Runs:
    """Which workloads wait to be retrained, and the runs under way.

    Attributes:
        start: has a run made by a thread of the schedule; None: there is no schedule.
        show: gets what a run under way reports.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.start: Callable[[UnderWay], None] | None = None
        self.show: Callable[[dict[str, Any]], None] = lambda _: None
        self._under_way: dict[str, UnderWay] = {}  # by run
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
        paused = holds.paused(holds.pauses(context.warehouse), workload)
        return replace(found, scheduled=scheduled, asked_by=asked_by, paused=paused)

    def under_way(self) -> list[UnderWay]:
        """The runs under way, in the order in which they were begun."""
        with self._lock:
            return list(self._under_way.values())

    def is_under_way(self, run_id: str) -> bool:
        """Whether a run is made in this process now."""
        return run_id in self._under_way

    def queue(self) -> list[dict[str, Any]]:
        """The runs that wait or were interrupted, as they come next: id, workload, since, and what each waits for."""
        context, under_way = self._context, self.under_way()
        begun, standing = {one.run_id for one in under_way}, holds.standing(context.warehouse)
        found = []
        for row in queue.unfinished(context.warehouse):
            if row["id"] in begun:
                continue
            held = self._hold(standing, row) or self._limit(row, under_way)
            held = held or Hold("turn", self._elsewhere(row) or f"{_goes_on(row)} when its turn comes")
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
        """Have the runs started that may start, where there is a schedule; bring up to date what is shown of the
        others."""
        if self.start is not None:
            while (found := self._next()) is not None:
                self.start(found)
        waiting = self.queue()
        self._show_pauses()
        self._context.metrics.waiting_runs(Counter((one["workload"], one["waits_for"]) for one in waiting))
        for one in waiting:
            if one["waits_for"] != "turn" and self._held.get(one["run_id"]) != one["waits_for"]:
                log.info("run %s of %s: %s", one["run_id"], one["workload"], one["reason"])
        self._held = {one["run_id"]: one["waits_for"] for one in waiting}

    def make(self, under_way: UnderWay) -> run.RunResult:
        """Make a run, for the schedule: the next one is started when it ends."""
        result = self._make(under_way)
        self.wake()
        return result

    def run_waiting(self) -> list[run.RunResult]:
        """Take up whatever was interrupted, then retrain whatever waits, as far and as many at a time as may be.

        Where there is a schedule, it is started there, and nothing is returned; without one, all runs have ended. An
        error that ends one, or Ctrl-C, stops the others at their checkpoints.
        """
        if self.start is not None:
            self.wake()
            return []
        made: list[run.RunResult] = []
        working: set[Future[run.RunResult]] = set()
        with ThreadPoolExecutor(MOST_AT_A_TIME, "run") as threads:
            try:
                while True:
                    while (one := self._next()) is not None:
                        working.add(threads.submit(copy_context().run, self._make, one))
                    if not working:
                        return made
                    ended, working = wait(working, return_when=FIRST_COMPLETED)
                    made += [future.result() for future in ended]
            except BaseException:
                for one in self.under_way():
                    one.set()
                raise

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
        for one in self.under_way():
            if workload in (None, one.workload):
                one.set()

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
        context, error = self._context, f"cancelled by {actor}: {reason}"
        under_way = {one.run_id: one for one in self.under_way()}
        ids = queue.cancel(context.rollout, workload, error, context.now(), under_way)
        for run_id in under_way.keys() & ids:
            under_way[run_id].set()
        log.info("workload %s: run %s: %s", workload, ", ".join(ids), error)
        return ids

    def on_progress(self, line: dict[str, Any]) -> None:
        """What a run under way reports."""
        under_way = self._under_way[line["run_id"]]
        begins = line["stage"] != under_way.progress["stage"]
        under_way.progress = {**under_way.progress, **line}
        now = self._context.now()
        if begins or now - under_way.logged_at >= LOG_EVERY:
            under_way.logged_at = now
            log.info("run %s of %s: %s", under_way.run_id, under_way.workload, words(under_way.progress))
        self._context.retrain_metrics.progress(line["workload"], line)
        self.show(under_way.progress)

    def _next(self) -> UnderWay | None:
        """The next run that may start, which is under way from now on."""
        context = self._context
        with self._lock:
            if context.stop.is_set():
                return None
            others, standing = list(self._under_way.values()), holds.standing(context.warehouse)
            for row in queue.unfinished(context.warehouse):
                if row["id"] in self._under_way or self._limit(row, others) is not None:
                    continue
                if self._hold(standing, row) is None:
                    self._under_way[row["id"]] = found = self._begun(row)
                    return found
            return None

    def _begun(self, row: dict[str, Any]) -> UnderWay:
        context = self._context
        hours = None if row["at_any_hour"] else context.settings.schedule.hours

        def others() -> bool:
            return context.stop.is_set() or (hours is not None and not hours.hold(context.now()))

        return UnderWay(row, context.settings.for_workload(row["workload"]).runner, context.now(), others)

    def _hold(self, standing: holds.Standing, row: dict[str, Any]) -> Hold | None:
        settings = self._context.settings.for_workload(row["workload"])
        return hold(standing, settings, row, self._context.now())

    def _limit(self, row: dict[str, Any], under_way: list[UnderWay]) -> Hold | None:
        """Which runs under way another one has to wait for; None: for none."""
        for one in under_way:
            if one.workload == row["workload"]:
                return Hold("turn", f"{_goes_on(row)} when run {one.run_id} of this workload has ended")
        runner = self._context.settings.for_workload(row["workload"]).runner
        beside = [one.workload for one in under_way if one.runner.place == runner.place]
        if len(beside) < runner.limit:
            return None
        limit = f"at most {runner.limit} at a time" + (" (runner.at_a_time)" if runner.kind == "ray" else "")
        return Hold(
            "turn",
            f"{_goes_on(row)} when its turn comes: on {runner.place} {limit}, now {', '.join(sorted(beside))}",
        )

    def _elsewhere(self, row: dict[str, Any]) -> str | None:
        """Of a run that another daemon of the cluster has begun; None: it would be this one's."""
        try:
            self._context.lead()
        except StandsBy:
            return "the daemon that leads makes it" if row["state"] == "running" else None
        return None

    def _make(self, under_way: UnderWay) -> run.RunResult:
        context, run_id, workload = self._context, under_way.run_id, under_way.workload
        with about(run=run_id, workload=workload), span("run", run=run_id, workload=workload) as traced:
            context.retrain_metrics.progress(workload, {})  # one that hangs before its first line is stuck, too
            try:
                result = run.take_up(context.rollout, run_id, context.now, under_way, self.on_progress)
            finally:
                context.retrain_metrics.idle(workload)
                with self._lock:
                    del self._under_way[run_id]
            traced.set(outcome=result.state, version=result.version, promoted=result.promoted)
            context.retrain_metrics.finished(result)
            with about(version=result.version):
                log.info("run %s of %s: %s: %s", result.run_id, result.workload, result.state, " ".join(result.reasons))
            return result


def _goes_on(row: dict[str, Any]) -> str:
    return "it begins" if row["state"] == "waiting" else "it goes on from its checkpoint"


def _refused(decision: policy.Decision, why: str) -> policy.Decision:
    return replace(decision, retrain=False, reasons=(*decision.reasons, why))


def _named(workload: str | None) -> str:
    return "all workloads" if workload is None else f"workload {workload}"
