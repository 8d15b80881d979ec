"""`retuned explain`: why a version answers as it does, and which training rows weighed most in an answer."""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from retuned.consumers.errors import RetunedError
from retuned.daemon.cli import screen
from retuned.daemon.cli.command import Common, command, option
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
                screen.show_record({name: value for name, value in part.items() if name != "part"})
                print(flush=True)
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
