"""Which requests a rule sends to the incumbent."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from retuned.daemon.gateway.cascade import is_invalid, read_confidence, rule_for
from retuned.daemon.gateway.conversations import Call
from retuned.daemon.gateway.memory.help import Help
from retuned.retrain.settings import CascadeSettings


def call(*contents: Any, **more: Any) -> Call:
    messages = [{"role": "user", "content": content} for content in contents]
    return Call(json.dumps({"model": "support", "messages": messages, **more}).encode())


def answer(message: Any, **more: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": message, **more}]}).encode()


@pytest.mark.parametrize(
    ("languages", "text", "found"),
    [
        (("en",), "Where is the parcel that I ordered last week?", None),
        (("en", "de"), "Wo ist das Paket, das ich letzte Woche bestellt habe?", None),
        (("en",), "Wo ist das Paket, das ich letzte Woche bestellt habe?", "language"),
        (("en",), "Где посылка, которую я заказал на прошлой неделе?", "language"),
        (("ru",), "Где посылка, которую я заказал на прошлой неделе?", None),
        (("ja",), "先週注文した荷物はどこですか", None),
        (("en",), "先週注文した荷物はどこですか", "language"),
        (("en",), "Danke!", None),
        (("en",), "12345", None),
        (("en",), "", None),
    ],
)
def test_a_request_clearly_in_another_language(languages: tuple[str, ...], text: str, found: str | None) -> None:
    assert rule_for(call(text), CascadeSettings(languages=languages)) == found


def test_the_length_is_that_of_all_texts() -> None:
    rules = CascadeSettings(longer_than=10)
    assert rule_for(call("12345", "67890"), rules) is None
    assert rule_for(call("12345", "678901"), rules) == "length"
    assert rule_for(call([{"type": "text", "text": "12345678901"}]), rules) == "length"
    assert rule_for(call("12345", system="678901"), rules) == "length"
    assert rule_for(Call(b'{"model": "support", "prompt": "12345678901"}'), rules) == "length"
    assert rule_for(call("12345678901", tools=[{}]), CascadeSettings()) is None


def test_junk_is_of_no_rule() -> None:
    rules = CascadeSettings(longer_than=1, tools=True, languages=("en",))
    for messages in (None, 7, [7, None, {"role": 7, "content": {"a": 1}}], {}):
        assert rule_for(Call(json.dumps({"model": "m", "messages": messages}).encode()), rules) is None


def test_languages_are_codes() -> None:
    with pytest.raises(ValidationError, match="languages"):
        CascadeSettings(languages=("english",))


def test_an_answer_is_invalid_only_if_that_is_sure() -> None:
    asked, as_json = call("How long?"), call("How long?", response_format={"type": "json_schema"})
    assert is_invalid(asked, answer({"content": None}))
    assert is_invalid(as_json, answer({"content": "30 days"}))
    for sound in ({"content": "30 days"}, {"content": None, "tool_calls": [{}]}, {"content": "", "refusal": "No."}):
        assert not is_invalid(asked, answer(sound))
    assert not is_invalid(as_json, answer({"content": "[30]"}))
    for junk in (b"", b"[]", b"{}", b'{"choices": 7}', b'{"choices": [{"message": 7}]}'):
        assert not is_invalid(asked, junk)


def test_an_answer_that_is_none_of_the_labels_is_invalid() -> None:
    labels = ("report_lost_phone", "Straße")
    for sound in ("report_lost_phone", ' "Report_Lost_Phone". ', "STRASSE"):
        assert not is_invalid(call("Where?"), answer({"content": sound}), labels)
    for invented in ("reportlostphone", "report_lost_phone or refund", "I am sorry, I cannot help."):
        assert is_invalid(call("Where?"), answer({"content": invented}), labels)
        assert not is_invalid(call("Where?"), answer({"content": invented}))
    for other in (
        {"content": None, "tool_calls": [{}]},
        {"content": "", "refusal": "No."},
        {"content": [{"text": "x"}]},
    ):
        assert not is_invalid(call("Where?"), answer(other), labels)
    as_json = call("Where?", response_format={"type": "json_object"})
    assert not is_invalid(as_json, answer({"content": '{"queue": "refund"}'}), labels)


def test_a_label_that_the_memory_may_have_given_is_valid() -> None:
    helped = call("Where?")
    unused: Any = None
    helped.help = Help(unused, is_held_out=False, message={"role": "system", "content": "> a_new_label"})
    assert not is_invalid(helped, answer({"content": "a_new_label"}), ("report_lost_phone",))


def test_confidence_is_the_mean_of_the_tokens() -> None:
    tokens = {"content": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -3.0}]}
    body = answer({"content": "ab"}, logprobs=tokens)
    stripped, confidence = read_confidence(body, keep=False)
    assert (json.loads(stripped), confidence) == (json.loads(answer({"content": "ab"})), -2.0)
    assert read_confidence(body, keep=True) == (body, -2.0)
    for junk in (b"", b"[]", answer({}, logprobs=7), answer({}, logprobs={"content": [7, {"logprob": "x"}]})):
        assert read_confidence(junk, keep=True) == (junk, None)
