"""`retuned rows` and `retuned accounts`: look at what is taught, and overrule it."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from retuned.consumers.errors import RetunedError
from retuned.daemon.cli import screen
from retuned.daemon.cli.command import FILE, LINES, Common, command
from retuned.daemon.operations import rows as operations
from retuned.daemon.operations.fields import OfWorkload
from retuned.daemon.process import user_of_machine as user

ROW = ("state", "feedback_id", "source", "account", "timestamp")
ROW_TEXTS = ("reason", "detail", "question", "answer", "decision")
_AUTHOR = click.option("--author", metavar="NAME", help="who decides (default: the user of this machine)")


@command("rows", short_help="List what became of each row, or overrule it.")
@click.argument("what", metavar="WORKLOAD|ACTION", help="keep, drop, pin, edit or release; else the workload")
@click.argument("ids", nargs=-1, metavar="[ID]…", help="of feedback, for an action")
@click.option("--state", help="list those in this state")
@click.option("--reason", help="list those with this reason; of an action, why: it is kept with the decision")
@click.option("--limit", type=click.IntRange(1, 10_000), help=f"list so many (default: {LINES}, as JSON all)")
@click.option("--page", type=click.IntRange(0), default=0, help="pass over so many times the limit")
@click.option("--answer", metavar="TEXT", help="edit: what is taught instead")
@click.option("--answer-file", type=FILE, metavar="FILE", help="edit: a file that holds it; -: standard input")
@_AUTHOR
@click.option("--json", "as_json", is_flag=True, help="as JSON, all of them")
@click.pass_obj
def rows(
    common: Common,
    what: str,
    ids: tuple[str, ...],
    state: str | None,
    reason: str | None,
    limit: int | None,
    page: int,
    answer: str | None,
    answer_file: Path | None,
    author: str | None,
    as_json: bool,
) -> None:
    """List the rows of a workload, each with its state (taught, held_out, waiting, set_aside or overruled) and the
    reason; or decide about rows, by the id of their feedback. keep: teach a row although a rule sets it aside. drop:
    never teach it. pin: keep it, and rehearse it in every dataset. edit: teach another answer instead. release: have
    the rules decide again. The next dataset follows."""
    if what not in operations.ROW_ACTIONS:
        if ids:
            raise RetunedError(
                f"rows {what}: unknown action; expected {', '.join(operations.ROW_ACTIONS)}, or a workload without ids"
            )
        limit = limit if limit or (as_json and not page) else LINES
        asked = operations.rows.parse(
            {"workload": what, "state": state, "reason": reason, "limit": limit, "page": page}
        )
        with common.asking() as service:
            listed = list(service.ask(operations.rows, asked))
        screen.show_rows(listed, ROW, ROW_TEXTS, as_json=as_json, nothing="no such rows")
        if len(listed) == limit and not as_json:
            print(f"{limit} rows are listed; --page and --limit list others, --json lists all")
        return
    if not ids:
        raise RetunedError(f"rows {what}: name at least one row, by the id of its feedback")
    why, taught = needed(reason, f"rows {what}"), _answer(what, answer, answer_file)
    given = {"action": what, "ids": list(ids), "reason": why, "user": author or user(), "answer": taught}
    with common.asking() as service:
        done = service.ask(operations.decide_rows, operations.decide_rows.parse(given))
    print(json.dumps(done, indent=2) if as_json else done["done"])


@command("accounts", short_help="List decisions about accounts, ban or trust one.")
@click.argument(
    "what",
    required=False,
    metavar="[WORKLOAD|ACTION]",
    help="ban, trust or release; else the workload (default: all)",
)
@click.argument("account", required=False, help="for an action, as `retuned rows` lists it")
@click.option("--workload", help="for an action: of this workload (default: of all)")
@click.option("--reason", help="why; kept with the decision, which needs one")
@_AUTHOR
@click.option("--json", "as_json", is_flag=True, help="as JSON")
@click.pass_obj
def accounts(
    common: Common,
    what: str | None,
    account: str | None,
    workload: str | None,
    reason: str | None,
    author: str | None,
    as_json: bool,
) -> None:
    """List what was decided about accounts, or decide. ban: nothing of the account is taught or counts as a vote.
    trust: it counts as an expert. release: have the rules decide again."""
    if what in operations.ACCOUNT_ACTIONS:
        if account is None:
            raise RetunedError(f"accounts {what}: name the account")
        why = needed(reason, f"accounts {what}")
        given = {"action": what, "account": account, "workload": workload, "reason": why, "user": author or user()}
        with common.asking() as service:
            done = service.ask(operations.decide_account, operations.decide_account.parse(given))
        print(json.dumps(done, indent=2) if as_json else done["done"])
        return
    if account is not None:
        raise RetunedError(
            f"accounts {what}: unknown action; expected {', '.join(operations.ACCOUNT_ACTIONS)}, or a workload alone"
        )
    with common.asking() as service:
        decisions = service.ask(operations.accounts, OfWorkload(workload=what))
    fields = ("account", "workload", "action", "author", "decided_at", "reason")
    screen.show_rows(decisions, fields, as_json=as_json, nothing="nobody has decided about an account")


def counts_of(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[dict[str, Any]]:
    """Returns the counts of a dataset as rows: how many rows are in each state, and for which reason."""
    return [
        {"state": state, "reason": reason, "rows": 0, "new": 0, "changed": 0, **count}
        for state, reasons in counts.items()
        for reason, count in reasons.items()
    ]


def needed(reason: str | None, what: str) -> str:
    """The reason of a change, which needs one."""
    if not (reason or "").strip():
        raise RetunedError(f"{what}: give the reason with --reason; it is kept with the decision")
    return str(reason).strip()


def _answer(action: str, answer: str | None, file: Path | None) -> str | None:
    if action != "edit":
        if answer is not None or file is not None:
            raise RetunedError(f"rows {action}: takes no answer; use edit to have another answer taught")
        return None
    return answer_of("rows edit", answer, file)


def answer_of(what: str, answer: str | None, file: Path | None) -> str:
    """An answer that is given as an option or in a file."""
    if (answer is None) == (file is None):
        raise RetunedError(f"{what}: give the answer with --answer or --answer-file")
    if file is None:
        return str(answer)
    try:
        return sys.stdin.read() if file == Path("-") else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RetunedError(f"--answer-file {file}: cannot be read as text ({error})") from error
