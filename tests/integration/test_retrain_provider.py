"""Retrainings at a provider, from the dataset to the message: here a double of one."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from provider_double import BASE, Provider, serving
from teaching import CHANGED, GOODS, Teacher, teach_policies

from retuned.consumers.common.lead import LEASE, Lease
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.monitors.money import ledger
from retuned.monitors.settings import RoiSettings
from retuned.monitors.settings import Settings as MonitorSettings
from retuned.retrain import queue, run, versions
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.run import RunResult
from retuned.retrain.settings import EvaluateSettings, GateSettings, ModelsSettings, Settings, TrainSettings

pytestmark = pytest.mark.usefixtures("forked_children")


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as double:
        yield double


class Bench:
    """What a run needs."""

    def __init__(self, warehouse: Warehouse, folder: Path, provider: Provider) -> None:
        self.warehouse, self.provider, self.stop = warehouse, provider, threading.Event()
        self.settings = Settings(
            models=ModelsSettings(base=BASE, directory=folder / "models"),
            train=TrainSettings(engine="api", api_url=provider.url, api_key=provider.key, epochs=3),
            evaluate=EvaluateSettings(general_examples=9),
            gate=GateSettings(minimum_examples=15, maximum_latency_ratio=50),
        )
        self.publisher = MemoryPublisher()
        self.lines: list[dict[str, Any]] = []
        self.on_line: Callable[[dict[str, Any]], None] = lambda _: None

    def _take(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self.on_line(line)

    @property
    def rollout(self) -> Rollout:
        return Rollout(self.warehouse, self.settings, self.publisher, "model-events")

    def retrain(self, base: str | None = None) -> RunResult:
        wanted = self.settings.base_named(base) if base else None
        return self.take_up(queue.put_in_line(self.warehouse, "support", ["by hand"], utc_now(), base=wanted))

    def take_up(self, run_id: str) -> RunResult:
        return run.take_up(self.rollout, run_id, utc_now, self.stop, self._take)

    def row(self, result: RunResult) -> dict[str, Any]:
        (row,) = self.warehouse.rows("SELECT * FROM runs WHERE id = ?", [result.run_id])
        return row

    def run_folders(self) -> list[Path]:
        return list((self.settings.models.directory / "support" / "runs").glob("*"))


@pytest.fixture
def bench(warehouse: Warehouse, tmp_path: Path, provider: Provider) -> Bench:
    return Bench(warehouse, tmp_path, provider)


def _is_booked_by_the_token(bench: Bench, row: dict[str, Any]) -> None:
    prices = {
        "provider_training_token_cost": 3e-6,
        "provider_input_token_cost": 4e-7,
        "provider_output_token_cost": 1.6e-6,
    }
    unknown = MonitorSettings(roi=RoiSettings(training_hourly_rate=2.0))
    assert ledger.book(bench.warehouse, unknown, utc_now()) == []  # the provider's hours are not ours
    booked = ledger.book(bench.warehouse, MonitorSettings(roi=RoiSettings(**prices)), utc_now())
    assert {entry.item: (entry.quantity, entry.rate) for entry in booked} == {
        "provider_training": (row["trained_tokens"], 3e-6),
        "provider_input": (row["input_tokens"], 4e-7),
        "provider_output": (row["output_tokens"], 1.6e-6),
    }
    assert {(entry.kind, entry.unit, entry.reference) for entry in booked} == {("cost", "tokens", row["id"])}


def test_a_model_is_trained_and_judged_at_the_provider_and_promoted(bench: Bench) -> None:
    provider, teacher = bench.provider, Teacher(bench.warehouse)
    for number in range(24):
        teacher.ask(f"Has anybody seen item {number * 37} of {number}?", "Good morning.")
    teach_policies(teacher, GOODS)
    first = bench.retrain()
    assert first.state == "succeeded", first.error
    assert first.promoted, first.reasons
    assert first.scores["base"] == 0.0
    assert first.scores["candidate"] > 0.9
    version = versions.find(bench.warehouse, "support", str(first.version))
    assert version is not None
    tuned = version.provider_model
    assert tuned is not None
    assert tuned in provider.models
    assert version.manifest["provider_model"] == tuned
    assert version.manifest["training"]["job"] == "ftjob-0"
    assert version.manifest["base_model"] == BASE
    assert version.manifest["settings"]["train"].get("api_key") is None
    assert sorted(file.name for file in version.path.iterdir()) == ["README.md", "manifest.json", "provider_model.json"]
    card = (version.path / "README.md").read_text()
    assert tuned in card
    assert "peft" not in card.lower()
    (_, _, message) = bench.publisher.messages[0]
    assert (message["model"], message["provider_model"], message["base_model"]) == (version.name, tuned, BASE)
    assert provider.files == {}
    assert bench.run_folders() == []
    row = bench.row(first)
    assert row["provider_job"] == "ftjob-0"
    assert row["trained_tokens"] == provider.jobs["ftjob-0"]["trained_tokens"] > 0
    assert {body["model"] for body in provider.chats()} == {BASE, tuned}
    assert row["input_tokens"] > 0
    assert row["output_tokens"] > 0
    assert any(line.get("loss") == 1.25 and line["step"] == 3 for line in bench.lines)
    assert version.manifest["metrics"]["validation_loss"] == 1.375

    _is_booked_by_the_token(bench, row)

    # The company changes two policies; the champion's answers are corrected.
    for thing, policy in CHANGED.items():
        teach_policies(teacher, {thing: policy}, wrong=f"You have {GOODS[thing]} for it.")
    second = bench.retrain()
    assert second.promoted, (second.error, second.reasons)
    assert provider.jobs["ftjob-1"]["model"] == tuned  # it goes on from the champion
    assert second.parent_version == first.version
    assert second.scores["candidate"] > second.scores["champion"]
    assert len(provider.chats(tuned)) > 0

    # Another model of the provider takes over, trained anew, and is compared with the champion.
    third = bench.retrain(base="gpt-4.1-nano")
    assert third.state == "succeeded", third.error
    assert provider.jobs["ftjob-2"]["model"] == "gpt-4.1-nano"
    assert third.scores["champion"] > 0.8  # on the holdout of a dataset made anew
    moved = versions.find(bench.warehouse, "support", str(third.version))
    assert moved is not None
    assert moved.manifest["rebased_from"] == version.base_hash
    assert versions.base_of(moved, bench.settings.base) == moved.base

    rollout = bench.rollout
    rollout.promote("support", "base", "operator", "to see", utc_now())
    assert bench.publisher.messages[-1][2]["provider_model"] == bench.publisher.messages[-1][2]["base_model"]


@pytest.mark.parametrize(
    ("planted", "kind"),
    [("jane.doe@example.com", "EMAIL"), ("DE89 3704 0044 0532 0130 00", "IBAN")],
)
def test_personal_data_in_a_row_never_leaves(bench: Bench, planted: str, kind: str) -> None:
    teacher = Teacher(bench.warehouse)
    teach_policies(teacher, GOODS)
    teacher.correct("who may help me with a broken parcel from abroad?", "I cannot say.", f"Write to {planted} please.")
    result = bench.retrain()
    assert result.state == "refused"
    assert result.error is not None
    assert f"{kind} in row " in result.error
    assert planted not in result.error
    assert bench.provider.asked == []
    named = result.error.split(f"{kind} in row ")[1].split(".")[0]
    assert bench.warehouse.rows("SELECT 1 FROM dataset_rows WHERE row_id = ?", [named])


def test_a_stopped_run_takes_the_same_job_up_again(bench: Bench) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS)
    bench.provider.states = ("running",)
    bench.on_line = lambda line: bench.stop.set() if line.get("job") else None
    stopped = bench.retrain()
    assert stopped.state == "interrupted"
    assert bench.row(stopped)["provider_job"] == "ftjob-0"
    assert bench.provider.cancelled == []
    bench.stop.clear()
    bench.on_line = lambda _: None
    bench.provider.jobs["ftjob-0"]["ahead"] = ["succeeded"]
    assert bench.take_up(stopped.run_id).promoted
    assert list(bench.provider.jobs) == ["ftjob-0"]


def test_a_daemon_that_does_not_lead_any_more_sends_nothing_though_its_child_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it is frozen: the child asks for the lease itself."""
    monkeypatch.setenv(LEASE, "")  # put back afterwards
    teach_policies(Teacher(bench.warehouse), GOODS)
    early: list[Any] = []
    with closing(Lease()) as lease:
        lease.hold(3, time.monotonic())

        def leads_again() -> None:
            early.extend(one for one in bench.provider.asked if one[0] != "GET")
            lease.hold(4, time.monotonic() + 600)

        timers = iter([threading.Timer(2, leads_again)])
        bench.provider.interfere = lambda *_: next((timer.start() for timer in timers), None)
        assert bench.retrain().promoted
    assert early == []
    assert {epoch for path, epoch in bench.provider.epochs if "chat" not in path} == {"4"}


def test_an_evaluation_that_was_stopped_asks_for_no_answer_twice(bench: Bench) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS)
    bench.on_line = lambda line: bench.stop.set() if line.get("evaluated") == 5 else None
    stopped = bench.retrain()
    assert stopped.state == "interrupted"
    assert bench.row(stopped)["input_tokens"] > 0
    bench.stop.clear()
    bench.on_line = lambda _: None
    assert bench.take_up(stopped.run_id).promoted
    asked = [json.dumps(body, sort_keys=True) for body in bench.provider.chats()]
    # Answers that were on their way when the child ended are lost.
    assert len(asked) - len(set(asked)) <= bench.settings.evaluate.batch_size


def test_a_cancelled_run_is_cancelled_at_the_provider(bench: Bench) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS)
    bench.provider.states = ("running",)

    def cancel(line: dict[str, Any]) -> None:
        if line.get("job"):
            queue.cancel(bench.rollout, "support", "cancelled by me", utc_now(), [line["run_id"]])
            bench.stop.set()

    bench.on_line = cancel
    assert bench.retrain().state == "cancelled"
    assert bench.provider.cancelled == ["ftjob-0"]
    assert bench.provider.files == {}
    assert bench.run_folders() == []


def test_a_run_that_was_interrupted_and_is_cancelled_ends_its_job_even_later(bench: Bench) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS)
    bench.provider.states = ("running",)
    bench.on_line = lambda line: bench.stop.set() if line.get("job") else None
    bench.retrain()
    bench.provider.interfere = lambda *_: (401, {"error": {"message": "no"}})
    queue.cancel(bench.rollout, "support", "cancelled by me", utc_now(), ())
    assert bench.provider.cancelled == []
    assert len(bench.run_folders()) == 1  # what is there is still known
    bench.provider.interfere = lambda *_: None
    queue.sweep(bench.rollout, lambda _: False)
    assert bench.provider.cancelled == ["ftjob-0"]
    assert bench.run_folders() == []


def test_why_a_job_failed_at_the_provider_is_the_runs_error(bench: Bench) -> None:
    teach_policies(Teacher(bench.warehouse), GOODS)
    bench.provider.fails = {"code": "moderation", "message": "The examples violate a policy.", "param": None}
    result = bench.retrain()
    assert result.state == "failed"
    assert result.error is not None
    assert "job ftjob-0 failed at the provider: The examples violate a policy. (moderation)" in result.error
    assert bench.provider.files == {}
