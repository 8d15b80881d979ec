"""`retuned plan`: what a model of one's own would take and save."""

from typing import TYPE_CHECKING, Any

import click

from retuned.daemon.cli import screen
from retuned.daemon.cli.command import AS_JSON, Common, command, option
from retuned.daemon.operations.owning import plan as operation

if TYPE_CHECKING:
    from retuned.daemon.operations.answers import PlanFigure


@command("plan", short_help="Estimate what a model of your own would take and save.")
@click.argument("workload", help="a workload that has events")
@option(operation, "base")
@option(operation, "machine_price", type=float)
@option(operation, "machines")
@option(operation, "gpu_memory", type=float)
@AS_JSON
@click.pass_obj
def plan(common: Common, /, as_json: bool, **asked: Any) -> None:
    """Estimate from the logs what a model of your own in place of a commercial API would take and save: traffic and its
    cost, the rows that are there and those that are missing, base models that fit, and whether it pays. Each figure
    stands beside its basis; where one is unknown, the line names what would make it known. Nothing is trained."""
    request = operation.parse({name: value for name, value in asked.items() if value is not None})
    with common.asking() as service:
        found = service.ask(operation, request)
    if as_json:
        screen.print_json(found)
        return
    print(f"{found['workload']}: a model of your own in place of the incumbent\n")
    figures = [
        {"name": figure["name"].replace("_", " "), "value": _value(figure), "basis": figure["basis"]}
        for figure in found["figures"]
    ]
    screen.show_rows(figures, ("name", "value"), ("basis",))
    print()
    screen.show_rows(found["feedback"], ("name", "source", "answers", "good", "bad"), nothing="no feedback")
    print()
    fields = ("name", "parameters", "context", "gigabytes", "training_hours", "licence", "fits", "reason")
    screen.show_rows(found["bases"], fields, nothing="no base model")
    print("", *found["verdict"], sep="\n")


def _value(figure: "PlanFigure") -> str:
    value = figure["value"]
    return "not known" if value is None else f"{screen.value_of('value', value)} {figure['unit']}"
