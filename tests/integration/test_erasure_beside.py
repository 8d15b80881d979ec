"""An erasure while an export, a backup and the ingestion of copies are under way."""

import threading
from pathlib import Path

import pytest

from fixtures.feedback.erasing import LETTER, MINE, SECRET, THEIRS, Shop, now, traces
from retuned.consumers.errors import Busy
from retuned.consumers.warehouse import turns
from retuned.daemon.backup import manifest
from retuned.daemon.backup.create import back_up
from retuned.daemon.transfer.exports import Export, content


def test_an_export_under_way_ends_as_it_began_and_holds_no_erasure_up(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.rig.send(*shop.events())
    shop.rig.drain()
    pieces = content(Export("interactions"), shop.warehouse, shop.settings)
    got = [next(pieces)]
    erasures = shop.erasures()
    id = erasures.request(shop.ann(), "dpo", None)
    erasures.run()
    assert (erasures.of(id) or {})["state"] == "done"
    assert traces(tmp_path, SECRET, MINE, LETTER) == {}
    exported = b"".join([*got, *pieces])
    assert b"bob-1" in exported
    assert b"ann-1" in exported
    shop.warehouse.close()


@pytest.mark.full
def test_a_long_query_under_way_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "ALONE_SECONDS", 0.2)
    shop = Shop(tmp_path)
    shop.rig.send(*shop.events())
    shop.rig.drain()
    erasures = shop.erasures()
    id = erasures.request(shop.ann(), "dpo", None)
    with shop.warehouse.cursor() as cursor:
        cursor.execute("SELECT * FROM interactions")
        with pytest.raises(Busy, match=r"a query runs for longer|a long query runs"):
            erasures.run()
    assert (erasures.of(id) or {})["state"] != "done"
    erasures.run()
    assert (erasures.of(id) or {})["state"] == "done"
    shop.warehouse.close()


def test_backups_and_copies_that_arrive_do_not_disturb_it(tmp_path: Path) -> None:
    shop, backups, stop = Shop(tmp_path / "daemon"), tmp_path / "backups", threading.Event()
    backups.mkdir()
    shop.rig.send(*shop.events())
    shop.rig.drain()
    erasures = shop.erasures()
    id, failed = erasures.request(shop.ann(), "dpo", None), list[BaseException]()

    def copies() -> None:
        try:
            while not stop.is_set():
                shop.rig.send(*shop.events())
                shop.rig.drain()
        except BaseException as error:  # noqa: BLE001  (raised below)
            failed.append(error)

    def backup() -> None:
        try:
            back_up(shop.warehouse, shop.settings, backups, 9, now(), threading.Event())
        except BaseException as error:  # noqa: BLE001  (raised below)
            failed.append(error)

    threads = [threading.Thread(target=copies), threading.Thread(target=backup)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        try:
            erasures.run()
            break
        except Busy:  # the backup copies the warehouse
            threads[1].join()
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert (erasures.of(id) or {})["state"] == "done"
    (during,) = manifest.generations(backups)
    assert list(manifest.verify(during)) == []
    back_up(shop.warehouse, shop.settings, backups, 1, now(), threading.Event())
    (after,) = manifest.generations(backups)
    assert after != during
    assert traces(after, SECRET, MINE, LETTER) == traces(shop.folder, SECRET, MINE, LETTER) == {}
    assert traces(after, THEIRS) != {}
    assert shop.ids("interactions") == ["bob-1"]
    shop.warehouse.close()
