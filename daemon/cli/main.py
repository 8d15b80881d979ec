"""The command line: `retuned`."""

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retuned.consumers import logs
from retuned.consumers.common.extras import needing
from retuned.consumers.common.memory import size_of
from retuned.consumers.errors import RetunedError
from retuned.consumers.privacy.pseudonyms import load_user_keys
from retuned.daemon.backup.manifest import KEEP
from retuned.daemon.cli import approve, progress, tokens
from retuned.daemon.jsontext import through_json
from retuned.daemon.private import keep_private
from retuned.daemon.remote import RemoteService
from retuned.daemon.settings import Settings, given, load

if TYPE_CHECKING:
    from retuned.daemon.service import Service

DEFAULT_CONFIG = Path("retuned.yaml")
LINES = 40
SOURCES = {"kafka": "broker", "segments": "store"}
"""What is asked for events, as `retuned status` calls it."""

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
    "stores nothing twice, and goes on where it was stopped. The exit status is 1 if a row was refused."
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
    except KeyboardInterrupt:
        return 130
    return status


def parser() -> argparse.ArgumentParser:
    """All commands; docs/reference/cli.md is written from it."""
    root = argparse.ArgumentParser(
        prog="retuned", description="Keeps a language model in step with the business that uses it."
    )
    common = argparse.ArgumentParser(add_help=False)
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

    sound = True
    for mark, name, found in check(settings):
        sound = sound and mark != "FAIL"
        print(f"{mark:4}  {name}: {found}")
    return 0 if sound else 1


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
    if options.json:
        print(json.dumps(status, indent=2))
        return 0
    print("\n".join(_summary(status)))
    return 0


def _summary(status: dict[str, Any]) -> list[str]:
    """The status for a person at a terminal."""
    from retuned.monitors.money.outcomes import OUTCOMES

    ingestion = status["ingestion"]
    broker = {True: "up", False: "DOWN", None: "not asked: no daemon is running"}[ingestion["broker_up"]]
    lines = [
        f"retuned {status['version']}, "
        + (f"running since {status['started_at']}" if status["running"] else "not running")
        + f"; as of {_at(status.get('as_of'))}",
        f"events    {ingestion['interactions']} interactions, {ingestion['feedback']} feedback, "
        f"{ingestion['dead_letters']} dead letters; {SOURCES[ingestion['source']]} {broker}",
    ]
    lines += _refused(ingestion)
    storage = status["storage"]
    rows, taken = (sum(table[what] for table in storage["archived"]) for what in ("rows", "bytes"))
    last = max((table["last_archived_at"] for table in storage["archived"]), default=None)
    lines.append(
        f"storage   warehouse {_megabytes(storage['used'])} of {_megabytes(storage['file'])} used; "
        + (f"archive {rows} rows in {_megabytes(taken)}, the last on {last[:10]}" if last else "nothing archived yet")
    )
    lines += [f"daemon    {one['said']}{' (this one)' if one['this'] else ''}" for one in status.get("daemons", ())]
    lines += [f"warning   {warning}" for warning in status.get("warnings", ())]
    lines += [
        f"paused    {pause['workload'] or 'all workloads'}, by {pause['actor']} since {pause['created_at'][:19]}: "
        f"{pause['reason']}"
        for pause in status["pauses"]
    ]
    lines += progress.queue(status)
    lines += [f"job {job} FAILED: {problem}" for job, problem in status["jobs"]["failures"].items()]
    for name, workload in status["workloads"].items():
        champion = workload["champion"]
        lines += ["", name, f"  champion    {f'{name}@{champion}' if champion else f'none: {name}@base serves'}"]
        if workload["quality"]:
            lines.append(f"  measured    {_at(workload['quality'][0]['created_at'])}")
        for figure in workload["quality"]:
            if figure["model"] == "*":
                lines.append(
                    f"  {figure['metric']:<28} {_number(figure['value'], 3)}"
                    f"  ({_number(figure['low'], 3)} to {_number(figure['high'], 3)},"
                    f" n={figure['n']}, {figure['source']})"
                )
        lines += [
            f"  {one['monitor']:<11} blind: {one['found']} of {one['needed']} {one['what']}"
            for one in workload["blind"]
        ]
        lines += _targets(workload["serving"]["replicas"])
        if rollout := workload["rollout"]:
            lines.append(f"  rollout     {_rollout(name, rollout)}")
        if workload["watch"]:
            watch = workload["watch"]
            lines.append(
                f"  watch       {name}@{watch['version']}: {watch['verdict'].replace('_', ' ')}: "
                f"{'; '.join(watch['reasons'])}"
            )
        for one in workload["approvals"]:
            if one["state"] == "waiting":
                until = f"waits until {_at(one['expires_at'])}"
                lines.append(
                    f"  approval    {name}@{one['version']} {until}: `retuned approve` has what the gate found"
                )
        if workload["drift"]:
            latest = workload["drift"][0]
            lines.append(f"  drift       {_at(latest['created_at'])}: {latest['detail']}")
        if workload["decisions"]:
            decision = workload["decisions"][0]
            verdict = "yes" if decision["outcome"] else "no"
            lines.append(f"  decision    {decision['kind']}: {verdict}: {'; '.join(decision['reasons'])}")
        if workload["runs"]:
            waits = {one["run_id"]: one["reason"] for one in status["queue"]}
            begun = {one["run_id"]: one for one in status["under_way"]}
            lines.append(f"  run         {_run_now(workload['runs'][0], begun, name, waits)}")
        if workload["quarantine"]:
            doubted = ", ".join(f"{row['rows']} {row['reason']}" for row in workload["quarantine"])
            lines.append(f"  quarantine  {doubted}")
        asked = workload["labels"]
        if asked["open"] or asked["answered"]:
            lines.append(f"  labels      {asked['open']} asked of experts, {asked['answered']} answered")
        roi = workload["roi"]
        if roi["ratio"] is not None:
            sums = f"gains {_number(roi['gains'])}, costs {_number(roi['costs'])} {status['currency']}"
            ends = _within(roi["ratio_low"], roi["ratio_high"])
            lines.append(
                f"  ROI         {roi['ratio']:.2f}  ({sums}{ends}), booked until {_at(status.get('booked_at'))}"
            )
        if (became := roi["conversations"]) and became["cost_per_resolved"] is not None:
            counts = ", ".join(f"{became[outcome]} {outcome}" for outcome in OUTCOMES)
            each = f"{became['cost_per_resolved']:.4g} {status['currency']} per resolved conversation"
            lines.append(f"  cost        {each}  (since {became['since']}: {counts})")
        if roi["promotions"] and (change := roi["promotions"][0])["uplift"] is not None:
            before = (
                f"{name}@{change['previous_version'] or 'base'} would have gained {_number(change['counterfactual'])}"
            )
            ends = _within(change["uplift_low"], change["uplift_high"])
            lines.append(f"  uplift      {change['uplift']:.2f} {status['currency']}  ({before}{ends})")
    return lines


def _rollout(workload: str, rollout: dict[str, Any]) -> str:
    """Who answers how much, since when, and what the next step waits for."""
    share = "in shadow for {shadow:.4g}" if rollout["shadow"] is not None else "{share:.4g}"
    parts = f"{workload}@{rollout['version']} {share.format(**rollout)}"
    parts += f" of the conversations since {_at(rollout['step_since'])}"
    if rollout["state"] == "holdback":
        return f"{parts}; {workload}@{rollout['previous_version'] or 'base'} the rest until the watch has ended"
    check = rollout["check"]
    seen = f"{check['verdict'].replace('_', ' ')}: {'; '.join(check['reasons'])}" if check else "not looked at yet"
    return f"{parts}, then {rollout['next_share']:.4g}, not before {_at(rollout['next_at'])}; {seen}"


def _run_now(run: dict[str, Any], begun: dict[str, dict[str, Any]], workload: str, waits: dict[str, str]) -> str:
    """The latest run: how far it is, what it waits for, what came of it, or why it made nothing."""
    if run["id"] in begun:
        return f"under way: {progress.words(begun[run['id']])}"
    if run["state"] == "succeeded":
        scores = run["scores"] or {}
        means = ", ".join(
            f"{model} {_number(scores[model], 3)}" for model in ("candidate", "champion", "base") if model in scores
        )
        return f"succeeded: {workload}@{run['version']}" + (f", holdout score: {means}" if means else "")
    return f"{run['state']}: {waits.get(run['id']) or run['error']}"


def _at(time: str | None) -> str:
    return "unknown" if time is None else f"{time[:19].replace('T', ' ')} UTC"


def _within(low: float | None, high: float | None) -> str:
    return "" if low is None else f", 95% {_number(low)} to {_number(high)}"


def _number(value: float | None, digits: int = 2) -> str:
    """For a person; None is a number that JSON has not, as the infinite cost of an event."""
    return "unknown" if value is None else f"{value:.{digits}f}"


def _size(text: str) -> int:
    try:
        return size_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


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
        print("".join(f"{line}\n" for line in _refused(through_json(service.ingestion()))), end="")
    if not letters:
        print("no dead letters", file=sys.stderr)  # what reads the list gets an empty one
    for letter in letters:
        where = f"{letter['topic']}[{letter['partition']}]@{letter['offset']}"
        print(f"{letter['received_at'][:19]}  {where}  {letter['reason']}: {letter['detail']}")
    return 0


def _targets(replicas: list[dict[str, Any]]) -> Iterator[str]:
    """What each replica serves, or why it does not."""
    for replica in replicas:
        if replica["target"] == "folder" and not replica["problem"]:
            continue
        found = [
            f"{model['model']} {model['state']}" + (f" ({model['detail']})" if model["detail"] else "")
            for model in replica["models"]
        ]
        said = replica["problem"] or ", ".join(found) or "nothing to load"
        yield f"  target      {replica['target']} {replica['replica']}: {said}"


def _refused(ingestion: dict[str, Any]) -> list[str]:
    """Producers that are set aside and what is passed over, for a person at a terminal."""
    lines = [
        f"set aside  {producer['topic']}, "
        + (f"workload {producer['workload']}" if producer["workload"] else "messages without a workload")
        + f": {producer['dead']} of its last {producer['messages']} messages are no events, since "
        f"{producer['since'][:19]}; the last one: {producer['example']}"
        for producer in ingestion.get("set_aside", ())
    ]
    lines += [
        f"passed over  {passed['count']} {passed['reason']}: {passed['explanation']}"
        for passed in ingestion.get("passed_over", ())
    ]
    return lines


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
        exports.write(service.export(wanted), path)
    if path is not None:
        print(f"{path}: {path.stat().st_size:,} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
