"""`retuned import`, `export` and `dead-letters`."""

import sys
from itertools import chain
from pathlib import Path
from typing import Any

import click

from retuned.consumers.errors import RetunedError
from retuned.daemon.cli import screen
from retuned.daemon.cli.command import AS_JSON, FILE, Common, command, option
from retuned.daemon.cli.progress import moving
from retuned.daemon.operations.fields import Nothing
from retuned.daemon.operations.files import Export, FileIntake
from retuned.daemon.operations.files import export as export_of
from retuned.daemon.operations.state import dead_letters as listed
from retuned.daemon.operations.state import ingestion, replay, resume_ingestion


@command("import", short_help="Store the events and the examples in files.")
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE…", help="one or more")
@click.option("--workload", help="of the rows that name none")
@click.option(
    "--format",
    type=click.Choice(["json", "csv", "parquet", "text"]),
    help="json: lines or an array (default: by the name)",
)
@click.option("--dry-run", is_flag=True, help="read the files and report what they hold; nothing is stored")
@click.pass_obj
def import_(common: Common, files: tuple[Path, ...], workload: str | None, format: str | None, dry_run: bool) -> int:
    """Store the events and the examples in files: JSON Lines or a JSON array, CSV, Parquet, Markdown and text with
    headings, also packed (.gz). Taken are events in every format that topics may have, conversations and preferences
    as fine-tuning services take them, and questions with answers; they are redacted and deduplicated as on their way
    from Kafka. Importing a file again stores nothing twice, and goes on where it was stopped. The exit status is 1 if a
    row was refused, now or before."""
    from retuned.daemon.transfer.imports import DryRun, import_files

    settings = common.settings()
    if dry_run:
        return import_files(list(files), format, workload, settings, DryRun(settings))
    with common.asking(settings, create=True) as service:
        return import_files(list(files), format, workload, settings, FileIntake(service))


@command("export", short_help="Write a table or a training set to a file.")
@click.argument("what", metavar="TABLE|FORM", help="for example interactions or chat")
@option(export_of, "workload")
@option(export_of, "since")
@option(export_of, "until")
@option(export_of, "texts")
@click.option("--format", help="jsonl or parquet (default: by the name of the file, else jsonl)")
@click.option(
    "-o", "--output", type=FILE, metavar="PATH", help="default: TABLE.FORMAT in this folder; -: standard output"
)
@click.pass_obj
def export(
    common: Common,
    what: str,
    workload: str | None,
    since: str | None,
    until: str | None,
    texts: bool,
    format: str | None,
    output: Path | None,
) -> None:
    """Write a table or a training set. Tables: interactions, feedback, dead_letters, offsets, datasets,
    dataset_rows, quarantine, row_states, row_decisions, account_decisions, runs, pauses, evaluations, decisions,
    models, aliases, deployments, promotions, approvals, memory_entries, memory_uses, rollouts, rollout_checks,
    shadow_answers, shadow_scores,
    exams, watch_checks, drift_checks, drift_references, quality, ledger, ledger_left_out, archives, label_requests.
    Training sets in TRL's forms: chat (corrected and accepted answers), preference (corrections over the answers
    that they correct), kto (thumbs); the questions that models are judged on, and what comes near to them, are left
    out of these."""
    from retuned.daemon.transfer import exports

    settings = common.settings()
    named = output.suffix[1:] if output and output.suffix[1:] in exports.FORMATS else "jsonl"
    format = format or named
    if output == Path("-") and format == "parquet" and sys.stdout.isatty():
        raise RetunedError("export: Parquet is nothing to read; name a file with --output")
    exports.Export(what, format, workload, since, until, texts).check()
    path = None if output == Path("-") else output or Path(f"{what}.{format}")
    given: dict[str, Any] = {"what": what, "format": format, "workload": workload, "since": since, "until": until}
    given |= {"texts": True} if texts else {}
    with common.asking(settings) as service, moving(str(path), shown=path is not None) as read:
        pieces = iter(service.ask(export_of, Export.model_validate(given)))
        first = next(pieces, b"")
        exports.write(read(chain([first], pieces)), path)
    if not first:
        print(f"{path or 'export'}: empty, there are no such rows of {what}", file=sys.stderr)
    elif path is not None:
        print(f"{path}: {path.stat().st_size:,} bytes", file=sys.stderr)


@command("dead-letters")
@click.argument(
    "action",
    type=click.Choice(["list", "replay", "resume"]),
    metavar="list|replay|resume",
    help="resume: where ingestion stopped for too many of them, take in what waits as it is, then count them anew (not "
    "on a cluster, which does not stop)",
)
@option(listed, "limit")
@option(listed, "reason")
@AS_JSON
@click.pass_obj
def dead_letters(common: Common, action: str, limit: int, reason: str | None, as_json: bool) -> None:
    """List what could not be decoded, decode it again after a fix, or go on."""
    with common.asking() as service:
        if action == "replay":
            done = service.ask(replay, Nothing())
            print(f"{done['replayed']} of {done['tried']} dead letters are events now; {done['stored']} were stored")
            return
        if action == "resume":
            resumed = service.ask(resume_ingestion, Nothing())
            print(f"{resumed['done']}; then too many of them stop ingestion again")
            return
        letters = list(service.ask(listed, listed.parse({"limit": limit, "reason": reason})))
        if not as_json:
            from retuned.daemon.cli.summary import refused

            answer = service.ask(ingestion, Nothing())
            screen.lines(refused({**answer}))
    fields = ("received_at", "topic", "partition", "offset", "reason")
    screen.show_rows(letters, fields, ("detail",), as_json=as_json, nothing="no dead letters")
