"""What waits for Kafka on the disk: whole or not at all, in order, for this gateway's eyes alone."""

from pathlib import Path

import pytest

from fixtures.daemon.gateways import no_more_files
from retuned.consumers.errors import ConfigurationError
from retuned.daemon.gateway.events import buffer as module
from retuned.daemon.gateway.events.buffer import Buffer, Full, records


def content(folder: Path) -> list[bytes]:
    return [record for file in sorted(folder.glob("*.records")) for record in records(file)]


def test_records_are_read_in_their_order_and_deleted_once_published(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path / "b", 10_000)
    for number in range(5):
        buffer.append(b"record %d\n" % number)
    first = buffer.sealed()
    buffer.append(b"later")
    assert [record for file in first for record in records(file)] == [b"record %d\n" % number for number in range(5)]
    assert buffer.waiting_seconds() > 0
    for file in first:
        buffer.remove(file)
    (second,) = buffer.sealed()
    assert list(records(second)) == [b"later"]
    buffer.remove(second)
    assert (buffer.waiting_bytes, buffer.waiting_seconds(), list((tmp_path / "b").glob("*.records"))) == (0, 0, [])
    assert buffer.sealed() == []


def test_what_an_earlier_process_left_comes_first(tmp_path: Path) -> None:
    before = Buffer(tmp_path, 10_000)
    before.append(b"one")
    before.close()
    after = Buffer(tmp_path, 10_000)
    assert after.waiting_bytes == 3 + module.HEAD_BYTES
    after.append(b"two")
    assert [record for file in after.sealed() for record in records(file)] == [b"one", b"two"]


@pytest.mark.parametrize("lost", [1, 5, 12])
def test_an_end_that_was_not_written_is_passed_over(tmp_path: Path, lost: int) -> None:
    buffer = Buffer(tmp_path, 10_000)
    buffer.append(b"whole")
    buffer.append(b"not whole")
    (file,) = buffer.sealed()
    file.write_bytes(file.read_bytes()[:-lost])
    assert list(records(file)) == [b"whole"]


def test_a_damaged_record_ends_its_file(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, 10_000)
    buffer.append(b"first")
    buffer.append(b"second")
    (file,) = buffer.sealed()
    file.write_bytes(file.read_bytes().replace(b"second", b"sec0nd"))
    assert list(records(file)) == [b"first"]


def test_what_does_not_fit_is_refused_until_there_is_room(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, 30)
    buffer.append(b"x" * 20)
    with pytest.raises(Full) as full:
        buffer.append(b"y")
    assert full.value.reason == "full"
    for file in buffer.sealed():
        buffer.remove(file)
    buffer.append(b"z" * 20)
    assert content(tmp_path) == [b"z" * 20]


def test_a_disk_that_takes_no_more_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = Buffer(tmp_path, 10_000)
    buffer.append(b"first")
    write = module.os.write
    monkeypatch.setattr(module.os, "write", lambda handle, data: write(handle, data[:10]))
    with pytest.raises(Full) as full:
        buffer.append(b"second")
    assert full.value.reason == "disk"
    monkeypatch.undo()
    buffer.append(b"third")
    buffer.sealed()
    assert content(tmp_path) == [b"first", b"third"]


def test_a_long_file_is_followed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 50)
    buffer = Buffer(tmp_path, 10_000)
    for number in range(6):
        buffer.append(b"%020d" % number)
    assert len(list(tmp_path.glob("*.records"))) == 3
    assert content(tmp_path) == [b"%020d" % number for number in range(6)]


def test_a_file_is_shortened_and_joined_with_the_one_before_it(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, 10_000)
    for name in (b"a", b"b"):
        buffer.append(name + b"1")
        buffer.append(name + b"2")
        buffer.sealed()
    first, second = buffer.sealed()
    buffer.keep(second, [b"b2"], first)
    assert (content(tmp_path), buffer.sealed()) == ([b"a1", b"a2", b"b2"], [second])
    buffer.keep(second, [b"a2", b"b2"])
    assert content(tmp_path) == [b"a2", b"b2"]
    assert buffer.waiting_bytes == second.stat().st_size == 2 * (2 + module.HEAD_BYTES)
    assert second.stat().st_mode & 0o777 == 0o600
    waited = buffer.waiting_seconds()
    buffer.close()
    (tmp_path / f".{second.name}.7.tmp").touch()  # of a process that was killed meanwhile
    assert Buffer(tmp_path, 10_000).waiting_seconds() >= waited
    assert list(tmp_path.glob(".*")) == []


def test_others_cannot_read_it_and_no_other_gateway_can_use_it(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir(mode=0o755)
    buffer = Buffer(folder, 10_000)
    buffer.append(b"private")
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigurationError, match="another gateway"):
        Buffer(folder, 10_000)
    buffer.close()
    Buffer(folder, 10_000).close()


def test_a_process_that_may_open_no_more_files_keeps_what_it_has_answered(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, 10_000)
    with no_more_files():
        for number in range(3):
            buffer.append(b"%d" % number)
            assert buffer.sealed() == []  # nothing could be read of it now
    buffer.append(b"3")
    (file,) = buffer.sealed()
    with no_more_files():
        buffer.append(b"4")
        assert buffer.sealed() == [file]
    assert content(tmp_path) == [b"%d" % number for number in range(5)]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"gateway\.buffer"):
        Buffer(tmp_path / "file" / "b", 10_000)
