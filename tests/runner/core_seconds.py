"""The core seconds of each test file, with those of the processes that it starts.

Each process appends lines "test seconds" to one file. With --core-seconds NAME, the run ends with the slowest test
files, and build/core_seconds/NAME.json has all. What a broker of the whole run used counts for no file.

As a program: names files that take longer than they did in tests/data/core_seconds, and exits with 1 if there are any;
with --keep, what was measured is what later runs are compared with.
"""

import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
MEASURED, KEPT = TESTS.parent / "build" / "core_seconds", TESTS / "data" / "core_seconds"
GROWTH, NOISE = 4 / 3, 5.0
"""A file has grown if it takes a third longer, and these core seconds longer."""
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
    parser.addoption("--core-seconds", metavar="NAME", help="list the slowest test files, and keep all under this name")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.core_seconds and USED not in os.environ:  # workers use that of the process that started them
        config.pluginmanager.register(_Sum(config.option.core_seconds), "sum of core seconds")


class _Sum:
    """In the process that starts the workers."""

    def __init__(self, name: str) -> None:
        self._started, self._name = time.monotonic(), name
        number, self._file = tempfile.mkstemp(prefix="retuned-core-seconds-")
        os.close(number)
        os.environ[USED] = self._file

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        found = by_file(Path(self._file).read_text().splitlines())
        kept = terminalreporter.config.rootpath / "build" / "core_seconds" / f"{self._name}.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")
        wall = time.monotonic() - self._started
        terminalreporter.section(f"{wall:.0f} seconds, {sum(found.values()):.0f} core seconds; the slowest files")
        for file, seconds in list(found.items())[:10]:
            terminalreporter.write_line(f"{seconds:7.1f} {file}")

    def pytest_unconfigure(self) -> None:
        del os.environ[USED]
        Path(self._file).unlink()


def grown(now: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """Returns a line for each file that takes longer than before, on a machine that is slower or faster as a whole."""
    both = now.keys() & before.keys()
    machine = statistics.median([now[file] / before[file] for file in both if before[file] >= NOISE] or [1])
    longer = [file for file in sorted(both) if now[file] / machine > max(before[file] * GROWTH, before[file] + NOISE)]
    return [f"{file}: {now[file]:.1f} core seconds, {before[file] * machine:.1f} before" for file in longer]


def main(arguments: list[str]) -> int:
    if arguments == ["--keep"]:
        shutil.copytree(MEASURED, KEPT, dirs_exist_ok=True)
        return 0
    found = [
        line
        for kept in sorted(KEPT.glob("*.json"))
        for line in grown(json.loads((MEASURED / kept.name).read_text()), json.loads(kept.read_text()))
    ]
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print("Make them faster, or accept it: python tests/runner/core_seconds.py --keep", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
