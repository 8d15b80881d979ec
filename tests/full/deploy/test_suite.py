"""The suite itself: what it leaves out for want of a part, and processes that are forked and not started."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import forks
import pytest

TESTS = Path(__file__).parents[2]

pytestmark = pytest.mark.processes


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *arguments]
    ours = "KAFKA_HOME", "RETUNED_REQUIRE", "RETUNED_CORE_SECONDS"
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def wanting(tmp_path: Path) -> str:
    """A file with two tests, of which one needs Apache Kafka."""
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(TESTS)!r})\npytest_plugins = ['parts', 'core_seconds']\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import pytest\nfrom brokers import no_apache_kafka\n\n"
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
    done = run(wanting, "--core-seconds")
    assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / "build" / "core_seconds.json").read_text())
    assert 0.5 <= found["test_busy.py"] < 5
    assert found["test_it.py"] < 0.3
    assert "test_busy.py" in done.stdout.partition("core seconds; the slowest files")[2].splitlines()[1]


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
