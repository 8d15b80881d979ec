"""A cluster as processes: a short form of its chaos, and a machine whose files are gone."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import httpx
import pytest
import yaml

from fixtures.kafka.brokers import Broker

pytest.importorskip("obstore", reason="the extra cluster is not installed")
pytest.importorskip("moto", reason="the extra test is not installed")

from fixtures.cluster.artifacts import keys, write
from fixtures.cluster.servers import S3_ENVIRONMENT, Postgres, run_s3
from fixtures.daemon.daemons import Daemon, settings_for
from fixtures.daemon.promoting import model_row
from fixtures.faults.cluster import FAULTS, survive
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.settings import StoreSettings, WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.cli.main import main


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    with run_s3(tmp_path) as server:
        for name, value in (S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.mark.timeout(900)
def test_nothing_is_lost_or_doubled_or_left(
    apache_kafka: Broker, own_postgres: Postgres, s3: Broker, tmp_path: Path
) -> None:
    row = survive(list(FAULTS), apache_kafka, own_postgres, s3, tmp_path, events=6_000, times=10, count=3)
    assert row["stored"] == row["followed"] == row["sent"]
    assert (row["lost"], row["doubled"], row["followed doubled"], row["left"]) == (0, 0, 0, 0)
    assert all(row[name] == 2 for name in FAULTS)


def test_a_machine_that_lost_its_disk_but_for_the_warehouse_has_all_files_again(
    tansu: Broker, own_postgres: Postgres, s3: Broker, tmp_path: Path
) -> None:
    httpx.put(f"http://127.0.0.1:{s3.port}/bucket").raise_for_status()
    store = {"postgres_url": own_postgres.create("artifacts"), "objects_url": "s3://bucket/retuned"}
    privacy = {"user_key": "a key of at least sixteen characters"}
    settings = settings_for(tansu, tmp_path, store=store, privacy=privacy)
    models = tmp_path / "models"
    with closing(open_warehouse(WarehouseSettings(path=tmp_path / "data" / "retuned.duckdb"))) as warehouse:
        for version in ("aaaaaaaa", "bbbbbbbb"):
            write(models / "support" / version, adapter=version.encode())
            path = (models / "support" / version).resolve()
            warehouse.insert("models", **model_row(version, path, datetime(2026, 4, 1)))
        for alias, version in (("champion", "bbbbbbbb"), ("previous", "aaaaaaaa")):
            now = datetime(2026, 4, 1)
            warehouse.insert("aliases", workload="support", alias=alias, version=version, created_at=now)
    config = tmp_path / "retuned.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert main(["migrate", "--to", "cluster", "--config", str(config)]) == 0
    objects = Objects(StoreSettings(**store))
    assert len(keys(objects)) == 2
    shutil.rmtree(models)
    daemon = Daemon(tmp_path, settings | {"store": store | {"kind": "cluster"}})
    try:
        daemon.start()
        daemon.until((models / "support" / "champion").exists, "the links, which come after the files")
        assert (models / "support" / "champion" / "adapter.bin").read_bytes() == b"bbbbbbbb"
        daemon.until(lambda: daemon.status()["warnings"] == [], "no warning")
        assert daemon.stop() == 0
        shutil.rmtree(models)
        [champion] = [key for key in keys(objects) if objects.get(key) == b"bbbbbbbb"]
        objects.delete([champion])
        daemon.start()
        daemon.until((models / "support" / "aaaaaaaa").exists, "the other version")
        expected = f"version support/bbbbbbbb: store.objects_url: {champion} does not exist"
        daemon.until(lambda: any(one.startswith(expected) for one in daemon.status()["warnings"]), "a warning")
        assert daemon.metric("retuned_warnings")
        assert (models / "support" / "aaaaaaaa" / "adapter.bin").read_bytes() == b"aaaaaaaa"
        assert daemon.stop() == 0
    finally:
        daemon.end()
