"""`retuned explain`: why a version answers as it does, and which training rows weighed most in an answer."""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from retuned.consumers.common.times import shown
from retuned.consumers.errors import RetunedError
from retuned.daemon.cli import screen
from retuned.daemon.cli.command import Common, command, option
from retuned.daemon.cli.rows import line
from retuned.daemon.operations.explaining import explain as operation


@command("explain", short_help="Explain a version, or an answer by the training rows that weighed most in it.")
@click.argument("id", help="of an interaction, or a version, for example support@3f2a91c0")
@option(operation, "rows")
@click.option("--json", "as_json", is_flag=True, help="as JSON Lines")
@click.pass_obj
def explain(common: Common, /, id: str, rows: int | None, as_json: bool) -> None:
    """Explain a version: its base model, what it was taught, the accounts that taught it, decisions and evaluations.
    Of an interaction, explain the version that answered, and list the training rows that weighed most in the answer, by
    the similarity of their gradients. That loads the model and takes minutes."""
    given = {"id": id} | ({"rows": rows} if rows is not None else {})
    with common.asking() as service:
        for part in _parts(service.ask(operation, operation.parse(given))):
            if part["part"] == "progress":
                _report(part)
            elif as_json:
                print(json.dumps(part), flush=True)
            else:
                screen.lines(_lines(part))
                sys.stdout.flush()
            if part["part"] == "problem":
                raise RetunedError(f"explain: {part['problem']}")


def _parts(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yields the lines of a stream, whose pieces end anywhere."""
    left = b""
    for piece in pieces:
        *lines, left = (left + piece).split(b"\n")
        yield from map(json.loads, lines)


def _report(part: dict[str, Any]) -> None:
    """Shows the progress in a terminal, on one line."""
    if sys.stderr.isatty():
        end = "\n" if part["done"] == part["of"] else "\r"
        print(f"compared {part['done']} of {part['of']} training rows", end=end, file=sys.stderr, flush=True)


def _lines(part: dict[str, Any]) -> list[str]:
    match part["part"]:
        case "answer":
            memory = [f"memory     {', '.join(map(str, part['memory']))}"] if part["memory"] else []
            return [
                f"{part['id']}  {part['workload']}  {shown(part['timestamp'])}  answered by {part['model']}",
                f"asked      {line(part['question'])}",
                f"answered   {line(part['answer'])}",
                *memory,
            ]
        case "version":
            return list(_version(part))
        case "row":
            return [
                f"{part['influence']:+.2f}  row {part['row_id']}  {part['kind']} ({part['source']})  "
                f"interaction {part['interaction_id']}  by {part['user_id'] or 'unknown'}",
                f"       asked   {line(part['question'])}",
                f"       taught  {line(part['completion'])}",
            ]
        case "note":
            return [part["text"]]
        case _:
            return []


def _version(part: dict[str, Any]) -> Iterator[str]:
    base, files = part["base"], part["files"]
    yield f"{part['name']}  {shown(part['created_at'])}"
    yield f"base       {base['path']} (hash {base['hash']}, licence {base['licence']})"
    state = files["problem"] or (
        "unchanged since they were registered" if files["hashes"] else "registered without hashes"
    )
    yield f"files      {state}; {'signed' if files['signed'] else 'not signed'}"
    if part["learned_erased_rows"]:
        yield "erased     it learned rows that were erased since"
    for reason in part["run"]["reasons"] if part["run"] else ():
        yield f"trained    {line(reason)}"
    for one in part["datasets"]:
        start = f"continued {one['parent']}" if one["parent"] else "began from the base model"
        yield f"dataset    {one['version']}  learned by {one['learned_by']}, which {start}"
        if "train" in one:
            gone = f"; removed by retention at {shown(one['removed_at'])}" if one["removed_at"] else ""
            yield (
                f"           {one['train']} rows taught, {one['replay']} of them again; {one['holdout']} held out{gone}"
            )
        yield from (f"           {row['rows']:>6} {row['kind']}  from {row['source']}" for row in one["sources"])
        yield from (
            f"           {row['share']:>6.1%} by {row['account']}  ({row['rows']} rows)" for row in one["accounts"]
        )
        if one["people"] > len(one["accounts"]):
            yield f"           and {one['people'] - len(one['accounts'])} more accounts"
    for row in part["evaluations"]:
        yield f"evaluated  {row['split']:10}  {row['model']:10}  {row['score']:.3f}  ({row['answers']} answers)"
    for row in part["decisions"]:
        done = "" if row["outcome"] else " (no)"
        yield f"decided    {shown(row['created_at'])}  {row['kind']}{done}  by {row['actor']}"
        yield from (f"           {line(reason)}" for reason in row["reasons"])
