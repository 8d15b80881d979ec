"""What should serve: shares, the transaction with the aliases, what is drained."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.settings import Settings
from retuned.retrain.release import retention
from retuned.retrain.release.deployments import deploy, deployments, drain, wanted
from retuned.retrain.release.reconciler import Reconciler
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.release.routes import under_way

NOW = datetime(2026, 4, 1, 12)
OLD, NEW = "aaaaaaaa", "bbbbbbbb"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {
            "models": {"directory": tmp_path / "models", "base": "/models/base"},
            "serving": {"keep_seconds": 600, "drain_seconds": 60},
        }
    )


@pytest.fixture(autouse=True)
def rollout(warehouse: Warehouse, settings: Settings) -> Rollout:
    row = {"base_model": "b", "base_hash": "h", "dataset_version": "d", "run_id": "r", "manifest": "{}"}
    for version in (OLD, NEW):
        path = str(settings.models.directory / "support" / version)
        warehouse.insert("models", version=version, workload="support", created_at=NOW, path=path, **row)
    return Rollout(warehouse, settings, MemoryPublisher(), "events")


def shares(warehouse: Warehouse) -> dict[str | None, float]:
    return {one.version: one.share for one in deployments(warehouse)}


def set_shares(warehouse: Warehouse, at: datetime, given: dict[str | None, float]) -> None:
    with warehouse.transaction() as cursor:
        deploy(cursor, "support", given, at)


def test_a_promotion_and_a_rollback_change_the_shares(warehouse: Warehouse, rollout: Rollout) -> None:
    rollout.promote("support", OLD, "operator", "", NOW)
    assert shares(warehouse) == {OLD: 1.0}
    rollout.promote("support", NEW, "operator", "", NOW)
    assert shares(warehouse) == {NEW: 1.0, OLD: 0.0}
    rollout.rollback("support", "operator", "", NOW)
    assert shares(warehouse) == {OLD: 1.0, NEW: 0.0}
    rollout.promote("support", "base", "operator", "", NOW)
    assert shares(warehouse) == {None: 1.0, OLD: 0.0, NEW: 0.0}
    rollout.promote("support", NEW, "operator", "", NOW)
    assert shares(warehouse) == {NEW: 1.0, OLD: 0.0}


def test_the_shares_are_written_with_the_aliases_or_not_at_all(
    warehouse: Warehouse, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retuned.retrain.release import rollout as module

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(module, "deploy", fails)
    with pytest.raises(RuntimeError):
        rollout.promote("support", OLD, "operator", "", NOW)
    assert warehouse.rows("SELECT * FROM aliases") == []
    assert deployments(warehouse) == []


def test_a_rollout_moves_the_shares_step_by_step(warehouse: Warehouse, settings: Settings, rollout: Rollout) -> None:
    rollout.promote("support", OLD, "operator", "", NOW)
    own = settings.rollout.model_validate({"steps": [0.05, 0.25, 1.0], "holdback": 0.05})
    stepped = replace(rollout, settings=settings.model_copy(update={"rollout": own}))
    assert stepped.begin("support", NEW, "gate", "", NOW) == 0.05
    assert shares(warehouse) == {OLD: 0.95, NEW: 0.05}
    assert {one.version: one.aliases for one in deployments(warehouse)} == {
        OLD: frozenset({"champion"}),
        NEW: frozenset({"canary"}),
    }
    running = under_way(warehouse, "support")
    assert running is not None
    stepped.advance("support", running.id, 0.05, "", NOW)
    assert shares(warehouse) == {OLD: 0.75, NEW: 0.25}
    stepped.advance("support", running.id, 0.25, "", NOW)
    assert shares(warehouse) == {NEW: 0.95, OLD: 0.05}
    stepped.complete("support", "", NOW)
    assert shares(warehouse) == {NEW: 1.0, OLD: 0.0}


def test_a_canary_that_is_taken_back_is_drained(warehouse: Warehouse, settings: Settings, rollout: Rollout) -> None:
    own = settings.rollout.model_validate({"steps": [0.05, 1.0]})
    stepped = replace(rollout, settings=settings.model_copy(update={"rollout": own}))
    stepped.begin("support", NEW, "gate", "", NOW)
    assert shares(warehouse) == {None: 0.95, NEW: 0.05}
    stepped.rollback("support", "operator", "", NOW)
    assert shares(warehouse) == {None: 1.0, NEW: 0.0}


def test_since_and_served_at_are_of_the_share(warehouse: Warehouse, rollout: Rollout) -> None:
    rollout.promote("support", OLD, "operator", "", NOW)
    warehouse.execute("UPDATE deployments SET served_at = ?", [NOW])
    later = NOW + timedelta(minutes=1)
    set_shares(warehouse, later, {OLD: 0.95, NEW: 0.05})
    old, new = deployments(warehouse)
    assert (old.since, old.served_at) == (later, NOW)  # it serves as before
    assert (new.since, new.served_at) == (later, None)
    again = later + timedelta(minutes=1)
    set_shares(warehouse, again, {OLD: 0.95, NEW: 0.05})
    assert [one.since for one in deployments(warehouse)] == [later, later]
    set_shares(warehouse, again, {OLD: 0.0, NEW: 1.0})
    back = again + timedelta(minutes=1)
    set_shares(warehouse, back, {OLD: 1.0})
    old = next(one for one in deployments(warehouse) if one.version == OLD)
    assert (old.since, old.served_at) == (back, NOW)  # the servers have it still


def test_a_version_stays_until_servers_have_had_the_next_one_for_long_enough(
    warehouse: Warehouse, settings: Settings, rollout: Rollout
) -> None:
    serving = {"targets": [{"kind": "vllm", "urls": ["http://127.0.0.1:1/v1"]}], "keep_seconds": 600}
    own = settings.model_copy(update={"serving": settings.serving.model_validate(serving)})
    rollout.promote("support", OLD, "operator", "", NOW)
    rollout.promote("support", NEW, "operator", "", NOW)

    def stay(after: timedelta) -> set[str | None]:
        return {one.version for one in drain(warehouse, own, deployments(warehouse), NOW + after)}

    assert stay(timedelta(hours=1)) == {OLD, NEW}  # the new one is still to be loaded
    warehouse.execute("UPDATE deployments SET served_at = ? WHERE version = ?", [NOW + timedelta(hours=1), NEW])
    assert stay(timedelta(hours=1, seconds=599)) == {OLD, NEW}
    assert stay(timedelta(hours=1, seconds=600)) == {NEW}


def test_without_a_target_nothing_is_waited_for(warehouse: Warehouse, settings: Settings, rollout: Rollout) -> None:
    own = settings.model_copy(update={"serving": settings.serving.model_copy(update={"targets": ()})})
    rollout.promote("support", OLD, "operator", "", NOW)
    rollout.promote("support", NEW, "operator", "", NOW)
    found = deployments(warehouse)
    assert {one.version for one in drain(warehouse, own, found, NOW + timedelta(seconds=600))} == {NEW}
    reconciler = Reconciler(warehouse, own, lambda: NOW)
    reconciler.run()
    assert [reconciler.service(one).enough for one in found] == [True, True]


def test_what_has_a_share_is_never_drained(warehouse: Warehouse, rollout: Rollout, settings: Settings) -> None:
    rollout.promote("support", OLD, "operator", "", NOW)
    set_shares(warehouse, NOW, {OLD: 0.5, NEW: 0.5})
    found = deployments(warehouse)
    assert drain(warehouse, settings, found, NOW + timedelta(days=99)) == found
    assert len(deployments(warehouse)) == 2


def test_a_share_that_comes_back_while_it_is_drained_stays(warehouse: Warehouse, settings: Settings) -> None:
    set_shares(warehouse, NOW, {OLD: 1.0, NEW: 0.0})
    found = deployments(warehouse)
    set_shares(warehouse, NOW + timedelta(days=1), {NEW: 1.0})  # after it was read
    drain(warehouse, settings, found, NOW + timedelta(days=1))
    assert shares(warehouse) == {NEW: 1.0, OLD: 0.0}


def test_retention_keeps_what_targets_should_have(warehouse: Warehouse, settings: Settings) -> None:
    set_shares(warehouse, NOW, {NEW: 0.0})  # the second of two that are equally old
    retention.remove(warehouse, settings, "support", NOW, 1, None)
    assert [one.version for one in deployments(warehouse)] == [NEW]
    warehouse.execute("DELETE FROM deployments")
    retention.remove(warehouse, settings, "support", NOW, 1, None)
    assert warehouse.row("SELECT version FROM models WHERE removed_at IS NOT NULL") == {"version": NEW}


def test_a_version_that_is_gone_is_not_wanted(warehouse: Warehouse) -> None:
    set_shares(warehouse, NOW, {OLD: 1.0})
    assert list(wanted(warehouse, ["support", "other"])) == [f"support@{OLD}"]
    assert wanted(warehouse, ["other"]) == {}
    warehouse.execute("UPDATE models SET removed_at = created_at")
    assert wanted(warehouse, ["support"]) == {}
