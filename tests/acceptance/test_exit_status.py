"""With which status a daemon ends, for whatever starts it again."""

import configparser
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from kafka import KafkaProducer

from fixtures.daemon.daemons import Daemon, settings_for
from fixtures.kafka.brokers import Broker
from retuned.consumers.errors import Fenced, RetunedError, TooManyDeadLetters

UNIT = Path(__file__).parents[2] / "deploy" / "retuned.service"
OPERATE = Path(__file__).parents[2] / "docs" / "operate.md"


@pytest.mark.full
def test_a_stream_of_rubbish_ends_it_until_somebody_has_it_go_on(tansu: Broker, tmp_path: Path) -> None:
    """With a status of its own; a start after that ends in the same way, and has stored nothing more."""
    settings = settings_for(tansu, tmp_path)
    settings["ingest"] = settings.get("ingest", {}) | {"dead_letter_window": 50}
    daemon = Daemon(tmp_path, settings)
    try:
        daemon.start()
        producer = KafkaProducer(bootstrap_servers=tansu.bootstrap_servers)
        for number in range(500):
            producer.send(settings["kafka"]["interactions_topic"], b'{"rubbish": %d}' % number)
        producer.flush()
        assert daemon.process is not None
        assert daemon.process.wait(60) == TooManyDeadLetters.exit_status == 4
        stored = letters(daemon)
        for number in range(20):
            producer.send(settings["kafka"]["interactions_topic"], b'{"more": %d}' % number)
        producer.flush()
        producer.close()
        daemon.launch()
        assert daemon.process.wait(60) == 4
        assert letters(daemon) == stored
        command = [sys.executable, "-m", "retuned.daemon.cli.main", "dead-letters", "resume", "--config", daemon.config]
        assert (
            "regardless of dead letters" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
        daemon.start()
        daemon.until(lambda: daemon.status()["ingestion"]["dead_letters"] == 520, "all dead letters")
        assert daemon.stop() == 0
    finally:
        daemon.end()


def letters(daemon: Daemon) -> int:
    with duckdb.connect(str(daemon.warehouse), read_only=True) as connection:
        return (connection.execute("SELECT count(*) FROM dead_letters").fetchone() or (0,))[0]


@pytest.mark.parametrize("error", [Fenced, TooManyDeadLetters])
def test_what_a_restart_would_make_worse_is_not_restarted_and_documented(error: type[RetunedError]) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT.read_text())
    kept_down = unit["Service"]["RestartPreventExitStatus"].split()
    assert str(error.exit_status) in kept_down
    assert str(RetunedError.exit_status) not in kept_down
    assert f"\n| {error.exit_status} | " in OPERATE.read_text()


def test_a_child_that_runs_out_of_memory_does_not_take_the_daemon_with_it() -> None:
    """By default systemd stops a whole service when the kernel ends one of its processes for want of memory."""
    assert "\nOOMPolicy=continue\n" in UNIT.read_text()
