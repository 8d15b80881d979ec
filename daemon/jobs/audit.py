"""What the audit has besides requests and rules: the configuration at the start, the principals, signed checkpoints."""

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from retuned.consumers.common.durable import fsync
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse import checkpoints
from retuned.consumers.warehouse.audit import Entry, by_rule
from retuned.consumers.warehouse.checkpoints import Checkpoint
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.jobs.context import Context
from retuned.daemon.process import user_of_machine
from retuned.daemon.settings import Settings

_CREDENTIALS = re.compile(r"//[^/@\s]*@")
"""Of a URL."""
QUERIES = named_queries("retuned.daemon.jobs", "audit.sql")


def record_start(warehouse: Warehouse, settings: Settings) -> None:
    """Records that the daemon starts, and which settings changed since its last start. Secrets are masked."""
    state = {"version": version("retuned"), **_flat(settings)}
    _record(warehouse, "configuration", state, always=True)


def record_principals(warehouse: Warehouse, principals: Iterable[dict[str, Any]]) -> None:
    """Records which tokens were added, changed or removed since this was recorded last, however that came about.

    Args:
        principals: the tokens, each with `name` and `token_sha256`.
    """
    state = {}
    for one in principals:
        token = one.pop("token_sha256")
        state[f"{one['name']} {token[:8]}"] = one
    _record(warehouse, "principals", state, always=False)


class Checkpoints:
    """Makes signed checkpoints of the audit, whenever it has new rows."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._written: dict[str, int] = {}  # place -> rows of its last checkpoint

    def __call__(self) -> None:
        """Writes the last checkpoint where it is not yet, then one of the rows since then. Each is a row of the audit
        before it is written anywhere, so that a missing one shows.

        Raises:
            RetunedError: the key, the file or the topic cannot be used.
        """
        warehouse = self._context.warehouse
        last = checkpoints.newest(warehouse)
        if last is not None:  # a stop or an error may have kept it from a place
            self._write(last)
        size, _ = warehouse.trail.head()
        if size > (last.size if last else 0):
            warehouse.trail.record(by_rule("checkpoints", checkpoints.ACTION))
            if made := checkpoints.newest(warehouse):
                self._write(made)

    def _write(self, checkpoint: Checkpoint) -> None:
        settings, publisher = self._context.settings.audit, self._context.publisher
        if settings.key_file is None:
            return
        places = {"file": settings.checkpoint_file, "topic": settings.topic}
        due = [kind for kind, place in places.items() if place and self._written.get(kind) != checkpoint.size]
        if not due:
            return
        envelope = checkpoints.signed(checkpoint, settings.key_file)
        if settings.checkpoint_file and "file" in due:
            _append(settings.checkpoint_file, json.dumps(envelope))
            self._written["file"] = checkpoint.size
        if settings.topic and "topic" in due:
            publisher.publish(settings.topic, checkpoint.origin, envelope)
            self._written["topic"] = checkpoint.size


def _record(warehouse: Warehouse, action: str, state: dict[str, Any], *, always: bool) -> None:
    """Records a state and how it differs from the one recorded last."""
    last = warehouse.row(QUERIES["last_state"], {"action": action})
    before: dict[str, Any] = json.loads(last["details"])["state"] if last else {}
    now: dict[str, Any] = json.loads(json.dumps(state))
    keys = sorted(before.keys() | now.keys())
    changed = {key: [before.get(key), now.get(key)] for key in keys if before.get(key) != now.get(key)}
    if changed or always:
        details = {"changed": changed if last else {}, "state": now}
        warehouse.trail.record(Entry(user_of_machine(), "local", action, details=details))


def _flat(settings: Settings) -> dict[str, Any]:
    """Returns the settings that differ from the defaults, by key; of a workload, those that differ from the others'."""
    common = _leaves(settings.model_dump(mode="json", exclude={"workloads"}))
    found = _leaves(settings.model_dump(mode="json", exclude={"workloads"}, exclude_defaults=True))
    for name in settings.workloads:
        own = _leaves(settings.for_workload(name).model_dump(mode="json", exclude={"workloads"}))
        found |= {f"workloads.{name}.{key}": value for key, value in own.items() if common.get(key) != value}
    return found


def _leaves(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _leaves(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = _CREDENTIALS.sub("//***@", value) if isinstance(value, str) else value
    return found


def _append(file: Path, line: str) -> None:
    """Appends a line, unless it is the last one, or nothing. What a crash has left of a line before it stays a line of
    its own."""
    try:
        is_new = not file.exists()
        opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(opened).st_size
            content = line.encode() + b"\n"
            end = os.pread(opened, len(content), max(0, size - len(content)))
            if end != content:
                is_torn = end != b"" and not end.endswith(b"\n")
                _write(opened, size, (b"\n" * is_torn) + content)
        finally:
            os.close(opened)
        fsync(file)
        if is_new:
            fsync(file.parent)
    except OSError as error:
        raise RetunedError(f"audit.checkpoint_file {file}: cannot be written ({error.strerror})") from error


def _write(opened: int, size: int, content: bytes) -> None:
    """Writes all of it to the end of a file of this size, or none of it, as far as the file can be cut off."""
    try:
        while content:
            content = content[os.write(opened, content) :]
    except OSError:
        with suppress(OSError):
            os.ftruncate(opened, size)
        raise
