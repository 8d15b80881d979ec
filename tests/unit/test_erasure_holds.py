"""What a legal hold keeps from an erasure, whenever it is placed, and what it covers that belongs to no workload."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.feedback.erasing import SECRET, Shop, now, traces
from fixtures.kafka.ingestion import feedback, interaction
from retuned.consumers.errors import Busy
from retuned.consumers.warehouse import holds
from retuned.consumers.warehouse.selection import Selection
from retuned.daemon.erasure import erasure as module


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.warehouse.close()


def state(shop: Shop) -> str:
    (row,) = shop.warehouse.rows("SELECT state FROM erasures")
    return str(row["state"])


def begun(shop: Shop) -> None:
    """An erasure of Ann, whose events are not deleted yet."""
    shop.rig.send(*shop.events())
    shop.rig.drain()
    erasures = shop.erasures()
    erasures.request(shop.ann(), "dpo", None)
    (row,) = shop.warehouse.rows("FROM erasures")
    erasures._advance(row)
    assert state(shop) == "deleting"


def test_a_hold_on_an_account_covers_its_feedback_on_an_unknown_answer(shop: Shop) -> None:
    shop.rig.send(feedback("f1", "never-arrived", user_id="ann@shop"))
    shop.rig.drain()
    holds.place(shop.warehouse, None, shop.ann().users, "case 18", "legal", now())
    shop.erasures().request(shop.ann(), "dpo", None)
    with pytest.raises(Busy, match="case 18"):
        shop.erasures().run()
    assert shop.ids("feedback") == ["f1"]


@pytest.mark.parametrize("users", [True, False])
def test_a_hold_on_a_workload_covers_what_belongs_to_none(shop: Shop, users: bool) -> None:
    shop.rig.send(b'{"id": "x-1", "broken": true}', feedback("f1", "never-arrived", user_id="ann@shop"))
    shop.rig.drain()
    holds.place(shop.warehouse, "billing", shop.ann().users if users else [None], "case 17", "legal", now())
    for selection in (shop.ann(), Selection(interactions=["x-1"])):
        expected = [] if users and not selection.users else ["case 17"]
        found = shop.erasures().preview(selection)["holds"]
        assert [one[-7:] for one in found] == expected


def test_a_hold_on_another_account_or_workload_stops_no_erasure(shop: Shop) -> None:
    shop.rig.send(interaction("ann-1", user_id="ann@shop"))
    shop.rig.drain()
    holds.place(shop.warehouse, None, shop.erasures().keys.pseudonyms("eve"), "case 1", "legal", now())
    holds.place(shop.warehouse, "billing", [None], "case 2", "legal", now())
    shop.erasures().request(shop.ann(), "dpo", None)
    shop.erasures().run()
    assert (state(shop), shop.ids("interactions")) == ("done", [])


def test_a_hold_that_is_placed_before_the_rows_are_deleted_keeps_them(shop: Shop, tmp_path: Path) -> None:
    begun(shop)
    (held,) = holds.place(shop.warehouse, None, [None], "case 17", "legal", now())
    with pytest.raises(Busy, match="case 17"):
        shop.erasures().run()
    assert state(shop) == "requested"
    shop.rig.send(interaction("ann-3", user_id="ann@shop"))
    shop.rig.drain()
    assert shop.ids("interactions") == ["ann-1", "ann-2", "ann-3", "bob-1"]
    holds.release(shop.warehouse, held.id, "closed", "legal", now())
    shop.erasures().run()
    assert (state(shop), shop.ids("interactions"), traces(tmp_path, SECRET)) == ("done", ["bob-1"], {})


def test_a_hold_that_is_placed_while_holds_are_looked_up_keeps_them(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(shop)
    erasures, real = shop.erasures(), module.Erasures._check_holds

    def looked_up(*given: object) -> object:
        found = real(*given)  # type: ignore[arg-type]
        holds.place(shop.warehouse, None, [None], "case 17", "legal", now())
        return found

    monkeypatch.setattr(module.Erasures, "_check_holds", looked_up)
    with pytest.raises(Busy, match="meanwhile"):
        erasures.run()
    assert "ann-1" in shop.ids("interactions")


def test_once_the_rows_are_deleted_the_erasure_ends(shop: Shop, tmp_path: Path) -> None:
    begun(shop)
    erasures = shop.erasures()
    erasures._advance(shop.warehouse.rows("FROM erasures")[0])
    holds.place(shop.warehouse, None, [None], "case 17", "legal", now())
    erasures.run()
    assert (state(shop), traces(tmp_path, SECRET)) == ("done", {})
