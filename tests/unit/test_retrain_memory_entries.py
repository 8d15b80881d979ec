"""What enters the memory of corrections, and what makes it leave."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.teaching import Teacher, question
from fixtures.feedback.traffic import registered, store
from fixtures.models.datasets import build_dataset, with_dataset
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data import overrides
from retuned.retrain.data.question import EXACT
from retuned.retrain.memory import entries, statements
from retuned.retrain.memory.settings import MemorySettings
from retuned.retrain.settings import MetricSettings, ModelsSettings, Settings

SETTINGS = Settings(memory=MemorySettings(mode="context"))
QUESTION = "How long may I return a lamp?"


def follow(teacher: Teacher, **memory: Any) -> int:
    settings = SETTINGS.model_copy(update={"memory": MemorySettings(mode="context", **memory)})
    return entries.follow(teacher.warehouse, settings, teacher.workload, teacher.now + timedelta(seconds=1))


def stored(warehouse: Warehouse, state: str | None = "active") -> list[dict[str, Any]]:
    rows = warehouse.rows("SELECT * FROM memory_entries ORDER BY sequence")
    return [row for row in rows if state in (None, row["state"])]


def answers(warehouse: Warehouse) -> list[str]:
    return sorted(row["answer"] for row in stored(warehouse))


def test_an_experts_correction_is_an_entry_with_what_was_asked(teacher: Teacher, warehouse: Warehouse) -> None:
    said = teacher.correct(QUESTION, "30 days.", "You have 14 days.", system="Be brief.")
    assert follow(teacher) == 1
    (entry,) = stored(warehouse)
    assert (entry["question"], entry["answer"], entry["source"]) == (QUESTION, "You have 14 days.", "expert")
    assert (entry["feedback_ids"], entry["threshold"]) == (f'["{said}"]', None)
    assert follow(teacher) == 0


def test_feedback_before_its_interaction_counts_once_that_arrives(teacher: Teacher, warehouse: Warehouse) -> None:
    follow(teacher)
    teacher.say("support-i2", "correction", "You have 14 days.")
    follow(teacher)
    assert answers(warehouse) == []
    teacher.ask(QUESTION, "30 days.")
    follow(teacher)
    assert answers(warehouse) == ["You have 14 days."]


def test_an_expert_may_correct_an_old_answer(teacher: Teacher, warehouse: Warehouse) -> None:
    asked = teacher.ask(QUESTION, "30 days.")
    follow(teacher)
    teacher.acts += 3 * 24 * 60
    teacher.say(asked, "correction", "You have 14 days.")
    follow(teacher)
    assert answers(warehouse) == ["You have 14 days."]


def test_the_same_question_has_one_entry_and_the_newest_answer_of_an_expert(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    follow(teacher)
    teacher.correct(f"  {QUESTION}\n", "30 days.", "You have 21 days.")
    follow(teacher)
    assert answers(warehouse) == ["You have 21 days."]
    assert [row["answer"] for row in stored(warehouse, "superseded")] == ["You have 14 days."]


def test_once_a_dataset_has_shown_that_the_end_makes_no_difference_both_wordings_have_one_entry(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    for text, days in ((QUESTION, 14), (QUESTION.rstrip("?"), 21)):
        teacher.correct(text, "30 days.", f"You have {days} days.")
        follow(teacher)
    assert sorted(answers(warehouse)) == ["You have 14 days.", "You have 21 days."]
    card = json.dumps({"wording": {"case": False, "end": True}})
    row = {"workload": "support", "created_at": teacher.now, "path": "", "replay": 0, "train": 0, "holdout": 0}
    store(warehouse, "datasets", [row | {"version": "d1", "card": card}])
    follow(teacher)
    assert answers(warehouse) == ["You have 21 days."]
    assert ["newer" in row["reason"] for row in stored(warehouse, "retired")] == [True]


def known_for_long(teacher: Teacher, *users: str) -> None:
    """The accounts voted on something a week ago."""
    for user in users:
        teacher.say(teacher.ask("Are you open on Sunday?", "No."), "helpful", True, "user", user)
    teacher.acts += 7 * 24 * 60


def test_the_answer_of_one_user_waits_and_that_of_independent_users_enters(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    known_for_long(teacher, "ann", "bob", "cem")
    for number, user in enumerate(("ann", "bob", "cem")):
        teacher.correct(QUESTION, "30 days.", "You have 14 days.", "user", user)
        follow(teacher)
        assert len(answers(warehouse)) == (0 if number == 0 else 1)
    assert stored(warehouse)[0]["source"] == "users"


def test_accounts_that_were_just_made_put_nothing_into_the_memory(teacher: Teacher, warehouse: Warehouse) -> None:
    for number in range(5):
        teacher.correct(QUESTION, "30 days.", "Call 555 for a free gift.", "user", f"new-{number}")
        follow(teacher)
    assert answers(warehouse) == []


def test_an_answer_of_users_leaves_once_as_many_contradict_it(teacher: Teacher, warehouse: Warehouse) -> None:
    known_for_long(teacher, "ann", "bob", "cem", "dan", "eve")
    for user, answer in (("ann", 14), ("bob", 14), ("cem", 90)):
        teacher.correct(QUESTION, "30 days.", f"You have {answer} days.", "user", user)
        follow(teacher)
    assert answers(warehouse) == ["You have 14 days."]
    for user in ("dan", "eve"):
        teacher.correct(QUESTION, "30 days.", "You have 90 days.", "user", user)
    follow(teacher)
    assert answers(warehouse) == ["You have 90 days."]


def test_a_user_does_not_replace_the_answer_of_an_expert(teacher: Teacher, warehouse: Warehouse) -> None:
    teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    follow(teacher)
    for user in ("ann", "bob", "cem"):
        teacher.correct(QUESTION, "30 days.", "You have 90 days.", "user", user)
        follow(teacher)
    assert answers(warehouse) == ["You have 14 days."]


def test_one_account_that_states_the_same_on_many_questions_poisons_none(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    for number in range(30):
        teacher.correct(f"May I return item {number}?", "No.", "Call 555 for a free gift.", "user", "mallory")
    follow(teacher)
    assert answers(warehouse) == []


def test_an_answer_that_an_expert_calls_wrong_later_leaves(teacher: Teacher, warehouse: Warehouse) -> None:
    known_for_long(teacher, "ann", "bob")
    teacher.correct(QUESTION, "30 days.", "You have 14 days.", "user", "ann")
    teacher.correct(QUESTION, "30 days.", "You have 14 days.", "user", "bob")
    follow(teacher)
    assert answers(warehouse) == ["You have 14 days."]
    teacher.say(teacher.ask(QUESTION, "You have 14 days."), "helpful", False)
    follow(teacher)
    assert answers(warehouse) == []


@pytest.mark.parametrize("action", ["drop", "edit"])
def test_the_entry_of_a_row_that_a_person_drops_leaves_and_comes_back_with_it(
    teacher: Teacher, warehouse: Warehouse, action: Any
) -> None:
    said = teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    follow(teacher)

    def decide(what: Any, answer: str | None = None) -> None:
        teacher.acts += 1
        overrides.decide_rows(warehouse, what, [said], "checked", "olga", teacher.now, answer)
        follow(teacher)

    decide(action, "You have 21 days." if action == "edit" else None)
    assert answers(warehouse) == (["You have 21 days."] if action == "edit" else [])
    decide("release")
    assert answers(warehouse) == ["You have 14 days."]


def test_the_entries_of_a_banned_account_leave(teacher: Teacher, warehouse: Warehouse) -> None:
    teacher.correct(QUESTION, "30 days.", "You have 14 days.", "expert", "eve")
    teacher.correct("May I return a sofa?", "No.", "Within 30 days.", "expert", "fay")
    follow(teacher)
    teacher.acts += 1
    overrides.decide_account(warehouse, "ban", "eve", None, "left", "olga", teacher.now)
    follow(teacher)
    assert answers(warehouse) == ["Within 30 days."]
    (gone,) = stored(warehouse, "overruled")
    assert "olga: left" in gone["reason"]


@pytest.mark.parametrize("decision", ["drop", "ban"])
def test_an_entry_that_a_person_edited_stays_whatever_becomes_of_the_correction(
    teacher: Teacher, warehouse: Warehouse, decision: str
) -> None:
    said = teacher.correct(QUESTION, "30 days.", "You have 14 days.", "expert", "eve")
    follow(teacher)
    (entry,) = stored(warehouse)
    teacher.acts += 1
    entries.decide(warehouse, "edit", [entry["id"]], "wording", "olga", teacher.now, "You have 14 days, unused.")
    teacher.acts += 1
    if decision == "ban":
        overrides.decide_account(warehouse, "ban", "eve", None, "left", "olga", teacher.now)
    else:
        overrides.decide_rows(warehouse, "drop", [said], "checked", "olga", teacher.now)
    follow(teacher)
    assert answers(warehouse) == ["You have 14 days, unused."]


def test_an_edit_that_changes_nothing_is_refused(teacher: Teacher, warehouse: Warehouse) -> None:
    teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    follow(teacher)
    (entry,) = stored(warehouse)
    with pytest.raises(RetunedError, match=f"entry {entry['id']} has this answer already"):
        entries.decide(warehouse, "edit", [entry["id"]], "wording", "olga", teacher.now, "You have 14 days.")
    assert stored(warehouse) == [entry]


def test_a_withdrawn_entry_is_not_put_back_beside_a_newer_one(teacher: Teacher, warehouse: Warehouse) -> None:
    teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    follow(teacher)
    (old,) = stored(warehouse)
    teacher.acts += 1
    entries.withdraw(warehouse, "support", {old["id"]: "worse"}, teacher.now)
    teacher.correct(QUESTION, "30 days.", "You have 21 days.")
    follow(teacher)
    (new,) = stored(warehouse)
    with pytest.raises(RetunedError, match=f"entry {new['id']}, which is active, is newer than {old['id']}"):
        entries.decide(warehouse, "unfreeze", [old["id"]], "why", "olga", teacher.now)
    assert answers(warehouse) == ["You have 21 days."]
    teacher.acts += 1
    entries.decide(warehouse, "remove", [new["id"]], "wrong", "olga", teacher.now)
    entries.decide(warehouse, "unfreeze", [old["id"]], "right after all", "olga", teacher.now)
    assert answers(warehouse) == ["You have 14 days."]


def retire(teacher: Teacher, id: str) -> None:
    teacher.acts += 1
    with entries.changing, teacher.warehouse.transaction() as cursor:
        learned = entries.Change(id, "retired", "learned", "v2")
        entries.apply(cursor, teacher.workload, [learned], teacher.now)


def test_a_retired_entry_leaves_with_its_statements(teacher: Teacher, warehouse: Warehouse) -> None:
    teacher.correct(QUESTION, "30 days.", "You have 14 days.", "expert", "eve")
    follow(teacher)
    retire(teacher, stored(warehouse)[0]["id"])
    teacher.acts += 1
    overrides.decide_account(warehouse, "ban", "eve", None, "left", "olga", teacher.now)
    follow(teacher)
    assert [row["state"] for row in stored(warehouse, None)] == ["overruled"]


def test_a_person_may_remove_a_retired_entry(teacher: Teacher, warehouse: Warehouse) -> None:
    teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    follow(teacher)
    (entry,) = stored(warehouse)
    retire(teacher, entry["id"])
    entries.decide(warehouse, "remove", [entry["id"]], "outdated", "olga", teacher.now)
    assert [row["state"] for row in stored(warehouse, None)] == ["removed"]


def test_an_account_beyond_its_budget_loses_its_oldest_entries(teacher: Teacher, warehouse: Warehouse) -> None:
    known_for_long(teacher, "ann", "bob")
    for number in range(3):
        for user in ("ann", "bob"):
            teacher.correct(f"Is item {number} in stock?", "No.", f"Yes, {number + 2} pieces.", "user", user)
        follow(teacher, entries_per_account=2)
    assert answers(warehouse) == ["Yes, 3 pieces.", "Yes, 4 pieces."]
    assert "memory.entries_per_account" in stored(warehouse, "expired")[0]["reason"]


def test_a_workload_beyond_its_budget_loses_its_oldest_entries(teacher: Teacher, warehouse: Warehouse) -> None:
    for number in range(3):
        teacher.correct(f"Is item {number} in stock?", "No.", f"Yes, {number + 2} pieces.")
    follow(teacher, max_entries=2)
    assert answers(warehouse) == ["Yes, 3 pieces.", "Yes, 4 pieces."]


def test_answers_that_call_tools_and_demonstrations_are_left_to_training(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    call = {"tool_calls": [{"function": {"name": "refund", "arguments": {"order": 7}}}]}
    teacher.say(teacher.ask("Refund order 7.", "No."), "correction", call)
    shown = teacher.ask(QUESTION, "You have 14 days.", model="demonstration")
    teacher.say(shown, "correction", "You have 14 days.")
    follow(teacher)
    assert answers(warehouse) == []


def test_sequences_grow_and_are_unique(teacher: Teacher, warehouse: Warehouse) -> None:
    for number in range(3):
        teacher.correct(QUESTION, "30 days.", f"You have {number + 14} days.")
        follow(teacher)
    sequences = [row["sequence"] for row in stored(warehouse, None)]
    assert len(set(sequences)) == len(sequences) == 3


def test_what_was_read_before_a_crash_is_decided_after_it(
    teacher: Teacher, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(teacher)
    teacher.correct(QUESTION, "30 days.", "You have 14 days.")

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entries, "find", crash)
    with pytest.raises(KeyboardInterrupt):
        follow(teacher)
    monkeypatch.undo()
    assert follow(teacher) == 1
    assert answers(warehouse) == ["You have 14 days."]
    assert len(warehouse.rows("SELECT * FROM memory_statements")) == 1


def trained(teacher: Teacher) -> None:
    """A champion has learned all that was taught."""
    warehouse, now = teacher.warehouse, teacher.now
    dataset = dict.fromkeys(("train", "holdout", "replay"), 0)
    card = f'{{"evidence_until": "{now.isoformat()}"}}'
    warehouse.insert("datasets", version="d1", workload="support", created_at=now, path="/d1", card=card, **dataset)
    registered(warehouse, "v1")
    warehouse.insert("aliases", workload="support", alias="champion", version="v1", created_at=now)


def test_when_it_is_switched_on_it_takes_what_the_champion_has_not_learned(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    teacher.correct("Is item 1 in stock?", "No.", "Yes, 2 pieces.")
    trained(teacher)
    teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    follow(teacher)
    assert answers(warehouse) == ["You have 14 days."]


def test_after_days_off_it_takes_what_happened_meanwhile(teacher: Teacher, warehouse: Warehouse) -> None:
    known_for_long(teacher, "ann", "bob", "cem", "dan", "eve")
    for user in ("ann", "bob"):
        teacher.correct("Is a sofa in stock?", "No.", "Yes, 5 pieces.", "user", user)
    follow(teacher)
    assert answers(warehouse) == ["Yes, 5 pieces."]
    for user in ("cem", "dan", "eve"):
        teacher.correct("Is a sofa in stock?", "No.", "Yes, 90 pieces.", "user", user)
    for user in ("ann", "bob"):
        teacher.correct("Do you ship to Oslo?", "No.", "Yes, we do.", "user", user)
    teacher.acts += 3 * 24 * 60
    follow(teacher)
    assert answers(warehouse) == ["Yes, 90 pieces.", "Yes, we do."]
    assert len(warehouse.rows("SELECT * FROM memory_positions")) == 1
    assert follow(teacher) == 0


def test_an_entry_ends_whose_newer_answer_the_champion_learned_while_the_memory_was_off(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    follow(teacher)
    teacher.correct(QUESTION, "30 days.", "You have 21 days.")
    trained(teacher)
    teacher.acts += 3 * 24 * 60
    follow(teacher)
    assert answers(warehouse) == []
    assert [row["answer"] for row in stored(warehouse, "superseded")] == ["You have 14 days."]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few statements of a kind on a question are read."""
    monkeypatch.setattr(statements, "ON_A_QUESTION", 3)


def rate(teacher: Teacher, answer: str, count: int = 10) -> None:
    """As many new accounts call an answer good as wrong, more than are read."""
    for _ in range(count):
        asked = teacher.ask(QUESTION, answer)
        teacher.say(asked, "helpful", teacher.acts % 4 == 0, "user", f"user-{teacher.acts}")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("objection", ["drop", "ban", "wrong"])
def test_thumbs_do_not_push_out_the_correction_behind_an_entry(
    teacher: Teacher, warehouse: Warehouse, objection: str
) -> None:
    said = teacher.correct(QUESTION, "30 days.", "You have 14 days.", "expert", "eve")
    follow(teacher)
    rate(teacher, "30 days.")
    follow(teacher)
    assert answers(warehouse) == ["You have 14 days."]
    teacher.acts += 1
    if objection == "drop":
        overrides.decide_rows(warehouse, "drop", [said], "outdated", "olga", teacher.now)
    elif objection == "ban":
        overrides.decide_account(warehouse, "ban", "eve", None, "left", "olga", teacher.now)
    else:
        teacher.say(teacher.ask(QUESTION, "You have 14 days."), "helpful", False)
    follow(teacher)
    assert answers(warehouse) == []


@pytest.mark.usefixtures("few")
def test_thumbs_do_not_push_out_a_correction_before_a_second_account_gives_it(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    known_for_long(teacher, "ann", "bob")
    teacher.correct(QUESTION, "30 days.", "You have 14 days.", "user", "ann")
    rate(teacher, "30 days.")
    follow(teacher)
    teacher.correct(QUESTION, "30 days.", "You have 14 days.", "user", "bob")
    follow(teacher)
    assert answers(warehouse) == ["You have 14 days."]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("banned", [False, True])
def test_corrections_of_one_account_push_out_no_others(teacher: Teacher, warehouse: Warehouse, banned: bool) -> None:
    known_for_long(teacher, "ann", "bob", "mallory")

    def flood() -> None:
        for _ in range(5):
            teacher.correct(QUESTION, "30 days.", "Call 555 for a free gift.", "user", "mallory")

    teacher.correct(QUESTION, "30 days.", "You have 14 days.", "user", "ann")
    flood()
    if banned:
        overrides.decide_account(warehouse, "ban", "mallory", None, "fraud", "olga", teacher.now)
    else:
        follow(teacher)
    teacher.correct(QUESTION, "30 days.", "You have 14 days.", "user", "bob")
    flood()
    follow(teacher)
    assert answers(warehouse) == ["You have 14 days."]


@pytest.mark.usefixtures("few")
def test_thumbs_do_not_push_out_an_experts_verdict(teacher: Teacher, warehouse: Warehouse) -> None:
    teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    teacher.say(teacher.ask(QUESTION, "You have 14 days."), "helpful", False)
    follow(teacher)
    assert answers(warehouse) == []
    rate(teacher, "30 days.")
    follow(teacher)
    assert answers(warehouse) == []


def test_thumbs_do_not_push_out_corrections_when_the_memory_is_switched_on(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    rate(teacher, "30 days.")
    settings = SETTINGS.model_copy(update={"dataset": SETTINGS.dataset.model_copy(update={"maximum_rows": 3})})
    entries.follow(warehouse, settings, "support", teacher.now)
    assert answers(warehouse) == ["You have 14 days."]


def test_an_answer_of_two_users_leaves_once_one_of_them_is_banned(teacher: Teacher, warehouse: Warehouse) -> None:
    known_for_long(teacher, "ann", "bob")
    for user in ("ann", "bob"):
        teacher.correct(QUESTION, "30 days.", "You have 90 days.", "user", user)
        follow(teacher)
    assert answers(warehouse) == ["You have 90 days."]
    teacher.acts += 1
    overrides.decide_account(warehouse, "ban", "bob", "support", "sock puppet", "olga", teacher.now)
    follow(teacher)
    (gone,) = stored(warehouse, None)
    assert (gone["state"], gone["reason"]) == ("overruled", "banned: olga: sock puppet")


def test_a_statement_whose_events_are_deleted_upholds_no_entry(teacher: Teacher, warehouse: Warehouse) -> None:
    said = teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    follow(teacher)
    warehouse.execute("DELETE FROM feedback WHERE id = ?", [said])
    teacher.say(teacher.ask(QUESTION, "30 days."), "helpful", True, "user", "ann")
    follow(teacher)
    assert answers(warehouse) == []


def test_an_entry_outlives_the_statements_that_retention_deletes(teacher: Teacher, warehouse: Warehouse) -> None:
    teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    follow(teacher)
    statements.forget(warehouse, ["support"], teacher.now + timedelta(days=1))
    teacher.correct(QUESTION, "You have 14 days.", "You have 90 days.", "user", "ann")
    follow(teacher)
    assert answers(warehouse) == ["You have 14 days."]


def test_a_decision_applies_although_the_clock_was_set_back(teacher: Teacher, warehouse: Warehouse) -> None:
    first = teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    second = teacher.correct("Is there a warranty?", "No.", "Yes, call 555.")
    follow(teacher)
    overrides.decide_rows(warehouse, "drop", [first], "outdated", "olga", teacher.now)
    follow(teacher)
    assert answers(warehouse) == ["Yes, call 555."]
    overrides.decide_rows(warehouse, "drop", [second], "fraud", "olga", teacher.now - timedelta(minutes=3))
    follow(teacher)
    assert answers(warehouse) == []
    assert follow(teacher) == 0


def test_only_questions_that_were_decided_about_lately_are_decided_again(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    said = [teacher.correct(f"Is item {number} in stock?", "No.", f"Yes, {number + 2} pieces.") for number in range(3)]
    since = []
    for id in said:
        teacher.acts += 10
        overrides.decide_rows(warehouse, "keep", [id], "checked", "olga", teacher.now)
        behind = statements.Behind.of(warehouse, "support", teacher.now, "", EXACT)
        since.append(behind and behind.decided_since and teacher.now - behind.decided_since)
        follow(teacher)
    assert since == [None, timedelta(minutes=11), timedelta(minutes=11)]


PROSE = "Kindly use the complaint form on our website and describe what happened to you in your own words."


def helped(teacher: Teacher, asked: str, response: str) -> str:
    """The model answers in its own words, with the help of the entries in force and of one that is long gone."""
    entries_of = [row["id"] for row in stored(teacher.warehouse) if row["question"] == asked]
    memory = {"entries": [*entries_of, "gone"], "held_out": [], "mode": "context"}
    return teacher.ask(asked, response, attributes={"memory": memory})


@pytest.mark.parametrize(
    ("answer", "paraphrase"),
    [
        ("You have 14 days.", "Fourteen days from the delivery of the lamp."),
        ("You have 14 days.", "You have 14 days, and the shop pays the parcel."),
        (PROSE, "You can fill in the form that is on the site and tell us what happened."),
    ],
)
@pytest.mark.parametrize("who", [("expert", "ada"), ("user", "zoe")])
def test_praise_of_a_helped_answer_in_other_words_is_no_rival_of_the_entry(
    teacher: Teacher, warehouse: Warehouse, answer: str, paraphrase: str, who: tuple[str, str]
) -> None:
    teacher.correct(QUESTION, "30 days.", answer)
    follow(teacher)
    teacher.say(helped(teacher, QUESTION, paraphrase), "helpful", True, *who)
    follow(teacher)
    assert answers(warehouse) == [answer]


def test_users_who_praise_a_helped_answer_in_other_words_do_not_push_out_the_answer_of_users(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    known_for_long(teacher, "ann", "bob", "cem", "dan", "eve", "fay")
    for user in ("ann", "bob"):
        teacher.correct(QUESTION, "30 days.", "You have 14 days.", "user", user)
    follow(teacher)
    shown = helped(teacher, QUESTION, "Fourteen days from the delivery of the lamp.")
    for user in ("cem", "dan", "eve", "fay"):
        teacher.say(shown, "helpful", True, "user", user)
    follow(teacher)
    assert answers(warehouse) == ["You have 14 days."]


@pytest.mark.parametrize(("name", "value"), [("helpful", False), ("hallucination", True), ("rating", 0.0)])
@pytest.mark.parametrize(
    ("answer", "paraphrase"),
    [
        ("You have 14 days.", "You may return the lamp within fourteen days of receipt, no questions asked."),
        (PROSE, "You can fill in the form that is on the site and tell us what happened."),
    ],
)
def test_an_expert_who_calls_a_helped_answer_in_other_words_wrong_ends_the_entry(
    teacher: Teacher, warehouse: Warehouse, answer: str, paraphrase: str, name: str, value: Any
) -> None:
    teacher.correct(QUESTION, "30 days.", answer)
    follow(teacher)
    shown = helped(teacher, QUESTION, paraphrase)
    teacher.say(shown, name, value, "user", "zoe")
    follow(teacher)
    assert answers(warehouse) == [answer]
    teacher.say(shown, name, value)
    follow(teacher)
    assert answers(warehouse) == []
    (gone,) = stored(warehouse, "superseded")
    assert gone["reason"] == "declined: an expert calls this answer wrong"


def test_a_verdict_on_an_answer_that_an_unknown_entry_helped_is_on_that_answer(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    follow(teacher)
    for memory in ({"entries": ["gone"]}, {"entries": "gone"}, {"entries": [None, 7, {}]}, "gone", None):
        shown = teacher.ask(QUESTION, "Fourteen days from the delivery.", attributes={"memory": memory})
        teacher.say(shown, "helpful", False)
        follow(teacher)
    assert answers(warehouse) == ["You have 14 days."]


def test_a_dataset_learns_the_correction_and_not_the_praise_of_an_answer_that_it_helped(
    teacher: Teacher, warehouse: Warehouse, tmp_path: Path
) -> None:
    settings = with_dataset(SETTINGS.model_copy(update={"models": ModelsSettings(directory=tmp_path)}))
    for number in range(12):
        teacher.correct(question(number), "No idea.", "It takes 30 days.")
    said = teacher.correct(QUESTION, "30 days.", "You have 14 days.")
    follow(teacher)
    praised = teacher.say(helped(teacher, QUESTION, "Fourteen days from the delivery."), "helpful", True)
    again(teacher, settings)
    found = {row["feedback_id"]: row for row in warehouse.rows("SELECT feedback_id, state, reason FROM row_states")}
    assert found[said]["reason"] == ""
    assert (found[praised]["state"], found[praised]["reason"]) == ("waiting", "helped")


LABELS = ("billing", "exchange", "refund", "shipping")


def label(number: int) -> str:
    return LABELS[number % len(LABELS)]


def document(number: int) -> str:
    return json.dumps({"intent": label(number), "urgent": bool(number % 2)})


def with_a_dataset(teacher: Teacher, folder: Path, make: Any) -> Settings:
    """The memory is on, and a dataset has the labels or the schema of what experts wrote."""
    settings = with_dataset(SETTINGS.model_copy(update={"models": ModelsSettings(directory=folder)}))
    for number in range(24):
        teacher.correct(question(number), "other", make(number))
    follow(teacher)
    again(teacher, settings)
    return settings


def again(teacher: Teacher, settings: Settings) -> None:
    """Build a dataset, and follow it into the memory."""
    teacher.acts += 120
    build_dataset(teacher.warehouse, settings, "support", teacher.now)
    entries.follow(teacher.warehouse, settings, "support", teacher.now)


@pytest.mark.parametrize(
    ("make", "new"), [(label, "privacy"), (document, json.dumps({"intent": "refund", "urgent": True, "danger": True}))]
)
def test_labels_and_a_schema_that_were_inferred_reject_no_correction_of_an_expert(
    teacher: Teacher, warehouse: Warehouse, tmp_path: Path, make: Any, new: str
) -> None:
    settings = with_a_dataset(teacher, tmp_path, make)
    said = teacher.correct("Please delete my account", "billing", new)
    follow(teacher)
    assert new in answers(warehouse)
    again(teacher, settings)
    (row,) = warehouse.rows("SELECT state FROM row_states WHERE feedback_id = ?", [said])
    assert row["state"] in ("taught", "held_out")
    assert new in answers(warehouse)


def test_corrections_of_users_with_a_new_label_enter_once_a_dataset_has_it(
    teacher: Teacher, warehouse: Warehouse, tmp_path: Path
) -> None:
    known_for_long(teacher, "ann", "bob")
    settings = with_a_dataset(teacher, tmp_path, label)
    for user in ("ann", "bob"):
        teacher.correct("Please delete my account", "billing", "privacy", "user", user)
    follow(teacher)
    before = len(answers(warehouse))
    assert "privacy" not in answers(warehouse)
    for wording in ("Forget me", "Erase all that you know of me"):
        teacher.correct(wording, "billing", "privacy")
    follow(teacher)
    assert len(answers(warehouse)) == before + 2
    again(teacher, settings)
    assert len(answers(warehouse)) == before + 3
    assert entries.follow(warehouse, settings, "support", teacher.now) == 0


def test_what_a_configured_set_of_labels_rejects_enters_once_the_set_has_it(
    teacher: Teacher, warehouse: Warehouse, tmp_path: Path
) -> None:
    def configured(*labels: str) -> Settings:
        return settings.model_copy(update={"metric": MetricSettings(name="label", labels=labels)})

    settings = with_a_dataset(teacher, tmp_path, label)
    teacher.correct("Please delete my account", "billing", "privacy")
    for labels, expected in ((LABELS, False), ((*LABELS, "privacy"), True)):
        entries.follow(warehouse, configured(*labels), "support", teacher.now)
        assert ("privacy" in answers(warehouse)) == expected
