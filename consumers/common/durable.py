"""Writes folders, files and links atomically: after a crash they exist in full or not at all."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `path` if the block succeeds: it is fsynced, then renamed.

    An existing `path` is kept: content-addressed folders never change.
    """
    aside = path.parent / f".{path.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in aside.iterdir():
            fsync(file)
        fsync(aside)
        if not path.is_dir():
            aside.rename(path)
            fsync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path, but: str = "") -> None:
    """Removes at any depth what killed calls of `written_aside` and `point` left. No call may be running.

    Args:
        but: the name of folders that are left alone, because others may be writing in them.
    """
    for stray in list(folder.rglob(".*.tmp")):
        if but in stray.relative_to(folder).parts[:-1]:
            continue
        if stray.is_dir() and not stray.is_symlink():
            shutil.rmtree(stray, ignore_errors=True)
        else:
            stray.unlink(missing_ok=True)


def point(link: Path, target: str | None) -> None:
    """Makes a link point to a target beside it, in one step; None removes the link."""
    if target is None and link.is_symlink():
        link.unlink()
    elif target is None:
        return
    elif not link.is_symlink() or str(link.readlink()) != target:
        aside = link.with_name(f".{link.name}.{os.getpid()}.tmp")
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        aside.replace(link)
    else:
        return
    fsync(link.parent)


def fsync(path: Path) -> None:
    """Returns once a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yields a file to write, which replaces `path` if the block succeeds: it is fsynced, then renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    try:
        yield aside
        fsync(aside)
        aside.replace(path)
        fsync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Replaces the content of a file in one step, unless it is the same already."""
    content = text.encode()
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as aside:
        aside.write_bytes(content)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
