"""What all commands of the command line share, and commands that are one operation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

import click

from retuned.daemon.operations.operation import Operation, Placeholder, Service

if TYPE_CHECKING:
    from retuned.daemon.settings import Settings

DEFAULT_CONFIG = Path("retuned.yaml")
LINES = 40
"""Longer lists end here, unless they are JSON."""
FILE = click.Path(path_type=Path)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="as JSON, with all fields and rows")


@dataclass
class Common:
    """The options that may stand before a command or behind it, and the command."""

    config: Path | None = None
    verbose: bool = False
    command: str = ""

    @property
    def file(self) -> Path | None:
        """The configuration file; None: defaults alone."""
        return DEFAULT_CONFIG if self.config is None and DEFAULT_CONFIG.exists() else self.config

    def settings(self) -> "Settings":
        """Raises a ConfigurationError; see `load`."""
        from retuned.daemon.settings import load

        return load(self.file)

    def log_as_configured(self, settings: "Settings") -> None:
        """Of a command that goes on for long."""
        from retuned.consumers import logs

        logs.configure(settings.logging.format, "debug" if self.verbose else settings.logging.level)

    @contextmanager
    def asking(self, settings: "Settings | None" = None, *, create: bool = False) -> Iterator[Service]:
        """The running daemon; while none runs, the warehouse, opened by this process.

        A retraining that this process makes shows its progress.
        """
        from retuned.daemon.client import Client

        settings = settings or self.settings()
        client = Client(settings)
        if client.is_up():
            yield client
            return
        from retuned.daemon.cli.progress import Progress
        from retuned.daemon.operations.local import opened

        with opened(settings, create=create, show=Progress().show) as local:
            yield local


class Command(click.Command):
    """Takes --config and --verbose, too.

    Args:
        verbose: what --verbose shows beside the usual output; None: it logs more.
    """

    def __init__(self, *names: Any, verbose: str | None = None, **more: Any) -> None:
        super().__init__(*names, **more)
        self.params += common_options(verbose)
        self._logs_more = verbose is None

    def invoke(self, ctx: click.Context) -> Any:
        from retuned.consumers import logs

        common = ctx.find_object(Common)
        assert common is not None
        common.command = ctx.command_path.split()[1]
        logs.configure("text", "debug" if common.verbose and self._logs_more else "info")
        return super().invoke(ctx)


def common_options(verbose: str | None = None) -> list[click.Parameter]:
    """What stands behind the command wins."""

    def keep(ctx: click.Context, option: click.Parameter, value: Any) -> None:
        common = ctx.ensure_object(Common)
        if value:
            setattr(common, str(option.name), value)

    about = f"configuration (default: {DEFAULT_CONFIG}, if it is there)"
    kept: dict[str, Any] = {"expose_value": False, "callback": keep}
    return [
        click.Option(["--config"], type=FILE, metavar="FILE", help=about, **kept),
        click.Option(["--verbose"], is_flag=True, help=verbose or "log more", **kept),
    ]


def command(name: str, **more: Any) -> Callable[[Callable[..., int | None]], Command]:
    """A command of this name; the docstring of its function is its help."""
    return click.command(name, cls=Command, **more)


def option(operation: Operation[Any, Any], name: str, **changes: Any) -> Callable[[Any], Any]:
    """Declares the option of a field of an operation's request."""
    return click.option(_dashed(name), **_of_field(operation, name) | changes)


def derived(operation: Operation[Any, Any], follow: Callable[[Service, Any], int] | None = None) -> Command:
    """The command that asks for one operation and prints what was done.

    Args:
        follow: what --follow does then with the answer; returns the exit status.
    """

    @click.pass_obj
    def ask(common: Common, /, is_followed: bool = False, **values: Any) -> int:
        given = {name: value for name, value in values.items() if value not in (None, False)}
        with common.asking() as service:
            answer = service.ask(operation, operation.parse(given))
            print(f"{answer['workload'] or 'all workloads'}: {answer['done']}", flush=True)
            return follow(service, answer) if follow and is_followed else 0

    parameters = [_parameter(operation, name) for name in operation.request.model_fields]
    if follow is not None:
        about = "show its stages and its progress until it ends; the exit status is 1 if no version came of it"
        parameters.append(click.Option(["--follow", "is_followed"], is_flag=True, help=about))
    about = " ".join([operation.summary, operation.description]).strip()
    name = (operation.command or operation.name).split()[-1]
    return Command(name, callback=ask, params=parameters, help=about, short_help=operation.summary)


def _parameter(operation: Operation[Any, Any], name: str) -> click.Parameter:
    """Required fields and those of the path are arguments, unless they have a placeholder; others are options."""
    field = operation.request.model_fields[name]
    is_required = field.is_required()
    if name in operation.path_fields or (is_required and _placeholder(field) is None):
        return click.Argument([name], required=is_required, help=field.description)
    return click.Option([_dashed(name)], required=is_required, **_of_field(operation, name))


def _of_field(operation: Operation[Any, Any], name: str) -> dict[str, Any]:
    """What click is told of a field."""
    field = operation.request.model_fields[name]
    about, default, placeholder = field.description or "", field.default, _placeholder(field)
    if field.annotation is bool:
        return {"is_flag": True, "help": about}
    (kind,) = (one for one in get_args(field.annotation) or (field.annotation,) if one is not NoneType)
    declared = {
        "type": click.INT if kind is int else None,
        "callback": _absolute if placeholder == "DIR" else None,
        "metavar": placeholder or name.upper(),
        "help": about,
    }
    if field.is_required():  # a default, even None, would do in its place
        return declared
    return declared | {"default": default, "help": about if default is None else f"{about} (default: {default})"}


def _placeholder(field: Any) -> str | None:
    return next((one.name for one in field.metadata if isinstance(one, Placeholder)), None)


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _absolute(_: click.Context, __: click.Parameter, path: str | None) -> str | None:
    """The daemon may have another working directory."""
    return path and str(Path(path).absolute())
