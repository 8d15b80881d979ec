"""Redaction of JSON by its keys, of all scripts, and what holds for any text: idempotent, never an error."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.feedback.personal_data import labelled, ordinary, redacted_columns
from fixtures.kafka.ingestion import Rig, feedback, interaction, settings_for
from retuned.consumers.kafka.memory import MemoryLog
from retuned.consumers.privacy.placeholders import unnumbered
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.warehouse.connection import Warehouse

GONE: list[dict[str, Any]] = [
    {"password": "hunter2!x"}, {"phone": "2125550198"}, {"phone": 2125550198}, {"dbPassword": "letmein"},
    {"passwords": ["hunter2!x", "swordfish"]}, {"mot_de_passe": "luciole-verte"}, {"user": {"pass": "swordfish"}},
    {"key": "password", "value": {"stringValue": "swordfish"}}, {"name": "phone", "value": "633481205"},
    {"value": "633481205", "name": "mobile_number"}, {"workFax": "2125550198"},
    {"contact_tel": {"value": "2125550198"}},
    {"customer_ssn": "123456789"}, {"passportNumber": "C01X00T47"}, {"nif": "12345678Z"}, {"tax_id": "98765432110"},
    {"patient": {"nhs_number": "6204829173"}}, {"pin": 4821}, {"card": {"cvv": "123"}}, {"securityCode": "4821"},
    {"client_secret": "qwertyuiop"}, {"access_token": "abcdefgh"}, {"db": {"password": "a,b;c'd9\"!"}},
    {"phone": 2125550198.0}, {"key": "phone", "value": {"doubleValue": 2125550198.0}}, {"pin": 4821.0},
    {"number": 4111111111111111}, {"number": 4111111111111111.0}, {"anna@example.com": True},
    {"a": json.dumps({"b": json.dumps({"pin": "4821"})})},
]  # fmt: skip
LABELS = ("password", "phone", "mobile_number", "true")
KEPT: list[dict[str, Any]] = [
    {"order_id": "0301234567"}, {"trackingNumber": "555-123-4567"}, {"firmware": {"version": "10.2.3.4"}},
    {"max_tokens": 100000}, {"token_count": 1234567}, {"usage": {"total_tokens": 123456}}, {"token": " Hello"},
    {"password_changed_at": "2026-11-24T10:00"}, {"invoice_no": "0171 2345678"}, {"created": 1764000000},
    {"properties": {"password": {"type": "string", "description": "the password"}}}, {"ean": "4006381333931"},
    {"DB": "password=${DB_PASSWORD}"}, {"price": 12.5, "n": None, "b": True, "big": 10**30, "e": 1e-7},
    {"created": 1764000000.0, "total_tokens": 123456.0, "big": 1e300},
]  # fmt: skip


def column(texts: list[str], *, json: bool = False) -> list[str]:
    """One column of events, each in a conversation of its own."""
    ids = pa.array([str(number) for number in range(len(texts))])
    columns = redacted_columns(Redactor(), {"c": pa.array(texts)}, {"c"} if json else set(), ids, ids)
    found: list[str] = columns["c"].to_pylist()
    return found


def leaves(value: Any) -> list[str]:
    """The texts of all scalars, in JSON within texts too."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in leaves(item)]
    if isinstance(value, list):
        return [text for item in value for text in leaves(item)]
    if isinstance(value, str) and value.startswith("{"):
        return leaves(json.loads(value))
    return [value if isinstance(value, str) else json.dumps(value)]


@pytest.mark.parametrize("value", GONE, ids=lambda value: json.dumps(value)[:40])
def test_a_key_is_context_for_its_value_at_any_depth(value: dict[str, Any]) -> None:
    text = msgspec.json.encode({"a": [value]}).decode()
    clean = Redactor().text(text)
    assert "_1>" in clean
    assert [leaf for leaf in leaves(value) if leaf in clean] == [leaf for leaf in leaves(value) if leaf in LABELS]
    # The same as a text, as a value, in a column of JSON and in one of texts.
    assert json.loads(clean) == Redactor().value({"a": [value]})
    assert column([text], json=True) == column([text]) == [clean]
    assert Redactor().text(clean) == clean


@pytest.mark.parametrize("value", KEPT, ids=lambda value: json.dumps(value)[:40])
def test_a_key_also_tells_what_is_nothing_personal(value: dict[str, Any]) -> None:
    text = json.dumps({"a": [value]})
    assert Redactor().text(text) == text
    assert column([text], json=True) == [text]


def test_json_stays_as_it_is_written_but_for_what_goes() -> None:
    text = '{ "n": 1.50,\n\t"pin" : 4821, "pin2": "\\u00e4", "list": [ ] }'
    assert Redactor().text(text) == text.replace("4821", '"<KEY_1>"')


def test_events_are_stored_without_what_their_keys_announce(tmp_path: Path, warehouse: Warehouse) -> None:
    rig = Rig(settings_for(tmp_path), warehouse, MemoryLog())
    secrets = {"password": "hunter2!x", "phone": "2125550198"}
    call = {"id": "call_1", "type": "function", "function": {"name": "log_in", "arguments": json.dumps(secrets)}}
    said = {"role": "user", "content": "Hi"}
    rig.send(
        interaction("a", attributes={"deep": [secrets]}),
        interaction("b", messages=[said, {"role": "assistant", "content": None, "tool_calls": [call]}, said]),
        interaction("c", response=json.dumps(secrets), context=[json.dumps(secrets)]),
        feedback("f", "a", name="correction", value=secrets),
        {"id": "bad", "workload": "w", "extra": secrets},
    )
    rig.drain()
    rows = [rig.warehouse.rows(f"SELECT * FROM {table}") for table in ("interactions", "feedback", "dead_letters")]
    assert [len(found) for found in rows] == [3, 1, 1]
    assert "hunter2" not in str(rows)
    assert "2125550198" not in str(rows)
    (correction,) = rows[1]
    assert json.loads(correction["value"]) == {"password": "<KEY_1>", "phone": "<PHONE_1>"}


SCRIPTS = [
    ("電話０９０－１２３４－５６７８です", "電話<PHONE>です"),
    ("電話090ー1234ー5678です", "電話<PHONE>です"),
    ("anna＠example.com。", "<EMAIL>。"),
    ("メールはanna@example.comです", "メールは<EMAIL>です"),
    ("4111\u200b1111\u200b1111\u200b1111", "<CARD>"),
    ("4111\u20091111\u00a01111\u202f1111 ❤️", "<CARD> ❤️"),
    ("٤١١١١١١١١١١١١١١١", "<CARD>"),
    ("\u202a+49 30\u2011123456\u202c", "\u202a<PHONE>\u202c"),
    ("j\u00adens@example.com", "<EMAIL>"),
    ("ju\u0308rgen@mu\u0308ller.de schreibt: gro\u0308ßer", "<EMAIL> schreibt: gro\u0308ßer"),
    ("パスワード：ｈｕｎｔｅｒ２２", "パスワード：<KEY>"),
    ("DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000 – ja", "<IBAN> – ja"),
    ("मोबाइल ०३० १२३४५६७", "मोबाइल <PHONE>"),
]  # fmt: skip
UNTOUCHED = [
    unicodedata.normalize("NFD", "Größe 42 für Jürgen – über 3 Tage…"), "👩\u200d👩\u200d👧 1️⃣ ❤️", "السعر ١٢٫٥٠ ريال",
    "ราคา ๑๒๓ บาท", "ऑर्डर ४४८१७", "９時〜１７時、３点、￥９，８００", "9\u202f800\u00a0€ – 2024–2025", "½ ㎏ ﬁn №5",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), SCRIPTS)
def test_personal_data_is_found_in_all_scripts_and_however_it_is_spaced(text: str, expected: str) -> None:
    clean = Redactor().text(text)
    assert unnumbered(clean) == expected
    assert column([text]) == [clean]
    assert json.loads(column([json.dumps([text], ensure_ascii=False)], json=True)[0]) == [clean]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_text_around_what_is_found_stays_byte_for_byte(text: str) -> None:
    assert Redactor().text(text) == text
    assert Redactor().text(f"{text} anna@example.com {text}") == f"{text} <EMAIL_1> {text}"


def test_one_value_has_one_number_in_whatever_script_it_is_written() -> None:
    assert Redactor().text("ａｎｎａ＠ｅｘａｍｐｌｅ．ｃｏｍ, anna@example.com") == "<EMAIL_1>, <EMAIL_1>"


PIECES = [
    *(item.text for item in labelled()), *(item.gone for item in labelled()), *ordinary(),
    "<EMAIL_1>", "<KEY_2>", "phone ", "password: ", '"password": "', "call ", "order ", "–", "\u200b", "\u0301", "０",
    "＠", "\u00a0", "ー", "\x00", "<\x00", "\ud800", " ", "-", "1", ".", ":", "{", "}", '"', "[", "]", ",", "<", ">",
    "\n", "\\",
]  # fmt: skip
# Whole pieces, their beginnings, and anything else beside each other.
ANY_PIECE = st.integers(0, len(PIECES) - 1).map(lambda number: PIECES[number])
BEGINNING = st.tuples(ANY_PIECE, st.integers(1, 20)).map(lambda cut: cut[0][: cut[1]])
TEXTS = st.lists(st.one_of(ANY_PIECE, BEGINNING, st.text(max_size=8)), max_size=6).map("".join)
KEYS = st.one_of(
    st.sampled_from(["password", "phone", "passportNumber", "pin", "user_id", "value", "name"]), st.text(max_size=5)
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)


@pytest.mark.full
@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_a_text_that_is_redacted_twice_is_as_redacted_once(text: str) -> None:
    clean = Redactor().text(text)
    assert Redactor().text(clean) == clean


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_a_value_that_is_redacted_twice_is_as_redacted_once(value: Any) -> None:
    clean = Redactor().value(value)
    assert Redactor().value(clean) == clean


@pytest.mark.full
@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS.filter(lambda text: "\ud800" not in text), min_size=1, max_size=4))
def test_a_column_misses_nothing_in_any_text(texts: list[str]) -> None:
    assert column(texts) == [Redactor().text(text) for text in texts]


def test_json_that_is_nested_too_deeply_is_redacted_as_a_text() -> None:
    text = "[" * 20_000 + '"anna@example.com"' + "]" * 20_000
    assert "<EMAIL_1>" in Redactor().text(text)
