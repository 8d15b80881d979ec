"""What is logged: nothing that must not be stored, as text or as JSON, also by children and libraries."""

import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retuned.consumers import logs
from retuned.consumers.common.logfields import about
from retuned.consumers.common.process import run_child
from retuned.consumers.errors import ChildFailed
from retuned.consumers.logs import TEXT, JsonFormatter, RedactingFormatter
from retuned.daemon.cli import main as cli


@pytest.fixture
def log() -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactingFormatter(TEXT))
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


def test_an_error_that_ends_the_program_is_redacted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "retuned.yaml"
    file.write_text("kafka: {group_id: [a@x.org]}\n")
    assert cli.main(["check", "--config", str(file)]) == 1
    shown = capsys.readouterr().err
    assert "kafka.group_id" in shown
    assert "a@x.org" not in shown


@contextmanager
def bare_root() -> Iterator[None]:
    """The root logger as it is in a new process; afterwards as it was."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("apscheduler", "uvicorn", "kafka")}
    environment = dict(os.environ)
    root.handlers.clear()
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        root.setLevel(level)
        for name, old in levels.items():
            logging.getLogger(name).setLevel(old)
        os.environ.clear()
        os.environ.update(environment)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@bare_root()
def test_json_is_an_object_a_line_with_what_it_is_about_and_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    log = logging.getLogger("retuned.some")
    with about(workload="support", run="r1", version=None):
        with about(version="3f2a91c0"):
            log.info("mail %s:\nsecond line", "a@x.org")
        log.debug("not this one")
        try:
            raise ValueError("card 4111 1111 1111 1111")
        except ValueError:
            log.exception("it failed")
    log.warning("about nothing")
    first, second, third = lines(capsys)
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info",
        "logger": "retuned.some",
        "message": "mail <EMAIL_1>:\nsecond line",
        "workload": "support",
        "run": "r1",
        "version": "3f2a91c0",
    }
    assert "version" not in second
    assert "ValueError: card <CARD_1>" in second["exception"]
    assert third.keys() == {"time", "level", "logger", "message"}


@bare_root()
def test_libraries_and_warnings_are_lines_of_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    logging.getLogger("kafka.conn").error("its own errors come as ours")
    logging.getLogger("uvicorn.error").error("boom a@x.org")
    logging.getLogger("apscheduler").error("boom")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("soon gone", FutureWarning, stacklevel=1)
        logging.captureWarnings(False)
    logs.last_line("retuned: it ended for a@x.org")
    found = lines(capsys)
    assert [(line["logger"], line["level"]) for line in found] == [
        ("uvicorn.error", "error"),
        ("apscheduler", "error"),
        ("py.warnings", "warning"),
        ("retuned", "critical"),
    ]
    assert found[0]["message"] == "boom <EMAIL_1>"
    logs.configure("json", "debug")
    logging.getLogger("kafka.conn").info("heard")
    assert [line["logger"] for line in lines(capsys)] == ["kafka.conn"]


@bare_root()
def test_the_level_is_the_least_that_is_logged_and_the_form_may_change(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text", "info")
    logs.configure("text", "warning")
    logging.getLogger("retuned.some").info("quiet")
    logging.getLogger("retuned.some").warning("loud")
    assert [line.split(" ", 2)[2] for line in capsys.readouterr().err.splitlines()] == [
        "WARNING retuned.some: loud",
    ]


@bare_root()
def test_what_somebody_else_set_up_stays() -> None:
    theirs = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(theirs)
    logs.configure("json", "debug")
    assert logging.getLogger().handlers == [theirs]
    assert not isinstance(theirs.formatter, JsonFormatter)


@pytest.mark.processes
@bare_root()
def test_children_log_as_their_parent_does(tmp_path: Path) -> None:
    logs.configure("json", "info")
    (tmp_path / "child.py").write_text(
        "import logging\nfrom retuned.consumers.child import child_main\n"
        "def work(job, emit):\n"
        "    logging.getLogger('retuned.child').info('begun')\n"
        "    raise ValueError('a@x.org')\n"
        "if __name__ == '__main__':\n    child_main(work)\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with about(run="r1", workload="support"), pytest.raises(ChildFailed, match="ValueError"):
        run_child("child", {}, tmp_path, timeout_seconds=60, environment={"PYTHONPATH": path})
    begun, failed = (json.loads(line) for line in (tmp_path / "child.log").read_text().splitlines())
    assert (begun["message"], begun["run"], begun["workload"]) == ("begun", "r1", "support")
    assert failed["run"] == "r1"
    assert "a@x.org" not in failed["exception"]
    assert "ValueError: <EMAIL_" in failed["exception"]
