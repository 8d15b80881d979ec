"""What a request says of itself, and that nothing of it changes but the model."""

import json
from typing import Any

import pytest

from retuned.daemon.gateway.conversations import HEADER, Call
from retuned.daemon.gateway.errors import Refused
from retuned.retrain.release.assignment import Unit

SYSTEM = {"role": "system", "content": "You answer customers."}


def call(*messages: dict[str, Any], **more: Any) -> Call:
    return Call(json.dumps({"model": "support", "messages": list(messages), **more}).encode())


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def unit(one: Call, headers: dict[str, str] | None = None, by: Unit = "conversation") -> str:
    return one.unit(one.conversation(headers or {}), by)


def test_the_header_comes_before_the_metadata_and_those_before_the_user() -> None:
    all_of_them = call(SYSTEM, metadata={"conversation_id": "c-m"}, user="u-1", safety_identifier="s-1")
    assert all_of_them.conversation({HEADER: "c-h"}) == unit(all_of_them, {HEADER: "c-h"}) == "c-h"
    assert all_of_them.conversation({}) == unit(all_of_them) == "c-m"
    user = call(SYSTEM, user="u-1", safety_identifier="s-1")
    assert user.conversation({}) is None
    assert unit(user) == "u-1"
    assert unit(call(SYSTEM, safety_identifier="s-1")) == "s-1"


def test_by_account_the_user_comes_before_the_conversation() -> None:
    both = call(SYSTEM, user="u-1", safety_identifier="s-1")
    assert unit(both, {HEADER: "c-h"}, "account") == unit(both, {HEADER: "another"}, "account") == "u-1"
    assert unit(call(SYSTEM, safety_identifier="s-1"), {HEADER: "c-h"}, "account") == "s-1"
    assert unit(call(SYSTEM), {HEADER: "c-h"}, "account") == "c-h"
    assert unit(call(SYSTEM), by="account") == unit(call(SYSTEM))


def test_a_conversation_without_an_id_is_told_by_how_it_began() -> None:
    first = call(SYSTEM, turn("user", "How long?"))
    later = call(SYSTEM, turn("user", "How long?"), turn("assistant", "30 days."), turn("user", "And then?"))
    assert unit(first) == unit(later)
    assert unit(first) != unit(call(SYSTEM, turn("user", "How much?")))
    assert unit(first) == unit(call(turn("system", "It is 12:07."), turn("user", "How long?")))
    assert unit(first) == unit(call(turn("user", [{"type": "text", "text": "How long?", "cache_control": {}}])))
    prompts = [Call(json.dumps({"model": "support", "prompt": text}).encode()) for text in ("a", "b", "a")]
    assert unit(prompts[0]) == unit(prompts[2]) != unit(prompts[1])


def test_a_request_without_a_conversation_and_a_user_has_no_named_unit() -> None:
    units: tuple[Unit, Unit] = ("conversation", "account")
    for by in units:
        assert call(SYSTEM).named_unit(None, by) is None
        assert call(SYSTEM).named_unit("c-1", by) == "c-1"
        assert call(SYSTEM, user="u-1").named_unit(None, by) == "u-1"


@pytest.mark.parametrize(
    "odd", [{}, [], 5, None, {"conversation_id": 7}, {"conversation_id": ""}, {"conversation_id": "x" * 513}]
)
def test_metadata_of_another_form_names_no_conversation(odd: Any) -> None:
    assert call(SYSTEM, metadata=odd).conversation({}) is None


@pytest.mark.parametrize("odd", ["", "x" * 513, "a\x01b", "caf\udce9"])
def test_a_header_that_can_be_no_id_is_refused(odd: str) -> None:
    with pytest.raises(Refused) as refused:
        call(SYSTEM).conversation({HEADER: odd})
    assert refused.value.code == "invalid_conversation"


def test_only_the_model_changes() -> None:
    kept = b'"messages":[{"role":"user",  "content":"\\u00fc"}],"x":18446744073709551616,"y":1.50e2'
    body = b'{"model": "support" , ' + kept + b"}"
    made = Call(body)
    assert made.asking("support") is body
    assert made.asking("support@1") == b'{"model":"support@1",' + kept + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"support"',
        b'{"messages": []}',
        b'{"model": null}',
        b'{"model": ["a"]}',
        b'{"model": "\xff"}',
        b"{" * 9_999,
    ],
)
def test_what_names_no_model_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        Call(body)
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("messages", [b"5", b'[{"role": 7}]', b'["hello"]', b"null"])
def test_messages_of_another_form_are_the_servers_business(messages: bytes) -> None:
    assert unit(Call(b'{"model": "support", "messages": ' + messages + b"}"))
