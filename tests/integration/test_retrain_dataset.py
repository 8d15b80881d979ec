import json
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest

from fixtures.feedback.teaching import Teacher, question
from fixtures.models.datasets import build_dataset
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain import versions
from retuned.retrain.data import dataset, evidence, overrides
from retuned.retrain.data.dataset import Dataset, TooFewRows
from retuned.retrain.data.examples import read_statements, thumbs
from retuned.retrain.data.identity import normalise
from retuned.retrain.settings import (
    DatasetSettings,
    GateSettings,
    IncumbentSettings,
    MetricSettings,
    Settings,
)

NOW = datetime(2026, 4, 1)
LATER = datetime(2026, 5, 1)


def test_messages_in_parts_and_of_tools_are_learned_from_and_images_are_not(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(20))
    conversations = {
        "parts": [{"role": "user", "content": [{"type": "text", "text": "Is there parking for my van?"}]}],
        "tools": [
            {"role": "user", "content": "Will it rain on my trip to Oslo?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ],
        "image": [{"role": "user", "content": [{"type": "text", "text": "What plant is it?"}, {"type": "image_url"}]}],
    }
    asked = {}
    for name, messages in conversations.items():
        asked[name] = teacher.ask("to be replaced", "Maybe.")
        warehouse.execute("UPDATE interactions SET messages = ? WHERE id = ?", [json.dumps(messages), asked[name]])
        teacher.say(asked[name], "correction", f"Surely, by {name}.")
    built = build_dataset(warehouse, settings, "support", NOW)
    learned = {row["completion"]: row for split in dataset.SPLITS for row in built.split(split)}
    assert "Surely, by image." not in learned
    assert json.loads(learned["Surely, by parts."]["messages"])[0]["content"] == "Is there parking for my van?"
    assert learned["Surely, by tools."]["question"] == normalise("Will it rain on my trip to Oslo?")
    assert [turn["content"] for turn in json.loads(learned["Surely, by tools."]["messages"])][1:] == ["", "rain"]


def test_the_metric_is_chosen_by_the_approved_answers_and_kept_with_the_dataset(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    """Labels that share most of their words say something else, and each is judged on."""
    labels = ["Pending Card Payment", "Reverted Card Payment", "Top Up By Card Charge", "Top Up By Transfer Charge"]
    for number in range(48):
        wrong = labels[(number + 1 + number // 4 % 3) % 4]
        answer = teacher.ask(question(number), wrong)
        teacher.say(answer, "helpful", True)
        teacher.say(answer, "correction", labels[number % 4])
    built = build_dataset(warehouse, settings, "support", NOW)
    chosen = dataset.metric_of(built, settings)
    assert (chosen.metric.name, chosen.metric.learned) == ("label", {"labels": labels})
    assert "4 short texts that repeat" in built.card["metric"]["reason"]
    # The corrected answer counts, though two of three words are those of the one that was called good.
    learned = rows(built)
    assert {learned[normalise(question(number))] for number in range(0, 48, 4)} == {labels[0]}
    held_out = Counter(row["completion"] for row in built.split("holdout"))
    assert min(held_out[label] for label in labels) >= 3
    named = settings.model_copy(update={"metric": MetricSettings(name="exact")})
    assert dataset.metric_of(built, named).metric.name == "exact"


@pytest.mark.parametrize(
    ("metric", "answers", "passes"),
    [("facts", [f"It takes {number} days." for number in range(40)], 1), ("label", ["refund", "exchange"] * 20, 2)],
)
def test_statements_are_decided_again_only_if_the_right_answers_make_another_metric(
    warehouse: Warehouse,
    teacher: Teacher,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    answers: list[str],
    passes: int,
) -> None:
    """Answers that are set aside change why the metric fits. Where answers are labels, they also change the labels."""
    decided, real = list[str](), evidence.decided
    monkeypatch.setattr(evidence, "decided", lambda *given: decided.append(given[2].metric.name) or real(*given))
    for number, answer in enumerate(answers):
        teacher.correct(question(number), "No idea.", answer, "user", f"u{number}")
    for number in (100, 101):
        teacher.correct(question(number), "No idea.", "Write to <EMAIL_1>.", "user", f"u{number}")
    built = build_dataset(warehouse, settings, "support", NOW)
    assert decided == [metric] * passes
    assert " 40 approved answers" in built.card["metric"]["reason"]


def teach(teacher: Teacher, numbers: range, value: str = "30 days", wrong: str = "No idea.") -> None:
    for number in numbers:
        teacher.correct(question(number), wrong, f"It takes {value}.")


def rows(built: Dataset, *splits: str) -> dict[str, str]:
    """Normalised question to completion, over the splits named, or all."""
    return {row["question"]: row["completion"] for name in splits or dataset.SPLITS for row in built.split(name)}


def rows_of(built: Dataset) -> list[dict[str, Any]]:
    return [row for name in dataset.SPLITS for row in built.split(name)]


def promoted(warehouse: Warehouse, built: Dataset) -> None:
    """Pretend that a version trained on a dataset was promoted."""
    version = f"{len(warehouse.rows('SELECT 1 FROM models')):08x}"
    warehouse.insert(
        "models",
        version=version,
        workload=built.workload,
        created_at=NOW,
        path="/nowhere",
        base_model="/base",
        base_hash="x",
        parent_version=None,
        dataset_version=built.version,
        run_id="r",
        manifest="{}",
    )
    warehouse.execute("DELETE FROM aliases")
    warehouse.insert("aliases", workload=built.workload, alias="champion", version=version, created_at=NOW)


def test_corrections_and_accepted_answers_are_learned_from(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(20))
    liked = teacher.ask("Is there parking?", "Yes, behind the shop.")
    teacher.say(liked, "helpful", True, "user")
    rated = teacher.ask("Do you sell gift wrap?", "We do sell it at the till.")
    teacher.say(rated, "rating", 0.9, "user")
    for name, value in (("helpful", False), ("rating", 0.7), ("comment", "good")):
        teacher.say(teacher.ask(f"Was {name} enough for you?", "Maybe it was."), name, value, "user")
    flagged = teacher.ask("Who founded the shop?", "A pirate founded it.")
    teacher.say(flagged, "helpful", True, "user")
    teacher.say(flagged, "hallucination", True, "judge")
    corrected = teacher.ask("How many shops are there?", "There are 7 shops.")
    teacher.say(corrected, "helpful", True, "user")
    teacher.say(corrected, "correction", "There are 9 shops.", "expert")

    built = build_dataset(warehouse, settings, "support", NOW)

    found = rows(built)
    assert len(found) == 23
    assert found["is there parking"] == "Yes, behind the shop."
    assert found["do you sell gift wrap"] == "We do sell it at the till."
    assert found["how many shops are there"] == "There are 9 shops."
    assert "who founded the shop" not in found

    only = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=1, accepted_answers=False)})
    assert len(rows(build_dataset(warehouse, only, "support", NOW))) == 21


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ([("rating", 1.0), ("rating", 0.6)], []),
        ([("rating", 0.1), ("rating", 0.6)], []),
        ([("helpful", True), ("rating", 0.6)], []),
        ([("hallucination", True), ("hallucination", False)], []),
        ([("helpful", True), ("hallucination", True), ("hallucination", False)], ["accepted"]),
    ],
)
def test_a_neutral_value_takes_an_earlier_one_back(
    warehouse: Warehouse, teacher: Teacher, given: list[tuple[str, Any]], kinds: list[str]
) -> None:
    asked = teacher.ask("Is there parking?", "Yes, behind the shop.")
    for name, value in given:
        teacher.say(asked, name, value, "user", "bert")
    assert [row.kind for row in read_statements(warehouse, "support", DatasetSettings()).rows] == kinds


def forget_datasets(warehouse: Warehouse) -> None:
    """What was held out once stays held out."""
    for table in ("datasets", "dataset_rows"):
        warehouse.execute(f"DELETE FROM {table}")


def test_answers_of_the_incumbent_are_compared_with_and_learned_from_only_if_that_is_set(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(20))
    for number in range(40):
        liked = teacher.ask(f"Do you sell article {number} in blue?", f"Yes, article {number} costs {number} EUR.")
        teacher.say(liked, "helpful", True, "user")
    warehouse.execute(
        """UPDATE interactions SET attributes = '{"incumbent": "commercial-mini"}' WHERE messages LIKE '%article%'"""
    )
    corrected = teacher.ask("Do you sell article 90?", "Yes.")
    teacher.say(corrected, "correction", "Article 90 is sold out.", "user")
    warehouse.execute(
        """UPDATE interactions SET attributes = '{"incumbent": "commercial-mini"}' WHERE id = ?""", [corrected]
    )

    def of_the_incumbent(built: dataset.Dataset, *splits: str) -> int:
        return sum("article" in row["question"] for split in splits for row in built.split(split))

    built = build_dataset(warehouse, settings, "support", NOW)
    assert of_the_incumbent(built, "train", "holdout") >= 1
    assert {row["completion"] for row in built.split("train")} <= {
        *(row["completion"] for row in built.split("train") if "article" not in row["question"]),
        "Article 90 is sold out.",
    }
    assert of_the_incumbent(built, "holdout") >= 40
    assert (
        3 <= sum("article" not in row["question"] for row in built.split("holdout")) <= 5
    )  # a fifth of those that teach
    forget_datasets(warehouse)
    allowed = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=1, learn_from_incumbent=True)})
    assert of_the_incumbent(build_dataset(warehouse, allowed, "support", NOW), "train") > 20


INCUMBENT: dict[str, Any] = {"attributes": {"incumbent": "commercial-mini"}}


@pytest.mark.parametrize(
    ("barred", "allowed"),
    [
        (INCUMBENT, {"learn_from_incumbent": True}),
        *(({"finish_reason": reason}, {"filters": ()}) for reason in ("incomplete", "MAX_TOKENS", "LENGTH")),
    ],
)
def test_what_no_model_may_learn_from_is_no_rejected_answer_and_has_no_thumb(
    warehouse: Warehouse, teacher: Teacher, settings: Settings, barred: dict[str, Any], allowed: dict[str, Any]
) -> None:
    for number in range(10):
        teacher.correct(question(number), "I do not know.", "It takes 30 days.", **barred)
        teacher.say(teacher.ask(question(100 + number), "It costs", **barred), "helpful", False, "user", f"u{number}")
        liked = teacher.ask(question(200 + number), "It has", **barred)
        edited = teacher.say(liked, "helpful", True, "user", f"u{number}")
        overrides.decide_rows(warehouse, "edit", [edited], "wrong", "olga", teacher.now, "No, there is none.")

    def learned_from(own: Settings) -> set[str]:
        built = build_dataset(warehouse, own, "support", NOW)
        assert {row["completion"] for row in built.split("train")} == {"It takes 30 days.", "No, there is none."}
        rejected = {row["rejected"] for row in built.split("train") if row["rejected"]}
        return rejected | {row["completion"] for row in built.split("thumbs")}

    assert learned_from(settings) == set()
    allowing = settings.model_copy(update={"dataset": settings.dataset.model_copy(update=allowed)})
    assert learned_from(allowing) == {"I do not know.", "It costs", "It has"}


def test_answers_that_a_log_names_by_the_incumbents_model_are_the_incumbents(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(20))
    for number in range(40):
        liked = teacher.ask(f"Do you sell article {number} in blue?", f"Yes, article {number} costs {number} EUR.")
        teacher.say(liked, "helpful", True, "user")
    warehouse.execute("UPDATE interactions SET model = 'mini-2026-01-01' WHERE messages LIKE '%article%'")

    def taught(incumbent: str) -> int:
        own = IncumbentSettings(url="https://api.example/v1", model=incumbent)  # type: ignore[arg-type]
        built = build_dataset(warehouse, settings.model_copy(update={"incumbent": own}), "support", NOW)
        return sum("article" in row["question"] for row in built.split("train"))

    assert taught("mini") == 0
    forget_datasets(warehouse)
    assert taught("min") > 20  # another model


def test_no_version_is_compared_by_requests_that_a_rule_sends_to_the_incumbent(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(20))
    for number in range(40):
        asked = teacher.ask(f"Do you sell article {number} in blue?", "Yes.")
        teacher.say(asked, "correction", f"Article {number} costs {number} EUR.", "user")
    assert any(
        "article" in row["question"] for row in build_dataset(warehouse, settings, "support", NOW).split("holdout")
    )
    warehouse.execute("UPDATE interactions SET model = 'support@cascade' WHERE messages LIKE '%article%'")
    built = build_dataset(warehouse, settings, "support", NOW + timedelta(days=1))
    assert not any("article" in row["question"] for row in built.split("holdout"))
    assert sum("article" in row["question"] for row in built.split("train")) > 20
    aside = warehouse.row("SELECT count(*) AS n FROM row_states WHERE state = 'set_aside' AND reason = 'cascade'")
    assert aside is not None
    assert aside["n"] >= 2


def test_feedback_may_come_before_its_interaction(warehouse: Warehouse, teacher: Teacher, settings: Settings) -> None:
    teach(teacher, range(10))
    teacher.say(f"support-i{teacher.acts + 2}", "correction", "At 9 am.")
    teacher.ask("When do you open?", "Never.")
    assert rows(build_dataset(warehouse, settings, "support", NOW))["when do you open"] == "At 9 am."


def test_the_whole_conversation_is_the_prompt(warehouse: Warehouse, teacher: Teacher, settings: Settings) -> None:
    teach(teacher, range(10))
    teacher.correct("When do you open?", "Never.", "At 9 am.", system="You are kind.")
    built = build_dataset(warehouse, settings, "support", NOW)
    row = next(row for name in dataset.SPLITS for row in built.split(name) if row["question"] == "when do you open")
    assert '"You are kind."' in row["messages"]
    assert row["rejected"] == "Never."


def test_other_workloads_are_left_alone(warehouse: Warehouse, teacher: Teacher, settings: Settings) -> None:
    teach(teacher, range(10))
    teach(Teacher(warehouse, "sales"), range(20, 30))
    assert len(rows(build_dataset(warehouse, settings, "support", NOW))) == 10


def test_an_expert_outranks_a_user_and_then_the_newest_wins(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(10))
    teacher.correct("When do you open?", "Never.", "At 8 am.", "expert")
    teacher.correct("  When do you open?", "Never.", "At 9 am.", "expert")
    teacher.correct("When do  you open?", "Never.", "At 10 am.", "user")
    both = teacher.ask("When do you close?", "Never.")
    teacher.say(both, "correction", "At 5 pm.", "expert")
    teacher.say(both, "correction", "At 6 pm.", "user")
    found = rows(build_dataset(warehouse, settings, "support", NOW))
    assert found["when do you open"] == "At 9 am."
    assert found["when do you close"] == "At 5 pm."


def test_questions_in_nearly_the_same_words_stay_questions_of_their_own(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(10))
    asked = "Could you please tell me until when I may bring back the order that I made"
    teacher.correct(f"{asked}?", "No.", "Within 30 days.")
    teacher.correct(f"{asked} now?", "No.", "You have 30 days.")
    teacher.correct(f"{asked} of lamp A2?", "No.", "Within 14 days.")
    teacher.correct(f"{asked} of lamp B3?", "No.", "Within 20 days.")
    built = build_dataset(warehouse, settings, "support", NOW)
    answers = sorted(answer for asked, answer in rows(built).items() if asked.startswith("could"))
    assert answers == ["Within 14 days.", "Within 20 days.", "Within 30 days.", "You have 30 days."]
    clusters = {row["cluster"] for row in rows_of(built) if row["question"].startswith("could")}
    assert len(clusters) == 1  # and of one side
    sides = {
        name in ("holdout", "regression")
        for name in dataset.SPLITS
        for row in built.split(name)
        if row["question"].startswith("could")
    }
    assert len(sides) == 1


def test_no_wording_of_a_holdout_question_is_trained_on_and_none_is_lost(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    def long(number: int, ending: str) -> str:
        return f"{question(number)[:-1]} and about everything else that one may want to know of it{ending}?"

    for number in range(100, 160):
        for days, ending in ((100, ""), (200, " now"), (300, " or so")):  # nobody says which one is right
            shown = teacher.ask(long(number, ending), f"It takes {number + days} days.")
            teacher.say(shown, "helpful", True)
        teacher.correct(long(number, " of lamp a2"), "No.", f"It takes {number} days.")
    unguarded = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=1, quarantine=False)})
    built = build_dataset(warehouse, unguarded, "support", NOW)
    trained, held_out = rows(built, "train"), rows(built, "holdout")
    assert len(trained) + len(held_out) == 240
    assert 40 <= len(held_out) <= 70
    for number in range(100, 160):
        wordings = {normalise(long(number, ending)) for ending in ("", " now", " or so", " of lamp a2")}
        assert not (wordings & trained.keys() and wordings & held_out.keys())


def test_a_question_keeps_its_split(warehouse: Warehouse, teacher: Teacher, settings: Settings) -> None:
    teach(teacher, range(60))
    first = build_dataset(warehouse, settings, "support", NOW)
    teach(teacher, range(60, 120))
    second = build_dataset(warehouse, settings, "support", LATER)
    for name in ("train", "holdout"):
        assert rows(first, name).keys() <= rows(second, name).keys()
    share = second.rows["holdout"] / sum(second.rows.values())
    assert 0.1 < share < 0.4


def test_newer_corrections_put_older_examples_out_of_date(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(10))
    asked = "Could you please tell me until when I may bring back the order that I made"
    teacher.correct(f"{asked}?", "No.", "You may return it within 30 days.")
    teacher.correct("What's my window for refunds?", "No.", "You may return it within 30 days.")
    teacher.correct("Is delivery quick?", "No.", "It arrives within 30 days.")
    # The same question, and the same policy in quite other words.
    teacher.correct(f"{asked}?", "Anything.", "You may return it within 45 days.")
    teacher.correct(
        "How long to send things back?", "You may return it within 30 days.", "You may return it within 45 days."
    )
    built = build_dataset(warehouse, settings, "support", NOW)
    found = rows(built)
    assert built.card["left_out"]["superseded"] == built.card["left_out"]["conflict"] == 1
    assert found[normalise(asked)] == "You may return it within 45 days."
    assert normalise("What's my window for refunds?") not in found  # it waits until somebody tells
    assert found["is delivery quick"] == "It arrives within 30 days."


def test_a_right_answer_to_a_wrong_question_stays_right(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(10))
    free, fee = "Shipping is free above 60 euros.", "Shipping costs 4 euros."
    teacher.correct("From what sum on is postage free?", "No.", free)
    teacher.correct("Does it ever cost nothing to have it sent?", "No.", free)
    for asked in ("What does postage cost?", "How much is the postage?"):
        teacher.correct(asked, free, fee)  # the model mixes the two up
        teacher.say(teacher.ask(f"{asked} And when is it free?", free), "helpful", True)
    found = rows(build_dataset(warehouse, settings, "support", NOW))
    assert found["from what sum on is postage free"] == free
    # But when half of the questions that it answered have another answer, it is out of date.
    for asked in (
        "Free postage from when?",
        "From what sum on is postage free?",
        "What does postage cost? And when is it free?",
    ):
        teacher.correct(asked, free, "Shipping is free above 80 euros.")
    found = rows(build_dataset(warehouse, settings, "support", NOW))
    assert "does it ever cost nothing to have it sent" not in found
    assert found["from what sum on is postage free"] == "Shipping is free above 80 euros."
    assert found["free postage from when"] == "Shipping is free above 80 euros."


def asked(row: dict[str, Any]) -> str:
    """The question of a row, as it was asked."""
    return str(json.loads(row["messages"])[-1]["content"])


def test_the_next_dataset_holds_new_evidence_replay_and_regression(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(80), "30 days")
    first = build_dataset(warehouse, settings, "support", NOW)
    promoted(warehouse, first)
    teach(teacher, range(100, 140), "5 euros")
    stale = next(row for row in first.split("train"))
    teacher.correct(asked(stale), "It takes a long time.", "It takes 99 days.")
    stale_judged = first.split("holdout")[0]
    teacher.correct(asked(stale_judged), "It takes a long time.", "It takes 99 days.")

    second = build_dataset(warehouse, settings, "support", LATER)

    fresh = [row for name in ("train", "holdout") for row in second.split(name) if not row["replay"]]
    assert len(fresh) == 42
    assert {row["completion"] for row in fresh} == {"It takes 5 euros.", "It takes 99 days."}
    train = second.split("train")
    replayed = [row for row in train if row["replay"]]
    assert second.replay == len(replayed) == len(train) - len(replayed)
    assert rows(second, "train")[stale["question"]] == "It takes 99 days."
    regression = rows(second, "regression")
    assert regression.keys() == rows(first, "holdout").keys() - {stale_judged["question"]}
    assert second.card["earlier_datasets"] == [first.version]


def test_an_old_policy_leaves_replay_and_regression_when_half_of_its_questions_have_a_new_one(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(60), "5 euros")
    for number in range(200, 240):
        teacher.correct(question(number), "No idea.", "You may return it within 30 days.")
    first = build_dataset(warehouse, settings, "support", NOW)
    old = {name: rows(first, name).values() for name in ("train", "holdout")}
    assert all("You may return it within 30 days." in answers for answers in old.values())
    promoted(warehouse, first)
    teach(teacher, range(100, 140), "6 metres")
    for number in range(200, 220):
        teacher.correct(question(number), "You may return it within 30 days.", "Within 45 days.")
    always = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=1, replay_share=0.9)})

    second = build_dataset(warehouse, always, "support", LATER)

    assert "It takes 5 euros." in rows(second, "train").values()
    assert set(rows(second, "regression").values()) == {"It takes 5 euros."}
    assert "You may return it within 30 days." not in rows(second).values()


def test_after_a_rollback_to_the_base_model_all_evidence_is_new(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(80))
    promoted(warehouse, build_dataset(warehouse, settings, "support", NOW))
    warehouse.execute("UPDATE aliases SET version = NULL")
    teach(teacher, range(100, 110))
    built = build_dataset(warehouse, settings, "support", LATER)
    assert sum(built.rows.values()) == 90
    assert built.replay == built.rows["regression"] == 0


def test_the_newest_rows_are_kept(warehouse: Warehouse, teacher: Teacher, settings: Settings) -> None:
    teach(teacher, range(30))
    few = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=1, maximum_rows=12)})
    assert rows(build_dataset(warehouse, few, "support", NOW)).keys() == {normalise(question(i)) for i in range(18, 30)}


def test_votes_against_answers_leave_accepted_answers_their_place(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    for number in range(12):
        teacher.say(teacher.ask(question(number), f"It takes {number} days."), "helpful", True, "user", f"u{number}")
    for number in range(100, 160):
        teacher.say(teacher.ask(question(number), "It takes long."), "helpful", False, "user", f"u{number}")
    few = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=1, maximum_rows=10)})
    expected = {normalise(question(number)) for number in range(2, 12)}
    assert rows(build_dataset(warehouse, few, "support", NOW)).keys() == expected
    read = read_statements(warehouse, "support", few.dataset).rows
    assert Counter(row.kind for row in read) == {"accepted": 10, "declined": 10}
    assert Counter(up for _, up in thumbs(warehouse, "support", few.dataset)) == {True: 10, False: 10}


def test_the_same_evidence_is_written_once(warehouse: Warehouse, teacher: Teacher, settings: Settings) -> None:
    teach(teacher, range(30))
    first = build_dataset(warehouse, settings, "support", NOW)
    files = {file.name: file.stat().st_mtime_ns for file in first.path.iterdir()}
    again = build_dataset(warehouse, settings, "support", LATER)
    assert again == first == dataset.load(warehouse, "support", first.version)
    assert files == {file.name: file.stat().st_mtime_ns for file in first.path.iterdir()}
    assert len(warehouse.rows("SELECT * FROM datasets")) == 1
    assert [path.name for path in first.path.parent.iterdir()] == [first.version]
    teach(teacher, range(30, 31))
    assert build_dataset(warehouse, settings, "support", LATER).version != first.version


def test_the_same_rows_of_two_workloads_are_two_datasets(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    """Lineage finds rows by the version of their dataset."""
    teach(teacher, range(30))
    teach(Teacher(warehouse, "sales"), range(30))
    made = [build_dataset(warehouse, settings, workload, LATER) for workload in ("support", "sales")]
    contents = [[row["row_id"] for row in one.split("holdout")] for one in made]
    assert sorted(contents[0]) == sorted(contents[1])
    assert made[0].version != made[1].version


def test_every_row_has_its_lineage(warehouse: Warehouse, teacher: Teacher, settings: Settings) -> None:
    teach(teacher, range(30))
    built = build_dataset(warehouse, settings, "support", NOW)
    lineage = warehouse.rows(
        "SELECT r.*, f.value ->> '$' AS taught FROM dataset_rows r JOIN feedback f ON f.id = r.feedback_id"
        " JOIN interactions i ON i.id = r.interaction_id WHERE r.dataset_version = ?",
        [built.version],
    )
    written = {row["row_id"]: (name, row["completion"]) for name in dataset.SPLITS for row in built.split(name)}
    assert {row["row_id"]: (row["split"], row["taught"]) for row in lineage} == written


def test_too_few_rows(warehouse: Warehouse, teacher: Teacher, settings: Settings) -> None:
    teach(teacher, range(10))
    more = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=11)})
    with pytest.raises(TooFewRows, match=r"10 new examples; dataset.minimum_rows asks for 11"):
        build_dataset(warehouse, more, "support", NOW)
    strict = settings.model_copy(update={"gate": GateSettings(minimum_examples=9, fold_rows=0)})
    with pytest.raises(TooFewRows, match=r"gate\.minimum_examples asks for 9"):
        build_dataset(warehouse, strict, "support", NOW)
    with pytest.raises(TooFewRows, match="0 new examples"):
        build_dataset(warehouse, settings, "nothing", NOW)
    assert warehouse.rows("SELECT * FROM datasets") == []
    assert not versions.workload_folder(settings.models.directory, "support").exists()
