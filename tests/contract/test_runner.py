"""What every runner keeps: a child process, jobs of a double of Ray, and of Ray itself where RETUNED_RAY names it
(`make .venv-ray`)."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fixtures.cluster.ray import no_ray, ray_cluster, ray_double
from fixtures.faults.counting import STEPS, counting_work
from retuned.consumers.errors import Cancelled, ChildFailed, OutOfMemory
from retuned.retrain.runners.local import LocalRunner
from retuned.retrain.runners.ray import RayRunner
from retuned.retrain.runners.runner import Runner
from retuned.retrain.settings import RunnerSettings, TrainSettings

RAY_SECONDS = 0.2


@pytest.fixture(scope="module", params=["local", "ray-double", pytest.param("ray", marks=pytest.mark.full)])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with ExitStack() as stack:
        match request.param:
            case "local":
                yield LocalRunner(TrainSettings())
            case "ray-double":
                yield on_ray(stack.enter_context(ray_double()).url)
            case _:
                if reason := no_ray():
                    pytest.skip(reason)
                cluster = stack.enter_context(ray_cluster(tmp_path_factory.mktemp("ray")))
                yield on_ray(cluster.url, resources={"trainer": 1})


def on_ray(url: str, **more: Any) -> RayRunner:
    settings = RunnerSettings(kind="ray", url=url, python=sys.executable, **more)
    return RayRunner(settings, status_seconds=RAY_SECONDS)


@dataclass
class Counting:
    """Work of one folder, and the lines that it reported.

    Attributes:
        at: gets each line, as it comes.
    """

    runner: Runner
    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    lines: list[dict[str, Any]] = field(default_factory=list)
    at: Callable[[dict[str, Any]], None] = lambda _: None

    def run(self, **job: Any) -> dict[str, Any]:
        return self.runner.run(counting_work(self.folder, **job), self.stop, self._take)

    def stop_at(self, step: int) -> None:
        self.at = lambda line: self.stop.set() if line.get("step") == step else None

    @property
    def steps(self) -> list[int]:
        return [line["step"] for line in self.lines if "step" in line]

    @property
    def made(self) -> str:
        return (self.folder / "count" / "made" / "sum").read_text()

    def _take(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self.at(line)


@pytest.fixture
def counting(runner: Runner, tmp_path: Path) -> Counting:
    return Counting(runner, tmp_path)


def test_it_returns_the_result_and_reports_each_line_in_its_order(counting: Counting) -> None:
    assert counting.run() == {"counted": STEPS, "has_secret": True}
    assert counting.steps == list(range(1, STEPS + 1))
    assert counting.made == "21"


def test_no_secret_is_left_in_its_files(counting: Counting) -> None:
    counting.run()
    files = [path for path in counting.folder.rglob("*") if path.is_file()]
    assert any(path.name == "counting.job.json" for path in files)
    assert not [path for path in files if b"sesame" in path.read_bytes()]


def test_what_is_stopped_goes_on_from_its_checkpoint(counting: Counting) -> None:
    counting.stop_at(3)
    with pytest.raises(Cancelled, match="counting: stopped before it was done"):
        counting.run(hold_at=3)
    assert not (counting.folder / "count" / "made").exists()
    counting.stop.clear()
    counting.lines.clear()
    (counting.folder / "gate").touch()
    assert counting.run(hold_at=3)["counted"] == STEPS
    assert counting.steps == [4, 5, 6]
    assert counting.made == "21"


def test_stopped_before_it_began_it_does_nothing(counting: Counting) -> None:
    counting.stop.set()
    with pytest.raises(Cancelled):
        counting.run(hold_at=1)
    assert not (counting.folder / "count" / "made").exists()
    counting.stop.clear()
    (counting.folder / "gate").touch()
    assert counting.run(hold_at=1)["counted"] == STEPS


@pytest.mark.parametrize(
    ("ends", "error", "text"),
    [
        ("refused", ChildFailed, "counting: the rows are all alike"),
        ("memory", OutOfMemory, "counting: out of memory: MemoryError.*or count less; see .*counting.log"),
        ("killed", ChildFailed, r"counting: the child process ended without a result, killed by SIGKILL.*counting.log"),
    ],
)
def test_how_it_failed_is_told_in_the_same_words(
    counting: Counting, ends: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as failed:
        counting.run(ends=ends)
    assert type(failed.value) is error
    assert not (counting.folder / "count" / "made").exists()


def test_what_ran_out_of_memory_is_done_with_less(counting: Counting) -> None:
    """It was not done: the next attempt gets another job, and goes on from what the first one left."""
    with pytest.raises(OutOfMemory):
        counting.run(ends="memory")
    assert counting.run(halved=1)["counted"] == STEPS
    assert counting.made == "21"


def test_what_takes_too_long_is_ended(counting: Counting) -> None:
    with pytest.raises(ChildFailed, match=r"counting: took longer than 1.5 s and was killed; see .*counting.log"):
        counting.run(hold_at=2, timeout_seconds=1.5)
    pid = next(line["pid"] for line in counting.lines if "pid" in line)
    assert not Path(f"/proc/{pid}").exists() or not isinstance(counting.runner, LocalRunner)


def test_a_cluster_is_asked_for_its_version(counting: Counting) -> None:
    found = counting.runner.check()
    assert found is None if isinstance(counting.runner, LocalRunner) else found.startswith("Ray 2.")
