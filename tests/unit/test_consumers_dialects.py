"""Other people's formats: what each becomes, what is refused and why, and that none is mistaken for another."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import UNSET

from fixtures.feedback.traffic import BOUNDS
from fixtures.kafka.protobuf import field
from retuned.consumers.formats.dialects import PASSED_OVER, BadPart, decode_any
from retuned.consumers.formats.events import NESTED, Feedback, Interaction, PassedOver

AT = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
UNIX = 1795512600  # the same instant

NATIVE = {
    "id": "i1",
    "timestamp": "2026-11-24T09:30:00Z",
    "workload": "support.refunds",
    "model": "base",
    "messages": [{"role": "user", "content": "Where is my parcel?"}],
    "response": "On its way.",
}
NATIVE_FEEDBACK = {
    "id": "f1", "timestamp": "2026-11-24T09:31:00Z", "interaction_id": "i1", "name": "helpful", "value": True,
}  # fmt: skip

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Paris?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "rain, 14 °C"},
]

OPENAI = {
    "timestamp": UNIX,
    "workload_id": "support.refunds",
    "client_id": "web",
    "request": {"model": "base", "messages": CHAT, "user": "u1", "metadata": {"channel": "chat"}},
    "response": {
        "id": "chatcmpl-9f2c41d7",
        "created": 1,
        "model": "support.refunds@3f2a91c0",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Rain."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 2},
    },
}

PARTS_IN = [
    {"role": "user", "parts": [{"type": "text", "content": "Weather in Paris?"}]},
    {
        "role": "assistant",
        "parts": [{"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Paris"}}],
    },
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "rain, 14 °C"}]},
]
PARTS_OUT = [{"role": "assistant", "parts": [{"type": "text", "content": "Rain."}], "finish_reason": "stop"}]
SPAN = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "base",
    "gen_ai.response.model": "support.refunds@3f2a91c0",
    "gen_ai.response.id": "chatcmpl-9f2c41d7",
    "gen_ai.agent.name": "support.refunds",
    "gen_ai.conversation.id": "conv-1",
    "gen_ai.usage.input_tokens": 30,
    "gen_ai.usage.output_tokens": 2,
    "gen_ai.response.finish_reasons": ["stop"],
    "gen_ai.system_instructions": [{"type": "text", "content": "Be brief."}],
    "gen_ai.input.messages": PARTS_IN,
    "gen_ai.output.messages": PARTS_OUT,
}
EVALUATION = {
    "gen_ai.evaluation.name": "relevance",
    "gen_ai.evaluation.score.value": 0.9,
    "gen_ai.evaluation.score.label": "relevant",
    "gen_ai.evaluation.explanation": "It says what was asked.",
    "gen_ai.response.id": "chatcmpl-9f2c41d7",
}


def typed(value: Any) -> dict[str, Any]:
    """A value as OTLP JSON writes it."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [typed(item) for item in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": keys(value)}}
    return {"stringValue": value}


def keys(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": typed(value)} for key, value in attributes.items()]


def otlp(*spans: dict[str, Any], resource: dict[str, Any] | None = None) -> dict[str, Any]:
    group = {"scopeSpans": [{"scope": {"name": "x"}, "spans": list(spans)}]}
    return {"resourceSpans": [{"resource": {"attributes": keys(resource or {})}, **group}]}


def span(attributes: dict[str, Any], **more: Any) -> dict[str, Any]:
    times = {"startTimeUnixNano": str(UNIX * 10**9 - 830_000_000), "endTimeUnixNano": str(UNIX * 10**9)}
    return {"traceId": "t1", "spanId": "s1", "name": "chat base", **times, "attributes": keys(attributes), **more}


def all_of(value: Any, kind: Any = "interactions", headers: Any = ()) -> list[Any]:
    """What a message holds; what an interaction keeps as JSON is read, so that it can be compared."""
    payload = value if isinstance(value, bytes) else json.dumps(value).encode()
    found = decode_any(kind, payload, headers, BOUNDS)
    for event in found:
        if isinstance(event, Interaction):
            for name in NESTED:
                if getattr(event, name) is not UNSET:
                    setattr(event, name, json.loads(bytes(getattr(event, name))))
    return found


def one(value: Any, kind: Any = "interactions", headers: Any = ()) -> Any:
    (event,) = all_of(value, kind, headers)
    return event


def refused(value: Any, kind: Any = "interactions", headers: Any = ()) -> tuple[str, str]:
    bad = one(value, kind, headers)
    assert isinstance(bad, BadPart)
    return bad.error.reason, bad.error.detail


# --- ours, wherever it stands ----------------------------------------------------------------------------------------


def test_events_are_known_by_content_whatever_the_topic_is_for() -> None:
    assert isinstance(one(NATIVE, "feedback"), Interaction)
    assert isinstance(one(NATIVE_FEEDBACK, "interactions"), Feedback)


def test_confluent_framing_is_taken_off() -> None:
    frame = b"\x00\x00\x00\x00\x2a"
    assert one(frame + json.dumps(NATIVE).encode()) == one(NATIVE)
    assert one(frame + json.dumps(OPENAI).encode()) == one(OPENAI)
    assert refused(frame)[0] == "empty"


def test_avro_and_protobuf_of_a_schema_registry_are_named_with_the_way_out() -> None:
    for inside in (b"\x02avro", b"\x00\x0a\x02w1"):
        reason, detail = refused(b"\x00\x00\x00\x00\x2a" + inside)
        assert reason == "schema_registry"
        assert "schema 42" in detail
        assert "JSON" in detail


@pytest.mark.parametrize(
    "value", [[], "text", 7, None, {}, {"request": 1}, {"messages": []}, [[NATIVE]], {"a": {"b": 1}}]
)
def test_what_is_nobodys_event_is_reported_as_no_event_of_ours(value: Any) -> None:
    reason, _ = refused(value)
    assert reason == "not_an_event"


def test_a_native_event_with_a_mistake_is_told_that_mistake() -> None:
    assert refused({**NATIVE, "latency_seconds": -1})[1].endswith("`$.latency_seconds`")
    assert "workload" in refused({key: value for key, value in NATIVE.items() if key != "workload"})[1]
    assert refused({**NATIVE_FEEDBACK, "value": "yes"}, "interactions")[0] == "bad_value"
    nameless = {key: value for key, value in NATIVE.items() if key != "workload"}
    for attributes in ({"gen_ai.operation.name": "chat"}, {"openinference.span.kind": "LLM"}):
        assert "workload" in refused({**nameless, "attributes": attributes})[1]


def test_json_that_ends_badly_after_a_mistake() -> None:
    assert refused(b'{"id": 1, "messages"')[0] in ("not_an_event", "not_json")


# --- ours, as people send it without a look at the schema -------------------------------------------------------------

INSTANTS = [UNIX, float(UNIX), UNIX * 1000, UNIX * 10**6, UNIX * 10**9, str(UNIX), str(UNIX * 1000), f"{UNIX}.000"]


@pytest.mark.parametrize("timestamp", INSTANTS)
def test_unix_times(timestamp: Any) -> None:
    assert one({**NATIVE, "timestamp": timestamp}) == one(NATIVE)
    assert one({**NATIVE_FEEDBACK, "timestamp": timestamp}).timestamp == AT


@pytest.mark.parametrize("timestamp", [0, -1, True, "yesterday", 10**30, 1.5e300, None, [UNIX]])
def test_what_is_no_time_is_refused(timestamp: Any) -> None:
    assert refused({**NATIVE, "timestamp": timestamp})[0] in ("not_an_event", "bad_value")


def test_a_tiny_unix_time_is_beyond_the_bounds() -> None:
    assert refused({**NATIVE, "timestamp": 12})[0] == "bad_value"


def test_integers_as_ids() -> None:
    event = one({**NATIVE, "id": 7, "conversation_id": 12, "user_id": 10**15})
    assert (event.id, event.conversation_id, event.user_id) == ("7", "12", str(10**15))
    verdict = one({**NATIVE_FEEDBACK, "id": 8, "interaction_id": 7, "user_id": 0})
    assert (verdict.id, verdict.interaction_id, verdict.user_id) == ("8", "7", "0")
    for id in (True, 1.5, [1], {}):
        assert refused({**NATIVE, "id": id})[0] == "not_an_event"


def test_whole_numbers_with_a_point_are_counts() -> None:
    event = one({**NATIVE, "input_tokens": 132.0, "output_tokens": 1e3})
    assert (event.input_tokens, event.output_tokens) == (132, 1000)
    for tokens in (132.5, "132", 1e300, -1.0):
        assert refused({**NATIVE, "input_tokens": tokens})[0] in ("not_an_event", "bad_value")


@pytest.mark.parametrize(
    "context",
    ["a passage", [{"text": "a passage", "score": 0.9}], [{"page_content": "a passage", "metadata": {"source": "x"}}],
     [{"content": "a passage"}], ["a passage"]],
)  # fmt: skip
def test_passages_in_whatever_form(context: Any) -> None:
    assert one({**NATIVE, "context": context}).context == ["a passage"]


def test_passages_that_are_none() -> None:
    for context in ([{"score": 1}], [7], {"text": "a passage"}, 7):
        assert refused({**NATIVE, "context": context})[0] == "not_an_event"


def test_what_stands_around_an_event() -> None:
    plain, text = one(NATIVE), json.dumps(NATIVE)
    assert one(b"\xef\xbb\xbf" + text.encode()) == plain
    assert one(json.dumps(text).encode()) == plain  # JSON in a string of JSON
    assert one({"schema": {"type": "struct"}, "payload": NATIVE}) == plain
    assert one({"schema": None, "payload": text}) == plain
    assert refused({"schema": {"type": "string"}, "payload": "no JSON"}) == refused("no JSON")
    assert one(b"\xef\xbb\xbf" + json.dumps(OPENAI).encode()) == one(OPENAI)


def test_an_array_of_events_is_each_of_them() -> None:
    other = {**NATIVE, "id": 9, "timestamp": UNIX}
    first, second, verdict, log = all_of([NATIVE, other, NATIVE_FEEDBACK, OPENAI])
    assert [first, second.id, verdict, log] == [one(NATIVE), "9", one(NATIVE_FEEDBACK), one(OPENAI)]
    assert all_of(json.dumps([json.dumps(NATIVE)]).encode()) == [first]


def test_of_an_array_what_is_no_event_is_refused_by_itself() -> None:
    wrong = {**NATIVE, "id": "i2", "model": 7}
    good, bad, odd = all_of([NATIVE, wrong, 5])
    assert good == one(NATIVE)
    assert isinstance(bad, BadPart)
    assert bad.part is not None
    assert json.loads(bad.part) == wrong
    assert isinstance(odd, BadPart)
    assert odd.part == b"5"
    assert (one(bad.part).error.reason, one(NATIVE).id) == (bad.error.reason, "i1")  # a replay finds the same
    (alone,) = all_of([{"role": "user", "content": "Hi"}] * 50)  # no array of events at all
    assert isinstance(alone, BadPart)
    assert alone.part is None


def test_the_id_of_an_envelope_is_not_that_of_each_event_in_an_array() -> None:
    short = {key: value for key, value in NATIVE.items() if key != "id"}
    found = all_of({"specversion": "1.0", "id": "ce1", "data": [NATIVE, short, {**short, "id": "i2"}]})
    assert [found[0].id, found[2].id] == ["i1", "i2"]
    assert "id" in found[1].error.detail


def test_envelopes_end_somewhere() -> None:
    value: Any = NATIVE
    for _ in range(40):
        value = {"schema": None, "payload": value}
    assert refused(value)[0] == "not_an_event"
    assert refused("[" * 400 + "]" * 400)[0] in ("not_an_event", "too_deep", "not_json")


# --- names, and users ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["team/refunds", "a b", " a", "ÄÖ é", "退款", "w" * 256, "..a", "%2F", "a?b#c", "😀"])
def test_names_that_can_be_seen(name: str) -> None:
    event = one({**NATIVE, "workload": name, "model": f"{name}@3f2a91c0"})
    assert (event.workload, event.model) == (name, f"{name}@3f2a91c0")


UNSEEN = [
    "\0", "\n", "\t", "\x1b", "\u202e", "\u200b", "\u2066", "\ufeff", "\u00a0", "\u2028",
]  # fmt: skip


@pytest.mark.parametrize("sign", UNSEEN)
@pytest.mark.parametrize("field", ["workload", "model"])
def test_names_with_what_cannot_be_seen_are_refused(field: str, sign: str) -> None:
    reason, detail = refused({**NATIVE, field: f"a{sign}b"})
    assert reason == "bad_value"
    assert detail.startswith(field)
    assert f"U+{ord(sign):04X}" in detail
    assert sign not in detail


@pytest.mark.parametrize("name", ["  ", ".", "..", ". ."])
def test_a_name_of_blanks_and_dots_is_refused(name: str) -> None:
    assert "workload" in refused({**NATIVE, "workload": name})[1]


@pytest.mark.parametrize(
    "attributes",
    [{"user_id": "u-17"}, {"userId": "u-17"}, {"user": "u-17"}, {"gen_ai.user": "u-17"}, {"enduser.id": "u-17"},
     {"metadata": {"userId": "u-17"}}, {"user": {"id": "u-17", "plan": "gold"}}, {"user_id": "u-17", "user": "Ann"}],
)  # fmt: skip
def test_a_user_among_the_attributes_is_the_user_and_stays_nowhere_else(attributes: dict[str, Any]) -> None:
    event = one({**NATIVE, "attributes": {"channel": "web", **attributes}})
    assert event.user_id == "u-17"
    assert event.attributes["channel"] == "web"
    for name in ("u-17", "Ann", "gold"):
        assert name not in json.dumps(event.attributes)
    named = one({**NATIVE, "user_id": "u-1", "attributes": attributes})
    assert named.user_id == "u-1"
    assert "u-17" not in json.dumps(named.attributes)


@pytest.mark.parametrize("name", ["gen_ai.user", "user.id", "enduser.id", "gen_ai.openai.request.user"])
def test_a_user_of_a_span(name: str) -> None:
    event = one(otlp(span({**SPAN, name: "u-17"})))
    assert event.user_id == "u-17"
    assert "u-17" not in json.dumps(event.attributes)


def test_numbers_are_users_and_what_names_nobody_is_dropped() -> None:
    assert one({**NATIVE, "attributes": {"user_id": 17}}).user_id == "17"
    for nobody in (None, True, [], {}, "", "  ", {"id": None}):
        event = one({**NATIVE, "attributes": {"user": nobody, "channel": "web"}})
        assert (event.user_id, event.attributes) == (None, {"channel": "web"})


# --- OpenAI ----------------------------------------------------------------------------------------------------------


def test_an_openai_log() -> None:
    event = one(OPENAI)
    assert (event.id, event.timestamp, event.workload) == ("chatcmpl-9f2c41d7", AT, "support.refunds")
    assert (event.model, event.messages, event.response) == ("support.refunds@3f2a91c0", CHAT, "Rain.")
    assert (event.input_tokens, event.output_tokens, event.finish_reason, event.user_id) == (30, 2, "stop", "u1")
    assert event.attributes == {"channel": "chat", "client_id": "web"}
    assert one(OPENAI, "feedback") == event


@pytest.mark.parametrize("timestamp", [UNIX, float(UNIX), UNIX * 1000, str(UNIX), "2026-11-24T10:30:00+01:00"])
def test_an_openai_log_of_whatever_clock(timestamp: Any) -> None:
    assert one({**OPENAI, "timestamp": timestamp}).timestamp == AT


def test_an_answer_that_calls_a_tool_keeps_the_call() -> None:
    call = CHAT[2]["tool_calls"]
    message = {"role": "assistant", "content": None, "tool_calls": call}
    event = one({**OPENAI, "response": {**OPENAI["response"], "choices": [{"message": message}]}})
    assert event.response == ""
    assert event.attributes["tool_calls"] == call


def test_an_openai_log_without_an_id_has_one_by_its_content() -> None:
    response = {key: value for key, value in OPENAI["response"].items() if key != "id"}
    first, again = one({**OPENAI, "response": response}), one({**OPENAI, "response": response})
    other = one({**OPENAI, "response": response, "timestamp": UNIX + 1})
    assert first.id == again.id != other.id


def test_the_completions_api() -> None:
    event = one(
        {
            "timestamp": UNIX,
            "workload": "w",
            "request": {"model": "m", "prompt": "Once"},
            "response": {"id": "cmpl-1", "choices": [{"text": " upon a time", "finish_reason": "length"}]},
        }
    )
    assert (event.messages, event.response) == ([{"role": "user", "content": "Once"}], " upon a time")
    assert (event.model, event.finish_reason) == ("m", "length")


def test_the_responses_api() -> None:
    event = one(
        {
            "workload": "w",
            "latency_ms": 830,
            "request": {
                "model": "m",
                "instructions": "Be brief.",
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "Weather in Paris?"}]},
                    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Paris"}'},
                    {"type": "function_call_output", "call_id": "c1", "output": "rain, 14 °C"},
                ],
            },
            "conversation_id": "conv-1",
            "response": {
                "id": "resp-1",
                "created_at": UNIX,
                "status": "completed",
                "output": [
                    {"type": "reasoning", "summary": []},
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Rain."}]},
                ],
                "usage": {"input_tokens": 30, "output_tokens": 2},
            },
        }
    )
    assert event.messages == CHAT
    assert (event.response, event.timestamp, event.conversation_id) == ("Rain.", AT, "conv-1")
    assert (event.input_tokens, event.output_tokens, event.latency_seconds) == (30, 2, 0.83)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"response": "Rain."}, "response: expected an object, got str"),
        ({"response": {"model": "m"}}, "response"),
        ({"workload_id": None}, "workload"),
        ({"request": {"model": "m"}}, "messages"),
        ({"timestamp": "yesterday"}, "timestamp"),
    ],
)
def test_an_openai_log_that_misses_something_says_what(change: dict[str, Any], said: str) -> None:
    reason, detail = refused({**OPENAI, **change})
    assert reason == "not_an_event"
    assert said in detail


@pytest.mark.parametrize(
    "response",
    [
        None,
        {"error": {"message": "overloaded", "type": "server_error"}},
        {"id": "resp_1", "status": "failed", "error": {"code": "server_error"}, "output": []},
    ],
)
def test_a_call_that_failed_is_passed_over(response: Any) -> None:
    assert one({**OPENAI, "response": response}) == PassedOver("failed_call")


@pytest.mark.parametrize("id", ["chatcmpl-987", "resp_123456", "msg_1"])
def test_an_id_that_is_too_short_to_be_unique_is_that_of_one_answer(id: str) -> None:
    """As Ollama has them: a random number below 1,000."""
    log = {**OPENAI, "response": {**OPENAI["response"], "id": id}}
    other = {**log, "request": {**OPENAI["request"], "messages": [{"role": "user", "content": "And in Rome?"}]}}
    assert one(log).id == one(log).id != one(other).id
    assert one({**log, "id": id}).id == id  # the log's own
    assert one({**log, "response": {**OPENAI["response"], "id": "r7"}}).id == "r7"  # of no model server


def test_the_steps_of_the_responses_api_are_no_messages() -> None:
    given = [
        {"role": "user", "content": "Weather in Paris?"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "custom_tool_call", "call_id": "c1", "name": "weather", "input": "Paris"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "rain, 14 °C"},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "Paris"}}
    log = {"workload": "w", "timestamp": UNIX, "request": {"model": "m", "input": given},
           "response": {"id": "resp_0123456789", "object": "response", "output": [given[3]]}}  # fmt: skip
    event = one(log)
    assert event.messages == [
        given[0],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain, 14 °C"},
    ]
    assert (event.response, event.attributes["tool_calls"]) == ("", [call])


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ({"choices": [{"message": {"content": None}, "finish_reason": "length"}]}, "length"),
        ({"status": "incomplete", "output": [{"type": "reasoning", "summary": []}]}, "incomplete"),
        ({"status": "completed", "output": []}, "completed"),
    ],
)
def test_a_finished_answer_without_content_is_empty(response: dict[str, Any], reason: str) -> None:
    event = one({**OPENAI, "response": response})
    assert (event.response, event.finish_reason) == ("", reason)


@pytest.mark.parametrize(
    "response",
    [
        {"choices": [{"message": {"content": None}}]},
        {"choices": [{"message": {"text": "Rain."}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": None, "audio": {"data": "QUJD"}}, "finish_reason": "stop"}]},
        {"status": "completed", "text": "Rain."},
        {"status": "completed", "output": [{"type": "image_generation_call", "result": ""}]},
        {"status": "in_progress", "output": []},
    ],
)
def test_what_may_hold_an_answer_that_is_not_understood_is_refused(response: dict[str, Any]) -> None:
    assert "response" in refused({**OPENAI, "response": response})[1]


def test_the_older_call_of_a_function() -> None:
    message = {"content": None, "function_call": {"name": "weather", "arguments": "{}"}}
    event = one({**OPENAI, "response": {"choices": [{"message": message, "finish_reason": "function_call"}]}})
    (call,) = event.attributes["tool_calls"]
    assert (event.response, call["function"]) == ("", {"name": "weather", "arguments": "{}"})
    message |= {"tool_calls": None, "content": "One moment."}
    event = one({**OPENAI, "response": {"choices": [{"message": message}]}})
    assert (event.response, event.attributes["tool_calls"]) == ("One moment.", [call])


def test_an_optional_text_that_is_empty_is_absent() -> None:
    choice = {**OPENAI["response"]["choices"][0], "finish_reason": ""}
    log = {**OPENAI, "conversation_id": "", "request": {"model": "m", "messages": CHAT, "safety_identifier": ""}}
    event = one({**log, "response": {"id": "", "choices": [choice]}})
    assert (event.finish_reason, event.conversation_id, event.user_id) == (None, None, None)
    answered = [{**PARTS_OUT[0], "finish_reason": ""}]
    empty = {"gen_ai.response.finish_reasons": [""], "gen_ai.conversation.id": "", "user.id": "",
             "gen_ai.output.messages": answered}  # fmt: skip
    event = one({"timestamp": UNIX, **SPAN, **empty})
    assert (event.finish_reason, event.conversation_id, event.user_id) == (None, None, None)


# --- OpenTelemetry ---------------------------------------------------------------------------------------------------


def check_span(event: Any) -> None:
    assert (event.id, event.workload, event.model) == (
        "chatcmpl-9f2c41d7",
        "support.refunds",
        "support.refunds@3f2a91c0",
    )
    assert event.messages == CHAT
    assert (event.response, event.finish_reason, event.conversation_id) == ("Rain.", "stop", "conv-1")
    assert (event.input_tokens, event.output_tokens, event.timestamp) == (30, 2, AT)
    assert event.attributes["gen_ai.provider.name"] == "openai"


def test_otlp_json_from_the_collector() -> None:
    event = one(otlp(span(SPAN), resource={"service.name": "shop"}))
    check_span(event)
    assert event.latency_seconds == pytest.approx(0.83)
    assert event.attributes["service.name"] == "shop"
    assert (event.attributes["trace_id"], event.attributes["span_id"]) == ("t1", "s1")


def test_messages_as_json_text() -> None:
    text = {key: json.dumps(value) if isinstance(value, list) else value for key, value in SPAN.items()}
    check_span(one(otlp(span(text))))


@pytest.mark.parametrize(
    "around",
    [
        {"timestamp": "2026-11-24T09:30:00Z", "attributes": SPAN},
        {"timestamp": "2026-11-24T09:30:00Z", **SPAN},
        {"time": UNIX, "name": "gen_ai.client.inference.operation.details", "attributes": SPAN},
        {"context": {"trace_id": "t", "span_id": "s"}, "start_time": "2026-11-24T09:29:59.170Z",
         "end_time": "2026-11-24T09:30:00Z", "attributes": SPAN},
    ],
)  # fmt: skip
def test_one_object_nested_or_flat(around: dict[str, Any]) -> None:
    event = one(around)
    check_span(event)
    if "start_time" in around:
        assert event.latency_seconds == pytest.approx(0.83)


def test_the_names_before_1_37() -> None:
    old = {
        "gen_ai.system": "openai",
        "gen_ai.request.model": "base",
        "gen_ai.response.id": "chatcmpl-9f2c41d7",
        "service.name": "support.refunds",
        "gen_ai.usage.prompt_tokens": 30,
        "gen_ai.usage.completion_tokens": 2,
        "gen_ai.prompt": json.dumps(CHAT),
        "gen_ai.completion": json.dumps([{"role": "assistant", "content": "Rain."}]),
    }
    event = one({"timestamp": UNIX, "attributes": old})
    assert (event.messages, event.response, event.workload) == (CHAT, "Rain.", "support.refunds")
    assert (event.input_tokens, event.output_tokens, event.model) == (30, 2, "base")


def test_numbered_messages() -> None:
    numbered = {"gen_ai.request.model": "m", "gen_ai.agent.name": "w", "gen_ai.completion.0.content": "Rain."}
    for number, message in enumerate(CHAT):
        numbered |= {f"gen_ai.prompt.{number}.{key}": value for key, value in message.items() if key != "tool_calls"}
    numbered |= {"gen_ai.prompt.2.tool_calls.0.name": "weather", "gen_ai.prompt.2.tool_calls.0.id": "c1"}
    event = one({"timestamp": UNIX, **numbered})
    assert [message["content"] for message in event.messages] == [message["content"] for message in CHAT]
    assert event.messages[2]["tool_calls"] == [{"name": "weather", "id": "c1"}]
    assert event.response == "Rain."


def test_messages_on_events_of_the_span() -> None:
    said = [
        ("gen_ai.system.message", {"content": "Be brief."}),
        ("gen_ai.user.message", {"content": "Weather in Paris?"}),
        ("gen_ai.assistant.message", {"tool_calls": json.dumps(CHAT[2]["tool_calls"])}),
        ("gen_ai.tool.message", {"id": "c1", "content": "rain, 14 °C"}),
        ("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": json.dumps({"content": "Rain."})}),
    ]
    plain = {key: value for key, value in SPAN.items() if "messages" not in key and "instructions" not in key}
    attached = [{"name": name, "timeUnixNano": "1", "attributes": keys(attributes)} for name, attributes in said]
    check_span(one(otlp(span(plain, events=attached))))


BARE = {key: value for key, value in SPAN.items() if "messages" not in key and "instructions" not in key}


def spoken(*said: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return otlp(span(BARE, events=[{"name": name, "attributes": keys(attributes)} for name, attributes in said]))


def azure(**event: Any) -> dict[str, Any]:
    return {"gen_ai.system": "az.ai.inference", "gen_ai.event.content": json.dumps(event)}


@pytest.mark.parametrize(
    ("asked", "choice", "response"),
    [({"content": "How many?"}, {"finish_reason": "stop", "content": "30"}, "30"),
     ({"content": "Class?"}, {"content": '{"label": "refund"}'}, '{"label": "refund"}'),
     ({"content": "Class?"}, {"message": '{"label": "refund"}'}, '{"label": "refund"}'),
     ({"content": "True?"}, {"message": "true"}, "true"),
     ({"content": "Which?"}, {"message": "[]"}, "[]"),
     ({"content": "Hi"}, {"message": '"A"'}, "A"),
     ({"content": '[{"text": "Until when?"}]'}, {"message": '[{"text": "30 days."}]'}, "30 days."),
     ({"content": "Hi"}, {"message": '{"role": "assistant", "content": [{"text": "A"}]}', "id": "c"}, "A"),
     ({"content": "Hi"}, {"message": '{"role": "assistant", "content": null}', "finish_reason": "length"}, ""),
     (azure(role="user", content="Hi"), azure(index=0, finish_reason="stop", message={"content": "A"}), "A")],
)  # fmt: skip
def test_answers_on_events_of_the_span_in_each_form(asked: Any, choice: Any, response: str) -> None:
    event = one(spoken(("gen_ai.user.message", asked), ("gen_ai.choice", choice)))
    assert event.response == response
    ((question,),) = ([message["content"] for message in event.messages],)
    assert question in ("How many?", "Class?", "Which?", "True?", "Until when?", "Hi")
    assert not event.attributes.keys() & {"gen_ai.event.content", "message", "content"}


def test_numbers_and_json_are_texts() -> None:
    event = one({"timestamp": UNIX, **BARE, "gen_ai.prompt": "12", "gen_ai.completion": '{"label": "refund"}'})
    assert event.messages == [{"role": "user", "content": "12"}]
    assert event.response == '{"label": "refund"}'


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": [{"type": "blob", "content": "QQ"}]}])},
      "response"),
     ({"gen_ai.output.messages": json.dumps([{"role": "assistant", "text": "Rain."}])}, "response"),
     ({"gen_ai.output.messages": json.dumps([{"role": "assistant"}])}, "response"),
     ({"gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": [7]}])}, "response"),
     ({"gen_ai.input.messages": json.dumps([{"role": "user", "text": "Weather?"}])}, "messages")],
)  # fmt: skip
def test_content_that_is_not_understood_is_no_empty_text(changes: dict[str, Any], field: str) -> None:
    reason, detail = refused({"timestamp": UNIX, **SPAN, **changes})
    assert (reason, field in detail) == ("not_an_event", True)


def test_events_of_a_span_in_a_form_that_is_not_understood_are_refused_and_bare_ones_passed_over() -> None:
    asked = ("gen_ai.user.message", {"content": "Hi"})
    unknown = spoken(asked, ("gen_ai.choice", {"answer": "A"}))
    assert "response" in refused(unknown)[1]
    assert (
        "messages"
        in refused(spoken(("gen_ai.user.message", {"question": "Hi"}), ("gen_ai.choice", {"content": "A"})))[1]
    )
    bare = spoken(
        ("gen_ai.user.message", {"gen_ai.system": "openai"}),
        ("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": '{"role": "assistant"}'}),
    )
    assert all_of(bare)[0] == PassedOver("without_content")


def test_a_batch_of_spans_is_many_events_and_what_is_no_answer_is_passed_over_by_reason() -> None:
    spans = [span({**SPAN, "gen_ai.response.id": f"r{number}"}) for number in range(3)]
    others = [
        span({"http.method": "GET"}),
        span({**SPAN, "gen_ai.operation.name": "execute_tool"}),
        span({"openinference.span.kind": "RETRIEVER", "input.value": "Hi"}),
    ]
    reasons = ["no_model_call", "other_operation", "other_operation"]
    assert [event.id for event in all_of(otlp(*spans, *others))[:3]] == ["r0", "r1", "r2"]
    assert all_of(otlp(*others)) == [PassedOver(reason) for reason in reasons]
    assert all_of({"resourceSpans": []}) == [PassedOver("no_model_call")]  # nothing vanishes
    assert {*reasons} <= PASSED_OVER.keys()


def test_a_span_without_content_is_passed_over_and_the_reason_names_the_setting() -> None:
    good, bare, timed = all_of(otlp(span(SPAN), span(BARE)))
    check_span(good)
    assert bare == PassedOver("without_content")
    assert (timed.name, timed.interaction_id, timed.value) == ("latency_seconds", good.id, good.latency_seconds)
    assert "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT" in PASSED_OVER["without_content"]


def test_a_span_whose_content_is_not_understood_is_refused_alone() -> None:
    good, bad = all_of(otlp(span(SPAN), span({**BARE, "gen_ai.output.messages": 7})))
    check_span(good)
    assert isinstance(bad, BadPart)
    assert "messages" in bad.error.detail
    assert bad.part is not None
    assert json.loads(bad.part)["id"] == "chatcmpl-9f2c41d7"


@pytest.mark.parametrize(
    ("attributes", "more"),
    [({"error.type": "timeout"}, {}), ({}, {"status": {"code": 2, "message": "overloaded"}})],
)
def test_a_span_of_a_call_that_failed_is_passed_over(attributes: dict[str, Any], more: dict[str, Any]) -> None:
    asked = {key: value for key, value in SPAN.items() if "output.messages" not in key}
    assert all_of(otlp(span({**asked, **attributes}, **more))) == [PassedOver("failed_call")]
    assert isinstance(all_of(otlp(span({**SPAN, **attributes}, **more)))[0], Interaction)  # there is an answer


def test_what_looks_like_protobuf_and_is_none_of_a_collector() -> None:
    service = field(1, field(1, b"service.name") + field(2, field(1, b"shop")))
    spans = field(2, field(2, field(1, bytes(range(15))) + field(5, b"chat base")))
    assert refused(field(1, field(1, service) + spans))[0] == "otlp_protobuf"  # an id of 15 bytes
    for other in (
        b"\n\x05hello",
        b"\n\x00",
        b"\xff\xfe",
        b"\n{",
        field(1, b"\x08\x01"),
        b"\n\xff\xff\xff\xff\xff\xff",
    ):
        assert refused(other)[0] in ("not_json", "not_utf8")


def test_parts_that_are_no_text_stay_parts() -> None:
    image = {"type": "uri", "modality": "image", "uri": "https://example.com/a.png"}
    asked = [{"role": "user", "parts": [{"type": "text", "content": "What is this?"}, image]}]
    event = one({"timestamp": UNIX, **SPAN, "gen_ai.input.messages": asked})
    assert event.messages[1]["content"] == [{"type": "text", "text": "What is this?"}, image]


def test_reasoning_in_parts_is_kept_apart() -> None:
    thought = {"type": "reasoning", "content": "The tool reports rain."}
    answered = [{**PARTS_OUT[0], "parts": [thought, *PARTS_OUT[0]["parts"]]}]
    event = one({"timestamp": UNIX, **SPAN, "gen_ai.output.messages": answered})
    check_span(event)
    assert event.attributes["reasoning_content"] == "The tool reports rain."
    event = one({"timestamp": UNIX, **SPAN, "gen_ai.input.messages": [*PARTS_IN, *answered, PARTS_IN[0]]})
    assert event.messages[-2]["content"] == "Rain."
    assert event.messages[-2]["reasoning_content"] == "The tool reports rain."
    cut = [{"role": "assistant", "parts": [thought], "finish_reason": "length"}]
    assert one({"timestamp": UNIX, **SPAN, "gen_ai.output.messages": cut}).response == ""


def test_a_short_id_of_a_response_is_joined_with_that_of_the_span() -> None:
    short = {**SPAN, "gen_ai.response.id": "chatcmpl-987"}
    first, second = all_of(otlp(span(short), span(short, spanId="s2")))
    assert (first.id, second.id) == ("t1-s1-chatcmpl-987", "t1-s2-chatcmpl-987")
    flat = {"timestamp": UNIX, **short}
    assert one(flat).id == one(flat).id != one({**flat, "gen_ai.output.messages": "Sun."}).id
    judged = {**EVALUATION, "gen_ai.response.id": "chatcmpl-987"}
    happened = {"name": "gen_ai.evaluation.result", "timeUnixNano": str(UNIX * 10**9), "attributes": keys(judged)}
    events = all_of(otlp(span(short, events=[happened])))
    assert {event.interaction_id for event in events if isinstance(event, Feedback)} == {first.id}
    assert {event.interaction_id for event in all_of(evaluation(judged))} == {"chatcmpl-987"}  # of no span


def evaluation(value: dict[str, Any]) -> dict[str, Any]:
    record = {"timeUnixNano": str(UNIX * 10**9), "eventName": "gen_ai.evaluation.result", "attributes": keys(value)}
    return {"resourceLogs": [{"resource": {}, "scopeLogs": [{"logRecords": [record]}]}]}


@pytest.mark.parametrize("kind", ["interactions", "feedback"])
def test_an_evaluation_is_feedback_of_a_judge(kind: str) -> None:
    verdict, comment = all_of(evaluation(EVALUATION), kind)
    assert (verdict.name, verdict.value, verdict.source, verdict.interaction_id) == (
        "relevance", 0.9, "judge", "chatcmpl-9f2c41d7",
    )  # fmt: skip
    assert verdict.timestamp == AT
    assert (comment.name, comment.value) == ("comment", "It says what was asked.")
    assert verdict.id != comment.id
    assert [event.id for event in all_of(evaluation(EVALUATION), kind)] == [verdict.id, comment.id]


@pytest.mark.parametrize(
    ("score", "label", "value"),
    [(1, "fail", True), (0.0, None, False), (None, "true", True), (None, "No", False), ("1.0", None, True)],
)
def test_an_evaluation_under_a_reserved_name_is_a_boolean(score: Any, label: Any, value: bool) -> None:
    given = {
        "gen_ai.evaluation.name": "hallucination", "gen_ai.evaluation.score.value": score,
        "gen_ai.evaluation.score.label": label, "gen_ai.response.id": "r",
    }  # fmt: skip
    found = {key: item for key, item in given.items() if item is not None}
    assert one({"timestamp": UNIX, "event.name": "gen_ai.evaluation.result", **found}).value is value


def test_a_score_between_is_no_boolean() -> None:
    given = {"gen_ai.evaluation.name": "hallucination", "gen_ai.evaluation.score.value": 0.4, "gen_ai.response.id": "r"}
    assert refused({"timestamp": UNIX, "event.name": "gen_ai.evaluation.result", **given})[0] == "bad_value"


def test_an_evaluation_on_its_span_is_about_that_span() -> None:
    plain = {key: value for key, value in SPAN.items() if key != "gen_ai.response.id"}
    verdict = {key: value for key, value in EVALUATION.items() if key != "gen_ai.response.id"}
    attached = [{"name": "gen_ai.evaluation.result", "timeUnixNano": str(UNIX * 10**9), "attributes": keys(verdict)}]
    answer, judged, _ = all_of(otlp(span(plain, events=attached)))
    assert answer.id == "t1-s1" == judged.interaction_id


# --- CloudEvents -----------------------------------------------------------------------------------------------------

ENVELOPE = {
    "specversion": "1.0", "id": "ce1", "source": "/app", "type": "com.example.answer", "time": "2026-11-24T09:30:00Z",
}  # fmt: skip


@pytest.mark.parametrize("inside", [NATIVE, OPENAI, {"timestamp": UNIX, **SPAN}, NATIVE_FEEDBACK])
def test_cloudevents_around_each(inside: dict[str, Any]) -> None:
    plain = one(inside)
    text = json.dumps(inside)
    headers = [(f"ce_{key}", value.encode()) for key, value in ENVELOPE.items()]
    headers += [("content-type", b"application/json"), ("ce_empty", None)]
    assert one({**ENVELOPE, "data": inside}) == plain
    assert one({**ENVELOPE, "data": text}) == plain
    assert one({**ENVELOPE, "data_base64": base64.b64encode(text.encode()).decode()}) == plain
    assert one(inside, headers=headers) == plain


def test_an_envelope_says_what_the_event_does_not() -> None:
    short = {key: value for key, value in NATIVE.items() if key not in ("id", "timestamp", "workload")}
    headers = [("ce_id", b"ce1"), ("ce_time", b"2026-11-24T09:30:00Z"), ("ce_workload", b"w")]
    for event in (one({**ENVELOPE, "workload": "w", "data": short}), one(short, headers=headers)):
        assert (event.id, event.timestamp, event.workload) == ("ce1", AT, "w")


def test_an_evaluation_named_by_its_envelope_alone() -> None:
    verdict, _ = all_of({**ENVELOPE, "type": "gen_ai.evaluation.result", "data": EVALUATION}, "feedback")
    assert (verdict.name, verdict.timestamp) == ("relevance", AT)


def test_cloudevents_around_nothing_we_know() -> None:
    assert refused({**ENVELOPE, "data": {"price": 3}})[0] == "not_an_event"
    assert refused({**ENVELOPE, "data": "no JSON"})[0] == "not_json"
    assert refused({**ENVELOPE, "data_base64": "%"})[0] == "not_an_event"
    nested: Any = NATIVE
    for _ in range(10):
        nested = {**ENVELOPE, "data": nested}
    assert refused(nested)[0] == "not_an_event"


@pytest.mark.parametrize("depth", [500, 100_000])
def test_hostile_nesting(depth: int) -> None:
    inside = b'{"a":' * depth + b"1" + b"}" * depth
    for value in (inside, b'{"request":' + inside + b',"response":{}}', b'{"gen_ai.prompt":' + inside + b"}"):
        (bad,) = all_of(value)
        assert isinstance(bad, BadPart)


@pytest.mark.parametrize("index", ["²", "٣", "9" * 5_000, "-1", "1e3"])
def test_indices_that_are_no_numbers_stop_nothing(index: str) -> None:
    flat = {"gen_ai.request.model": "m", "timestamp": UNIX, "gen_ai.completion.0.content": "Rain."}
    assert all_of(otlp(span({**flat, f"gen_ai.prompt.{index}.content": "What?"})))  # and nothing is raised


JUNK: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, "", "x", "²", "9" * 5_000, "[1]", '{"a": 1}', [], [[]], [None], [1], {}, {"a": {}},
    {"type": "text"}, {"values": 5}, {"intValue": "x"}, {"arrayValue": 3}, {"kvlistValue": {"values": [{"key": 1}]}},
    [{"key": "gen_ai.prompt", "value": {"stringValue": 7}}], {"role": 5, "content": [{"text": 1}]},
    "\x00", "\ud83d\ude00",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [deep for key, item in inner for deep in places(item, (*path, key))]


@pytest.mark.full
@pytest.mark.parametrize(
    "sample",
    [NATIVE, OPENAI, {"time": UNIX, **SPAN}, otlp(span(SPAN, events=[{"name": "gen_ai.choice", "attributes": []}])),
     evaluation(EVALUATION), {**ENVELOPE, "data": OPENAI},
     {"workload": "w", "request": {"model": "m", "instructions": "i", "input": PARTS_IN, "conversation": {"id": "c"}},
      "response": {"id": "r", "created_at": UNIX, "output": [{"type": "function_call"}, {"content": [{}]}]}},
     {"time": UNIX, "gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "a", "gen_ai.completion": "b"}],
)  # fmt: skip
def test_no_junk_in_any_place_brings_anything_but_events_and_reasons(sample: Any) -> None:
    for path in places(sample):
        for junk in JUNK:
            broken = json.loads(json.dumps(sample))
            node = broken
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = junk
            for kind in ("interactions", "feedback"):
                assert all(
                    isinstance(found, Interaction | Feedback | BadPart | PassedOver) for found in all_of(broken, kind)
                )
            node[f"{path[-1]}x" if isinstance(node, dict) else -1] = junk
            all_of(broken)
