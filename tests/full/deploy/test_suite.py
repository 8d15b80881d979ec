"""The suite itself: what it leaves out for want of a part, workers, and processes that are forked and not started."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runner import core_seconds, forks

TESTS = Path(__file__).parents[2]

pytestmark = pytest.mark.processes


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    ours = "KAFKA_HOME", "RETUNED_REQUIRE", "RETUNED_CORE_SECONDS"
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def wanting(tmp_path: Path) -> str:
    """A file with two tests, of which one needs Apache Kafka."""
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(TESTS)!r})\n"
        "pytest_plugins = ['runner.parts', 'runner.core_seconds', 'runner.workers']\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import pytest\nfrom fixtures.kafka.brokers import no_apache_kafka\n\n"
        "def test_with_a_broker():\n    pytest.skip(no_apache_kafka())\n\n"
        "def test_without():\n    pass\n"
    )
    return str(tmp_path)


def test_a_run_ends_with_what_it_did_not_test(wanting: str) -> None:
    done = run(wanting)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("Not tested, for want of: kafka (1).")


def test_what_is_required_and_missing_fails(wanting: str) -> None:
    done = run(wanting, RETUNED_REQUIRE="kafka,java")
    assert done.returncode == 1, done.stdout
    assert "RETUNED_REQUIRE: KAFKA_HOME is not set" in done.stdout
    assert run(wanting, RETUNED_REQUIRE="java").returncode == 0


def test_a_part_that_nobody_knows_is_refused(wanting: str) -> None:
    done = run(wanting, RETUNED_REQUIRE="kafak")
    assert done.returncode == 4
    assert "RETUNED_REQUIRE: kafak: there are " in done.stderr


BUSY = """
import subprocess, sys, time

def test_it():
    subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.5: pass"], check=True)
"""


def test_a_run_lists_the_core_seconds_of_each_file_and_of_what_it_starts(wanting: str, tmp_path: Path) -> None:
    (tmp_path / "test_busy.py").write_text(BUSY)
    done = run(wanting, "--core-seconds", "some")
    assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / "build" / "core_seconds" / "some.json").read_text())
    assert 0.5 <= found["test_busy.py"] < 5
    assert found["test_it.py"] < 0.3
    assert "test_busy.py" in done.stdout.partition("core seconds; the slowest files")[2].splitlines()[1]


def test_a_file_has_grown_where_it_takes_longer_and_the_machine_does_not() -> None:
    before = {"a": 30.0, "b": 20.0, "c": 10.0, "d": 2.0}
    assert core_seconds.grown({"a": 38.0, "b": 26.0, "c": 12.0, "d": 6.9, "new": 50.0}, before) == []
    assert core_seconds.grown({"a": 30.0, "b": 27.0, "c": 10.0, "d": 2.0}, before) == [
        "b: 27.0 core seconds, 20.0 before"
    ]
    assert core_seconds.grown({"a": 60.0, "b": 40.0, "c": 40.0, "d": 4.0}, before) == [
        "c: 40.0 core seconds, 20.0 before"
    ]


SHARED = """
import os, signal
import pytest

@pytest.fixture(scope="session")
def process():
    made = os.getpid()
    print("set up")
    yield made
    with open(__file__ + ".ended", "a") as file:
        file.write(f"{made} {os.getpid()}\\n")

@pytest.mark.parametrize("number", range(60))
def test_it(number, process, tmp_path):
    print("number", number)
    assert process == os.getpid()
    (tmp_path / "own").touch()
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    assert number != 50
"""


def test_workers_share_one_collection_and_one_that_dies_fails_its_test_alone(wanting: str, tmp_path: Path) -> None:
    (tmp_path / "test_shared.py").write_text(SHARED)
    done = run(wanting, "--workers", "3")
    assert done.returncode == 1, done.stdout
    assert "2 failed, 59 passed, 1 skipped" in done.stdout
    assert "\nthe worker ended while it ran the test: exit status -9\n" in done.stdout
    assert re.search(r"^FAILED .*test_shared\.py::test_it\[7\]", done.stdout, re.MULTILINE)
    assert "\nE       assert 50 != 50\n" in done.stdout
    assert "Captured stdout call" in done.stdout
    assert "number 49" not in done.stdout  # each test's output is its own
    assert "Not tested, for want of: kafka (1)." in done.stdout
    ended = [line.split() for line in (tmp_path / "test_shared.py.ended").read_text().splitlines()]
    assert len(ended) >= 3  # one for each worker but that which died
    assert all(made == ended_in for made, ended_in in ended)


def test_tests_that_share_a_fixture_of_their_module_stay_with_one_worker(wanting: str, tmp_path: Path) -> None:
    (tmp_path / "test_shared.py").write_text(SHARED.replace("session", "module").replace("== 7", "== 70"))
    done = run(wanting, "--workers", "3")
    assert "1 failed, 60 passed, 1 skipped" in done.stdout
    assert len((tmp_path / "test_shared.py.ended").read_text().splitlines()) == 1


def test_workers_stop_at_the_first_failure(wanting: str, tmp_path: Path) -> None:
    (tmp_path / "test_shared.py").write_text(SHARED)
    done = run(wanting, "--workers", "2", "-x", "-k", "test_it")
    assert done.returncode == 1, done.stdout
    assert "stopping after 1 failures" in done.stdout


CHILD = """
import os, resource, signal, sys
print(os.getcwd(), os.environ["GIVEN"], sys.argv[1:], sys.stdin.read(), os.umask(0), flush=True)
print("wrong", file=sys.stderr)
match sys.argv[1]:
    case "text":
        sys.exit("why")
    case "raise":
        raise ValueError("no")
    case "die":
        os.kill(os.getpid(), signal.SIGTERM)
    case status:
        sys.exit(int(status))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
@pytest.mark.parametrize(
    ("argument", "status", "error"),
    [("0", 0, ""), ("3", 3, ""), ("text", 1, "why\n"), ("raise", 1, "ValueError: no\n"), ("die", -signal.SIGTERM, "")],
)
def test_a_forked_process_is_as_one_that_was_started(
    tmp_path: Path, argument: str, status: int, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "retuned_child.py").write_text(CHILD)
    monkeypatch.setattr(forks, "OWN", (*forks.OWN, "retuned_child"))
    seen = []
    for server in (os.environ[forks.SERVER], ""):
        done = subprocess.run(
            [sys.executable, "-m", "retuned_child", argument],
            env=os.environ | {"GIVEN": "here", "PYTHONPATH": str(tmp_path), forks.SERVER: server},
            cwd=tmp_path,
            umask=0o027,
            input="asked",
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.stderr.startswith("wrong\n")
        assert done.stderr.endswith(error)
        seen.append((done.returncode, done.stdout))
    assert seen[0] == seen[1] == (status, f"{tmp_path} here ['{argument}'] asked {0o027}\n")
