"""Drift by command: a check as of a past time, and what a person accepts as usual."""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.daemon.operations import ask, command
from fixtures.feedback.traffic import START, interactions, prompts
from retuned.consumers.errors import RetunedError
from retuned.consumers.settings import WarehouseSettings
from retuned.daemon.cli import main as cli
from retuned.daemon.jsontext import plain
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.settings import Settings
from retuned.monitors.drift.check import latest
from retuned.monitors.settings import WindowsSettings

DAY = timedelta(days=1)
THEN = START + 4 * DAY


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Local]:
    """History of four days of refunds and deliveries, then three days of what is broken."""
    settings = Settings(
        warehouse=WarehouseSettings(path=tmp_path / "retuned.duckdb"),
        windows=WindowsSettings(reference_seconds=3 * 86_400, minimum_rows=50),
    )
    with opened(settings) as local:
        rng = random.Random(1)
        interactions(local.warehouse, prompts(600, rng, (3, 3, 2, 2, 1)), rng, step=DAY / 150)
        interactions(local.warehouse, prompts(450, rng, (0, 0, 0, 0, 1)), rng, start=THEN, step=DAY / 150, offset=1_000)
        yield local


def at(service: Local, monkeypatch: pytest.MonkeyPatch, now: datetime) -> None:
    monkeypatch.setattr(service.jobs.context, "now", lambda: now)


def drift(service: Local, name: str, **arguments: Any) -> str:
    done: str = command(service, f"{name}-drift", "support", arguments)["done"]
    return done


@pytest.mark.full
def test_a_check_as_of_a_time_compares_the_windows_of_that_time(service: Local) -> None:
    quiet = drift(service, "check", as_of=THEN.isoformat())
    assert quiet.startswith(f"as of {THEN:%Y-%m-%d %H:%M} UTC, 150 conversations against 450 of the reference: 0 of ")
    assert "must be other" not in quiet
    drifted = drift(service, "check", as_of=f"{THEN + DAY:%Y-%m-%dT%H:%M}+00:00")
    assert "topic from " in drifted
    stored = latest(service.warehouse, "support")
    assert stored is not None
    assert (stored.created_at, stored.drifted) == (THEN + DAY, True)
    assert f": {stored.detail} About {stored.severity:.0%} of the current events must differ from before (" in drifted
    assert drifted.endswith(f" Report: /reports/{stored.id}")
    assert stored.severity is not None
    assert stored.severity > 0.5
    drift(service, "check", as_of=THEN.isoformat())
    assert latest(service.warehouse, "support") == stored
    with pytest.raises(RetunedError, match="as_of: expected a date or a time such as 2026-11-24T09:30, got 'soon'"):
        drift(service, "check", as_of="soon")
    with pytest.raises(RetunedError, match="as_of: 9999-01-01 00:00 UTC has not come yet"):
        drift(service, "check", as_of="9999-01-01")
    assert latest(service.warehouse, "support") == stored


@pytest.mark.full
def test_what_is_accepted_is_the_reference(service: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    at(service, monkeypatch, THEN + DAY)
    assert "topic from " in drift(service, "check")
    shown = service.jobs.context.monitor_metrics._gauges["retuned_drift_detected"]
    assert [sample.value for family in shown.collect() for sample in family.samples] == [1.0]
    assert ask(service, "status")["workloads"]["support"]["drift_reference"] is None
    with pytest.raises(RetunedError, match="give the reason"):
        drift(service, "accept")
    accepted = drift(service, "accept", reason="a recall of the lamp", asked_by="anna")
    assert accepted.startswith(
        f"the reference of drift checks begins at {THEN:%Y-%m-%d %H:%M} UTC, with 150 conversations"
    )
    (row,) = service.warehouse.rows("SELECT actor, reason FROM drift_references")
    assert row == {"actor": "anna", "reason": "a recall of the lamp"}
    assert not [sample for family in shown.collect() for sample in family.samples]  # of another reference
    assert ask(service, "status")["workloads"]["support"]["drift_reference"] == {
        "created_at": plain(THEN + DAY),
        "start": plain(THEN),
        "actor": "anna",
        "reason": "a recall of the lamp",
    }
    assert "UTC: Blind: 50 more conversations are needed." in drift(service, "check")
    with pytest.raises(RetunedError, match=r"holds 0 conversations, and a reference needs 50 \(windows.minimum_rows\)"):
        drift(service, "accept", reason="again")
    at(service, monkeypatch, THEN + 2 * DAY)
    assert "of the reference: 0 of " in drift(service, "check")
    service.warehouse.insert("aliases", workload="support", alias="champion", version="1", created_at=THEN + 2 * DAY)
    assert ask(service, "status")["workloads"]["support"]["drift_reference"] is None


def test_the_command_line_checks_and_accepts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "retuned.yaml"
    config.write_text(f"warehouse: {{path: {tmp_path / 'retuned.duckdb'}}}\nhttp: {{port: 1}}\n", encoding="utf-8")
    with opened(Settings(warehouse=WarehouseSettings(path=tmp_path / "retuned.duckdb"))) as local:
        interactions(local.warehouse, prompts(60, random.Random(1)), random.Random(1))
    common = ["--config", str(config), "drift"]
    assert cli.main([*common, "check", "support", "--as-of", "2026-03-02T10:00"]) == 0
    assert capsys.readouterr().out == (
        "support: as of 2026-03-02 10:00 UTC: Blind: 140 more conversations are needed. There are 0 in the "
        "reference and 60 in the current window; each needs 100 (windows.minimum_rows).\n"
    )
    assert cli.main([*common, "accept", "support", "--reason", "a new product"]) == 1
    assert "a reference needs 100" in capsys.readouterr().err
