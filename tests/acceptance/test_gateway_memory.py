"""The memory of corrections at the gateway, as an app meets it with OpenAI's client."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.daemon.gateways import KEY, WORDS, Gateway, ModelServer, answered, gateway, model_server, published, route
from fixtures.kafka.brokers import Broker, until
from fixtures.servers.memory_feeds import CHAMPION, MemoryDouble, memory_double
from retuned.consumers.formats.events import Bounds, decode
from retuned.consumers.settings import IngestSettings
from retuned.consumers.warehouse.connection import utc_now

QUESTION, ANSWER = "How long do I have to return shoes?", "60 days,\nfrom the day they arrive."
MESSAGES: Any = [{"role": "system", "content": "Be short."}, {"role": "user", "content": QUESTION}]


class Around:
    """What a gateway with a memory has around it."""

    def __init__(self, made: Gateway, server: ModelServer, vendor: ModelServer, daemon: MemoryDouble, broker: Broker):
        self.gateway, self.server, self.vendor, self.daemon, self.broker = made, server, vendor, daemon, broker

    def use(self, mode: str, answer: str = ANSWER, share: float = 0.0) -> None:
        """Sets the mode and the entry, and waits until the gateway has them."""
        self.daemon.use(mode, share=share)
        self.daemon.add(QUESTION, answer, messages=MESSAGES)
        self.daemon.asked.clear()
        last = self.daemon.entries[-1]["sequence"]
        until(lambda: self.daemon.asked.count(last) > 1)

    def ask(self, conversation: str = "c-1", model: str = "support", **more: Any) -> Any:
        """The answer of OpenAI's client, with its headers."""
        headers = {"X-Retuned-Conversation": conversation}
        with self.gateway.client() as app:
            create = app.chat.completions.with_raw_response.create
            return create(model=model, messages=MESSAGES, extra_headers=headers, **more)

    def sent(self, server: ModelServer | None = None) -> list[list[dict[str, Any]]]:
        """The messages that a model server got in each request."""
        return [json.loads(body).get("messages") for *_, body in (server or self.server).requests]

    def event(self, interaction: str) -> dict[str, Any]:
        """The event that was published with this id, and that the daemon understands."""
        topic = self.gateway.topics["interactions"]
        (found,) = (one for one in published(self.broker, topic, interaction) if one["id"] == interaction)
        decode("interactions", json.dumps(found).encode(), Bounds.of(IngestSettings(), utc_now()))
        return found


@pytest.fixture(scope="module")
def module_around(tansu: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Around]:
    folder = tmp_path_factory.mktemp("memory")
    (folder / "keys").write_text(f"{KEY}\n")
    with (
        memory_double() as daemon,
        model_server("base", "support@1", "support@2") as server,
        model_server("mini") as vendor,
    ):
        sections = {
            "gateway": {
                "daemon_url": daemon.url, "memory_poll_seconds": 0.1, "feedback_keys_file": str(folder / "keys"),
            },
            "workloads": {"bought": {"incumbent": {"url": vendor.url, "model": "mini"}}},
        }  # fmt: skip
        daemon.use("context")
        with gateway(folder, tansu, server, **sections) as made:
            yield Around(made, server, vendor, daemon, tansu)


@pytest.fixture
def around(module_around: Around) -> Around:
    module_around.server.answer = answered
    module_around.daemon.routed = {"support": CHAMPION}
    module_around.use("context")
    module_around.server.requests.clear()
    module_around.vendor.requests.clear()
    return module_around


def test_the_approved_answer_reaches_the_model_and_the_event_has_the_apps_own_request(around: Around) -> None:
    answer = around.ask()
    assert answer.headers["X-Retuned-Memory"] == "e-1"
    assert answer.parse().choices[0].message.content == f"{''.join(WORDS)} (support@1)"
    ((system, added, user),) = around.sent()
    assert [system, user] == MESSAGES
    assert added["role"] == "system"
    assert added["content"].endswith("> 60 days,\n> from the day they arrive.")
    event = around.event(answer.headers["X-Retuned-Interaction"])
    assert event["messages"] == MESSAGES
    assert event["attributes"]["memory"] == {
        "entries": ["e-1"], "held_out": [], "mode": "context", "match": "same", "similarity": 1.0,
    }  # fmt: skip


def test_a_stream_is_helped_too(around: Around) -> None:
    with around.gateway.client() as app:
        chunks = list(app.chat.completions.create(model="support", messages=MESSAGES, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(WORDS)
    assert len(around.sent()[0]) == 3


def test_another_question_a_named_version_and_a_text_completion_are_passed_on_untouched(around: Around) -> None:
    named = around.ask(model="support@1")
    assert "X-Retuned-Memory" not in named.headers
    other = around.gateway.chat("Do you sell boots?")
    assert "X-Retuned-Memory" not in other.headers
    around.gateway.post("/v1/completions", {"model": "support", "prompt": QUESTION})
    *_, text = around.server.requests
    assert around.sent()[0] == MESSAGES
    assert len(around.sent()[1]) == 1
    assert json.loads(text[2])["prompt"] == QUESTION
    assert "memory" not in around.event(other.headers["X-Retuned-Interaction"]).get("attributes", {})


def test_a_held_out_conversation_gets_the_models_own_answer_and_is_marked(around: Around) -> None:
    around.use("answer", share=0.5)
    found = {name: around.ask(name) for name in ("c-1", "c-2", "c-3", "c-4", "c-5", "c-6", "c-7", "c-8")}
    helped = {name for name, answer in found.items() if "X-Retuned-Memory" in answer.headers}
    assert 0 < len(helped) < 8
    assert around.sent() == [MESSAGES] * (8 - len(helped))
    again = {name for name in found if "X-Retuned-Memory" in around.ask(name).headers}
    assert again == helped
    held_out = next(answer for name, answer in found.items() if name not in helped)
    event = around.event(held_out.headers["X-Retuned-Interaction"])
    assert (event["attributes"]["memory"]["entries"], event["attributes"]["memory"]["held_out"]) == ([], ["e-1"])


@pytest.mark.parametrize("streams", [False, True])
def test_the_gateway_answers_the_same_question_itself(around: Around, streams: bool) -> None:
    around.use("answer")
    if streams:
        with (
            around.gateway.client() as app,
            app.chat.completions.with_streaming_response.create(
                model="support", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            ) as answer,
        ):
            chunks, headers = list(answer.parse()), answer.headers
        assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == ANSWER
        assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "stop"
        assert chunks[-1].usage.total_tokens == 0
        assert {one.model for one in chunks} == {"support@1"}
    else:
        answer = around.ask()
        completion, headers = answer.parse(), answer.headers
        assert (completion.choices[0].message.content, completion.model) == (ANSWER, "support@1")
    assert around.server.requests == []
    assert (headers["X-Retuned-Memory"], headers["X-Retuned-Model"]) == ("e-1", "support@1")
    event = around.event(headers["X-Retuned-Interaction"])
    assert (event["response"], event["model"], event["messages"]) == (ANSWER, "support@1", MESSAGES)
    assert event["attributes"]["memory"]["mode"] == "answer"
    assert event["finish_reason"] == "stop"
    voted = around.gateway.post(
        "/v1/feedback", {"token": headers["X-Retuned-Feedback-Token"], "name": "helpful", "value": True}
    )
    assert voted.status_code == 202


def test_a_server_that_refuses_the_message_gets_the_apps_own_request(around: Around) -> None:
    def strict(handler: Any, asked: dict[str, Any]) -> None:
        if len(asked["messages"]) > 2:
            handler.json(400, {"error": {"message": "After the system message, roles must alternate"}})
        else:
            answered(handler, asked)

    around.server.answer = strict
    answer = around.ask()
    assert answer.parse().choices[0].message.content == f"{''.join(WORDS)} (support@1)"
    assert "X-Retuned-Memory" not in answer.headers
    assert [len(messages) for messages in around.sent()] == [3, 2]
    assert "memory" not in around.event(answer.headers["X-Retuned-Interaction"]).get("attributes", {})
    assert (around.gateway.metric("memory_lookups_total", workload="support", result="refused") or 0) > 0


def test_a_canary_and_a_shadow_candidate_get_the_same_message(around: Around) -> None:
    canary = route("support", ("canary", "2", 0.5), ("champion", "1", 0.5), experiment="e1", shadow=0.0)
    around.daemon.routed = {"support": canary}
    until(lambda: {around.ask(f"c-{n}").headers["X-Retuned-Model"] for n in range(8)} == {"support@1", "support@2"})
    assert {len(messages) for messages in around.sent()} == {3}
    candidate = {"arm": "canary", "model": "support@2", "name": "support@2", "share": 0.0}
    shadow = route("support", ("champion", "1", 1.0), experiment="e2", shadow=1.0)
    around.daemon.routed = {"support": shadow | {"arms": [candidate, *shadow["arms"]]}}
    around.server.requests.clear()

    def answered_in_shadow() -> bool:
        around.ask()
        return "support@2" in around.server.asked()

    until(answered_in_shadow)
    assert {len(messages) for messages in around.sent()} == {3}


def test_the_incumbent_gets_the_approved_answer(around: Around) -> None:
    around.daemon.use("context", workload="bought")
    around.daemon.add(QUESTION, ANSWER, "e-2", workload="bought", messages=MESSAGES)
    try:
        until(lambda: "X-Retuned-Memory" in around.ask(model="bought").headers)
        assert around.sent(around.vendor)[-1][0] == MESSAGES[0]
        assert ANSWER.splitlines()[0] in around.sent(around.vendor)[-1][1]["content"]
    finally:
        del around.daemon.modes["bought"]


def test_metrics_count_the_look_ups_by_result(around: Around) -> None:
    before = around.gateway.metric("memory_lookups_total", workload="support", result="same") or 0
    around.ask()
    assert around.gateway.metric("memory_lookups_total", workload="support", result="same") == before + 1
    assert around.gateway.metric("memory_entries", workload="support") == 1
    assert around.gateway.metric("memory_up") == 1
    assert (around.gateway.metric("memory_lookup_seconds_count") or 0) > 0


def test_with_the_memory_off_no_feed_is_requested_and_it_can_be_switched_on(
    around: Around, tansu: Broker, tmp_path: Path
) -> None:
    with memory_double() as daemon, gateway(tmp_path, tansu, around.server, gateway={"daemon_url": daemon.url}) as made:
        daemon.add(QUESTION, ANSWER)
        until(lambda: made.chat(QUESTION).status_code == 200)
        assert daemon.asked == []
        daemon.use("context")
        until(lambda: "X-Retuned-Memory" in made.chat(QUESTION).headers)
        daemon.is_away = True
        made.stop()
        made.start()
        until(lambda: made.chat(QUESTION).headers.get("X-Retuned-Memory") == "e-1")
