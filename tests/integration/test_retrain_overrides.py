"""People decide about rows and accounts, and look at a dataset before it is made."""

import json
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.teaching import Teacher, question
from fixtures.models.datasets import build_dataset, promote, rows, set_aside, teach, with_dataset
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data import overrides
from retuned.retrain.data.build import this_machine
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.data.overrides import Overrides
from retuned.retrain.data.preview import preview
from retuned.retrain.data.states import listed
from retuned.retrain.settings import ModelsSettings, Settings

NOW, LATER, LATEST = datetime(2026, 4, 1), datetime(2026, 5, 1), datetime(2026, 6, 1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return with_dataset(Settings(models=ModelsSettings(directory=tmp_path / "models")))


def decide(warehouse: Warehouse, action: Any, *ids: str, answer: str | None = None, at: datetime = NOW) -> list[Any]:
    return overrides.decide_rows(warehouse, action, ids, "it is right", "anna", at, answer)


def states(warehouse: Warehouse) -> dict[str, tuple[str, str]]:
    return {row["feedback_id"]: (row["state"], row["reason"]) for row in listed(warehouse, "support")}


def answers(built: Dataset, *splits: str) -> dict[str, str]:
    return {row["question"]: row["completion"] for row in rows(built, *splits)}


def test_a_question_that_an_app_sends_in_parts_is_listed_as_text(warehouse: Warehouse) -> None:
    teacher = Teacher(warehouse)
    parts = [{"type": "text", "text": "How long does it take?"}, {"type": "image_url", "image_url": {"url": "7.png"}}]
    teacher.correct(parts, "No idea.", "It takes 30 days.")
    assert [row["question"] for row in listed(warehouse, "support")] == ["How long does it take?"]


def test_an_edit_may_change_an_indentation_and_not_only_the_ends_of_lines(warehouse: Warehouse) -> None:
    program = "for line in lines:\n    send(line)\nclose()"
    row = Teacher(warehouse).correct("How do I send lines?", "No idea.", program)
    with pytest.raises(RetunedError, match="the answer is unchanged"):
        decide(warehouse, "edit", row, answer=program.replace("\n", "\r\n") + "\r\n")
    decide(warehouse, "edit", row, answer=program.replace("\nclose", "\n    close"))
    assert {one["decision"]["action"] for one in listed(warehouse, "support")} == {"edit"}


def test_a_reader_of_rows_that_stops_in_the_middle_holds_nothing_up(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retuned.retrain.data.states._ROWS", 2)
    monkeypatch.setattr("retuned.consumers.warehouse.connection.CHECKPOINT_SECONDS", 1)
    teacher = Teacher(warehouse)
    teach(teacher, range(5), source="expert")
    whole = list(listed(warehouse, "support"))
    assert {(row["question"], row["answer"]) for row in whole} == {
        (question(number), "It takes 30 days.") for number in range(5)
    }
    reading = listed(warehouse, "support")
    first = next(reading)
    teach(teacher, range(5, 6), source="expert")  # else there is nothing to write
    warehouse.checkpoint()
    assert [first, *reading] == whole


def test_each_row_has_one_state_and_what_came_after_the_dataset_waits(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    taught = teach(teacher, range(30))
    assert set(states(warehouse).values()) == {("waiting", "not_decided")}
    first = teacher.correct("When do you open?", "Never.", "At 8 am.")
    last = teacher.correct("When do you open?", "Never.", "At 9 am.")
    build_dataset(warehouse, settings, "support", teacher.now)
    found = states(warehouse)
    assert found.keys() == {*taught, first, last}
    assert found[first] == ("set_aside", "superseded")
    assert {found[id][0] for id in taught} == {"taught", "held_out"}
    new = teacher.correct(question(99), "No.", "In 9 days.")
    liked = teacher.say(teacher.ask(question(98), "In 8 days."), "helpful", True, "user", "bert")
    teacher.say(teacher.ask(question(97), "In 7 days."), "helpful", False, "user", "bert")
    taken_back = teacher.ask(question(96), "In 6 days.")
    for liked_it in (True, False):
        teacher.say(taken_back, "helpful", liked_it, "user", "bert")
    waiting = list(listed(warehouse, "support", "waiting", "not_decided"))
    assert {row["feedback_id"]: (row["question"], row["answer"], row["account"]) for row in waiting} == {
        new: (question(99), "In 9 days.", None), liked: (question(98), "In 8 days.", "bert"),
    }  # fmt: skip
    build_dataset(warehouse, settings, "support", teacher.now)
    assert not list(listed(warehouse, "support", "waiting"))


def test_what_a_person_keeps_is_taught_although_experts_and_filters_object(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(30))
    wrong = teacher.correct("When do you open?", "Never.", "At 8 am.")
    right = teacher.correct("When do you open?", "Never.", "At 9 am.", "user", "bert")
    loop = teacher.correct("What do you sing?", "No.", " ".join(["la"] * 40), "user", "bert")
    built = build_dataset(warehouse, settings, "support", NOW)
    assert set_aside(built) == {right: "contradicts_expert", loop: "repetitive"}
    assert decide(warehouse, "keep", right, loop) == [
        {"workload": "support", "feedback_id": id, "action": "keep", "before": None} for id in (right, loop)
    ]
    built = build_dataset(warehouse, settings, "support", LATER)
    assert answers(built)["when do you open"] == "At 9 am."
    assert answers(built)["what do you sing"].startswith("la la")
    assert states(warehouse)[loop][1] == "kept"
    assert states(warehouse)[wrong][0] == "set_aside"
    done = overrides.decide_rows(warehouse, "release", [right, loop], "never mind", "otto", LATER)
    assert [row["before"] for row in done] == ["keep", "keep"]
    assert set_aside(build_dataset(warehouse, settings, "support", LATEST)) == {
        right: "contradicts_expert", loop: "repetitive",
    }  # fmt: skip


def test_what_was_set_aside_before_the_champion_comes_back_when_a_person_keeps_it(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(30))
    right = teacher.correct("When do you open?", "Never.", "At 9 am.", "user", "bert")
    teacher.correct("When do you open?", "Never.", "At 8 am.")
    promote(warehouse, build_dataset(warehouse, settings, "support", NOW), "v1")
    teach(teacher, range(30, 40))
    decide(warehouse, "keep", right, at=LATER)
    assert answers(build_dataset(warehouse, settings, "support", LATER))["when do you open"] == "At 9 am."


def test_what_is_dropped_is_in_no_dataset_also_after_it_was_taught(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    ids = teach(teacher, range(60))
    promote(warehouse, built := build_dataset(warehouse, settings, "support", NOW), "v1")
    dropped = [next(row["feedback_id"] for row in built.split(split)) for split in ("train", "holdout")]
    teach(teacher, range(60, 100))
    decide(warehouse, "drop", *dropped)
    again = build_dataset(warehouse, settings, "support", LATER)
    left = {row["feedback_id"] for row in rows(again)}
    assert left & set(ids), "rehearsal and regression hold rows of before"
    assert not left & set(dropped)
    assert [states(warehouse)[id] for id in dropped] == [("overruled", "dropped")] * 2
    (found,) = (row for row in listed(warehouse, "support", "overruled") if row["feedback_id"] == dropped[0])
    assert (found["detail"], found["decision"]["action"]) == ("anna: it is right", "drop")


def test_an_accepted_answer_is_dropped_whoever_calls_it_good(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(30))
    shown = teacher.ask("When do you open?", "At 9 am.")
    first = teacher.say(shown, "helpful", True, "user", "bert")
    decide(warehouse, "drop", first)
    second = teacher.say(shown, "helpful", True, "user", "carl")
    built = build_dataset(warehouse, settings, "support", NOW)
    assert "when do you open" not in answers(built)
    assert shown not in {row["interaction_id"] for row in built.split("thumbs")}
    assert states(warehouse)[second] == ("overruled", "dropped")
    overrides.decide_rows(warehouse, "release", [second], "it was right", "anna", LATER)  # by the id that is listed now
    assert "when do you open" in answers(build_dataset(warehouse, settings, "support", LATER))


def test_one_decision_is_about_all_votes_on_an_answer_by_whichever_of_their_ids(
    warehouse: Warehouse, teacher: Teacher
) -> None:
    shown = teacher.ask("When do you open?", "At 9 am.")
    votes = [teacher.say(shown, "helpful", True, "user", name) for name in ("bert", "carl")]
    for action, answer, before in (("pin", None, None), ("edit", "At 8 am.", "pin"), ("release", None, "edit")):
        done = decide(warehouse, action, *votes, answer=answer)
        assert done == [{"workload": "support", "feedback_id": id, "action": action, "before": before} for id in votes]
    assert Overrides.of(warehouse, "support") == Overrides()
    with pytest.raises(RetunedError, match=f"nobody has decided about {votes[0]}"):
        decide(warehouse, "release", *votes)


def test_an_edited_answer_is_taught_as_an_experts(warehouse: Warehouse, teacher: Teacher, settings: Settings) -> None:
    teach(teacher, range(30))
    accepted = teacher.say(teacher.ask("When do you open?", "At 9."), "helpful", True, "user", "bert")
    corrected = teacher.correct("When do you close?", "Never.", "At 5.", "user", "bert")
    settings = with_dataset(settings, replace={"sharp": "exactly"})
    decide(warehouse, "edit", accepted, answer="At 9 sharp.")
    decide(warehouse, "edit", corrected, answer="At 5 sharp.")
    built = build_dataset(warehouse, settings, "support", NOW)
    found = {row["feedback_id"]: row for row in rows(built)}
    told = [(found[id]["completion"], found[id]["rejected"], found[id]["source"]) for id in (accepted, corrected)]
    assert told == [("At 9 exactly.", "At 9.", "expert"), ("At 5 exactly.", "Never.", "expert")]
    decide(warehouse, "edit", corrected, answer="At 6 sharp.", at=LATER)
    assert answers(build_dataset(warehouse, settings, "support", LATER))["when do you close"] == "At 6 exactly."
    kept = warehouse.rows("SELECT answer, superseded_at FROM row_decisions WHERE feedback_id = $1", [corrected])
    assert kept == [
        {"answer": "At 5 sharp.", "superseded_at": LATER},
        {"answer": "At 6 sharp.", "superseded_at": None},
    ]


@pytest.mark.parametrize("form", ["<tool_call>{}</tool_call>", "{}"])
def test_arguments_of_calls_in_an_edit_are_taught_as_they_were_typed(
    form: str, warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(30))
    tools = [{"name": "book", "parameters": {"type": "object", "properties": {"day": {"type": "string"}}}}]
    row = teacher.correct("Book a table for me.", "No.", "Booked for 2026-11-24.", attributes={"tools": tools})
    called = '{"name": "book", "arguments": {"day": "2026-11-24"}}'
    decide(warehouse, "edit", row, answer=form.format(called))
    built = build_dataset(warehouse, with_dataset(settings, date_format="%d.%m.%Y"), "support", NOW)
    assert answers(built)["book a table for me"] == f"<tool_call>\n{called}\n</tool_call>"


def test_a_vote_against_an_answer_is_edited_and_not_kept(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(30))
    wrong = teacher.say(teacher.ask("When do you open?", "At 9."), "helpful", False, "user", "bert")
    poor = teacher.say(teacher.ask("When do you close?", "At 9."), "rating", 0.2, "user", "bert")
    for action in ("keep", "pin"):
        with pytest.raises(RetunedError, match=f"rows {action}: {wrong}, {poor} approves of no answer.*rows edit"):
            decide(warehouse, action, wrong, poor)
    invented = teacher.say(teacher.ask("Who founded it?", "A pirate."), "hallucination", True, "user", "bert")
    decide(warehouse, "edit", invented, answer="Anna Maier.")
    kept = teacher.say(teacher.ask("Who owns it?", "A pirate."), "hallucination", False, "user", "bert")
    with pytest.raises(RetunedError, match=f"rows edit: {kept} rates an answer neither right nor wrong"):
        decide(warehouse, "edit", kept, answer="Anna Maier.")
    fair = teacher.say(teacher.ask("When do you rest?", "At 9."), "rating", 0.6, "user", "bert")
    with pytest.raises(RetunedError, match=f"rows edit: {fair} rates an answer neither right nor wrong"):
        decide(warehouse, "edit", fair, answer="At 8.")
    decide(warehouse, "edit", wrong, answer="At 8.")
    assert states(warehouse)[wrong] == ("waiting", "not_decided")
    (row,) = [row for row in rows(build_dataset(warehouse, settings, "support", NOW)) if row["feedback_id"] == wrong]
    assert (row["completion"], row["rejected"], row["source"]) == ("At 8.", "At 9.", "expert")
    assert answers(build_dataset(warehouse, settings, "support", NOW))["who founded it"] == "Anna Maier."


def test_a_decision_holds_whatever_votes_and_newer_rows_there_are_since(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    (kept,) = teach(teacher, range(1))
    liked, wrong = (
        teacher.say(teacher.ask(question(number), "At 9 am."), "helpful", helpful, "user", "bert")
        for number, helpful in ((1, True), (2, False))
    )
    decide(warehouse, "keep", kept, liked)
    decide(warehouse, "edit", wrong, answer="At 8 am.")
    for id in (liked, wrong):  # the account takes its votes back
        (row,) = warehouse.rows("SELECT interaction_id FROM feedback WHERE id = $1", [id])
        teacher.say(row["interaction_id"], "rating", 0.6, "user", "bert")
    teach(teacher, range(10, 26))
    for number in range(30, 60):
        teacher.say(teacher.ask(question(number), "In 7 days."), "helpful", number % 2 == 0, "user", "carl")
    build_dataset(warehouse, with_dataset(settings, maximum_rows=6), "support", NOW)
    assert {states(warehouse)[id][1] for id in (kept, liked)} == {"kept"}
    assert states(warehouse)[wrong][1] == "edited"


def archive(warehouse: Warehouse, *ids: str) -> None:
    """As retention: the events of these pieces of feedback leave the warehouse, and stay in datasets."""
    about = {"ids": ids}
    warehouse.execute(
        "DELETE FROM interactions WHERE id IN (SELECT interaction_id FROM feedback WHERE list_contains($ids, id))",
        about,
    )
    warehouse.execute("DELETE FROM feedback WHERE interaction_id NOT IN (SELECT id FROM interactions)")


def test_an_edit_of_a_row_that_a_dataset_alone_holds_is_taught(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(30))
    promote(warehouse, built := build_dataset(warehouse, settings, "support", NOW), "v1")
    edited, judged = (built.split(split)[0] for split in ("train", "holdout"))
    archive(warehouse, edited["feedback_id"], judged["feedback_id"])
    teach(teacher, range(30, 50))
    decide(warehouse, "edit", edited["feedback_id"], answer="In 9 days.", at=LATER)
    decide(warehouse, "edit", judged["feedback_id"], answer="In 8 days.", at=LATER)
    built = build_dataset(warehouse, settings, "support", LATER)
    assert answers(built, "train")[edited["question"]] == "In 9 days."
    assert answers(built, "holdout", "regression")[judged["question"]] == "In 8 days."
    decide(warehouse, "drop", edited["feedback_id"], at=LATEST)
    assert edited["question"] not in answers(build_dataset(warehouse, settings, "support", LATEST))


def test_an_answer_that_a_person_drops_is_not_rehearsed_once_its_votes_are_archived(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(30))
    votes = dict[str, list[str]]()
    for number in range(40, 70):
        shown = teacher.ask(question(number), "At 9 am.")
        votes[shown] = [teacher.say(shown, "helpful", True, "user", name) for name in ("bert", "carl")]
    promote(warehouse, built := build_dataset(warehouse, settings, "support", NOW), "v1")
    row = next(row for row in built.split("train") if row["interaction_id"] in votes)
    (other,) = set(votes[row["interaction_id"]]) - {row["feedback_id"]}
    decide(warehouse, "drop", other)
    archive(warehouse, other)
    teach(teacher, range(80, 140))
    settings = with_dataset(settings, replay_share=0.9)
    assert row["question"] not in answers(build_dataset(warehouse, settings, "support", LATER))


def test_a_row_that_is_stored_nowhere_any_more_is_not_taught_and_the_answer_says_so(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(30))
    built = build_dataset(warehouse, settings, "support", NOW)
    (gone,) = (row["feedback_id"] for row in built.split("train")[:1])
    archive(warehouse, gone)
    decide(warehouse, "pin", gone)
    (built.path / "train.parquet").unlink()
    for action, answer in (("keep", None), ("edit", "In 9 days.")):
        with pytest.raises(RetunedError, match=f"rows {action}: {gone} is stored neither.*nothing is changed"):
            decide(warehouse, action, gone, answer=answer)
    decide(warehouse, "drop", gone)


def test_what_a_person_keeps_counts_for_its_own_question_alone(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    """The same phrase is the answer to questions with nothing in common."""
    teach(teacher, range(40))
    asked = ("When do you open?", "Who repairs tents?", "Is parking free?", "What is a voucher?", "Do you ship abroad?",
             "Where do I pay?", "May dogs come along?")  # fmt: skip
    ids = [teacher.correct(one, "No.", "as if you cared", "user", f"user-{n}") for n, one in enumerate(asked)]
    build_dataset(warehouse, settings, "support", NOW)
    assert {states(warehouse)[id] for id in ids} == {("waiting", "unspecific")}
    decide(warehouse, "keep", ids[0])
    build_dataset(warehouse, settings, "support", LATER)
    assert states(warehouse)[ids[0]][1] == "kept"
    assert {states(warehouse)[id] for id in ids[1:]} == {("waiting", "unspecific")}


def test_what_is_pinned_is_rehearsed_in_every_dataset(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    settings = with_dataset(settings, replay_share=0.05)
    ids = teach(teacher, range(60))
    built = build_dataset(warehouse, settings, "support", NOW)
    pinned = [row["feedback_id"] for row in built.split("train")][-10:]
    decide(warehouse, "pin", *pinned, at=teacher.now)
    for number in range(3):
        promote(warehouse, built := build_dataset(warehouse, settings, "support", NOW), f"v{number}")
        assert {row["feedback_id"] for row in built.split("train")} >= set(pinned)
        teach(teacher, range(60 + 20 * number, 80 + 20 * number))
    rehearsed = {row["feedback_id"] for row in built.split("train") if row["replay"]}
    assert rehearsed >= set(pinned)
    assert rehearsed & set(ids) == set(pinned), "others have no place beside them"


def test_of_a_banned_account_nothing_counts_and_a_trusted_one_is_an_expert(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(30))
    right = teacher.correct("When do you open?", "Never.", "At 9 am.", "user", "bert")
    lies = [teacher.correct("When do you open?", "Never.", "At 3 pm.", "user", name) for name in ("u1", "u2", "u3")]
    bad = teacher.say(teacher.ask("When do you close?", "At 3 pm."), "helpful", True, "user", "u1")
    assert answers(build_dataset(warehouse, settings, "support", NOW))["when do you open"] == "At 3 pm."
    overrides.decide_account(warehouse, "ban", "u1", None, "a bot", "anna", NOW)
    overrides.decide_account(warehouse, "trust", "bert", "support", "our editor", "anna", NOW)
    built = build_dataset(warehouse, settings, "support", LATER)
    assert answers(built)["when do you open"] == "At 9 am."
    assert {row["source"] for row in rows(built) if row["feedback_id"] == right} == {"expert"}
    found = states(warehouse)
    assert found[lies[0]] == found[bad] == ("overruled", "banned")
    assert found[lies[1]] == ("set_aside", "contradicts_expert")
    overrides.decide_account(warehouse, "release", "u1", None, "no bot", "anna", LATER)
    overrides.decide_account(warehouse, "release", "bert", "support", "he left", "anna", LATER)
    assert Overrides.of(warehouse, "support") == Overrides()
    assert answers(build_dataset(warehouse, settings, "support", LATEST))["when do you open"] == "At 3 pm."


def test_what_is_not_known_is_refused_and_nothing_is_changed(warehouse: Warehouse, teacher: Teacher) -> None:
    (known,) = teach(teacher, range(1))
    with pytest.raises(RetunedError, match=r"the id nothing; nothing is changed\. `retuned rows WORKLOAD` lists"):
        decide(warehouse, "drop", known, "nothing")
    with pytest.raises(RetunedError, match="nobody has decided about"):
        overrides.decide_rows(warehouse, "release", [known], "why not", "anna", NOW)
    with pytest.raises(RetunedError, match=r"nothing is stored of this account.*`retuned pseudonym USER`"):
        overrides.decide_account(warehouse, "ban", "zoe", None, "why not", "anna", NOW)
    assert Overrides.of(warehouse, "support") == Overrides()
    decide(warehouse, "drop", known)
    assert decide(warehouse, "drop", known, at=LATER)[0]["before"] == "drop"
    assert len(warehouse.rows("FROM row_decisions")) == 1, "the same request again changes nothing"


def looked_at(warehouse: Warehouse, settings: Settings, limit: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads("".join(preview(warehouse, settings, "support", threading.Event(), limit)))
    return found


def test_a_preview_is_what_the_next_dataset_decides_and_writes_nothing(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(30))
    right = teacher.correct("When do you open?", "Never.", "At 9 am.", "user", "bert")
    teacher.correct("When do you open?", "Never.", "At 8 am.")
    settings = with_dataset(settings).model_copy(
        update={"dataset": settings.dataset.model_copy(update={"minimum_rows": 40})}
    )
    found = looked_at(warehouse, settings)
    assert found["against"] is None
    assert "31 new examples; dataset.minimum_rows asks for 40" in found["refused"]
    assert {row["change"] for row in found["rows"]} == {"new"}
    built = build_dataset(warehouse, with_dataset(settings), "support", teacher.now)
    decide(warehouse, "keep", right, at=teacher.now + timedelta(seconds=1))
    new = teacher.correct(question(99), "No.", "In 9 days.")
    settings = with_dataset(settings)
    before = sorted(settings.models.directory.rglob("*"))
    found = looked_at(warehouse, settings)
    assert (found["workload"], found["against"], found["refused"]) == ("support", built.version, None)
    assert sorted(settings.models.directory.rglob("*")) == before
    assert warehouse.rows("SELECT DISTINCT dataset_version FROM row_states") == [{"dataset_version": built.version}]
    changes = {row["feedback_id"]: row["change"] for row in found["rows"]}
    assert changes[new] == "new"
    assert changes[right] == "was set_aside"
    (shown,) = (row for row in found["rows"] if row["feedback_id"] == new)
    assert (shown["question"], shown["answer"], shown["source"]) == (question(99), "In 9 days.", "expert")
    few = looked_at(warehouse, settings, limit=2)
    assert few["counts"] == found["counts"]
    assert len(few["rows"]) < len(found["rows"])
    build_dataset(warehouse, settings, "support", LATER)
    assert {row["feedback_id"]: (row["state"], row["reason"]) for row in found["rows"]} == states(warehouse)


def test_there_is_no_preview_while_a_dataset_is_made(warehouse: Warehouse, settings: Settings) -> None:
    with this_machine, pytest.raises(RetunedError, match="try again in a minute"):
        looked_at(warehouse, settings)
