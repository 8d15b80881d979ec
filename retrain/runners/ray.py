"""The runner `ray`: jobs of a Ray cluster, over its Jobs REST API. The daemon needs no Ray.

See https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html for its routes. A job's input
and answers are files (see `attempts`). Ray only starts and stops jobs, and reports their status.
"""

import importlib.metadata
import json
import logging
import shlex
import threading
import time
from dataclasses import dataclass
from typing import Any

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.common.logfields import current
from retuned.consumers.common.process import Emit
from retuned.consumers.errors import Cancelled, ChildFailed, OutOfMemory, RetunedError
from retuned.retrain.openai_api import Client, NoAnswer, Refused
from retuned.retrain.runner_settings import RunnerSettings
from retuned.retrain.runners.attempts import Answers, Attempt, is_last
from retuned.retrain.runners.runner import Runner, Work

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
POLL_SECONDS = 0.2
"""The interval of reading answers."""
STATUS_SECONDS = 2.0
"""The interval of requests for a job's status."""
STOP_SECONDS = 15
"""The time from SIGTERM to SIGKILL, of which the child has 8 seconds for a checkpoint."""
LATE_SECONDS = 60.0
"""How much later than the end of its job a last line may arrive, because NFS caches directories that long."""

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_NEVER_BEGINS = ("RUNTIME_ENV_SETUP_FAILURE", "JOB_ENTRYPOINT_COMMAND_START_ERROR")
_STILL_WAITED = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
_SIGNALLED = 128
"""A shell's minimum exit status for a process that a signal ended."""
_RESOURCES = {"CPU": "entrypoint_num_cpus", "GPU": "entrypoint_num_gpus", "memory": "entrypoint_memory"}
_TOKEN_ADVICE = "set runner.token or runner.token_file to a token that may submit jobs"
_LONGEST_MESSAGE = 600


class _Lost(Exception):
    """An attempt ended without an answer: its node was lost, or the job was stopped in Ray."""


class _Expired(Exception):
    """Ray gave up waiting for the resources of an attempt."""


@dataclass
class _Seen:
    """The known state of an attempt's job.

    Attributes:
        answered_at: the time of Ray's last response, by the clock.
        status: Ray's last status, if any.
        away: the last request failed.
        has_answers: the job has written answers.
    """

    answered_at: float
    status: str | None = None
    away: bool = False
    has_answers: bool = False


class RayRunner(Runner):
    """Runs work on a Ray cluster whose nodes share the folder of the work."""

    def __init__(
        self,
        settings: RunnerSettings,
        lead: Lead = alone,
        status_seconds: float = STATUS_SECONDS,
    ) -> None:
        assert settings.url is not None  # the settings require it
        self._settings, self._lead = settings, lead
        self._status_seconds = status_seconds
        self._client = Client(
            settings.url.rstrip("/"),
            "runner.url",
            settings.bearer_token(),
            REQUEST_SECONDS,
            if_away="check that the cluster's dashboard can be reached from here",
            advice={401: _TOKEN_ADVICE, 403: _TOKEN_ADVICE},
            pauses=(),
            lead=lead,
        )

    def run(self, work: Work, stop: threading.Event, on_progress: Emit) -> dict[str, Any]:
        spec = _spec(work)
        self._lead()
        attempt = self._resumable(work, spec) or Attempt.begin(work, spec, Attempt.current(work.folder.resolve()))
        while True:
            lost = attempt.lost
            try:
                return self._ended(work, attempt, self._last_line(work, attempt, stop, on_progress))
            except _Expired:
                log.info("job %s timed out waiting for runner.resources and is submitted again", attempt.id)
            except _Lost as error:
                if stop.is_set():
                    raise Cancelled(f"{work.name}: stopped before it was done") from None
                lost += 1
                if lost >= self._settings.attempts:
                    raise ChildFailed(
                        f"{work.name}: given up after {lost} attempts that were lost (runner.attempts), the last one "
                        f"as {error}; see {attempt.path}"
                    ) from error
                log.warning("job %s: %s; the next attempt resumes from its checkpoint", attempt.id, error)
                on_progress({"lost": str(error)})
            self._lead()
            attempt = Attempt.begin(work, spec, attempt, lost)

    def check(self) -> str:
        version = self._client.get("api/version")
        if not isinstance(version, dict) or "ray_version" not in version:
            raise RetunedError(self._no_ray("api/version"))
        ray = f"Ray {version['ray_version']} at {self._client.url}"
        resources = ", ".join(f"{name} {value:g}" for name, value in self._settings.resources.items())
        return f"{ray}, of which a job takes {resources}" if resources else ray

    def _resumable(self, work: Work, spec: dict[str, Any]) -> Attempt | None:
        """Returns the attempt of a daemon that was killed, if it still runs or has ended.

        An attempt that was stopped, that ran out of memory, or that has another specification because the settings
        changed, is not resumed.
        """
        attempt = Attempt.current(work.folder.resolve())
        if attempt is None or attempt.withdrawn:
            return None
        last = next(filter(is_last, Answers(attempt).new()), None)
        if last is None:
            return attempt if attempt.spec | {"fields": None} == spec | {"fields": None} else None
        return None if "cancelled" in last or last.get("out_of_memory") else attempt

    def _last_line(self, work: Work, attempt: Attempt, stop: threading.Event, on_progress: Emit) -> dict[str, Any]:
        """Waits for the last line of an attempt.

        Raises:
            _Lost, _Expired: there is none, and will be none.
            Cancelled: the attempt was stopped.
            ChildFailed: the attempt cannot start, or Ray is unavailable for too long.
        """
        try:
            return self._await(work, attempt, stop, on_progress)
        except (Cancelled, ChildFailed):
            self._lead()  # if another daemon leads now, it has resumed the attempt
            attempt.withdraw()  # so that the job ends itself if it still runs
            raise

    def _await(self, work: Work, attempt: Attempt, stop: threading.Event, on_progress: Emit) -> dict[str, Any]:
        """Returns the last line. Submits the job, and reports progress."""
        answers, seen = Answers(attempt), _Seen(time.monotonic())
        next_status = time.monotonic()
        ended_at: float | None = None
        while True:
            if (last := _read(answers, seen, on_progress)) is not None:
                return last
            if stop.is_set():
                return self._await_stop(work, attempt, answers, seen, on_progress)
            now = time.monotonic()
            if now >= next_status:
                next_status = now + self._status_seconds
                if (details := self._details(work, attempt, seen, on_progress)) is not None:
                    ended_at = ended_at or now
                    if now - ended_at >= (LATE_SECONDS if details["status"] == "SUCCEEDED" else self._status_seconds):
                        raise self._without_answer(work, attempt, details)
            time.sleep(POLL_SECONDS)

    def _await_stop(
        self, work: Work, attempt: Attempt, answers: Answers, seen: _Seen, on_progress: Emit
    ) -> dict[str, Any]:
        """Stops the job, and returns its last line.

        Raises:
            Cancelled: the job ended without a last line, or did not end in time.
        """
        self._stop(attempt)
        deadline = time.monotonic() + STOP_SECONDS
        next_status = time.monotonic()
        ended = False
        while True:
            if (last := _read(answers, seen, on_progress)) is not None:
                return last
            if ended:
                raise Cancelled(f"{work.name}: stopped before it was done")
            now = time.monotonic()
            if now >= next_status:
                next_status = now + self._status_seconds
                ended = self._has_ended(attempt) or now > deadline  # its last line is read once more
            time.sleep(POLL_SECONDS)

    def _details(self, work: Work, attempt: Attempt, seen: _Seen, on_progress: Emit) -> dict[str, Any] | None:
        """Returns Ray's details of a job that has ended; None if it may be running. Submits a job that Ray lacks."""
        try:
            details = self._job(attempt)
            if details is None:
                if seen.status is not None or seen.has_answers:
                    raise _Lost("the cluster does not know it any more")
                self._submit(attempt)
        except (NoAnswer, Refused) as error:
            if isinstance(error, Refused) and not error.may_pass:
                raise ChildFailed(f"{work.name}: {error}") from error
            if time.monotonic() - seen.answered_at > work.timeout_seconds:
                raise ChildFailed(f"{work.name}: {error}, for {work.timeout_seconds:g} s") from error
            if not seen.away:
                log.warning("%s; job %s may still run there, and its status is requested again", error, attempt.id)
                on_progress({"ray_status": "AWAY"})
            seen.away = True
            return None
        status = details["status"] if details else "PENDING"
        if seen.away or status != seen.status:
            on_progress({"ray_job": attempt.id, "ray_status": status})
        seen.answered_at, seen.away, seen.status = time.monotonic(), False, status
        return details if status in _ENDED else None

    def _has_ended(self, attempt: Attempt) -> bool:
        """Returns whether Ray reports that a job has ended or does not exist."""
        try:
            details = self._job(attempt)
        except RetunedError:
            return False
        return details is None or details["status"] in _ENDED

    def _job(self, attempt: Attempt) -> dict[str, Any] | None:
        """Returns Ray's details of a job, with its `status`; None if there is no such job."""
        route = f"api/jobs/{attempt.id}"
        try:
            details = self._client.get(route)
        except Refused as error:
            if error.status == 404:
                return None
            raise
        if not isinstance(details, dict) or "status" not in details:
            raise ChildFailed(self._no_ray(route))
        return details

    def _no_ray(self, route: str) -> str:
        return (
            f"runner.url: {self._client.url}/{route} does not answer as Ray does; expected the address of a cluster's "
            "dashboard, for example http://ray-head:8265"
        )

    def _submit(self, attempt: Attempt) -> None:
        settings, epoch = self._settings, self._lead()
        own = dict(settings.runtime_env.get("env_vars", {})) | {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        custom = {name: value for name, value in settings.resources.items() if name not in _RESOURCES}
        command = [*shlex.split(settings.python), "-m", "retuned.retrain.runners.ray_job"]
        body: dict[str, Any] = {
            "entrypoint": f"exec {shlex.join([*command, str(attempt.folder), attempt.id])}",
            "submission_id": attempt.id,
            "runtime_env": settings.runtime_env | {"env_vars": own},
            "metadata": current() | {"attempt": str(attempt.number)} | ({} if epoch is None else {"epoch": str(epoch)}),
            **{key: settings.resources[name] for name, key in _RESOURCES.items() if name in settings.resources},
            **({"entrypoint_resources": custom} if custom else {}),
        }
        if "entrypoint_memory" in body:
            body["entrypoint_memory"] = int(body["entrypoint_memory"])
        try:
            self._client.request("api/jobs/", body)
        except Refused as error:
            if error.may_pass and error.status != 500:
                raise
            # If the response to an earlier submission was lost, Ray refuses this one as a duplicate.
            if self._job(attempt) is None:
                raise ChildFailed(f"{error}; the job was {body['entrypoint']}") from error

    def _stop(self, attempt: Attempt) -> None:
        try:
            self._client.request(f"api/jobs/{attempt.id}/stop", {})
        except RetunedError as error:
            if not (isinstance(error, Refused) and error.status == 404):
                log.warning("job %s could not be stopped by Ray, and will end itself: %s", attempt.id, error)

    def _ended(self, work: Work, attempt: Attempt, last: dict[str, Any]) -> dict[str, Any]:
        """Returns the result in a last line.

        Raises:
            _Lost: the job was stopped in Ray.
            OutOfMemory, ChildFailed: the line contains an error.
        """
        if "result" in last:
            attempt.take_over(work.outputs)
            result: dict[str, Any] = last["result"]
            return result
        if "cancelled" in last:
            raise _Lost("it was stopped there")
        raise OutOfMemory(last["error"]) if last.get("out_of_memory") else ChildFailed(last["error"])

    def _without_answer(self, work: Work, attempt: Attempt, details: dict[str, Any]) -> Exception:
        """Returns the error for a job that ended without a last line."""
        lines = str(details.get("message") or "no reason is given there").strip().splitlines()
        message = " … ".join(dict.fromkeys([lines[0], lines[-1]]))[:_LONGEST_MESSAGE]
        error_type, status = details.get("error_type"), details.get("driver_exit_code")
        if error_type == _STILL_WAITED:
            return _Expired()
        if details["status"] == "SUCCEEDED":
            return ChildFailed(
                f"{work.name}: job {attempt.id} has ended, and its answer is not in {attempt.path}: the nodes must "
                "share models.directory with the daemon"
            )
        if error_type in _NEVER_BEGINS or (status is not None and 0 < status < _SIGNALLED):
            return ChildFailed(
                f"{work.name}: job {attempt.id} did not start ({message}); see its log in Ray, and check runner.python "
                "and runner.runtime_env"
            )
        return _Lost(message)


def _read(answers: Answers, seen: _Seen, on_progress: Emit) -> dict[str, Any] | None:
    """Reports new answers. Returns the last line, if it is among them."""
    for line in answers.new():
        seen.has_answers = True
        if is_last(line):
            return line
        on_progress(line)
    return None


def _spec(work: Work) -> dict[str, Any]:
    """Returns the specification of an attempt."""
    spec: dict[str, Any] = json.loads(
        json.dumps(
            {
                "module": work.module,
                "job": work.job,
                "timeout_seconds": work.timeout_seconds,
                "to_need_less": work.to_need_less,
                "version": importlib.metadata.version("retuned"),
                "fields": current(),
            }
        )
    )
    return spec
