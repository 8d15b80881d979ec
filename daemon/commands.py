"""What an operator may command: retrain, promote, roll back, report; over HTTP to a daemon, or here without one."""

from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.daemon.jobs import Jobs
from retuned.retrain import rollout


def carry_out(jobs: Jobs, name: str, workload: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Carry out a command and tell what was done.

    Args:
        name: `retrain`, `promote` (argument `version`), `rollback`, each with a `reason` if they like, or `report`.

    Raises:
        RetunedError: it cannot be done; the text says why and what can.
    """
    known = jobs.workloads()
    if workload not in known:
        raise RetunedError(
            f"workload {workload}: unknown; known are {', '.join(known) or 'none yet: no event has arrived'}"
        )
    reason = str(arguments.get("reason") or "asked for by an operator")
    if name == "retrain":
        decision = jobs.ask_policy(workload, asked_by="an operator")
        if not decision.retrain:
            raise RetunedError(f"workload {workload}: not retrained: {'; '.join(decision.reasons)}")
        return {"workload": workload, "done": "a retraining is in line", "reasons": list(decision.reasons)}
    if name == "report":
        report = jobs.report_so_far(workload)
        return {"workload": workload, "done": f"the report of this month so far will be at /reports/{report}"}
    topic = jobs.settings.kafka.model_events_topic
    if name == "promote":
        version = arguments.get("version")
        if not isinstance(version, str) or not version:
            raise RetunedError("promote: name the version, for example 3f2a91c0")
        rollout.promote(
            jobs.warehouse,
            jobs.settings,
            jobs.publisher,
            topic,
            workload,
            version,
            actor="operator",
            reason=reason,
            now=jobs.now(),
        )
        return {"workload": workload, "done": f"{workload}@{version} is the champion"}
    previous = rollout.rollback(
        jobs.warehouse, jobs.settings, jobs.publisher, topic, workload, actor="operator", reason=reason, now=jobs.now()
    )
    return {"workload": workload, "done": f"{workload}@{previous or 'base'} is the champion again"}
