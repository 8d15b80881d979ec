"""A warehouse of many workloads with weeks of history, written by SQL: for the console's pictures and figures."""

from datetime import datetime
from pathlib import Path

from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse


def fill(warehouse: Warehouse, now: datetime, workloads: int = 50, events: int = 100_000) -> list[str]:
    """Fill an empty warehouse with `events` answers in four weeks before `now`; returns the names of the workloads."""
    folder = warehouse.path.resolve().parent / "fleet"
    folder.mkdir()
    values = {"now": now, "workloads": workloads, "each": events // workloads, "folder": str(folder)}
    text = (Path(__file__).parent / "fleet.sql").read_text().replace("'holdout.parquet'", f"'{folder}/holdout.parquet'")
    with warehouse.transaction() as cursor:
        for statement in filter(str.strip, text.split(";\n")):
            cursor.execute(statement, {name: value for name, value in values.items() if f"${name}" in statement})
        found = cursor.execute("SELECT workload FROM fleet ORDER BY n").fetchall()
    judgements.follow(warehouse)
    return [name for (name,) in found]
