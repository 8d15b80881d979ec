"""Fixtures that all tests may use: brokers over TCP, a new warehouse, somebody who teaches."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent / "benchmarks"))  # what simulates and measures is tested too

from fixtures.feedback.teaching import Teacher
from fixtures.feedback.traffic import new_warehouse
from fixtures.kafka.brokers import Broker, no_apache_kafka, run_apache_kafka, run_tansu
from retuned.consumers.warehouse.connection import Warehouse
from runner import empty_warehouse, forks

if TYPE_CHECKING:  # they need the extra cluster
    from fixtures.cluster.doubles import Cluster
    from fixtures.cluster.servers import Postgres
    from fixtures.models.served import Adapters
    from retuned.retrain.settings import Settings

pytest_plugins = ["runner.parts", "runner.core_seconds", "runner.workers"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-processes", action="store_true", help="a test that starts Python fails")


def _one_authority(folder: Path) -> Path:
    """Each client of httpx reads all authorities, which takes 15 ms; tests have authorities of their own."""
    authorities = Path(certifi.where()).read_text()
    file = folder / "authority.pem"
    file.write_text(authorities[authorities.index("-----BEGIN") :].partition("\n\n")[0])
    return file


def pytest_configure(config: pytest.Config) -> None:
    if empty_warehouse.EMPTY not in os.environ:  # workers use that of the process that started them
        folder = tempfile.TemporaryDirectory(prefix="retuned-empty-")
        os.environ[empty_warehouse.EMPTY] = str(Path(folder.name) / "empty.duckdb")
        config.add_cleanup(lambda: os.environ.pop(empty_warehouse.EMPTY))
        os.environ["SSL_CERT_FILE"] = str(_one_authority(Path(folder.name)))
        config.add_cleanup(lambda: os.environ.pop("SSL_CERT_FILE"))
        config.add_cleanup(folder.cleanup)
    empty_warehouse.use()
    subprocess.Popen = forks.Popen  # type: ignore[misc]
    if forks.SERVER not in os.environ and sys.platform == "linux":  # workers use that of the process that started them
        forks.server = forks.Server()
        if config.option.workers and not config.option.no_processes:
            forks.server.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks a server which pip does not install is slow by nature."""
    for item in items:
        if "apache_kafka" in (*getattr(item, "fixturenames", ()), *re.split(r"[\[\]-]", item.name)):
            item.add_marker(pytest.mark.full)


@pytest.fixture(autouse=True)
def _no_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.config.getoption("no_processes"):

        class Popen(forks.Popen):  # a class, since libraries derive from it
            def __init__(self, command: Any, *more: Any, **named: Any) -> None:
                if command[0] == sys.executable:
                    pytest.fail("it starts a process: mark it with pytest.mark.processes")
                super().__init__(command, *more, **named)

        monkeypatch.setattr(subprocess, "Popen", Popen)


def pytest_unconfigure() -> None:
    if forks.server is not None:
        forks.server.close()
        forks.server = None  # `make mutants` runs pytest many times in one process


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


@pytest.fixture(scope="session")
def postgres() -> "Iterator[Postgres]":
    """A PostgreSQL server, one for the whole run: give databases names of their own."""
    from fixtures.cluster.servers import run_postgres

    with run_postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> "Iterator[Postgres]":
    """A PostgreSQL server of one test, which may kill it."""
    from fixtures.cluster.servers import run_postgres

    with run_postgres() as server:
        yield server


@pytest.fixture
def database(postgres: "Postgres", tmp_path: Path) -> str:
    """The URL of a new database on it, with the schema of a cluster."""
    return postgres.copy(tmp_path.name)


@pytest.fixture
def cluster(tmp_path: Path, database: str) -> "Iterator[Cluster]":
    """Ingesters over a log in memory, a database and a folder."""
    from fixtures.cluster.doubles import Cluster

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


@pytest.fixture
def real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the test starts is forked, nor what that starts: each imports what it needs, as in production."""
    monkeypatch.delenv(forks.SERVER, raising=False)


@pytest.fixture
def settings(tmp_path: Path) -> "Settings":
    """Of datasets with a row and decisions with an example, both of which are enough."""
    from retuned.retrain.settings import DatasetSettings, GateSettings, ModelsSettings, Settings

    return Settings(
        models=ModelsSettings(directory=tmp_path / "models"),
        dataset=DatasetSettings(minimum_rows=1),
        gate=GateSettings(minimum_examples=1),
    )


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> "Adapters":
    """Adapters of a tiny model."""
    from fixtures.models.served import Adapters

    return Adapters(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model, one for the whole run: change nothing in it."""
    from fixtures.models.tiny import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset to train it on, one for the whole run."""
    from fixtures.models.trainings import dataset

    return dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch computes on one thread: threads that wait for each other take longer than a tiny model."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
