"""The runner `ray`: jobs of a Ray cluster, over its Jobs REST API. The daemon needs no Ray.

Source of the routes: https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html. What a job
gets and answers is in files (see `attempts`): Ray is asked to begin and to end it, and whether it still goes on.
"""

import importlib.metadata
import json
import logging
import shlex
import threading
import time
from collections.abc import Callable
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
"""Between two looks at the answers."""
STATUS_SECONDS = 2.0
"""Between two questions to Ray."""
STOP_SECONDS = 15
"""From a SIGTERM to the SIGKILL: the child has 8 of them for a checkpoint."""
LATE_SECONDS = 60.0
"""A node's last line may come so much later than the end of its job: NFS keeps what it knows of a folder so long."""

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_NEVER_BEGINS = ("RUNTIME_ENV_SETUP_FAILURE", "JOB_ENTRYPOINT_COMMAND_START_ERROR")
_STILL_WAITED = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
_SIGNALLED = 128
"""A shell's exit status of what a signal ended, or more."""
_RESOURCES = {"CPU": "entrypoint_num_cpus", "GPU": "entrypoint_num_gpus", "memory": "entrypoint_memory"}
_TOKEN_ADVICE = "set runner.token or runner.token_file to a token that may submit jobs"
_LONGEST_MESSAGE = 600


class _Lost(Exception):
    """An attempt ended without an answer: its node was lost, or somebody stopped it."""


class _Expired(Exception):
    """Ray gave up an attempt that waited for its resources."""


@dataclass
class _Seen:
    """What is known of an attempt's job.

    Attributes:
        status: that Ray reported last; None: none yet.
        answered_at: when Ray answered last, by the clock.
        away: it has not answered since.
    """

    answered_at: float
    status: str | None = None
    away: bool = False


class RayRunner(Runner):
    """Runs work on a Ray cluster, whose nodes share the folder of the work."""

    def __init__(
        self,
        settings: RunnerSettings,
        lead: Lead = alone,
        clock: Callable[[], float] = time.monotonic,
        status_seconds: float = STATUS_SECONDS,
    ) -> None:
        assert settings.url is not None  # the settings ask for it
        self._settings, self._lead = settings, lead
        self._clock, self._status_seconds = clock, status_seconds
        self._client = Client(
            settings.url.rstrip("/"),
            "runner.url",
            settings.bearer_token(),
            REQUEST_SECONDS,
            if_away="see whether the cluster's dashboard can be reached from here",
            advice={401: _TOKEN_ADVICE, 403: _TOKEN_ADVICE},
            pauses=(),
            lead=lead,
        )

    def run(self, work: Work, stop: threading.Event, on_progress: Emit) -> dict[str, Any]:
        spec = _spec(work)
        self._lead()
        attempt = self._taken_up(work, spec) or Attempt.begin(work, spec, Attempt.current(work.folder.resolve()))
        while True:
            lost = attempt.lost
            try:
                return self._ended(work, attempt, self._last_line(work, attempt, stop, on_progress))
            except _Expired:
                log.info("job %s waited in vain for runner.resources and is submitted again", attempt.id)
            except _Lost as error:
                if stop.is_set():
                    raise Cancelled(f"{work.name}: stopped before it was done") from None
                lost += 1
                if lost >= self._settings.attempts:
                    raise ChildFailed(
                        f"{work.name}: given up after {lost} attempts that were lost (runner.attempts), the last one "
                        f"as {error}; see {attempt.path}"
                    ) from error
                log.warning("job %s: %s; the next attempt goes on from its checkpoint", attempt.id, error)
                on_progress({"lost": str(error)})
            self._lead()
            attempt = Attempt.begin(work, spec, attempt, lost)

    def check(self) -> str:
        found = self._client.get("api/version")
        if not isinstance(found, dict) or "ray_version" not in found:
            raise RetunedError(self._no_ray("api/version"))
        ray = f"Ray {found['ray_version']} at {self._client.url}"
        asked = ", ".join(f"{name} {value:g}" for name, value in self._settings.resources.items())
        return f"{ray}, of which a job takes {asked}" if asked else ray

    def _taken_up(self, work: Work, spec: dict[str, Any]) -> Attempt | None:
        """The attempt that goes on, or has ended, since the daemon that began it was killed; None: a new one is due.

        One that was stopped is none, nor one that does something else by now: the settings changed.
        """
        attempt = Attempt.current(work.folder.resolve())
        if attempt is None or attempt.withdrawn:
            return None
        last = next(filter(is_last, Answers(attempt).new()), None)
        if last is None:
            return attempt if attempt.spec | {"fields": None} == spec | {"fields": None} else None
        return None if "cancelled" in last else attempt

    def _last_line(self, work: Work, attempt: Attempt, stop: threading.Event, on_progress: Emit) -> dict[str, Any]:
        """The last line of an attempt, once it is there.

        Raises:
            _Lost, _Expired: there is none, and will be none.
            Cancelled: it was stopped.
            ChildFailed: it cannot begin, or Ray is away for too long.
        """
        try:
            return self._followed(work, attempt, stop, on_progress)
        except (Cancelled, ChildFailed):
            self._lead()  # else it goes on: the daemon that leads has taken it up
            attempt.withdraw()  # whatever of it still runs ends itself
            raise

    def _followed(self, work: Work, attempt: Attempt, stop: threading.Event, on_progress: Emit) -> dict[str, Any]:
        answers, seen, said = Answers(attempt), _Seen(self._clock()), False
        ask_at = self._clock()
        ended_at: float | None = None
        stop_by: float | None = None
        stopped = False
        while True:
            for line in answers.new():
                said = True
                if is_last(line):
                    return line
                on_progress(line)
            if stopped:
                raise Cancelled(f"{work.name}: stopped before it was done")
            now = self._clock()
            if stop.is_set() and stop_by is None:
                stop_by = now + STOP_SECONDS
                self._stop(attempt)
            if now >= ask_at:
                ask_at = now + self._status_seconds
                if stop_by is not None:
                    stopped = self._has_ended(attempt) or now > stop_by  # and its last line is looked for once more
                elif (details := self._details(work, attempt, seen, said, on_progress)) is not None:
                    ended_at = ended_at or now
                    if now - ended_at >= (LATE_SECONDS if details["status"] == "SUCCEEDED" else self._status_seconds):
                        raise self._without_answer(work, attempt, details)
            time.sleep(POLL_SECONDS)

    def _details(
        self, work: Work, attempt: Attempt, seen: _Seen, said: bool, on_progress: Emit
    ) -> dict[str, Any] | None:
        """What Ray has of a job that has ended; None: it goes on, so far as is known. It is submitted if it was not."""
        try:
            details = self._job(attempt)
            if details is None:
                if seen.status is not None or said:
                    raise _Lost("the cluster does not know it any more")
                self._submit(attempt)
        except (NoAnswer, Refused) as error:
            if isinstance(error, Refused) and not error.may_pass:
                raise ChildFailed(f"{work.name}: {error}") from error
            if self._clock() - seen.answered_at > work.timeout_seconds:
                raise ChildFailed(f"{work.name}: {error}; that is so for {work.timeout_seconds:g} s") from error
            if not seen.away:
                log.warning("%s; job %s may go on there, and is asked for again", error, attempt.id)
                on_progress({"ray_status": "AWAY"})
            seen.away = True
            return None
        status = details["status"] if details else "PENDING"
        if seen.away or status != seen.status:
            on_progress({"ray_job": attempt.id, "ray_status": status})
        seen.answered_at, seen.away, seen.status = self._clock(), False, status
        return details if status in _ENDED else None

    def _has_ended(self, attempt: Attempt) -> bool:
        """Whether Ray knows that nothing of a job goes on."""
        try:
            details = self._job(attempt)
        except RetunedError:
            return False
        return details is None or details["status"] in _ENDED

    def _job(self, attempt: Attempt) -> dict[str, Any] | None:
        """What Ray has of a job, with its `status`; None: it has no such job."""
        route = f"api/jobs/{attempt.id}"
        try:
            found = self._client.get(route)
        except Refused as error:
            if error.status == 404:
                return None
            raise
        if not isinstance(found, dict) or "status" not in found:
            raise ChildFailed(self._no_ray(route))
        return found

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
            # One whose answer did not come was submitted all the same, and is refused as a second one.
            if self._job(attempt) is None:
                raise ChildFailed(f"{error}; the job was {body['entrypoint']}") from error

    def _stop(self, attempt: Attempt) -> None:
        try:
            self._client.request(f"api/jobs/{attempt.id}/stop", {})
        except RetunedError as error:
            if not (isinstance(error, Refused) and error.status == 404):
                log.warning("job %s is not stopped by Ray, and ends itself when it sees that: %s", attempt.id, error)

    def _ended(self, work: Work, attempt: Attempt, last: dict[str, Any]) -> dict[str, Any]:
        """The result that a last line holds.

        Raises:
            _Lost: somebody else stopped it.
            OutOfMemory, ChildFailed: it holds an error.
        """
        if "result" in last:
            attempt.take_over(work.outputs)
            result: dict[str, Any] = last["result"]
            return result
        if "cancelled" in last:
            raise _Lost("it was stopped there")
        raise OutOfMemory(last["error"]) if last.get("out_of_memory") else ChildFailed(last["error"])

    def _without_answer(self, work: Work, attempt: Attempt, details: dict[str, Any]) -> Exception:
        """What the end of a job without a last line means."""
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
                f"{work.name}: job {attempt.id} ended before it began ({message}); see its log in Ray, runner.python "
                "and runner.runtime_env"
            )
        return _Lost(message)


def _spec(work: Work) -> dict[str, Any]:
    """What an attempt is given to do."""
    found: dict[str, Any] = json.loads(
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
    return found
