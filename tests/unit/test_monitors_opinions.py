"""Second opinions over HTTP: who is asked what, and what becomes of it."""

import logging
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from judges import Server, rates, serving

from retuned.consumers.errors import Cancelled, ConfigurationError
from retuned.monitors.hallucination.opinions import Opinions, check
from retuned.monitors.hallucination.scorer import Answer
from retuned.monitors.settings import QualitySettings

NOW = datetime(2026, 3, 2, 9)
HOUR = timedelta(hours=1)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.reply = lambda shown: "Verdict: " + ("invented" if "false" in shown else "supported")
        yield running


def opinions(server: Server, stop: threading.Event | None = None, **settings: object) -> Opinions:
    values = {"judge_url": server.url, "judge_model": "wise", "judge_timeout_seconds": 10} | settings
    return Opinions(QualitySettings(**values), stop or threading.Event())


def answers(true: int, false: int, name: str = "a") -> list[Answer]:
    made = [Answer(f"{name}{n}", "How long?", ("Two days.",), "It is true.") for n in range(true)]
    return made + [Answer(f"{name}-{n}", "How long?", ("Two days.",), "It is false.") for n in range(false)]


def test_the_rate_is_of_what_the_judge_says(server: Server) -> None:
    judge = opinions(server)
    rate, low, high, n = rates(judge, [], answers(6, 2), NOW)["llm"]
    assert (rate, n) == (0.25, 8)
    assert 0 < low < rate < high < 1
    assert "<passages>\nTwo days.\n</passages>" in server.asked[0]["messages"][1]["content"]
    assert server.asked[0]["model"] == "wise"


def test_the_objective_is_shown_as_material(server: Server) -> None:
    said = "Answers questions on parcels."
    rates(opinions(server), [], [Answer("a", "How long?", ("Two days.",), "It is true.", said)], NOW)
    instructions, shown = (message["content"] for message in server.asked[0]["messages"])
    assert shown.startswith(f"<objective>\n{said}\n</objective>\n\n<question>")
    assert said not in instructions


def test_no_answer_is_shown_twice_and_new_ones_wait(server: Server) -> None:
    judge = opinions(server, judging_every_seconds=3_600)
    given = answers(4, 0)
    rates(judge, [], given, NOW)
    assert rates(judge, [], given, NOW + 2 * HOUR)["llm"][3] == 4
    assert len(server.asked) == 4
    given += answers(0, 4, name="b")
    assert rates(judge, [], given, NOW + 2.5 * HOUR)["llm"][:1] == (0.0,)
    rate, *_, n = rates(judge, [], given, NOW + 3 * HOUR)["llm"]
    assert (rate, n, len(server.asked)) == (0.5, 8, 8)


def test_doubtful_answers_are_shown_more_and_weigh_what_they_are(server: Server) -> None:
    doubtful, clear = answers(0, 20, "doubtful"), answers(180, 0)
    rate, low, high, n = rates(opinions(server, judged_answers=20), doubtful, clear, NOW)["llm"]
    assert sum("false" in asked["messages"][1]["content"] for asked in server.asked) == 10
    assert (rate, n) == (pytest.approx(0.1), 20)  # of those that were shown, it is a half
    assert low < 0.1 < high < 0.4


def test_a_judge_that_is_away_costs_its_figure_and_is_told_of_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    judge = opinions(server)
    server.reply = lambda _: 503
    with caplog.at_level(logging.WARNING):
        for hour in range(3):
            assert rates(judge, [], answers(20, 0), NOW + hour * HOUR) == {}
    (told,) = [record.getMessage() for record in caplog.records]
    assert "status 503" in told
    assert len(server.asked) < 3 * 20
    server.reply = lambda _: "Verdict: supported"
    assert rates(judge, [], answers(20, 0), NOW + 4 * HOUR)["llm"][0] == 0.0


def test_a_judge_that_hangs_is_waited_for_so_long(server: Server) -> None:
    judge = opinions(server, judging_seconds=0.3)
    server.reply = lambda shown: "hang" if "false" in shown else "Verdict: supported"
    assert rates(judge, [], answers(3, 1), NOW)["llm"][3] == 3


def test_stopping_ends_it(server: Server) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        rates(opinions(server, stop), [], answers(3, 1), NOW)


def test_without_a_judge_there_is_nothing_to_ask() -> None:
    assert not Opinions(QualitySettings(), threading.Event())


def test_a_check_asks_something_easy(server: Server) -> None:
    assert check(QualitySettings()) is None
    settings = opinions(server).settings
    server.reply = lambda shown: "Verdict: " + ("invented" if "nine" in shown else "supported")
    assert check(settings) == f"wise at {server.url} judge samples"
    server.reply = lambda _: "Verdict: supported"
    with pytest.raises(ConfigurationError, match="wise does not tell two days from nine"):
        check(settings)
    server.reply = lambda _: 401
    with pytest.raises(ConfigurationError, match=r"gives no verdict \(status 401\)"):
        check(settings)
