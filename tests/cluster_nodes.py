"""A warehouse of a cluster, which leads or stands by, without the daemon around it."""

from datetime import datetime
from pathlib import Path
from typing import Any

from retuned.consumers.cluster.control import Control
from retuned.consumers.cluster.postgres import Postgres
from retuned.consumers.settings import StoreSettings, WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_warehouse

NOW = datetime(2026, 11, 1, 12, 30, 0, 123456)


class Node:
    """A warehouse, and its control tables."""

    def __init__(self, path: Path, database: str, epoch: int | None = None) -> None:
        self.path, self.database = path, database
        self.warehouse: Warehouse = open_warehouse(WarehouseSettings(path=path))
        self.postgres = Postgres(StoreSettings(postgres_url=database))  # type: ignore[arg-type]
        self.control = Control(self.postgres, self.warehouse)
        if epoch is not None:
            self.lead()

    def lead(self) -> None:
        [(epoch,)] = self.postgres.rows("lead", {"instance": str(self.path), "seconds": 0.0})
        self.control.follow()
        self.control.epoch = epoch
        self.control.publish_all()

    def decide(self, id: str, **values: Any) -> None:
        given = {"workload": "support", "kind": "retrain", "outcome": True, "reasons": '["a"]', "figures": "{}"}
        self.warehouse.insert("decisions", id=id, created_at=NOW, **{**given, **values})

    def rows(self, table: str) -> list[dict[str, Any]]:
        return self.warehouse.rows(f"SELECT * FROM {table} ORDER BY ALL")

    def decided(self) -> list[str]:
        return [row["id"] for row in self.rows("decisions")]

    def close(self) -> None:
        self.postgres.close()
        self.warehouse.close()

    def again(self) -> "Node":
        """After the end of its process."""
        self.close()
        return Node(self.path, self.database)
