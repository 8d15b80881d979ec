"""The exam of a metric, and who may decide by it."""

import json
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fixtures.feedback.traffic import new_warehouse
from retuned.retrain.scoring import exam
from retuned.retrain.scoring.custom import Custom
from retuned.retrain.scoring.exact import Exact
from retuned.retrain.scoring.exam import Mark, Pair, may_decide
from retuned.retrain.scoring.facts import Facts
from retuned.retrain.scoring.judge import Judge, staged
from retuned.retrain.scoring.score import Metric, Unjudged
from retuned.retrain.settings import EvaluateSettings, Settings

NOW = datetime(2026, 11, 28, 12)


def pair(number: int, answer: str, approved: str, same: bool, kind: str = "values") -> Pair:
    return Pair(f"p{number}", kind, "en", "How long?", approved, answer, same)


def test_marks_count_what_is_judged_and_what_people_agree_with() -> None:
    pairs = [
        pair(1, "It takes 3 days.", "It takes 3 days.", True),
        pair(2, "It takes 4 days.", "It takes 3 days.", False),
        pair(3, "It takes 4 days.", "It takes 3 days.", True),
        pair(4, "Three days is what you have to wait.", "It takes 3 days.", True),
        pair(5, "It can.", "It cannot.", False, "polarity"),
    ]
    marks = exam.examine(pairs, lambda one: exam.is_right(Facts(), one))
    assert marks == [Mark("polarity", "en", 1, 1, 1), Mark("values", "en", 4, 3, 2)]
    assert exam.summary(marks)[0] == {"pairs_of": "all", "pairs": 5, "judged": 4 / 5, "agreement": 3 / 4}


@pytest.mark.parametrize(
    ("name", "shipped", "own", "granted"),
    [
        ("facts", [Mark("values", "en", 100, 40, 36)], [], True),
        ("facts", [Mark("values", "en", 100, 40, 35)], [], False),
        ("facts", [Mark("values", "en", 50, 20, 20), Mark("roles", "de", 50, 20, 16)], [], True),
        ("facts", [Mark("values", "en", 100, 19, 19)], [], False),
        ("facts", [], [], False),
        ("facts", [Mark("values", "en", 100, 40, 40)], [Mark("workload", "", 30, 20, 17)], False),
        ("facts", [Mark("values", "en", 100, 40, 20)], [Mark("workload", "", 30, 20, 18)], True),
        ("facts", [Mark("values", "en", 100, 40, 40)], [Mark("workload", "", 30, 19, 0)], True),
        ("label", [Mark("labels", "en", 40, 40, 20)], [], True),
        ("tool_calls", [], [], True),
    ],
)
def test_who_may_decide(name: str, shipped: list[Mark], own: list[Mark], granted: bool) -> None:
    found = may_decide(name, shipped, own, bar=0.9)
    assert found.granted == granted
    assert found.reason.startswith(f"{name} may {'decide' if granted else 'not decide'}: ")


def test_the_shipped_pairs_are_sound_and_facts_pass_their_exam() -> None:
    pairs = exam.shipped()
    assert len({one.id for one in pairs}) == len(pairs) == 520
    assert 0.4 < sum(one.same for one in pairs) / len(pairs) < 0.6
    assert may_decide("facts", exam.examined("facts", Settings(), pairs), bar=Settings().metric.exam_bar).granted
    assert may_decide("code", exam.examined("code", Settings(), pairs), bar=Settings().metric.exam_bar).granted
    assert not may_decide("text", exam.examined("text", Settings(), pairs), bar=Settings().metric.exam_bar).granted


def test_the_newest_marks_of_each_source_are_kept(tmp_path: Path) -> None:
    warehouse = new_warehouse(tmp_path)
    old, new = [Mark("values", "en", 4, 3, 1)], [Mark("roles", "de", 4, 4, 4), Mark("values", "en", 4, 3, 2)]
    exam.keep(warehouse.cursor(), "support", "facts", "1", exam.SHIPPED, old, NOW)
    exam.keep(warehouse.cursor(), "support", "facts", "1", exam.SHIPPED, new, NOW + timedelta(days=1))
    exam.keep(warehouse.cursor(), "support", "facts", "1", exam.OWN, old, NOW)
    cursor = warehouse.cursor()
    assert exam.newest(cursor, "support", "facts", exam.SHIPPED) == new
    assert exam.newest(cursor, "support", "facts", exam.OWN) == old
    assert exam.newest(cursor, "support", "judge", exam.SHIPPED) == []
    assert exam.newest(cursor, "sales", "facts", exam.SHIPPED) == []


def test_verdicts_of_experts_on_corrected_answers_are_pairs_of_the_workload(tmp_path: Path) -> None:
    warehouse = new_warehouse(tmp_path)
    for identity, workload in (
        ("a", "support"),
        ("b", "support"),
        ("c", "support"),
        ("d", "sales"),
        ("e", "e"),
        ("f", "e"),
    ):
        warehouse.execute(
            'INSERT INTO interactions (id, timestamp, workload, model, messages, response, topic, partition, "offset", '
            'received_at) VALUES ($1, $2, $3, \'m\', \'[{"role": "user", "content": "How long?"}]\', \'Three days.\', '
            "'t', 0, 0, $2)",
            [identity, NOW, workload],
        )
    said = [
        ("a", "correction", '"4 days."', "user", 0),
        ("a", "correction", '"3 days."', "user", 1),
        ("a", "same", "false", "expert", 0),
        ("a", "same", "true", "expert", 1),
        ("b", "correction", '"4 days."', "expert", 0),
        ("b", "same", "true", "user", 0),  # nobody asked users
        ("c", "same", "true", "expert", 0),  # the same as what?
        ("d", "correction", '"4 days."', "expert", 0),
        ("d", "same", "false", "expert", 0),
        ("e", "correction", '"4 days."', "expert", 0),
        ("e", "same", "false", "expert", 1),
        ("e", "correction", '"3 days."', "expert", 2),  # after the verdict, which is on the earlier one
        ("f", "same", "true", "expert", 0),
        ("f", "correction", '"4 days."', "expert", 1),
    ]
    for number, (identity, name, value, source, hour) in enumerate(said):
        warehouse.execute(
            'INSERT INTO feedback (id, timestamp, interaction_id, name, value, source, topic, partition, "offset", '
            "received_at) VALUES ($1, $2, $3, $4, $5, $6, 't', 0, 0, $2)",
            [f"f{number}", NOW + timedelta(hours=hour), identity, name, value, source],
        )
    assert exam.own(warehouse.cursor(), "support") == [
        Pair("a", "workload", "", "How long?", "3 days.", "Three days.", True)
    ]
    assert [(one.id, one.same) for one in exam.own(warehouse.cursor(), "sales")] == [("d", False)]
    assert [(one.id, one.approved, one.same) for one in exam.own(warehouse.cursor(), "e")] == [("e", "4 days.", False)]


def test_a_workload_is_examined_on_the_shipped_pairs_once_and_on_its_own_each_time(tmp_path: Path) -> None:
    warehouse = new_warehouse(tmp_path)
    cursor = warehouse.cursor()

    def granted(metric: Metric, marks: dict[str, list[Mark]], day: int = 0) -> bool:
        return exam.permission(cursor, "support", metric, marks, 0.9, NOW + timedelta(days=day)).granted

    due = exam.due(warehouse, "support", Facts())
    assert due.keys() == {exam.SHIPPED, exam.OWN}
    marks, paid = exam.taken(Facts(), due)
    assert (marks[exam.SHIPPED], paid) == (exam.examined("facts", Settings(), exam.shipped()), 0)
    assert granted(Facts(), marks)
    assert exam.newest(cursor, "support", "facts", exam.SHIPPED) == marks[exam.SHIPPED]
    assert exam.due(warehouse, "support", Facts()).keys() == {exam.OWN}
    assert granted(Facts(), {})
    assert not granted(Facts(), {exam.OWN: [Mark("workload", "en", 40, 40, 3)]})
    assert not granted(Facts(), {exam.SHIPPED: [Mark("values", "en", 40, 40, 3)]}, day=1)
    assert not granted(Facts(), {}, day=2)
    assert exam.due(warehouse, "support", Exact()) == {}
    assert granted(Exact(), {})
    assert not granted(Unjudged(), {})


def test_an_exam_counts_for_the_version_of_the_metric_that_took_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = new_warehouse(tmp_path)

    def due(metric: Metric) -> bool:
        return exam.SHIPPED in exam.due(warehouse, "support", metric)

    def take(metric: Metric) -> None:
        marks = {exam.SHIPPED: [Mark("values", "en", 40, 40, 40)]}
        exam.permission(warehouse.cursor(), "support", metric, marks, 0.9, NOW)

    take(Facts())
    assert not due(Facts())
    monkeypatch.setattr("retuned.retrain.scoring.score.version", lambda _: "another release")
    assert due(Facts())
    monkeypatch.undo()
    assert not due(Facts())

    file = tmp_path / "own_metric_of_exam.py"
    file.write_text("def same(answer, approved, example):\n    return answer == approved\n")
    monkeypatch.syspath_prepend(tmp_path)
    take(Custom("own_metric_of_exam:same"))
    assert not due(Custom("own_metric_of_exam:same"))
    file.write_text("def same(answer, approved, example):\n    return 1\n")
    assert due(Custom("own_metric_of_exam:same"))

    judged = EvaluateSettings(judge_url="http://localhost:1", judge_model="m")
    take(Judge("", judged))
    assert not due(Judge("", judged))
    assert due(Judge("Prices must be equal.", judged))
    assert due(Judge("", judged, "answers customers of a shop"))
    take(staged(Facts(), Judge("", judged)))
    assert not due(staged(Facts(), Judge("", judged)))
    assert due(staged(Facts(), Judge("Prices must be equal.", judged)))


def test_marks_stand_in_the_folder_of_an_evaluation(tmp_path: Path) -> None:
    assert exam.read(tmp_path) == {}
    (tmp_path / exam.FILE).write_text(json.dumps({exam.OWN: [asdict(Mark("workload", "en", 4, 3, 2))]}))
    assert exam.read(tmp_path) == {exam.OWN: [Mark("workload", "en", 4, 3, 2)]}
