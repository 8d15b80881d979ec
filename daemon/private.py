"""What retuned writes holds conversations and keys: it is readable by the user that runs it alone."""

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retuned.daemon.settings import Settings

log = logging.getLogger(__name__)

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def keep_private() -> None:
    """Files that this process and its children make are 0600 from now on, and folders 0700."""
    os.umask(OTHERS)


def tighten(settings: "Settings") -> None:
    """Take from others what an earlier version, or another hand, left open to them.

    Folders that may be shared with other programs are only warned of.
    """
    for path in _ours(settings):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & OTHERS:
                path.chmod(mode & ~OTHERS)
                log.info("%s: mode %03o is now %03o", path, mode, mode & ~OTHERS)
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("%s: other users can read it, and its mode cannot be changed (%s)", path, error.strerror)
    for folder in {settings.warehouse.path.parent, settings.models.directory}:
        if folder.is_dir() and (mode := stat.S_IMODE(folder.stat().st_mode)) & OTHERS:
            log.warning(
                "%s: other users may look into it (mode %03o); unless they have to: chmod -R go-rwx %s",
                folder,
                mode,
                folder,
            )


def _ours(settings: "Settings") -> Iterator[Path]:
    warehouse = settings.warehouse.path
    for suffix in ("", ".wal", ".tmp", ".key", ".member"):
        yield warehouse.with_name(warehouse.name + suffix)
    yield warehouse.parent / "reports"
    if settings.retention.archive is None:
        yield warehouse.parent / "archive"
