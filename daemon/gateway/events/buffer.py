"""The disk buffer of records that wait for Kafka: numbered files that are appended to, published and deleted.

A record is written to the kernel before its answer ends, so that a killed process loses none; a power failure may lose
those of the last second. The next file is opened before a file ends, so that a process without free file descriptors
can still buffer records.
"""

import fcntl
import logging
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from retuned.consumers.common.durable import replaced
from retuned.consumers.errors import ConfigurationError

log = logging.getLogger(__name__)

FILE_BYTES = 8 * 2**20
"""The size at which the next file begins. Files are published as a whole, and again after a crash."""
SMALL_BYTES = 64 * 2**10
"""The size below which what is left of a file is joined with what is left of the next one, so that files stay few."""
NEXT = "next"
HEAD_BYTES = 8  # length and CRC-32 of the record


class Full(Exception):
    """A record could not be buffered.

    Attributes:
        reason: `full`: the buffer has reached its limit; `disk`: the record cannot be written.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Buffer:
    """The buffer. One thread appends, another publishes and removes."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Opens a folder with its records, for exclusive use.

        Raises:
            ConfigurationError: the folder cannot be used, or another gateway uses it.
        """
        self._folder, self._most = folder, most_bytes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._lock_file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for stray in folder.glob(".*.records.*.tmp"):  # of a process that was killed while it shortened a file
                stray.unlink()
            self._next = self._open_next()
        except BlockingIOError as error:
            os.close(self._lock_file)
            raise ConfigurationError(
                f"gateway.buffer {folder}: another gateway uses it; give each a folder of its own, for example by "
                "RETUNED__GATEWAY__BUFFER"
            ) from error
        except OSError as error:
            raise ConfigurationError(f"gateway.buffer {folder}: cannot be used ({error.strerror})") from error
        self._sizes = {file: file.stat().st_size for file in sorted(folder.glob("*.records"))}
        self._waiting_bytes = sum(self._sizes.values())
        self._begun = {file: file.stat().st_mtime for file in self._sizes}
        self._number = max((int(file.stem) for file in self._sizes), default=0)
        self._active: Path | None = None
        self._handle = -1
        self._lock = threading.Lock()

    @property
    def waiting_bytes(self) -> int:
        """The bytes that wait for Kafka."""
        with self._lock:
            return self._waiting_bytes

    def waiting_seconds(self) -> float:
        """Returns the age of the oldest file, an upper bound of a record's wait; 0: no record waits."""
        with self._lock:
            first = next(iter(self._begun.values()), None)
        return 0.0 if first is None else max(0.0, time.time() - first)

    def append(self, record: bytes) -> None:
        """Appends a record. Returns once the kernel has it.

        Raises:
            Full: the record was not appended.
        """
        framed = _framed(record)
        with self._lock:
            if self._waiting_bytes + len(framed) > self._most:
                raise Full("full")
            try:
                active = self._begin()
                written = os.write(self._handle, framed)
                if written < len(framed):
                    os.ftruncate(self._handle, self._sizes[active])
                    raise Full("disk")
            except OSError as error:
                log.error("%s: nothing can be written (%s)", self._folder, error.strerror)
                raise Full("disk") from error
            self._sizes[active] += len(framed)
            self._waiting_bytes += len(framed)
            full = self._seal() if self._sizes[active] >= FILE_BYTES else -1
        if full >= 0:
            os.close(full)

    def sealed(self) -> list[Path]:
        """Returns the files to publish, oldest first. They are synced to disk, and no longer appended to."""
        with self._lock:
            handle = self._seal()
            files = [file for file in self._sizes if file != self._active]
        if handle >= 0:
            os.fsync(handle)  # outside the lock, on which an answer would wait
            os.close(handle)
        return files

    def remove(self, file: Path) -> None:
        """Deletes a published file."""
        file.unlink(missing_ok=True)
        with self._lock:
            self._waiting_bytes -= self._sizes.pop(file, 0)
            self._begun.pop(file, None)

    def is_small(self, file: Path) -> bool:
        """Whether a file should be joined with the next one."""
        with self._lock:
            return self._sizes[file] < SMALL_BYTES

    def keep(self, file: Path, left: Sequence[bytes], before: Path | None = None) -> None:
        """Shortens a file to records that still wait, behind those of the file before it, if that is to be joined.

        A crash leaves the old files, or the file before it beside the new one: no record is lost.

        Raises:
            OSError: the disk does not take the new file; the old ones stay.
        """
        kept = [*(records(before) if before else ()), *left]
        begun = self._begun[before or file]
        with replaced(file) as aside:
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
                opened.writelines(map(_framed, kept))
            os.utime(aside, (begun, begun))
        with self._lock:
            size = file.stat().st_size
            self._waiting_bytes += size - self._sizes[file]
            self._sizes[file], self._begun[file] = size, begun
        if before:
            self.remove(before)

    def close(self) -> None:
        """Closes all files; waiting records stay on disk. Safe to repeat."""
        with self._lock:
            for handle in {self._handle, self._next, self._lock_file} - {-1}:
                os.close(handle)
            self._active, self._handle, self._next, self._lock_file = None, -1, -1, -1

    def _open_next(self) -> int:
        return os.open(self._folder / NEXT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)

    def _begin(self) -> Path:
        """Returns the file to append to. It is already open, so appending needs no new file descriptor."""
        if self._active is None:
            file = self._folder / f"{self._number + 1:012}.records"
            (self._folder / NEXT).rename(file)
            self._number += 1
            self._active, self._handle, self._next = file, self._next, -1
            self._sizes[file], self._begun[file] = 0, time.time()
        return self._active

    def _seal(self) -> int:
        """Ends the active file, if the next one can be opened. Returns its handle; -1: no file was ended."""
        if self._active is None:
            return -1
        try:
            self._next = self._open_next()
        except OSError as error:
            log.warning("%s: the next file cannot be opened yet (%s)", self._folder, error.strerror)
            return -1
        sealed = self._handle
        self._active, self._handle = None, -1
        return sealed


def _framed(record: bytes) -> bytes:
    return len(record).to_bytes(4, "big") + zlib.crc32(record).to_bytes(4, "big") + record


def records(file: Path) -> Iterator[bytes]:
    """Yields the records of a file, whose end may be missing after a power failure."""
    with file.open("rb") as opened:
        while head := opened.read(HEAD_BYTES):
            record = opened.read(int.from_bytes(head[:4], "big"))
            if len(head) < HEAD_BYTES or zlib.crc32(record) != int.from_bytes(head[4:], "big"):
                log.warning("%s: the end is unreadable; the machine stopped while it was written", file)
                return
            yield record
