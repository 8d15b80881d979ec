"""Entries retire once the champion gives their answers by itself, and come back if it is taken back."""

import json
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from fixtures.feedback.teaching import GOODS, START, Teacher, question, teach_policies
from fixtures.models.tiny import ANY_LATENCY, tiny_llama
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain import queue, run
from retuned.retrain.data.dataset import load, logged_answers
from retuned.retrain.memory import entries, feed, retire
from retuned.retrain.memory.settings import MemorySettings
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.serving_settings import ServingSettings
from retuned.retrain.settings import EvaluateSettings, GateSettings, ModelsSettings, Settings, TrainSettings


def states(warehouse: Warehouse) -> dict[str, int]:
    return entries.counts(warehouse).get("support", {})


def evaluated(warehouse: Warehouse, teacher: Teacher, scores: dict[str, float]) -> None:
    """The champion v2 was asked about entries, by answers of these scores."""
    shared = {"workload": "support", "created_at": teacher.now}
    model = {"path": "/m", "base_model": "b", "base_hash": "0", "dataset_version": "d1", "run_id": "r2"}
    for version, at in (("v1", START), ("v2", teacher.now)):
        warehouse.insert("models", version=version, manifest="{}", **shared | {"created_at": at}, **model)
    warehouse.insert("aliases", alias="champion", version="v2", **shared)
    deployed = {"workload": "support", "version": "v2", "share": 1.0, "since": teacher.now}
    warehouse.insert("deployments", **deployed, served_at=teacher.now)
    for row, score in scores.items():
        measured = {"token_f1": score, "loss": 0.0, "latency_seconds": 0.0, "output": ""}
        warehouse.insert(
            "evaluations", run_id="r2", workload="support", dataset_version="d1", model="v2", split=retire.SPLIT,
            row_id=row, score=score, **measured,
        )  # fmt: skip


def test_an_entry_retires_only_if_all_of_its_questions_are_answered_right(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    settings = Settings(memory=MemorySettings(mode="context"))
    for thing in ("lamp", "sofa", "chair"):
        teacher.correct(f"How long may I return a {thing}?", "No.", f"You have 14 days for the {thing}.")
    entries.follow(warehouse, settings, "support", teacher.now)
    known = {row["question"].split()[-1]: row["id"] for row in entries.active(warehouse, "support")}
    teacher.acts += 10
    evaluated(warehouse, teacher, {f"{known['lamp?']}:0": 1, f"{known['lamp?']}:1": 1, f"{known['sofa?']}:2": 1,
                                   f"{known['sofa?']}:3": 0})  # fmt: skip
    assert retire.follow_champion(warehouse, settings, "support", teacher.now) == 1
    assert retire.follow_champion(warehouse, settings, "support", teacher.now) == 0
    assert states(warehouse) == {"active": 2, "retired": 1}
    row = warehouse.row("SELECT id, retired_by FROM memory_entries WHERE state = 'retired'")
    assert row == {"id": known["lamp?"], "retired_by": "v2"}

    teacher.acts += 10
    warehouse.execute("UPDATE aliases SET version = 'v1'")
    assert retire.follow_champion(warehouse, settings, "support", teacher.now + timedelta(seconds=1)) == 1
    assert states(warehouse) == {"active": 3}


def one_entry_of_a_new_champion(teacher: Teacher) -> None:
    """A champion has just been promoted, and has learned the entry in force."""
    teacher.correct("How long may I return a lamp?", "No.", "You have 14 days.")
    entries.follow(teacher.warehouse, Settings(memory=MemorySettings(mode="context")), "support", teacher.now)
    (entry,) = entries.active(teacher.warehouse, "support")
    teacher.acts += 10
    evaluated(teacher.warehouse, teacher, {f"{entry['id']}:0": 1})


def test_nothing_retires_before_the_version_that_learned_it_is_in_service(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    one_entry_of_a_new_champion(teacher)
    warehouse.execute("UPDATE deployments SET served_at = NULL")
    before = entries.newest(warehouse)
    assert retire.follow_champion(warehouse, Settings(), "support", teacher.now) == 0
    warehouse.execute("UPDATE deployments SET served_at = ?", [teacher.now])
    assert entries.newest(warehouse) != before
    assert retire.follow_champion(warehouse, Settings(), "support", teacher.now) == 1


def test_without_targets_a_champion_is_in_service_at_once(teacher: Teacher, warehouse: Warehouse) -> None:
    one_entry_of_a_new_champion(teacher)
    warehouse.execute("UPDATE deployments SET served_at = NULL")
    alone = Settings(serving=ServingSettings(targets=()))
    assert retire.follow_champion(warehouse, alone, "support", teacher.now) == 1


def test_nothing_retires_while_the_version_before_still_answers(teacher: Teacher, warehouse: Warehouse) -> None:
    one_entry_of_a_new_champion(teacher)
    warehouse.insert(
        "rollouts", id="e1", workload="support", version="v2", previous_version="v1", created_at=teacher.now,
        share=0.9, step_since=teacher.now, state="holdback", ended_at=None,
    )  # fmt: skip
    assert retire.follow_champion(warehouse, Settings(), "support", teacher.now) == 0
    warehouse.execute("UPDATE rollouts SET version = 'v3', previous_version = 'v2', state = 'canary', share = 0.1")
    assert retire.follow_champion(warehouse, Settings(), "support", teacher.now) == 1


def test_an_entry_that_a_person_edits_just_before_it_retires_stays_as_the_person_left_it(
    teacher: Teacher, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher.correct("How long may I return a lamp?", "No.", "You have 14 days.")
    entries.follow(warehouse, Settings(memory=MemorySettings(mode="context")), "support", teacher.now)
    (entry,) = entries.active(warehouse, "support")
    teacher.acts += 10
    evaluated(warehouse, teacher, {f"{entry['id']}:0": 1})

    class Late:
        def __enter__(self) -> None:
            entries.decide(warehouse, "edit", [entry["id"]], "wrong", "olga", teacher.now, "You have 21 days.")
            entries.changing.acquire()

        def __exit__(self, *_: object) -> None:
            entries.changing.release()

    monkeypatch.setattr(retire, "changing", Late())
    assert retire.follow_champion(warehouse, Settings(), "support", teacher.now) == 0
    assert states(warehouse) == {"active": 1, "superseded": 1}


def test_of_two_retired_entries_of_a_question_only_the_newer_one_comes_back(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    question, ids = "How long may I return a lamp?", []
    for days in (14, 21):
        entry = feed.stated(
            warehouse, Settings(), "support", feed.Reading([{"role": "user", "content": question}]),
            f"You have {days} days.", "olga", teacher.now,
        )  # fmt: skip
        ids.append(entries.add(warehouse, "support", entry, teacher.now, "olga", "asked"))
        teacher.acts += 10
        with entries.changing, warehouse.transaction() as cursor:
            entries.apply(cursor, "support", [entries.Change(ids[-1], "retired", "learned", "v2")], teacher.now)
    evaluated(warehouse, teacher, {})
    warehouse.execute("UPDATE aliases SET version = 'v1'")
    retire.follow_champion(warehouse, Settings(), "support", teacher.now)
    rows = warehouse.rows("SELECT id, state FROM memory_entries ORDER BY added_at")
    assert rows == [{"id": ids[0], "state": "superseded"}, {"id": ids[1], "state": "active"}]


def test_related_questions_that_an_entry_helped_are_asked_too(teacher: Teacher, warehouse: Warehouse) -> None:
    teacher.correct("How long may I return a lamp?", "No.", "You have 14 days.")
    entries.follow(warehouse, Settings(memory=MemorySettings(mode="context")), "support", teacher.now)
    (entry,) = entries.active(warehouse, "support")
    asked = teacher.ask("How long may I return the lamp?", "14 days.")
    warehouse.insert(
        "memory_uses", workload="support", interaction_id=asked, answered_at=teacher.now, entry_id=entry["id"],
        held_out=False, match="related", similarity=0.9,
    )  # fmt: skip
    found = [json.loads(row["messages"])[-1]["content"] for row in retire.questions(warehouse, "support")]
    assert found == ["How long may I return a lamp?", "How long may I return the lamp?"]


@pytest.mark.full
@pytest.mark.processes
def test_a_champion_that_has_really_learned_the_entries_retires_them(
    teacher: Teacher, warehouse: Warehouse, tmp_path: Path
) -> None:
    settings = Settings(
        models=ModelsSettings(base=tiny_llama(tmp_path / "base"), directory=tmp_path / "models"),
        train=TrainSettings(threads=1, learning_rate=5e-3, epochs=8, dtype="float32"),
        evaluate=EvaluateSettings(general_examples=0),
        gate=GateSettings(minimum_examples=15, maximum_latency_ratio=ANY_LATENCY),
        memory=MemorySettings(mode="context"),
    )
    for number in range(24):
        teacher.ask(question(number), "Good morning.")
    teach_policies(teacher, GOODS)
    entries.follow(warehouse, settings, "support", teacher.now)
    before = states(warehouse)["active"]
    rollout = Rollout(warehouse, settings, MemoryPublisher(), "model-events")
    id = queue.enqueue(warehouse, "support", ["by hand"], teacher.now)
    result = run.resume(rollout, id, lambda: teacher.now, threading.Event(), lambda _: None)
    assert result.promoted, (result.error, result.reasons)
    warehouse.execute("UPDATE deployments SET served_at = ?", [teacher.now])
    retired = retire.follow_champion(warehouse, settings, "support", teacher.now)
    asked = warehouse.rows("SELECT row_id, score FROM evaluations WHERE split = 'memory'")
    assert retired == sum(row["score"] == 1 for row in asked) > 0.7 * before
    assert states(warehouse).get("active", 0) == before - retired


def test_answers_that_the_memory_helped_are_not_those_of_a_model(teacher: Teacher, warehouse: Warehouse) -> None:
    memory = {"entries": ["e1"], "held_out": []}
    asked = [
        teacher.ask(f"Is item {n} in stock?", "Yes.", attributes={"memory": memory} if n else None) for n in (0, 1)
    ]
    card = json.dumps({"rows": {"holdout": 2}, "replay": 0})
    warehouse.insert(
        "datasets", version="d1", workload="support", created_at=teacher.now, path="/d1", train=0,
        holdout=2, replay=0, card=card,
    )  # fmt: skip
    for number, id in enumerate(asked):
        warehouse.insert(
            "dataset_rows", dataset_version="d1", row_id=str(number), split="holdout", prompt_hash="",
            interaction_id=id, feedback_id="",
        )  # fmt: skip
    dataset = load(warehouse, "support", "d1")
    assert dataset is not None
    assert logged_answers(warehouse, dataset) == {"0": "Yes."}
