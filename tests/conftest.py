"""Fixtures that all tests may use: brokers over TCP."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from brokers import Broker, no_apache_kafka, run_apache_kafka, run_tansu


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
