"""The same question is one with the same system prompt, context and tools; what was said of another does not count."""

import json
from datetime import datetime
from typing import Any

import pyarrow.parquet as pq
import pytest

from fixtures.feedback.teaching import Teacher
from fixtures.models.datasets import build_dataset, promote
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data import dataset
from retuned.retrain.data.dataset import Dataset, LostClass
from retuned.retrain.settings import DatasetSettings, Settings

NOW = datetime(2026, 4, 1)
LATER = datetime(2026, 5, 1)
INSTRUCTION = (
    "You sort the tickets of a shop. Read the ticket below and reply with exactly one of the labels that follow, and "
    "with nothing else: REFUND when the customer wants money back, SHIPPING when a parcel is late, lost or went to the "
    "wrong address, ACCOUNT when somebody cannot sign in or wants data changed, OTHER for what remains. 1 label only, "
    "in capital letters, without a full stop. Ticket: "
)
THINGS = ("lamp", "sofa", "chair", "tent", "desk", "clock", "kettle", "mirror", "carpet", "radio")
REQUESTS = {
    "REFUND": ("I want my money back for the {}", "you charged me twice for one {}", "the {} broke, pay me back"),
    "SHIPPING": ("my {} has not arrived yet", "the {} went to a wrong address", "when does the {} come"),
    "ACCOUNT": ("cannot sign in to see my {}", "change the address for my {} order", "my {} is not in my account"),
}
TICKETS = [
    (template.format(thing), label)
    for label, templates in REQUESTS.items()
    for template in templates
    for thing in THINGS
]


def completions(built: Dataset, *splits: str) -> list[str]:
    return [row["completion"] for name in splits or ("train", "holdout") for row in built.split(name)]


def test_a_long_instruction_before_each_ticket_leaves_every_ticket_its_row(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    for ticket, label in TICKETS:
        teacher.correct(f"{INSTRUCTION}{ticket}", "OTHER", label)
    built = build_dataset(warehouse, settings, "support", NOW)
    assert len(completions(built)) >= 0.95 * len(TICKETS)
    assert built.rows["train"] > built.rows["holdout"] > 5


def test_a_templated_question_that_is_judged_on_is_not_trained_on(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    """A word more makes no other ticket, in a template too: of two such tickets both are judged on or none is."""
    for ticket, label in TICKETS:
        for ending, answer in (("", label), (" now", f"NOT {label}")):  # nobody says which one is right
            shown = teacher.ask(f"{INSTRUCTION}{ticket} that I ordered here in spring{ending}", answer)
            teacher.say(shown, "helpful", True)
    unguarded = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=1, quarantine=False)})
    built = build_dataset(warehouse, unguarded, "support", NOW)
    held_out = {row["question"].removesuffix(" now") for row in built.split("holdout")}
    trained = {row["question"].removesuffix(" now") for row in built.split("train")}
    assert held_out
    assert trained
    assert not held_out & trained


@pytest.mark.parametrize(
    ("asked", "passage"),
    [
        ("Where is my parcel?", "Parcel {0} of {1} left on day {2} and is in the van of {1}."),
        ("Summarise the document.", "Minutes of the meeting about the {1}: budget line {0}, decided in round {2}."),
    ],
)
def test_one_question_about_many_contexts_is_many_questions(
    warehouse: Warehouse, teacher: Teacher, settings: Settings, asked: str, passage: str
) -> None:
    for number in range(40):
        teacher.correct(
            asked,
            "I do not know.",
            f"It is about {number + 100}, and it is number {number}.",
            context=[passage.format(number + 100, THINGS[number % 10], number)],
        )
    built = build_dataset(warehouse, settings, "support", NOW)
    assert len(completions(built)) == 40
    assert 4 <= built.rows["holdout"] <= 20
    assert len({row["row_id"] for name in dataset.SPLITS for row in built.split(name)}) == 40


def test_one_question_under_two_system_prompts_is_two_and_under_two_dates_until_they_are_called_harmless(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    for number in range(10):
        teacher.correct(f"What is the number of {'abcdefghij'[number] * 4}?", "None.", f"It is {number}.")
    teacher.correct("When do you open?", "Never.", "At 8 am.", system="You answer for the shop in Oslo.")
    teacher.correct("When do you open?", "Never.", "At 9 am.", system="You answer for the shop in Bergen.")
    for day, hour in ((3, 10), (4, 11)):
        system = f"You answer for the shop in Paris. Today is Tuesday, March {day}, 2026 (2026-03-0{day} 09:1{day})."
        teacher.correct("When do you open?", "Never.", f"At {hour} am.", system=system)
    found = completions(build_dataset(warehouse, settings, "support", NOW))
    assert {"At 8 am.", "At 9 am.", "At 10 am.", "At 11 am."} <= set(found)
    harmless = settings.dataset.model_copy(update={"harmless_instructions": ("Today is .*",)})
    found = completions(build_dataset(warehouse, settings.model_copy(update={"dataset": harmless}), "support", NOW))
    assert {"At 8 am.", "At 9 am.", "At 11 am."} <= set(found)
    assert "At 10 am." not in found


def test_a_developer_instructs_as_the_system_prompt_does(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    """Also for what an older version stored, to which instructions of a developer were a part of the question."""
    for number in range(60):
        system = f"You are kind. Today is 2026-03-{number % 28 + 1:02}."
        teacher.correct(f"What is number {number * 7919:b}?", "None.", f"It is {number}.", system=system)
    warehouse.execute("""UPDATE interactions SET messages = replace(messages, '"system"', '"developer"')""")
    first = build_dataset(warehouse, settings, "support", NOW)
    rows = {row["question"]: name for name in ("train", "holdout") for row in first.split(name)}
    assert {row["prompt"] for row in first.split("train")} <= rows.keys()
    warehouse.execute("UPDATE dataset_rows SET prompt_hash = 'old' || prompt_hash")
    promote(warehouse, first, "v1")
    for number in range(90):  # each asked on another day
        system = "You are kind. Today is 2026-04-30."
        teacher.correct(f"What is number {number * 7919:b}?", "None.", f"It is {number}.", system=system)
    warehouse.execute("""UPDATE interactions SET messages = replace(messages, '"system"', '"developer"')""")
    second = build_dataset(warehouse, settings, "support", LATER)
    for name in ("train", "holdout"):
        assert {rows.get(row["question"], name) for row in second.split(name)} <= {name}
    assert len({row["question"] for name in ("train", "holdout") for row in second.split(name)}) == 90


def test_tools_that_were_offered_are_part_of_the_question(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    for number in range(10):
        teacher.correct(f"What is the number of {'abcdefghij'[number] * 4}?", "None.", f"It is {number}.")
    offered = {"I look the weather up.": [{"type": "function", "function": {"name": "weather"}}]}
    offered |= {"I ask your calendar first.": [{"type": "function", "function": {"name": "calendar"}}]}
    for answer, tools in (offered | {"I can only talk.": "none"}).items():  # whatever form an app has for it
        shown = teacher.ask("Can I go for a walk?", "No.")
        attributes = json.dumps({"tools": tools})
        warehouse.execute("UPDATE interactions SET attributes = ? WHERE id = ?", [attributes, shown])
        teacher.say(shown, "correction", answer)
    found = completions(build_dataset(warehouse, settings, "support", NOW))
    assert {*offered, "I can only talk."} <= set(found)


@pytest.mark.parametrize("quarantine", [True, False])
@pytest.mark.parametrize("source", ["user", "expert"])
def test_a_label_that_is_wrong_for_some_tickets_stays_right_for_others(
    warehouse: Warehouse, teacher: Teacher, settings: Settings, source: str, quarantine: bool
) -> None:
    for number, (ticket, label) in enumerate(TICKETS):
        teacher.correct(ticket, "OTHER", label, "user", f"u{number % 12}")
    for ticket in ("where did you send it", "nobody rang at my door", "it says it is in Hamburg", "no van came today"):
        for number in range(2):
            teacher.correct(f"{ticket} {'please' * number}", "REFUND", "SHIPPING", source, f"v{number}")
    asked = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=1, quarantine=quarantine)})
    built = build_dataset(warehouse, asked, "support", NOW)
    found = completions(built)
    for label in REQUESTS:
        assert found.count(label) >= 30, label


def accept(teacher: Teacher, question: str, answer: str, **more: Any) -> None:
    teacher.say(teacher.ask(question, answer, **more), "helpful", True)


def test_a_dataset_that_loses_most_of_a_frequent_answer_is_refused(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    """Accepted answers that ended at their limit, all of one label: a filter takes all of its rows."""
    for number in range(200):
        accept(teacher, f"What is the number of {number * 7919:b} in the list?", f"It is number {number}.")
    for number in range(12):
        asked = f"Does {number * 6857:b} belong to {THINGS[number % 10]}s at all?"
        teacher.say(teacher.ask(asked, "Not at all", finish_reason="length"), "helpful", True)
    with pytest.raises(LostClass, match=r"12 of 12 .*answer of feedback .*12 incomplete"):
        build_dataset(warehouse, settings, "support", NOW)
    assert warehouse.rows("FROM datasets") == []
    unfiltered = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=1, filters=())})
    assert completions(build_dataset(warehouse, unfiltered, "support", NOW)).count("Not at all") == 12


def test_a_policy_that_changed_for_the_same_questions_is_no_loss(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    for number in range(60):
        teacher.correct(f"What is the number of {number * 7919:b} in the list?", "None.", f"It is number {number}.")
    asked = [f"Until when may I return the {thing} {place}?" for thing in THINGS for place in ("to Oslo", "by post")]
    for question in asked:
        teacher.correct(question, "No idea.", "You may return it within 30 days.")
    for question in asked[:14]:
        teacher.correct(question, "You may return it within 30 days.", "You may return it within 14 days.")
    built = build_dataset(warehouse, settings, "support", NOW)
    found = completions(built)
    assert found.count("You may return it within 14 days.") == 14
    assert "You may return it within 30 days." not in found  # in the other wordings it is out of date, too


def test_a_question_keeps_its_split_when_an_older_version_wrote_the_dataset(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    """Up to 0.1.0 questions were named without system prompt and context."""
    for number in range(60):
        teacher.correct(f"What is number {number * 7919:b}?", "None.", f"It is {number}.", system="You are kind.")
    first = build_dataset(warehouse, settings, "support", NOW)
    place = {row["question"]: name for name in ("train", "holdout") for row in first.split(name)}
    warehouse.execute("UPDATE dataset_rows SET prompt_hash = 'old' || prompt_hash")
    for number in range(60, 90):
        teacher.correct(f"What is number {number * 7919:b}?", "None.", f"It is {number}.", system="You are kind.")
    everything = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=1, holdout_share=0.6)})
    second = build_dataset(warehouse, everything, "support", LATER)
    for name in ("train", "holdout"):
        assert {place.get(row["question"], name) for row in second.split(name)} <= {name}


def test_what_an_earlier_version_kept_for_validation_is_new_to_the_next_dataset(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    for number in range(40):
        teacher.correct(f"What is number {number * 7919:b}?", "None.", f"It is {number}.")
    first = build_dataset(warehouse, settings, "support", NOW)
    kept = {row["row_id"] for row in first.split("train")[:4]}
    learned = pq.read_table(first.path / "train.parquet")
    pq.write_table(learned.slice(4), first.path / "train.parquet")
    pq.write_table(learned.slice(0, 4), first.path / "validation.parquet")
    warehouse.execute("UPDATE dataset_rows SET split = 'validation' WHERE row_id IN (SELECT unnest(?))", [sorted(kept)])
    promote(warehouse, first, "v1")
    for number in range(40, 44):
        teacher.correct(f"What is number {number * 7919:b}?", "None.", f"It is {number}.")
    second = build_dataset(warehouse, settings, "support", LATER)
    new = {row["row_id"] for name in ("train", "holdout") for row in second.split(name) if not row["replay"]}
    assert kept <= new
    assert not new & {row["row_id"] for row in first.split("train")}
