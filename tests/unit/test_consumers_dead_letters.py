"""What is kept of a message that is no event: nothing that must not be stored, and the rest."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from fixtures.kafka.ingestion import Rig, feedback, interaction, settings_for
from fixtures.kafka.protobuf import field
from retuned.consumers.kafka.memory import MemoryLog
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.dead_letters import KEPT_CHARACTERS, dead_letters

CARD = "4111 1111 1111 1111"


@pytest.fixture
def rig(tmp_path: Path, warehouse: Warehouse) -> Rig:
    return Rig(settings_for(tmp_path), warehouse, MemoryLog())


def test_the_payload_is_redacted_and_the_detail_quotes_none_of_it(rig: Rig) -> None:
    rig.send(feedback("f", "i", value=f"{CARD}, or anna@example.com"))
    rig.drain()
    (letter,) = dead_letters(rig.warehouse, 10)
    assert letter["reason"] == "bad_value"
    assert letter["detail"].endswith('as in "value": true, got a text')
    assert "<CARD_1>, or <EMAIL_1>" in letter["payload"]


@pytest.mark.parametrize(
    "around",
    [{"userId": "u-17"}, {"metadata": {"userId": "u-17"}}, {"properties": {"Helicone-User-Id": "u-17"}},
     {"request_user_id": "u-17"},
     {"metadata": {"user_api_key_end_user_id": "u-17"}, "end_user": "u-17"}, {"data": json.dumps({"user": "u-17"})},
     {"payload": json.dumps([{"a": json.dumps({"user.id": "u-17"})}])}, {"data": '{"user": "u-17", broken'}],
)  # fmt: skip
def test_users_are_hashed_under_each_of_their_names(rig: Rig, around: dict[str, Any]) -> None:
    rig.send({"id": "i", "workload": "w", **around}, interaction("j", user_id="u-17"))
    rig.drain()
    (letter,) = dead_letters(rig.warehouse, 10)
    assert "u-17" not in letter["payload"]
    (stored,) = rig.warehouse.rows("SELECT user_id FROM interactions")
    assert ("broken" in str(around)) == (stored["user_id"] not in letter["payload"])


USER = field(9, field(1, b"user.id") + field(2, field(1, b"u-17")))
SPAN = field(1, field(2, field(2, field(1, bytes(16)) + field(2, bytes(8)) + USER + field(9, b"\x0a\x06gen_ai"))))


@pytest.mark.parametrize(
    "message",
    [SPAN[:-1], b"\x00\x00\x00\x00\x07\x08u-17", b'\x00\x00\x00\x00\x07"u-17-of-the-shop.', b"\xffUSER\x04u-17"],
    ids=["cut", "framed", "quoted", "other"],
)
def test_of_bytes_that_are_no_text_nothing_is_kept(rig: Rig, message: bytes) -> None:
    """A length stands there where JSON has the quotes after a name."""
    rig.send(message)
    rig.drain()
    (letter,) = dead_letters(rig.warehouse, 10)
    assert (letter["offset"], letter["payload"]) == (0, None)


def test_what_is_wrong_in_protobuf_is_kept_as_json(rig: Rig) -> None:
    asked = field(9, field(1, b"gen_ai.prompt") + field(2, field(1, b"Ask anna@example.com")))
    rig.send(field(1, field(2, field(2, field(1, bytes(16)) + field(2, bytes(8)) + USER + asked))))
    rig.drain()
    (letter,) = dead_letters(rig.warehouse, 10)
    assert letter["reason"] == "not_an_event"
    (kept,) = json.loads(letter["payload"])["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert kept["attributes"][1]["value"] == {"stringValue": "Ask <EMAIL_1>"}
    assert kept["attributes"][0]["value"]["stringValue"] not in ("u-17", None)


def test_a_letter_in_the_frame_of_a_schema_registry_is_kept_as_json(rig: Rig) -> None:
    rig.send(b"\x00\x00\x00\x00\x2a" + json.dumps({"id": "i", "user": "u-17"}).encode())
    rig.drain()
    (letter,) = dead_letters(rig.warehouse, 10)
    assert json.loads(letter["payload"])["id"] == "i"
    assert "u-17" not in letter["payload"]


NAMED = {
    "attributes": {"customer": {"id": "C-4711"}, "user": {"id": "anna-77", "name": "Anna Meier"}},
    "spans": [{"key": "user.id", "value": {"stringValue": "anna-88"}}],
    "messages": [{"name": "Anna99", "content": "Hi\n0170 12345678", "role": "user"}],
}


@pytest.mark.parametrize(
    "event",
    [NAMED | {"text": "word " * 14_000},
     {"text": "word " * 13_060} | NAMED,
     {"messages": [{"name": "Anna99", "content": "word " * 14_000, "role": "user"}]}],
    ids=["end", "begin", "across"],
)  # fmt: skip
def test_in_a_message_that_is_cut_users_are_found_as_in_a_whole_one(rig: Rig, event: dict[str, Any]) -> None:
    rig.send(event)
    rig.drain()
    (letter,) = dead_letters(rig.warehouse, 10)
    assert len(letter["payload"]) > KEPT_CHARACTERS - 1_000
    assert letter["payload"].endswith("…")
    for named in ("4711", "anna", "Anna", "0170"):
        assert named not in letter["payload"]


@pytest.mark.parametrize("whole", [json.dumps(NAMED), json.dumps([NAMED], indent=2), json.dumps(NAMED, indent="\t")])
@pytest.mark.parametrize("broken", [lambda json: json[:-3], lambda json: json.replace('"C', "\\x"), "\ufeff{}!".format])
def test_of_broken_json_the_names_of_fields_are_left(rig: Rig, whole: str, broken: Any) -> None:
    rig.send(broken(whole).encode())
    rig.drain()
    (letter,) = dead_letters(rig.warehouse, 10)
    assert letter["reason"] in ("not_json", "not_an_event")
    assert '"attributes": {' in " ".join(letter["payload"].split())
    for value in ("4711", "anna", "Anna", "Hi", "0170", "Meier"):
        assert value not in letter["payload"]


def test_of_text_that_is_no_json_nothing_is_kept_and_a_mark_of_the_encoding_hides_no_json(rig: Rig) -> None:
    rig.send(
        b"user_id=anna&text=hi", b"[2026-11-24] anna: hi", b"\xef\xbb\xbf" + json.dumps({"user_id": "anna"}).encode()
    )
    rig.drain()
    bom, *others = dead_letters(rig.warehouse, 10)
    assert [letter["payload"] for letter in others] == [None, None]
    assert list(json.loads(bom["payload"])) == ["user_id"]
    assert "anna" not in bom["payload"]


@pytest.mark.parametrize("kept", range(4, len(CARD)))
def test_of_a_number_at_the_cut_no_digit_is_kept(rig: Rig, kept: int) -> None:
    filling = "x" * (KEPT_CHARACTERS - kept - 5)
    rig.send([f"{filling} {CARD} and more"])
    rig.drain()
    (letter,) = dead_letters(rig.warehouse, 10)
    assert letter["reason"] == "not_an_event"
    assert set(letter["payload"]) == {"[", '"', "x", "…"}
    assert len(letter["payload"]) > KEPT_CHARACTERS - 1_000


def test_a_long_message_that_is_kept_whole_is_not_cut(rig: Rig) -> None:
    event = interaction("i", messages="none", response="x" * (KEPT_CHARACTERS - 1_000))
    rig.send(event)
    rig.drain()
    (letter,) = dead_letters(rig.warehouse, 10)
    assert event["response"] in letter["payload"]


def test_letters_are_read_page_by_page_and_what_is_deleted_meanwhile_is_left_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retuned.consumers.warehouse.dead_letters.PAGE", 2)
    for number in range(7):
        rig.send(b"[" if number % 3 else b"{}")
    rig.drain()
    everything = list(dead_letters(rig.warehouse, 100))
    assert [letter["offset"] for letter in everything] == [6, 5, 4, 3, 2, 1, 0]
    assert list(dead_letters(rig.warehouse, 5)) == everything[:5]
    reason = everything[0]["reason"]
    assert list(dead_letters(rig.warehouse, 2, reason)) == [one for one in everything if one["reason"] == reason][:2]
    reading = dead_letters(rig.warehouse, 100)
    assert next(reading) == everything[0]
    rig.warehouse.checkpoint()  # a client that reads no further holds nothing up
    rig.warehouse.execute("DELETE FROM dead_letters")
    assert list(reading) == everything[1:2]
    left = dead_letters(rig.warehouse, 100)
    assert next(left, None) is None


@pytest.mark.parametrize(
    ("around", "shown"),
    [(lambda event: event, "<EMAIL_1>"), (lambda event: {"a": [event]}, "<EMAIL_1>"),
     (lambda event: json.dumps(event)[:-1], '"data_base64":'),
     (lambda event: event | {"x": "y" * KEPT_CHARACTERS}, "<EMAIL_1>")],
)  # fmt: skip
def test_what_is_encoded_in_an_envelope_is_redacted_too(rig: Rig, around: Any, shown: str) -> None:
    inside = json.dumps(feedback("f", "i", value=None, user_id="u-17", note="anna@example.com")).encode()
    encoded = base64.b64encode(inside).decode()
    event = {"specversion": "1.0", "id": "e", "source": "/a", "type": "t", "data_base64": encoded}
    sent = around(event)
    rig.send(sent.encode() if isinstance(sent, str) else sent)
    rig.drain()
    (letter,) = dead_letters(rig.warehouse, 10)
    assert encoded[:40] not in letter["payload"]
    assert "u-17" not in letter["payload"]
    assert shown in letter["payload"]


def test_what_was_encoded_is_kept_decoded(rig: Rig) -> None:
    inside = json.dumps(interaction("i", messages="none")).encode()
    event = {"specversion": "1.0", "id": "e", "source": "/a", "type": "t"}
    rig.send(event | {"data_base64": base64.b64encode(inside).decode()})
    rig.drain()
    (letter,) = dead_letters(rig.warehouse, 10)
    assert json.loads(letter["payload"])["data"]["id"] == "i"
    rig.send(event | {"data_base64": base64.b64encode(b"\xff\xfe").decode()})
    rig.drain()
    newest = next(iter(dead_letters(rig.warehouse, 10)))
    assert "base64" not in newest["payload"]


def test_of_a_message_that_is_too_large_the_names_of_fields_are_left(tmp_path: Path, warehouse: Warehouse) -> None:
    settings = settings_for(tmp_path)
    small = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"max_event_bytes": 1_000})})
    rig = Rig(small, warehouse, MemoryLog())
    rig.send(NAMED | {"text": "anna " * 1_000})
    rig.drain()
    (letter,) = dead_letters(rig.warehouse, 10)
    assert letter["reason"] == "too_large"
    assert letter["payload"].startswith(
        '{"attributes": {"customer": {"id": …}, "user": {"id": …, "name": …}}, "spans": ['
    )
