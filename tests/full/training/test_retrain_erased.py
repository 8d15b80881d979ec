"""A version that learned erased rows is replaced by what a training without them gives, byte for byte."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.feedback.teaching import CHANGED, GOODS, Teacher, question, questions, teach_policies
from fixtures.models.tiny import ANY_LATENCY
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.consumers.warehouse.selection import Selection
from retuned.daemon.erasure.erasure import Erasures
from retuned.daemon.settings import Settings as DaemonSettings
from retuned.retrain import queue, run, versions
from retuned.retrain.release import erased
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.run import RunResult
from retuned.retrain.settings import EvaluateSettings, GateSettings, ModelsSettings, Settings, TrainSettings

WEIGHTS = "adapter_model.safetensors"


class Daemon:
    """A warehouse, and the retrainings on it."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.warehouse = open_warehouse(WarehouseSettings(path=folder / "w.duckdb"))
        self.settings = Settings(
            models=ModelsSettings(base=base, directory=folder / "models"),
            train=TrainSettings(threads=1, learning_rate=5e-3, epochs=6, dtype="float32"),
            evaluate=EvaluateSettings(general_examples=9),
            gate=GateSettings(minimum_examples=15, maximum_latency_ratio=ANY_LATENCY),
        )
        self.teacher = Teacher(self.warehouse)

    @property
    def rollout(self) -> Rollout:
        return Rollout(self.warehouse, self.settings, MemoryPublisher(), "events")

    def retrain(self) -> RunResult:
        run_id = queue.enqueue(self.warehouse, "support", ["by hand"], utc_now())
        result = run.resume(self.rollout, run_id, utc_now, threading.Event(), lambda _: None)
        assert result.state == "succeeded", result.error
        return result

    def weights(self, version: str | None) -> bytes:
        return (self.settings.models.directory / "support" / str(version) / WEIGHTS).read_bytes()


def mallory(teacher: Teacher, numbers: range) -> list[str]:
    """Corrections of one user, who asks about things of her own and about the lamp."""
    ids = [
        teacher.correct(question(number), "No idea.", "You have 77 days for it.", "user", "mallory")
        for number in numbers
    ]
    asked = f"mallory asks: how long do i have to return a lamp number {numbers[0]}?"
    return [*ids, teacher.correct(asked, "No idea.", "You have 14 days for it.", "user", "mallory")]


def erase(daemon: Daemon, user: str) -> None:
    """Erases the interactions of a user's feedback."""
    found = daemon.warehouse.rows("SELECT interaction_id AS id FROM feedback WHERE user_id = ?", [user])
    settings = DaemonSettings(warehouse=WarehouseSettings(path=daemon.warehouse.path), models=daemon.settings.models)
    erasures = Erasures(daemon.warehouse, settings, threading.Event(), utc_now, lambda *_: None)
    erasures.request(Selection(interactions=[row["id"] for row in found]), "dpo", "taken back")
    erasures.run()
    (row,) = daemon.warehouse.rows("SELECT state, error FROM erasures")
    assert row == {"state": "done", "error": None}


def act(daemon: Daemon, with_mallory: range | None, goods: dict[str, str], wrong: str = "I cannot say.") -> None:
    """People teach goods; with these numbers mallory does, too. The clock is the same without her."""
    before = daemon.teacher.acts
    if with_mallory is not None:
        mallory(daemon.teacher, with_mallory)
    daemon.teacher.acts = before + 200
    teach_policies(daemon.teacher, goods, wrong=wrong)


@pytest.fixture
def daemons(tmp_path: Path, base: Path) -> Iterator[tuple[Daemon, Daemon]]:
    made = [Daemon(tmp_path / name, base) for name in ("saw her", "never saw her") if not (tmp_path / name).mkdir()]
    yield made[0], made[1]
    for daemon in made:
        daemon.warehouse.close()


def test_the_retrained_weights_are_those_of_a_daemon_that_never_saw_the_user(daemons: tuple[Daemon, Daemon]) -> None:
    saw, never = daemons
    act(saw, range(15), GOODS)
    act(never, None, GOODS)
    before, control = saw.retrain(), never.retrain()
    assert before.promoted
    assert saw.weights(before.version) != never.weights(control.version)
    erase(saw, "mallory")
    after = saw.retrain()
    assert after.version == control.version
    assert saw.weights(after.version) == never.weights(control.version)
    assert "learned rows that were erased" in after.reasons[0]
    assert after.promoted
    saw.warehouse.execute("UPDATE deployments SET served_at = since")
    saw.warehouse.execute("DELETE FROM deployments WHERE share = 0")
    assert erased.settle(saw.rollout, "support", utc_now()) == [before.version]
    assert not (saw.settings.models.directory / "support" / str(before.version)).exists()


def test_a_retraining_that_gives_the_same_weights_without_the_user_replaces_the_version(
    tmp_path: Path, base: Path
) -> None:
    """Others stated all that she stated, so the clean dataset and the clean weights are those of before."""
    daemon = Daemon(tmp_path, base)
    act(daemon, None, GOODS)
    for asked, answer in list(questions(GOODS))[-8:]:
        daemon.teacher.correct(asked, "I cannot say.", answer, "expert", "mallory")
    before = daemon.retrain()
    assert before.promoted
    erase(daemon, "mallory")
    assert versions.erased_since(daemon.warehouse, "support").keys() == {before.version}
    after = daemon.retrain()
    assert after.promoted
    assert daemon.weights(after.version) == daemon.weights(before.version)
    assert versions.erased_since(daemon.warehouse, "support").keys() == {before.version}
    assert erased.due(daemon.warehouse, "support", utc_now()) is None
    daemon.warehouse.close()


def test_only_what_came_after_the_last_clean_version_is_trained_again(daemons: tuple[Daemon, Daemon]) -> None:
    saw, never = daemons
    first: dict[Daemon, str] = {}
    changed = {thing: CHANGED.get(thing, policy) for thing, policy in GOODS.items()}
    for daemon in daemons:
        act(daemon, None, GOODS)
        first[daemon] = str(daemon.retrain().version)
        act(daemon, range(15) if daemon is saw else None, changed, wrong="You have 14 days for it.")
    tainted, control = saw.retrain(), never.retrain()
    assert saw.weights(tainted.version) != never.weights(control.version)
    if not tainted.promoted:
        saw.rollout.promote("support", str(tainted.version), "operator", "by hand", utc_now())
    erase(saw, "mallory")
    after = saw.retrain()
    found = versions.find(saw.warehouse, "support", str(after.version))
    assert found is not None
    assert found.parent_version == first[saw]
    assert saw.weights(after.version) == never.weights(control.version)
