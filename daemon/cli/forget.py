"""`retuned forget` and `retuned erasures`."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from retuned.daemon.cli import screen
from retuned.daemon.cli.command import FILE, Common, command, option
from retuned.daemon.operations import erasure as operations
from retuned.daemon.operations.fields import Named, Nothing
from retuned.daemon.operations.operation import Service
from retuned.daemon.process import user_of_machine

EVERY_SECONDS = 1.0


@command("forget", short_help="Erase what a person takes back, from every file.")
@click.option("--user", "user_id", metavar="ID", help="all events of this user, by id or pseudonym")
@click.option("--interaction", "interaction_id", metavar="ID", help="this interaction, or this feedback")
@click.option("--conversation", "conversation_id", metavar="ID", help="all events of this conversation")
@option(operations.forget, "workload")
@option(operations.forget, "after")
@option(operations.forget, "before")
@click.option("--attribute", multiple=True, metavar="NAME=VALUE", help="interactions with this attribute; repeatable")
@option(operations.forget, "reason")
@click.option("--yes", is_flag=True, help="erase; without it, only show what would be erased")
@click.option(
    "--receipt",
    type=FILE,
    metavar="FILE",
    help="write the receipt to this file, signed if audit.key_file is set (default: standard output)",
)
@click.option("--json", "as_json", is_flag=True, help="of what would be erased: as JSON")
@click.pass_obj
def forget(
    common: Common, /, yes: bool, receipt: Path | None, as_json: bool, reason: str | None, **events: Any
) -> None:
    """Erase events and everything that was made of them: rows, archived files, datasets, generated answers, reports,
    and the bytes that they leave in the warehouse's file. Without --yes nothing is changed, and what would be erased
    is shown. Copies that arrive later are not stored. The receipt lists what was found where, with hashes, and what an
    operator still has to do, such as deleting backups."""
    given = {name: list(value) if name == "attribute" else value for name, value in events.items() if value}
    with common.asking() as service:
        if not yes:
            found = service.ask(operations.preview_erasure, operations.preview_erasure.parse(given))
            lines = [*operations.summary({**found}), "nothing was changed; --yes erases it"]
            print(json.dumps(found, indent=2) if as_json else "\n".join(lines))
            return
        about = given | {"user": user_of_machine()} | ({"reason": reason} if reason else {})
        id = service.ask(operations.forget, operations.forget.parse(about))["id"]
        print(f"erasure {id}", file=sys.stderr)
        done = _done(service, id)
        written = json.dumps(done["envelope"] or done["receipt"], indent=2) + "\n"
    if receipt is None:
        print(written, end="")
    else:
        receipt.write_text(written, encoding="utf-8")


@command("erasures", short_help="List erasures, or show the receipt of one.")
@click.argument("id", required=False, help="of one erasure: its state, and its receipt once it is done")
@click.option("--json", "as_json", is_flag=True, help="of the list: as JSON")
@click.pass_obj
def erasures(common: Common, id: str | None, as_json: bool) -> None:
    """List erasures, newest first, or show one with its receipt."""
    with common.asking() as service:
        if id is not None:
            print(json.dumps(service.ask(operations.erasure, Named(id=id)), indent=2))
            return
        listed = service.ask(operations.erasures, Nothing())
    fields = ("requested_at", "id", "state", "error")
    screen.show_rows(listed, fields, as_json=as_json, nothing="Nothing was erased yet.")


def _done(service: Service, id: str) -> dict[str, Any]:
    """Waits for the end of an erasure, and shows why it waits."""
    shown = None
    while True:
        found = service.ask(operations.erasure, Named(id=id))
        if found["state"] == "done":
            return {**found}
        if (state := (found["state"], found["error"])) != shown:
            print(": ".join(filter(None, state)), file=sys.stderr)
            shown = state
        time.sleep(EVERY_SECONDS)
