"""`retuned labels`, `dataset`, `lineage` and `score`."""

import json
import sys
from typing import Any

import click

from retuned.daemon.cli import screen
from retuned.daemon.cli.command import AS_JSON, Common, command, option
from retuned.daemon.cli.rows import ROW, ROW_TEXTS, counts_of
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
    fields, texts = ("interaction_id", "workload", "score", "reason"), ("detail", "question", "context", "answers")
    rows = waiting if as_json else [{**row, "answers": row["answers"] or row["answer"]} for row in waiting]
    screen.show_rows(rows, fields, texts, as_json=as_json, nothing="no answer waits for an expert")
    if waiting and not as_json:
        print("Experts answer on the daemon's page /teach, or by feedback with source expert", file=sys.stderr)


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
        listed = service.ask(datasets, datasets.parse({"workload": workload}))
    fields = ("version", "created_at", "train", "holdout", "removed_at", "models")
    screen.show_rows(listed, fields, as_json=as_json, nothing=f"no dataset of {workload} has been made yet")


def _compare_datasets(common: Common, asked: dict[str, Any], as_json: bool) -> None:
    with common.asking() as service:
        compared = service.ask(compare_datasets, compare_datasets.parse(asked))
    if as_json:
        screen.print_json(compared)
        return
    screen.show_record({name: value for name, value in compared.items() if name != "rows"})
    fields, texts = ("change", "feedback_id", "source", "split_before", "split_after"), ("why", "question")
    screen.show_rows(compared["rows"], fields, (*texts, "answer_before", "answer_after"), nothing="no row differs")


def _preview_dataset(common: Common, values: dict[str, Any], as_json: bool) -> None:
    asked = preview_dataset.parse(values)
    with common.asking() as service:
        pieces = service.ask(preview_dataset, asked)
        if as_json:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            print()
            return
        preview = json.loads(b"".join(pieces))
    screen.show_record({name: value for name, value in preview.items() if name not in ("rows", "counts")})
    screen.show_rows(counts_of(preview["counts"]), ("state", "reason", "rows", "new", "changed"), nothing="no rows")
    screen.show_rows(preview["rows"], (*ROW, "change"), ROW_TEXTS, nothing="")


@command("lineage")
@click.argument("id", help="of an interaction, a feedback, a row, a dataset or a version")
@AS_JSON
@click.pass_obj
def lineage(common: Common, id: str, as_json: bool) -> None:
    """What came of a piece of feedback, and what a version learned from."""
    with common.asking() as service:
        traced = service.ask(lineage_of, LineageOf(id=id))
    if as_json:
        screen.print_json(traced)
        return
    ids = ("workload", "dataset_version", "row_id", "interaction_id", "feedback_id")
    for name, rows, fields in (
        ("taught", traced["rows"], (*ids, "split", "models")),
        ("set aside", traced["set_aside"], (*ids, "reason", "detail")),
        ("quarantine", traced["quarantine"], ("workload", "feedback_id", "reason", "detail")),
        ("removed by retention", traced["removed"], ("workload", "kind", "version", "removed_at")),
    ):
        if rows:
            print(f"{name}:")
            screen.show_rows(rows, fields)


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
