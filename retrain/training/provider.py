"""Training at a provider, by OpenAI's routes for files and fine-tuning jobs: `train.engine: api`.

Source of the routes: https://platform.openai.com/docs/api-reference/fine-tuning. A job is paid for, so no run makes
two: the files have the run's name, a job is known by its file, and whoever takes a run up again, after a stop or a
crash at any moment, looks for both before it makes either.
"""

import json
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common import durable
from retuned.consumers.common.lead import Lead, alone, lead_of_parent
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import Cancelled, RetunedError
from retuned.consumers.settings import PrivacySettings
from retuned.retrain import versions
from retuned.retrain.data import chat
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.data.redaction import PersonalData, check_redacted
from retuned.retrain.openai_api import NO_CREDIT, Client, NoAnswer, Refused
from retuned.retrain.settings import SECRETS, Settings, TrainSettings
from retuned.retrain.versions import PROVIDER_FILE, Version

log = logging.getLogger(__name__)

TOKEN = "RETUNED_TRAIN_API_KEY"
"""In the environment of children: what the provider asks for."""
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before each further try; a limit of requests in a minute is waited out."""

_RESULT = "training.json"
_RECORD = "provider.json"
_LEARNED = ("train", "validation")
_ASKED = ("holdout", "regression", "traffic")
_ENDED = ("succeeded", "failed", "cancelled")
_FIRST_POLL, _LONGEST_POLL = 1.0, 30.0
_BRIEFLY_SECONDS = 10.0
"""An operator who cancels a run waits for each answer at most so long."""
_LONGEST_SUFFIX = 40
_SET_KEY = "set train.api_key or train.api_key_file to a key that may do this"
_ADVICE: dict[int | str, str] = {
    401: _SET_KEY,
    403: _SET_KEY,
    404: "name in models.base a model that this provider trains, and its address up to /v1 in train.api_url",
    NO_CREDIT: "add credit to the account at the provider, or raise its limit",
}


def client(settings: TrainSettings, token: str | None, **more: Any) -> Client:
    """Of the provider that `train.api_url` names. `more`: other attributes of `Client`."""
    assert settings.api_url is not None  # the settings ask for it
    return Client(
        settings.api_url.rstrip("/"),
        "train.api_url",
        token,
        settings.api_timeout_seconds,
        if_away="see whether it can be reached from here, or raise train.api_timeout_seconds",
        advice=_ADVICE,
        **{"pauses": PAUSES, **more},
    )


def train(
    dataset: Dataset,
    parent: Version | None,
    settings: Settings,
    run_id: str,
    folder: Path,
    stop: threading.Event | None = None,
    on_progress: Emit | None = None,
) -> dict[str, Any]:
    """Have a provider train a model on a dataset, beginning from the parent, or from the base model.

    What the run has at the provider already is taken up again; a finished training is returned. A stop leaves the job
    at the provider running.

    Args:
        run_id: what files and jobs at the provider are known by.
        folder: of this training alone; `adapter/` in it is what comes out.
        on_progress: gets `{"job": id}` once there is one, `{"job_status", "step", "steps", "loss"}` as the provider
            reports them, and at the end `{"validation_loss"}`.

    Returns:
        `adapter` (path), `engine`, `engine_reason`, `provider_model`, `job`, `tokens` (that were trained on, epochs
        counted; None where the provider does not report them), `epochs`, `train_loss` and `validation_loss` (the last
        ones, nats per token; None where they are not reported), `dtype` and `learning_rate` (None).

    Raises:
        PersonalData: redaction would change what is to be sent. Nothing was.
        RetunedError: no base model, or the parent was trained on another one.
        Cancelled: stop was set.
        ChildFailed: the provider refused, the job failed there, or it took longer than train.timeout_seconds.
    """
    base = versions.need_base(settings.base)
    if parent is not None:
        versions.check_base(parent, base)
    finished = folder / "adapter" / _RESULT
    if finished.is_file():
        done: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
        return done
    job = {
        "run": run_id,
        "workload": dataset.workload,
        "base": str(base),
        "model": str(base) if parent is None else parent.provider_model,
        "dataset": str(dataset.path),
        "folder": str(folder.resolve()),
        "settings": settings.train.model_dump(mode="json", exclude=SECRETS["train"]),
        "privacy": settings.privacy.model_dump(mode="json", exclude={"user_key"}),
    }
    result = run_child(
        "retuned.retrain.training.provider",
        job,
        folder,
        timeout_seconds=settings.train.timeout_seconds,
        stop=stop,
        on_progress=on_progress,
        environment={TOKEN: settings.train.bearer_token() or ""},
    )
    if "personal_data" in result:
        raise PersonalData(result["personal_data"])
    if left := result.pop("left", None):
        log.warning("files of run %s are still at the provider, delete them there: %s", run_id, left)
    return result


def discard(folder: Path, settings: TrainSettings, lead: Lead = alone) -> None:
    """Cancel the job of a training that is given up, and delete its files at the provider.

    Args:
        folder: of that training. Where nothing at a provider is known in it, nothing is done.

    Raises:
        RetunedError: the provider does not answer or refuses; the text names what is left there.
    """
    if settings.engine != "api" or not (folder / _RECORD).is_file():
        return
    briefly = replace(
        client(settings, settings.bearer_token(), pauses=(1.0,), lead=lead),
        timeout_seconds=min(settings.api_timeout_seconds, _BRIEFLY_SECONDS),
    )
    there = _AtProvider.of(folder, briefly)
    try:
        there.cancel()
        there.delete_files()
    except RetunedError as error:
        left = ", ".join(filter(None, [there.record.job, *there.record.files.values()])) or there.record.run
        raise RetunedError(f"{left} may still be at the provider ({error}); cancel and delete it there") from error
    (folder / _RECORD).unlink()


def check(settings: Settings) -> str | None:
    """Ask the provider for the base model, which costs nothing; returns what was found, None where none is configured.

    Raises:
        RetunedError: it does not answer, refuses, or has no such model.
    """
    if settings.train.engine != "api":
        return None
    base = str(versions.need_base(settings.base))
    asked = client(settings.train, settings.train.bearer_token(), pauses=())
    known = {model.get("id") for model in asked.listed("models")}
    if base not in known:
        raise RetunedError(
            f"models.base: {asked.url} lists no model {base} (it has {len(known)}); name one that it trains"
        )
    return f"{base} at {asked.url}; what is learned from and judged on is sent there"


@dataclass
class _Record:
    """What a run has at the provider, kept in its folder.

    Attributes:
        run: by whose name the files are known.
        files: split to the id of its file.
    """

    run: str
    files: dict[str, str] = field(default_factory=dict)
    job: str | None = None


@dataclass
class _AtProvider:
    """Files and job of one run."""

    client: Client
    record: _Record
    folder: Path

    @classmethod
    def of(cls, folder: Path, client: Client, run: str = "") -> "_AtProvider":
        """As the folder has it; else of a run that has nothing there yet."""
        file = folder / _RECORD
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"run": run}
        return cls(client, _Record(**known), folder)

    def keep(self) -> None:
        """Write down what is there."""
        durable.replace_text(self.folder / _RECORD, json.dumps(asdict(self.record)))

    def file(self, split: str, lines: list[str]) -> str:
        """The id of the file with the rows of a split, which is sent if it is not there."""
        if split not in self.record.files:
            name, content = f"{self._prefix}{split}.jsonl", "\n".join(lines).encode()
            self.record.files[split] = self._found_or_made(
                lambda: (file["id"] for file in self._files() if file["filename"] == name),
                lambda: self.client.upload("files", {"purpose": "fine-tune"}, name, content),
                "files",
            )
            self.keep()
        return self.record.files[split]

    def job(self, body: dict[str, Any]) -> str:
        """The id of the job on the run's training file, which is made if there is none."""
        if self.record.job is None:
            self.record.job = self._found_or_made(
                self._jobs,
                lambda: self.client.request("fine_tuning/jobs", body, repeat=False)[0],
                "fine_tuning/jobs",
            )
            self.keep()
        return self.record.job

    def cancel(self) -> None:
        """End the job, if there is one that has not ended."""
        for job in [self.record.job] if self.record.job else list(self._jobs()):
            if self.client.get(f"fine_tuning/jobs/{job}").get("status") in _ENDED:
                continue
            try:
                self.client.request(f"fine_tuning/jobs/{job}/cancel", {})
            except Refused:
                if self.client.get(f"fine_tuning/jobs/{job}").get("status") not in _ENDED:
                    raise

    def delete_files(self) -> None:
        """Delete all files that have the run's name."""
        for file in list(self._files()):
            self.client.request(f"files/{file['id']}", method="DELETE")

    @property
    def _prefix(self) -> str:
        return f"retuned-{self.record.run}-"

    def _files(self) -> Iterator[dict[str, Any]]:
        listed = self.client.listed("files?purpose=fine-tune&limit=1000")
        return (file for file in listed if str(file.get("filename")).startswith(self._prefix))

    def _jobs(self) -> Iterator[str]:
        files = set(self.record.files.values())
        listed = self.client.listed("fine_tuning/jobs?limit=100")
        return (job["id"] for job in listed if job.get("training_file") in files)

    def _found_or_made(self, found: Any, make: Any, route: str) -> str:
        """What is there, or else is made. After an answer that did not come it may be there all the same."""
        for pause in (*PAUSES, None):
            if (known := next(found(), None)) is not None:
                return str(known)
            try:
                made = make()
                with self.client.expected(route):
                    return str(made["id"])
            except (NoAnswer, Refused) as error:
                if pause is None or (isinstance(error, Refused) and not error.may_pass):
                    raise
                self.client.wait(pause)
        raise AssertionError("the last try returns or raises")


def work(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """The child's side."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())

    def wait(seconds: float) -> None:
        if stopped.wait(seconds):
            raise Cancelled("train: stopped; the job at the provider goes on")

    settings, folder = TrainSettings.model_validate(job["settings"]), Path(job["folder"])
    there = _AtProvider.of(
        folder, client(settings, os.environ.get(TOKEN), wait=wait, lead=lead_of_parent(wait)), job["run"]
    )
    if there.record.job is None:
        rows = _rows(Path(job["dataset"]))
        try:
            check_redacted(
                [
                    *((row["row_id"], chat.training_row(row, settings.context)) for row in rows(*_LEARNED)),
                    *((row["row_id"], chat.request(row, settings.context)) for row in rows(*_ASKED)),
                ],
                PrivacySettings.model_validate(job["privacy"]),
            )
        except PersonalData as error:
            return {"personal_data": str(error)}
        there.keep()
        ids = {}
        for split in _LEARNED:
            lines = [json.dumps(chat.training_row(row, settings.context), ensure_ascii=False) for row in rows(split)]
            if lines:
                ids[split] = there.file(split, lines)
        try:
            there.job(_body(job, settings, ids))
        except Refused as error:
            if job["model"] == job["base"] or error.may_pass:
                raise
            raise RetunedError(
                f"{error}. If this provider does not train on from {job['model']}, put the base model into service "
                f"with `retuned promote {job['workload']} base`: the next run begins from it"
            ) from error
    emit({"job": there.record.job})
    found, losses = _followed(there, emit)
    left = ""
    try:
        there.delete_files()
    except RetunedError as error:  # the model is paid for and there
        left = str(error)
    result = {
        "adapter": str(folder / "adapter"),
        "engine": "api",
        "engine_reason": "train.engine is api",
        "provider_model": found["fine_tuned_model"],
        "job": found["id"],
        "tokens": found.get("trained_tokens"),
        "epochs": ((found.get("method") or {}).get("supervised") or found).get("hyperparameters", {}).get("n_epochs"),
        "train_loss": losses.get("train_loss"),
        "validation_loss": losses.get("full_valid_loss", losses.get("valid_loss")),
        "dtype": None,
        "learning_rate": None,
    }
    emit({"validation_loss": result["validation_loss"]})
    version = {"model": found["fine_tuned_model"], "base": job["base"], "url": there.client.url, "job": found["id"]}
    with durable.written_aside(folder / "adapter") as aside:
        (aside / PROVIDER_FILE).write_text(json.dumps(version, indent=2) + "\n", encoding="utf-8")
        (aside / _RESULT).write_text(json.dumps(result), encoding="utf-8")
    (folder / _RECORD).unlink()
    return result | ({"left": left} if left else {})


def _rows(dataset: Path) -> Any:
    import pyarrow.parquet as pq

    def rows(*splits: str) -> Iterator[dict[str, Any]]:
        for split in splits:
            file = dataset / f"{split}.parquet"
            if file.is_file():
                yield from pq.read_table(file).to_pylist()

    return rows


def _body(job: dict[str, Any], settings: TrainSettings, files: dict[str, str]) -> dict[str, Any]:
    """What a job is asked for. The learning rate and the batch size are the provider's: its scale is another one."""
    suffix = re.sub(r"[^a-z0-9]+", "-", job["workload"].lower()).strip("-")[:_LONGEST_SUFFIX].rstrip("-")
    return {
        "model": job["model"],
        "training_file": files["train"],
        **({"validation_file": files["validation"]} if "validation" in files else {}),
        **({"suffix": suffix} if suffix else {}),
        "seed": settings.seed,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": settings.epochs}}},
        "metadata": {"retuned_run": job["run"], "workload": job["workload"][:512]},
    }


def _followed(there: _AtProvider, emit: Emit) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job once it has succeeded, and the last losses that its events report.

    Raises:
        RetunedError: it failed, or somebody cancelled it.
        Cancelled: the child was stopped.
    """
    client, route = there.client, f"fine_tuning/jobs/{there.record.job}"
    pause, losses = _FIRST_POLL, dict[str, Any]()
    while True:
        try:
            found = client.get(route)
            with client.expected(route):
                status = found["status"]
            losses |= _report(client, route, status, emit)
        except (NoAnswer, Refused) as error:
            if isinstance(error, Refused) and not error.may_pass:
                raise
            log.warning("%s; the job goes on there, and is asked for again", error)
            status = None
        if status == "succeeded" and found.get("fine_tuned_model"):
            return found, losses
        if status in _ENDED:
            told = found.get("error") or {}
            why = told.get("message") or "no reason is given there"
            code = f" ({told['code']})" if told.get("code") else ""
            raise RetunedError(f"train.api_url: job {there.record.job} {status} at the provider: {why}{code}")
        client.wait(pause)
        pause = min(2 * pause, _LONGEST_POLL)


def _report(client: Client, route: str, status: str, emit: Emit) -> dict[str, Any]:
    """Emit what is known of the job's progress; returns its latest losses, those that are reported."""
    events = client.get(f"{route}/events?limit=100")["data"] if status != "validating_files" else []
    metrics = dict[str, Any]()
    for event in events:  # the newest first
        if event.get("type") == "metrics" and isinstance(event.get("data"), dict):
            metrics = {**event["data"], **metrics}
    line = {"job_status": status, "step": metrics.get("step"), "steps": metrics.get("total_steps")}
    known = {key: value for key, value in line.items() if value is not None}
    if "step" in known and isinstance(metrics.get("train_loss"), int | float):
        known["loss"] = metrics["train_loss"]
    emit(known)
    return {key: value for key, value in metrics.items() if key.endswith("loss") and value is not None}


if __name__ == "__main__":
    child_main(work)
