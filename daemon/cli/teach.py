"""`retuned labels`, `dataset`, `lineage` and `score`."""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from retuned.consumers.common.times import shown
from retuned.daemon.cli import screen
from retuned.daemon.cli.command import LINES, Common, command, option
from retuned.daemon.cli.rows import compared_lines, line, preview_lines
from retuned.daemon.operations import labels as operations
from retuned.daemon.operations.fields import OfWorkload
from retuned.daemon.operations.rows import LineageOf, compare_datasets, datasets, preview_dataset
from retuned.daemon.operations.rows import lineage as lineage_of


@command("labels")
@option(operations.labels, "workload")
@click.option("--json", "as_json", is_flag=True, help="as JSON, with their conversations and contexts")
@click.pass_obj
def labels(common: Common, workload: str | None, as_json: bool) -> None:
    """List the answers that experts are asked to judge."""
    with common.asking() as service:
        waiting = service.ask(operations.labels, OfWorkload(workload=workload))
    if as_json:
        print(json.dumps(waiting, indent=2))
        return
    if not waiting:
        print("no answer waits for an expert", file=sys.stderr)
    for one in waiting[:LINES]:
        screen.lines(_request(one))
    if len(waiting) > LINES:
        print(f"and {len(waiting) - LINES} more; --json has them all")
    if waiting:
        print("Experts answer on the daemon's page /teach, or by feedback with source expert", file=sys.stderr)


def _request(one: Mapping[str, Any]) -> Iterator[str]:
    score = "" if one["score"] is None else f"{one['score']:.2f} "
    yield f"{one['interaction_id']}  {one['workload']}  {score}{one['reason']}: {one['detail']}"
    yield f"    asked     {line(one['question'])}"
    for passage in one["context"] or []:
        yield f"    saw       {line(passage)}"
    for answer in one["answers"] or [one["answer"]]:
        yield f"    answered  {line(answer)}"


@command("dataset", short_help="Look at datasets: the next one, all of a workload, or how two differ.")
@click.argument("action", type=click.Choice(["preview", "list", "compare"]), help="preview, list or compare")
@click.argument("names", nargs=-1, required=True, help="a workload; for compare, two versions of datasets")
@click.option("--limit", type=int, default=3, help="rows shown of each kind (default: 3)")
@click.option("--json", "as_json", is_flag=True, help="as JSON, all rows")
@click.pass_obj
def dataset(common: Common, action: str, names: tuple[str, ...], limit: int, as_json: bool) -> None:
    """preview WORKLOAD: show what the next dataset would teach, hold out and set aside, and why, compared with the last
    one, also where it would be refused. Nothing is written or trained. list WORKLOAD: list its datasets. compare A B:
    show the questions that dataset B added, removed, answers anew or has in another split than dataset A."""
    if len(names) != (2 if action == "compare" else 1):
        what = "two datasets: compare A B" if action == "compare" else f"one workload: {action} WORKLOAD"
        raise click.UsageError(f"dataset {action}: name {what}")
    most = None if as_json else limit
    if action == "list":
        _list_datasets(common, names[0], as_json)
    elif action == "compare":
        _compare_datasets(common, {"before": names[0], "after": names[1], "limit": most}, as_json)
    else:
        _preview_dataset(common, {"workload": names[0], "limit": most}, as_json)


def _list_datasets(common: Common, workload: str, as_json: bool) -> None:
    with common.asking() as service:
        found = service.ask(datasets, datasets.parse({"workload": workload}))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print(f"no dataset of {workload} has been made yet", file=sys.stderr)
    for one in found:
        counts = ", ".join(f"{one[name]} {name}" for name in ("train", "holdout"))
        learned = f"  learned by {', '.join(one['models'])}" if one["models"] else ""
        gone = "  removed by retention" if one["removed_at"] else ""
        print(f"{one['version']}  {shown(one['created_at'])}  {counts}{learned}{gone}")


def _compare_datasets(common: Common, asked: dict[str, Any], as_json: bool) -> None:
    with common.asking() as service:
        found = service.ask(compare_datasets, compare_datasets.parse(asked))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        screen.lines(compared_lines(found))


def _preview_dataset(common: Common, values: dict[str, Any], as_json: bool) -> None:
    asked = preview_dataset.parse(values)
    with common.asking() as service:
        pieces = service.ask(preview_dataset, asked)
        if not as_json:
            screen.lines(preview_lines(json.loads(b"".join(pieces))))
            return
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        print()


@command("lineage")
@click.argument("id", help="of an interaction, a feedback, a row, a dataset or a version")
@click.option("--json", "as_json", is_flag=True, help="as JSON, all of it")
@click.pass_obj
def lineage(common: Common, id: str, as_json: bool) -> None:
    """What came of a piece of feedback, and what a version learned from."""
    with common.asking() as service:
        found = service.ask(lineage_of, LineageOf(id=id))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    screen.lines(_traced(found))
    lists = (found["rows"], found["set_aside"], found["quarantine"], found["removed"])
    more = sum(max(len(rows) - LINES, 0) for rows in lists)
    if more:
        print(f"and {more} more; --json has them all")


def _traced(found: Mapping[str, Any]) -> Iterator[str]:
    for row in found["rows"][:LINES]:
        yield (
            f"{row['workload']}  dataset {row['dataset_version']}  {row['split']:10}  row {row['row_id']}  "
            f"interaction {row['interaction_id']}  feedback {row['feedback_id']}  "
            f"learned by {', '.join(row['models']) or 'none'}"
        )
    for row in found["set_aside"][:LINES]:
        yield (
            f"{row['workload']}  dataset {row['dataset_version']}  {'set aside':10}  row {row['row_id']}  "
            f"interaction {row['interaction_id']}  feedback {row['feedback_id']}  "
            f"{row['reason']}{row['detail'] and ': '}{line(row['detail'])}"
        )
    for row in found["quarantine"][:LINES]:
        yield f"{row['workload']}  quarantine  feedback {row['feedback_id']}  {row['reason']}: {line(row['detail'])}"
    for row in found["removed"][:LINES]:
        yield f"{row['workload']}  {row['kind']} {row['version']}  removed by retention at {shown(row['removed_at'])}"


@command("score", short_help="Score answers by a metric or a scorer, or examine one.")
@click.argument("file", required=False, help="JSON Lines; -: standard input")
@click.option("--exam", is_flag=True, help="score the pairs of the exam in place of a file")
@click.option("--workload", help="by the metric and the settings of this workload")
@click.option(
    "--metric",
    metavar="METRIC",
    help="by this one, for example text, or package.module:function (default: metric.name)",
)
@click.option("--scorer", type=click.Choice(["grounding", "llm", "nli"]), help="by this scorer of groundedness")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.pass_obj
def score(common: Common, /, **options: Any) -> int:
    """Score answers (JSON Lines) without a daemon. By a metric, rows have id, question, approved and answer; by a
    scorer id, question, passages (a list) and answer. Of each row is printed: its id, the score (0 to 1; - where it
    abstains), whether that is an alarm, and why. --exam: score pairs of answers of which people know whether they mean
    the same, those that ship with retuned and those of the workload, and print how often both agree; with --workload
    the result is stored. Exit status: 0: done; 1: a row or the configuration is wrong; 2: the command line is wrong;
    4: by the exam, the metric may not decide."""
    if sum(options[name] is not None for name in ("workload", "metric", "scorer")) > 1:
        raise click.UsageError("give one of --workload, --metric and --scorer")
    from retuned.daemon.cli.score import Options, score

    return score(Options(**options), common.settings())
