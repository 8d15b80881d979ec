"""Which workloads the jobs look at."""

from datetime import timedelta
from pathlib import Path

from teaching import START, Teacher

from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse import open_warehouse
from retuned.daemon.jobs import BUSY, MOST_WORKLOADS, Jobs
from retuned.daemon.settings import Settings


def test_names_that_a_producer_makes_up_do_not_fill_the_day(tmp_path: Path) -> None:
    warehouse = open_warehouse(WarehouseSettings(path=tmp_path / "retuned.duckdb"))
    now = START + timedelta(hours=1)
    jobs = Jobs(*[warehouse, Settings(), *[None] * 6], lambda: now)  # type: ignore[arg-type, call-arg]
    for _ in range(3):
        Teacher(warehouse, "support").ask("where is my parcel", "on its way")
    assert jobs.measured() == ["support"]
    for number in range(MOST_WORKLOADS + 10):
        Teacher(warehouse, f"made-up-{number:03d}").ask("where is my parcel", "on its way")
    assert len(jobs.workloads()) == MOST_WORKLOADS + 11
    assert len(jobs.measured()) == MOST_WORKLOADS
    assert "support" in jobs.measured()
    now += BUSY
    Teacher(warehouse, "support2").ask("where is my parcel", "on its way")
    warehouse.execute("UPDATE interactions SET timestamp = ? WHERE workload = 'support2'", [now])
    assert jobs.measured() == ["support2"]
    warehouse.close()
