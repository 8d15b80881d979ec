"""Requests that go to the incumbent by rule, whichever version is in service."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.daemon.doors import FakeDaemon, Place
from fixtures.daemon.gateways import Answer, answered, break_off, gateway, model_server, published, route
from fixtures.kafka.brokers import Broker, until
from fixtures.servers.incumbents import DATED, INCUMBENT, MODEL, OWN, Around, around_it, dated, error
from retuned.daemon.http_settings import HttpSettings
from retuned.retrain.release.assignment import bucket

LONG, FRENCH = "How long does it take? " * 10, "Combien de temps est-ce que cela prend, s'il vous plaît ?"
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
RULES = {"longer_than": 200, "tools": True, "languages": ["en"], "helpful_rate": 0.9}
CANARY = {"arm": "canary", "model": "support@2", "name": "support@2", "share": 0.5}


@pytest.fixture(scope="module")
def module_around(tansu: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Around]:
    with around_it(tmp_path_factory.mktemp("cascade"), tansu, cascade=RULES) as made:
        yield made


@pytest.fixture
def around(module_around: Around) -> Around:
    module_around.vendor.answer, module_around.own.answer = dated, answered
    module_around.route(OWN)
    return module_around


def sure(logprob: float) -> Any:
    """A model server whose answers have this log-probability for each token, where they are asked for."""

    def answer(handler: Any, asked: dict[str, Any]) -> None:
        found = {"content": [{"token": "a", "logprob": logprob}, {"token": "b", "logprob": logprob}]}
        choice = {"index": 0, "message": {"role": "assistant", "content": "30 days."}, "finish_reason": "stop"}
        choice["logprobs"] = found if asked.get("logprobs") else None
        handler.json(200, {"id": "c1", "object": "chat.completion", "model": asked["model"], "choices": [choice]})

    return answer


@pytest.mark.parametrize(
    ("rule", "question", "more"),
    [
        ("length", LONG, {}),
        ("tools", "How long?", {"tools": TOOLS}),
        ("language", FRENCH, {}),
        ("language", "どのくらいかかりますか", {}),
    ],
)
def test_a_rule_on_the_request_sends_it_to_the_incumbent(
    around: Around, rule: str, question: str, more: dict[str, Any]
) -> None:
    answer = around.ask("c-1", question, **more)
    assert answer.parse().model == DATED
    assert (answer.headers["X-Retuned-Model"], answer.headers["X-Retuned-Cascade"]) == ("support@cascade", rule)
    assert "X-Retuned-Fallback" not in answer.headers
    event = around.event(answer.headers["X-Retuned-Interaction"])
    assert (event["model"], event["attributes"]["cascade"]) == ("support@cascade", rule)
    assert event["cost"] > 0
    assert not around.own.requests


def test_all_arms_leave_out_the_same_requests(around: Around) -> None:
    around.route(CANARY, INCUMBENT | {"share": 0.5}, experiment="e1")
    conversations = [f"c-{number}" for number in range(20)]
    assert {bucket("e1", one) < 5_000 for one in conversations} == {True, False}
    for conversation in conversations:
        answer = around.ask(conversation, LONG)
        assert answer.headers["X-Retuned-Model"] == "support@cascade"
    assert "assignment" not in around.event(answer.headers["X-Retuned-Interaction"])["attributes"]


def test_a_version_answers_what_the_incumbent_fails_to_answer_by_rule(around: Around) -> None:
    around.vendor.answer = error(503, "overloaded")
    answer = around.ask("c-1", LONG)
    assert answer.headers["X-Retuned-Model"] == "support@1"
    assert answer.headers["X-Retuned-Fallback"] == "support@cascade failed"
    assert "cascade" not in around.event(answer.headers["X-Retuned-Interaction"]).get("attributes", {})


def test_confidence_is_recorded_and_hidden_from_an_app_that_did_not_ask_for_it(around: Around) -> None:
    around.own.answer = sure(-2.5)
    answer = around.ask()
    assert answer.parse().choices[0].logprobs is None
    assert answer.headers["X-Retuned-Model"] == "support@1"
    assert around.event(answer.headers["X-Retuned-Interaction"])["attributes"]["confidence"] == -2.5
    kept = around.ask(logprobs=True).parse().choices[0].logprobs
    assert [token.logprob for token in kept.content] == [-2.5, -2.5]
    around.own.answer = answered
    assert {chunk.model for chunk in around.stream()} == {"support@1"}  # a stream passes on as it is


def test_a_server_without_log_probabilities_gets_the_request_as_the_app_sent_it(around: Around) -> None:
    def refuse(handler: Any, asked: dict[str, Any]) -> None:
        (error(400, "logprobs are not supported") if "logprobs" in asked else answered)(handler, asked)

    around.own.answer = refuse
    answer = around.ask()
    assert answer.headers["X-Retuned-Model"] == "support@1"
    assert "confidence" not in around.event(answer.headers["X-Retuned-Interaction"]).get("attributes", {})
    assert not around.vendor.requests


def test_the_incumbent_replaces_an_answer_that_the_version_is_less_sure_of(around: Around) -> None:
    around.own.answer = sure(-0.25)
    around.daemon.routed["workloads"]["support"]["confident"] = {"support@1": -0.5, "support@2": -0.1}
    assert around.ask().headers["X-Retuned-Model"] == "support@1"
    around.own.answer = sure(-2.5)
    until(lambda: around.ask().headers["X-Retuned-Model"] != "support@1")
    answer = around.ask()
    assert answer.parse().model == DATED
    assert answer.headers["X-Retuned-Cascade"] == "confidence"
    assert answer.headers["X-Retuned-Model"] == "support@1+cascade"
    event = around.event(answer.headers["X-Retuned-Interaction"])
    assert event["attributes"]["cascade"] == "confidence"
    assert event["attributes"]["incumbent"] == DATED
    assert not any(b"logprobs" in body for *_, body in around.vendor.requests)
    for fault in (error(503, "overloaded"), error(401, "no key")):
        around.vendor.answer = fault
        answer = around.ask()
        assert (answer.headers["X-Retuned-Model"], answer.parse().choices[0].message.content) == (
            "support@1",
            "30 days.",
        )


@pytest.mark.parametrize("fault", [error(503, "overloaded"), lambda handler, _: break_off(handler)])
def test_an_incumbent_that_failed_is_not_asked_again_in_place_of_an_uncertain_answer(
    around: Around, fault: Answer
) -> None:
    around.own.answer = sure(-2.5)
    around.route(CANARY, INCUMBENT | {"share": 0.5}, experiment="e1", confident={"support@2": -5.0})
    around.daemon.routed["workloads"]["support"]["confident"] = {"support@2": -0.5}
    canarys, incumbents = (
        next(c for c in map(str, range(99)) if (bucket("e1", c) < 5_000) is is_) for is_ in (True, False)
    )
    until(lambda: around.ask(canarys).headers["X-Retuned-Model"] == "support@2+cascade")
    around.vendor.answer = fault
    around.vendor.requests.clear()
    assert around.ask(incumbents).headers["X-Retuned-Model"] == "support@2"
    assert len(around.vendor.requests) == 1


@pytest.mark.parametrize(
    ("content", "asked"),
    [("", {}), ("Within 30", {"response_format": {"type": "json_object"}})],
    ids=["empty", "not the JSON that was asked for"],
)
def test_the_incumbent_replaces_an_answer_that_is_surely_of_no_use(
    around: Around, content: str, asked: dict[str, Any]
) -> None:
    def said(text: str) -> Any:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return lambda handler, call: handler.json(200, {"id": "c1", "model": call["model"], "choices": [choice]})

    around.own.answer = said(content)
    answer = around.ask(**asked)
    assert (answer.headers["X-Retuned-Model"], answer.headers["X-Retuned-Cascade"]) == ("support@1+cascade", "invalid")
    assert around.event(answer.headers["X-Retuned-Interaction"])["attributes"]["cascade"] == "invalid"
    around.own.answer = said('{"days": 30}')
    assert around.ask(**asked).headers["X-Retuned-Model"] == "support@1"


def labelled(**answers: str) -> Answer:
    """Answers with a label for each model."""

    def answer(handler: Any, asked: dict[str, Any]) -> None:
        message = {"role": "assistant", "content": answers[asked["model"].replace("@", "_")]}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        handler.json(200, {"id": "c1", "model": asked["model"], "choices": [choice]})

    return answer


def test_the_incumbent_replaces_a_label_that_the_version_invented(around: Around) -> None:
    around.own.answer = labelled(support_1="Refund.")
    around.route(OWN, labels={"support@1": ["report_lost_phone", "refund"]})
    around.own.answer = labelled(support_1="reportlostphone")
    until(lambda: around.ask().headers["X-Retuned-Model"] != "support@1")
    answer = around.ask()
    assert (answer.headers["X-Retuned-Model"], answer.headers["X-Retuned-Cascade"]) == ("support@1+cascade", "invalid")
    assert answer.parse().model == DATED
    around.vendor.answer = error(503, "overloaded")
    answer = around.ask()
    assert answer.headers["X-Retuned-Model"] == "support@1"
    assert answer.parse().choices[0].message.content == "reportlostphone"


def test_without_an_incumbent_the_version_before_it_replaces_an_invalid_answer(tmp_path: Path, tansu: Broker) -> None:
    daemon = FakeDaemon()
    place = Place(HttpSettings(port=0), daemon)
    champion = OWN | {"model": "support@2", "name": "support@2"}
    routed = route("support") | {"arms": [champion], "previous": {"model": "support@1", "name": "support@1"}}
    daemon.routed = {"workloads": {"support": routed | {"labels": {"support@2": ["refund"]}}}}
    as_json = {"response_format": {"type": "json_object"}}
    try:
        with (
            model_server("base", "support@1", "support@2") as own,
            gateway(tmp_path, tansu, own, http={"port": place.port}) as made,
        ):

            def ask(**more: Any) -> Any:
                return made.client().chat.completions.with_raw_response.create(model="support", messages=[], **more)

            own.answer = labelled(support_1="refund", support_2="invented")
            answer = ask()
            assert answer.parse().choices[0].message.content == "refund"
            assert answer.headers["X-Retuned-Model"] == "support@1"
            assert answer.headers["X-Retuned-Fallback"] == "support@2 gave an invalid answer"
            (event,) = published(tansu, made.topics["interactions"])
            assert (event["model"], event["response"]) == ("support@1", "refund")
            assert made.metric("fallbacks_total", model_name="support@1") == 1
            own.answer = labelled(support_1='{"days": 30}', support_2='{"days": 3')
            assert ask(**as_json).headers["X-Retuned-Model"] == "support@1"
            own.answer = labelled(support_1="refund", support_2="refund")
            assert ask().headers["X-Retuned-Model"] == "support@2"
            own.models.remove("support@1")
            own.answer = labelled(support_2="invented")
            until(lambda: ask().parse().choices[0].message.content == "invented")
            assert "X-Retuned-Fallback" not in ask().headers
    finally:
        place.server.stop()


def test_without_rules_a_request_is_not_changed(tmp_path: Path, tansu: Broker) -> None:
    with around_it(tmp_path, tansu) as around:
        around.route(OWN, confident={"support@1": 0.0})
        around.own.answer = sure(-2.5)
        assert around.ask("c-1", LONG).headers["X-Retuned-Model"] == "support@1"
        assert b"logprobs" not in around.own.requests[-1][2]
        assert MODEL not in around.own.asked()
