"""`retuned hold`: legal holds."""

import click

from retuned.daemon.cli import screen
from retuned.daemon.cli.command import AS_JSON, Common, command, derived
from retuned.daemon.operations import holds as operations
from retuned.daemon.operations.fields import Nothing


@command("list")
@AS_JSON
@click.pass_obj
def list_(common: Common, as_json: bool) -> None:
    """List all holds: those in force first, then the latest."""
    with common.asking() as service:
        holds = service.ask(operations.holds, Nothing())
    fields = ("id", "workload", "user_id", "placed_at", "placed_by", "released_at", "released_by", "reason")
    screen.show_rows(holds, fields, as_json=as_json, nothing="No hold was ever placed.")


hold = click.Group(
    "hold",
    help="Place, list and release legal holds: what they cover is neither deleted by retention nor erased.",
    short_help="Place, list and release legal holds, which stop deletion.",
    commands={"list": list_, "place": derived(operations.place_hold), "release": derived(operations.release_hold)},
)
