"""Operations on the daemon's state: status, ingestion, dead letters, and the API's document."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field

from retuned.daemon.operations.answers import DeadLetter, Ingestion, Replayed, Resumed
from retuned.daemon.operations.fields import Nothing, OfOne
from retuned.daemon.operations.operation import LONG_SECONDS, STREAM_SECONDS, Caller, Request, operation
from retuned.daemon.operations.status_answer import Status

if TYPE_CHECKING:
    from retuned.daemon.operations.local import Local


@operation("GET", "/status", least="viewer", recent_seconds=2.0)
def status(local: "Local", request: Nothing, caller: Caller) -> Status:
    """Get the status of the daemon, as the console and `retuned status` show it."""
    from retuned.daemon import status

    return cast("Status", status.status(local.jobs, local.ingest, local.started_at) | local.process_state())


@operation("GET", "/workloads/{workload}/status", least="viewer", refused=404)
def workload_status(local: "Local", request: OfOne, caller: Caller) -> Status:
    """What the daemon knows of one workload, and nothing of others."""
    from retuned.daemon import status

    workload = local.known(request.workload, caller)
    found = status.status(local.jobs, local.ingest, local.started_at, [workload])
    ingestion = found["ingestion"] | {"latest_dead_letters": []}
    ingestion["set_aside"] = [one for one in ingestion["set_aside"] if one["workload"] == workload]
    for name in ("under_way", "queue", "pauses"):
        found[name] = [one for one in found[name] if one["workload"] in (workload, None)]
    failures = {job: _about(problem, workload) for job, problem in found["jobs"]["failures"].items()}
    found |= {
        "ingestion": ingestion,
        "training": found["under_way"][0] if found["under_way"] else {},
        "jobs": {"failures": {job: problem for job, problem in failures.items() if problem}},
    }
    whole = local.process_state() if caller.workloads is None else {"warnings": [], "daemons": []}
    return cast("Status", found | whole)


def _about(problem: str, workload: str) -> str:
    """The part of a job's error that is about a workload, or about none."""
    parts = re.split(r"; (?=workload )", problem)
    return "; ".join(one for one in parts if not one.startswith("workload ") or one.startswith(f"workload {workload}:"))


@operation("GET", "/ingestion", least="viewer")
def ingestion(local: "Local", request: Nothing, caller: Caller) -> Ingestion:
    """Get the state of ingestion, the producers set aside, and the messages passed over since the start.

    The producer with the latest dead letter comes first.
    """
    from retuned.daemon import status

    return cast("Ingestion", status.ingestion(local.ingest, local.warehouse, local.settings))


class DeadLetters(Request):
    limit: Annotated[int, Field(ge=1, le=99_999, description="the most dead letters to list, newest first")] = 20
    reason: Annotated[str | None, Field(description="only those with this reason code, for example not_json")] = None


@operation("GET", "/dead-letters", least="operator", seconds=STREAM_SECONDS, reads="conversations")
def dead_letters(local: "Local", request: DeadLetters, caller: Caller) -> Iterable[DeadLetter]:
    """List the messages that could not be decoded, newest first, redacted."""
    from retuned.consumers.warehouse.dead_letters import dead_letters

    return cast("Iterable[DeadLetter]", dead_letters(local.warehouse, request.limit, request.reason))


@operation("POST", "/dead-letters/replay", least="operator", seconds=LONG_SECONDS)
def replay(local: "Local", request: Nothing, caller: Caller) -> Replayed:
    """Decode the dead letters again, for example after a fix, and store those that are valid events now."""
    return cast("Replayed", local.intake.replay())


@operation("POST", "/dead-letters/resume", least="operator")
def resume_ingestion(local: "Local", request: Nothing, caller: Caller) -> Resumed:
    """Resume ingestion, regardless of dead letters among the messages that wait on the broker.

    Once these are read, too many dead letters stop ingestion again.
    """
    local.intake.resume()
    return Resumed(done="ingestion reads what waits on the broker, regardless of dead letters")


@operation("GET", "/openapi.json", least="viewer", bound="own")
def openapi(local: "Local", request: Nothing, caller: Caller) -> dict[str, Any]:
    """Get the OpenAPI 3.1 document of this API."""
    from retuned.daemon.operations.openapi import document

    return document()
