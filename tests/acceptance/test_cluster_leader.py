"""A short form of the chaos of leaders: two daemons, each fault once, while versions are promoted."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import Broker

pytest.importorskip("obstore", reason="the extra cluster is not installed")

from cluster_leaders import FAULTS, ZERO, survive
from clusters import Postgres, run_postgres
from served import Adapters


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with run_postgres() as server:
        yield server


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_done_twice(tansu: Broker, postgres: Postgres, tmp_path: Path) -> None:
    row = survive(list(FAULTS), tansu, postgres, Adapters(tmp_path / "adapters"), tmp_path, times=3)
    assert {name: row[name] for name in ZERO} == dict.fromkeys(ZERO, 0)
    assert all(row[name] == 1 for name in FAULTS)
