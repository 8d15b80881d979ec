"""A judge over HTTP: what it is asked, what its answer means, and what becomes of failures."""

import json
import logging
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from fixtures.servers.judges import Server, asked, serving
from retuned.consumers.errors import Cancelled, ConfigurationError
from retuned.monitors.hallucination.opinions import Detection, Opinions, check
from retuned.monitors.hallucination.scorer import Answer
from retuned.monitors.settings import QualitySettings

NOW = datetime(2026, 3, 2, 9)
HOUR = timedelta(hours=1)


def supported(yes: bool) -> str:
    return json.dumps({"supported": "yes" if yes else "no"})


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.reply = lambda shown: supported("false" not in shown)
        yield running


def opinions(server: Server, stop: threading.Event | None = None, **settings: object) -> Opinions:
    values = {"judge_url": server.url, "judge_model": "wise", "judge_timeout_seconds": 10} | settings
    return Opinions(QualitySettings(**values), stop or threading.Event())


def answers(true: int, false: int, name: str = "a") -> list[Answer]:
    made = [Answer(f"{name}{n}", "How long?", ("Two days.",), "It is true.") for n in range(true)]
    return made + [Answer(f"{name}-{n}", "How long?", ("Two days.",), "It is false.") for n in range(false)]


def test_what_it_does_not_support_is_an_alarm(server: Server) -> None:
    found = asked(opinions(server), answers(2, 1), NOW)
    assert sorted(found, key=lambda one: one.interaction_id) == [
        Detection("a-0", 0.0, True), Detection("a0", 1.0, False), Detection("a1", 1.0, False),
    ]  # fmt: skip
    assert "<passages>\nTwo days.\n</passages>" in server.asked[0]["messages"][1]["content"]
    assert server.asked[0]["model"] == "wise"


def test_it_answers_by_a_schema_or_else_in_one_word(server: Server) -> None:
    judge = opinions(server)
    asked(judge, answers(1, 0), NOW)
    schema = server.asked[-1]["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"supported": {"type": "string", "enum": ["yes", "no"]}}
    server.accepts = lambda body: "response_format" not in body
    server.reply = lambda shown: "No." if "false" in shown else "Yes."
    (found,) = asked(judge, answers(0, 1), NOW + HOUR)
    assert found.alarm
    assert "one word" in server.asked[-1]["messages"][0]["content"]
    # What was refused once is not asked for again.
    before = len(server.asked)
    asked(judge, answers(1, 0, "b"), NOW + 2 * HOUR)
    assert len(server.asked) == before + 1


@pytest.mark.parametrize(
    ("reply", "alarm"),
    [
        ("<think>\nYes? No.\n</think>\nYes", False),
        ("<think>\nYes, or no?", None),  # cut off within its thoughts
        ("I cannot tell.", None),
        (None, None),
    ],
)
def test_a_reply_that_is_no_verdict_is_none(server: Server, reply: str | None, alarm: bool | None) -> None:
    server.reply = lambda _: reply
    assert [one.alarm for one in asked(opinions(server), answers(1, 0), NOW)] == ([] if alarm is None else [alarm])


def test_log_probabilities_make_the_score(server: Server) -> None:
    server.reply, server.odds = (lambda _: "yes"), (lambda _: 1.0)
    (found,) = asked(opinions(server), answers(1, 0), NOW)
    assert found.score == pytest.approx(0.731, abs=0.001)


def test_the_objective_is_shown_as_material(server: Server) -> None:
    said = "Answers questions on parcels."
    asked(opinions(server), [Answer("a", "How long?", ("Two days.",), "It is true.", said)], NOW)
    instructions, shown = (message["content"] for message in server.asked[0]["messages"])
    assert shown.startswith(f"<objective>\n{said}\n</objective>\n\n<question>")
    assert said not in instructions


def test_it_is_due_every_so_often(server: Server) -> None:
    judge = opinions(server, judging_every_seconds=3_600)
    due = [len(list(judge.due("support", NOW + hours * HOUR))) for hours in (0, 0.5, 1, 1.5)]
    assert due == [1, 0, 1, 0]
    assert len(list(judge.due("billing", NOW + 1.5 * HOUR))) == 1


def test_a_clock_that_is_set_back_silences_nobody(server: Server) -> None:
    judge = opinions(server, judging_every_seconds=3_600)
    due = [len(list(judge.due("support", NOW + hours * HOUR))) for hours in (48, 0, 0.5, 1)]
    assert due == [1, 1, 0, 1]


def test_a_judge_that_is_away_costs_its_figure_and_is_logged_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    judge = opinions(server)
    server.reply = lambda _: 503
    with caplog.at_level(logging.WARNING):
        for hour in range(3):
            assert asked(judge, answers(20, 0), NOW + hour * HOUR) == []
    (told,) = [record.getMessage() for record in caplog.records]
    assert "status 503" in told
    assert len(server.asked) < 3 * 20
    server.reply = lambda _: supported(True)
    assert len(asked(judge, answers(20, 0), NOW + 4 * HOUR)) == 20


def test_a_judge_that_hangs_is_waited_for_so_long(server: Server) -> None:
    judge = opinions(server, judging_seconds=0.3)
    server.reply = lambda shown: "hang" if "false" in shown else supported(True)
    assert len(asked(judge, answers(3, 1), NOW)) == 3


def test_stopping_ends_it(server: Server) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        asked(opinions(server, stop), answers(3, 1), NOW)


def test_without_a_judge_there_is_nothing_to_ask() -> None:
    assert Opinions(QualitySettings(), threading.Event()).all == []


def test_a_check_asks_something_easy(server: Server) -> None:
    assert check(QualitySettings()) is None
    settings = opinions(server).settings
    server.reply = lambda shown: supported("nine" not in shown)
    assert check(settings) == f"wise at {server.url} judge samples"
    server.reply = lambda _: supported(True)
    with pytest.raises(ConfigurationError, match="wise does not tell two days from nine"):
        check(settings)
    server.reply = lambda _: 401
    with pytest.raises(ConfigurationError, match=r"gives no verdict \(status 401\)"):
        check(settings)


def test_the_former_name_of_the_detector_works_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        settings = QualitySettings.model_validate({"nli_model": "/models/nli"})
    assert str(settings.detector) == "/models/nli"
    assert "quality.nli_model is deprecated" in caplog.text
