"""What experts are asked, on a real warehouse: chosen, stored, announced, listed, answered."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.feedback.teaching import Teacher
from fixtures.models.datasets import build_dataset, teach
from retuned.consumers.errors import BrokerUnavailable, RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.cli.main import main
from retuned.daemon.console import teach as console_teach
from retuned.daemon.console.inbox import Work
from retuned.daemon.demo import company as demo_company
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.operations.local import opened
from retuned.daemon.settings import Settings
from retuned.retrain.data import label_requests as labels
from retuned.retrain.data import overrides
from retuned.retrain.metrics import Metrics
from retuned.retrain.release import registry
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.scoring import exam

DAY = timedelta(days=1)
TOPIC = "retuned.label-requests"


def settings_of(folder: Path, **sections: dict[str, Any]) -> Settings:
    (folder / "base").mkdir(exist_ok=True)
    (folder / "base" / "config.json").write_text("{}")
    (folder / "base" / "model.safetensors").write_bytes(b"weights")
    return Settings(
        warehouse={"path": folder / "data" / "retuned.duckdb"},
        models={"base": folder / "base", "directory": folder / "models"},
        **sections,
    )


@contextmanager
def house(folder: Path, **sections: dict[str, Any]) -> Iterator[tuple[Jobs, Teacher, MemoryPublisher]]:
    with opened(settings_of(folder, **sections)) as local:
        jobs = local.jobs
        teacher, publisher = Teacher(jobs.context.warehouse), MemoryPublisher()
        jobs.context.publisher, jobs.context.now = publisher, lambda: teacher.now
        yield jobs, teacher, publisher


QUESTIONS = ("May I return a lamp?", "How long is the warranty of a sofa?", "When is the shop in Oslo open?")


def doubted(teacher: Teacher, *questions: str) -> list[str]:
    """Answers that people called wrong, and nobody corrected."""
    asked = [teacher.ask(question, "Certainly.", context=["A passage."]) for question in questions]
    for interaction in asked:
        teacher.say(interaction, "helpful", False, "user")
    return asked


def rows(warehouse: Warehouse) -> list[dict[str, Any]]:
    return warehouse.rows("SELECT * FROM label_requests ORDER BY created_at, score DESC, interaction_id")


def test_a_request_is_announced_in_full_and_answered_by_an_expert(tmp_path: Path) -> None:
    with house(tmp_path, labels={"file": tmp_path / "out" / "requests.jsonl"}) as (jobs, teacher, publisher):
        first, second = doubted(teacher, *QUESTIONS[:2])
        jobs.run("labels")
        found = {message["interaction_id"]: (topic, key, message) for topic, key, message in publisher.messages}
        assert set(found) == {first, second}
        topic, key, message = found[first]
        stored = next(row for row in rows(jobs.context.warehouse) if row["interaction_id"] == first)
        assert (topic, key) == (TOPIC, first)
        assert message == {
            "id": stored["id"],
            "timestamp": teacher.now.isoformat(timespec="milliseconds") + "Z",
            "workload": "support",
            "interaction_id": first,
            "model": "support@base",
            "messages": [{"role": "user", "content": QUESTIONS[0]}],
            "question": QUESTIONS[0],
            "answer": "Certainly.",
            "answers": None,
            "tools": [],
            "context": ["A passage."],
            "reason": "uncertain",
            "detail": "People called it wrong, and nobody gave the right answer (1 against, 0 for).",
            "score": pytest.approx(2 / 3),
        }
        file = tmp_path / "out" / "requests.jsonl"
        assert [json.loads(line) for line in file.read_text().splitlines()] == labels.open_requests(
            jobs.context.warehouse
        )
        assert labels.counts(jobs.context.warehouse) == {"support": {"open": 2, "answered": 0}}

        # A user's word is no answer; an expert's is, and it teaches.
        teacher.say(first, "helpful", False, "user")
        teacher.say(second, "correction", "Two years.", "user")
        jobs.run("quality")
        assert labels.counts(jobs.context.warehouse)["support"] == {"open": 2, "answered": 0}
        answer = teacher.say(first, "correction", "Within 14 days.", "expert")
        teacher.say(second, "helpful", True, "expert")
        jobs.run("quality")
        assert labels.counts(jobs.context.warehouse)["support"] == {"open": 0, "answered": 2}
        answered = next(row for row in rows(jobs.context.warehouse) if row["interaction_id"] == first)
        assert (answered["feedback_id"], answered["answered_at"]) == (answer, teacher.now - timedelta(minutes=1))
        assert file.read_text() == ""
        # Months later, what is answered is not asked again.
        jobs.context.now = lambda: teacher.now + 90 * DAY
        jobs.run("labels")
        asked = [(row["interaction_id"], row["reason"]) for row in rows(jobs.context.warehouse)]
        assert len(asked) == len(set(asked)) == len(publisher.messages)
        assert {reason for _, reason in asked[2:]} <= {"calibration"}


def test_one_account_is_heard_so_many_times_and_its_last_vote_counts(tmp_path: Path) -> None:
    """One account does not decide alone what experts look at."""
    with house(tmp_path) as (jobs, teacher, _):
        asked = [
            teacher.ask(f"May I return {word}?", "Certainly.")
            for word in ("lamp", "sofa", "gift", "chair", "bed", "rug")
        ]
        for interaction in asked:
            teacher.say(interaction, "helpful", False, "user", "angry")
        changed = teacher.ask("When is the shop in Oslo open?", "Certainly.")
        teacher.say(changed, "helpful", False, "user", "fair")
        teacher.say(changed, "helpful", True, "user", "fair")
        rated = teacher.ask("Does breakfast cost extra?", "Certainly.")
        teacher.say(rated, "rating", 0.0, "user", "other")  # ratings are no votes
        jobs.run("labels")
        assert {row["interaction_id"] for row in rows(jobs.context.warehouse)} == set(asked[:5])


def test_a_workload_may_have_a_file_and_a_budget_of_its_own(tmp_path: Path) -> None:
    everybody, own = tmp_path / "requests.jsonl", tmp_path / "billing.jsonl"
    entries = {"billing": {"labels": {"file": own, "per_day": 1}}}
    with house(tmp_path, labels={"file": everybody}, workloads=entries) as (jobs, teacher, _):
        billing = Teacher(jobs.context.warehouse, "billing")
        for one in (teacher, billing):
            doubted(one, *QUESTIONS[:2])
        jobs.run("labels")
        found = [[json.loads(line)["workload"] for line in file.read_text().splitlines()] for file in (everybody, own)]
        assert found == [["support", "support"], ["billing"]]
        for request in rows(jobs.context.warehouse):
            expert = billing if request["workload"] == "billing" else teacher
            expert.say(request["interaction_id"], "helpful", True)
        jobs.run("quality")
        assert everybody.read_text() == own.read_text() == ""


def test_a_broker_that_is_away_loses_nothing_and_asks_nothing_twice(tmp_path: Path) -> None:
    class Flaky(MemoryPublisher):
        away = True

        def publish(self, topic: str, key: str, value: dict[str, Any]) -> None:
            if self.away and len(self.messages) % 2 == 1:
                raise BrokerUnavailable("broker: not there")
            super().publish(topic, key, value)

    with house(tmp_path) as (jobs, teacher, _):
        jobs.context.publisher = flaky = Flaky()
        doubted(teacher, *QUESTIONS)
        jobs.run("labels")  # one goes out, then the broker is away
        assert [row["announced"] for row in rows(jobs.context.warehouse)].count(True) == len(flaky.messages) == 1
        jobs.run("labels")
        jobs.run("announce")
        assert len(flaky.messages) == 1
        flaky.away = False
        jobs.run("announce")
        jobs.run("announce")
        assert len({message["id"] for _, _, message in flaky.messages}) == len(flaky.messages) == 3
        assert len(rows(jobs.context.warehouse)) == 3


def test_a_pass_that_is_cut_off_has_asked_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house(tmp_path) as (jobs, teacher, publisher):
        doubted(teacher, *QUESTIONS)
        inserted: list[None] = []
        real = labels.insert

        def killed(*arguments: Any, **values: Any) -> None:
            inserted.append(None)
            if len(inserted) == 3:
                raise KeyboardInterrupt
            real(*arguments, **values)

        with monkeypatch.context() as patch:
            patch.setattr(labels, "insert", killed)
            with pytest.raises(KeyboardInterrupt):
                jobs.run("labels")
        assert rows(jobs.context.warehouse) == []
        jobs.run("labels")
        assert len(rows(jobs.context.warehouse)) == len(publisher.messages) == 3


def test_a_day_has_its_budget(tmp_path: Path) -> None:
    with house(tmp_path, labels={"per_day": 2}) as (jobs, teacher, publisher):
        doubted(teacher, *QUESTIONS)
        jobs.run("labels")
        jobs.run("labels")
        assert len(publisher.messages) == 2
        now = teacher.now
        jobs.context.now = lambda: now + DAY
        jobs.run("labels")
        assert len(publisher.messages) == 3
        jobs.context.settings = jobs.context.settings.model_copy(
            update={"labels": jobs.context.settings.labels.model_copy(update={"per_day": 0})}
        )
        doubted(teacher, "Is breakfast included?")
        jobs.context.now = lambda: now + 9 * DAY
        jobs.run("labels")
        assert len(publisher.messages) == 3


def grounded(teacher: Teacher, alarms: int, others: int) -> list[str]:
    """Answers that nothing speaks against; on the first ones values or the detector alarm."""
    asked = [teacher.ask(f"Question {number}?", "Certainly.", context=["A"]) for number in range(alarms + others)]
    for number, interaction in enumerate(asked):
        alarm = number < alarms
        values = {"id": interaction, "now": teacher.now, "alarm": alarm if number % 2 else None}
        teacher.warehouse.execute(
            "INSERT INTO groundings VALUES ($id, 'support', $now, if($alarm IS NULL, NULL, 1 - $alarm::INT), $alarm, "
            "if($alarm IS NULL, 'no_values', NULL), 'values')",
            values,
        )
        if not number % 2:
            teacher.warehouse.execute(
                "INSERT INTO detections VALUES ('nli', $id, 'support', '/model', $now, 1 - $alarm::INT, $alarm, NULL)",
                {"id": interaction, "now": teacher.now, "alarm": alarm},
            )
    return asked


def test_a_part_is_drawn_from_alarms_and_from_other_answers_to_calibrate_the_rate(tmp_path: Path) -> None:
    with house(tmp_path, labels={"per_day": 20}) as (jobs, teacher, publisher):
        asked = grounded(teacher, alarms=5, others=25)
        jobs.run("labels")
        jobs.run("labels")  # the day has its budget
        drawn = rows(jobs.context.warehouse)
        alarms = [row for row in drawn if row["interaction_id"] in asked[:5]]
        assert {row["reason"] for row in drawn} == {"calibration"}
        assert len(drawn) == 4
        assert {row["alarm"] for row in alarms} <= {True}
        assert {row["probability"] for row in drawn if row not in alarms} == {(4 - len(alarms)) / 25}
        # Who is asked is not told which kind it is.
        messages = [message for _, _, message in publisher.messages]
        assert len({message["detail"] for message in messages}) == 1
        assert {message["score"] for message in messages} == {None}
        assert not any("alarm" in message for message in messages)
        # It is answered by whether it is invented, not by what is right.
        first, second = (row["interaction_id"] for row in drawn[:2])
        teacher.say(first, "correction", "No.", "expert")
        teacher.say(second, "hallucination", False, "expert")
        jobs.run("quality")
        answered = [row["interaction_id"] for row in rows(jobs.context.warehouse) if row["answered_at"]]
        assert answered == [second]
        now = teacher.now
        for day in range(1, 8):
            jobs.context.now = lambda day=day: now + day * DAY
            jobs.run("labels")
        drawn = rows(jobs.context.warehouse)
        assert len(drawn) == len({row["interaction_id"] for row in drawn}) == 30
        assert sum(row["alarm"] for row in drawn) == 5


def test_each_answer_of_a_kind_has_the_same_chance_to_be_drawn(tmp_path: Path) -> None:
    with house(tmp_path) as (jobs, teacher, _):
        asked = grounded(teacher, alarms=5, others=10)
        passes = [labels._draw(jobs.context.warehouse, "support", 4, teacher.now + n * DAY) for n in range(200)]
        times = Counter(row["interaction_id"] for rows in passes for row in rows)
        for kind in (asked[:5], asked[5:]):
            each = sum(times[one] for one in kind) / len(kind)
            assert each > 0
            # Within four standard deviations.
            assert all(abs(times[one] - each) < 4 * each**0.5 for one in kind)


def test_an_answer_that_is_asked_about_for_another_reason_may_be_drawn_and_each_request_has_its_own_answer(
    tmp_path: Path,
) -> None:
    """Without the answers that are likely wrong, the sample would look too good."""
    with house(tmp_path, labels={"per_day": 100}) as (jobs, teacher, _):
        asked = grounded(teacher, alarms=0, others=10)
        for interaction in asked[:6]:
            jobs.context.warehouse.insert(
                "label_requests", id=f"other {interaction}", created_at=teacher.now, workload="support",
                interaction_id=interaction, reason="uncertain", detail="", announced=True,
            )  # fmt: skip
        jobs.run("labels")
        drawn = {row["interaction_id"]: row for row in rows(jobs.context.warehouse) if row["reason"] == "calibration"}
        assert set(drawn) == set(asked)
        assert {row["probability"] for row in drawn.values()} == {1.0}
        teacher.say(asked[0], "hallucination", True, "expert")
        teacher.say(asked[1], "correction", "No.", "expert")
        jobs.run("quality")
        answered = {
            (row["interaction_id"], row["reason"]) for row in rows(jobs.context.warehouse) if row["answered_at"]
        }
        assert answered == {(asked[0], "calibration"), (asked[1], "uncertain")}


def test_without_a_topic_requests_are_listed_alone_and_go_out_once_there_is_one(tmp_path: Path) -> None:
    with house(tmp_path, kafka={"label_requests_topic": None}) as (jobs, teacher, publisher):
        doubted(teacher, *QUESTIONS)
        jobs.run("labels")
        assert publisher.messages == []
        assert len(labels.open_requests(jobs.context.warehouse)) == 3
        assert labels.open_requests(jobs.context.warehouse, "sales") == []
        assert labels.announce_pending(jobs.context.warehouse, publisher, TOPIC) == 3


def test_the_answers_of_an_earlier_model_are_not_asked_about(tmp_path: Path) -> None:
    with house(tmp_path) as (jobs, teacher, _):
        doubted(teacher, *QUESTIONS)
        jobs.context.warehouse.insert(
            "aliases", workload="support", alias="champion", version=None, created_at=teacher.now + timedelta(seconds=1)
        )
        jobs.run("labels")
        assert rows(jobs.context.warehouse) == []
        (now,) = doubted(teacher, "May I return a lamp?")
        jobs.run("labels")
        assert [row["interaction_id"] for row in rows(jobs.context.warehouse)] == [now]


def test_where_nothing_is_trained_nothing_is_asked(tmp_path: Path) -> None:
    with house(tmp_path) as (jobs, teacher, _):
        doubted(teacher, *QUESTIONS)
        models = jobs.context.settings.models
        for changed in ({"base": None}, {"workloads": ("sales",)}):
            jobs.context.settings = jobs.context.settings.model_copy(
                update={"models": models.model_copy(update=changed)}
            )
            jobs.run("labels")
            assert rows(jobs.context.warehouse) == []
        jobs.context.settings = jobs.context.settings.model_copy(
            update={"models": models.model_copy(update={"workloads": ("support",)})}
        )
        jobs.run("labels")
        assert len(rows(jobs.context.warehouse)) == 3


def test_metrics_of_requests(tmp_path: Path) -> None:
    with house(tmp_path) as (jobs, teacher, _):
        collectors = CollectorRegistry()
        jobs.context.retrain_metrics = Metrics(collectors)
        first, *_ = doubted(teacher, *QUESTIONS)
        jobs.run("labels")
        teacher.say(first, "correction", "Within 14 days.", "expert")
        jobs.run("quality")
        jobs.run("quality")
        workload = {"workload": "support"}
        assert collectors.get_sample_value("retuned_label_requests_open", workload) == 2
        assert collectors.get_sample_value("retuned_label_requests_answered_total", workload) == 1


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with house(tmp_path, labels={"file": tmp_path / "taken" / "requests.jsonl"}) as (jobs, teacher, publisher):
        doubted(teacher, *QUESTIONS)
        with pytest.raises(RetunedError, match=r"labels\.file: .*requests\.jsonl cannot be written"):
            jobs.run("labels")
        assert len(publisher.messages) == 3


def test_the_command_line_lists_what_is_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETUNED__HTTP__PORT", "1")  # no daemon answers there
    monkeypatch.setenv("RETUNED__WAREHOUSE__PATH", str(tmp_path / "data" / "retuned.duckdb"))
    with house(tmp_path) as (jobs, teacher, _):
        (interaction,) = doubted(teacher, "May I\nreturn \x1b[31m a lamp?")
        jobs.run("labels")
    assert main(["labels"]) == 0
    printed, hint = capsys.readouterr()
    assert "on the daemon's page /teach" in hint
    assert printed == (
        f"{interaction}  support  0.667  uncertain\n"
        "    detail      People called it wrong, and nobody gave the right answer (1 against, 0 for).\n"
        "    question    May I return [31m a lamp?\n    context     A passage.\n    answers     Certainly.\n"
    )
    assert main(["labels", "--json", "--workload", "support"]) == 0
    assert [one["interaction_id"] for one in json.loads(capsys.readouterr().out)] == [interaction]
    assert main(["labels", "--workload", "sales"]) == 1
    assert "sales" in capsys.readouterr().err
    assert main(["status", "support"]) == 0
    assert "to do   1 answer to judge: `retuned labels --workload support`\n" in capsys.readouterr().out
    assert main(["export", "label_requests", "-o", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["interaction_id"] == interaction


def served(folder: Path, jobs: Jobs, teacher: Teacher) -> None:
    """A champion that was taught what the demo's company held true before its change."""
    company = demo_company.load(None)
    for fact in company.facts(changed=False):
        for question in fact.questions[:10]:
            teacher.correct(question, "I cannot say.", fact.answer)
    made = build_dataset(jobs.context.warehouse, jobs.context.settings, "support", teacher.now)
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_text("weights")
    version = registry.register(
        jobs.context.warehouse,
        jobs.context.settings.models.directory,
        "support",
        adapter,
        base_model=folder / "base",
        parent_version=None,
        dataset_version=made.version,
        run_id="r1",
        details={},
        now=teacher.now,
    )
    Rollout(jobs.context.warehouse, jobs.context.settings, MemoryPublisher(), "t").promote(
        "support", version.version, "gate", "", teacher.now
    )


def traffic_after_the_change(teacher: Teacher, rates: float) -> dict[str, bool]:
    """150 answers of that champion after the company changed, a share of them rated by customers; which are wrong.

    It confuses a tenth of what it knows, repeats what is no longer true, and takes another fact for what is new. What
    did not change is asked fifteen times as often.
    """
    draw = random.Random(0)
    company = demo_company.load(None)
    before = {fact.id: fact for fact in company.facts(changed=False)}
    after = company.facts(changed=True)
    often = [15 if before.get(fact.id) == fact.model_copy(update={"other_values": ()}) else 1 for fact in after]
    wrong = {}
    for _ in range(150):
        (fact,) = draw.choices(after, often)
        knows = before.get(fact.id)
        said = knows if knows and draw.random() < 0.9 else draw.choice(list(before.values()))
        interaction = teacher.ask(draw.choice(fact.questions[10:]), said.answer)
        wrong[interaction] = not demo_company.is_right(fact, said.answer)
        if draw.random() < rates:
            mistaken = draw.random() < company.users.mistaken
            teacher.say(interaction, "helpful", wrong[interaction] == mistaken, "user")
    return wrong


@pytest.mark.parametrize("rates", [0.7, 0.1, 0.0])
def test_what_is_picked_teaches_more_than_what_chance_picks(tmp_path: Path, rates: float) -> None:
    """A label of a right answer teaches nothing: the share of picks that are wrong, against that of all answers."""
    small = {"dataset": {"minimum_rows": 1}, "gate": {"minimum_examples": 1}, "labels": {"per_day": 20}}
    with house(tmp_path, **small) as (jobs, teacher, _):
        served(tmp_path, jobs, teacher)
        wrong = traffic_after_the_change(teacher, rates)
        jobs.run("labels")
        asked = [row["interaction_id"] for row in rows(jobs.context.warehouse)]
        assert len(asked) == 20
        of_picks, of_all = (sum(wrong[one] for one in some) / len(some) for some in (asked, list(wrong)))
        print(f"wrong: {of_picks:.2f} of the picks, {of_all:.2f} of all")
        assert of_picks > 2 * of_all


def test_experts_are_asked_whether_two_answers_mean_the_same_where_nobody_knows(tmp_path: Path) -> None:
    with house(tmp_path, dataset={"minimum_rows": 1}, gate={"minimum_examples": 1}) as (jobs, teacher, publisher):
        warehouse, settings = jobs.context.warehouse, jobs.context.settings
        teach(teacher, range(12))
        one, other = "Mister Smith leads us since May.", "Anna is our director and everybody likes her."
        for name, answer in (("u1", one), ("u2", other), ("u3", one), ("u4", other), ("u5", one)):
            teacher.correct("Who is the boss?", "Nobody.", answer, "user", name)
        shown = "A long letter, with all of the details."
        decided = teacher.correct("What shall I send?", "Nothing.", shown, "user", "u1")
        teacher.correct("What shall I send?", "Nothing.", "Only your name, please, nobody needs more.", "user", "u2")
        build_dataset(warehouse, settings, "support", teacher.now)
        overrides.decide_rows(warehouse, "keep", [decided], "it is right", "anna", teacher.now)
        jobs.run("labels")
        asked = [row for row in rows(warehouse) if row["reason"] == "conflict"]
        assert len(asked) == 1, "one of each question, and none of what a person has decided"
        (message,) = [message for _, _, message in publisher.messages if message["reason"] == "conflict"]
        assert (message["question"], set(message["answers"])) == ("Who is the boss?", {one, other})
        assert (message["interaction_id"], message["score"]) == (asked[0]["interaction_id"], None)
        jobs.run("labels")
        assert len([row for row in rows(warehouse) if row["reason"] == "conflict"]) == 1
        teacher.say(message["interaction_id"], "helpful", True)  # does not tell whether they mean the same
        jobs.run("labels")
        (open_one,) = (one for one in labels.open_requests(warehouse) if one["reason"] == "conflict")
        assert open_one == message
        assert exam.own(warehouse.cursor(), "support") == []
        answer = teacher.say(message["interaction_id"], "same", False)
        jobs.run("labels")
        assert [row["feedback_id"] for row in rows(warehouse) if row["reason"] == "conflict"] == [answer]
        first, second = message["answers"]
        assert exam.own(warehouse.cursor(), "support") == [
            exam.Pair(message["interaction_id"], exam.OWN, "", "Who is the boss?", second, first, False)
        ]


def conflict(jobs: Jobs, teacher: Teacher, first: str, second: str) -> dict[str, Any]:
    """A request about two answers, by the feedback that states each."""
    (row,) = jobs.context.warehouse.rows("SELECT interaction_id FROM feedback WHERE id = ?", [first])
    teacher.acts += 1
    jobs.context.warehouse.insert(
        "label_requests", id="l1", created_at=teacher.now, workload="support", reason="conflict", detail="",
        first_feedback_id=first, second_feedback_id=second, announced=False, **row,
    )  # fmt: skip
    message = labels.find(jobs.context.warehouse, "l1")
    assert message is not None
    return message


CALLS = [{"function": {"name": "track", "arguments": '{"order": 7}'}}]
CALLED = '<tool_call>\n{"name": "track", "arguments": {"order": 7}}\n</tool_call>'


@pytest.mark.parametrize(
    ("correction", "text"),
    [
        ({"content": "", "tool_calls": CALLS}, CALLED),
        ({"content": "A letter.", "title": "Hello"}, '{"content": "A letter.", "title": "Hello"}'),
        (CALLS, CALLED),
        ("<think>\nHm.\n</think>\n\nIt is sent.", "It is sent."),
    ],
)
def test_experts_see_the_texts_of_both_answers_and_those_are_examined(
    tmp_path: Path, correction: Any, text: str
) -> None:
    with house(tmp_path) as (jobs, teacher, _):
        first = teacher.correct("Where is order 7?", "No idea.", correction)
        called = teacher.ask("Where is order 7?", "", attributes={"tool_calls": CALLS})
        message = conflict(jobs, teacher, first, teacher.say(called, "helpful", True))
        assert message["answers"] == [text, CALLED]
        teacher.say(message["interaction_id"], "same", True)
        (pair,) = exam.own(jobs.context.warehouse.cursor(), "support")
        assert (pair.answer, pair.approved, pair.same) == (text, CALLED, True)


def test_only_later_feedback_answers_a_conflict_and_one_that_names_the_request(tmp_path: Path) -> None:
    with house(tmp_path) as (jobs, teacher, _):
        warehouse = jobs.context.warehouse
        doubted(teacher, "How long is the warranty of a sofa?")
        jobs.run("labels")  # an older request is open
        warehouse.execute("UPDATE label_requests SET id = 'l0'")

        def answered_by() -> list[str | None]:
            labels.settle(warehouse)
            return [row["feedback_id"] for row in rows(warehouse) if row["id"] == "l1"]

        one, other = teacher.ask("May I return a lamp?", "No."), teacher.ask("May I return a lamp?", "No.")
        earlier = teacher.say(one, "same", True)
        first, second = teacher.say(one, "correction", "In 14 days."), teacher.say(other, "correction", "Never.")
        conflict(jobs, teacher, first, second)
        assert answered_by() == [None]
        # Where another member of a cluster reads the feedback, its clock may be behind.
        warehouse.execute(
            "INSERT INTO label_work BY NAME SELECT 'l1' AS request_id, 'anna' AS expert, 'answered' AS state, "
            "TIMESTAMP '2026-03-01' AS since"
        )
        named = console_teach.feedback_id("l1", Work("anna", "answered", datetime(2026, 3, 1)))
        warehouse.execute("UPDATE feedback SET id = ? WHERE id = ?", [named, earlier])
        assert answered_by() == [named]
        warehouse.execute("UPDATE label_requests SET feedback_id = NULL, answered_at = NULL WHERE id = 'l1'")
        warehouse.execute("DELETE FROM label_work")
        assert answered_by() == [None]
        later = teacher.say(one, "correction", "In 30 days.")
        assert answered_by() == [later]


@pytest.mark.parametrize("per_day", [1, 2, 5])
def test_a_fifth_of_the_requests_calibrate_however_few_a_day_has(tmp_path: Path, per_day: int) -> None:
    with house(tmp_path, labels={"per_day": per_day}) as (jobs, teacher, _):
        warehouse = jobs.context.warehouse
        for day in range(20):
            for number in range(8):
                answer = teacher.ask(f"Question {day * 7919 + number * 31}?", f"It costs {day * 10 + number} euros.")
                teacher.say(answer, "helpful", number % 2 == 0, "user", f"u{day}-{number}")
            warehouse.execute(
                "INSERT INTO groundings BY NAME SELECT workload, id AS interaction_id, false AS alarm, 0.9 AS score, "
                "'values' AS method, $now AS created_at FROM interactions "
                "WHERE id NOT IN (SELECT interaction_id FROM groundings)",
                {"now": teacher.now},
            )
            teacher.acts = (day + 1) * 24 * 60 + 60
            labels.request(warehouse, jobs.context.settings, "support", teacher.now)
        reasons = Counter(row["reason"] for row in warehouse.rows("SELECT reason FROM label_requests"))
    assert reasons["calibration"] == 20 * per_day / 5
    assert reasons.total() > 2 * reasons["calibration"]
