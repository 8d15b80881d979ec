"""The core seconds of each test file, with those of the processes that it starts.

Each process appends lines "test seconds" to one file. With --core-seconds, the run ends with the slowest test files,
and build/core_seconds.json has all. What a broker of the whole run used counts for no file.
"""

import json
import os
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

USED = "RETUNED_CORE_SECONDS"
"""In the environment: the file that all processes append to."""


def record(test: str, seconds: float, environment: Mapping[str, str] = os.environ) -> None:
    """Adds what a test used itself, or a process that it started."""
    if used := environment.get(USED):
        with Path(used).open("a") as file:
            file.write(f"{test} {seconds:.4f}\n")


def _now() -> float:
    """Returns the core seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def by_file(lines: list[str]) -> dict[str, float]:
    """Sums the lines of tests, the slowest file first."""
    found = defaultdict[str, float](float)
    for line in lines:
        test, _, seconds = line.rpartition(" ")
        found[test.partition("::")[0]] += float(seconds)
    return {file: round(found[file], 1) for file in sorted(found, key=found.__getitem__, reverse=True)}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
    start = _now()
    result = yield
    if nextitem is not None:  # else the run's fixtures have ended with it
        record(item.nodeid, _now() - start)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    start = _now()
    result = yield
    record("(collecting)", _now() - start)
    return result


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--core-seconds", action="store_true", help="list the slowest test files")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.core_seconds and USED not in os.environ:  # workers use that of the process that started them
        config.pluginmanager.register(_Sum(), "sum of core seconds")


class _Sum:
    """In the process that starts the workers."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        number, self._file = tempfile.mkstemp(prefix="retuned-core-seconds-")
        os.close(number)
        os.environ[USED] = self._file

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        found = by_file(Path(self._file).read_text().splitlines())
        kept = terminalreporter.config.rootpath / "build" / "core_seconds.json"
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(found, indent=0) + "\n")
        wall = time.monotonic() - self._started
        terminalreporter.section(f"{wall:.0f} seconds, {sum(found.values()):.0f} core seconds; the slowest files")
        for file, seconds in list(found.items())[:10]:
            terminalreporter.write_line(f"{seconds:7.1f} {file}")

    def pytest_unconfigure(self) -> None:
        del os.environ[USED]
        Path(self._file).unlink()
