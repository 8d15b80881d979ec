"""What client libraries really send (tests/data/clients), and hand-made rows of products that were not at hand."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from fixtures.feedback.traffic import BOUNDS
from fixtures.kafka.ingestion import Rig, settings_for
from fixtures.kafka.protobuf import field
from retuned.consumers.formats import otlp
from retuned.consumers.formats.dialects import FORMATS, PASSED_OVER, BadPart, decode_any, foreign
from retuned.consumers.formats.events import Feedback, Interaction, PassedOver
from retuned.consumers.formats.users import USER_KEYS
from retuned.consumers.kafka.memory import MemoryLog
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.identity import text_turns

CLIENTS = Path(__file__).parents[1] / "data" / "clients"
QUESTION, ANSWER = "Until when can I return a tent?", "Within 30 days."
PROMPT = [{"role": "system", "content": "You work for a shop."}, {"role": "user", "content": QUESTION}]
WORKLOAD = "support.refunds"
AT = "2026-11-24T09:30:00Z"


def recorded(name: str) -> Any:
    return json.loads((CLIENTS / name).read_text(encoding="utf-8"))


def found(value: Any, headers: Any = (), kind: Any = "interactions") -> list[Any]:
    payload = value if isinstance(value, bytes) else json.dumps(value).encode()
    return decode_any(kind, payload, headers, BOUNDS)


def answers(value: Any, headers: Any = ()) -> list[Interaction]:
    return [event for event in found(value, headers) if isinstance(event, Interaction)]


def one(value: Any, headers: Any = ()) -> Interaction:
    (event,) = found(value, headers)
    assert isinstance(event, Interaction), event
    return event


def prompt(event: Interaction) -> Any:
    return json.loads(bytes(event.messages))


def attributes(event: Interaction) -> Any:
    return {} if event.attributes is UNSET else json.loads(bytes(event.attributes))


def passed_over(value: Any) -> list[str]:
    return [item.reason for item in found(value) if isinstance(item, PassedOver)]


def refused(value: Any) -> BadPart:
    (bad,) = found(value)
    assert isinstance(bad, BadPart), bad
    return bad


def check(event: Interaction, *, tool: bool = False) -> None:
    """The two calls that are recorded everywhere: an answer, and a call of a tool."""
    assert (event.workload, prompt(event), event.input_tokens, event.output_tokens) == (WORKLOAD, PROMPT, 21, 5)
    assert event.model.startswith("double-1")
    assert event.response == ("" if tool else ANSWER)
    if tool:
        (call,) = attributes(event)["tool_calls"]
        assert call["function"]["name"] == "order_status"
        assert json.loads(call["function"]["arguments"]) == {"order": "A-1"}


# --- OpenTelemetry and its relatives ---------------------------------------------------------------------------------

OTLP = sorted(path.name for path in CLIENTS.glob("*.bin"))


def plain(event: Any) -> Any:
    """Comparable: JSON that is passed on as it is may be written in another order."""
    if not isinstance(event, Interaction):
        return event
    return {
        field: getattr(event, field) for field in event.__struct_fields__ if field not in ("messages", "attributes")
    } | {
        "messages": prompt(event),
        "attributes": attributes(event),
    }


@pytest.mark.parametrize("name", OTLP)
def test_protobuf_holds_what_its_json_does(name: str) -> None:
    from_protobuf, from_json = found((CLIENTS / name).read_bytes()), found(recorded(name.replace(".bin", ".json")))
    assert from_protobuf
    assert [plain(event) for event in from_protobuf] == [plain(event) for event in from_json]


@pytest.mark.parametrize("mode", ["span_only_spans", "span_and_event_spans", "event_only_logs", "span_and_event_logs"])
def test_genai_of_the_openai_instrumentation(mode: str) -> None:
    said, called = answers((CLIENTS / f"otel_openai_v2_{mode}.bin").read_bytes())
    check(said)
    check(called, tool=True)
    assert (said.latency_seconds is not None) == mode.endswith("spans")  # a log record has no start


def test_of_several_answers_in_a_span_the_first_is_stored_and_the_others_are_counted() -> None:
    value = recorded("otel_openai_v2_span_only_spans.json")
    (span, _) = value["resourceSpans"][0]["scopeSpans"][0].pop("spans")
    value["resourceSpans"][0]["scopeSpans"][0]["spans"] = [span]
    (said,) = (item for item in span["attributes"] if item["key"] == "gen_ai.output.messages")
    other = json.dumps([*json.loads(said["value"]["stringValue"]), {"role": "assistant", "parts": []}])
    said["value"]["stringValue"] = other
    event, further = found(value)
    check(event)
    assert further == PassedOver("further_choice")


@pytest.mark.parametrize("batch", [lambda value: value["resourceSpans"], lambda value: value["resourceSpans"][0]])
def test_resources_without_the_object_around_them(batch: Any) -> None:
    """As rotel writes them, and as a collector that splits its batches may."""
    value = recorded("otel_openai_v2_span_only_spans.json")
    assert [plain(event) for event in found(batch(value))] == [plain(event) for event in found(value)]


@pytest.mark.parametrize("nothing", [0, "0", ""])
def test_a_log_record_that_says_that_its_time_is_nothing(nothing: Any) -> None:
    """As rotel writes it: protobuf's JSON may hold fields that are not set."""
    value = recorded("otel_openai_v2_event_only_logs.json")
    for record in value["resourceLogs"][0]["scopeLogs"][0]["logRecords"]:
        record["timeUnixNano"] = nothing
    said, called = answers(value)
    check(said)
    check(called, tool=True)


@pytest.mark.parametrize("first", ["spans", "logs"])
def test_the_latency_of_an_answer_whose_content_is_in_a_log_record_is_kept(first: str) -> None:
    parts = [(CLIENTS / f"otel_openai_v2_event_only_{kind}.bin").read_bytes() for kind in ("spans", "logs")]
    events = [event for part in parts[:: 1 if first == "spans" else -1] for event in found(part)]
    said = {event.id: event for event in events if isinstance(event, Interaction)}
    timed = {event.interaction_id: event for event in events if isinstance(event, Feedback)}
    assert len(said) == 2
    assert said.keys() == timed.keys()
    for event in timed.values():
        assert (event.name, event.source) == ("latency_seconds", "app")
        assert 0.05 < event.value < 5  # type: ignore[operator]
    again = {event.id for part in parts for event in found(part) if isinstance(event, Feedback)}
    assert again == {event.id for event in timed.values()}  # sent twice, they are duplicates


def test_spans_without_content_are_counted_and_the_variables_that_turn_it_on_are_named() -> None:
    bare = (CLIENTS / "otel_openai_v2_no_content_spans.bin").read_bytes()
    assert passed_over(bare) == ["without_content"] * 2
    for variable in ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "OPENINFERENCE_HIDE_INPUTS"):
        assert variable in PASSED_OVER["without_content"]


@pytest.mark.parametrize("hidden", ["input", "output", "both"])
@pytest.mark.parametrize("form", ["values", "texts"])
def test_openinference_whose_content_is_hidden_in_whole_or_in_part(hidden: str, form: str) -> None:
    """As OPENINFERENCE_HIDE_INPUTS, _OUTPUTS, _INPUT_TEXT and _OUTPUT_TEXT make them."""
    value = recorded("openinference_openai_spans.json")
    for span in value["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        for item in [*span["attributes"]]:
            key = item["key"]
            if ("input" if hidden == "output" else "output") in key and hidden != "both":
                continue
            if form == "values" and "put_messages." in key:
                span["attributes"].remove(item)
            elif key.endswith(("put.value", ".content", ".text")):
                item["value"] = {"stringValue": "__REDACTED__"}
    assert found(value) == [PassedOver("without_content")] * 4


def test_openinference() -> None:
    said, called, responded, streamed = answers((CLIENTS / "openinference_openai_spans.bin").read_bytes())
    for event in (said, responded, streamed):
        check(event)
    check(called, tool=True)
    assert (said.conversation_id, said.user_id, attributes(said)["channel"]) == ("conv-1", "user-17", "web")
    assert attributes(called)["tools"][0]["function"]["name"] == "order_status"
    longer = json.dumps(recorded("openinference_openai_spans.json")).replace("chatcmpl-d", "chatcmpl-0000000d")
    known = [event.id for event in answers(longer.replace("resp_d", "resp_0000000d").encode())]
    assert (known[2][:13], known[0][:17]) == ("resp_0000000d", "chatcmpl-0000000d")  # what the app knows the answers by
    assert said.id == f"{attributes(said)['trace_id']}-{attributes(said)['span_id']}"  # chatcmpl-d1 is too short
    assert said.latency_seconds is not None
    assert 0 < streamed.time_to_first_token_seconds < streamed.latency_seconds  # type: ignore[operator]
    assert "user-17" not in json.dumps(attributes(said))


def test_openinference_of_a_framework_that_keeps_texts_alone() -> None:
    value = {
        "name": "llm",
        "start_time": "2026-11-24T09:29:59Z",
        "end_time": AT,
        "context": {"trace_id": "t", "span_id": "s"},
    }
    kept = {"openinference.span.kind": "LLM", "input.value": QUESTION, "output.value": ANSWER, "llm.model_name": "m"}
    event = one({**value, "attributes": {**kept, "retuned.workload": "w"}})
    assert (prompt(event), event.response, event.id) == ([{"role": "user", "content": QUESTION}], ANSWER, "t-s")
    assert passed_over({**value, "attributes": {**kept, "openinference.span.kind": "CHAIN"}}) == ["other_operation"]
    other = recorded("openinference_openai_spans.json")
    for span in other["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        span["attributes"] = [{"key": "llm.request.type", "value": {"stringValue": "chat"}}]
    assert {*passed_over(other)} == {"no_model_call"}  # of another convention


def test_protobuf_that_is_damaged_is_one_letter_and_raises_nothing() -> None:
    whole = (CLIENTS / "openinference_openai_spans.bin").read_bytes()
    luck = random.Random(7)
    for _ in range(300):
        broken = bytearray(whole[: luck.randrange(1, len(whole))] if luck.random() < 0.3 else whole)
        for _ in range(luck.randrange(4)):
            broken[luck.randrange(len(broken))] = luck.randrange(256)
        for item in found(bytes(broken)):
            assert isinstance(item, Interaction | Feedback | PassedOver | BadPart)
            assert not isinstance(item, BadPart) or item.error.reason != "internal_error", item
    metric = field(1, field(2, field(2, field(1, b"http.server.duration") + field(3, b"s"))))
    assert refused(metric).error.reason == "otlp_protobuf"
    deep = b""
    for _ in range(5_000):
        deep = field(5, field(1, deep))
    value = field(1, b"gen_ai.prompt") + field(2, deep)
    span = field(1, bytes(16)) + field(2, bytes(8)) + field(9, value)
    assert refused(field(1, field(2, field(2, span)))).error.reason == "too_deep"


EMPTY = b"\x0a\x00" * 50_000


@pytest.mark.parametrize(
    "message",
    [
        lambda: field(1, field(2, EMPTY.replace(b"\x0a", b"\x12"))),  # records
        lambda: field(1, EMPTY.replace(b"\x0a", b"\x12")),
        lambda: field(1, EMPTY),
        lambda: field(1, field(2, b"")) + EMPTY,
        lambda: field(1, field(2, field(2, EMPTY.replace(b"\x0a", b"\x32")))),
        lambda: field(1, field(2, field(2, field(5, field(5, EMPTY))))),
    ],
    ids=["records", "scopes", "attributes of a resource", "resources", "attributes", "values"],
)
def test_protobuf_that_is_mostly_empty_is_not_read_to_its_end(message: Any) -> None:
    assert refused(message()).error.reason == "too_many"


def test_lists_of_numbers_in_protobuf_are_read() -> None:
    """The smallest that a client sends in numbers: ids of tokens."""
    numbers = b"".join(field(1, b"\x18" + bytes([number % 128 | 128, 128 | 3, 1])) for number in range(20_000))
    value = field(1, b"tokens") + field(2, field(5, numbers))
    span = field(1, bytes(16)) + field(2, bytes(8)) + field(9, value)
    assert passed_over(field(1, field(2, field(2, span)))) == ["no_model_call"]


def test_scalars_of_protobuf() -> None:
    """Negative numbers, doubles, booleans and bytes, which no recording holds."""
    values = {"int": b"\x18" + b"\xff" * 9 + b"\x01", "double": b"\x21" + bytes(6) + b"\xf8\x3f", "bool": b"\x10\x01"}
    values |= {"bytes": field(7, b"\x01\xff")}
    pairs = b"".join(field(9, field(1, name.encode()) + field(2, value)) for name, value in values.items())
    span = field(1, bytes(16)) + field(2, bytes(8)) + pairs
    decoded = otlp.decode(field(1, field(2, field(2, span))))
    (record,) = decoded["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert {item["key"]: [*item["value"].values()] for item in record["attributes"]} == {
        "int": [-1], "double": [1.5], "bool": [True], "bytes": ["01ff"],
    }  # fmt: skip


def test_spans_of_langfuse() -> None:
    (said,) = answers((CLIENTS / "langfuse_sdk_spans.bin").read_bytes())
    check(said)
    assert (said.conversation_id, said.user_id, said.cost) == ("conv-1", "user-17", 0.001)
    assert passed_over((CLIENTS / "langfuse_sdk_spans.bin").read_bytes()) == ["other_operation"]


# --- APIs ------------------------------------------------------------------------------------------------------------


def logged(name: str) -> Any:
    return {"workload": WORKLOAD, "timestamp": AT, **recorded(name)}


@pytest.mark.parametrize(
    "name", ["openai_chat", "openai_responses", "openai_stream", "anthropic_chat", "anthropic_stream"]
)
def test_calls_of_an_api(name: str) -> None:
    event = one(logged(f"{name}.json"))
    check(event)
    if "stream" not in name:
        assert event.user_id == "user-17"


def test_calls_of_tools_keep_the_call_and_what_was_offered() -> None:
    event = one(logged("openai_tools.json"))
    check(event, tool=True)
    assert attributes(event)["tools"][0]["function"]["name"] == "order_status"


def test_a_stream_of_anthropic_with_a_call_of_a_tool_and_one_that_broke_off() -> None:
    log = logged("anthropic_stream_tools.json")
    event = one(log)
    assert (event.response, event.finish_reason, event.output_tokens) == (ANSWER, "tool_use", 5)
    (call,) = attributes(event)["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"order": "A-1"}
    broken = one(log | {"response": log["response"][:3]})
    assert (broken.response, broken.finish_reason or None) == ("Within ", None)


def test_a_conversation_with_tools_and_an_image_of_anthropic() -> None:
    event = one(logged("anthropic_tools.json"))
    system, asked, called, result = prompt(event)
    assert system["content"] == "You work for a shop."
    assert asked["content"][0]["text"] == "Where are A-1 and this?"
    assert called["tool_calls"][0]["function"] == {"name": "order_status", "arguments": '{"order":"A-0"}'}
    assert result == {"role": "tool", "tool_call_id": "toolu_0", "content": "sent"}
    assert (event.response, event.finish_reason) == (ANSWER, "tool_use")
    assert attributes(event)["tools"][0]["function"]["parameters"]["type"] == "object"
    assert len(event.messages) < 1_500  # without the bytes of the image


def test_of_an_image_the_text_is_kept_and_the_bytes_are_not() -> None:
    event = one(logged("openai_image.json"))
    text, image = prompt(event)[0]["content"]
    assert text["text"] == "What is on this picture?"
    assert image["image_url"]["url"].startswith("data:image/png;base64,…")
    assert "1,390" in image["image_url"]["url"]
    long_text = "a" * 5_000
    log = logged("openai_chat.json")
    log["request"]["messages"] = [{"role": "user", "content": long_text}]
    assert prompt(one(log))[0]["content"] == long_text


def test_of_several_choices_the_first_is_stored_and_the_others_are_counted() -> None:
    log = logged("openai_two_choices.json")
    log["response"]["choices"][1]["message"]["content"] = "Never."
    event, other = found(log)
    check(event)
    assert other == PassedOver("further_choice")


def test_a_stream_of_calls_of_tools_is_joined() -> None:
    parts = [{"id": "call_1", "type": "function", "function": {"name": "order_status", "arguments": ""}},
             {"function": {"arguments": '{"order": '}}, {"function": {"arguments": '"A-1"}'}}]  # fmt: skip
    log = logged("openai_stream.json")
    first = log["response"][0]
    log["response"][1:3] = [
        {**first, "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **part}]}}]} for part in parts
    ]
    check(one(log), tool=True)


def test_a_stream_is_read_where_only_some_chunks_are_named() -> None:
    """As Azure's, whose first chunk holds the filters of the prompt."""
    log = logged("openai_stream.json")
    log["response"][0:0] = [{"id": "", "object": "", "created": 0, "model": "", "choices": []}]
    check(one(log))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_apart_from_the_answer_is_kept(name: str) -> None:
    """As DeepSeek, vLLM with a reasoning parser, and OpenRouter have it."""
    log = logged("openai_chat.json")
    log["response"]["choices"][0]["message"][name] = "30 days, I think."
    event = one(log)
    check(event)
    assert attributes(event)["reasoning_content"] == "30 days, I think."
    log["response"]["choices"][0] = {"message": {"content": None, name: "30 days,"}, "finish_reason": "length"}
    assert (one(log).response, one(log).finish_reason) == ("", "length")

    log = logged("openai_stream.json")
    first = log["response"][0]
    both = {"reasoning_content": "30", "reasoning": "30"}  # some versions of vLLM send both
    parts = [both, {name: " days,"}, {name: " I think."}]
    log["response"][1:1] = [{**first, "choices": [{"index": 0, "delta": part}]} for part in parts]
    event = one(log)
    check(event)
    assert attributes(event)["reasoning_content"] == "30 days, I think."


def test_the_events_of_a_streamed_response() -> None:
    log = logged("openai_responses.json")
    whole = log["response"]
    log["response"] = [{"type": "response.created", "response": {**whole, "output": []}},
                       {"type": "response.output_text.delta", "delta": "Within"},
                       {"type": "response.completed", "response": whole}]  # fmt: skip
    check(one(log))


@pytest.mark.parametrize("name", ["bedrock", "gemini", "gemini_with_underscores"])
def test_calls_of_bedrock_and_gemini(name: str) -> None:
    """Reasoning is kept apart; of an image the bytes are not kept; results of tools are messages of their own."""
    product, _, style = name.partition("_")
    said, called = (logged(f"{product}_{kind}.json") for kind in ("chat", "tools"))
    for log in (said, called):
        log["response"] = log.pop(style, log["response"])
    event = one(said)
    check(event)
    assert attributes(event)["reasoning_content"] == "30, I think."
    event = one(called)
    assert (event.response, event.input_tokens, event.output_tokens) == (ANSWER, 21, 5)
    (call,) = attributes(event)["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"order": "A-1"}
    (offered,) = attributes(event)["tools"]
    assert offered["function"]["name"] == "order_status"
    assert offered["function"]["parameters"]["type"] == "object"
    system, asked, used, result = prompt(event)
    assert system == PROMPT[0]
    assert asked["content"][0] == {"type": "text", "text": "Where are A-1 and this?"}
    assert used["tool_calls"][0]["function"] == {"name": "order_status", "arguments": '{"order":"A-0"}'}
    assert (result["role"], result["tool_call_id"]) == ("tool", used["tool_calls"][0]["id"])
    assert "sent" in result["content"]
    assert len(event.messages) < 1_500


def test_bedrock_knows_its_latency_and_why_it_ended() -> None:
    log = logged("bedrock_chat.json")
    event = one(log)
    assert (event.latency_seconds, event.finish_reason, event.model) == (0.83, "end_turn", "double-1")
    assert (event.user_id, event.conversation_id) == ("user-17", "conv-1")
    assert one(log | {"latency_ms": 900}).latency_seconds == 0.9


def invocation(**changes: Any) -> dict[str, Any]:
    """Hand-made, after the documentation of Bedrock's model invocation logging."""
    log = recorded("bedrock_chat.json")
    return {
        "schemaType": "ModelInvocationLog", "schemaVersion": "1.0", "timestamp": AT, "accountId": "1",
        "region": "us-east-1", "requestId": "b1", "operation": "Converse", "modelId": "double-1",
        "identity": {"arn": "arn:aws:iam::1:user/app"},
        "input": {"inputContentType": "application/json", "inputBodyJson": log["request"], "inputTokenCount": 21},
        "output": {"outputContentType": "application/json", "outputBodyJson": log["response"], "outputTokenCount": 5},
    } | changes  # fmt: skip


def invoked(request: Any, response: Any) -> Interaction:
    """As `InvokeModel` logs a call, whose body is that of the model's maker."""
    log = invocation(operation="InvokeModel", requestMetadata={"workload": WORKLOAD})
    return one(log | {"input": log["input"] | {"inputBodyJson": request},
                      "output": log["output"] | {"outputBodyJson": response}})  # fmt: skip


def test_logs_of_bedrock() -> None:
    event = one(invocation())
    check(event)
    assert (event.id, event.user_id, event.conversation_id, event.latency_seconds) == ("b1", "user-17", "conv-1", 0.83)
    assert "user-17" not in json.dumps(attributes(event))
    anthropic, chat = recorded("anthropic_chat.json"), recorded("openai_chat.json")
    check(invoked(anthropic["request"], anthropic["response"]))
    check(invoked(chat["request"], chat["response"]))
    for request, response in (
        ({"inputText": QUESTION}, {"results": [{"outputText": ANSWER, "completionReason": "FINISH"}]}),
        ({"prompt": QUESTION}, {"generation": ANSWER, "stop_reason": "stop"}),
        ({"prompt": QUESTION}, {"outputs": [{"text": ANSWER, "stop_reason": "stop"}]}),
    ):
        event = invoked(request, response)
        assert (prompt(event), event.response) == ([{"role": "user", "content": QUESTION}], ANSWER)
        assert (event.model, event.input_tokens, event.output_tokens) == ("double-1", 21, 5)
        assert event.finish_reason in ("FINISH", "stop")
    for reason, changes in {
        "failed_call": {"errorCode": "ThrottlingException", "output": {}},
        "other_operation": {"output": {"outputBodyJson": {"embedding": [0.1]}}},
        "without_content": {"input": {"inputContentType": "application/json", "inputBodyS3Path": "s3://a/b"}},
    }.items():
        assert passed_over(invocation(**changes)) == [reason]


def test_logs_of_vertex_ai() -> None:
    """Hand-made, after the documentation of its request-response log, in the forms that BigQuery exports."""
    log, claude = recorded("gemini_chat.json"), recorded("anthropic_chat.json")
    request = log["request"] | {"labels": {"workload": WORKLOAD, "user_id": "user-17", "conversation_id": "conv-1"}}
    row = {"endpoint": "e", "deployed_model_id": None, "logging_time": "2026-11-24 09:30:00.250 UTC", "request_id": "7",
           "model": "publishers/google/models/double", "api_method": "generateContent", "full_request": request,
           "full_response": log["response"], "metadata": {"request_latency": 830.0}}  # fmt: skip
    as_text = {name: json.dumps(row[name]) for name in ("full_request", "full_response", "metadata")}
    for event in (one(row), one(row | as_text)):
        check(event)
        assert (event.id, event.timestamp.isoformat()) == ("resp-d1", "2026-11-24T09:30:00.250000+00:00")
        assert (event.user_id, event.conversation_id, event.latency_seconds) == ("user-17", "conv-1", 0.83)
    with_claude = row | {"full_request": claude["request"], "full_response": claude["response"]}
    assert one({**ENVELOPE, "data": with_claude}).response == ANSWER
    assert passed_over(row | {"full_response": None}) == ["without_content"]
    assert passed_over(row | {"full_response": {"promptFeedback": {"blockReason": "SAFETY"}}}) == ["failed_call"]
    assert passed_over(row | {"full_response": {"error": {"code": 429}}}) == ["failed_call"]


def test_a_stream_of_gemini_is_joined() -> None:
    log = logged("gemini_tools.json")
    thought, text, call = log["response"]["candidates"][0]["content"]["parts"]
    first, second = {"text": "Within "}, {"text": "30 days."}
    log["response"] = [
        {"candidates": [{"content": {"role": "model", "parts": parts}}], "modelVersion": "double-1-2026"}
        for parts in ([thought], [first], [second], [call])
    ]
    log["response"][-1] |= {"usageMetadata": {"promptTokenCount": 21, "candidatesTokenCount": 5}}
    log["response"][-1]["candidates"][0] |= {"finishReason": "STOP"}
    event = one(log)
    assert (event.response, event.finish_reason, event.input_tokens) == (ANSWER, "STOP", 21)
    assert attributes(event)["tool_calls"][0]["function"]["name"] == "order_status"
    assert attributes(event)["reasoning_content"] == "30, I think."
    assert text["text"] == ANSWER


SPLIT = ["Within 30 ", "days", ", or 14."]
ASKED_TWICE = ["When?", "And how?"]


def api_call(api: str, asked: list[str], answered: Any, reason: str | None = None) -> Any:
    """A call by hand: texts of the user as parts, and the parts of the answer, or None for none."""
    if api == "anthropic":
        parts = [{"type": "text", "text": text} for text in asked]
        request = {"model": "m", "messages": [{"role": "user", "content": parts}]}
        response = {"type": "message", "content": answered or [], "stop_reason": reason}
    elif api == "converse":
        request = {"modelId": "m", "messages": [{"role": "user", "content": [{"text": text} for text in asked]}]}
        response = {"output": {"message": {"role": "assistant", "content": answered or []}}, "stopReason": reason}
    else:
        request = {"model": "m", "contents": [{"role": "user", "parts": [{"text": text} for text in asked]}]}
        content = {"role": "model"} | ({} if answered is None else {"parts": answered})
        response = {"candidates": [{"content": content, "finishReason": reason}]}
    return {"workload": WORKLOAD, "timestamp": AT, "request": request, "response": response}


@pytest.mark.parametrize("api", ["anthropic", "converse", "gemini"])
def test_the_text_of_an_answer_in_several_parts_is_one(api: str) -> None:
    """Anthropic begins a part with each cited text, in mid-sentence; Gemini's parts are contiguous."""
    texts = [{"type": "text", "text": text} if api == "anthropic" else {"text": text} for text in SPLIT]
    log = api_call(api, ASKED_TWICE, texts, "end")
    event = one(log)
    assert (event.response, prompt(event)) == ("".join(SPLIT), [{"role": "user", "content": "When?\nAnd how?"}])
    turns = log["request"]["contents" if api == "gemini" else "messages"]
    turns += [log["response"]["candidates"][0]["content"] if api == "gemini" else {"role": "assistant",
              "content": texts}, turns[0]]  # fmt: skip
    assert [message["content"] for message in prompt(one(log))] == [
        "When?\nAnd how?", "".join(SPLIT), "When?\nAnd how?",
    ]  # fmt: skip


def test_of_cited_texts_of_converse_the_citations_alone_are_lost() -> None:
    cited = {"citationsContent": {"content": [{"text": "30 days."}], "citations": [{"title": "Returns"}]}}
    assert one(api_call("converse", [QUESTION], [{"text": "Within "}, cited], "end_turn")).response == ANSWER
    assert one(api_call("converse", [QUESTION], [cited], "end_turn")).response == "30 days."


@pytest.mark.parametrize("api", ["anthropic", "converse", "gemini"])
def test_a_finished_answer_without_parts_is_empty_and_one_that_broke_off_is_refused(api: str) -> None:
    event = one(api_call(api, [QUESTION], None, "MAX_TOKENS"))
    assert (event.response, event.finish_reason) == ("", "MAX_TOKENS")
    assert "response" in refused(api_call(api, [QUESTION], None)).error.detail


def test_an_answer_that_gemini_blocked_is_a_failed_call() -> None:
    log = api_call("gemini", [QUESTION], None, "SAFETY")
    assert passed_over(log) == ["failed_call"]
    assert passed_over(log | {"response": [log["response"]]}) == ["failed_call"]
    assert passed_over(log | {"response": {"candidates": [{"finishReason": "SAFETY", "index": 0}]}}) == ["failed_call"]
    assert one(api_call("gemini", [QUESTION], [{"text": "Within"}], "SAFETY")).response == "Within"


@pytest.mark.parametrize(
    "name",
    ["openai_chat", "openai_responses", "openai_stream", "anthropic_chat", "bedrock_chat", "gemini_chat"],
)
def test_a_response_without_its_request_is_a_letter_that_names_what_is_missing(name: str) -> None:
    bad = refused(recorded(f"{name}.json")["response"])
    assert bad.error.reason == "not_an_event"
    assert "without its request" in bad.error.detail


def test_batches_of_openai() -> None:
    """Hand-made, after OpenAI's documentation of its Batch API."""
    log = recorded("openai_chat.json")
    log["response"]["id"] = "chatcmpl-9f2c41d7"
    asked = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": log["request"]}
    answered = {"id": "batch_req_1", "custom_id": "r1", "error": None,
                "response": {"status_code": 200, "request_id": "q", "body": log["response"]}}  # fmt: skip
    assert passed_over(asked) == ["request_alone"]
    assert "custom_id" in refused(answered).error.detail
    event = one({**ENVELOPE, "data": asked | answered})
    check(event)
    assert event.id == log["response"]["id"]
    assert passed_over(asked | answered | {"response": None, "error": {"code": "batch_expired"}}) == ["failed_call"]


ENVELOPE = {"specversion": "1.0", "time": AT, "workload": WORKLOAD}


def test_litellm() -> None:
    said, called, streamed, failed = [found(payload) for payload in recorded("litellm.json")]
    (said,), (called,), (streamed,) = said, called, streamed
    check(said)
    check(called, tool=True)
    check(streamed)
    assert failed == [PassedOver("failed_call")]
    assert (said.user_id, said.conversation_id) == ("user-17", "conv-1")
    assert said.cost == pytest.approx(3.1e-5)
    assert said.time_to_first_token_seconds is None
    assert 0 < streamed.time_to_first_token_seconds < streamed.latency_seconds
    assert attributes(called)["tools"]
    (payload, *_) = recorded("litellm.json")
    assert one({**payload, "id": "chatcmpl-9f2c41d7"}).id == "chatcmpl-9f2c41d7"
    other = {**payload, "messages": [{"role": "user", "content": "And a stove?"}]}
    assert said.id == one(payload).id != one(other).id  # chatcmpl-d1 is too short to be unique
    assert passed_over({**payload, "call_type": "aembedding"}) == ["other_operation"]
    assert passed_over({**payload, "messages": "redacted-by-litellm"}) == ["without_content"]


@pytest.mark.parametrize(
    ("request_", "response", "conversation"),
    [({"previous_response_id": "resp_0000000001"}, {}, None),
     ({}, {"previous_response_id": "resp_0000000001"}, None),
     ({"conversation": "conv_1"}, {}, "conv_1"), ({}, {"conversation": {"id": "conv_1"}}, "conv_1"),
     ({"input": [{"type": "item_reference", "id": "msg_1"}, {"role": "user", "content": "Until when?"}]}, {}, None)],
)  # fmt: skip
def test_a_question_whose_history_is_at_openai_is_not_taken_for_a_first_one(
    request_: dict[str, Any], response: dict[str, Any], conversation: str | None
) -> None:
    log = logged("openai_responses.json")
    asked = {"model": "m", "input": "Until when?", "instructions": "Be brief."} | request_
    event = one(log | {"request": asked, "response": log["response"] | response})
    system, before, question = prompt(event)
    assert (system["content"], question) == ("Be brief.", {"role": "user", "content": "Until when?"})
    assert before["content"][0]["type"] == "item_reference"
    assert text_turns(prompt(event)) is None  # so nothing is learned from it
    assert event.conversation_id == conversation
    alone = one(log | {"request": asked | {"input": "Until when?", "previous_response_id": None, "conversation": None}})
    assert text_turns(prompt(alone)) == [{"role": "system", "content": "Be brief."}, question]


def test_texts_of_the_apis_in_other_places() -> None:
    log = logged("openai_chat.json")
    spoken = {"role": "assistant", "content": None, "audio": {"id": "a", "data": "QUJD", "transcript": "In 30 days."}}
    answered = log["response"] | {"choices": [{"index": 0, "message": spoken, "finish_reason": "stop"}]}
    assert one(log | {"response": answered}).response == "In 30 days."
    assert prompt(one(log | {"request": {"model": "m", "prompt": ["Say A"]}})) == [{"role": "user", "content": "Say A"}]
    log = logged("openai_responses.json")
    said = [{"type": "message", "content": [{"type": "output_text", "text": text}]} for text in ("One.", "Two.")]
    assert one(log | {"response": log["response"] | {"output": said}}).response == "One.\nTwo."


def test_the_owner_of_an_apps_key_at_litellm_is_none_of_its_users() -> None:
    (payload, *_) = recorded("litellm.json")
    key = payload["metadata"] | {"user_api_key_end_user_id": None, "user_api_key_user_id": "owner"}
    parameters = {name: value for name, value in payload["model_parameters"].items() if name != "user"}
    event = one({**payload, "end_user": "", "model_parameters": parameters, "metadata": key})
    assert event.user_id is None
    assert attributes(event)["user_api_key_user_id"] == "owner"
    assert one({**payload, "end_user": "", "metadata": key | {"user_api_key_end_user_id": "u-1"}}).user_id == "u-1"


def test_the_responses_api_by_litellm() -> None:
    (payload, *_) = recorded("litellm.json")
    asked = {**payload, "call_type": "aresponses", "response": recorded("openai_responses.json")["response"]}
    event = one({**asked, "messages": QUESTION})
    assert (prompt(event), event.response) == ([{"role": "user", "content": QUESTION}], ANSWER)
    called = {"type": "function_call", "call_id": "c", "name": "order_status", "arguments": "{}"}
    given = [{"role": "user", "content": QUESTION}, {"type": "reasoning", "summary": []}, called,
             {"type": "function_call_output", "call_id": "c", "output": "sent"}]  # fmt: skip
    assert [message["role"] for message in prompt(one({**asked, "messages": given}))] == ["user", "assistant", "tool"]
    redacted = "redacted-by-litellm"
    for left in (redacted, [{"role": "user", "content": redacted}], None):
        assert passed_over({**asked, "messages": left}) == ["without_content"]
    chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "One moment.", "tool_calls": []},
            {"role": "tool", "tool_call_id": "c", "content": "sent"}]  # fmt: skip
    assert prompt(one({**asked, "messages": chat})) == chat
    assert prompt(one({**payload, "messages": QUESTION})) == [{"role": "user", "content": QUESTION}]


# --- tools of tracing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["langsmith", "langchain"])
def test_runs_of_langsmith(name: str) -> None:
    said, called, *others = recorded(f"{name}.json")
    check(one(said))
    event = one(called)
    assert (event.response, prompt(event)) == ("", PROMPT)
    assert attributes(event)["tool_calls"][0]["function"]["name"] == "order_status"
    assert one(said).latency_seconds is not None
    assert [reason for run in others for reason in passed_over(run)] == ["other_operation"] * len(others)
    assert passed_over({**said, "error": "RateLimitError"}) == ["failed_call"]
    assert passed_over({**said, "outputs": None}) == ["request_alone"]


def test_feedback_of_langsmith() -> None:
    row = {"id": "f1", "run_id": "r1", "key": "helpful", "score": 1.0, "value": None, "comment": "Good.",
           "correction": "Within 14 days.", "created_at": AT, "feedback_source": {"type": "model"}}  # fmt: skip
    events = found(row)
    assert [(event.name, event.value, event.source, event.interaction_id) for event in events] == [
        ("helpful", True, "judge", "r1"),
        ("comment", "Good.", "judge", "r1"),
        ("correction", "Within 14 days.", "judge", "r1"),
    ]


@pytest.mark.parametrize(
    ("kind", "source"), [("auto_eval", "judge"), ("model", "judge"), ("app", "user"), ("api", "user")]
)
def test_who_gave_feedback_of_langsmith(kind: str, source: str) -> None:
    row = {
        "id": "f1",
        "run_id": "r1",
        "key": "helpful",
        "score": 1,
        "created_at": AT,
        "feedback_source": {"type": kind},
    }
    (event,) = found(row)
    assert event.source == source


CALL = {"name": "order_status", "arguments": '{"order": 7}'}
CALLED = {"id": "c1", "type": "function", "function": CALL}


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        ({"output": "Within 14 days."}, "Within 14 days."),
        ({"messages": 3, "days": [14]}, '{"messages":3,"days":[14]}'),  # as the response of a run with such outputs
        ({"role": "assistant", "content": "Within 14 days."}, "Within 14 days."),
        ({"choices": [{"message": {"role": "assistant", "content": "14 days."}}]}, "14 days."),
        ({"role": "assistant", "content": "", "tool_calls": [CALLED]}, {"content": "", "tool_calls": [CALLED]}),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **CALL}]},
            {"content": "", "tool_calls": [CALLED]},
        ),
        ({"output": ["red", "blue"]}, '["red","blue"]'),
        ({"answer": "Within 14 days.", "sure": True}, '{"answer":"Within 14 days.","sure":true}'),
        ({"choices": []}, {"choices": []}),
        ({"error": "x"}, {"error": "x"}),
    ],
)
def test_a_correction_of_langsmith_may_be_an_object(correction: Any, expected: Any) -> None:
    row = {"id": "f1", "run_id": "r1", "key": "helpful", "score": 0, "correction": correction, "created_at": AT}
    verdict, corrected = found(row)
    assert (verdict.value, corrected.name) == (False, "correction")
    assert corrected.value == expected


@pytest.mark.parametrize(
    "reason", [{"stop_reason": "max_tokens"}, {"stopReason": "max_tokens"}, {"done_reason": "length"}]
)
def test_the_finish_reason_of_langchain_in_each_providers_name(reason: dict[str, Any]) -> None:
    run = {row["run_type"]: row for row in recorded("langchain.json") if "run_type" in row}["llm"]
    message = {"content": "30", "type": "ai", "response_metadata": {"model_name": "m", **reason}}
    event = one(run | {"outputs": {"generations": [[{"text": "30", "message": message}]]}})
    assert event.finish_reason == next(iter(reason.values()))


OBSERVATION = {
    "id": "o1", "traceId": "t1", "type": "GENERATION", "name": "answer", "startTime": "2026-11-24T09:29:59.170Z",
    "endTime": AT, "completionStartTime": "2026-11-24T09:29:59.670Z", "model": "double-1",
    "input": {"messages": PROMPT}, "output": {"role": "assistant", "content": ANSWER},
    "usageDetails": {"input": 21, "output": 5, "total": 26},
    "costDetails": {"total": 0.001}, "metadata": {"workload": WORKLOAD, "userId": "user-17", "channel": "web"},
    "level": "DEFAULT", "statusMessage": None, "parentObservationId": None, "promptName": None,
}  # fmt: skip
SCORE = {
    "id": "s1", "traceId": "t1", "observationId": "o1", "name": "helpful", "value": 1, "dataType": "BOOLEAN",
    "source": "ANNOTATION", "comment": "Right.", "timestamp": AT,
}  # fmt: skip


@pytest.mark.parametrize("style", ["camelCase", "snake_case"])
def test_rows_of_langfuse(style: str) -> None:
    """Hand-made, after the documentation of Langfuse's API and of its exports."""

    def row(value: dict[str, Any]) -> dict[str, Any]:
        if style == "camelCase":
            return value
        return {"".join(f"_{c.lower()}" if c.isupper() else c for c in key): item for key, item in value.items()}

    event = one(row(OBSERVATION))
    check(event)
    assert (event.id, event.user_id, event.cost) == ("o1", "user-17", 0.001)
    assert event.latency_seconds == pytest.approx(0.83)
    assert event.time_to_first_token_seconds == pytest.approx(0.5)
    assert "user-17" not in json.dumps(attributes(event))
    assert passed_over(row(OBSERVATION | {"type": "RETRIEVER"})) == ["other_operation"]
    assert passed_over(row(OBSERVATION | {"level": "ERROR", "output": None})) == ["failed_call"]
    verdict, comment = found(row(SCORE))
    assert (verdict.interaction_id, verdict.name, verdict.value, verdict.source) == ("o1", "helpful", True, "expert")
    assert (comment.name, comment.value) == ("comment", "Right.")
    assert passed_over(row(SCORE | {"observationId": None})) == ["about_a_trace"]


@pytest.mark.parametrize(("read", "source"), [("sent", "user"), ("read", "expert")])
def test_scores_of_langfuse(read: str, source: str) -> None:
    comment, correction, verdict = (event for score in recorded("langfuse_scores.json")[read] for event in found(score))
    (answer,) = answers((CLIENTS / "langfuse_sdk_spans.bin").read_bytes())
    assert {item.interaction_id for item in (correction, comment, verdict)} == {answer.id}
    assert (correction.name, correction.value, correction.source) == ("correction", "Within 14 days.", source)
    assert (comment.name, comment.value) == ("comment", "The new terms.")
    assert (verdict.name, verdict.value) == ("helpful", False)
    about_trace = recorded("langfuse_scores.json")["read"][0] | {"subject": {"kind": "trace", "id": "t1"}}
    assert passed_over(about_trace) == ["about_a_trace"]


CORRECTION = SCORE | {"name": "output", "dataType": "CORRECTION", "comment": None, "value": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ANSWER, ANSWER),
        ("14", "14"),
        ("false", "false"),
        ("{no JSON", "{no JSON"),
        ('{"intent": "refund"}', {"intent": "refund"}),
        ('["red", "blue"]', ["red", "blue"]),
    ],
)
def test_a_correction_of_langfuse_is_the_text_or_the_json_that_a_person_entered(text: str, expected: Any) -> None:
    for given in ({"stringValue": text}, {"value": text}):
        (correction,) = found(CORRECTION | given)
        assert (correction.id, correction.name, correction.value) == ("s1-correction", "correction", expected)
    trace = {"id": "t1", "timestamp": AT, "observations": [OBSERVATION]}
    of_trace = CORRECTION | {"observationId": None, "value": text}
    _, correction = found(trace | {"scores": [of_trace]})
    assert (correction.interaction_id, correction.name) == ("o1", "correction")


@pytest.mark.parametrize("value", [0, None, "", " ", "{}"])
def test_a_correction_of_langfuse_without_a_text_is_none(value: Any) -> None:
    assert passed_over(CORRECTION | {"value": value}) == ["no_verdict"]
    (comment,) = found(CORRECTION | {"value": value, "comment": "Wrong."})
    assert comment.name == "comment"


def in_langfuse(output: Any) -> Any:
    return OBSERVATION | {"output": output}


def in_langsmith(output: Any) -> Any:
    """As its SDK writes what a function returns: an object as it is, any other value as `output`."""
    (run, *_) = recorded("langsmith.json")
    return run | {"outputs": output if isinstance(output, dict) else {"output": output}}


def in_mlflow(output: Any) -> Any:
    trace = recorded("mlflow.json")
    trace["info"]["assessments"] = []
    trace["data"]["spans"][0]["attributes"]["mlflow.spanOutputs"] = json.dumps(output)
    return trace


TRACED = pytest.mark.parametrize("traced", [in_langfuse, in_langsmith, in_mlflow])


@TRACED
@pytest.mark.parametrize(
    "output",
    [
        {"answer": ANSWER, "confidence": 0.9, "sources": ["faq"]},
        {"text": "refund", "label": None},
        {"error": None, "intent": "refund"},
        {"error": "E12", "action": "retry"},
        {"type": "message", "text": "hi"},
        {"question": "Which?", "choices": ["A", "B"]},
        ["red", "blue"],
        [{"name": "tent"}, {"name": "stove"}],
        [[1, 2], [3]],
    ],
    ids=json.dumps,
)
def test_an_answer_in_json_is_kept_whole(traced: Any, output: Any) -> None:
    for given in (output, json.dumps(output)):
        event = one(traced(given))
        assert json.loads(event.response) == output
        assert prompt(event) == PROMPT


@TRACED
@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({"answer": ANSWER}, ANSWER),
        ({"output": ANSWER, "usage_metadata": {"input_tokens": 21}}, ANSWER),
        ({"response": ANSWER, "model": "m", "done": True, "done_reason": "stop"}, ANSWER),
        ([{"type": "text", "text": ANSWER}], ANSWER),
        ([{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}], ANSWER),
        ({"output": [{"type": "message", "content": [{"type": "output_text", "text": ANSWER}]}]}, ANSWER),
        ("[1] According to the FAQ", "[1] According to the FAQ"),
    ],
    ids=json.dumps,
)
def test_a_text_in_what_a_model_returned_is_the_answer(traced: Any, output: Any, expected: str) -> None:
    assert one(traced(output)).response == expected


@pytest.mark.parametrize(("output", "expected"), [(42, "42"), (True, "true"), (False, "false"), (0.5, "0.5")])
def test_a_number_or_a_boolean_is_an_answer(output: Any, expected: str) -> None:
    assert one(in_langfuse(output)).response == expected
    assert one(in_langsmith(output)).response == expected


@TRACED
@pytest.mark.parametrize(
    "output",
    [
        {"error": "overloaded"},
        {"error": {"message": "overloaded", "code": 529}, "request_id": "r"},
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        {"choices": None, "error": {"message": "overloaded"}, "provider": "p"},
        {"status": 404, "error": "Not Found"},
    ],
    ids=json.dumps,
)
def test_an_error_is_no_answer(traced: Any, output: Any) -> None:
    assert passed_over(traced(output)) == ["failed_call"]


@TRACED
def test_what_a_model_returned_as_blocks_or_items_keeps_its_calls(traced: Any) -> None:
    blocks = [{"type": "text", "text": ANSWER},
              {"type": "tool_use", "id": "c1", "name": "order_status", "input": {"order": 7}}]  # fmt: skip
    items = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]},
             {"type": "function_call", "call_id": "c", "name": "order_status", "arguments": '{"order":7}'}]  # fmt: skip
    for output in (blocks, items):
        event = one(traced(output))
        (call,) = attributes(event)["tool_calls"]
        assert (event.response, json.loads(call["function"]["arguments"])) == (ANSWER, {"order": 7})


@pytest.mark.parametrize("traced", [in_langfuse, in_mlflow])
def test_a_stream_in_a_trace_is_joined(traced: Any) -> None:
    for name in ("openai_stream", "anthropic_stream"):
        assert one(traced(recorded(f"{name}.json")["response"])).response == ANSWER


def test_what_judges_nothing_is_counted_and_not_lost() -> None:
    empty = {"score": None, "value": None, "correction": {"score": 0.5}, "comment": " "}
    assert passed_over({"id": "f", "run_id": "r", "key": "helpful", "created_at": AT, **empty}) == ["no_verdict"]
    assert passed_over({**SCORE, "value": None, "dataType": "NUMERIC", "comment": None}) == ["no_verdict"]
    trace = recorded("mlflow.json")
    trace["info"]["assessments"] = [{"assessment_name": "guidelines", "expectation": {"value": ["x"]}}]
    assert passed_over(trace) == ["no_verdict"]
    assert refused({**trace, "info": {"trace_id": "t"}, "data": {"spans": []}}).error.reason == "not_an_event"


def test_a_whole_trace_of_langfuse() -> None:
    span = OBSERVATION | {"id": "o0", "type": "SPAN"}
    trace = {"id": "t1", "timestamp": AT, "name": "handle", "userId": "user-17", "sessionId": "conv-1",
             "metadata": {"workload": WORKLOAD}, "observations": [span, OBSERVATION | {"metadata": {}}],
             "scores": [SCORE | {"observationId": None, "comment": None}]}  # fmt: skip
    step, event, verdict = found(trace)
    assert step == PassedOver("other_operation")
    check(event)
    assert (event.user_id, event.conversation_id) == ("user-17", "conv-1")
    assert verdict.interaction_id == "o1"


def test_traces_of_mlflow() -> None:
    trace = recorded("mlflow.json")
    event, *feedback = found(trace)
    check(event)
    assert (event.id, event.user_id, event.conversation_id) == (trace["info"]["trace_id"], "user-17", "conv-1")
    assert {(item.name, item.value, item.source, item.interaction_id) for item in feedback} == {
        ("helpful", True, "app", event.id),
        ("comment", "Right and short.", "app", event.id),
        ("correction", "Within 14 days.", "expert", event.id),
    }
    other = json.loads(json.dumps(trace["data"]["spans"][0]))
    two = {**trace, "data": {"spans": [trace["data"]["spans"][0], other | {"span_id": "other"}]}}
    assert len({event.id for event in answers(two)}) == 2
    assert passed_over(two) == ["about_a_trace"] * 2  # of which of them, nothing says


# --- logs and exports of gateways ------------------------------------------------------------------------------------

UUID7 = "019ab54b-d4c0-7000-8000-000000000001"  # holds the time
INFERENCE = {
    "id": UUID7, "function_name": WORKLOAD, "variant_name": "double-1", "episode_id": "e1",
    "input": json.dumps({"system": "You work for a shop.",
                         "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]}),
    "output": json.dumps([{"type": "text", "text": ANSWER}]), "processing_time_ms": 830, "ttft_ms": 400,
    "tags": {"user_id": "user-17"},
}  # fmt: skip


def test_rows_of_tensorzero() -> None:
    """Hand-made, after the documentation of TensorZero's data model."""
    event = one(INFERENCE)
    assert (event.id, event.workload, event.model, event.response) == (UUID7, WORKLOAD, "double-1", ANSWER)
    assert (prompt(event), event.conversation_id, event.user_id) == (PROMPT, "e1", "user-17")
    assert (event.latency_seconds, event.time_to_first_token_seconds) == (0.83, 0.4)
    assert event.timestamp.isoformat().startswith("2025-11-24")
    as_json = one(INFERENCE | {"output": json.dumps({"raw": '{"days": 30}', "parsed": {"days": 30}}), "timestamp": AT})
    assert as_json.response == '{"days": 30}'
    call = {
        "type": "tool_call",
        "id": "c",
        "name": "order_status",
        "arguments": {"order": "A-1"},
        "raw_arguments": "{}",
    }
    assert attributes(one(INFERENCE | {"output": [call]}))["tool_calls"][0]["function"]["arguments"] == "{}"
    feedback = {"id": UUID7, "tags": {}, "timestamp": AT}
    rows = [
        {**feedback, "target_id": UUID7, "metric_name": "helpful", "value": True},
        {**feedback, "target_id": UUID7, "metric_name": "exact", "value": 0.5},
        {**feedback, "target_id": UUID7, "target_type": "inference", "value": "Right."},
        {**feedback, "inference_id": UUID7, "value": json.dumps([{"type": "text", "text": "Within 14 days."}])},
    ]
    events = [event for row in rows for event in found(row)]
    assert [(event.name, event.value, event.source, event.interaction_id) for event in events] == [
        ("helpful", True, "app", UUID7),
        ("exact", 0.5, "app", UUID7),
        ("comment", "Right.", "user", UUID7),
        ("correction", "Within 14 days.", "expert", UUID7),
    ]
    assert passed_over({**feedback, "target_id": "e1", "target_type": "episode", "value": "Right."}) == [
        "about_a_trace"
    ]


def test_a_demonstration_of_tensorzero_that_calls_a_tool_is_a_correction_with_the_call() -> None:
    call = {"type": "tool_call", "id": "c", "name": "order_status", "arguments": {"order": 7}}
    demonstration = {"id": UUID7, "inference_id": UUID7, "timestamp": AT}
    for before, text in (([], ""), ([{"type": "text", "text": "Let me look."}], "Let me look.")):
        (event,) = found({**demonstration, "value": json.dumps([*before, call])})
        assert (event.name, event.source, event.value["content"]) == ("correction", "expert", text)
        (made,) = event.value["tool_calls"]
        assert made["function"] == {"name": "order_status", "arguments": '{"order":7}'}
        _, said = found(DATAPOINT | {"output": [*before, call]})
        assert said.value == event.value


DATAPOINT = {
    "dataset_name": "good", "function_name": WORKLOAD, "id": UUID7, "episode_id": None, "tags": {},
    "input": INFERENCE["input"], "output": INFERENCE["output"], "tool_params": None, "auxiliary": "",
    "is_deleted": False, "updated_at": "2026-03-10 20:14:21.000000",
}  # fmt: skip


def test_datapoints_of_tensorzero_are_demonstrations() -> None:
    """By hand, in the shape of the fixtures in TensorZero's repository."""
    event, said = found(DATAPOINT)
    assert (event.id, event.workload, event.model, event.response) == (UUID7, WORKLOAD, "demonstration", ANSWER)
    assert prompt(event) == PROMPT
    assert (said.name, said.value, said.source, said.interaction_id) == ("correction", ANSWER, "expert", UUID7)
    as_json = DATAPOINT | {"output": {"raw": '{"days": 30}', "parsed": {"days": 30}}, "output_schema": {}}
    assert found(as_json)[1].value == '{"days": 30}'
    assert passed_over(DATAPOINT | {"output": None}) == ["request_alone"]
    assert passed_over(DATAPOINT | {"is_deleted": True}) == passed_over(DATAPOINT | {"staled_at": AT}) == ["withdrawn"]


def test_inferences_of_tensorzero_by_its_api() -> None:
    """By hand, after the types of its API: content is decoded, and the id has another name."""
    row = {name: value for name, value in INFERENCE.items() if name != "id"}
    row |= {"type": "chat", "inference_id": UUID7, "timestamp": AT, "input": json.loads(INFERENCE["input"])}
    event = one(row | {"output": json.loads(INFERENCE["output"]), "dispreferred_outputs": []})
    assert (event.id, event.response, prompt(event)) == (UUID7, ANSWER, PROMPT)


def test_an_inference_of_tensorzero_beside_its_demonstration_is_what_the_model_answered_and_a_correction() -> None:
    """By hand, after the documentation: asked for demonstrations, the API returns them as the output."""
    row = INFERENCE | {"output": [{"type": "text", "text": "Within 14 days."}],
                       "dispreferred_outputs": [json.loads(INFERENCE["output"])]}  # fmt: skip
    event, said = found(row)
    assert (event.response, said.value, said.source) == (ANSWER, "Within 14 days.", "expert")
    assert said.interaction_id == event.id


def test_records_of_a_data_flywheel() -> None:
    """Hand-made, after the README of NVIDIA's data-flywheel blueprint."""
    log = recorded("openai_chat.json")
    event = one({"timestamp": 1795512600, "workload_id": WORKLOAD, "client_id": "shop", **log})
    check(event)
    assert attributes(event)["client_id"] == "shop"


def test_rows_of_helicone() -> None:
    """Hand-made, after the documentation of Helicone's API."""
    log = recorded("openai_chat.json")
    row = {"request_id": "h1", "request_created_at": AT, "response_created_at": AT, "request_body": log["request"],
           "response_body": log["response"], "response_status": 200, "delay_ms": 830, "request_user_id": "user-17",
           "request_properties": {"workload": WORKLOAD, "Helicone-Session-Id": "conv-1", "channel": "web"}}  # fmt: skip
    event = one(row)
    check(event)
    assert (event.id, event.user_id, event.conversation_id, event.latency_seconds) == ("h1", "user-17", "conv-1", 0.83)
    assert passed_over({**row, "response_status": 500, "response_body": {"error": {}}}) == ["failed_call"]


@pytest.mark.parametrize("mode", ["v1_binary", "v1_structured", "v2_binary", "v2_structured"])
def test_cloudevents_of_the_sdk(mode: str) -> None:
    message = recorded(f"cloudevents_{mode}.json")
    event = one(message["value"].encode(), [(key, value.encode()) for key, value in message["headers"].items()])
    assert (event.workload, prompt(event), event.response) == (WORKLOAD, PROMPT, ANSWER)
    assert event.timestamp.year == 2026


# --- all of them -----------------------------------------------------------------------------------------------------

SAMPLES: dict[str, Any] = {
    "openai": logged("openai_tools.json"), "openai_stream": logged("openai_stream.json"),
    "responses": logged("openai_responses.json"), "anthropic": logged("anthropic_tools.json"),
    "anthropic_stream": logged("anthropic_stream_tools.json"),
    "litellm": recorded("litellm.json")[1], "langsmith": recorded("langsmith.json")[1],
    "langchain": recorded("langchain.json")[0], "langfuse": OBSERVATION, "score": SCORE,
    "mlflow": recorded("mlflow.json"), "tensorzero": INFERENCE, "datapoint": DATAPOINT,
    "openinference": recorded("openinference_openai_spans.json"),
    "genai": recorded("otel_openai_v2_event_only_logs.json"),
    "langfuse_sdk": recorded("langfuse_sdk_spans.json"),
    "bedrock": logged("bedrock_tools.json"), "bedrock_log": invocation(), "gemini": logged("gemini_tools.json"),
    "vertex": {"logging_time": AT, "model": "m", "full_request": recorded("gemini_tools.json")["request"],
               "full_response": recorded("gemini_tools.json")["response"]},
}  # fmt: skip
JUNK: list[Any] = [None, True, -1, 1.5, 10**30, "", "x", "[1]", '{"a": 1}', [], [[]], [None], {}, {"a": {}}, "\x00"]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [deep for key, item in inner for deep in places(item, (*path, key))]


@pytest.mark.parametrize("name", SAMPLES)
def test_each_is_known_as_one_format_alone(name: str) -> None:
    assert sum(fits(SAMPLES[name]) for _, fits, _ in FORMATS) == 1
    assert foreign(SAMPLES[name]) is not None


def broken(name: str, luck: random.Random, *, user: str | None = None) -> Any:
    """A sample with junk in some place, and a user in some other."""
    made = json.loads(json.dumps(SAMPLES[name]))
    if user is not None:
        objects = [made, *(at for path in places(made) if isinstance(at := _at(made, path), dict))]
        luck.choice(objects)[luck.choice(USER_KEYS)] = user
    path = luck.choice([path for path in places(made) if user is None or _at(made, path) != user])
    _at(made, path[:-1])[path[-1]] = luck.choice(JUNK)
    return made


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize("name", SAMPLES)
def test_junk_in_any_place_brings_events_and_reasons_that_were_foreseen(name: str) -> None:
    luck = random.Random(name)
    for _ in range(150):
        message = broken(name, luck)
        for item in found(message, kind=luck.choice(["interactions", "feedback"])):
            assert isinstance(item, Interaction | Feedback | PassedOver | BadPart)
            assert not isinstance(item, BadPart) or item.error.reason != "internal_error", item.error.__cause__


@pytest.mark.full
@pytest.mark.parametrize("name", SAMPLES)
def test_no_user_stays_in_a_dead_letter_wherever_the_message_names_one(
    name: str, tmp_path: Path, warehouse: Warehouse
) -> None:
    luck, rig = random.Random(name), Rig(settings_for(tmp_path), warehouse, MemoryLog())
    rig.send(*(broken(name, luck, user="user-17") for _ in range(150)))
    rig.send({"id": "i", "user_id": "user-17"})
    rig.drain()
    letters = warehouse.rows("SELECT payload, detail FROM dead_letters")
    assert letters
    for letter in letters:
        assert "user-17" not in str(letter), letter


def test_nothing_stored_names_a_user_and_nothing_is_stored_twice(tmp_path: Path, warehouse: Warehouse) -> None:
    rig = Rig(settings_for(tmp_path), warehouse, MemoryLog())
    mixed = [OBSERVATION, INFERENCE, logged("anthropic_chat.json")]
    arrays: list[Any] = [recorded("litellm.json"), recorded("langsmith.json"), mixed]
    binaries = [(CLIENTS / name).read_bytes() for name in OTLP]
    rig.send(*arrays, *binaries, recorded("mlflow.json"), [OBSERVATION, {"user": "user-17"}])  # type: ignore[arg-type]
    rig.drain()
    stored = rig.warehouse.rows("SELECT * FROM interactions") + rig.warehouse.rows("SELECT * FROM feedback")
    letters = rig.warehouse.rows("SELECT * FROM dead_letters")
    assert len(stored) > 15
    assert len(letters) == 1
    assert "user-17" not in str(stored) + str(letters)
    users = {row["user_id"] for row in stored if row["user_id"] is not None}
    assert len(users) == 1  # by whichever library
    rig.send(*arrays, *binaries)
    rig.drain()
    again = rig.warehouse.rows("SELECT * FROM interactions") + rig.warehouse.rows("SELECT * FROM feedback")
    assert len(again) == len(stored)
