"""`retuned plan`: what a model of one's own would take and save."""

import json
import textwrap
from typing import TYPE_CHECKING, Any

import click

from retuned.daemon.cli.command import Common, command, option
from retuned.daemon.operations.owning import plan as operation

if TYPE_CHECKING:
    from retuned.daemon.operations.answers import FeedbackCount, OwnPlan, PlanFigure

WIDTH = 118
NAMES = {
    "answers_a_day": "answers a day",
    "busiest_hour": "busiest hour",
    "input_tokens": "tokens in",
    "output_tokens": "tokens out",
    "longest": "longest",
    "incumbent_cost": "incumbent",
    "serving_cost": "serving",
    "rows_to_teach": "rows to teach",
    "rows_missing": "rows missing",
    "called_wrong": "called wrong",
    "held_out_good": "held out, good",
    "held_out_corrected": "held out, wrong",
    "last_dataset": "last dataset",
    "holdout_needed": "needed",
    "holdout_missing": "missing",
    "days_until_decidable": "until then",
    "training_cost": "training",
}


@command("plan", short_help="Estimate what a model of your own would take and save.")
@click.argument("workload", help="a workload that has events")
@option(operation, "base")
@option(operation, "machine_price", type=float)
@option(operation, "machines")
@option(operation, "gpu_memory", type=float)
@click.option("--json", "as_json", is_flag=True, help="as JSON")
@click.pass_obj
def plan(common: Common, /, as_json: bool, **asked: Any) -> None:
    """Estimate from the logs what a model of your own in place of a commercial API would take and save: traffic and its
    cost, the rows that are there and those that are missing, base models that fit, and whether it pays. Each figure
    stands beside its basis; where one is unknown, the line names what would make it known. Nothing is trained."""
    request = operation.parse({name: value for name, value in asked.items() if value is not None})
    with common.asking() as service:
        found = service.ask(operation, request)
    print(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


def lines(found: "OwnPlan") -> list[str]:
    """Returns a plan in lines for people."""
    shown, before = list[str](), ""
    for figure in found["figures"]:
        shown += _figure(figure, is_repeated=figure["basis"] == before)
        before = figure["basis"]
    counts = ", ".join(map(_counted, found["feedback"])) or "none"
    return [
        f"{found['workload']}: a model of your own in place of the incumbent",
        "",
        *shown,
        *_wrapped(f"{'feedback':16}", counts),
        "",
        f"{'base model':40} {'weights':>8} {'context':>8} {'memory':>8} {'training':>9}",
        *[_base(base) for base in found["bases"]],
        "",
        *[line for sentence in found["verdict"] for line in textwrap.wrap(sentence, WIDTH)],
    ]


def _figure(figure: "PlanFigure", *, is_repeated: bool) -> list[str]:
    value = figure["value"]
    written = "not known" if value is None else f"{_number(value)} {figure['unit']}"
    head = f"{NAMES.get(figure['name'], figure['name']):16}{written:28}"
    return _wrapped(head, "as above" if is_repeated else figure["basis"])


def _counted(one: "FeedbackCount") -> str:
    votes = f": {one['good']:,} good, {one['bad']:,} bad" if one["good"] or one["bad"] else ""
    return f"{one['answers']:,} {one['name']} ({one['source']}{votes})"


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{head} ", subsequent_indent=" " * (len(head) + 1))


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.2f}".removesuffix(".00")


def _base(base: Any) -> str:
    memory = "not known" if base["gigabytes"] is None else f"{base['gigabytes']:.1f} GB"
    hours = "not known" if base["training_hours"] is None else f"{max(base['training_hours'], 0.01):.2f} h"
    about = base["licence"] if base["fits"] else base["reason"]
    mark = "" if base["fits"] else "no: "
    weights = f"{base['parameters'] / 1e9:.1f} B"
    return f"{base['name'][-40:]:40} {weights:>8} {base['context']:>8,} {memory:>8} {hours:>9}  {mark}{about}"
