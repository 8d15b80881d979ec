"""The command line: `retuned`."""

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retuned.consumers import logs
from retuned.consumers.common.extras import needing
from retuned.consumers.common.memory import size_of
from retuned.consumers.errors import RetunedError
from retuned.consumers.privacy.pseudonyms import load_user_keys
from retuned.daemon.backup.manifest import KEEP
from retuned.daemon.cli import approve, progress, tokens
from retuned.daemon.cli.summary import of_workload, refused, summary
from retuned.daemon.jsontext import through_json
from retuned.daemon.private import keep_private
from retuned.daemon.remote import RemoteService
from retuned.daemon.settings import Settings, given, load

if TYPE_CHECKING:
    from retuned.daemon.service import Service

DEFAULT_CONFIG = Path("retuned.yaml")
LINES = 40

_GATEWAY = (
    "Run an OpenAI-compatible proxy that routes each conversation to a version of its workload's model, publishes what "
    "was answered to Kafka, and takes feedback. It needs gateway.upstreams, the daemon (http) and the broker (kafka), "
    "and goes on while either is away. Needs pip install 'retuned[gateway]'."
)
_INGEST = (
    "Read the topics together with other ingesters of the same kafka.group_id, decode and redact the events, and write "
    "them as Parquet files to object storage (store.objects_url), each event exactly once by a database "
    "(store.postgres_url). Run as many as there are partitions, at most. Health and metrics are on http.port. Needs "
    "privacy.user_key_file, and pip install 'retuned[cluster]'."
)
_PLAN = (
    "Try the configuration and every connection, also beside the daemon that runs on it. With --plan: print what a "
    "training of the workload would load where, in which precision and with which engine, by an estimate, before "
    "anything is loaded. The exit status is 1 if a check failed or the plan does not fit."
)
_DRIFT = (
    "check: compare the windows of a workload now or, of history that was imported, as of a time, and store the check. "
    "accept: the current window is the reference from now on, until another champion comes into service."
)
_IMPORT = (
    "Store the events and the examples in files: JSON Lines or a JSON array, CSV, Parquet, Markdown and text with "
    "headings, also packed (.gz). Taken are events in every format that topics may have, transcripts, questions with "
    "answers, and preferences; they are redacted and deduplicated as on their way from Kafka. Importing a file again "
    "stores nothing twice, and goes on where it was stopped. The exit status is 1 if a row was refused, now or before."
)
_EXPORT = (
    "Write a table, a training set or a routing. Tables: interactions, feedback, dead_letters, offsets, datasets, "
    "dataset_rows, quarantine, runs, pauses, evaluations, decisions, models, aliases, deployments, promotions, "
    "approvals, rollouts, rollout_checks, shadow_answers, shadow_scores, watch_checks, drift_checks, drift_references, "
    "quality, ledger, ledger_left_out, archives, label_requests. Training sets in TRL's forms: chat (corrected and "
    "accepted answers), preference (corrections over the answers that they correct), kto (thumbs); the questions that "
    "models are judged on, and what comes near to them, are left out of these. routing: what serves now, with its "
    "shares, as InferenceModelRewrite of the Gateway API inference extension (--format gateway-api) or for LiteLLM's "
    "proxy (--format litellm)."
)
_BACKUP = (
    "Copy the warehouse (as of one transaction), the archive, models and datasets, reports and the key of pseudonyms "
    "to a folder of its own below DIR. Files that have not changed since the backup before are hard links to its "
    "copies. The key and the conversations are in it: keep it private. The configuration is not in it."
)
_RESTORE = (
    "Check a backup and put it where the configuration says that things are. Reading goes on at the offsets of the "
    "backup: what Kafka still holds is stored again. One that was cut off goes on when it is run again."
)


def main(arguments: list[str] | None = None) -> int:
    """Parse, act, and turn an error into one line and its exit status (2: the command line itself is wrong)."""
    keep_private()
    options = parser().parse_args(arguments)
    logs.configure("text", "debug" if options.verbose else "info")
    try:
        status: int = options.act(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `head` has
        if options.act in (_run, _gateway, _ingest, _demo):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return 0
    except RetunedError as error:
        logs.last_line(f"retuned: {error}")
        return error.exit_status
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "retuned":
            raise
        logs.last_line(
            f"retuned: {error.name} is not installed; the images of gateways and ingesters hold what their own command "
            "needs: take the daemon's for others"
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def parser() -> argparse.ArgumentParser:
    """All commands; docs/reference/cli.md is written from it."""
    root = argparse.ArgumentParser(
        prog="retuned", description="Keeps a language model in step with the business that uses it."
    )
    common = argparse.ArgumentParser(add_help=False)
    root.add_argument("--version", action="version", version=f"%(prog)s {version('retuned')}")
    _add_common(root, config=None, verbose=False)
    _add_common(common, config=argparse.SUPPRESS, verbose=argparse.SUPPRESS)  # what stands before the command stays
    commands = root.add_subparsers(required=True, metavar="command")

    def command(name: str, act: Any, help: str, description: str | None = None) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=description or help, parents=[common])
        added.set_defaults(act=act)
        return added

    run = command("run", _run, "run the daemon")
    run.add_argument(
        "--once",
        action="store_true",
        help="one pass: take in, measure, watch, decide, retrain if it is time, ask experts, archive; then exit",
    )
    command("gateway", _gateway, "run the gateway between apps and model servers", _GATEWAY)
    command("ingest", _ingest, "run an ingester of a cluster: one of several that read the topics together", _INGEST)
    check = command("check", _check, "try the configuration and every connection, or plan a training", _PLAN)
    check.add_argument("--plan", metavar="WORKLOAD", help="try nothing; print what a training would load where")
    check.add_argument("--base", type=Path, metavar="PATH", help="plan: another base model; its config.json is enough")
    check.add_argument("--gpus", type=int, help="plan: on so many GPUs (default: those of this machine)")
    check.add_argument(
        "--gpu-memory", type=_size, metavar="SIZE", help="plan: of each, such as 80GB or 80GiB (default: by nvidia-smi)"
    )
    status = command("status", _status, "what the daemon knows, for people or as JSON")
    status.add_argument("workload", nargs="?", metavar="WORKLOAD", help="of one workload (default: all)")
    status.add_argument("--json", action="store_true", help="as JSON")
    for name, help in (
        ("retrain", "retrain a workload now"),
        ("rebase", "train a workload anew on another base model, and move it there if that is better"),
        ("promote", "put a version into service"),
        ("rollback", "put the previous version back into service"),
        ("report", "write a report of this month so far, for people who decide"),
    ):
        added = command(name, _command, help)
        added.set_defaults(name=name)
        added.add_argument("workload")
        if name == "promote":
            added.add_argument("version")
        if name == "rebase":
            added.add_argument(
                "--base",
                required=True,
                metavar="DIR|NAME",
                help="folder of that model, on the daemon's machine; with train.engine api the provider's name of it",
            )
        if name == "retrain":
            added.add_argument("--now", action="store_true", help="outside of schedule.training_hours, too")
        if name != "report":
            added.add_argument("--reason", help="kept with the decision")
    approve.add_arguments(
        command(
            "approve", _approve, "approve or refuse a version that the gate passed, or list them", approve.DESCRIPTION
        )
    )
    drifted = command(
        "drift", _drift, "compare what is asked and answered now with the reference, or accept it", _DRIFT
    )
    drifted.add_argument("action", choices=("check", "accept"))
    drifted.add_argument("workload")
    drifted.add_argument("--as-of", metavar="TIME", help="check: as it was at this time, ISO 8601, UTC (default: now)")
    drifted.add_argument("--reason", help="accept: why what is asked now is as usual; kept with it")
    for name, help in (
        ("pause", "let no retraining start; one under way stops at a checkpoint"),
        ("resume", "end a pause; what it stopped goes on"),
        ("cancel", "end the retraining of a workload that is under way or in line"),
    ):
        added = command(name, _command, help)
        added.set_defaults(name=name)
        if name == "cancel":
            added.add_argument("workload")
        else:
            added.add_argument("workload", nargs="?", help="default: all workloads")
        if name != "resume":
            added.add_argument("--reason", help="kept with it")
    letters = command(
        "dead-letters", _dead_letters, "list what could not be decoded, decode it again after a fix, or go on"
    )
    letters.add_argument(
        "action",
        choices=("list", "replay", "resume"),
        help="resume: where ingestion stopped for too many of them, take in what waits as it is, then count them anew "
        "(not on a cluster, which does not stop)",
    )
    letters.add_argument("--limit", type=int, default=20, help="how many are listed, newest first (default: 20)")
    letters.add_argument("--reason", help="list those with this reason code only")
    letters.add_argument("--json", action="store_true", help="as JSON, with their payloads")
    labels = command("labels", _labels, "list the answers that experts are asked to judge")
    labels.add_argument("--workload", help="of this workload only")
    labels.add_argument("--json", action="store_true", help="as JSON, with their conversations and contexts")
    imported = command("import", _import, "store the events and the examples in files", _IMPORT)
    imported.add_argument("files", type=Path, nargs="+", metavar="FILE")
    imported.add_argument("--workload", help="of the rows that name none")
    imported.add_argument(
        "--format", choices=("json", "csv", "parquet", "text"), help="json: lines or an array (default: by the name)"
    )
    exported = command("export", _export, "write a table, a training set or a routing to a file", _EXPORT)
    exported.add_argument("what", metavar="TABLE|FORM|routing", help="for example interactions, chat, routing")
    exported.add_argument("--workload", help="of this workload only")
    exported.add_argument("--since", metavar="TIME", help="not older: a date or a time, ISO 8601, UTC")
    exported.add_argument("--until", metavar="TIME", help="older than this")
    exported.add_argument(
        "--format",
        choices=("jsonl", "parquet", "gateway-api", "litellm"),
        help="default: by the name of the file, else jsonl; the last two are of routing",
    )
    exported.add_argument(
        "-o", "--output", type=Path, metavar="PATH", help="default: TABLE.FORMAT in this folder; -: standard output"
    )
    traced = command("lineage", _lineage, "what came of a piece of feedback, and what a version learned from")
    traced.add_argument("id", metavar="ID", help="of an interaction, a feedback, a row, a dataset or a version")
    traced.add_argument("--json", action="store_true", help="as JSON, all of it")
    tokens.add_arguments(
        command("token", _token, "make, list and revoke tokens of the HTTP server", tokens.DESCRIPTION)
    )
    backup = command("backup", _backup, "copy all that retuned keeps to a folder, while the daemon runs", _BACKUP)
    backup.add_argument("folder", type=Path, metavar="DIR", help="on the daemon's machine: new, empty, or of backups")
    backup.add_argument(
        "--keep", type=int, default=KEEP, help=f"older backups than so many are deleted (default: {KEEP})"
    )
    backup.add_argument("--without-key", action="store_true", help="leave out the key of pseudonyms")
    backup.add_argument("--verify", action="store_true", help="make none; check every file of those that are there")
    restore = command("restore", _restore, "put a backup in place, while no daemon runs", _RESTORE)
    restore.add_argument("folder", type=Path, metavar="DIR", help="of the backups")
    restore.add_argument("--generation", metavar="NAME", help="of one of them (default: the newest)")
    restore.add_argument("--replace", action="store_true", help="rename what is in a place already")
    migrated = command(
        "migrate", _migrate, "bring the warehouse to the schema of this version, as a start of the daemon does"
    )
    migrated.add_argument(
        "--to",
        choices=("cluster",),
        help="also have the ingesters of a new cluster (store.postgres_url) begin where the warehouse ends",
    )
    pseudonym = command("pseudonym", _pseudonym, "print what a user is stored as, under each key, newest first")
    pseudonym.add_argument("user")
    configured = command(
        "config",
        _config,
        "print the example configuration, every key explained, or what is in force for a workload",
    )
    configured.add_argument(
        "--workload", help="print what is in force for this workload instead, and where each value comes from"
    )

    demo = command(
        "demo", _demo, "the whole loop on this machine: a broker, a model, its users, and a change of policy"
    )
    demo.add_argument(
        "--folder", type=Path, default=Path("build/demo"), help="where everything is kept (default: build/demo)"
    )
    demo.add_argument(
        "--company", type=Path, metavar="FILE", help="another company in the form of daemon/demo/company.yaml"
    )
    demo.add_argument("--seed", type=int, default=0, help="repeats a run (default: 0)")
    demo.add_argument("--port", type=int, default=0, help="port of the status page (default: any free one)")
    demo.add_argument("--keep", action="store_true", help="leave everything running at the end, until Ctrl-C")
    return root


def _add_common(to: argparse.ArgumentParser, config: Any, verbose: Any) -> None:
    """The options that may stand before the command or behind it, with their defaults."""
    about = f"configuration (default: {DEFAULT_CONFIG}, if it is there)"
    to.add_argument("--config", type=Path, metavar="FILE", default=config, help=about)
    to.add_argument("--verbose", action="store_true", default=verbose, help="log more")


def _file(options: argparse.Namespace) -> Path | None:
    if options.config is None and DEFAULT_CONFIG.exists():
        return DEFAULT_CONFIG
    file: Path | None = options.config
    return file


def _settings(options: argparse.Namespace) -> Settings:
    return load(_file(options))


def _run(options: argparse.Namespace) -> int:
    from retuned.daemon import app

    settings = _settings(options)
    logs.configure(settings.logging.format, "debug" if options.verbose else settings.logging.level)
    if options.once:
        app.run_once(settings)
        return 0
    return app.run(settings)


def _gateway(options: argparse.Namespace) -> int:
    with needing("gateway", "gateway"):
        from retuned.daemon.gateway import app
    settings = _settings(options)
    logs.configure(settings.logging.format, "debug" if options.verbose else settings.logging.level)
    return app.run(settings)


def _ingest(options: argparse.Namespace) -> int:
    with needing("cluster", "store"):
        from retuned.daemon import ingest
    settings = _settings(options)
    logs.configure(settings.logging.format, "debug" if options.verbose else settings.logging.level)
    return ingest.run(settings)


def _check(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if options.plan is not None:
        from retuned.daemon.cli.known import unknown
        from retuned.daemon.cli.plan import plan

        if problem := unknown(settings, options.plan):
            raise RetunedError(problem)
        fits, lines = plan(settings, options.plan, options.base, options.gpus, options.gpu_memory)
        print("\n".join(lines))
        return 0 if fits else 1
    from retuned.daemon.cli.check import check

    marks: list[str] = []
    failed: list[str] = []
    for mark, name, found in check(settings):
        marks.append(mark)
        failed += [name] if mark == "FAIL" else []
        print(f"{mark:4}  {name}: {found}", flush=True)
    warned = f", {marks.count('warn')} with a warning" if "warn" in marks else ""
    result = f"{len(failed)} failed: {', '.join(failed)}" if failed else "none failed"
    print(f"\n{len(marks)} checks{warned}, {result}")
    return 1 if failed else 0


@contextmanager
def _service(settings: Settings, *, create: bool = False) -> Iterator["Service"]:
    """The running daemon's; while none runs, that of the warehouse, opened by this process as `service.opened` does.

    A retraining that this process makes shows its progress.
    """
    remote = RemoteService(settings)
    if remote.is_up():
        yield remote
        return
    from retuned.daemon.service import opened

    with opened(settings, create=create) as local:
        local.jobs.runs.show = progress.Progress().show
        yield local


def _status(options: argparse.Namespace) -> int:
    with _service(_settings(options)) as service:
        status = through_json(service.status())
    if options.workload is not None:
        status = of_workload(status, options.workload)
    if options.json:
        print(json.dumps(status, indent=2))
        return 0
    print("\n".join(summary(status)))
    return 0


def _size(text: str) -> int:
    try:
        return size_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _command(options: argparse.Namespace) -> int:
    arguments = {
        key: getattr(options, key) for key in ("version", "base", "reason", "now") if getattr(options, key, None)
    }
    settings = _settings(options)
    if "base" in arguments and isinstance(settings.for_workload(options.workload).base_named(arguments["base"]), Path):
        arguments["base"] = str(Path(arguments["base"]).absolute())
    with _service(settings) as service:
        answer = service.command(options.name, options.workload, arguments)
    print(f"{answer['workload'] or 'all workloads'}: {answer['done']}")
    return 0


def _approve(options: argparse.Namespace) -> int:
    with _service(_settings(options)) as service:
        return approve.approve(options, service)


def _drift(options: argparse.Namespace) -> int:
    arguments = {key: getattr(options, key) for key in ("as_of", "reason") if getattr(options, key)}
    with _service(_settings(options)) as service:
        answer = service.command(f"{options.action}-drift", options.workload, arguments)
    print(f"{answer['workload']}: {answer['done']}")
    return 0


def _dead_letters(options: argparse.Namespace) -> int:
    with _service(_settings(options)) as service:
        if options.action == "replay":
            done = service.replay()
            print(f"{done['replayed']} of {done['tried']} dead letters are events now; {done['stored']} were stored")
            return 0
        if options.action == "resume":
            print(f"{service.resume_ingestion()['done']}; then too many of them stop ingestion again")
            return 0
        letters = through_json(list(service.dead_letters(options.limit, options.reason)))
        if options.json:
            print(json.dumps(letters, indent=2))
            return 0
        print("".join(f"{line}\n" for line in refused(through_json(service.ingestion()))), end="")
    if not letters:
        print("no dead letters", file=sys.stderr)  # what reads the list gets an empty one
    for letter in letters:
        where = f"{letter['topic']}[{letter['partition']}]@{letter['offset']}"
        print(f"{letter['received_at'][:19]}  {where}  {letter['reason']}: {letter['detail']}")
    return 0


def _lineage(options: argparse.Namespace) -> int:
    with _service(_settings(options)) as service:
        found = through_json(service.lineage(options.id))
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for row in found["rows"][:LINES]:
        print(
            f"{row['workload']}  dataset {row['dataset_version']}  {row['split']:10}  row {row['row_id']}  "
            f"interaction {row['interaction_id']}  feedback {row['feedback_id']}  "
            f"learned by {', '.join(row['models']) or 'none'}"
        )
    for row in found["set_aside"][:LINES]:
        print(
            f"{row['workload']}  dataset {row['dataset_version']}  {'set aside':10}  row {row['row_id']}  "
            f"interaction {row['interaction_id']}  feedback {row['feedback_id']}  "
            f"{row['reason']}{row['detail'] and ': '}{_line(row['detail'])}"
        )
    for row in found["quarantine"][:LINES]:
        print(f"{row['workload']}  quarantine  feedback {row['feedback_id']}  {row['reason']}: {_line(row['detail'])}")
    for row in found["removed"][:LINES]:
        print(f"{row['workload']}  {row['kind']} {row['version']}  removed by retention on {row['removed_at'][:10]}")
    more = sum(max(len(rows) - LINES, 0) for rows in found.values())
    if more:
        print(f"and {more} more; --json has them all")
    return 0


def _labels(options: argparse.Namespace) -> int:
    with _service(_settings(options)) as service:
        waiting = through_json(service.labels(options.workload))
    if options.json:
        print(json.dumps(waiting, indent=2))
        return 0
    if not waiting:
        print("no answer waits for an expert", file=sys.stderr)
    for one in waiting:
        score = "" if one["score"] is None else f"{one['score']:.2f} "
        print(f"{one['interaction_id']}  {one['workload']}  {score}{one['reason']}: {one['detail']}")
        print(f"    asked     {_line(one['question'])}\n    answered  {_line(one['answer'])}")
    return 0


def _line(text: str | None) -> str:
    """A text on one line of a terminal, whatever stands in it."""
    return textwrap.shorten("".join(c if c.isprintable() else " " for c in text or ""), 160, placeholder=" …")


def _token(options: argparse.Namespace) -> int:
    return tokens.token(options, _settings(options))


def _pseudonym(options: argparse.Namespace) -> int:
    settings = _settings(options)
    keys = load_user_keys(settings.privacy, settings.warehouse.path)
    print("\n".join(keys.pseudonyms(options.user)))
    return 0


def _backup(options: argparse.Namespace) -> int:
    from retuned.daemon.cli.backup import backup

    return backup(options, _settings(options), _service)


def _restore(options: argparse.Namespace) -> int:
    from retuned.daemon.cli.backup import restore

    return restore(options, _settings(options))


def _migrate(options: argparse.Namespace) -> int:
    from retuned.daemon.cli.backup import migrate

    return migrate(_settings(options), to_cluster=options.to == "cluster")


def _config(options: argparse.Namespace) -> int:
    from retuned.daemon.cli.example import example
    from retuned.daemon.cli.in_force import in_force
    from retuned.daemon.cli.known import unknown

    if options.workload is None:
        print(example(), end="")
    else:
        settings = _settings(options)
        if problem := unknown(settings, options.workload):
            logs.last_line(f"retuned: {problem}")
        print(in_force(settings, given(_file(options)), options.workload), end="")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from retuned.daemon.demo.run import demo

    return demo(options.folder, options.company, options.seed, options.port, options.keep)


def _import(options: argparse.Namespace) -> int:
    from retuned.daemon.transfer.imports import import_files

    settings = _settings(options)
    with _service(settings, create=True) as service:
        return import_files(options.files, options.format, options.workload, settings, service)


def _export(options: argparse.Namespace) -> int:
    from retuned.daemon.transfer import exports

    settings = _settings(options)
    to_stdout = options.output == Path("-")
    named = options.output.suffix[1:] if options.output and options.output.suffix[1:] in exports.FORMATS else "jsonl"
    format = options.format or named
    if to_stdout and format == "parquet" and sys.stdout.isatty():
        raise RetunedError("export: Parquet is nothing to read; name a file with --output")
    wanted = exports.Export(options.what, format, options.workload, options.since, options.until)
    wanted.check()
    ending = "yaml" if options.what == "routing" else format
    path = None if to_stdout else options.output or Path(f"{options.what}.{ending}")
    with _service(settings) as service:
        pieces = iter(service.export(wanted))
        first = next(pieces, b"")
        exports.write(chain([first], pieces), path)
    if not first:
        print(f"{path or 'export'}: empty, there are no such rows of {options.what}", file=sys.stderr)
    elif path is not None:
        print(f"{path}: {path.stat().st_size:,} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
