"""Files that cannot be read or changed stop no erasure, and none is complete while they are left."""

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.erasing import LETTER, MINE, SECRET, Shop, now, traces
from fixtures.kafka.ingestion import feedback, interaction
from retuned.consumers.errors import Busy, RetunedError
from retuned.consumers.settings import RetentionSettings
from retuned.consumers.warehouse import holds
from retuned.consumers.warehouse.archive import Kept, archive
from retuned.consumers.warehouse.selection import Request, Selection
from retuned.daemon.erasure import erasure as module

OLD = "qzxyoldocelot"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """What Ann asked on an earlier day lies in a file of the archive of its own."""
    shop = Shop(tmp_path)
    asked = [{"role": "user", "content": f"My {OLD} is broken."}]
    bob = {"user_id": "bob", "attributes": {"channel": "app"}}
    shop.rig.send(
        interaction("ann-0", messages=asked, user_id="ann@shop", conversation_id="c-0", attributes={"channel": "app"}),
        interaction("bob-0", **bob),
    )
    shop.rig.drain()
    at = {"timestamp": f"{now().isoformat()}Z"}
    shop.rig.send(interaction("new", **at), feedback("f-new", "new", **at))
    shop.rig.drain()
    settings = shop.settings.model_copy(update={"retention": RetentionSettings(keep_days=1)})
    archive(shop.warehouse, settings, Kept(), now() + timedelta(days=3), threading.Event())
    shop.rig.send(*shop.events(), feedback("f-bob-on-0", "ann-0", user_id="bob"))
    shop.rig.drain()
    assert len(files(shop)) == 1
    yield shop
    shop.warehouse.close()


def files(shop: Shop) -> list[Path]:
    return sorted((shop.folder / "archive" / "interactions").glob("*/*.parquet"))


def damaged(file: Path, how: str) -> bytes:
    """Damages a file; returns its content before."""
    content = file.read_bytes()
    if how == "all":
        file.write_bytes(b"broken")
    elif how == "a page":  # the footer can be read
        file.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    return content


def run(shop: Shop) -> dict[str, Any]:
    """Carries out all erasures but for what is left, and returns the first of them."""
    with pytest.raises(RetunedError, match=r"interactions/day=.*parquet .*restore each from a backup, or delete it"):
        shop.erasures().run()
    return found(shop)


def found(shop: Shop) -> dict[str, Any]:
    (id, *_) = [row["id"] for row in shop.warehouse.rows("SELECT id FROM erasures ORDER BY requested_at")]
    return shop.erasures().of(id) or {}


@pytest.mark.parametrize("how", ["all", "a page"])
def test_an_erasure_goes_on_without_a_file_and_is_complete_once_it_is_mended(
    shop: Shop, tmp_path: Path, how: str
) -> None:
    (file,) = files(shop)
    content = damaged(file, how)
    (named,) = shop.erasures().preview(shop.ann())["left"]
    assert named == str(file)
    shop.erasures().request(shop.ann(), "dpo", None)
    waiting = run(shop)
    assert (waiting["state"], waiting["receipt"]["done_at"]) == ("swapping", None)
    assert str(file) in waiting["error"]
    assert str(file) in waiting["receipt"]["operator"][0]
    assert shop.ids("interactions") == ["bob-1", "new"]
    assert traces(tmp_path, SECRET, MINE, LETTER) == {}
    file.write_bytes(content)
    shop.erasures().run()
    done = found(shop)
    assert (done["state"], done["error"], shop.warehouse.rows("SELECT selection FROM erasures")[0]["selection"]) == (
        "done", None, None
    )  # fmt: skip
    assert traces(tmp_path, SECRET, MINE, LETTER, OLD, "ann-0") == {}
    assert shop.ids("interactions") == ["bob-1", "new"]
    assert shop.ids("feedback") == ["f-bob-on-bob", "f-new"]
    assert "not complete" not in str(done["receipt"])
    assert done["receipt"]["rows"] == {"interactions": 2, "feedback": 3, "dead_letters": 1}
    (entry,) = shop.warehouse.rows("SELECT rows FROM archives WHERE table_name = 'interactions'")
    assert entry["rows"] == 1
    shop.rig.send(*shop.events(), interaction("ann-0"))
    shop.rig.drain()
    assert shop.ids("interactions") == ["bob-1", "new"]


@pytest.mark.parametrize("with_folder", [False, True])
def test_an_erasure_is_complete_once_the_file_is_deleted(shop: Shop, with_folder: bool) -> None:
    (file,) = files(shop)
    damaged(file, "all")
    shop.erasures().request(shop.ann(), "dpo", None)
    run(shop)
    file.unlink()
    if with_folder:
        file.parent.rmdir()
    shop.erasures().run()
    done = found(shop)
    assert done["state"] == "done"
    (gone,) = [one for one in done["receipt"]["files"] if one["path"] == str(file)]
    assert (gone["rows"], gone["sha256_after"]) == (None, None)
    assert shop.warehouse.rows("SELECT file FROM archives WHERE table_name = 'interactions'") == []


def test_a_file_is_searched_again_by_what_was_selected_and_later_events_stay(shop: Shop) -> None:
    (file,) = files(shop)
    content = damaged(file, "all")
    asked = Request(workload="support.refunds", attribute=["channel=app"]).selection(shop.erasures().keys)
    shop.erasures().request(asked, "dpo", None)
    run(shop)
    assert shop.ids("interactions") == ["ann-1", "ann-2", "new"]
    shop.rig.send(interaction("bob-2", user_id="bob", conversation_id="c-2", attributes={"channel": "app"}))
    shop.rig.drain()
    file.write_bytes(content)
    shop.erasures().run()
    assert (found(shop)["state"], files(shop)) == ("done", [])
    assert shop.ids("interactions") == ["ann-1", "ann-2", "bob-2", "new"]
    assert "f-bob-on-0" not in shop.ids("feedback")
    shop.rig.send(*shop.events(), interaction("ann-0"))  # what went before and after the file was mended
    shop.rig.drain()
    assert shop.ids("interactions") == ["ann-1", "ann-2", "bob-2", "new"]


@pytest.mark.full
def test_others_are_erased_meanwhile_and_nothing_is_copied_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    swaps, real = list[object](), module.swap
    monkeypatch.setattr(module, "swap", lambda *given: swaps.append(real(*given)) or swaps[-1])
    (file,) = files(shop)
    content = damaged(file, "all")
    shop.erasures().request(shop.ann(), "dpo", None)
    run(shop)
    for _ in range(3):
        run(shop)
    assert len(swaps) == 1
    assert list(shop.erasures().waiting()) == ["swapping"]
    file.write_bytes(content)
    shop.erasures().run()
    damaged(file, "all")
    id = shop.erasures().request(Selection(interactions=["new"]), "dpo", None)
    with pytest.raises(RetunedError):
        shop.erasures().run()
    assert "new" not in shop.ids("interactions")
    other = shop.erasures().request(Selection(interactions=["bob-1"]), "dpo", None)
    file.unlink()
    shop.erasures().run(other)
    assert {(shop.erasures().of(one) or {})["state"] for one in (id, other)} == {"done"}


def test_a_file_that_cannot_be_changed_is_left_and_tried_again(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise PermissionError("Read-only file system")

    swaps, real = list[object](), module.swap
    monkeypatch.setattr(module, "swap", lambda *given: swaps.append(real(*given)) or swaps[-1])

    shop.erasures().request(shop.ann(), "dpo", None)
    with monkeypatch.context() as patch:
        patch.setattr("retuned.consumers.warehouse.rewriting.replaced", read_only)
        run(shop)
        assert "Read-only" in run(shop)["error"]
        assert traces(tmp_path, SECRET, MINE, LETTER) == {}
        assert traces(tmp_path, OLD) == {OLD: [str(files(shop)[0].relative_to(tmp_path))]}
    assert len(swaps) == 1
    shop.erasures().run()
    assert (found(shop)["state"], traces(tmp_path, OLD)) == ("done", {})


def test_a_hold_keeps_what_a_mended_file_holds_and_nothing_that_is_erased(shop: Shop, tmp_path: Path) -> None:
    (file,) = files(shop)
    content = damaged(file, "all")
    asked = Request(workload="support.refunds", attribute=["channel=app"]).selection(shop.erasures().keys)
    shop.erasures().request(asked, "dpo", None)
    run(shop)
    (held,) = holds.place(shop.warehouse, None, [None], "case 17", "legal", now())
    file.write_bytes(content)
    with pytest.raises(Busy, match="case 17"):
        shop.erasures().run()
    assert traces(tmp_path / "archive", OLD) != {}
    shop.rig.send(*shop.events())
    shop.rig.drain()
    assert "bob-1" not in shop.ids("interactions")
    holds.release(shop.warehouse, held.id, "closed", "legal", now())
    shop.erasures().run()
    assert (found(shop)["state"], traces(tmp_path, OLD)) == ("done", {})
    assert json.dumps(found(shop)["receipt"])
