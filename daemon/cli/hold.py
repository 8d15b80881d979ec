"""`retuned hold`: legal holds."""

import json
from typing import Any

import click

from retuned.consumers.common.times import shown
from retuned.daemon.cli.command import Common, command, derived
from retuned.daemon.operations import holds as operations
from retuned.daemon.operations.fields import Nothing


@command("list")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
@click.pass_obj
def list_(common: Common, as_json: bool) -> None:
    """List all holds: those in force first, then the latest."""
    from retuned.daemon.cli import screen

    with common.asking() as service:
        found: Any = service.ask(operations.holds, Nothing())
    if as_json:
        print(json.dumps(found, indent=2))
        return
    columns = ("HOLD", "WORKLOAD", "USER", "PLACED", "RELEASED", "REASON")
    rows = [
        (
            one["id"],
            one["workload"] or "all",
            screen.printable(one["user_id"] or "all"),
            f"{shown(one['placed_at'])} by {screen.printable(one['placed_by'])}",
            f"{shown(one['released_at'])} by {screen.printable(one['released_by'])}" if one["released_at"] else "",
            screen.printable(one["reason"]),
        )
        for one in found
    ]
    screen.show([screen.table(columns, rows, most=1)] if rows else [screen.text("No hold was ever placed.")])


hold = click.Group(
    "hold",
    help="Place, list and release legal holds: what they cover is neither deleted by retention nor erased.",
    short_help="Place, list and release legal holds, which stop deletion.",
    commands={"list": list_, "place": derived(operations.place_hold), "release": derived(operations.release_hold)},
)
