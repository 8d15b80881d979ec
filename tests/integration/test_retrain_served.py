"""Which models answer which workload, read from what is in service."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse, insert
from retuned.daemon.settings import Settings
from retuned.retrain.release.assignment import Arm, Route, Served
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.release.served import served_routes

NOW = datetime(2026, 4, 1)


def version(warehouse: Warehouse, name: str) -> None:
    with warehouse.transaction() as cursor:
        insert(
            cursor,
            "models",
            version=name,
            workload="support",
            created_at=NOW,
            path=f"/models/support/{name}",
            base_model="b",
            base_hash="h",
            dataset_version="d",
            run_id="r",
            manifest="{}",
        )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(models={"directory": tmp_path})  # type: ignore[arg-type]


@pytest.fixture
def rollout(warehouse: Warehouse, settings: Settings) -> Rollout:
    return Rollout(warehouse, settings, MemoryPublisher(), "model-events")


def champion(model: str, name: str | None, base: str | None = None, previous: Served | None = None) -> Route:
    return Route(None, (Arm(model, name, "champion", 1.0),), Served("support@base", base), previous)


def test_the_champion_answers_from_the_moment_of_its_promotion(
    warehouse: Warehouse, settings: Settings, rollout: Rollout
) -> None:
    """And until servers have it, the one before it does."""
    assert served_routes(warehouse, settings, []) == {}
    previous = Served("support@base", None)
    for name in ("v1", "v2"):
        version(warehouse, name)
        rollout.promote("support", name, "operator", "by hand", NOW)
        expected = champion(f"support@{name}", f"support@{name}", previous=previous)
        assert served_routes(warehouse, settings, []) == {"support": expected}
        previous = Served(f"support@{name}", f"support@{name}")
    rollout.rollback("support", "operator", "worse", NOW)
    assert served_routes(warehouse, settings, []) == {"support": champion("support@v1", "support@v1")}
    rollout.promote("support", "base", "operator", "by hand", NOW)
    expected = champion("support@base", None, previous=Served("support@v1", "support@v1"))
    assert served_routes(warehouse, settings, []) == {"support": expected}


def test_a_version_that_learned_labels_is_routed_with_them(
    warehouse: Warehouse, settings: Settings, rollout: Rollout
) -> None:
    def labels(settings: Settings) -> dict[str, tuple[str, ...]]:
        return served_routes(warehouse, settings, [])["support"].labels

    def dataset(**metric: Any) -> None:
        with warehouse.transaction() as cursor:
            cursor.execute("DELETE FROM datasets")
            counts = {"train": 1, "holdout": 1, "replay": 0, "path": "/d"}
            card = json.dumps({"metric": metric})
            insert(cursor, "datasets", version="d", workload="support", created_at=NOW, card=card, **counts)

    dataset(name="label", labels=["refund", "lost_phone"])
    version(warehouse, "v1")
    assert served_routes(warehouse, settings, ["support"])["support"].labels == {}  # not in service
    rollout.promote("support", "v1", "operator", "by hand", NOW)
    assert labels(settings) == {"support@v1": ("refund", "lost_phone")}
    version(warehouse, "v2")
    rollout.promote("support", "v2", "operator", "by hand", NOW)
    assert labels(settings).keys() == {"support@v2", "support@v1"}  # the one before it may still answer
    configured = Settings.model_validate({"metric": {"name": "label", "labels": ["refund"]}})
    assert labels(configured)["support@v2"] == ("refund",)
    assert labels(Settings.model_validate({"metric": {"name": "text"}})) == {}
    dataset(name="label", labels=["refund", "call <NAME_1>"])
    assert labels(settings) == {}
    dataset(name="json", schema={})
    assert labels(settings) == {}


def test_a_configured_workload_is_answered_by_its_base_model(warehouse: Warehouse, settings: Settings) -> None:
    assert served_routes(warehouse, settings, ["support"]) == {"support": champion("support@base", None)}


def test_a_canary_and_a_holdback_have_their_shares_beside_the_champion(
    warehouse: Warehouse, settings: Settings, rollout: Rollout
) -> None:
    for name in ("v1", "v2"):
        version(warehouse, name)
    split: Any = {"id": "e1", "workload": "support", "created_at": NOW, "step_since": NOW, "ended_at": None}

    def arms(**columns: Any) -> list[tuple[str, str, float]]:
        with warehouse.transaction() as cursor:
            cursor.execute("DELETE FROM rollouts")
            insert(cursor, "rollouts", **split | columns)
        route = served_routes(warehouse, settings, [])["support"]
        assert route.experiment == "e1"
        return [(one.arm, one.model, one.share) for one in route.arms]

    canary = arms(version="v1", previous_version=None, share=0.05, state="canary")
    assert canary == [("canary", "support@v1", 0.05), ("champion", "support@base", 0.95)]
    rollout.promote("support", "v1", "operator", "by hand", NOW)
    canary = arms(version="v2", previous_version="v1", share=0.25, state="canary")
    assert canary == [("canary", "support@v2", 0.25), ("champion", "support@v1", 0.75)]
    rollout.promote("support", "v2", "operator", "by hand", NOW)
    held = arms(version="v2", previous_version="v1", share=0.95, state="holdback")
    assert held == [("champion", "support@v2", 0.95), ("holdback", "support@v1", 0.05)]
