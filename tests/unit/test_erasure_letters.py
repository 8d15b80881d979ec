"""Dead letters that quote an erased id are found in bounded memory, and while others use the warehouse."""

import tracemalloc
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.erasing import Shop, now
from fixtures.feedback.traffic import new_warehouse
from retuned.consumers.errors import Busy
from retuned.consumers.privacy.pseudonyms import UserKeys
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.erasing import Letters
from retuned.consumers.warehouse.tombstones import Tombstones

KEYS = UserKeys([b"a key of pseudonyms"])
START = datetime(2026, 11, 1)
DAY = timedelta(days=1)


def letter(warehouse: Warehouse, payload: str | None, received_at: datetime = START) -> None:
    warehouse.insert(
        "dead_letters", topic="in", partition=0, offset=0, reason="not_an_event", detail="…", payload=payload,
        received_at=received_at,
    )  # fmt: skip


@pytest.fixture
def quoted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The letters that were read."""
    read, real = list[str](), Tombstones.quoted

    def reading(self: Tombstones, text: str, at: datetime | None) -> bool:
        read.append(text)
        return real(self, text, at)

    monkeypatch.setattr(Tombstones, "quoted", reading)
    return read


def test_each_letter_is_read_once(tmp_path: Path, quoted: list[str]) -> None:
    warehouse, tombstones = new_warehouse(tmp_path), Tombstones(KEYS)
    user = KEYS.pseudonyms("ann@shop")[0]
    tombstones.use(tombstones.rows([("interaction", "ann-1", None, None), ("user", user, None, START + DAY)]))
    of_ann = ['{"id": "ann-1"', f'{{"user_id": "{user}"']
    for payload in (*of_ann, "bob-1", "bob-1", None):
        letter(warehouse, payload)
    letter(warehouse, of_ann[1], START + 2 * DAY)
    letters = Letters(tombstones)
    with warehouse.cursor() as cursor:
        rows = letters.quoting(cursor)
        payloads = cursor.execute("SELECT payload FROM dead_letters WHERE rowid IN (SELECT unnest($1))", [rows])
        assert sorted(payload for (payload,) in payloads.fetchall()) == sorted(of_ann)
        assert len(quoted) == 5
        quoted.clear()
        letter(warehouse, "ann-1 and bob-1")
        letter(warehouse, "bob-2")
    with warehouse.cursor() as cursor:
        assert len(letters.quoting(cursor)) == 3
    assert quoted == ["ann-1 and bob-1", "bob-2"]
    warehouse.close()


def busy_after(times: int, alone: Callable[[], Any]) -> Callable[[], Any]:
    """Turns in which the warehouse is held alone that many times, and no more."""
    left = [None] * times

    def turn() -> Any:
        if not left:
            raise Busy("a backup runs")
        left.pop()
        return alone()

    return turn


def test_letters_are_read_before_the_warehouse_is_held_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, real, held = Shop(tmp_path), Tombstones.quoted, list[bool]()
    shop.rig.send(*shop.events(), b'{"id": "bob-1", "broken": 1}')
    shop.rig.drain()

    def reading(self: Tombstones, text: str, at: datetime | None) -> bool:
        held.append(shop.warehouse.turns.is_alone)
        return real(self, text, at)

    monkeypatch.setattr(Tombstones, "quoted", reading)
    erasures = shop.erasures()
    erasures.request(shop.ann(), "dpo", None)
    with monkeypatch.context() as patch:
        patch.setattr(shop.warehouse.turns, "alone", busy_after(2, shop.warehouse.turns.alone))
        for _ in range(3):
            with pytest.raises(Busy):
                erasures.run()
    erasures.run()
    # To find what is erased, and before it is deleted, whatever the number of tries.
    assert held == [False] * 4
    assert shop.warehouse.rows("SELECT count(*) AS n FROM dead_letters") == [{"n": 1}]
    shop.warehouse.close()


def test_a_few_letters_are_in_memory_at_once(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.warehouse.execute(
        'INSERT INTO dead_letters (topic, partition, "offset", reason, detail, payload, received_at) '
        "SELECT 'in', 0, i, 'not_an_event', '…', repeat(md5(i::VARCHAR), 500), $1 FROM range(2_000) AS t(i)",
        [now()],
    )
    erasures, ann = shop.erasures(), shop.ann()
    erasures.preview(ann)
    tracemalloc.start()
    try:
        erasures.preview(ann)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000  # of 32 MB
    shop.warehouse.close()
