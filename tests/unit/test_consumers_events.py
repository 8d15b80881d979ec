"""The two events: what is understood, what becomes a dead letter, and the schemas that are published."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec import UNSET

from fixtures.feedback.traffic import BOUNDS
from retuned.consumers.formats.events import BadEvent, Bounds, Feedback, Interaction, decode
from retuned.consumers.formats.schemas import json_schemas
from retuned.consumers.settings import IngestSettings

SCHEMAS = Path(__file__).parents[2] / "deploy" / "schemas"

INTERACTION: dict[str, Any] = {
    "id": "0198",
    "timestamp": "2026-11-24T09:30:00.123Z",
    "workload": "support.refunds",
    "model": "support.refunds@3f2a91c0",
    "messages": [{"role": "user", "content": "Where is my parcel?"}],
    "response": "On its way.",
}
FEEDBACK: dict[str, Any] = {
    "id": "f1",
    "timestamp": "2026-11-24T09:31:00Z",
    "interaction_id": "0198",
    "name": "helpful",
    "value": True,
}


def interaction(**changes: Any) -> Interaction:
    event = decode("interactions", json.dumps(INTERACTION | changes).encode(), BOUNDS)
    assert isinstance(event, Interaction)
    return event


def feedback(**changes: Any) -> Feedback:
    event = decode("feedback", json.dumps(FEEDBACK | changes).encode(), BOUNDS)
    assert isinstance(event, Feedback)
    return event


def reason(kind: Any, payload: bytes | None) -> str:
    with pytest.raises(BadEvent) as bad:
        decode(kind, payload, BOUNDS)
    return bad.value.reason


def test_required_fields_are_enough_and_unknown_ones_are_ignored() -> None:
    event = interaction(new_field={"from": "a newer producer"})
    assert (event.id, event.workload, event.response) == ("0198", "support.refunds", "On its way.")
    assert event.context is UNSET
    assert event.latency_seconds is None
    assert feedback(new_field=1).source == "user"


@pytest.mark.parametrize("field", ["id", "timestamp", "workload", "model", "messages", "response"])
def test_an_interaction_without_a_required_field_is_bad(field: str) -> None:
    payload = {key: value for key, value in INTERACTION.items() if key != field}
    assert reason("interactions", json.dumps(payload).encode()) == "not_an_event"


@pytest.mark.parametrize("field", ["id", "timestamp", "interaction_id", "name", "value"])
def test_feedback_without_a_required_field_is_bad(field: str) -> None:
    payload = {key: value for key, value in FEEDBACK.items() if key != field}
    assert reason("feedback", json.dumps(payload).encode()) == "not_an_event"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-24T09:30:00.123Z", datetime(2026, 11, 24, 9, 30, 0, 123000, UTC)),
        ("2026-11-24T09:30:00", datetime(2026, 11, 24, 9, 30, tzinfo=UTC)),
        ("2026-11-24T11:30:00+02:00", datetime(2026, 11, 24, 9, 30, tzinfo=UTC)),
        ("2026-11-24 01:30:00-08:00", datetime(2026, 11, 24, 9, 30, tzinfo=UTC)),
    ],
)
def test_timestamps_have_a_zone_and_are_utc_without_one(text: str, expected: datetime) -> None:
    assert interaction(timestamp=text).timestamp == expected


NOW = datetime(2026, 11, 26, 12)
DEFAULTS = Bounds.of(IngestSettings(), NOW)
FILES = Bounds.of(IngestSettings(), NOW, history=True)


@pytest.mark.parametrize(
    ("text", "bounds", "fits"),
    [
        ("2026-11-26T12:09:00Z", DEFAULTS, True),
        ("2026-11-26T13:09:00+01:00", DEFAULTS, True),
        ("2026-11-26T12:11:00Z", DEFAULTS, False),
        ("2026-11-26T21:00:00", DEFAULTS, False),  # a local time without its zone
        ("2024-01-01T00:00:00Z", DEFAULTS, True),
        ("2023-01-01T00:00:00Z", DEFAULTS, False),
        ("1970-01-21T10:45:12Z", DEFAULTS, False),  # milliseconds taken for seconds
        ("2009-06-01T00:00:00Z", FILES, True),
        ("1970-01-21T10:45:12Z", FILES, False),
        ("2026-11-26T21:00:00", FILES, False),
    ],
)
def test_the_time_of_an_event_is_bounded(text: str, bounds: Bounds, fits: bool) -> None:
    for kind, event in (("interactions", INTERACTION), ("feedback", FEEDBACK)):
        payload = json.dumps(event | {"timestamp": text}).encode()
        if fits:
            decode(kind, payload, bounds)  # type: ignore[arg-type]
        else:
            with pytest.raises(BadEvent, match=r"bad_value: timestamp: .*\(ingest\.max_"):
                decode(kind, payload, bounds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "most"),
    [
        ("input_tokens", 10_000_000),
        ("output_tokens", 10_000_000),
        ("cost", 10_000.0),
        ("latency_seconds", 86_400.0),
        ("time_to_first_token_seconds", 86_400.0),
    ],
)
def test_the_numbers_of_an_interaction_are_bounded(field: str, most: float) -> None:
    assert getattr(interaction(**{field: most}), field) == most
    for more in (most + 1, 2**63 - 1 if isinstance(most, int) else 1e308):
        with pytest.raises(BadEvent, match=rf"bad_value: {field}: .*\(ingest\.max_"):
            interaction(**{field: more})


@pytest.mark.parametrize(
    ("name", "most"), [("time_saved_seconds", 604_800), ("stars", 1e12), ("time_saved_seconds", -604_800)]
)
def test_the_numbers_of_feedback_are_bounded(name: str, most: float) -> None:
    assert feedback(name=name, value=most).value == most
    for more in (most * 1.01, most * 1e200, int(most) * 10**300):
        with pytest.raises(BadEvent, match=rf"bad_value: .*{name}: .*\(ingest\.max_"):
            feedback(name=name, value=more)


@pytest.mark.parametrize("part", ["input_tokens", "output_tokens"])
def test_the_tokens_of_an_answer_in_shadow_are_bounded_like_those_of_interactions(part: str) -> None:
    def shadow(count: Any) -> Any:
        value = {"model": "support@2", "response": "Yes.", part: count}
        return feedback(name="shadow_answer", source="app", value=value)

    for count in (0, 10_000_000, 12.0, None):
        assert shadow(count).value[part] == count
    for count in (10_000_001, 5e11, 10**400, -1, -990, 1.5, "NaN", "9", True, [9]):
        with pytest.raises(BadEvent, match=rf"bad_value: .*shadow_answer.*{part}"):
            shadow(count)


def test_bounds_are_those_of_the_settings() -> None:
    bounds = Bounds.of(IngestSettings(max_tokens=5, max_age_days=10, max_ahead_seconds=3_600), NOW)
    assert reason_within(bounds, input_tokens=6, timestamp="2026-11-26T12:30:00Z") == "bad_value"
    assert reason_within(bounds, timestamp="2026-11-15T12:30:00Z") == "bad_value"
    assert reason_within(bounds, input_tokens=5, timestamp="2026-11-26T12:30:00Z") is None


def reason_within(bounds: Bounds, **changes: Any) -> str | None:
    try:
        decode("interactions", json.dumps(INTERACTION | changes).encode(), bounds)
    except BadEvent as error:
        return error.reason
    return None


def test_messages_keep_fields_that_only_the_model_server_knows() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "x"}}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    assert json.loads(bytes(interaction(messages=messages).messages)) == messages


TOOL = {"type": "function", "function": {"name": "order", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "order", "arguments": '{"id": 7}'}}


BYTES = "iVBORw0KGgo/" * 100


@pytest.mark.parametrize(
    ("part", "kept"),
    [({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BYTES}"}}, "data:image/png;base64,… (1,222"),
     ({"type": "input_audio", "input_audio": {"data": BYTES, "format": "wav"}}, "… (1,200"),
     ({"type": "file", "file": {"file_data": f"data:application/pdf;base64,{BYTES}"}}, "data:application/pdf;base64,…"),
     ({"type": "blob", "mime_type": "image/png", "content": BYTES}, "… (1,200")],
)  # fmt: skip
@pytest.mark.parametrize("escape", [str, lambda json: json.replace("/", "\\/")])
def test_of_images_and_files_in_messages_only_type_and_length_are_kept(part: Any, kept: str, escape: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Is it broken?" * 100}, part]}]
    event = decode("interactions", escape(json.dumps(INTERACTION | {"messages": messages})).encode(), BOUNDS)
    assert isinstance(event, Interaction)
    ((text, media),) = [message["content"] for message in json.loads(bytes(event.messages))]
    assert text == messages[0]["content"][0]
    assert media["type"] == part["type"]
    assert kept in str(media)
    assert len(str(media)) < 300


def test_images_beside_the_text_of_a_message_are_left_out_and_short_or_linked_ones_stay() -> None:
    (message,) = json.loads(bytes(interaction(messages=[
        {"role": "user", "content": "Is it broken?", "images": [BYTES, "https://shop.example/7.png", BYTES[:256]]}
    ]).messages))  # fmt: skip
    assert message["images"] == ["… (1,200 characters left out)", "https://shop.example/7.png", BYTES[:256]]
    long_text = [{"role": "user", "content": BYTES}, {"role": "tool", "content": BYTES, "tool_call_id": "c"}]
    assert json.loads(bytes(interaction(messages=long_text).messages)) == long_text


def test_tools_that_are_offered_and_called_stand_among_the_attributes() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None}
    event = interaction(tools=[TOOL], response=called, attributes={"channel": "web"})
    assert event.response == ""
    kept = json.loads(bytes(event.attributes))
    assert kept == {"channel": "web", "tools": [TOOL], "tool_calls": [CALL]}
    event = interaction(response={"content": "I look.", "tool_calls": [CALL]}, attributes=None)
    assert (event.response, json.loads(bytes(event.attributes))) == ("I look.", {"tool_calls": [CALL]})
    event = interaction(response={"content": "Hi", "tool_calls": None}, tools=None)
    assert (event.response, event.attributes) == ("Hi", UNSET)


@pytest.mark.parametrize(
    "calling",
    [
        {"tool_calls": [{"id": "c1", "name": "order", "arguments": {"id": 7}}]},
        {"tool_calls": [{"id": "c1", "name": "order", "args": {"id": 7}, "type": "tool_call"}]},  # LangChain
        {"tool_calls": [{"call_id": "c1", "id": "fc1", "name": "order", "arguments": '{"id":7}'}]},  # Responses API
        {"function_call": {"name": "order", "arguments": '{"id":7}'}, "tool_calls": None},  # OpenAI, before tools
    ],
    ids=["flat", "args", "responses", "older"],
)
def test_calls_of_tools_are_kept_in_one_form(calling: dict[str, Any]) -> None:
    said = {"role": "assistant", "content": None, **calling}
    event = interaction(messages=[*INTERACTION["messages"], said], response=said)
    _, message = json.loads(bytes(event.messages))
    attributes = json.loads(bytes(event.attributes))
    assert message["tool_calls"] == attributes["tool_calls"]
    (call,) = message["tool_calls"]
    assert {"id": "c1", **call} == CALL | {"function": {"name": "order", "arguments": '{"id":7}'}}
    assert "function_call" not in message
    if "function_call" not in calling:
        assert call["id"] == "c1"
        assert json.loads(bytes(interaction(attributes=calling).attributes)) == attributes


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_beside_an_answer_stands_among_the_attributes(name: str) -> None:
    event = interaction(response={"content": "Hi", name: "Be kind."})
    assert (event.response, json.loads(bytes(event.attributes))) == ("Hi", {"reasoning_content": "Be kind."})
    event = interaction(response={"content": None, name: "Hm,"})  # cut off before the answer
    assert (event.response, json.loads(bytes(event.attributes))) == ("", {"reasoning_content": "Hm,"})
    event = interaction(response={"content": "Hi", name: {"effort": "low"}})
    assert (event.response, event.attributes) == ("Hi", UNSET)


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": "none"},
        {"tools": ["order"]},
        {"response": {"choices": []}},
        {"response": {"tool_calls": []}},
        {"response": {"content": None, "tool_calls": [{"id": "c1"}]}},
        {"response": {"content": ["text"]}},
        {"response": None},
    ],
)
def test_tools_in_no_form_of_ours_are_refused(changes: dict[str, Any]) -> None:
    assert reason("interactions", json.dumps(INTERACTION | changes).encode()) == "not_an_event"


@pytest.mark.parametrize("name", ["messages", "context", "attributes"])
def test_nothing_hides_behind_escapes_in_what_stays_json(name: str) -> None:
    text = "anna\\u0040example.com, a\\/b, caf\\u00e9, \\ud83d\\ude00"
    nested = {
        "messages": f'[{{"role": "user", "content": "{text}", "more": "{text}"}}]',
        "context": f'["{text}"]',
        "attributes": f'{{"{text}": "{text}"}}',
    }[name]
    plain = json.dumps(INTERACTION | {name: "?"}).encode().replace(b'"?"', nested.encode())
    event = decode("interactions", plain, BOUNDS)
    kept = bytes(getattr(event, name)).decode()
    assert "anna@example.com, a/b, café, 😀" in kept
    assert json.loads(kept) == json.loads(nested)


def test_what_stays_json_is_utf8_wherever_it_stands() -> None:
    for where in (b'"x": "?"', b'"messages": [{"role": "user", "more": "?"}]', b'"attributes": {"a": ["?"]}'):
        payload = (
            json.dumps({k: v for k, v in INTERACTION.items() if k != "messages"}).encode()[:-1] + b"," + where + b"}"
        )
        assert reason("interactions", payload.replace(b"?", b"\xff")) == "not_utf8"


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": "  "},
        {"id": 7},
        {"id": "x" * 513},
        {"workload": ""},
        {"messages": []},
        {"messages": "hello"},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "", "content": "x"}]},
        {"messages": [{"role": "user", "content": 7}]},
        {"response": None},
        {"latency_seconds": -1},
        {"latency_seconds": "fast"},
        {"input_tokens": 1.5},
        {"input_tokens": 2**63},
        {"timestamp": 1764000000},
        {"timestamp": "yesterday"},
        {"timestamp": "0001-01-01T00:00:00+14:00"},
        {"timestamp": "9999-01-01T00:00:00Z"},
        {"context": [1]},
        {"attributes": []},
    ],
)
def test_wrong_values_of_an_interaction_are_bad(changes: dict[str, Any]) -> None:
    assert reason("interactions", json.dumps(INTERACTION | changes).encode()) in {"not_an_event", "bad_value"}


@pytest.mark.parametrize(
    ("name", "good", "wrong"),
    [
        ("helpful", [True, False], [1, "yes", 0.5]),
        ("hallucination", [True], ["true"]),
        ("resolved", [False], [0]),
        ("escalated", [True], [1]),
        ("rating", [0, 1, 0.75], [-0.1, 1.5, True, "5"]),
        ("time_saved_seconds", [120, 0.5, -30], [True, "120"]),
        ("correction", ["It takes 14 days.", {"days": 14}, ["a", "b"]], ["", "  ", 14, True, {}, []]),
        ("comment", ["thanks"], [1, {"a": 1}]),
        ("tone_of_voice", [True, 3, 0.5, "warm"], [None, [], {}]),
    ],
)
def test_reserved_names_have_one_type_and_others_any_scalar(name: str, good: list[Any], wrong: list[Any]) -> None:
    for value in good:
        kept = feedback(name=name, value=value).value
        assert kept == value
        assert isinstance(kept, bool) == isinstance(value, bool)
    for value in wrong:
        assert reason("feedback", json.dumps(FEEDBACK | {"name": name, "value": value}).encode()) in {
            "not_an_event",
            "bad_value",
        }


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("helpful", "yes", 'value of helpful: expected true or false, as in "value": true, got a text'),
        ("helpful", {"up": 1}, 'value of helpful: expected true or false, as in "value": true, got an object'),
        ("rating", 5, 'value of rating: expected a number from 0 to 1, as in "value": 0.75, got a number'),
        ("correction", "", 'expected a text that is not empty, as in "value": "Within 30 days.", got an empty text'),
        ("mood", {"up": 1}, "value of mood: expected a boolean, a number or a string, got an object"),
    ],
)
def test_a_wrong_value_is_told_what_was_expected_with_an_example(name: str, value: Any, said: str) -> None:
    with pytest.raises(BadEvent) as refused:
        feedback(name=name, value=value)
    assert said in refused.value.detail


def test_what_is_wrong_quotes_no_value() -> None:
    """The detail of a dead letter is in the status, which people see who may not read conversations."""
    secret = "Erika Mustermann - at Kiel"
    for fields in ({"source": secret}, {"name": "helpful", "value": secret}, {"name": "mood", "value": [secret]}):
        with pytest.raises(BadEvent) as refused:
            feedback(**fields)
        assert "Mustermann" not in refused.value.detail


def test_only_known_sources() -> None:
    assert feedback(source="expert").source == "expert"
    assert reason("feedback", json.dumps(FEEDBACK | {"source": "somebody"}).encode()) == "not_an_event"


def _with_id(raw: bytes) -> bytes:
    return json.dumps(FEEDBACK).encode().replace(b'"f1"', raw)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"not json", "not_json"),
        (b"[1, 2]", "not_an_event"),
        (b"null", "not_an_event"),
        (json.dumps(FEEDBACK).encode() + b" trailing", "not_json"),
        (json.dumps(FEEDBACK).encode()[:-5], "not_json"),
        (_with_id(b'"\xff\xfe"'), "not_utf8"),
        (_with_id(b'"a\xed\xa0\x80b"'), "not_utf8"),
        (_with_id(b'"\\ud800"'), "not_json"),
        (_with_id(b'"\\udc00"'), "not_json"),
        (json.dumps(FEEDBACK).encode().replace(b"true", b"NaN"), "not_json"),
        (json.dumps(FEEDBACK).encode().replace(b"true", b"Infinity"), "not_json"),
        (json.dumps(FEEDBACK).encode().replace(b"true", b"1e999"), "not_an_event"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep"),
        (b" " * 5_000_001, "too_large"),
    ],
)
def test_what_is_no_event_has_a_reason(payload: bytes | None, expected: str) -> None:
    assert reason("feedback", payload) == expected


@pytest.mark.parametrize("name", ["interaction", "feedback"])
def test_published_schemas_are_made_from_the_code(name: str) -> None:
    """After a change of the events, write the files anew from `json_schemas()`."""
    written = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    assert written == json_schemas()[name]
    jsonschema.Draft202012Validator.check_schema(written)


def test_the_schemas_accept_what_the_code_accepts() -> None:
    schemas = json_schemas()
    jsonschema.validate(INTERACTION, schemas["interaction"])
    jsonschema.validate(FEEDBACK, schemas["feedback"])
    jsonschema.validate(
        INTERACTION | {"tools": [TOOL], "response": {"content": None, "tool_calls": [CALL]}}, schemas["interaction"]
    )
    jsonschema.validate(FEEDBACK | {"name": "correction", "value": {"days": 14}}, schemas["feedback"])
    for wrong in ({"id": ""}, {"messages": [{"content": "no role"}]}, {"latency_seconds": -1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(INTERACTION | wrong, schemas["interaction"])
