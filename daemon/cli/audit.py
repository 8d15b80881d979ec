"""`retuned audit`: who changed what, and who read conversations."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retuned.consumers.errors import ConfigurationError
from retuned.daemon.cli import screen
from retuned.daemon.cli.command import AS_JSON, FILE, Common, command, option
from retuned.daemon.operations import audit as operations
from retuned.daemon.operations.fields import Nothing

if TYPE_CHECKING:
    from retuned.consumers.warehouse.checkpoints import Checkpoint, Verdict

SHOWN = 20
"""Problems that are printed."""


@click.group("audit", short_help="Show, export and verify who changed what and who read conversations.")
def audit() -> None:
    """Show, export and verify the audit: each change by a person or a rule, each answer that held conversations, and
    each request that was refused."""


@command("list", short_help="List the latest rows.")
@option(operations.audit, "workload")
@option(operations.audit, "actor")
@option(operations.audit, "action")
@option(operations.audit, "outcome")
@option(operations.audit, "limit")
@AS_JSON
@click.pass_obj
def list_(common: Common, /, as_json: bool, **values: Any) -> None:
    """List the latest rows, newest first."""
    given = {name: value for name, value in values.items() if value is not None}
    with common.asking() as service:
        rows = service.ask(operations.audit, operations.audit.parse(given))
    fields = ("sequence", "created_at", "actor", "action", "outcome", "workload", "subject", "reason")
    screen.show_rows(rows, fields, as_json=as_json, nothing="No such row.")


@command("export", short_help="Write all rows to a file that can be verified.")
@click.option("-o", "--output", type=FILE, metavar="PATH", help="default: standard output")
@click.pass_obj
def export(common: Common, output: Path | None) -> None:
    """Write all rows, oldest first, as JSON Lines. `retuned audit verify FILE` verifies them anywhere."""
    from retuned.daemon.transfer import exports

    with common.asking() as service:
        exports.write(iter(service.ask(operations.audit_log, Nothing())), output)


@command("verify", short_help="Verify that no row was changed, removed or reordered.")
@click.argument("file", type=FILE, required=False, metavar="[FILE]", help="an export, or a warehouse that is not open")
@click.option("--checkpoints", type=FILE, metavar="FILE", help="signed checkpoints (default: audit.checkpoint_file)")
@click.option(
    "--key", type=FILE, metavar="FILE", help="public key of the checkpoints (default: audit.key_file with .pub)"
)
@click.option("--json", "as_json", is_flag=True, help="as JSON")
@click.pass_obj
def verify(common: Common, file: Path | None, checkpoints: Path | None, key: Path | None, as_json: bool) -> int:
    """Verify the audit of the daemon, of an export or of a warehouse file: that no row was changed, removed or
    reordered and, by signed checkpoints, that its end was not cut off and that it was not written anew. A file and
    checkpoints with a key need neither a daemon nor a configuration. The exit status is 1 if anything is wrong, also if
    the file of checkpoints does not exist, is empty, or lacks a checkpoint that the audit names."""
    known, verdict = _compared(common, file, checkpoints, key)
    if verdict.problems and file is None:
        time.sleep(1)  # a running daemon writes the row of a checkpoint first, and the checkpoint right after it
        known, verdict = _compared(common, file, checkpoints, key)
    if as_json:
        print(json.dumps(asdict(verdict), indent=2))
        return int(bool(verdict.problems))
    for problem in verdict.problems[:SHOWN]:
        print(problem)
    if len(verdict.problems) > SHOWN:
        print(f"and {len(verdict.problems) - SHOWN} more problems")
    agree = (
        f"none of {verdict.made} checkpoints was compared"
        if known is None
        else f"{verdict.checkpoints} of {len(known)} checkpoints agree"
    )
    result = f"{len(verdict.problems)} problems" if verdict.problems else "sound"
    print(f"{verdict.size} rows, last hash {verdict.hash}; {agree}: {result}")
    return int(bool(verdict.problems))


@command("verify-receipt", short_help="Verify the receipt of an erasure.")
@click.argument("file", type=FILE, help="a signed receipt, from `retuned forget --receipt`")
@click.option("--key", type=FILE, required=True, metavar="FILE", help="public key of who signed it")
def verify_receipt(file: Path, key: Path) -> None:
    """Verify that a receipt was signed with a key and is unchanged, and print its content. It needs neither a daemon
    nor a configuration."""
    from retuned.consumers.common.signing import BadSignature, verify
    from retuned.daemon.erasure.receipt import TYPE

    try:
        envelope = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"receipt {file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise BadSignature(f"receipt {file}: expected a signed receipt in JSON") from error
    print(json.dumps(json.loads(verify(envelope, key, TYPE)), indent=2))


@command("verify-version", short_help="Verify the signature of a version.")
@click.argument("folder", type=FILE, help="of the version")
@click.option("--key", type=FILE, required=True, metavar="FILE", help="public key of who signed it")
def verify_version(folder: Path, key: Path) -> None:
    """Verify that a version was signed with a key and that none of its files was changed, added or removed, and print
    its bill of materials. It needs neither a daemon nor a configuration. The model card, README.md, is not signed."""
    from retuned.retrain.release.signature import check

    print(json.dumps(check(folder, key), indent=2))


@command("keygen", short_help="Make the key that signs checkpoints, receipts and versions.")
@click.argument("file", type=FILE, help="of the private key; the public one is FILE.pub")
def keygen(file: Path) -> None:
    """Make an Ed25519 key pair in PEM. Name the private key in audit.key_file, and give the public one, FILE.pub, to
    whoever verifies."""
    from retuned.consumers.common.signing import key_id, make_key, public_key

    public = make_key(file)
    print(f"{file}: private key; set audit.key_file to it\n{public}: public key {key_id(public_key(public))}")


for one in (list_, export, verify, verify_receipt, verify_version, keygen):
    audit.add_command(one)


def _compared(
    common: Common, file: Path | None, checkpoints: Path | None, key: Path | None
) -> "tuple[list[Checkpoint] | None, Verdict]":
    """Returns the checkpoints that were compared (None: none were named), and what the verification found."""
    from retuned.consumers.warehouse.checkpoints import check

    known, problems = _checkpoints(common, file, checkpoints, key)
    if file is not None:
        return known, check(_rows_of(file), known, problems)
    with common.asking() as service:
        return known, check(_parsed(service.ask(operations.audit_log, Nothing())), known, problems)


def _checkpoints(
    common: Common, file: Path | None, checkpoints: Path | None, key: Path | None
) -> "tuple[list[Checkpoint] | None, list[str]]":
    """Returns the checkpoints to compare, and what is wrong with their file; of the configuration, unless a file or
    checkpoints are named. None: no checkpoints are configured or named."""
    from retuned.consumers.warehouse.checkpoints import read

    if file is not None and checkpoints is None:
        return None, []
    if checkpoints is None or key is None:
        settings = common.settings().audit
        if checkpoints is None and settings.checkpoint_file is None and settings.topic is not None:
            return None, [
                f"audit.topic {settings.topic}: checkpoints are in this topic alone; read it into a file, one message "
                "a line, and name the file with --checkpoints"
            ]
        checkpoints = checkpoints or settings.checkpoint_file
        key = key or (settings.key_file and settings.key_file.with_name(f"{settings.key_file.name}.pub"))
    if checkpoints is None:
        return None, []
    if key is None:
        raise ConfigurationError("audit verify: checkpoints are signed; name the public key with --key")
    return read(checkpoints, key)


def _rows_of(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of an export, or of a warehouse, which is only read."""
    try:
        with file.open("rb") as opened:
            # A DuckDB file begins with eight bytes of any value, its checksum, and then says what it is.
            warehouse = opened.read(12)[8:] == b"DUCK"
            opened.seek(0)
            if not warehouse:
                yield from _parsed(opened)
                return
    except OSError as error:
        raise ConfigurationError(f"audit verify {file}: cannot be read ({error.strerror})") from error
    import duckdb

    from retuned.consumers.common.text import first_line
    from retuned.consumers.warehouse.connection import literal, rows_of

    try:
        with duckdb.connect() as connection:
            connection.execute(f"ATTACH {literal(file)} AS audited (READ_ONLY)")
            yield from rows_of(connection.execute("SELECT * FROM audited.audit ORDER BY sequence"))
    except duckdb.Error as error:
        raise ConfigurationError(
            f"audit verify {file}: no export of the audit, and no warehouse that can be read ({first_line(error)})"
        ) from error


def _parsed(pieces: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of JSON Lines, which arrive in pieces of any length."""
    left = b""
    for piece in pieces:
        *lines, left = (left + piece).split(b"\n")
        yield from map(_row, lines)
    if left.strip():
        yield _row(left)


def _row(line: bytes) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
        return {"sequence": row["sequence"], "previous": row["previous"], "hash": row["hash"], **row}
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(f"audit verify: no row of the audit: {line[:60]!r}") from error
