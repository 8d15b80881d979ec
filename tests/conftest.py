"""Fixtures that all tests may use: brokers over TCP, a new warehouse, somebody who teaches."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from brokers import Broker, no_apache_kafka, run_apache_kafka, run_tansu
from forks import ForkedChild
from teaching import Teacher
from traffic import new_warehouse

from retuned.consumers.common import process
from retuned.consumers.warehouse.connection import Warehouse

if TYPE_CHECKING:  # they need the extra cluster
    from cluster_doubles import Cluster
    from clusters import Postgres


@pytest.fixture(scope="session")
def tansu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Tansu broker, one for the whole run: give topics and groups names of their own."""
    with run_tansu(tmp_path_factory.mktemp("tansu")) as broker:
        yield broker


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """An Apache Kafka broker, one for the whole run: give topics and groups names of their own."""
    if reason := no_apache_kafka():
        pytest.skip(reason)
    with run_apache_kafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="module")
def postgres() -> "Iterator[Postgres]":
    """A PostgreSQL server."""
    from clusters import run_postgres

    with run_postgres() as server:
        yield server


@pytest.fixture
def database(postgres: "Postgres", tmp_path: Path) -> str:
    """The URL of a new database on it."""
    return postgres.create(tmp_path.name)


@pytest.fixture
def cluster(tmp_path: Path, database: str) -> "Iterator[Cluster]":
    """Ingesters over a log in memory, a database and a folder."""
    from cluster_doubles import Cluster

    made = Cluster(tmp_path, database)
    yield made
    made.close()


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    """A new one."""
    opened = new_warehouse(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def teacher(warehouse: Warehouse) -> Teacher:
    """Teaches in the warehouse."""
    return Teacher(warehouse)


@pytest.fixture(scope="module")
def forked_children() -> Iterator[None]:
    """Children of this module's tests are forked, which saves what their imports cost, not started anew."""
    with pytest.MonkeyPatch.context() as patch:
        names = SimpleNamespace(Popen=ForkedChild, DEVNULL=subprocess.DEVNULL, PIPE=subprocess.PIPE)
        patch.setattr(process, "subprocess", names)
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch computes on one thread: threads that wait for each other take longer than a tiny model."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
