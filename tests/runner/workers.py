"""One collection for all workers: with --workers N, the process that collected the tests forks N that share them.

Only on Linux. Elsewhere, and without the option, the tests run one after another.
"""

import gc
import itertools
import os
import random
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import pytest

from fixtures.kafka.brokers import die_with_parent

SHARE = 25
"""The most tests of a file that a worker takes at once, unless they share a fixture of their module."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--workers", type=int, default=0, metavar="N", help="share the tests among N forked processes")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    option = session.config.option
    if not option.workers or option.collectonly or session.testsfailed or sys.platform != "linux":
        return None  # pytest's own loop runs them, or tells why it does not
    gc.collect()
    gc.freeze()  # garbage collection copies none of the pages that the workers share
    _Parent(session).run(option.workers)
    return True


def shares(items: list[pytest.Item]) -> Iterator[list[int]]:
    """Yields numbers of tests, file by file."""
    for _, file in itertools.groupby(range(len(items)), key=lambda number: items[number].path):
        numbers = list(file)
        most = len(numbers) if any(_shares_a_fixture(items[number]) for number in numbers) else SHARE
        yield from (numbers[start : start + most] for start in range(0, len(numbers), most))


def _shares_a_fixture(item: pytest.Item) -> bool:
    found: Any = getattr(item, "_fixtureinfo", None)
    named = found.name2fixturedefs.values() if found else ()
    return any(definitions[-1].scope in ("class", "module", "package") for definitions in named)


@dataclass
class _Worker:
    """A process, as its parent sees it."""

    pid: int
    tests: deque[int] = field(default_factory=deque)
    """What it was given and has not ended, in order."""


class _Parent:
    """Gives the tests out and reports how they ended."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._shares = deque(shares(session.items))
        self._workers = dict[Connection, _Worker]()
        self._forked = 0

    def run(self, workers: int) -> None:
        try:
            for _ in range(workers):
                self._fork()
            while self._workers:
                for ready in wait(list(self._workers)):
                    assert isinstance(ready, Connection)
                    self._hear(ready)
                if self._session.shouldfail:
                    raise self._session.Failed(self._session.shouldfail)
                if self._session.shouldstop:
                    raise self._session.Interrupted(self._session.shouldstop)
        finally:
            for worker in self._workers.values():
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)

    def _fork(self) -> None:
        here, there = Pipe()
        self._forked += 1
        pid = os.fork()
        if pid == 0:
            _Child(self._session, there, self._forked).run()
        there.close()
        self._workers[here] = _Worker(pid)

    def _hear(self, connection: Connection) -> None:
        worker = self._workers[connection]
        try:
            message = connection.recv()
        except EOFError:
            self._ended(connection, worker)
            return
        hook, config = self._session.config.hook, self._session.config
        match message:
            case "next":
                share = self._shares.popleft() if self._shares else []
                worker.tests.extend(share)
                connection.send(share)
            case "ended":
                item = self._session.items[worker.tests.popleft()]
                hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
            case report:
                hook.pytest_runtest_logreport(report=hook.pytest_report_from_serializable(config=config, data=report))

    def _ended(self, connection: Connection, worker: _Worker) -> None:
        """If it died, its test has failed, and another worker takes what it had not begun."""
        del self._workers[connection]
        connection.close()
        _, status = os.waitpid(worker.pid, 0)
        if not worker.tests:
            return
        item = self._session.items[worker.tests.popleft()]
        why = f"the worker ended while it ran the test: exit status {os.waitstatus_to_exitcode(status)}"
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call")
        self._session.config.hook.pytest_runtest_logreport(report=report)
        if worker.tests:
            self._shares.appendleft(list(worker.tests))
        self._fork()


class _Child:
    """A worker: a plugin that sends its parent what the terminal would show."""

    def __init__(self, session: pytest.Session, connection: Connection, number: int) -> None:
        self._session = session
        self._connection = connection
        self._number = number

    def run(self) -> NoReturn:
        status = 1
        try:
            die_with_parent()
            random.seed()
            self._separate()
            self._take()
            status = 0
        except BaseException:
            self._session.config.pluginmanager.get_plugin("capturemanager").stop_global_capturing()  # type: ignore[union-attr]
            traceback.print_exc()
            raise
        finally:
            os._exit(status)  # what follows in the parent is not done twice

    def _separate(self) -> None:
        """Shares no output and no folder with the other workers."""
        config: Any = self._session.config
        capture = config.pluginmanager.get_plugin("capturemanager")
        capture.stop_global_capturing()
        capture.start_global_capturing()
        folder = config._tmp_path_factory.getbasetemp() / f"worker-{self._number}"
        folder.mkdir()
        config._tmp_path_factory._basetemp = folder
        config.pluginmanager.unregister(name="terminalreporter")
        config.pluginmanager.register(self)

    def _take(self) -> None:
        numbers = self._next()
        while numbers:
            item = self._session.items[numbers.popleft()]
            numbers = numbers or self._next()  # the test that follows decides which fixtures end with this one
            following = self._session.items[numbers[0]] if numbers else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            self._connection.send("ended")

    def _next(self) -> deque[int]:
        self._connection.send("next")
        return deque(self._connection.recv())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        config = self._session.config
        self._connection.send(config.hook.pytest_report_to_serializable(config=config, report=report))
