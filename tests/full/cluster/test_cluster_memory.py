"""The memory of corrections in a cluster: the leader writes it, and any daemon feeds gateways."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("obstore", reason="the extra cluster is not installed")

from pydantic import SecretStr

from fixtures.feedback.teaching import Teacher
from retuned.consumers.cluster.control import Control
from retuned.consumers.cluster.postgres import Postgres
from retuned.consumers.errors import StandsBy
from retuned.consumers.settings import PrivacySettings, StoreSettings, WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.retrain.memory import entries
from retuned.retrain.memory.feed import feed
from retuned.retrain.memory.settings import MemorySettings
from retuned.retrain.settings import Settings

SETTINGS = Settings(
    memory=MemorySettings(mode="context"), privacy=PrivacySettings(user_key=SecretStr("the key of all daemons"))
)


class Node:
    """A daemon's warehouse with the control tables of a cluster."""

    def __init__(self, path: Path, database: str) -> None:
        self.warehouse: Warehouse = open_warehouse(WarehouseSettings(path=path))
        self.postgres = Postgres(StoreSettings(postgres_url=database))  # type: ignore[arg-type]
        self.control, self.path = Control(self.postgres, self.warehouse), path

    def lead(self) -> None:
        [(epoch,)] = self.postgres.rows("lead", {"instance": str(self.path), "seconds": 0.0})
        self.control.follow()
        self.control.epoch = epoch
        self.control.publish_all()


@pytest.fixture
def nodes(tmp_path: Path, database: str) -> Iterator[list[Node]]:
    made = [Node(tmp_path / f"{name}.duckdb", database) for name in "ab"]
    yield made
    for node in made:
        node.postgres.close()
        node.warehouse.close()


def test_a_follower_feeds_what_the_leader_wrote_and_goes_on_as_leader(nodes: list[Node]) -> None:
    leader, follower = nodes
    leader.lead()
    teachers = [Teacher(node.warehouse) for node in nodes]
    for teacher in teachers:  # every daemon has all events
        teacher.correct("Is item 1 in stock?", "No.", "Yes, 2 pieces.")
    with pytest.raises(StandsBy):
        entries.follow(follower.warehouse, SETTINGS, "support", teachers[0].now)
    assert entries.follow(leader.warehouse, SETTINGS, "support", teachers[0].now) == 1
    follower.control.follow()
    fed = [feed(node.warehouse, SETTINGS, ["support"], 0, 10) for node in nodes]
    assert fed[0] == fed[1]
    assert [one["answer"] for one in fed[0]["entries"]] == ["Yes, 2 pieces."]
    assert fed[0]["epoch"]

    follower.lead()
    for teacher in teachers:
        teacher.correct("Is item 1 in stock?", "Yes, 2 pieces.", "No, sold out.")
    assert entries.follow(follower.warehouse, SETTINGS, "support", teachers[0].now) == 2
    leader.control.epoch = None
    leader.control.follow()
    changed = feed(leader.warehouse, SETTINGS, ["support"], fed[0]["sequence"], 10)
    assert [one["state"] for one in changed["entries"]] == ["superseded", "active"]
    assert changed["epoch"] == fed[0]["epoch"]
