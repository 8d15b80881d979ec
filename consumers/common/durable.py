"""Folders, files and links that are there whole or not at all, whatever happens while they are written."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends well: fsynced, then renamed.

    A `path` that is there already stays: content-addressed folders never change.
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


def sweep(folder: Path) -> None:
    """Remove what `written_aside` and `point` left at any depth when they were killed. Nothing may be writing."""
    for left in list(folder.rglob(".*.tmp")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def point(link: Path, target: str | None) -> None:
    """Make a link point to a target beside it, in one step; None takes the link away."""
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
    """Return when a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when the block ends well: fsynced, then renamed."""
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
    """Make a file hold a text, in one step; one that holds it already is left alone."""
    content = text.encode()
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as aside:
        aside.write_bytes(content)
