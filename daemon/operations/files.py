"""Operations on files: exports, backups, and imports."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from retuned.consumers.errors import RetunedError
from retuned.daemon.operations.answers import Backup as MadeBackup
from retuned.daemon.operations.fields import check_path
from retuned.daemon.operations.operation import (
    STREAM_SECONDS,
    Caller,
    NotFound,
    Packed,
    Placeholder,
    Request,
    Service,
    operation,
)

if TYPE_CHECKING:
    from retuned.consumers.file_import import Position, Taken
    from retuned.consumers.kafka.contract import Batch
    from retuned.daemon.operations.local import Local
    from retuned.daemon.settings import Settings

KEEP = 7
"""The default number of backups to keep."""
BACKUP_SECONDS = 21_600.0
TEXT_MEDIA = {"jsonl": "application/jsonl", "parquet": "application/vnd.apache.parquet"}


class Export(Request):
    what: Annotated[str, Field(description="a table that can be exported, or a training set")]
    format: Annotated[Literal["jsonl", "parquet"], Field(description="the format of the answer")] = "jsonl"
    workload: Annotated[str | None, Field(description="only rows of this workload; none if it is unknown")] = None
    since: Annotated[
        str | None, Field(description="only rows from this date or time on, ISO 8601, UTC"), Placeholder("TIME")
    ] = None
    until: Annotated[str | None, Field(description="only rows before this time"), Placeholder("TIME")] = None
    texts: Annotated[
        bool,
        Field(
            description="of evaluations: a row for each question, with the approved answer and those of base, champion "
            "and candidate side by side"
        ),
    ] = False


def _media(request: Export) -> str:
    return TEXT_MEDIA[request.format]


@operation(
    "GET",
    "/exports/{what}",
    least="operator",
    seconds=STREAM_SECONDS,
    refused=400,
    media=_media,
    media_types=tuple(TEXT_MEDIA.values()),
    reads="conversations",
    bound="never",  # some tables have rows of all workloads, whichever is named
)
def export(local: "Local", request: Export, caller: Caller) -> Iterable[bytes]:
    """Export a table, or a training set in one of TRL's formats (chat, preference, kto)."""
    from retuned.daemon.transfer import exports

    return exports.content(exports.Export(**request.model_dump()), local.warehouse, local.settings)


class Backup(Request):
    folder: Annotated[
        str,
        Field(description="an absolute path on the daemon's machine: a new or empty folder, or one of backups"),
    ]
    keep: Annotated[int, Field(description="the number of backups to keep; older ones are deleted")] = KEEP
    with_key: Annotated[bool, Field(description="whether the backup includes the key of pseudonyms")] = True


@operation("POST", "/backup", least="admin", seconds=BACKUP_SECONDS)
def backup(local: "Local", request: Backup, caller: Caller) -> MadeBackup:
    """Back up the warehouse, the archive, models, reports and the key of pseudonyms while the daemon runs.

    The answer is sent once the backup is complete and on disk.
    """
    from retuned.daemon.backup.create import back_up

    check_path(request.folder, "backup")
    folder, keep = Path(request.folder), request.keep
    if not folder.is_absolute() or keep < 1:
        raise RetunedError(f"backup {folder}: expected an absolute path, and at least one backup to keep")
    now, stop = local.jobs.context.now(), local.jobs.context.stop
    return cast(
        "MadeBackup",
        asdict(back_up(local.warehouse, local.settings, folder, keep, now, stop, with_key=request.with_key)),
    )


# Between `retuned import` and the daemon


class FileOf(Request):
    id: str


@operation("GET", "/imports/{id}", least="operator", is_public=False)
def position(local: "Local", request: FileOf, caller: Caller) -> dict[str, Any]:
    """Get the position up to which a file was imported."""
    return asdict(local.intake.position(_topic(request.id)))


def _pack(request: "Take") -> bytes:
    from retuned.daemon.transfer.imports import to_bytes

    return to_bytes(request.batch)


def _unpack(path: Mapping[str, str], body: bytes) -> "Batch":
    from retuned.daemon.transfer.imports import from_bytes

    return from_bytes(_topic(path["id"]), body)


def _most_bytes(settings: "Settings") -> int:
    from retuned.daemon.transfer.imports import most_bytes

    return most_bytes(settings)


class Take(Request):
    id: str
    batch: Any


@operation(
    "POST",
    "/imports/{id}",
    least="operator",
    is_public=False,
    packed=Packed("batch", "application/msgpack", _pack, _unpack, _most_bytes),
    audited=lambda request: not request.batch.starts,  # a file's first batch
)
def take(local: "Local", request: Take, caller: Caller) -> dict[str, Any]:
    """Store a batch of a file's rows."""
    return asdict(local.intake.take(request.batch))


class FileIntake:
    """Implements `retuned.daemon.transfer.imports.Destination` by these operations."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def position(self, topic: str) -> "Position":
        import msgspec

        from retuned.consumers.file_import import Position

        return msgspec.convert(self._service.ask(position, FileOf(id=_id(topic))), Position)

    def take(self, batch: "Batch") -> "Taken":
        import msgspec

        from retuned.consumers.file_import import Taken

        ((topic, _),) = batch.nexts
        return msgspec.convert(self._service.ask(take, Take(id=_id(topic), batch=batch)), Taken)


def _id(topic: str) -> str:
    """Returns a file's id in paths, from its topic: `import:` and 16 hexadecimal digits."""
    return topic.partition(":")[2]


def _topic(id: str) -> str:
    if len(id) != 16 or not set(id) <= set("0123456789abcdef"):
        raise NotFound("expected the 16 hexadecimal digits of a file, as `retuned import` sends them")
    return f"import:{id}"
