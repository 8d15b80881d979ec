"""The job of the memory of corrections."""

import logging
from collections import defaultdict
from typing import Any

from retuned.daemon.jobs.context import Context
from retuned.monitors.watch import memory
from retuned.retrain.memory import entries, retire
from retuned.retrain.memory.related import Thresholds

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0


class Follower:
    """Follows feedback and decisions into the memory of each workload that has one. One query where nothing is new."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._thresholds: defaultdict[str, Thresholds] = defaultdict(Thresholds)
        self._seen: dict[str, Any] | None = None

    def __call__(self) -> None:
        """Runs once."""
        context, newest = self._context, entries.newest(self._context.warehouse)
        if newest == self._seen:
            return
        with context.parts("memory") as parts:
            for workload in context.workloads():
                settings = context.settings.for_workload(workload)
                if settings.memory.mode == "off":
                    continue
                with parts.workload(workload):
                    changes = entries.follow(context.warehouse, settings, workload, context.now())
                    changes += retire.follow_champion(context.warehouse, settings, workload, context.now())
                    if changes:
                        log.info("%s: %d changes of the memory", workload, changes)
                    self._thresholds[workload].update(context.warehouse, settings, workload)
        self._seen = newest


def watch(context: Context, workload: str) -> None:
    """Withdraw entries of a workload that make answers worse, and update the metrics of its memory."""
    settings, now = context.settings.for_workload(workload), context.now()
    if settings.memory.mode == "off":
        return
    active = {row["id"]: row["changed_at"] for row in entries.active(context.warehouse, workload)}
    effects = memory.effects(context.warehouse, settings.watch, workload, active, now)
    harmful = {id: "; ".join(map(str, effects[id].harm)) for id in active if id in effects and effects[id].harm}
    if harmful:
        reasons = {id: f"answers with it are worse than those held out: {text}" for id, text in harmful.items()}
        entries.withdraw(context.warehouse, workload, reasons, now)
        for id, reason in reasons.items():
            log.warning("%s: memory entry %s is withdrawn: %s", workload, id, reason)
    whole = effects.get(memory.ALL)
    context.monitor_metrics.memory(
        workload, whole.helpful if whole else None, memory.totals(context.warehouse).get(workload)
    )
    context.retrain_metrics.memory(workload, entries.counts(context.warehouse).get(workload, {}))
