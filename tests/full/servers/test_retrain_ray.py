"""The runner `ray` when nodes, heads and daemons are lost, on a double of Ray whose jobs are processes."""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.cluster.ray import RayDouble, ray_double
from fixtures.faults.counting import MODULE_PATH, STEPS, counting_work
from fixtures.kafka.brokers import until
from fixtures.servers.http import Quiet, listening
from retuned.consumers.common.logfields import about
from retuned.consumers.errors import Cancelled, ChildFailed, RetunedError, StandsBy
from retuned.retrain.runners import attempts
from retuned.retrain.runners.attempts import Attempt
from retuned.retrain.runners.ray import RayRunner
from retuned.retrain.runners.runner import Work
from retuned.retrain.settings import RunnerSettings
from runner.forks import children

LOST = "Job supervisor actor died: The actor died because its node has died."


class DaemonKilled(BaseException):
    """In the place of a SIGKILL: nothing of the daemon's side is done after it."""


@pytest.fixture
def ray() -> Iterator[RayDouble]:
    with ray_double() as double:
        yield double


def runner(ray: RayDouble, **changes: Any) -> RayRunner:
    settings = RunnerSettings.model_validate({"kind": "ray", "url": ray.url, "python": sys.executable} | changes)
    return RayRunner(settings, status_seconds=0.1)


Lines = list[dict[str, Any]]


def run(runner: RayRunner, work: Work, at: Callable[[dict[str, Any]], None] = lambda _: None) -> tuple[Any, Lines]:
    lines: Lines = []

    def take(line: dict[str, Any]) -> None:
        lines.append(line)
        at(line)

    return runner.run(work, threading.Event(), take), lines


def steps(lines: Lines) -> list[int]:
    return [line["step"] for line in lines if "step" in line]


def once(condition: Callable[[dict[str, Any]], bool], act: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """Acts at the first line of such a kind."""
    left = [act]

    def at(line: dict[str, Any]) -> None:
        if left and condition(line):
            left.pop()()

    return at


def made(folder: Path) -> str:
    return (folder / "count" / "made" / "sum").read_text()


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_after_a_lost_node_it_goes_on_from_the_checkpoint(ray: RayDouble, tmp_path: Path) -> None:
    def lose() -> None:
        ray.lose_node(ray.names[0])
        (tmp_path / "gate").touch()

    result, lines = run(runner(ray), counting_work(tmp_path, hold_at=3), once(lambda line: line.get("step") == 3, lose))
    assert result["counted"] == STEPS
    assert steps(lines) == [1, 2, 3, 4, 5, 6]
    assert {"lost": LOST} in lines
    assert len(ray.names) == 2
    assert made(tmp_path) == "21"


def test_a_zombie_ends_itself_and_publishes_nothing(ray: RayDouble, tmp_path: Path) -> None:
    """Ray holds its node for lost, and its processes go on."""
    zombie: list[int] = []

    def lose() -> None:
        zombie.append(ray.process(ray.names[0]).pid)
        ray.lose_node(ray.names[0], really=False)

    def at(line: dict[str, Any]) -> None:
        lose_at(line)
        if len(ray.names) == 2 and line.get("begun_at") == 3:
            until(lambda: gone(zombie[0]), 30)  # before the gate opens, for both
            (tmp_path / "gate").touch()

    lose_at = once(lambda line: line.get("step") == 3, lose)
    result, lines = run(runner(ray), counting_work(tmp_path, hold_at=3, holds_again=True), at)
    assert result["counted"] == STEPS
    assert steps(lines) == [1, 2, 3, 4, 5, 6]
    answered = (tmp_path / "count" / "attempt-1" / "answers.jsonl").read_text().splitlines()
    assert not any(attempts.is_last(json.loads(line)) for line in answered)


def test_a_frozen_job_that_wakes_after_all_is_done_changes_nothing(ray: RayDouble, tmp_path: Path) -> None:
    frozen: list[int] = []

    def freeze() -> None:
        pid = ray.process(ray.names[0]).pid
        frozen.extend([pid, *children(pid)])
        for one in frozen:
            os.kill(one, signal.SIGSTOP)
        ray.lose_node(ray.names[0], really=False)
        (tmp_path / "gate").touch()

    at = once(lambda line: line.get("step") == 3, freeze)
    assert run(runner(ray), counting_work(tmp_path, hold_at=3), at)[0]["counted"] == STEPS
    before = sorted(str(path) for path in (tmp_path / "count").glob("*"))
    for one in frozen:
        os.kill(one, signal.SIGCONT)
    until(lambda: all(map(gone, frozen)), 30)
    assert made(tmp_path) == "21"
    assert sorted(str(path) for path in (tmp_path / "count").glob("*")) == before
    answered = (tmp_path / "count" / "attempt-1" / "answers.jsonl").read_text().splitlines()
    assert not any(attempts.is_last(json.loads(line)) for line in answered)


def test_what_a_zombie_makes_is_not_taken(ray: RayDouble, tmp_path: Path) -> None:
    """It was faster than its end: it has a result, of an attempt that does not count."""

    def lose() -> None:
        ray.lose_node(ray.names[0], really=False)
        (tmp_path / "gate").touch()
        until(lambda: (tmp_path / "count" / "attempt-1" / "made").is_dir(), 30)
        (tmp_path / "count" / "attempt-1" / "made" / "sum").write_text("a zombie's")
        # Its job is the last one that Ray knows to have failed, not one with an answer.
        (tmp_path / "count" / "attempt-1" / "answers.jsonl").write_text("")

    result, _ = run(runner(ray), counting_work(tmp_path, hold_at=3), once(lambda line: line.get("step") == 3, lose))
    assert result["counted"] == STEPS
    assert made(tmp_path) == "21"


def test_another_head_that_knows_no_job_is_given_a_new_attempt(ray: RayDouble, tmp_path: Path) -> None:
    def lose() -> None:
        ray.forget()
        (tmp_path / "gate").touch()

    at = once(lambda line: line.get("step") == 3, lose)
    result, lines = run(runner(ray), counting_work(tmp_path, hold_at=3, deaf=True), at)
    assert result["counted"] == STEPS
    assert made(tmp_path) == "21"
    assert len(ray.names) in (1, 2)  # the first may have ended before anybody asked for it
    assert ({"lost": "the cluster does not know it any more"} in lines) == (len(ray.names) == 2)


def test_while_the_head_is_away_the_job_goes_on(ray: RayDouble, tmp_path: Path) -> None:
    def at(line: dict[str, Any]) -> None:
        if line.get("step") == 3:
            ray.away = True
        if line.get("ray_status") == "AWAY":
            (tmp_path / "gate").touch()

    result, lines = run(runner(ray), counting_work(tmp_path, hold_at=3), at)
    assert (result["counted"], len(ray.names), steps(lines)) == (STEPS, 1, [1, 2, 3, 4, 5, 6])


def test_a_head_that_stays_away_ends_it_with_the_reason(ray: RayDouble, tmp_path: Path) -> None:
    ray.away = True
    with pytest.raises(ChildFailed, match=r"runner.url: http://127.*does not answer.*can be reached.*, for 0.5 s"):
        run(runner(ray), counting_work(tmp_path, timeout_seconds=0.5))


def test_a_restarted_daemon_goes_on_with_the_job(ray: RayDouble, tmp_path: Path) -> None:
    def kill() -> None:
        raise DaemonKilled

    work = counting_work(tmp_path, hold_at=3)
    with pytest.raises(DaemonKilled):
        run(runner(ray), work, once(lambda line: line.get("step") == 3, kill))
    (tmp_path / "gate").touch()
    with about(run="a"):  # what log lines are about is no other work
        result, lines = run(runner(ray), work)
    assert (result["counted"], len(ray.names), steps(lines)) == (STEPS, 1, [1, 2, 3, 4, 5, 6])
    assert made(tmp_path) == "21"


def test_a_restarted_daemon_finds_the_result_of_a_job_that_ended_meanwhile(ray: RayDouble, tmp_path: Path) -> None:
    def kill() -> None:
        raise DaemonKilled

    work = counting_work(tmp_path, hold_at=3)
    with pytest.raises(DaemonKilled):
        run(runner(ray), work, once(lambda line: line.get("step") == 3, kill))
    (tmp_path / "gate").touch()
    until(lambda: ray.job(ray.names[0])["status"] == "SUCCEEDED")
    ray.forget()
    ray.away = True
    assert run(runner(ray), work)[0]["counted"] == STEPS
    assert made(tmp_path) == "21"


def test_a_daemon_that_was_killed_before_it_submitted_does_so(ray: RayDouble, tmp_path: Path) -> None:
    def kill(*_: Any) -> None:
        raise DaemonKilled

    killed, work = runner(ray), counting_work(tmp_path)
    killed._submit = kill  # type: ignore[method-assign]
    with pytest.raises(DaemonKilled):
        run(killed, work)
    began = Attempt.current(tmp_path / "count")
    assert began is not None
    assert run(runner(ray), work)[0]["counted"] == STEPS
    assert ray.names == [began.id]


def test_a_daemon_that_leads_no_more_leaves_its_job_to_the_one_that_does(ray: RayDouble, tmp_path: Path) -> None:
    leads, stop = [True], threading.Event()

    def lead() -> int:
        if not leads:
            raise StandsBy("another daemon leads")
        return 3

    def loses() -> None:
        leads.clear()
        stop.set()

    before = RayRunner(RunnerSettings(kind="ray", url=ray.url, python=sys.executable), lead, status_seconds=0.1)
    at = once(lambda line: line.get("step") == 3, loses)
    with pytest.raises(StandsBy):
        before.run(counting_work(tmp_path, hold_at=3), stop, at)
    (tmp_path / "gate").touch()
    result, _ = run(runner(ray), counting_work(tmp_path, hold_at=3))
    assert result["counted"] == STEPS
    (body,) = ray.bodies.values()
    assert body["metadata"]["epoch"] == "3"


def test_a_result_that_a_stop_comes_too_late_for_is_returned(ray: RayDouble, tmp_path: Path) -> None:
    """It is written after the last look at the answers, and before Ray is asked whether the job has ended."""
    asked, stop = runner(ray), threading.Event()

    def has_ended(_: Attempt) -> bool:
        (tmp_path / "gate").touch()
        until(lambda: ray.job(ray.names[0])["status"] == "SUCCEEDED")
        return True

    asked._stop = lambda _: None  # type: ignore[method-assign]
    asked._has_ended = has_ended  # type: ignore[method-assign]
    at = once(lambda line: line.get("step") == 3, stop.set)
    assert asked.run(counting_work(tmp_path, hold_at=3), stop, at)["counted"] == STEPS
    assert made(tmp_path) == "21"


def test_an_answer_to_its_submission_that_did_not_come_is_no_second_job(ray: RayDouble, tmp_path: Path) -> None:
    """The request is sent again, and refused because the job is there."""
    asked = runner(ray)
    job, unknown = asked._job, [True]
    asked._job = lambda attempt: None if unknown and unknown.pop() else job(attempt)  # type: ignore[method-assign]
    submitted: list[Attempt] = []

    def submit(attempt: Attempt) -> None:
        submitted.append(attempt)
        RayRunner._submit(asked, attempt)
        if len(submitted) == 1:
            RayRunner._submit(asked, attempt)

    asked._submit = submit  # type: ignore[method-assign]
    assert run(asked, counting_work(tmp_path))[0]["counted"] == STEPS
    assert len(ray.names) == 1


def test_other_settings_after_a_kill_are_another_attempt(ray: RayDouble, tmp_path: Path) -> None:
    def kill() -> None:
        raise DaemonKilled

    with pytest.raises(DaemonKilled):
        run(runner(ray), counting_work(tmp_path, hold_at=3), once(lambda line: line.get("step") == 3, kill))
    old = ray.process(ray.names[0]).pid
    result, _ = run(runner(ray), counting_work(tmp_path, steps=4))
    assert result["counted"] == 4
    assert made(tmp_path) == "10"
    until(lambda: gone(old), 30)


def test_the_job_of_work_that_was_given_up_ends_itself(ray: RayDouble, tmp_path: Path) -> None:
    """As when a run is cancelled while no daemon runs."""

    def kill() -> None:
        raise DaemonKilled

    with pytest.raises(DaemonKilled):
        run(runner(ray), counting_work(tmp_path, hold_at=3), once(lambda line: line.get("step") == 3, kill))
    job = ray.process(ray.names[0])
    processes = [job.pid, *children(job.pid)]
    shutil.rmtree(tmp_path / "count")
    until(lambda: job.poll() is not None and all(map(gone, processes[1:])), 30)
    assert not (tmp_path / "count").exists()  # it wrote a last checkpoint


def test_a_stop_while_ray_is_away_passes_the_job(
    ray: RayDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retuned.retrain.runners.ray.STOP_SECONDS", 0.3)
    stop = threading.Event()

    def take(line: dict[str, Any]) -> None:
        if line.get("step") == 3:
            ray.away = True
            stop.set()

    with pytest.raises(Cancelled):
        runner(ray).run(counting_work(tmp_path, hold_at=3), stop, take)
    until(lambda: ray.process(ray.names[0]).poll() is not None, 30)
    ray.away = False
    (tmp_path / "gate").touch()
    result, lines = run(runner(ray), counting_work(tmp_path, hold_at=3))
    assert (result["counted"], steps(lines), len(ray.names)) == (STEPS, [4, 5, 6], 2)


def test_nodes_that_are_lost_again_and_again_end_it(ray: RayDouble, tmp_path: Path) -> None:
    def at(line: dict[str, Any]) -> None:
        if "begun_at" in line:
            ray.lose_node(ray.names[-1])

    with pytest.raises(ChildFailed, match=rf"given up after 2 attempts that were lost \(runner.attempts\).*{LOST}"):
        run(runner(ray, attempts=2), counting_work(tmp_path, hold_at=1, holds_again=True), at)
    assert len(ray.names) == 2


def test_a_job_that_ray_gave_up_in_its_queue_is_submitted_again(ray: RayDouble, tmp_path: Path) -> None:
    ray.waits = True
    given_up = 0

    def at(line: dict[str, Any]) -> None:
        nonlocal given_up
        if line.get("ray_status") == "PENDING":
            given_up += 1
            ray.waits = given_up < 3
            ray.give_up_waiting(ray.names[-1]) if given_up < 4 else None

    # More often than an attempt may be lost.
    result, _ = run(runner(ray, attempts=1), counting_work(tmp_path), at)
    assert result["counted"] == STEPS


def test_an_environment_without_retuned_fails_with_what_ray_reports(ray: RayDouble, tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=r"counting: job retuned-counting-\w+ did not start \(.*not found"):
        run(runner(ray, python="/nowhere/python"), counting_work(tmp_path))
    assert len(ray.names) == 1


def test_another_version_of_retuned_there_is_named(
    ray: RayDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "9.9.9")
    with pytest.raises(ChildFailed, match=r"node .* has retuned .*, and the daemon 9.9.9: install the same there"):
        run(runner(ray), counting_work(tmp_path))


def test_a_token_that_is_missing_is_named(ray: RayDouble, tmp_path: Path) -> None:
    ray.token = "a secret of many characters"
    with pytest.raises(ChildFailed, match=r"answers with status 401.*set runner.token or runner.token_file"):
        run(runner(ray), counting_work(tmp_path))
    (tmp_path / "token").write_text(ray.token)
    assert run(runner(ray, token_file=tmp_path / "token"), counting_work(tmp_path))[0]["counted"] == STEPS


def test_an_address_that_is_not_rays_is_named(tmp_path: Path) -> None:
    class Other(Quiet):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>It works</html>")

    with listening(Other) as url:
        asked = RayRunner(RunnerSettings(kind="ray", url=url))
        with pytest.raises(RetunedError, match="api/version does not answer as Ray does; expected the address"):
            asked.check()
        with pytest.raises(ChildFailed, match=r"api/jobs/retuned-counting-\w+ does not answer as Ray does"):
            run(asked, counting_work(tmp_path))


def test_a_job_asks_for_its_resources_in_its_environment(ray: RayDouble, tmp_path: Path) -> None:
    resources = {"CPU": 4, "GPU": 0.5, "memory": 2e9, "trainer": 1}
    env = {"env_vars": {"PYTHONPATH": MODULE_PATH}, "working_dir": "s3://somewhere"}
    with about(workload="support", run="r1"):
        run(runner(ray, resources=resources, runtime_env=env), counting_work(tmp_path))
    (body,) = ray.bodies.values()
    assert {key: value for key, value in body.items() if key.startswith("entrypoint_")} == {
        "entrypoint_num_cpus": 4, "entrypoint_num_gpus": 0.5, "entrypoint_memory": 2_000_000_000,
        "entrypoint_resources": {"trainer": 1},
    }  # fmt: skip
    assert body["runtime_env"]["working_dir"] == "s3://somewhere"
    assert body["runtime_env"]["env_vars"] == {"PYTHONPATH": MODULE_PATH, "RAY_JOB_STOP_WAIT_TIME_S": "15"}
    assert body["metadata"] == {"workload": "support", "run": "r1", "attempt": "1"}
    assert "sesame" not in json.dumps(body)


def test_a_job_that_names_no_resources_takes_a_cpu_of_any_node(ray: RayDouble, tmp_path: Path) -> None:
    """Ray runs what asks for none on its head node."""
    run(runner(ray), counting_work(tmp_path))
    assert [body["entrypoint_num_cpus"] for body in ray.bodies.values()] == [1]


def test_an_attempt_begins_with_whole_checkpoints_of_the_one_before(tmp_path: Path) -> None:
    work = counting_work(tmp_path)
    (work.folder / "checkpoint-2").mkdir(parents=True)
    (work.folder / "checkpoint-2" / "state.json").write_text("2")
    (work.folder / ".checkpoint-3.1.tmp").mkdir()
    (work.folder / "counting.log").write_text("of before")
    first = Attempt.begin(work, {}, None)
    assert sorted(path.name for path in first.path.iterdir()) == ["checkpoint-2", "environment.json", "work.json"]
    (first.path / "checkpoint-4").mkdir()
    first.answer({"step": 4})
    first.claim()
    second = Attempt.begin(work, {}, first, lost=1)
    assert sorted(path.name for path in second.path.glob("c*")) == ["checkpoint-2", "checkpoint-4"]
    assert (second.number, second.lost, first.counts(), second.counts()) == (2, 1, False, True)
    assert second.claim()
    assert not second.claim()
    assert (second.path / "environment.json").stat().st_mode & 0o077 == 0
