"""With which status a daemon ends, for whatever starts it again."""

import configparser
from pathlib import Path

import pytest
from brokers import Broker
from daemons import Daemon, settings_for
from kafka import KafkaProducer

from retuned.consumers.errors import Fenced, RetunedError, TooManyDeadLetters

UNIT = Path(__file__).parents[2] / "deploy" / "retuned.service"
OPERATE = Path(__file__).parents[2] / "docs" / "operate.md"


def test_a_stream_of_rubbish_ends_it_with_a_status_of_its_own(tansu: Broker, tmp_path: Path) -> None:
    settings = settings_for(tansu, tmp_path)
    settings["ingest"] = settings.get("ingest", {}) | {"dead_letter_window": 50}
    daemon = Daemon(tmp_path, settings)
    try:
        daemon.start()
        producer = KafkaProducer(bootstrap_servers=tansu.bootstrap_servers)
        for number in range(500):
            producer.send(settings["kafka"]["interactions_topic"], b'{"rubbish": %d}' % number)
        producer.flush()
        producer.close()
        assert daemon.process is not None
        assert daemon.process.wait(60) == TooManyDeadLetters.exit_status == 4
    finally:
        daemon.end()


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
