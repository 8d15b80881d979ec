"""An erasure that is killed at any statement or change of the disk is never half, and ends after the next start."""

import shutil
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from fixtures.faults.killed import erasing, killed_at
from fixtures.feedback.erasing import ANN, LETTER, MINE, SECRET, Shop, now, traces
from retuned.consumers.settings import RetentionSettings
from retuned.consumers.warehouse.archive import Kept, archive
from retuned.consumers.warehouse.opening import open_warehouse

KILLS, STEP = 50, 5


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Half of what is taken back is archived, the other half is not; the erasure is requested."""
    shop = Shop(tmp_path_factory.mktemp("begun"))
    shop.rig.send(*shop.events())
    shop.rig.drain()
    settings = shop.settings.model_copy(update={"retention": RetentionSettings(keep_days=1)})
    archive(shop.warehouse, settings, Kept(), now() + timedelta(days=3), threading.Event(), ["dead_letters"])
    shop.erasures().request(shop.ann(), "dpo", None)
    shop.warehouse.close()
    return shop


@pytest.mark.timeout(900)
def test_a_killed_erasure_is_never_half_and_ends_after_the_next_start(begun: Shop, tmp_path: Path) -> None:
    killed = 0
    for kill in range(KILLS):
        folder = tmp_path / str(kill)
        shutil.copytree(begun.folder, folder)
        settings = begun.settings.model_copy(
            update={"warehouse": begun.settings.warehouse.model_copy(update={"path": folder / "w.duckdb"})}
        )
        killed += killed_at(kill * STEP, erasing, settings, statements=True)
        shop = Shop(folder, settings)
        answers, votes = set(shop.ids("interactions")), set(shop.ids("feedback"))
        assert (answers | votes) & ANN in (ANN, set())
        assert (answers - ANN, votes - ANN) == ({"bob-1"}, {"f-bob-on-bob"})
        shop.erasures().run()
        assert traces(folder, SECRET, MINE, LETTER, *ANN) == {}
        assert (shop.ids("interactions"), shop.ids("feedback")) == (["bob-1"], ["f-bob-on-bob"])
        (row,) = shop.warehouse.rows("SELECT state, selection, receipt FROM erasures")
        assert (row["state"], row["selection"]) == ("done", None)
        shop.warehouse.close()
        open_warehouse(settings.warehouse).close()
        shutil.rmtree(folder)
    assert killed > KILLS * 0.8
