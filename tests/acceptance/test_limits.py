"""A daemon at its limit of open files: clients cannot bring it there, and where something does, it is named."""

import resource
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import duckdb
import pytest

from fixtures.daemon.daemons import Daemon, settings_for
from fixtures.kafka.brokers import Broker
from retuned.consumers.errors import WarehouseError
from retuned.consumers.warehouse.connection import Warehouse

FILES = 1_024

NO_FILES_LEFT = """
import os, resource
from retuned.consumers.kafka.connection import check_broker
from retuned.consumers.errors import BrokerUnavailable
from retuned.consumers.kafka.publisher import KafkaPublisher
from retuned.consumers.kafka.source import KafkaSource
from retuned.consumers.settings import KafkaSettings
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        os.open("/dev/null", os.O_RDONLY)
except OSError:
    pass
settings = KafkaSettings()
tries = (
    lambda: check_broker(settings),
    lambda: KafkaSource(settings, dict).poll(1, 0.1),
    lambda: KafkaPublisher(settings).publish("t", "k", {}),
)
for attempt in tries:
    try:
        attempt()
    except BrokerUnavailable as error:
        print(error)
"""


@pytest.mark.full
def test_idle_connections_do_not_end_a_daemon(tansu: Broker, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * FILES:
        pytest.skip("this process may not open enough connections itself")
    daemon = Daemon(tmp_path, settings_for(tansu, tmp_path))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * FILES)), hard))
    try:
        daemon.start()
        assert daemon.process is not None
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        with ExitStack() as stack:
            for _ in range(FILES + 300):
                with suppress(OSError):
                    stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=5))
            for path in ("/healthz", "/readyz", "/metrics"):
                assert daemon.get(path).status_code == 200
            opened = daemon.metric("process_open_fds")
            assert opened is not None
            assert opened < FILES / 2
        assert daemon.stop() == 0
    finally:
        daemon.end()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_without_files_left_names_the_limit() -> None:
    done = subprocess.run([sys.executable, "-c", NO_FILES_LEFT], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert all("(64)" in line and "LimitNOFILE" in line for line in lines)


def test_a_warehouse_without_files_left_names_the_limit(warehouse: Warehouse) -> None:
    text = 'TransactionContext Error: Failed to commit: Cannot open file "w.wal": Too many open files'
    with pytest.raises(WarehouseError, match="LimitNOFILE"), warehouse.transaction():
        raise duckdb.TransactionException(text)
