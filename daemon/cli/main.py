"""The command line: `retuned`."""

import os
import sys
from itertools import chain

import click

from retuned.consumers.errors import RetunedError
from retuned.daemon.cli import (
    admin,
    approve,
    audit,
    base,
    data,
    explain,
    forget,
    hold,
    memory,
    owning,
    progress,
    rows,
    run,
    teach,
    watch,
)
from retuned.daemon.cli.command import Common, common_options, derived
from retuned.daemon.operations import releases, training
from retuned.daemon.private import keep_private

GROUPS: dict[str, tuple[click.Command, ...]] = {
    "run": (run.run, run.gateway, run.ingest, run.demo),
    "watch": (watch.status, watch.runs, watch.drift, derived(releases.report), data.dead_letters, owning.plan),
    "teach": (
        teach.labels,
        teach.dataset,
        rows.rows,
        rows.accounts,
        memory.memory,
        teach.lineage,
        explain.explain,
        teach.score,
    ),
    "train": (
        derived(training.retrain, progress.follow),
        derived(training.rebase),
        derived(training.pause),
        derived(training.resume),
        derived(training.cancel),
    ),
    "release": (
        watch.versions,
        approve.approve,
        derived(releases.evaluate),
        derived(releases.promote),
        derived(releases.rollback),
        derived(releases.keep_erased),
    ),
    "data": (data.import_, data.export, forget.forget, forget.erasures),
    "admin": (
        base.base,
        admin.check,
        admin.doctor,
        admin.config,
        admin.token,
        audit.audit,
        hold.hold,
        admin.backup,
        admin.restore,
        admin.migrate,
        admin.pseudonym,
    ),
}


class _Root(click.Group):
    """Lists its commands by group."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for group, commands in GROUPS.items():
            with formatter.section(group):
                formatter.write_dl([(str(one.name), summary(one)) for one in commands])


def summary(command: click.Command) -> str:
    """What a command does, in one sentence."""
    return command.short_help or (command.help or "").partition("\n\n")[0].replace("\n", " ")


root = _Root(
    "retuned",
    help="Keeps a language model in step with the business that uses it.",
    params=common_options(),
    commands={str(one.name): one for one in chain(*GROUPS.values())},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
click.version_option(package_name="retuned", message="retuned %(version)s")(root)


def main(arguments: list[str] | None = None) -> int:
    """Parse, act, and turn an error into one line and its exit status (2: the command line itself is wrong)."""
    from retuned.consumers import logs

    keep_private()
    if "_RETUNED_COMPLETE" in os.environ:
        root.main(prog_name="retuned")  # completion of a shell; it exits
    common = Common()
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        with root.make_context("retuned", given, obj=common) as context:
            status: int | None = root.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as ended:  # --help, --version
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:  # whoever reads has enough, as `head` has
        if common.command in {one.name for one in GROUPS["run"]}:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return 0
    except RetunedError as error:
        logs.last_line(f"retuned: {error}")
        return error.exit_status
    except PermissionError as error:  # a file of another user, which the text names
        logs.last_line(f"retuned: {error}")
        return 1
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "retuned":
            raise
        logs.last_line(
            f"retuned: {error.name} is not installed; the images of gateways and ingesters hold what their own command "
            "needs: take the daemon's for others"
        )
        return 1
    except (KeyboardInterrupt, click.Abort):
        return 130
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
