"""The daemon's log shows nothing that must not be stored."""

import io
import logging
from pathlib import Path

import pytest

from retuned.daemon.cli import main as cli
from retuned.daemon.logs import RedactingFormatter


@pytest.fixture
def log() -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.Logger("some.name")
    logger.addHandler(handler)
    return logger, stream


def test_messages_arguments_and_tracebacks_are_redacted(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    logger.warning("mail a@x.org: %s of %d", "password=hunter2", 3)
    try:
        raise ValueError("cannot read card 4111 1111 1111 1111")
    except ValueError:
        logger.exception("it failed for %s", "a@x.org", stack_info=True)
    text = stream.getvalue()
    assert "WARNING some.name: mail <EMAIL_1>: password=<KEY_1> of 3\n" in text
    assert "ERROR some.name: it failed for <EMAIL_1>\n" in text
    assert "ValueError: cannot read card <CARD_1>" in text
    assert "a@x.org" not in text  # nor in the source lines that a traceback shows
    assert "4111" not in text


def test_the_operators_own_hosts_and_versions_stay(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    line = (
        "serving on http://10.1.2.3:8088, support.refunds@3f2a91c0, run 0198f2ab-71d4-7c3e-9f00-1234567890ab of in[0]"
    )
    logger.info(line)
    assert stream.getvalue().endswith(f"INFO some.name: {line}\n")


def test_an_error_that_ends_the_program_is_redacted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    file = tmp_path / "retuned.yaml"
    file.write_text("kafka: {group_id: [a@x.org]}\n")
    assert cli.main(["check", "--config", str(file)]) == 1
    shown = capsys.readouterr().err
    assert "kafka.group_id" in shown
    assert "a@x.org" not in shown
