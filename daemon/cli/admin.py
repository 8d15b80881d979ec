"""`retuned check`, `config`, `token`, `backup`, `restore`, `migrate` and `pseudonym`."""

import json
from pathlib import Path
from typing import Any

import click

from retuned.consumers.errors import RetunedError
from retuned.daemon.cli.command import FILE, Common, command, option
from retuned.daemon.cli.progress import growing
from retuned.daemon.operations import files
from retuned.daemon.roles import ROLES, Role


class _Size(click.ParamType[int]):
    """A number of bytes, such as 80GB or 80GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from retuned.consumers.common.memory import size_of

        try:
            return size_of(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@command("check", short_help="Try the configuration and every connection, or plan a training.")
@click.option("--plan", metavar="WORKLOAD", help="try nothing; print what a training would load where")
@click.option("--base", type=FILE, metavar="PATH", help="plan: another base model; its config.json is enough")
@click.option("--gpus", type=int, help="plan: on so many GPUs (default: those of this machine)")
@click.option(
    "--gpu-memory", type=_Size(), metavar="SIZE", help="plan: of each, such as 80GB or 80GiB (default: by nvidia-smi)"
)
@click.option("--json", "as_json", is_flag=True, help="what was tried, as JSON")
@click.pass_obj
def check(
    common: Common, plan: str | None, base: Path | None, gpus: int | None, gpu_memory: int | None, as_json: bool
) -> int:
    """Try the configuration and every connection, also beside the daemon that runs on it. With --plan: print what a
    training of the workload would load where, in which precision and with which engine, by an estimate, before
    anything is loaded. The exit status is 1 if a check failed or the plan does not fit."""
    settings = common.settings()
    if plan is not None:
        from retuned.daemon.cli.known import unknown
        from retuned.daemon.cli.plan import plan as planned

        if problem := unknown(settings, plan):
            raise RetunedError(problem)
        fits, lines = planned(settings, plan, base, gpus, gpu_memory)
        print("\n".join(lines))
        return 0 if fits else 1
    from retuned.daemon.cli.check import check

    if as_json:
        found = [{"mark": mark, "name": name, "found": text} for mark, name, text in check(settings)]
        print(json.dumps(found, indent=2))
        return int(any(one["mark"] == "FAIL" for one in found))
    marks: list[str] = []
    failed: list[str] = []
    for mark, name, text in check(settings):
        marks.append(mark)
        failed += [name] if mark == "FAIL" else []
        print(f"{mark:4}  {name}: {text}", flush=True)
    warned = f", {marks.count('warn')} with a warning" if "warn" in marks else ""
    result = f"{len(failed)} failed: {', '.join(failed)}" if failed else "none failed"
    print(f"\n{len(marks)} checks{warned}, {result}")
    return 1 if failed else 0


@command("doctor", short_help="Find what is wrong, and what mends it.", verbose="show what is as it should be, too")
@click.option("--json", "as_json", is_flag=True, help="as JSON, all that was looked at")
@click.pass_obj
def doctor(common: Common, as_json: bool) -> int:
    """Try all that `retuned check` tries, and look for mistakes in what arrives: no events or no feedback, feedback
    about answers that are not stored, wrong clocks, messages that cannot be decoded, a metric that may not decide,
    jobs that fail. Each finding has the command or the setting that mends it. The exit status is 1 if anything is
    wrong."""
    from retuned.daemon.cli import screen
    from retuned.daemon.cli.doctor import examine, shown

    found = list(examine(common))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        screen.show(shown(found, full=common.verbose))
    return int(any(one["mark"] == "FAIL" for one in found))


@command("config")
@click.option("--workload", help="print what is in force for this workload instead, and where each value comes from")
@click.pass_obj
def config(common: Common, workload: str | None) -> None:
    """Print the example configuration, every key explained, or what is in force for a workload."""
    from retuned.consumers import logs
    from retuned.daemon.cli.example import example
    from retuned.daemon.cli.in_force import in_force
    from retuned.daemon.cli.known import unknown
    from retuned.daemon.settings import given

    if workload is None:
        print(example(), end="")
        return
    settings = common.settings()
    if problem := unknown(settings, workload):
        logs.last_line(f"retuned: {problem}")
    print(in_force(settings, given(common.file), workload), end="")


@command(
    "token",
    short_help="Make, list and revoke tokens of the HTTP server.",
    help="Make a token for a principal: a person or a program that may ask the daemon over HTTP. The token is printed "
    "once; `http.principals_file` keeps its hash, readable by this user alone, and a running daemon takes it from "
    "there without a restart. Roles, each of which includes those before it: "
    + "; ".join(f"{role} {may}" for role, may in ROLES.items())
    + ".",
)
@click.argument("name", required=False, help="of the principal, as it stands in the access log")
@click.option("--role", type=click.Choice(tuple(ROLES)), help="what it may do")
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    metavar="NAME",
    help="it may ask about this workload alone, a name or a glob such as 'support.*'; may be given several times",
)
@click.option(
    "--no-conversations", is_flag=True, help="it may not read texts of conversations, whatever its role may otherwise"
)
@click.option(
    "--expires",
    metavar="TIME",
    help="the token is refused from then on: a date or a time, ISO 8601, UTC (default: never; with --rotate, as the "
    "one before)",
)
@click.option(
    "--rotate",
    is_flag=True,
    help="make another token for NAME, of the same role; the one before stays valid for 24 hours",
)
@click.option("--revoke", metavar="NAME", help="take all tokens of NAME away, from now on")
@click.option("--list", "list_all", is_flag=True, help="list the principals")
@click.option("--json", "as_json", is_flag=True, help="of the list: as JSON")
@click.pass_obj
def token(
    common: Common,
    name: str | None,
    role: Role | None,
    workloads: tuple[str, ...],
    no_conversations: bool,
    expires: str | None,
    rotate: bool,
    revoke: str | None,
    list_all: bool,
    as_json: bool,
) -> int:
    from retuned.daemon.cli import tokens

    settings = common.settings()
    return tokens.token(
        settings,
        name,
        role,
        expires,
        workloads,
        rotate=rotate,
        revoke=revoke,
        list_all=list_all,
        as_json=as_json,
        conversations=not no_conversations,
    )


@command("backup", short_help="Copy all that retuned keeps to a folder, while the daemon runs.")
@click.argument("folder", type=FILE, metavar="DIR", help="on the daemon's machine: new, empty, or of backups")
@option(files.backup, "keep")
@click.option("--without-key", is_flag=True, help="leave out the key of pseudonyms")
@click.option("--verify", is_flag=True, help="make none; check every file of those that are there")
@click.pass_obj
def backup(common: Common, folder: Path, keep: int, without_key: bool, verify: bool) -> int:
    """Copy the warehouse (as of one transaction), the archive, models and datasets, reports and the key of pseudonyms
    to a folder of its own below DIR. Files that have not changed since the backup before are hard links to its
    copies. The key and the conversations are in it: keep it private. The configuration is not in it."""
    if verify:
        from retuned.daemon.cli.backup import verify as verified

        common.settings()
        return verified(folder)
    with common.asking() as service:
        asked = files.Backup(folder=str(folder.absolute()), keep=keep, with_key=not without_key)
        with growing(folder):
            made = service.ask(files.backup, asked)
    print(f"{made['generation']}: {made['files']} files, {made['bytes']:,} bytes; {made['copied_bytes']:,} are new")
    for old in made["deleted"]:
        print(f"{old}: deleted")
    return 0


@command("restore", short_help="Put a backup in place, while no daemon runs.")
@click.argument("folder", type=FILE, metavar="DIR", help="of the backups")
@click.option("--generation", metavar="NAME", help="of one of them (default: the newest)")
@click.option("--replace", is_flag=True, help="rename what is in a place already")
@click.pass_obj
def restore(common: Common, folder: Path, generation: str | None, replace: bool) -> int:
    """Check a backup and put it where the configuration says that things are. Reading goes on at the offsets of the
    backup: what Kafka still holds is stored again. One that was cut off goes on when it is run again."""
    from retuned.daemon.cli.backup import restore

    return restore(common.settings(), folder, generation, replace=replace)


@command("migrate")
@click.option(
    "--to",
    type=click.Choice(["cluster"]),
    help="also have the ingesters of a new cluster (store.postgres_url) begin where the warehouse ends",
)
@click.pass_obj
def migrate(common: Common, to: str | None) -> int:
    """Bring the warehouse to the schema of this version, as a start of the daemon does."""
    from retuned.daemon.cli.backup import migrate

    return migrate(common.settings(), to_cluster=to == "cluster")


@command("pseudonym")
@click.argument("user", help="as the app names the user")
@click.pass_obj
def pseudonym(common: Common, user: str) -> None:
    """Print what a user is stored as, under each key, newest first."""
    from retuned.consumers.privacy.pseudonyms import load_user_keys

    settings = common.settings()
    print("\n".join(load_user_keys(settings.privacy, settings.warehouse.path).pseudonyms(user)))
