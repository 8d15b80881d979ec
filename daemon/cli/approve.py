"""`retuned approve`: list what waits for a person's approval, approve or refuse it."""

import argparse
import getpass
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from retuned.consumers.errors import RetunedError
from retuned.daemon.jsontext import through_json

if TYPE_CHECKING:
    from retuned.daemon.service import Decision, Service

DESCRIPTION = (
    "Approve or refuse a version that the gate passed, where rollout.approve is required; without a workload: list the "
    "versions that wait, with what the gate found. An approved version comes into service as if the gate had put it "
    "there: the watch takes it back if it does worse. A refused one is kept, and the gate does not offer it again."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Those of `retuned approve`."""
    command.add_argument("workload", nargs="?", help="whose waiting version is decided on; default: list them all")
    command.add_argument("version", nargs="?", help="decide only if it is this one")
    command.add_argument("--refuse", action="store_true", help="refuse it")
    command.add_argument("--reason", help="why; kept with the decision, which needs one")


def approve(options: argparse.Namespace, service: "Service") -> int:
    """Carry the command out.

    Raises:
        RetunedError: nothing waits, or something else than what is named, or no reason is given.
    """
    found = [one for one in through_json(service.approvals(options.workload)) if one["state"] == "waiting"]
    if options.workload is None:
        print("".join(f"{line}\n" for one in found for line in lines(one)), end="")
        if not found:
            print("no version waits for approval", file=sys.stderr)
        return 0
    if not found:
        raise RetunedError(f"workload {options.workload}: no version waits for approval")
    (one,) = found
    if options.version not in (None, one["version"]):
        raise RetunedError(f"workload {options.workload}: {_name(one)} waits for approval, not {options.version}")
    if not (options.reason or "").strip():
        raise RetunedError(f"workload {options.workload}: give the reason with --reason; it is kept with the decision")
    decision: Decision = "refuse" if options.refuse else "approve"
    done = service.decide_approval(one["id"], decision, options.reason.strip(), _user())
    print(f"{options.workload}: {done['done']}")
    return 0


def lines(approval: dict[str, Any]) -> Iterator[str]:
    """A request that waits, for a person at a terminal."""
    since, until = (_minute(approval[when]) for when in ("requested_at", "expires_at"))
    compared = f"compared with {approval['workload']}@{approval['champion'] or 'base'}"
    yield f"{_name(approval)}  waits since {since}, expires {until}, {compared}"
    if approval["scores"]:
        means = ", ".join(f"{model} {score:.3f}" for model, score in approval["scores"].items())
        yield f"    holdout score: {means}"
    for reason in approval["gate_reasons"] or ():
        yield f"    {reason}"


def _user() -> str:
    """Who runs the command, by name; by number in a container that knows no names."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _name(approval: dict[str, Any]) -> str:
    return f"{approval['workload']}@{approval['version']}"


def _minute(time: str) -> str:
    return f"{time[:16].replace('T', ' ')} UTC"
