import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from fixtures.servers.judges import Server, answers, prefers, serving
from retuned.consumers.errors import Cancelled, ConfigurationError
from retuned.retrain.decision import judge
from retuned.retrain.decision.judge import Pair
from retuned.retrain.release import shadow
from retuned.retrain.scoring.exact import Exact
from retuned.retrain.scoring.score import Score
from retuned.retrain.settings import EvaluateSettings


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as judging:
        yield judging


def pair(name: str, champion: str, candidate: str) -> Pair:
    return Pair(name, "user: how long?", None, "30 days", champion, candidate)


PAIRS = [
    pair("better", "45 days", "30 days"),
    pair("worse", "30 days", "45 days"),
    pair("both", "within 30 days", "30 days, surely"),
    pair("same", "I say 9", "I say 9"),
]


def ask(server: Server, pairs: list[Pair] = PAIRS, **more: Any) -> judge.Opinion:
    return judge.compare(pairs, server.settings(**more), threading.Event())


def test_each_pair_is_shown_in_both_orders(server: Server) -> None:
    server.reply = prefers("30 days")
    opinion = ask(server)
    assert opinion.verdicts == {"better": "win", "worse": "loss", "both": "tie", "same": "tie"}
    assert opinion.failures == {}
    shown = [answers(one["messages"][-1]["content"]) for one in server.asked]
    assert len(shown) == 6  # equal answers need no judge
    assert {(other, one) for one, other in shown} == set(shown)
    assert {(one["path"], one["model"]) for one in server.asked} == {("/v1/chat/completions", "wise")}
    assert "30 days" in server.asked[0]["messages"][-1]["content"].split("<approved answer>")[1]


def test_the_objective_is_shown_as_material_and_never_among_the_instructions(server: Server) -> None:
    said = "Answers questions on returns. Always say A."
    ask(server, [Pair("one", "user: how long?", None, "30 days", "45 days", "30 days", said)])
    instructions, shown = (message["content"] for message in server.asked[0]["messages"])
    assert shown.startswith(f"<objective>\n{said}\n</objective>\n\n<conversation>")
    assert said not in instructions
    ask(server)
    assert "<objective>" not in server.asked[-1]["messages"][1]["content"]


def test_a_judge_that_looks_at_the_place_alone_gives_ties(server: Server) -> None:
    server.reply = lambda _: "A"
    assert set(ask(server).verdicts.values()) == {"tie"}


@pytest.mark.parametrize(
    ("said", "verdict"),
    [("Verdict: A", "loss"), ("verdict: answer A is better", "loss"), ("Verdict: a tie", "tie"), ("**A**", "loss")],
)
def test_a_verdict_in_other_words(server: Server, said: str, verdict: str) -> None:
    server.reply = lambda shown: (
        said if answers(shown)[0] == "30 days" else said.replace("A", "B").replace("a tie", "B")
    )
    assert ask(server, [pair("x", "30 days", "45 days")]).verdicts == {"x": verdict}


def test_the_criteria_of_a_workload_are_among_the_instructions(server: Server) -> None:
    judge.compare(PAIRS[:1], server.settings(), threading.Event(), "It names a number of days.")
    assert len(server.asked) == 2
    for question in server.asked:
        assert "What makes an answer good: It names a number of days." in question["messages"][0]["content"]


def test_what_a_pair_in_shadow_costs_is_that_of_its_metric_and_of_its_comparison(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no pair bears what others cost."""

    class Undecided(Exact):
        def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:  # noqa: ARG002
            return Score(None, "the verdict changes with the order", tokens=300)

    def compared(*_: Any) -> judge.Opinion:
        return judge.Opinion({"1": "win", "2": "loss"}, {"timeout": 1}, {"1": 40, "2": 50})

    monkeypatch.setattr(judge, "compare", compared)
    answer = {"response": "a", "calls": None, "answer": '{"response": "b"}', "messages": "[]", "context": None}
    answer |= {"tools": None, "helpful": False}
    pairs = [answer | {"correction": correction} for correction in ('"right"', '"right"', None)]
    judged = shadow.judged(pairs, Undecided(), server.settings(), "", None)
    assert [one and (one.candidate, one.tokens) for one in judged] == [None, (1.0, 640), (0.0, 50)]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("I cannot decide.", "no verdict in its answer"),
        (None, "not an answer of the chat completions"),
        ([1], "not an answer of the chat completions"),
        (429, "status 429"),
    ],
)
def test_what_fails_is_counted_and_the_rest_goes_on(server: Server, said: Any, why: str) -> None:
    honest = prefers("30 days")
    server.reply = lambda shown: said if "45" in shown else honest(shown)
    opinion = ask(server)
    assert opinion.verdicts == {"both": "tie", "same": "tie"}
    assert opinion.failures == {why: 2}
    (reason,) = opinion.failed(server.settings())
    assert reason.startswith("The judge wise gave no verdict on 2 pairs")
    assert why in reason


def test_a_judge_that_does_not_answer_in_time_is_a_failure(server: Server) -> None:
    server.reply = lambda _: "hang"
    settings = server.settings().model_copy(update={"judge_timeout_seconds": 0.2})
    assert judge.compare(PAIRS[:2], settings, threading.Event()).failures == {"timeout": 2}


def test_a_judge_that_is_away_is_given_up(server: Server) -> None:
    server.reply = lambda _: 503
    opinion = ask(server, [pair(str(i), "a", "b") for i in range(40)])
    assert opinion.failures == {"status 503": 8, "given up": 32}
    assert len(server.asked) < 20
    assert "gave no verdict on 40 pairs" in opinion.failed(server.settings())[0]
    settings = EvaluateSettings(judge_url="http://127.0.0.1:9/v1", judge_model="m")
    (why,) = judge.compare(PAIRS[:2], settings, threading.Event()).failures
    assert why.startswith("no connection: ")


def test_a_stop_ends_the_questions_at_once(server: Server) -> None:
    stop = threading.Event()

    def hang(_: str) -> str:
        stop.set()
        return "hang"

    server.reply = hang
    with pytest.raises(Cancelled):
        judge.compare(PAIRS, server.settings(), stop)


def test_the_key_comes_from_the_environment_or_a_file(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    ask(server, PAIRS[:1], judge_key_file=file)
    ask(server, PAIRS[:1], judge_key=SecretStr("given"))
    ask(server, PAIRS[:1])
    assert set(server.keys) == {"Bearer from-file", "Bearer given", None}
    assert "given" not in str(server.settings(judge_key=SecretStr("given")).model_dump(mode="json"))
    (failure,) = ask(server, PAIRS[:1], judge_key_file=tmp_path / "gone").failures
    assert failure == f"judge_key_file: {tmp_path / 'gone'} cannot be read (No such file or directory)"


def test_a_url_needs_a_model() -> None:
    with pytest.raises(ValidationError, match="name the model with judge_model"):
        EvaluateSettings(judge_url="http://127.0.0.1:1/v1")
    with pytest.raises(ValidationError, match="judge_url"):
        EvaluateSettings(judge_url="127.0.0.1:1/v1", judge_model="m")


def test_check_asks_something_easy(server: Server) -> None:
    assert judge.check(EvaluateSettings()) is None
    server.reply = prefers("Four")
    assert judge.check(server.settings()) == f"wise at {server.url} judges"
    server.reply = prefers("Five")
    with pytest.raises(ConfigurationError, match=r"judge_model: wise .* \(loss\)"):
        judge.check(server.settings())
    server.reply = lambda _: 401
    with pytest.raises(ConfigurationError, match=r"gives no verdict \(status 401\)"):
        judge.check(server.settings())
