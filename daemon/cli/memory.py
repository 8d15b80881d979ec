"""`retuned memory`: look at the memory of corrections, and change it."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import click

from retuned.consumers.errors import RetunedError
from retuned.daemon.cli import screen
from retuned.daemon.cli.command import AS_JSON, FILE, Common, command
from retuned.daemon.cli.rows import answer_of, needed
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
@AS_JSON
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
            fields, texts = ("id", "state", "source", "author", "since"), ("reason", "question", "answer")
            entries = _entries(service, names[0], state)
            screen.show_rows(entries, fields, texts, as_json=as_json, nothing="no such entries")
            return
        if action == "show":
            entry = service.ask(operations.memory_entry, operations.EntryOf(id=names[0]))
            screen.show_record({**entry}, as_json=as_json)
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
    entries: dict[str, Any] = {}
    for page in count():
        given = {"workload": workload, "state": state, "limit": PAGE, "page": page}
        listed = service.ask(operations.memory_entries, operations.memory_entries.parse(given))
        entries |= {entry["id"]: entry for entry in listed}
        if len(listed) < PAGE:
            break
    return [*entries.values()]
