"""`retuned memory`: look at the memory of corrections, and change it."""

import json
import sys
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import click

from retuned.consumers.common.times import shown
from retuned.consumers.errors import RetunedError
from retuned.daemon.cli import screen
from retuned.daemon.cli.command import FILE, LINES, Common, command
from retuned.daemon.cli.rows import answer_of, line, needed
from retuned.daemon.operations import memory as operations
from retuned.daemon.operations.operation import Service
from retuned.daemon.process import user_of_machine as user

PAGE = 10_000
"""Entries of one request."""
_DONE = ("add", *operations.ACTIONS)


@command("memory", short_help="List the approved answers that apply at once, or change them.")
@click.argument("action", metavar="ACTION", help=f"list, show, {', '.join(_DONE)}")
@click.argument("names", nargs=-1, metavar="WORKLOAD|ID…", help="the workload to list or add to; else ids of entries")
@click.option("--state", help="list: those in this state, for example active")
@click.option("--question", metavar="TEXT", help="add: what users ask")
@click.option("--system", metavar="TEXT", help="add: the system prompt of the app, without which no request matches")
@click.option("--answer", metavar="TEXT", help="add, edit: the approved answer")
@click.option("--answer-file", type=FILE, metavar="FILE", help="add, edit: a file that holds it; -: standard input")
@click.option("--reason", help="why; kept with the change, which needs one")
@click.option("--author", metavar="NAME", help="who decides (default: the user of this machine)")
@click.option("--json", "as_json", is_flag=True, help="as JSON, all of them")
@click.pass_obj
def memory(
    common: Common,
    action: str,
    names: tuple[str, ...],
    state: str | None,
    question: str | None,
    system: str | None,
    answer: str | None,
    answer_file: Path | None,
    reason: str | None,
    author: str | None,
    as_json: bool,
) -> None:
    """List the memory of a workload, or change entries by their ids. show: print an entry with the feedback that it
    rests on. add: add an approved answer to a question. edit: replace an entry by one with another answer. freeze: stop
    applying an entry. unfreeze: apply it again. remove: stop applying it for good. Gateways follow within seconds."""
    if action not in ("list", "show", *_DONE):
        raise RetunedError(f"memory {action}: unknown action; expected list, show, {', '.join(_DONE)}")
    if not names or (action in ("list", "show", "add", "edit") and len(names) > 1):
        raise RetunedError(
            f"memory {action}: name {'one workload' if action in ('list', 'add') else 'an entry by its id'}"
        )
    shared = {"user": author or user()}
    with common.asking() as service:
        if action == "list":
            _list(_entries(service, names[0], state), as_json=as_json)
            return
        if action == "show":
            found = service.ask(operations.memory_entry, operations.EntryOf(id=names[0]))
            if as_json:
                print(json.dumps(found, indent=2))
            else:
                screen.lines(_shown(found))
            return
        given: dict[str, Any] = shared | {"reason": needed(reason, f"memory {action}")}
        if action == "add":
            given |= {"workload": names[0], "answer": answer_of("memory add", answer, answer_file)}
            asked_in = [{"role": "system", "content": system}] if system else []
            if not question:
                raise RetunedError("memory add: give what users ask with --question")
            given["messages"] = [*asked_in, {"role": "user", "content": question}]
            done = service.ask(operations.add_memory, operations.add_memory.parse(given))
        else:
            given |= {"action": action, "ids": list(names)}
            if action == "edit":
                given["answer"] = answer_of("memory edit", answer, answer_file)
            done = service.ask(operations.decide_memory, operations.decide_memory.parse(given))
    print(json.dumps(done, indent=2) if as_json else done["done"])


def _entries(service: Service, workload: str, state: str | None) -> list[Any]:
    """Returns all entries of a workload, or all in a state. One that changes meanwhile may move to a later page."""
    found: dict[str, Any] = {}
    for page in count():
        given = {"workload": workload, "state": state, "limit": PAGE, "page": page}
        entries = service.ask(operations.memory_entries, operations.memory_entries.parse(given))
        found |= {one["id"]: one for one in entries}
        if len(entries) < PAGE:
            break
    return [*found.values()]


def _list(found: list[Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for one in found[:LINES]:
        screen.lines(_lines(one))
    if not found:
        print("no such entries", file=sys.stderr)
    if len(found) > LINES:
        print(f"and {len(found) - LINES} more; --json has them all")


def _lines(entry: Mapping[str, Any]) -> Iterator[str]:
    by = f"{entry['source']}{' ' + entry['author'] if entry['author'] else ''}"
    yield f"{entry['id']}  {entry['state']:10}  {by}, {shown(entry['since'])}"
    if entry["reason"]:
        yield f"    why       {line(entry['reason'])}"
    yield f"    asked     {line(entry['question'])}"
    yield f"    answer    {line(entry['answer'])}"


def _shown(entry: Mapping[str, Any]) -> Iterator[str]:
    yield from _lines(entry)
    yield f"    added     {shown(entry['added_at'])}, changed {shown(entry['changed_at'])}"
    if entry["feedback_ids"]:
        yield f"    feedback  {', '.join(entry['feedback_ids'])}"
    related = (
        "the same question only" if entry["threshold"] is None else f"similarity of {entry['threshold']:.2f} or more"
    )
    yield f"    helps     {related}"
