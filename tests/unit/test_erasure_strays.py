"""What killed processes left beside a warehouse is gone once it is opened again, or an erasure is done."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fixtures.feedback.erasing import SECRET, Shop, now, traces
from retuned.consumers.errors import WarehouseError
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse import opening
from retuned.consumers.warehouse.opening import open_existing, open_warehouse
from retuned.daemon.erasure.erasure import Erasures
from retuned.daemon.settings import Settings

ROWS = "reports/20260302T140100-053321eb.parquet"
LEFT = [
    "w.duckdb.tmp/duckdb_temp_7_0_storage_DEFAULT-0.tmp",
    "w.duckdb.tmp/duckdb_temp_7_0_owner",
    "w.duckdb.erasing",
    "w.duckdb.erasing.wal",
    ROWS,
    "reports/20260302T140200-053321eb.json",
    "reports/.2026-03-support.html.7.tmp",
]
KEPT = [
    "w.duckdb.tmp/of-an-operator",
    "reports/20260302T140000-053321eb.json",
    "reports/20260302T140000-053321eb.html",
    "reports/2026-03-support.html",
]


def written(folder: Path, names: list[str]) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SECRET)
    return paths


@pytest.mark.parametrize("opens", [open_warehouse, open_existing])
def test_opening_deletes_what_killed_processes_left(tmp_path: Path, opens: type[object]) -> None:
    settings = WarehouseSettings(path=tmp_path / "w.duckdb")
    warehouse = open_warehouse(settings)
    warehouse.insert(
        "drift_checks", id="d", created_at=now(), workload="support", features="[]", reference_rows=0, current_rows=0,
        report=str(tmp_path / KEPT[1]), detail="",
    )  # fmt: skip
    warehouse.close()
    left, kept = written(tmp_path, LEFT), written(tmp_path, KEPT)
    opens(settings).close()  # type: ignore[attr-defined]
    assert [path for path in left if path.exists()] == []
    assert [path for path in kept if not path.exists()] == []


@pytest.mark.processes
def test_nothing_is_deleted_while_another_process_has_the_warehouse_open(tmp_path: Path) -> None:
    settings = WarehouseSettings(path=tmp_path / "w.duckdb")
    open_warehouse(settings).close()
    used = written(tmp_path, LEFT)
    code = f"import duckdb; c = duckdb.connect({str(settings.path)!r}); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(WarehouseError, match="in use"):
            open_warehouse(settings)
        holder.communicate("\n")
    assert [path for path in used if not path.exists()] == []


def test_what_duckdb_moves_to_disk_while_it_opens_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = WarehouseSettings(path=tmp_path / "w.duckdb")
    open_warehouse(settings).close()
    (taken, other) = written(tmp_path, LEFT[:2])
    make = opening.Warehouse

    def spilling(*given: object) -> object:
        written(tmp_path, [LEFT[0], "w.duckdb.tmp/duckdb_temp_7_1_owner"])
        return make(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(opening, "Warehouse", spilling)
    open_warehouse(settings).close()
    assert taken.exists()
    assert not other.exists()


def test_an_erasure_deletes_datasets_that_no_row_names(tmp_path: Path) -> None:
    """A run is killed between the files of its dataset and the row."""
    shop = Shop(tmp_path)
    shop.rig.send(*shop.events())
    shop.rig.drain()
    (own, other) = (tmp_path / "models" / workload / "datasets" for workload in ("support.refunds", "other"))
    names = ["0123456789ab", ".0123456789ac.7.tmp", f".0123456789ad.{os.getpid()}.tmp", "0123456789ae", "0123456789af"]
    left, unfinished, fetched, named, stored_later = (own / name for name in names)
    written_now = [other / "0123456789ba", other / ".0123456789bb.8.tmp"]  # by a run of another workload
    for path in (left, unfinished, fetched, named, stored_later, *written_now):
        path.mkdir(parents=True)
        (path / "card.json").write_text("{}")

    def store(path: Path) -> None:
        shop.warehouse.insert(
            "datasets", version=path.name, workload="support.refunds", created_at=now(), path=str(path), train=0,
            holdout=0, replay=0, card="{}", decisions="",
        )  # fmt: skip

    store(named)
    previewed = {file["path"] for file in shop.erasures().preview(shop.ann())["files"]}
    assert previewed == {str(path) for path in (left, unfinished, stored_later)}
    erasures = Erasures(shop.warehouse, shop.settings, threading.Event(), now, lambda *_: store(stored_later))
    erasures.request(shop.ann(), "dpo", None)
    erasures.run()
    assert shop.warehouse.rows("SELECT state FROM erasures") == [{"state": "done"}]
    assert set(own.iterdir()) == {fetched, named, stored_later}
    assert set(other.iterdir()) == set(written_now)
    shop.warehouse.close()


def test_an_erasure_deletes_what_killed_processes_left(tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    settings = Settings(
        kafka={"interactions_topic": "in", "feedback_topic": "fb", "group_id": "g"},
        ingest={"max_age_days": 73_000},
        warehouse={"path": tmp_path / "data" / "w.duckdb"},
        models={"directory": tmp_path / "models"},
        labels={"file": labels},
        retention={"archive": tmp_path / "archive"},
    )  # type: ignore[arg-type]
    shop = Shop(tmp_path, settings)
    shop.rig.send(*shop.events())
    shop.rig.drain()
    left = written(
        tmp_path,
        [
            "archive/interactions/day=2026-01-01/.0123456789abcdef.parquet.7.tmp",
            "archive/feedback/writing.tmp",
            "data/.w.duckdb.schema-045.7.tmp",
            ".labels.jsonl.7.tmp",
        ],
    )
    written(tmp_path, [f".labels.jsonl.{os.getpid()}.tmp"])  # this process may be writing it
    assert {file["path"] for file in shop.erasures().preview(shop.ann())["files"]} == set(map(str, left))
    shop.erasures().request(shop.ann(), "dpo", None)
    shop.erasures().run()
    assert traces(tmp_path, SECRET) == {}
    (row,) = shop.warehouse.rows("SELECT receipt FROM erasures")
    receipt = json.loads(row["receipt"])
    assert {file["path"]: file["sha256_after"] for file in receipt["files"]} == dict.fromkeys(map(str, left))
    shop.warehouse.close()
