"""`retuned status`, `runs`, `versions` and `drift`."""

import json
from typing import Any

import click

from retuned.daemon.cli.command import Common, command, common_options, derived
from retuned.daemon.operations import releases, state, training
from retuned.daemon.operations.fields import Nothing, OfOne, OfWorkload
from retuned.daemon.operations.operation import Operation, Request

AS_JSON = click.option("--json", "as_json", is_flag=True, help="as JSON")
WATCH = click.option("--watch", is_flag=True, help="show it again every two seconds, until Ctrl-C")


@command(
    "status",
    short_help="Show what needs a person, and the state of each workload.",
    verbose="of one workload: show long texts in whole",
)
@click.argument("workload", required=False, help="all about this one (default: a line of each)")
@AS_JSON
@WATCH
@click.pass_obj
def status(common: Common, workload: str | None, as_json: bool, watch: bool) -> None:
    """Show the state of each workload in a sentence, those that need a person first; or the state of one: its quality,
    what serves, rollout, watch, drift, the latest decision and run, money, and what to do."""
    from retuned.daemon.cli import screen, summary

    def look() -> Any:
        if workload is None:
            return _asked(common, state.status, Nothing())
        return _asked(common, state.workload_status, OfOne(workload=workload))

    def shown() -> Any:
        return summary.of_all(look()) if workload is None else summary.of_one(look(), workload, full=common.verbose)

    if as_json:
        print(json.dumps(look(), indent=2))
    else:
        screen.repeat(shown, watch=watch)


@command("runs", short_help="List the latest retrainings.")
@click.argument("workload", required=False, help="of this one (default: of all)")
@AS_JSON
@WATCH
@click.pass_obj
def runs(common: Common, workload: str | None, as_json: bool, watch: bool) -> None:
    """List the latest retrainings: those under way with their stage, those in line with what they wait for, and the
    results of the others."""
    from retuned.daemon.cli import lists, screen

    def look() -> Any:
        return _asked(common, training.runs, OfWorkload(workload=workload))

    if as_json:
        print(json.dumps(look(), indent=2))
    else:
        screen.repeat(lambda: lists.runs(look()), watch=watch)


@command("versions", short_help="List the latest versions: what the gate found, and who gets them.")
@click.argument("workload", required=False, help="of this one (default: of all)")
@AS_JSON
@click.pass_obj
def versions(common: Common, workload: str | None, as_json: bool) -> None:
    """List the latest versions, the newest first: their scores on held-out questions beside those of the champion,
    whether the gate passed them, and which share of the conversations they answer."""
    from retuned.daemon.cli import lists, screen

    found = _asked(common, releases.versions, OfWorkload(workload=workload))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        screen.show(lists.versions(found))


def _asked(common: Common, operation: Operation[Any, Any], request: Request) -> Any:
    """The answer; the warehouse is free again for a daemon that starts while this is watched."""
    with common.asking() as service:
        return service.ask(operation, request)


drift = click.Group(
    "drift",
    help="Compare what is asked and answered now with the reference, or accept it.",
    params=common_options(),
    commands=[derived(training.check_drift), derived(training.accept_drift)],
)
