"""A short form of the cluster's chaos: three ingesters, a daemon, and all that may fail, a few times each."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import Broker

pytest.importorskip("obstore", reason="the extra cluster is not installed")
pytest.importorskip("moto", reason="the extra test is not installed")

from cluster_faults import FAULTS, survive
from clusters import S3_ENVIRONMENT, Postgres, run_postgres, run_s3


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with run_postgres() as server:
        yield server


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    with run_s3(tmp_path) as server:
        for name, value in (S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.mark.timeout(900)
def test_nothing_is_lost_or_doubled_or_left(
    apache_kafka: Broker, postgres: Postgres, s3: Broker, tmp_path: Path
) -> None:
    row = survive(list(FAULTS), apache_kafka, postgres, s3, tmp_path, events=6_000, times=10, count=3)
    assert row["stored"] == row["followed"] == row["sent"]
    assert (row["lost"], row["doubled"], row["followed doubled"], row["left"]) == (0, 0, 0, 0)
    assert all(row[name] == 2 for name in FAULTS)
