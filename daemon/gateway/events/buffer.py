"""What has not reached Kafka yet, on this machine's disk: records in numbered files, appended, published, deleted.

A record is on its way to the disk before its answer ends, in the kernel's hands, so that the end of this process loses
none; the end of the machine may lose those of the last second. The next file is open before a file ends, so that a
process that may open no more files still keeps what it has answered.
"""

import fcntl
import logging
import os
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from retuned.consumers.errors import ConfigurationError

log = logging.getLogger(__name__)

FILE_BYTES = 8 * 2**20
"""A file that is so long is followed by the next: files are published, after a crash again, as a whole."""
NEXT = "next"
HEAD_BYTES = 8  # length and CRC-32 of the record


class Full(Exception):
    """A record is not kept.

    Attributes:
        reason: `full`: more waits than may; `disk`: it cannot be written.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Buffer:
    """One thread appends, another one publishes and removes."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Take a folder, which no other process may use, with what is left in it.

        Raises:
            ConfigurationError: it cannot be used, or is another gateway's.
        """
        self._folder, self._most = folder, most_bytes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._lock_file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._next = self._open_next()
        except BlockingIOError as error:
            os.close(self._lock_file)
            raise ConfigurationError(
                f"gateway.buffer {folder}: another gateway uses it; give each a folder of its own, for example by "
                "RETUNED__GATEWAY__BUFFER"
            ) from error
        except OSError as error:
            raise ConfigurationError(f"gateway.buffer {folder}: cannot be used ({error.strerror})") from error
        left = {file: file.stat().st_size for file in sorted(folder.glob("*.records"))}
        self._sizes, self._waiting_bytes = left, sum(left.values())
        self._begun = {file: file.stat().st_mtime for file in left}
        self._number = max((int(file.stem) for file in left), default=0)
        self._active: Path | None = None
        self._handle = -1
        self._lock = threading.Lock()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that have not been published."""
        with self._lock:
            return self._waiting_bytes

    def waiting_seconds(self) -> float:
        """For how long the first of what waits has waited, at most: since its file began; 0: nothing waits."""
        with self._lock:
            first = next(iter(self._begun.values()), None)
        return 0.0 if first is None else max(0.0, time.time() - first)

    def append(self, record: bytes) -> None:
        """Keep a record. Returns once the kernel has it.

        Raises:
            Full: it is not kept.
        """
        framed = len(record).to_bytes(4, "big") + zlib.crc32(record).to_bytes(4, "big") + record
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
        """The files to publish, oldest first; nothing is appended to them any more, and they are on the disk."""
        with self._lock:
            handle = self._seal()
            found = [file for file in self._sizes if file != self._active]
        if handle >= 0:
            os.fsync(handle)  # outside of the lock, for which an answer would wait
            os.close(handle)
        return found

    def remove(self, file: Path) -> None:
        """Delete what is published."""
        file.unlink(missing_ok=True)
        with self._lock:
            self._waiting_bytes -= self._sizes.pop(file, 0)
            self._begun.pop(file, None)

    def close(self) -> None:
        """What waits stays; safe to repeat."""
        with self._lock:
            for handle in {self._handle, self._next, self._lock_file} - {-1}:
                os.close(handle)
            self._active, self._handle, self._next, self._lock_file = None, -1, -1, -1

    def _open_next(self) -> int:
        return os.open(self._folder / NEXT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)

    def _begin(self) -> Path:
        """The file to append to. It was opened before it is needed: no open file is needed to keep a record."""
        if self._active is None:
            file = self._folder / f"{self._number + 1:012}.records"
            (self._folder / NEXT).rename(file)
            self._number += 1
            self._active, self._handle, self._next = file, self._next, -1
            self._sizes[file], self._begun[file] = 0, time.time()
        return self._active

    def _seal(self) -> int:
        """End the file that is appended to, once the next one is open; returns its handle, -1: it is not ended."""
        if self._active is None:
            return -1
        try:
            self._next = self._open_next()
        except OSError as error:
            log.warning("%s: the next file cannot be opened yet (%s)", self._folder, error.strerror)
            return -1
        ended = self._handle
        self._active, self._handle = None, -1
        return ended


def records(file: Path) -> Iterator[bytes]:
    """The records of a file. Its end may be missing: the machine stopped while it was written."""
    with file.open("rb") as opened:
        while head := opened.read(HEAD_BYTES):
            record = opened.read(int.from_bytes(head[:4], "big"))
            if len(head) < HEAD_BYTES or zlib.crc32(record) != int.from_bytes(head[4:], "big"):
                log.warning("%s: its end is not readable; the machine stopped while it was written", file)
                return
            yield record
