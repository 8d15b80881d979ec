"""The event that is made of an exchange, and how it gets to Kafka whatever it holds."""

import errno
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import MessageSizeTooLargeError
from prometheus_client import CollectorRegistry

from retuned.consumers.errors import BrokerRefused, BrokerUnavailable, RetunedError
from retuned.consumers.formats.events import BadEvent, Bounds, decode
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import IngestSettings, KafkaSettings
from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.gateway.events import buffer, publish, record
from retuned.daemon.gateway.events.buffer import Buffer
from retuned.daemon.gateway.events.publish import Publishing
from retuned.daemon.gateway.events.record import Exchange, Vote, interaction
from retuned.daemon.gateway.metrics import Metrics

CHAT = {"model": "support", "messages": [{"role": "user", "content": "How long?"}]}


def exchange(response: Any, request: Any = CHAT, **more: Any) -> Exchange:
    found: dict[str, Any] = {
        "id": "i-1",
        "timestamp": utc_now().isoformat() + "Z",
        "workload": "support",
        "model": "support@1",
        "name": "support@1",
        "conversation_id": None,
        "assignment": None,
        "request": request if isinstance(request, bytes) else json.dumps(request, indent=1).encode(),
        "response": response if isinstance(response, bytes) else json.dumps(response).encode(),
        "streamed": isinstance(response, bytes),
        "cut": None,
        "latency_seconds": 0.5,
        "first_token_seconds": None,
    }
    return Exchange(**found | more)


def whole(content: str | None, model: str | None = "support@1", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}


def stream(*deltas: dict[str, Any], finish_reason: str | None = "stop", end: bytes = b"data: [DONE]\n\n") -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices += [{"index": 0, "delta": {}, "finish_reason": finish_reason}] if finish_reason else []
    chunks = [
        {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "support@1", "choices": [choice]}
        for choice in choices
    ]
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + end


BROKEN = b"".join(
    b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode())  # type: ignore[attr-defined]
    for event in (
        {"type": "message_start", "message": {"type": "message", "model": "support@1", "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "30"}},
    )
)
"""A stream of Anthropic's API that breaks off."""


def understood(one: Exchange) -> dict[str, Any]:
    """The event, which the daemon understands."""
    event = interaction(one)
    decode("interactions", json.dumps(event).encode(), Bounds.of(IngestSettings(), utc_now()))
    return event


def test_an_answer_is_stored_under_the_name_of_its_version() -> None:
    assert understood(exchange(whole("30 days.")))["model"] == "support@1"
    base = {"model": "support@base", "name": "base"}
    assert understood(exchange(whole("30 days.", "base"), **base))["model"] == "support@base"
    assert understood(exchange(whole("30 days.", None), **base))["model"] == "support@base"


def test_an_answer_of_another_model_than_was_asked_is_stored_as_the_server_reports_it() -> None:
    assert understood(exchange(whole("30 days.", "support@2")))["model"] == "support@2"


def test_the_metadata_of_an_app_sets_no_attribute_of_the_gateway() -> None:
    mine = dict.fromkeys(
        ("assignment", "cascade", "confidence", "cut_by", "incumbent", "incumbent_model", "memory"), "x"
    )
    asked = CHAT | {"metadata": mine | {"shop": "Rome"}}
    assert understood(exchange(whole("30 days."), asked))["attributes"] == {"shop": "Rome"}
    set_by_gateway = understood(exchange(whole("30 days."), asked, rule="length", assignment=("e1", "canary")))
    assert set_by_gateway["attributes"] == {
        "shop": "Rome", "cascade": "length", "assignment": {"experiment": "e1", "arm": "canary"},
    }  # fmt: skip


def test_a_stream_is_joined() -> None:
    event = understood(exchange(stream({"content": "30"}, {"content": " days."})))
    assert (event["response"], event["finish_reason"]) == ("30 days.", "stop")


@pytest.mark.parametrize(
    "body",
    [
        stream({"content": "30"}, finish_reason=None, end=b""),
        stream({"content": "30"}, finish_reason=None, end=b'data: {"error": {"message": "out of memory"}}\n\n'),
        BROKEN,
        BROKEN + b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "?"}}\n\n',
    ],
)
def test_a_stream_without_its_end_is_marked(body: bytes) -> None:
    event = understood(exchange(body))
    assert (event["response"], event["finish_reason"], event["attributes"]) == (
        "30",
        "incomplete",
        {"cut_by": "upstream"},
    )


def calls_of(*deltas: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = understood(exchange(stream(*deltas, finish_reason="tool_calls")))["attributes"][
        "tool_calls"
    ]
    return found


def test_a_stream_is_joined_whatever_its_chunks_are_named() -> None:
    azure = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": []}
    body = b"data: " + json.dumps(azure).encode() + b"\n\n" + stream({"content": "30"}, {"content": " days."})
    for one in (body, body.replace(b"chat.completion.chunk", b""), body.replace(b"support@1", b"")):
        event = understood(exchange(one))
        assert (event["response"], event["finish_reason"], event["model"]) == ("30 days.", "stop", "support@1")


@pytest.mark.parametrize("numbered", [{}, {"index": 0}])
def test_each_call_of_a_stream_is_kept_where_the_server_does_not_number_them(numbered: dict[str, int]) -> None:
    def part(id: str | None, arguments: str, **more: str) -> dict[str, Any]:
        return {"tool_calls": [{**numbered, "id": id, "type": "function", "function": more | {"arguments": arguments}}]}

    made = calls_of(
        part("a", '{"city":', name="weather"), part("a", '"Rome"}'), part("b", "{", name="time"), part("", "}")
    )
    assert [(call["id"], call["function"]) for call in made] == [
        ("a", {"name": "weather", "arguments": '{"city":"Rome"}'}),
        ("b", {"name": "time", "arguments": "{}"}),
    ]


def test_calls_whose_pieces_alternate_are_joined_by_their_index() -> None:
    pieces = [(0, "{"), (1, "["), (0, "}"), (1, "]")]
    made = calls_of(*({"tool_calls": [{"index": n, "function": {"arguments": text}}]} for n, text in pieces))
    assert [call["function"]["arguments"] for call in made] == ["{}", "[]"]


def test_a_function_call_of_a_stream_is_kept_as_that_of_a_whole_answer_is() -> None:
    call = {"name": "lookup", "arguments": '{"q":1}'}
    (made,) = calls_of(
        {"content": None, "function_call": call | {"arguments": '{"q"'}}, {"function_call": {"arguments": ":1}"}}
    )
    (whole_made,) = understood(exchange(whole(None, function_call=call)))["attributes"]["tool_calls"]
    assert made == whole_made


def test_a_text_completion_and_its_stream_are_read() -> None:
    asked = {"model": "support", "prompt": "How long? "}
    choices = [[{"index": 0, "text": text, "finish_reason": end}] for text, end in (("30", None), (" days.", "length"))]
    chunks = [{"id": "c", "object": "text_completion", "model": "support@1", "choices": one} for one in choices]
    body = b"".join(b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n" for chunk in chunks) + b"data: [DONE]\r\n\r\n"
    event = understood(exchange(body, asked))
    assert (event["response"], event["finish_reason"]) == ("30 days.", "length")
    assert event["messages"] == [{"role": "user", "content": "How long? "}]
    assert understood(exchange(chunks[1], asked))["response"] == " days."


@pytest.mark.parametrize(
    "response", [b"", b"data: [DONE]\n\n", b"data: {\n\n", [], "text", 5, {"object": "list", "data": []}]
)
def test_what_is_no_answer_is_no_event(response: Any) -> None:
    with pytest.raises(BadEvent):
        understood(exchange(response))


class Broker(MemoryPublisher):
    """Takes what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.away, self.longest = False, 10**6
        self.refuses: dict[str, RetunedError] = {}
        self.asked = Counter[str]()

    def publish_all(self, topic: str, messages: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self.asked[topic] += 1
        if self.away:
            raise BrokerUnavailable("away")
        if topic in self.refuses:
            raise self.refuses[topic]
        if any(len(json.dumps(value)) > self.longest for _, value in messages):
            raise BrokerRefused("too large") from MessageSizeTooLargeError()
        super().publish_all(topic, messages)


class Around:
    def __init__(self, folder: Path) -> None:
        self.registry, self.broker = CollectorRegistry(), Broker()
        self.metrics = Metrics(self.registry)
        self.open(folder)

    def open(self, folder: Path) -> None:
        """As a new process does."""
        self.buffer = Buffer(folder, 10**7)
        self.publishing = Publishing(self.buffer, self.broker, KafkaSettings(expert_topic="experts"), self.metrics)

    def keep(self, *kept: record.Record) -> None:
        for one in kept:
            self.buffer.append(record.encode(one))

    def ids(self, of: str | None = None) -> list[str]:
        return [value["id"] for topic, _, value in self.broker.messages if of in (None, topic)]

    def count(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"retuned_gateway_{name}", labels)


@pytest.fixture
def around(tmp_path: Path) -> Around:
    return Around(tmp_path)


def test_each_goes_to_its_topic_with_its_conversation_as_key(around: Around) -> None:
    around.keep(
        exchange(whole("a"), id="i-1", conversation_id="c-1"),
        exchange(whole("b"), CHAT | {"user": "u-1"}, id="i-2"),
        exchange(whole("c"), id="i-3"),
        Vote("i-1", {"id": "f-1"}),
    )
    around.publishing.publish()
    assert [(topic, key, value["id"]) for topic, key, value in around.broker.messages] == [
        ("interactions", "c-1", "i-1"),
        ("interactions", "u-1", "i-2"),
        ("interactions", "i-3", "i-3"),
        ("feedback", "i-1", "f-1"),
    ]
    assert around.buffer.waiting_bytes == 0
    assert around.count("published_total", kind="interactions") == 3
    assert around.count("published_total", kind="feedback") == 1


def test_what_kafka_does_not_take_stays_and_comes_later_in_its_order(around: Around) -> None:
    around.broker.away = True
    for number in range(3):
        around.keep(exchange(whole("a"), id=f"i-{number}"))
        with pytest.raises(BrokerUnavailable):
            around.publishing.publish()
    assert around.buffer.waiting_bytes
    around.broker.away = False
    around.publishing.publish()
    assert around.ids() == ["i-0", "i-1", "i-2"]
    assert around.buffer.waiting_bytes == 0


REFUSALS = [
    BrokerRefused("kafka b: topic 'experts', which has to exist: check this user's permissions on the broker"),
    BrokerUnavailable("kafka b: topic 'experts', which has to exist: does not answer"),
]
"""A right that is missing, and a topic that was deleted."""


def expert(number: int) -> Vote:
    return Vote(f"i-{number}", {"id": f"e-{number}", "source": "expert"})


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_topic_that_refuses_holds_up_no_other_and_gets_all_later(around: Around, refusal: RetunedError) -> None:
    around.broker.refuses["experts"] = refusal
    for number in range(6):
        vote = Vote(f"i-{number}", {"id": f"f-{number}"})
        around.keep(exchange(whole("a"), id=f"i-{number}"), expert(number), vote, expert(10 + number))
        with pytest.raises(type(refusal), match="experts"):
            around.publishing.publish()
    assert around.ids() == [f"{kind}-{number}" for number in range(6) for kind in "if"]  # each of them once
    around.broker.refuses.clear()
    around.publishing.publish()
    assert around.ids("experts") == [f"e-{number + more}" for number in range(6) for more in (0, 10)]
    assert len(around.ids()) == 24
    assert around.buffer.waiting_bytes == 0


def test_a_topic_that_refuses_fills_the_buffer_with_its_own_records_alone(around: Around, tmp_path: Path) -> None:
    around.broker.refuses["experts"] = REFUSALS[0]
    for number in range(50):
        around.keep(exchange(whole("a" * 10_000), id=f"i-{number}"), expert(number))
        with pytest.raises(BrokerRefused):
            around.publishing.publish()
    files = list(tmp_path.glob("*.records"))
    assert len(files) == 1
    assert around.buffer.waiting_bytes == files[0].stat().st_size < 10_000
    assert around.buffer.waiting_seconds() > 0
    around.buffer.close()
    around.broker.refuses.clear()
    around.open(tmp_path)
    around.publishing.publish()
    assert around.ids() == [f"{kind}-{number}" for kind in "ie" for number in range(50)]


def test_a_topic_that_refuses_in_the_middle_of_a_file_gets_what_is_left(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "MOST_AT_ONCE", 4)
    taken = around.broker.publish_all

    def refuse_later(topic: str, messages: Sequence[tuple[str, dict[str, Any]]]) -> None:
        taken(topic, messages)
        if topic == "experts":
            around.broker.refuses["experts"] = REFUSALS[0]

    monkeypatch.setattr(around.broker, "publish_all", refuse_later)
    for number in range(8):
        around.keep(exchange(whole("a"), id=f"i-{number}"), expert(number))
    with pytest.raises(BrokerRefused):
        around.publishing.publish()
    assert (around.ids("interactions"), around.ids("experts")) == ([f"i-{n}" for n in range(8)], ["e-0", "e-1"])
    monkeypatch.undo()
    around.broker.refuses.clear()
    around.publishing.publish()
    assert around.ids("experts") == [f"e-{number}" for number in range(8)]
    assert len(around.ids()) == 16


def test_what_others_acknowledged_is_not_sent_again_where_the_disk_takes_no_shorter_file(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    around.broker.refuses["experts"] = REFUSALS[0]
    around.keep(exchange(whole("a"), id="i-0"), expert(0), exchange(whole("a"), id="i-1"))
    monkeypatch.setattr(buffer, "replaced", full)
    for _ in range(3):
        with pytest.raises(BrokerRefused):
            around.publishing.publish()
    around.broker.refuses.clear()
    around.publishing.publish()
    assert around.ids() == ["i-0", "i-1", "e-0"]
    assert around.buffer.waiting_bytes == 0


def test_a_topic_that_refuses_is_named_and_tried_less_often_than_the_others(
    around: Around, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publish, "PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(publish, "RETRY_SECONDS", 0.02)
    caplog.set_level(logging.INFO, publish.__name__)
    around.broker.refuses["experts"] = REFUSALS[0]
    around.keep(expert(0))
    around.publishing.start()
    for number in range(20):
        around.keep(exchange(whole("a"), id=f"i-{number}"))
        while len(around.ids("interactions")) <= number:
            around.publishing._stop.wait(0.005)
    assert around.broker.asked["experts"] < 10
    around.broker.refuses.clear()
    around.publishing.stop(20)
    assert around.ids("experts") == ["e-0"]
    first, last = caplog.messages
    assert first.startswith("topic experts: events wait in the buffer")
    assert "permissions" in first
    assert last == "topic experts: Kafka accepts events again"


def test_one_that_is_too_large_is_dropped_and_holds_up_no_other(around: Around) -> None:
    around.broker.longest = 1_000
    around.keep(*(exchange(whole("a" * (2_000 if number == 1 else 2)), id=f"i-{number}") for number in range(4)))
    around.publishing.publish()
    assert around.ids() == ["i-0", "i-2", "i-3"]
    assert around.count("dropped_total", kind="interactions", reason="too_large") == 1
    assert around.count("published_total", kind="interactions") == 3


def test_one_that_is_not_understood_is_dropped_and_holds_up_no_other(around: Around) -> None:
    around.keep(exchange(whole("a"), id="i-0"))
    around.buffer.append(b"of another version")
    around.keep(exchange(b"data: {", id="i-1"))
    around.keep(exchange(whole("a"), CHAT | {"conversation": {"id": 5}}, id="i-2"))
    deep = b'{"model": "support", "messages": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"
    around.keep(exchange(whole("a"), deep, id="i-3"))
    huge = b'{"model": "support", "messages": [], "metadata": {"n": ' + b"9" * 400 + b"}}"
    around.keep(exchange(whole("a"), huge, id="i-4"))
    around.keep(exchange(whole("a"), id="i-5"))
    around.publishing.publish()
    assert {"i-0", "i-2", "i-5"} <= {*around.ids()}
    dropped = around.count("dropped_total", kind="interactions", reason="unreadable")
    assert dropped is not None
    assert dropped + len(around.ids()) == 7
    assert around.buffer.waiting_bytes == 0


def test_the_thread_goes_on_after_a_failure_and_a_stop_publishes_what_is_there(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "RETRY_SECONDS", 60.0)
    around.broker.away = True
    around.keep(exchange(whole("a"), id="i-0"))
    around.publishing.start()
    while around.publishing.problem is None:
        around.publishing._stop.wait(0.01)
    around.broker.away = False
    around.publishing.stop(20)
    assert around.ids() == ["i-0"]
    assert around.publishing.problem is None
