"""Imports beside an erasure bring nothing of the person back, and lose nothing of anyone else."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.erasing import ANSWERS, MINE, SECRET, logged_events, not_anns
from fixtures.kafka.importing import House, opened, written
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.warehouse.selection import Request

AT_ONCE = 10


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with opened(tmp_path / "house", ingest={"batch_events": AT_ONCE}) as house:
        yield house


def erase(house: House) -> None:
    erasures = house.service.jobs.erasures
    id = erasures.request(Request(user_id="ann@shop").selection(erasures.keys), "dpo", None)
    erasures.run()
    assert (erasures.of(id) or {})["state"] == "done"


def ids(house: House, table: str) -> list[str]:
    return [row["id"] for row in house.warehouse.rows(f"SELECT id FROM {table} ORDER BY id")]


def has_others_alone(house: House) -> None:
    found = house.warehouse.rows("SELECT messages::VARCHAR AS text FROM interactions")
    found += house.warehouse.rows("SELECT value::VARCHAR AS text FROM feedback")
    assert not [row for row in found if SECRET in row["text"] or MINE in row["text"]]
    assert ids(house, "interactions") == not_anns("interactions")


class Killed(BaseException):
    """The process ends here."""


def killed() -> None:
    raise Killed


def after(house: House, batches: int, then: Callable[[], None]) -> None:
    """Something that happens after so many batches of the import."""
    take, taken = house.files.take, list[Batch]()

    def take_then(batch: Batch) -> Any:
        result = take(batch)
        taken.append(batch)
        if len(taken) == batches:
            then()
        return result

    house.files.take = take_then  # type: ignore[method-assign]


@pytest.mark.full
@pytest.mark.parametrize("batches", [1, 6, 12])
@pytest.mark.parametrize("is_running", [False, True])
def test_an_erasure_in_the_middle_of_an_import(house: House, tmp_path: Path, batches: int, is_running: bool) -> None:
    path = written(tmp_path / "logs.jsonl", *logged_events())
    after(house, batches, lambda: erase(house))
    if is_running:
        with house.running():
            assert house.take(path) == 0
    else:
        assert house.take(path) == 0
    has_others_alone(house)
    if batches == 12:
        assert ids(house, "feedback") == not_anns("feedback")
    assert house.take(path) == 0  # nothing is left to import


def test_an_import_after_an_erasure(house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    erase(house)
    assert house.take(written(tmp_path / "logs.jsonl", *logged_events())) == 0
    has_others_alone(house)
    assert "erased      40" in capsys.readouterr().out


def test_an_import_that_is_killed_and_resumed_after_an_erasure(house: House, tmp_path: Path) -> None:
    path = written(tmp_path / "logs.jsonl", *logged_events())
    after(house, 6, killed)
    with pytest.raises(Killed):
        house.take(path)
    assert len(ids(house, "interactions")) == ANSWERS // 2
    erase(house)
    assert house.take(path) == 0
    has_others_alone(house)
    again = written(tmp_path / "the same.jsonl", *logged_events())
    assert house.take(again) == 0
    has_others_alone(house)
    assert len(ids(house, "feedback")) == len(set(ids(house, "feedback")))


def test_an_import_and_erasures_side_by_side(house: House, tmp_path: Path) -> None:
    path, failed, stop = written(tmp_path / "logs.jsonl", *logged_events()), list[BaseException](), threading.Event()

    def erasing() -> None:
        try:
            while not stop.is_set():
                erase(house)
        except BaseException as error:  # noqa: BLE001  (raised below)
            failed.append(error)

    thread = threading.Thread(target=erasing)
    with house.running():
        thread.start()
        try:
            assert house.take(path) == 0
        finally:
            stop.set()
            thread.join()
    assert failed == []
    has_others_alone(house)
