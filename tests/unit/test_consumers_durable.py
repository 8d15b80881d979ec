"""Links and files that change in one step: what was there stays until its successor is."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from retuned.consumers.common.durable import point, replace_text


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_link_is_moved_and_taken_away(tmp_path: Path) -> None:
    link = tmp_path / "champion"
    for target in ("one", "two", "two"):
        point(link, target)
        assert str(link.readlink()) == target
    for _ in range(2):
        point(link, None)
        assert not link.is_symlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["symlink", "replace"])
def test_a_link_that_cannot_be_moved_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """There is no moment without a link: what serves reads it at any time."""
    link = tmp_path / "champion"
    point(link, "one")
    with monkeypatch.context() as disk:
        disk.setattr(os, step, full)
        with pytest.raises(OSError, match="No space"):
            point(link, "two")
    assert str(link.readlink()) == "one"
    point(link, "two")
    assert [file.name for file in tmp_path.iterdir()] == ["champion"]
    assert str(link.readlink()) == "two"


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.json"
    replace_text(file, "one")
    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            replace_text(file, "two")
    assert file.read_text() == "one"
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]
