"""Legal holds: what they keep retention from, and who may place them."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fixtures.daemon.operations import BY_NAME, ask
from fixtures.daemon.promoting import model_row
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import utc_now
from retuned.consumers.warehouse.holds import holds
from retuned.daemon.jobs.cleanup import remove_old
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.settings import Settings

WORKLOADS = ("support", "billing")


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    """Each workload has two versions, of which retention keeps one, and decisions of a year ago."""
    settings = Settings(
        warehouse={"path": tmp_path / "w.duckdb"},  # type: ignore[arg-type]
        models={"directory": tmp_path / "models"},  # type: ignore[arg-type]
        retention={"versions": 1},  # type: ignore[arg-type]
        kafka={"bootstrap_servers": "127.0.0.1:1"},  # type: ignore[arg-type]
        workloads={name: {"objective": "one"} for name in WORKLOADS},
    )
    with opened(settings) as service:
        for workload in WORKLOADS:
            for version, made in (("aaaaaaaa", datetime(2026, 1, 1)), ("bbbbbbbb", datetime(2026, 2, 1))):
                folder = tmp_path / "models" / workload / version
                folder.mkdir(parents=True)
                service.warehouse.insert("models", **model_row(version, folder, made, workload))
            for days in (365, 364):
                service.warehouse.insert(
                    "decisions", id=f"{workload}-{days}", created_at=utc_now() - timedelta(days=days), kind="retrain",
                    workload=workload, outcome=False, reasons="[]", figures="{}", run_id=None,
                )  # fmt: skip
        yield service


def kept(service: Local) -> tuple[int, list[str]]:
    """The number of decisions, and the workloads that have their older version still."""
    (decisions,) = service.warehouse.rows("SELECT count(*) AS n FROM decisions")
    folder = service.settings.models.directory
    return decisions["n"], [one for one in WORKLOADS if (folder / one / "aaaaaaaa").is_dir()]


def test_without_a_hold_retention_deletes_and_the_audit_has_it(local: Local) -> None:
    remove_old(local.jobs.context)
    assert kept(local) == (2, [])
    found = local.warehouse.rows("SELECT actor, actor_kind, action, workload FROM audit ORDER BY workload")
    assert [tuple(row.values()) for row in found] == [
        ("retention", "rule", "removed", one) for one in sorted(WORKLOADS)
    ]


def test_a_hold_on_a_workload_keeps_its_versions_and_rows_until_it_is_released(local: Local) -> None:
    ask(local, "place_hold", workload="support", reason="case 17")
    (hold,) = holds(local.warehouse, "support")
    assert (hold.reason, hold.workload, holds(local.warehouse, "billing")) == ("case 17", "support", [])
    remove_old(local.jobs.context)
    assert kept(local) == (3, ["support"])
    ask(local, "release_hold", id=hold.id, reason="case closed")
    assert holds(local.warehouse, "support") == []
    remove_old(local.jobs.context)
    assert kept(local) == (2, [])
    found = local.warehouse.rows("SELECT action, reason FROM audit WHERE actor_kind = 'local' ORDER BY sequence")
    assert [tuple(row.values()) for row in found] == [("place_hold", "case 17"), ("release_hold", "case closed")]
    (row,) = ask(local, "holds")
    assert (row["id"], row["release_reason"]) == (hold.id, "case closed")


def test_a_hold_on_a_user_may_cover_rows_of_any_workload(local: Local) -> None:
    ask(local, "place_hold", account="ann@shop", reason="case 18")
    remove_old(local.jobs.context)
    assert kept(local) == (4, list(WORKLOADS))
    keys = local.jobs.erasures.keys
    assert holds(local.warehouse, "billing", keys.pseudonym("bob@shop")) == []
    (hold,) = holds(local.warehouse, "billing", keys.pseudonym("ann@shop"))
    ask(local, "place_hold", account=hold.user_id, reason="case 19")
    assert {one.user_id for one in holds(local.warehouse)} == {hold.user_id}
    assert "ann@shop" not in str(local.warehouse.rows("FROM audit"))


def test_what_is_not_held_is_not_released_and_an_unknown_workload_is_named(local: Local) -> None:
    with pytest.raises(RetunedError, match="none of this id is in force"):
        ask(local, "release_hold", id="nothing", reason="?")
    with pytest.raises(RetunedError, match="workload supprt: unknown"):
        ask(local, "place_hold", workload="supprt", reason="?")


def test_only_an_admin_places_and_releases_holds() -> None:
    assert {BY_NAME[name].least for name in ("place_hold", "release_hold")} == {"admin"}
