"""`retuned approve`: list what waits for a person's approval, approve or refuse it."""

from collections.abc import Mapping
from typing import Any

import click

from retuned.consumers.errors import RetunedError
from retuned.daemon.cli import screen
from retuned.daemon.cli.command import Common, command
from retuned.daemon.operations import releases
from retuned.daemon.operations.fields import OfWorkload
from retuned.daemon.process import user_of_machine as user


@command("approve", short_help="Approve or refuse a version or a dataset that waits, or list them.")
@click.argument("workload", required=False, help="whose waiting version is meant (default: list all)")
@click.argument("version", required=False, help="decide only if it is this one")
@click.option("--refuse", is_flag=True, help="refuse it")
@click.option("--reason", help="why; kept with the decision, which needs one")
@click.option("--json", "as_json", is_flag=True, help="of the list: as JSON")
@click.pass_obj
def approve(
    common: Common, workload: str | None, version: str | None, refuse: bool, reason: str | None, as_json: bool
) -> None:
    """Approve or refuse a version that the gate passed, where rollout.approve is required, or a dataset before it is
    trained on, where dataset.review is; without a workload: list what waits, with what the gate found, or how many
    rows are taught, held out and set aside and why. An approved version comes into service as if the gate had put it
    there: the watch takes it back if it does worse. A refused one is kept, and the gate does not offer it again."""
    if as_json and (refuse or reason):
        raise click.UsageError("--json lists what waits; leave it out to decide")
    with common.asking() as service:
        listed = service.ask(releases.approvals, OfWorkload(workload=workload))
        found = [one for one in listed if one["state"] == "waiting"]
        if as_json or workload is None:
            fields = ("kind", "workload", "version", "champion", "requested_at", "expires_at")
            texts = ("scores", "gate_reasons", "counts")
            screen.show_rows(found, fields, texts, as_json=as_json, nothing="nothing waits for approval")
            return
        if not found:
            raise RetunedError(f"workload {workload}: nothing waits for approval")
        named = [one for one in found if version in (None, one["version"])]
        if not named:
            waits = " and ".join(map(_name, found))
            raise RetunedError(f"workload {workload}: {waits} waits for approval, not {version}")
        if len(named) > 1:
            raise RetunedError(
                f"workload {workload}: {' and '.join(map(_name, found))} wait for approval; name the version of one"
            )
        (one,) = named
        if not (reason or "").strip():
            raise RetunedError(f"workload {workload}: give the reason with --reason; it is kept with the decision")
        given = {
            "id": one["id"],
            "decision": "refuse" if refuse else "approve",
            "reason": reason,
            "user": user(),
        }
        done = service.ask(releases.decide_approval, releases.decide_approval.parse(given))
    print(f"{workload}: {done['done']}")


def _name(approval: Mapping[str, Any]) -> str:
    if approval["kind"] == "dataset":
        return f"dataset {approval['version']} of {approval['workload']}"
    return f"{approval['workload']}@{approval['version']}"
