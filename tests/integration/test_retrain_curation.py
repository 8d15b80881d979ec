"""What a dataset tells of its rows: who, what about, where from; and what it leaves out, and says so."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.feedback.teaching import Teacher, question
from fixtures.feedback.traffic import ASKED, CITIES, THINGS
from fixtures.models.datasets import build_dataset
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.cli.main import main
from retuned.retrain.data import dataset
from retuned.retrain.data.checks import check_leaks
from retuned.retrain.data.dataset import Dataset, Leak, TooFewRows
from retuned.retrain.data.examples import Example, thumbs
from retuned.retrain.data.identity import normalise, text_hash
from retuned.retrain.data.lineage import lineage
from retuned.retrain.data.related import Related
from retuned.retrain.data.similarity import NearIndex
from retuned.retrain.data.splits import split_of
from retuned.retrain.data.topics import OTHER
from retuned.retrain.metrics import Metrics
from retuned.retrain.settings import DatasetSettings, GateSettings, ModelsSettings, Settings

NOW, LATER = datetime(2026, 4, 1), datetime(2026, 5, 1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return with_dataset(Settings(models=ModelsSettings(directory=tmp_path / "models")))


def with_dataset(settings: Settings, **asked: Any) -> Settings:
    return settings.model_copy(
        update={"dataset": DatasetSettings(minimum_rows=1, **asked), "gate": GateSettings(minimum_examples=1)}
    )


def long(number: int) -> str:
    """The same, and with a word more it is a near duplicate."""
    return f"Please be so kind and tell me this: {question(number)}"


def teach(teacher: Teacher, numbers: range, value: str = "30 days", **more: Any) -> list[str]:
    return [teacher.correct(question(number), "No idea.", f"It takes {value}.", **more) for number in numbers]


def teach_topics(teacher: Teacher, many: str = "refund", times: int = 3) -> None:
    """Questions of five topics in many wordings; one of the topics is asked about more often than all others."""
    number = 0
    for topic, templates in ASKED.items():
        for _ in range(times * 6 if topic == many else times):
            for template in templates:
                for thing in THINGS[:4]:
                    number += 1
                    city = CITIES[number % len(CITIES)]
                    extra = f"{number * 7919:b}".translate(str.maketrans("01", "ae"))
                    asked = template.format(n=number * 31, thing=thing, city=city)
                    teacher.correct(f"{asked} {extra}", "No.", f"See page {number}.")


def promote(warehouse: Warehouse, built: Dataset, version: str, parent: str | None = None) -> None:
    """Pretend that a version trained on a dataset was promoted."""
    warehouse.insert(
        "models", version=version, workload=built.workload, created_at=NOW, path="/nowhere", base_model="/base",
        base_hash="x", parent_version=parent, dataset_version=built.version, run_id="r", manifest="{}",
    )  # fmt: skip
    warehouse.execute("DELETE FROM aliases")
    warehouse.insert("aliases", workload=built.workload, alias="champion", version=version, created_at=NOW)


def rows(built: Dataset, *names: str) -> list[dict[str, Any]]:
    return [row for name in names or dataset.SPLITS for row in built.split(name)]


def set_aside(built: Dataset) -> dict[str, str]:
    return {row["feedback_id"]: row["reason"] for row in built.split("set_aside")}


def test_rows_tell_who_taught_them_and_the_card_counts_people_and_sources(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(20), user_id="staff")
    teach(teacher, range(20, 24), source="user", user_id="anna")
    teach(teacher, range(24, 25), source="user")
    for number in range(25, 28):
        teacher.say(teacher.ask(question(number), "It takes 5 weeks."), "helpful", True, "user", "anna")
    shown = teacher.ask(question(28), "As I show it, 9 days.", model="demonstration")
    teacher.say(shown, "correction", "As I show it, 9 days.")
    built = build_dataset(warehouse, settings, "support", NOW)
    assert Counter(row["user_id"] for row in rows(built)) == {"staff": 20, "anna": 7, None: 2}
    assert built.card["sources"] == {"expert": 20, "user": 5, "accepted": 3, "demonstration": 1}
    assert built.card["accounts"] == {"number": 2, "largest_share": 20 / 29, "nameless_rows": 2}
    assert built.card["topics"] == {OTHER: 29}
    assert {row["rejected"] for row in rows(built) if row["source"] == "demonstration"} == {None}


def test_of_contradicting_experts_the_newest_wins_and_the_rest_is_listed(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(10))
    first = teacher.correct("When do you open?", "Never.", "At 8 am.")
    last = teacher.correct("When do you open?", "Never.", "At 9 am.")
    user = teacher.correct("When do you open?", "Never.", "At 10 am.", "user", "anna")
    built = build_dataset(warehouse, settings, "support", NOW)
    assert [row["feedback_id"] for row in rows(built) if row["question"] == "when do you open"] == [last]
    assert set_aside(built) == {first: "superseded", user: "contradicts_expert"}
    assert built.card["left_out"]["superseded"] == built.card["left_out"]["contradicts_expert"] == 1
    listed = {row["feedback_id"]: row for row in built.split("set_aside")}
    assert listed[first]["detail"] == f"the same account has given another answer since, {last}"
    assert listed[first]["completion"] == "At 8 am."
    assert warehouse.rows("SELECT feedback_id, user_id, reason, dataset_version FROM quarantine") == [
        {"feedback_id": user, "user_id": "anna", "reason": "contradicts_expert", "dataset_version": built.version}
    ]


def test_documents_that_differ_contradict_although_they_state_no_facts(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    for number in range(10):
        teacher.correct(question(number), "{}", f'{{"intent": "{"refund" if number % 2 else "cancel"}"}}')
    for name in ("u1", "u2", "u3"):
        teacher.correct("My tent leaks, what now?", "{}", '{"intent": "refund"}', "user", name)
    lie = teacher.correct("My tent leaks, what now?", "{}", '{"intent": "cancel"}', "user", "u4")
    built = build_dataset(warehouse, settings, "support", NOW)
    assert built.card["metric"]["name"] == "json"
    assert set_aside(built)[lie] == "outvoted"


def test_quarantine_is_what_is_doubted_now(
    warehouse: Warehouse, teacher: Teacher, settings: Settings, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    teach(teacher, range(10))
    for name in ("u1", "u2", "u3"):
        teacher.correct("When do you open?", "Never.", "At 8 am.", "user", name)
    new = teacher.correct("When do you open?", "Never.", "At 9 am.", "user", "u4")
    built = build_dataset(warehouse, settings, "support", NOW)
    assert {row["question"]: row["completion"] for row in rows(built)}["when do you open"] == "At 8 am."
    assert lineage(warehouse, new)["quarantine"][0]["reason"] == "outvoted"
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def counted(reason: str) -> float | None:
        metrics.quarantine(warehouse, "support")
        return registry.get_sample_value("retuned_quarantined_feedback", {"workload": "support", "reason": reason})

    assert (counted("outvoted"), counted("account")) == (1, 0)
    teacher.correct("When do you open?", "Never.", "At 9 am.", "user", "u5")  # two say so now: it has changed
    built = build_dataset(warehouse, settings, "support", LATER)
    assert {row["question"]: row["completion"] for row in rows(built)}["when do you open"] == "At 9 am."
    assert warehouse.rows("FROM quarantine") == []
    assert counted("outvoted") == 0
    lie = teacher.correct("When do you open?", "Never.", "At 3 pm.", "user", "u6")
    build_dataset(warehouse, settings, "support", LATER)
    warehouse.close()
    config = tmp_path / "retuned.yaml"
    config.write_text(json.dumps({"warehouse": {"path": str(warehouse.path)}, "http": {"port": 1}}))
    assert main(["status", "support", "--config", str(config)]) == 0
    assert "set aside  1 outvoted" in capsys.readouterr().out
    assert main(["lineage", lie, "--config", str(config)]) == 0
    found = capsys.readouterr().out
    assert f"support   {lie}  outvoted  2 independent accounts give another answer, " in found
    assert main(["export", "quarantine", "-o", "-", "--config", str(config)]) == 0
    assert json.loads(capsys.readouterr().out)["feedback_id"] == lie


def test_what_is_no_longer_believed_leaves_replay_and_regression(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    for number in range(60):
        teacher.correct(long(number), "No idea.", "It takes 30 days.", "user", "anna")
    unguarded = with_dataset(settings, quarantine=False, maximum_user_share=1.0)
    first = build_dataset(warehouse, unguarded, "support", NOW)
    promote(warehouse, first, "v1")
    for number in range(60):
        for name in ("u1", "u2"):
            liked = teacher.ask(long(number), "It takes 14 days.")
            teacher.say(liked, "helpful", True, "user", name)
    teach(teacher, range(100, 130), "5 euros")
    second = build_dataset(warehouse, with_dataset(settings, replay_share=0.9), "support", LATER)
    assert "It takes 30 days." not in {row["completion"] for row in rows(second)}


@pytest.mark.parametrize("learned", [False, True], ids=["new", "learned before"])
@pytest.mark.parametrize(
    ("changed_by", "users", "waits"),
    [
        ("expert", ["anna", "ben", "carla"], True),
        ("expert", ["anna"] * 3, False),
        ("user", ["anna", "ben", "carla"], False),
    ],
    ids=["by three users", "by one user", "no expert gives the new one"],
)
def test_experts_answers_of_a_replaced_policy_wait_although_no_expert_corrects_them(
    warehouse: Warehouse,
    teacher: Teacher,
    settings: Settings,
    changed_by: str,
    users: list[str],
    waits: bool,
    learned: bool,
) -> None:
    """Experts answered nine wordings. After the policy changed, two are corrected, and users contradict three."""
    teach(teacher, range(20, 40), "9 days")
    old = [teacher.correct(question(number), "No idea.", "30 days, as always.") for number in range(9)]
    if learned:
        promote(warehouse, build_dataset(warehouse, settings, "support", teacher.now), "v1")
    for number, name in [(0, "dora"), (0, "emil"), (1, "dora"), (1, "emil")]:
        teacher.correct(question(number), "30 days, as always.", "45 days by now.", changed_by, name)
    for number, name in zip((2, 3, 4), users, strict=True):
        teacher.correct(question(number), "30 days, as always.", "45 days by now.", "user", name)
    teach(teacher, range(40, 50), "9 days")
    built = build_dataset(warehouse, settings, "support", NOW)
    given = {row["feedback_id"]: row["completion"] for row in rows(built)}
    holds = set(old[2:] if changed_by == "expert" else old)
    taught = given.keys() & set(old)
    if learned and not waits:
        assert taught
        assert taught <= holds
    else:
        assert taught == (set() if waits else holds)
    assert Counter(given.values())["45 days by now."] == (2 if changed_by == "expert" else 0)
    if not learned:
        waiting = {one for one, reason in set_aside(built).items() if reason == "conflict"}
        assert waiting == (holds if waits else set())


def test_filters_are_counted_and_can_be_turned_off(warehouse: Warehouse, teacher: Teacher, settings: Settings) -> None:
    teach(teacher, range(10))
    cut = teacher.say(teacher.ask(question(50), "It takes 3 days.", finish_reason="length"), "helpful", True)
    loop = teacher.say(teacher.ask(question(51), "Yes, it does so. " * 9), "helpful", True)
    false = teacher.ask(question(52), "It takes 7 weeks.", context=["It takes 3 days."])
    invented = teacher.say(false, "helpful", True, "user")
    built = build_dataset(warehouse, settings, "support", NOW)
    assert set_aside(built) == {cut: "incomplete", loop: "repetitive", invented: "ungrounded"}
    assert {key: count for key, count in built.card["left_out"].items() if count} == {
        "incomplete": 1, "repetitive": 1, "ungrounded": 1,
    }  # fmt: skip
    assert {row["feedback_id"] for row in built.split("thumbs")}.isdisjoint(set_aside(built))
    all = build_dataset(warehouse, with_dataset(settings, filters=()), "support", NOW)
    assert len(rows(all)) == 13


def test_a_label_that_an_expert_gave_once_and_users_give_again_loses_no_row(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    def label(numbers: range, value: str, source: str) -> list[str]:
        return [
            teacher.correct(question(number), "none", value, source=source, user_id=f"{source}-{number % 7}")
            for number in numbers
        ]

    for start, value in ((0, "refund"), (100, "delivery")):
        label(range(start, start + 20), value, "expert")
        label(range(start + 20, start + 60), value, "user")
    label(range(200, 201), "lost_card", "expert")
    label(range(201, 220), "lost_card", "user")
    jokes = label(range(300, 302), "banana", "user")
    built = build_dataset(warehouse, settings, "support", NOW)
    assert built.card["metric"]["name"] == "label"
    assert built.card["metric"]["labels"] == ["delivery", "lost_card", "refund"]
    assert Counter(row["completion"] for row in rows(built, "train", "holdout"))["lost_card"] == 20
    assert set(set_aside(built).values()) == {"unreadable"}
    assert len(set_aside(built)) == len(jokes)


def test_a_label_that_no_expert_gave_is_one_if_it_fits_its_questions(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    def label(number: int, topic: str, value: str, source: str, who: str) -> str:
        asked = f"{question(number)} It is about {topic}."
        return teacher.correct(asked, "none", value, source=source, user_id=who)

    for start, value in ((0, "refund"), (100, "delivery")):
        for number in range(start, start + 60):
            source = "expert" if number % 3 == 0 else "user"
            label(number, value, value, source, f"{source}-{number % 7}")
    for number in range(200, 212):
        label(number, "a lost card", "lost_card", "user", f"user-{number % 7}")
    jokes = [
        label(number, ("refund", "delivery", "a lost card")[number % 3], "banana", "user", f"user-{number % 7}")
        for number in range(300, 312)
    ]
    lonely = [label(number, "the weather", "rain", "user", "user-1") for number in range(400, 412)]
    built = build_dataset(warehouse, settings, "support", NOW)
    assert built.card["metric"]["labels"] == ["delivery", "lost_card", "refund"]
    assert Counter(row["completion"] for row in rows(built, "train", "holdout"))["lost_card"] == 12
    assert set_aside(built) == dict.fromkeys([*jokes, *lonely], "unreadable")


@pytest.mark.parametrize(("by", "state"), [("user", None), ("another-user", "disputed")])
@pytest.mark.parametrize("experts", [0, 4, 12])
def test_a_label_that_users_renamed_is_known_although_the_same_questions_had_the_old_one(
    warehouse: Warehouse, teacher: Teacher, settings: Settings, experts: int, by: str, state: str | None
) -> None:
    """Of 20 questions about refunds, users correct 16, after experts had labelled the first ones."""

    def label(numbers: range, topic: str, value: str, source: str, who: str) -> list[str]:
        return [
            teacher.correct(f"{question(number)} It is about {topic}.", "none", value, source, f"{who}-{number}")
            for number in numbers
        ]

    label(range(20), "a delivery", "delivery", "expert", "expert")
    label(range(20, 40), "an exchange", "exchange", "expert", "expert")
    label(range(100, 100 + experts), "a refund", "refund", "expert", "expert")
    label(range(100 + experts, 120), "a refund", "refund", "user", "user")
    renamed = label(range(100, 116), "a refund", "money_back", "user", by)
    built = build_dataset(warehouse, settings, "support", NOW)
    assert "money_back" in built.card["metric"]["labels"]
    states = [set_aside(built).get(one) for one in renamed]
    assert states == ["contradicts_expert"] * experts + [state] * (16 - experts)


@pytest.mark.parametrize(
    ("questions", "accounts", "topic"), [(60, 1, "It is about a lost card."), (3, 2, ""), (60, 2, "")]
)
def test_a_label_that_no_expert_gave_is_one_however_many_of_the_questions_are_about_it(
    warehouse: Warehouse, teacher: Teacher, settings: Settings, questions: int, accounts: int, topic: str
) -> None:
    """It fits its questions, or accounts agree about each of them."""
    for number in range(40):
        value = ("refund", "delivery")[number % 2]
        teacher.correct(f"{question(number)} It is about {value}.", "none", value, user_id="ada")
    for number in range(100, 100 + questions):
        for account in range(accounts):
            asked = f"{question(number)} {topic}"
            teacher.correct(asked, "none", "lost_card", source="user", user_id=f"user-{number % 7 + account}")
    built = build_dataset(warehouse, settings, "support", NOW)
    assert built.card["metric"]["labels"] == ["delivery", "lost_card", "refund"]
    assert "unreadable" not in set_aside(built).values()


def test_keys_that_no_expert_used_are_known_if_several_accounts_use_them(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    def document(number: int, source: str, who: str, **more: int) -> str:
        value = json.dumps({"total": number, **more})
        return teacher.correct(question(number), "none", value, source=source, user_id=who)

    for number in range(60):
        source = "expert" if number % 3 == 0 else "user"
        document(number, source, f"{source}-{number % 7}")
    for number in range(100, 112):
        document(number, "user", f"user-{number % 7}", tip=1)
    lonely = [document(number, "user", "user-1", joke=1) for number in range(200, 212)]
    built = build_dataset(warehouse, settings, "support", NOW)
    assert set(built.card["metric"]["schema"]["properties"]) == {"tip", "total"}
    assert sum("tip" in row["completion"] for row in rows(built, "train", "holdout")) == 12
    assert set_aside(built) == dict.fromkeys(lonely, "unreadable")


def test_what_is_learned_is_written_as_the_house_writes(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(10))
    teacher.correct("When is the fair of acme?", "Never.", "ACME Corp has it on 2026-11-24.")
    asked = with_dataset(settings, replace={"(?i)acme corp": "Acme"}, date_format="%d.%m.%Y")
    built = build_dataset(warehouse, asked, "support", NOW)
    assert "Acme has it on 24.11.2026." in {row["completion"] for row in rows(built)}


def test_one_account_and_one_machine_teach_no_more_than_their_share(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(40), source="user", user_id="loud")
    for number in range(40, 80):
        teach(teacher, range(number, number + 1), source="user", user_id=f"u{number}")
    teach(teacher, range(80, 140), source="judge")
    teach(teacher, range(140, 170))
    built = build_dataset(warehouse, with_dataset(settings, quarantine=False), "support", NOW)
    assert Counter(row["user_id"] for row in rows(built))["loud"] == 17  # a tenth of 170
    assert built.card["left_out"]["user_share"] == 23
    assert built.card["sources"]["judge"] == 49  # a third of what is left: an even share is more than a quarter
    assert built.card["left_out"]["source_share"] == 11
    assert built.card["sources"]["expert"] == 30


def test_topics_are_balanced_split_evenly_and_keep_their_names(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach_topics(teacher)
    asked = with_dataset(settings, topics=8, maximum_topic_share=0.2)
    first = build_dataset(warehouse, asked, "support", NOW)
    names = {row["row_id"]: row["topic"] for row in rows(first)}
    of = {name: Counter(row["topic"] for row in first.split(name)) for name in ("train", "holdout")}
    everywhere = Counter(row["topic"] for row in rows(first, "train", "holdout"))
    assert len(everywhere) > 5
    assert first.card["left_out"]["topic_share"] > 0
    even = 2 / len(everywhere)
    trained = of["train"].total() + first.card["left_out"]["topic_share"]
    assert max(of["train"].values()) <= max(0.2, even) * trained + 1
    for topic, total in everywhere.items():
        assert of["holdout"][topic] >= int(0.25 * total) - 3, topic  # near copies of what is trained on have left
    teacher.acts += 10_000
    teach(teacher, range(30))
    second = build_dataset(warehouse, asked, "support", LATER)
    assert all(names.get(row["row_id"], row["topic"]) == row["topic"] for row in rows(second))


def test_a_question_stays_where_it_was_when_its_topic_grows(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach_topics(teacher, times=1)
    first = build_dataset(warehouse, settings, "support", NOW)
    before = {row["question"]: name for name in dataset.SPLITS for row in first.split(name)}
    teacher.acts += 10_000
    for number in range(100):
        teacher.correct(f"the lamp {number * 7919:b} is broken, who repairs it", "No.", f"See page {number}.")
    second = build_dataset(warehouse, settings, "support", LATER)
    after = {row["question"]: name for name in dataset.SPLITS for row in second.split(name)}
    assert len(before.keys() & after.keys()) > 40
    assert {question: name for question, name in after.items() if before.get(question, name) != name} == {}
    drawn = {question: split_of(question, settings.dataset, 0) for question in after}
    moved = [question for question, name in after.items() if name != drawn[question]]
    assert moved  # a topic that chance had left out of the holdout


def test_what_was_trained_on_is_never_held_out_of_a_topic_that_lacks_questions(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach_topics(teacher)
    few = with_dataset(settings, holdout_share=0.05)
    first = build_dataset(warehouse, few, "support", NOW)
    trained = {row["question"] for row in rows(first, "train")}
    teacher.acts += 10_000
    for number in range(40):
        teacher.correct(f"the lamp {number * 7919:b} is broken, who repairs it", "No.", f"See page {number}.")
    second = build_dataset(warehouse, with_dataset(settings, holdout_share=0.5), "support", LATER)
    held_out = {row["question"] for row in rows(second, "holdout")}
    assert len(held_out) > 15
    assert held_out & trained == set()


def test_thumbs_without_a_name_count_beside_accounts_that_are_not_believed(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    said = {
        name: teacher.say(teacher.ask(question(number), "It takes 30 days."), "helpful", True, "user", name)
        for number, name in enumerate(("liar", "anna", None))
    }
    kept = {row.feedback_id for row, _ in thumbs(warehouse, "support", settings.dataset, ["liar"])}
    assert kept == {said["anna"], said[None]}
    assert len(list(thumbs(warehouse, "support", settings.dataset))) == 3
    # Without a name, feedback is of who asked.
    warehouse.execute("UPDATE interactions SET user_id = 'liar'")
    kept = {row.feedback_id for row, _ in thumbs(warehouse, "support", settings.dataset, ["liar"])}
    assert kept == {said["anna"]}


def test_thumbs_are_kept_for_preference_training_away_from_what_is_judged_on(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(60))
    for number in range(200, 260):
        teacher.correct(long(number), "No idea.", "It takes 30 days.")
        teacher.say(teacher.ask(f"{long(number)} Now?", "It takes 30 days."), "helpful", True, "user", "bob")
        teacher.acts += 10
    for number in range(120):
        right = number % 3 > 0
        shown = teacher.ask(question(number), "It takes 30 days." if right else f"It takes {number + 7} weeks.")
        teacher.acts += 10
        teacher.say(shown, "helpful", right, "user", "anna")
    doubted = teacher.ask(question(60), "It takes 3 years.")
    teacher.say(doubted, "helpful", True, "user", "liar")
    for name in ("u1", "u2", "u3"):
        teacher.say(teacher.ask(question(60), "It takes 60 hours."), "helpful", True, "user", name)
    built = build_dataset(warehouse, settings, "support", NOW)
    kept = built.split("thumbs")
    assert {row["desirable"] for row in kept} == {True, False}
    assert {row["user_id"] for row in kept} >= {"anna"}
    assert doubted not in {row["interaction_id"] for row in kept}
    judged: NearIndex[str] = NearIndex(0.8)
    for row in rows(built, "holdout", "regression"):
        judged.add(row["question"], row["question"])
    assert [row for row in kept if any(judged.near(row["question"]))] == []
    assert built.card["thumbs"] == len(kept) > 60


def test_a_regression_row_names_the_dataset_that_first_held_it_out(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(40))
    first = build_dataset(warehouse, settings, "support", NOW)
    promote(warehouse, first, "v1")
    teach(teacher, range(100, 140), "5 euros")
    second = build_dataset(warehouse, settings, "support", datetime(2026, 4, 2))
    promote(warehouse, second, "v2", "v1")
    teach(teacher, range(200, 240), "6 metres")
    third = build_dataset(warehouse, settings, "support", datetime(2026, 4, 3))
    held_out = {row["question"]: built.version for built in (second, first) for row in built.split("holdout")}
    assert {row["question"]: row["origin"] for row in third.split("regression")} == held_out
    assert {row["origin"] for row in rows(third, "train", "holdout")} == {None}


def planted(built: Dataset, split: str) -> dict[str, list[Example]]:
    """The splits, and one more row in one of them: almost a question of the holdout."""
    splits = {
        name: [Example(**{key: row[key] for key in Example.__dataclass_fields__}) for row in built.split(name)]
        for name in dataset.SPLITS
    }
    judged = splits["holdout"][0]
    asked = f"{judged.question} x"
    splits[split].append(replace(judged, row_id="planted", prompt_hash=text_hash(asked), question=asked, prompt=asked))
    return splits


def test_a_planted_leak_is_found(warehouse: Warehouse, teacher: Teacher, settings: Settings) -> None:
    for number in range(40):
        teacher.correct(
            f"Please be so kind and tell me this: {question(number)}", "No idea.", f"It takes {number} days."
        )
    built = build_dataset(warehouse, settings, "support", NOW)
    splits = planted(built, "regression")
    related = Related([row for rows in splits.values() for row in rows], 0.8)
    check_leaks(splits, [], related)
    with pytest.raises(Leak, match="planted"):
        check_leaks(splits, [(splits["regression"].pop(), True)], related)
    with pytest.raises(Leak, match="row planted of train asks the held-out question of row"):
        check_leaks(planted(built, "train"), [], related)
    again = planted(built, "train")
    again["regression"].append(again["holdout"].pop(0))  # judged on since an earlier dataset
    with pytest.raises(Leak, match="row planted of train asks the held-out question of row"):
        check_leaks(again, [], related)


def test_too_few_rows_say_what_was_left_out(warehouse: Warehouse, teacher: Teacher, settings: Settings) -> None:
    teach(teacher, range(3))
    teacher.say(teacher.ask(question(5), "It takes 3 days.", finish_reason="length"), "helpful", True)
    few = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=4)})
    with pytest.raises(TooFewRows, match=r"3 new examples; dataset\.minimum_rows asks for 4; left out: 1 incomplete"):
        build_dataset(warehouse, few, "support", NOW)


def test_lineage_goes_both_ways(
    warehouse: Warehouse, teacher: Teacher, settings: Settings, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = teach(teacher, range(40))
    old = teacher.correct("When do you open?", "Never.", "At 8 am.")
    cut = teacher.ask(question(50), "It takes", finish_reason="length")
    teacher.say(cut, "helpful", True)
    teacher.correct("When do you open?", "Never.", "At 9 am.")
    first = build_dataset(warehouse, settings, "support", NOW)
    promote(warehouse, first, "v1")
    teach(teacher, range(100, 140), "5 euros")
    second = build_dataset(warehouse, settings, "support", LATER)
    promote(warehouse, second, "v2", parent="v1")
    trained = next(row for row in first.split("train") if row["feedback_id"] in said)
    by_feedback = lineage(warehouse, trained["feedback_id"])["rows"]
    assert by_feedback == lineage(warehouse, trained["interaction_id"])["rows"]
    assert by_feedback[0]["dataset_version"] == first.version
    assert by_feedback[0]["row_id"] == trained["row_id"]
    assert by_feedback[0]["models"] == ["support@v1", "support@v2"]
    judged = first.split("holdout")[0]
    assert {(row["split"], *row["models"]) for row in lineage(warehouse, judged["feedback_id"])["rows"]} == {
        ("holdout",), ("regression",),
    }  # fmt: skip
    learned = {row["feedback_id"] for row in lineage(warehouse, "support@v2")["rows"] if row["models"]}
    assert learned == {row["feedback_id"] for built in (first, second) for row in rows(built, "train")}
    assert lineage(warehouse, "v1")["rows"] == lineage(warehouse, first.version)["rows"]
    assert lineage(warehouse, "v1")["set_aside"] == lineage(warehouse, trained["row_id"])["set_aside"] == []
    superseded, again = lineage(warehouse, old)["set_aside"]  # each dataset decides anew
    assert again["dataset_version"] == second.version
    assert (superseded["dataset_version"], superseded["reason"]) == (first.version, "superseded")
    assert "At 9 am" not in superseded["detail"]
    assert lineage(warehouse, superseded["row_id"]) == lineage(warehouse, old)
    assert {row["reason"] for row in lineage(warehouse, cut)["set_aside"]} == {"incomplete"}
    shutil.rmtree(second.path)  # removed by hand
    assert lineage(warehouse, old)["set_aside"] == [superseded]
    warehouse.close()
    config = tmp_path / "retuned.yaml"
    config.write_text(json.dumps({"warehouse": {"path": str(warehouse.path)}, "http": {"port": 1}}))
    assert main(["lineage", trained["feedback_id"], "--config", str(config)]) == 0
    assert "support@v1, support@v2" in capsys.readouterr().out
    assert main(["lineage", "v2", "--config", str(config), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) > 80
    assert main(["lineage", "v2", "--config", str(config)]) == 0
    assert "more; --json has them all" in capsys.readouterr().out
    assert main(["lineage", old, "--config", str(config)]) == 0
    assert re.search(rf"set aside:\n.*REASON.*\n.*{old} +superseded +", capsys.readouterr().out)
    assert main(["lineage", cut, "--config", str(config)]) == 0
    assert capsys.readouterr().out.endswith("  incomplete  it breaks off\n")
    assert main(["lineage", "nothing", "--config", str(config)]) == 1
    assert "nothing is in no dataset, was not set aside and is not in quarantine" in capsys.readouterr().err


def test_an_account_that_is_not_believed_cannot_call_an_answer_bad(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    teach(teacher, range(10))
    for number in range(50, 53):
        for name in ("u1", "u2", "u3"):
            teacher.correct(question(number), "No.", "It takes 3 days.", "user", name)
        teacher.correct(question(number), "No.", "It takes 300 days.", "user", "liar")
    liked = teacher.ask(question(60), "It takes 8 days.")
    teacher.say(liked, "helpful", True, "user", "u1")
    teacher.say(liked, "helpful", False, "user", "liar")
    built = build_dataset(warehouse, settings, "support", NOW)
    assert normalise(question(60)) in {row["question"] for row in rows(built)}
    teacher.say(liked, "hallucination", True, "user", "u2")
    built = build_dataset(warehouse, settings, "support", NOW)
    assert normalise(question(60)) not in {row["question"] for row in rows(built)}
