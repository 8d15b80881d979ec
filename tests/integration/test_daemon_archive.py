"""The archive job: what monitors and learning read stays, and a failure is shown and stops nothing."""

import json
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.daemon.daemons import App, running, settings_for
from fixtures.feedback.teaching import START, Teacher
from fixtures.feedback.traffic import store
from fixtures.kafka.brokers import Broker
from fixtures.models.datasets import build_dataset
from retuned.consumers.errors import StandsBy
from retuned.consumers.warehouse.connection import Size
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.cli.main import main
from retuned.daemon.metrics import Metrics
from retuned.daemon.operations.local import opened
from retuned.daemon.settings import Settings
from retuned.monitors.quality import measure as quality
from retuned.monitors.windows import windows

DAY = timedelta(days=1)


def old_settings(folder: Path, **sections: dict[str, Any]) -> Settings:
    return Settings(
        warehouse={"path": folder / "data" / "retuned.duckdb"},
        models={"directory": folder / "models"},
        dataset={"minimum_rows": 1, "traffic_rows": 0},  # what nobody rated may leave, and the sample with it
        gate={"minimum_examples": 1},
        retention={"keep_days": 5},
        **sections,
    )


def teach(teacher: Teacher) -> None:
    """30 days: each day a correction, a helpful answer, one that nobody spoke of, and one called solved and wrong."""
    for day in range(30):
        teacher.acts = day * 1_440
        word = "".join(chr(97 + int(digit)) * 3 for digit in str(day * 7_919 + 11))
        teacher.say(teacher.ask(f"May I return {word}?", "No."), "correction", f"Within {day + 2} days.")
        teacher.say(teacher.ask(f"Where is {word} made?", f"In {word}."), "helpful", True)
        teacher.ask(f"Who sells {word} here?", "We do.")
        told = teacher.ask(f"Is {word} sold out?", "Yes.")
        teacher.say(told, "resolved", True)
        teacher.say(told, "hallucination", True)


@pytest.mark.full
def test_windows_and_the_next_dataset_are_the_same_before_and_after(tmp_path: Path) -> None:
    settings = old_settings(tmp_path, windows={"reference_seconds": 3 * 86_400.0, "minimum_rows": 1})
    now = START + 30 * DAY
    with opened(settings) as local:
        jobs = local.jobs
        jobs.context.now = lambda: now
        teach(Teacher(jobs.context.warehouse))

        def seen() -> Any:
            found = windows(jobs.context.warehouse, settings.windows, "support", now)
            figures = quality.measure(jobs.context.warehouse, settings, "support", now)
            evidence = jobs.runs.evidence("support")
            return found, figures, evidence

        before = seen()
        made = build_dataset(jobs.context.warehouse, settings, "support", now)
        done = jobs.run("archive")
        assert seen() == before
        again = build_dataset(jobs.context.warehouse, settings, "support", now)
        assert (again.version, again.card) == (made.version, made.card)
        # Left: what nobody spoke of, of 25 days less the three of the reference. What people called wrong is evidence.
        left = jobs.context.warehouse.rows("SELECT * FROM archives")
        assert sum(row["rows"] for row in left if row["table_name"] == "interactions") == 22
        assert sum(row["rows"] for row in left if row["table_name"] == "feedback") == 0
        assert done.rows == 22


def test_what_is_archived_was_booked_first(tmp_path: Path) -> None:
    settings = old_settings(tmp_path, roi={"hourly_rate": 40})
    with opened(settings) as local:
        jobs = local.jobs
        jobs.context.now = lambda: START + 60 * DAY
        teacher = Teacher(jobs.context.warehouse)
        for _ in range(3):
            teacher.say(teacher.ask("How long?", "Long."), "time_saved_seconds", 3_600)
        teacher.acts += 10_000
        teacher.say(teacher.ask("Still there?", "Yes."), "comment", "Good.")
        # A later champion: the reference is not the first events any more.
        later = START + 50 * DAY
        jobs.context.warehouse.insert("aliases", workload="support", alias="champion", version=None, created_at=later)
        assert jobs.run("archive").rows == 6
        hours = jobs.context.warehouse.row("SELECT sum(quantity) AS hours FROM ledger WHERE item = 'time_saved'")
        assert hours == {"hours": 3}


def test_a_daemon_that_stands_by_keeps_no_answers_in_shadow_that_no_rollout_needs(tmp_path: Path) -> None:
    def stands_by() -> int:
        raise StandsBy("another daemon leads")

    with opened(old_settings(tmp_path)) as local:
        jobs, warehouse = local.jobs, local.jobs.context.warehouse
        at = {"timestamp": START, "received_at": START, "topic": "feedback", "partition": 0}
        answer = {"interaction_id": "i", "name": "shadow_answer", "value": "{}", "source": "app"} | at
        store(warehouse, "shadow_answers", [{"id": f"s{number}", "offset": number} | answer for number in range(3)])
        jobs.context.now, jobs.context.lead = lambda: START + 30 * DAY, stands_by
        jobs.run("archive")
        assert warehouse.rows("SELECT id FROM shadow_answers") == []


def test_a_workload_whose_events_have_all_left_is_still_known(tmp_path: Path) -> None:
    with opened(old_settings(tmp_path)) as local:
        jobs = local.jobs
        jobs.context.warehouse.insert(
            "aliases", workload="quiet", alias="champion", version="v1", created_at=START + 100 * DAY
        )
        assert jobs.context.workloads() == ["quiet"]
        jobs.context.now = lambda: START + 101 * DAY
        jobs.run("quality")


@pytest.mark.full
def test_an_archive_that_cannot_be_written_is_seen_and_stops_nothing(
    tansu: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And once it can be, the rows that stayed move."""
    blocked = tmp_path / "blocked"
    blocked.write_text("a file stands where the folder is to be")
    settings = settings_for(tansu, tmp_path, retention={"archive": str(blocked)})
    warehouse = open_warehouse(Settings(**settings).warehouse)
    teacher = Teacher(warehouse)
    teacher.ask("Is anybody there?", "No.")
    teacher.acts += 1_000
    teacher.ask("And now?", "No.")
    warehouse.insert("aliases", workload="support", alias="champion", version=None, created_at=START + 100 * DAY)
    warehouse.close()
    with closing(App(settings)) as app, running(tmp_path, settings) as daemon:
        daemon.until(lambda: daemon.metric("retuned_job_runs_total", task="archive", outcome="failed"), "a failure")
        app.answered("Do events still come in?", "Yes.")
        app.flush()
        daemon.until(lambda: daemon.status()["ingestion"]["interactions"] == 3, "the event")
        assert daemon.get("/healthz").status_code == 200
        assert "cannot be written" in daemon.status()["jobs"]["failures"]["archive"]
        assert daemon.stop() == 0
    blocked.unlink()
    with running(tmp_path, settings) as daemon:
        daemon.until(lambda: daemon.metric("retuned_archived_rows", table="interactions"), "the archive")
        assert daemon.metric("retuned_archived_bytes", table="interactions")
        assert daemon.metric("retuned_warehouse_bytes", part="used")
        assert daemon.status()["ingestion"]["interactions"] == 1
        assert main(["status", "--json", "--config", str(daemon.config)]) == 0
        archived = json.loads(capsys.readouterr().out)["storage"]["archived"]
        assert sum(table["rows"] for table in archived) == 2


def test_a_table_whose_last_file_is_deleted_has_no_size_in_the_archive() -> None:
    registry = CollectorRegistry()
    metrics, size = Metrics(registry), Size(1, 1, 1)
    metrics.storage(size, [{"table_name": name, "rows": 10, "bytes": 500} for name in ("interactions", "feedback")])
    metrics.storage(size, [{"table_name": "feedback", "rows": 9, "bytes": 450}])
    for name, left in (("retuned_archived_rows", 9), ("retuned_archived_bytes", 450)):
        assert registry.get_sample_value(name, {"table": "interactions"}) is None
        assert registry.get_sample_value(name, {"table": "feedback"}) == left
