"""The job that replaces versions which learned erased rows, and the decision to keep one."""

import json
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.daemon.promoting import model_row
from fixtures.feedback.teaching import Teacher
from fixtures.feedback.traffic import new_warehouse
from fixtures.models.tiny import tiny_llama
from retuned.consumers.errors import Busy
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse import holds
from retuned.consumers.warehouse.connection import utc_now
from retuned.consumers.warehouse.opening import open_existing
from retuned.consumers.warehouse.selection import Selection
from retuned.consumers.warehouse.tombstones import Tombstones
from retuned.daemon.cli.main import main
from retuned.daemon.jobs import tasks
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.metrics import Metrics
from retuned.daemon.reports import reports
from retuned.daemon.settings import Settings
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain import versions
from retuned.retrain.metrics import Metrics as RetrainMetrics
from retuned.retrain.release import erased

LEARNED = "11111111"
SUPPORT, OTHER = (reports.report_id(name, reports.Period.of("month", utc_now()))[8:] for name in ("support", "sales"))


class House:
    """The jobs of a workload whose champion learned rows that were erased an hour ago."""

    def __init__(self, folder: Path) -> None:
        self.collectors, self.stop = CollectorRegistry(), threading.Event()
        self.settings = Settings(
            warehouse={"path": folder / "retuned.duckdb"},
            models={"directory": folder / "models", "base": tiny_llama(folder / "base")},
        )  # type: ignore[arg-type]
        self.warehouse = new_warehouse(folder)
        metrics = Metrics(self.collectors), MonitorMetrics(self.collectors), RetrainMetrics(self.collectors)
        made = Context(self.warehouse, self.settings, MemoryPublisher(), *metrics, self.stop, utc_now)
        self.jobs = Jobs(made, lambda _: None)
        teacher = Teacher(self.warehouse)
        teacher.ask("where is my parcel", "on its way")
        path = folder / "models" / "support" / LEARNED
        path.mkdir(parents=True)
        now = utc_now()
        base = versions.need_base(self.settings.base)
        row = model_row(LEARNED, path, now - timedelta(days=2))
        self.warehouse.insert("models", **row | {"base_model": str(base), "base_hash": versions.base_hash(base)})
        self.jobs.context.rollout.promote("support", LEARNED, "operator", "by hand", now - timedelta(days=1))
        self.warehouse.insert("erasures", id="e1", requested_at=now - timedelta(hours=1), state="done")
        self.warehouse.insert(
            "erasure_versions", erasure_id="e1", workload="support", version=LEARNED, dataset_version="d", rows=3
        )

    def waiting(self) -> list[dict[str, Any]]:
        return self.warehouse.rows("SELECT workload, reasons FROM runs WHERE state = 'waiting'")

    def metric(self, name: str) -> float | None:
        return self.collectors.get_sample_value(name, {"workload": "support"})


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.stop.set()
    made.jobs.shutdown()
    made.warehouse.close()


def test_a_retraining_is_asked_for_once_and_counted(house: House) -> None:
    for _ in range(2):
        house.jobs.run("erased")
    (run,) = house.waiting()
    assert "the champion learned rows that were erased on" in run["reasons"]
    assert (house.metric("retuned_erased_versions"), house.metric("retuned_erased_versions_overdue")) == (1.0, 0.0)
    house.warehouse.execute("UPDATE erasures SET requested_at = requested_at - INTERVAL 31 DAY")
    house.jobs.run("erased")
    assert house.metric("retuned_erased_versions_overdue") == 1.0


def test_a_person_keeps_the_champion_until_a_day(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, until = tmp_path / "retuned.yaml", utc_now().date() + timedelta(days=40)
    config.write_text(
        f"warehouse: {{path: {house.warehouse.path}}}\nmodels: {{directory: {house.settings.models.directory}}}\n"
    )
    house.warehouse.close()

    def keep(day: str) -> str:
        main(["keep-erased", "support", "--until", day, "--reason", "the season", "--config", str(config)])
        shown = capsys.readouterr()
        return shown.out + shown.err

    assert "expected a day after" in keep("2026-01-31")
    assert "until" in keep("soon")
    assert f"support@{LEARNED} may stay in service until {until}" in keep(str(until))
    kept = open_existing(house.settings.warehouse)
    assert erased.due(kept, "support", utc_now()) is None
    assert erased.due(kept, "support", utc_now() + timedelta(days=41)) is not None
    kept.close()


def test_all_reports_that_an_erasure_deletes_are_written_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    context, now = house.jobs.context, datetime(2026, 11, 30, 12)
    monkeypatch.setattr(context, "now", lambda: now)
    (asked,) = house.warehouse.rows("SELECT id FROM interactions")
    names = ["2026-02", "2026-03", "2026-04", "2026-07", "2026-Q1", "2026-Q2", "2026-Q3", "2026-10", "2026-11"]
    context.reports.mkdir()
    for name in names:
        for suffix in (".html", ".json"):
            (context.reports / f"{name}-{SUPPORT}{suffix}").write_text("{}")
    (context.reports / f"2026-04-{OTHER}.html").write_text("{}")
    house.jobs.erasures.request(Selection(interactions=[asked["id"]]), "dpo", None)
    house.jobs.erasures.run()
    assert reports.reports(context.reports, "support") == [f"2026-02-{SUPPORT}"]
    wanted: list[str] = []
    monkeypatch.setattr(Context, "measured", lambda _: ["support"])
    monkeypatch.setattr(tasks, "write_reports", lambda _, __, periods: wanted.extend(one.name for one in periods))
    house.jobs.run("report")
    assert wanted == ["2026-03", "2026-Q1", "2026-04", "2026-Q2", "2026-07", "2026-Q3", "2026-10"]


def test_an_erasure_that_a_legal_hold_stops_has_an_age_until_it_is_done(house: House) -> None:
    def age() -> float | None:
        house.jobs.run("storage")
        return house.collectors.get_sample_value("retuned_erasure_waiting_seconds", {"state": "requested"})

    assert age() is None
    (asked,) = house.warehouse.rows("SELECT id FROM interactions")
    (hold,) = holds.place(house.warehouse, "support", [None], "case 17", "ann", utc_now())
    id = house.jobs.erasures.request(Selection(interactions=[asked["id"]]), "dpo", None)
    with pytest.raises(Busy, match="case 17"):
        house.jobs.erasures.run()
    house.warehouse.execute("UPDATE erasures SET requested_at = requested_at - INTERVAL 2 HOUR WHERE id = ?", [id])
    assert 7_200 <= (age() or 0) < 7_300
    holds.release(house.warehouse, hold.id, "closed", "ann", utc_now())
    house.jobs.run("erasures")
    assert age() is None


def test_before_a_daemon_leads_it_deletes_what_was_erased_while_it_was_down(house: House) -> None:
    (asked,) = house.warehouse.rows("SELECT id FROM interactions")
    made = Tombstones(house.jobs.erasures.keys).rows([("interaction", asked["id"], None, None)])
    for kind, key_id, digest, _, _ in made:
        house.warehouse.insert("tombstones", erasure_id="e1", kind=kind, key_id=key_id, hash=digest)
    house.jobs.lead()
    assert house.warehouse.rows("SELECT id FROM interactions") == []


def test_what_a_job_writes_that_read_the_rows_before_is_erased_too(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_end = threading.Event(), threading.Event()

    def check_drift(*_: Any) -> None:
        (read,) = house.warehouse.rows("SELECT messages ->> '$[0].content' AS text FROM interactions")
        began.set()
        assert may_end.wait(60)
        features = json.dumps([{"feature": "prompt_length", "example": read["text"], "reference": "", "current": ""}])
        house.warehouse.insert(
            "drift_checks", id="late", created_at=utc_now(), workload="support", drifted=True, features=features,
            reference_rows=1, current_rows=1, detail=read["text"],
        )  # fmt: skip

    monkeypatch.setattr(tasks, "check_drift", check_drift)
    check = threading.Thread(target=house.jobs.run, args=["drift"])
    check.start()
    assert began.wait(60)
    (asked,) = house.warehouse.rows("SELECT id FROM interactions")
    id = house.jobs.erasures.request(Selection(interactions=[asked["id"]]), "dpo", None)
    with pytest.raises(Busy, match="job drift began before the rows were deleted"):
        house.jobs.erasures.run()
    may_end.set()
    check.join()
    house.jobs.run("erasures")
    done = house.jobs.erasures.of(id)
    assert done is not None
    assert done["state"] == "done"
    assert "parcel" not in str(house.warehouse.rows("FROM drift_checks"))
