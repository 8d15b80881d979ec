"""Redaction: what must go, what must stay, and that no text makes it slow."""

import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr

from retuned.consumers import privacy
from retuned.consumers.errors import ConfigurationError
from retuned.consumers.privacy import Redactor, load_user_key, user_hash
from retuned.consumers.settings import PrivacySettings

FOUND = [
    ("mail bob.o'neil+x@mail.example.co.uk.", "mail <EMAIL>."),
    ("x" * 100 + "@example.com", "<EMAIL>"),
    ("jürgen@müller.de schreibt", "<EMAIL> schreibt"),
    ("call +49 (0)30 123456-78 now", "call <PHONE> now"),
    ("0033 6 12 34 56 78", "<PHONE>"),
    ("030 1234567", "<PHONE>"),
    ("0151-23456789", "<PHONE>"),
    ("06 12 34 56 78", "<PHONE>"),
    ("(020) 7946 0958", "<PHONE>"),
    ("(555) 123-4567", "<PHONE>"),
    ("555-123-4567 or 212 555 0198", "<PHONE> or <PHONE>"),
    ("tel:+4915112345678", "tel:<PHONE>"),
    ("card 4111 1111 1111 1111, exp 12/27", "card <CARD>, exp 12/27"),
    ("4111111111111111", "<CARD>"),
    ("3782 822463 10005", "<CARD>"),
    ("42 4111-1111-1111-1111", "42 <CARD>"),
    ("DE89 3704 0044 0532 0130 00 is my", "<IBAN> is my"),
    ("gb82west12345698765432", "<IBAN>"),
    ("NO93 8601 1117 947", "<IBAN>"),
    ("MT84MALT011000012345MTLCAST001S", "<IBAN>"),
    ("ssn 123-45-6789", "ssn <NATIONAL_ID>"),
    ("AB 12 34 56 C", "<NATIONAL_ID>"),
    ("12345678Z", "<NATIONAL_ID>"),
    ("X1234567L", "<NATIONAL_ID>"),
    ("RSSMRA85T10A562S", "<NATIONAL_ID>"),
    ("1 85 05 78 006 084 91", "<NATIONAL_ID>"),
    ("529.982.247-25", "<NATIONAL_ID>"),
    ("11010519491231002X", "<NATIONAL_ID>"),
    ("811218-9876", "<NATIONAL_ID>"),
    ("86 095 742 719", "<NATIONAL_ID>"),
    ("44051401359", "<NATIONAL_ID>"),
    ("from 10.0.0.1 and 2001:db8::1", "from <IP> and <IP>"),
    ("fe80:0:0:0:1ff:fe23:4567:890a", "<IP>"),
    ("sk-abcdefghijklmnopqrstuvwx", "<KEY>"),
    ("AKIAIOSFODNN7EXAMPLE", "<KEY>"),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "<KEY>"),
    ("xoxb-1234567890-abc", "<KEY>"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "<KEY>"),
    ("Authorization: Bearer abcdef0123456789abcdef", "Authorization: Bearer <KEY>"),
    ("postgres://u:p4ss@db/x", "postgres://<KEY>@db/x"),
    ("password=hunter2", "password=<KEY>"),
    ("my password is hunter22", "my password is <KEY>"),
    ("API_KEY: 'abc123def'", "API_KEY: '<KEY>'"),
    ('"secret":\t"abc123def"', '"secret":\t"<KEY>"'),
    ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY----- ok", "<KEY> ok"),
    ("-----BEGIN PRIVATE KEY-----\nMII", "<KEY>"),
]

KEPT = [
    "price 1,299.00 EUR",
    "9.99, 19.99, 29.99, 39.99",
    "1.000.000,00",
    "24.12.2026",
    "2026-11-24",
    "05/12/2026 - 06/12/2026",
    "01-02-2026 10:30",
    "on 01.02.2026 10:00",
    "2026-11-24T09:30:00.123Z",
    "order A-1047",
    "order 1000234567",
    "order 4711-2026-1234",
    "invoice 2026-000123",
    "EAN 4006381333931",
    "ISBN 978-3-16-148410-0",
    "Mon-Fri 9:00-17:30, Sat 10:00-14:00",
    "09:00-12:00 and 13:00-18:00",
    "24 months",
    "10115 Berlin, 12345-6789",
    "react@18.2.0",
    "version 1.2.3",
    "std::string a::b",
    "10:30:45",
    "password: please reset it",
    "the token is the usual",
    "50,000 tokens",
    "3.14159265358979",
    "Bearer of bad news everywhere",
    "basic understanding",
    "1 2 3 4 5 6 7 8 9 10",
    "1764000000123",
    "2025-2026 season 1999-2003",
    "card 4111 1111 1111 1112",
    "DE89 3704 1144 1532 1130 01",
    "123-45-0000",
    "12345678A",
]


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_personal_data_and_secrets_go(text: str, expected: str) -> None:
    assert Redactor().text(text) == expected
    assert Redactor().text(f"ä {text}\n") == f"ä {expected}\n" or text.startswith("-----BEGIN PRIVATE")


@pytest.mark.parametrize("text", KEPT)
def test_ordinary_business_text_stays(text: str) -> None:
    assert Redactor().text(text) == text


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_a_column_misses_nothing_that_a_text_does_not(text: str, expected: str) -> None:
    nested = msgspec.json.encode([{"role": "user", "content": text, "arguments": {"deep": [text]}}]).decode()
    redactor = Redactor()
    assert redactor.column([None, text, "nothing here"]).to_pylist() == [None, expected, "nothing here"]
    found = msgspec.json.decode(redactor.column([nested], of_json=True).to_pylist()[0])
    assert found == [{"role": "user", "content": expected, "arguments": {"deep": [expected]}}]


def test_values_are_redacted_inside_with_the_names_of_fields_and_numbers() -> None:
    redactor = Redactor()
    value = {"a@example.com": [{"x": "b@example.com"}, 4111111111111111, 7, 1.5, None, True]}
    assert redactor.value(value) == {"<EMAIL>": [{"x": "<EMAIL>"}, "<CARD>", 7, 1.5, None, True]}
    assert redactor.take_counts() == {"EMAIL": 2, "CARD": 1}
    assert redactor.take_counts() == {}


def test_it_can_be_turned_off() -> None:
    assert Redactor(enabled=False).text("a@example.com") == "a@example.com"
    assert Redactor(enabled=False).column(["a@example.com"]).to_pylist() == ["a@example.com"]
    assert Redactor(enabled=False).value(4111111111111111) == 4111111111111111


HOSTILE = [
    "a", "a.", "a@", "a@b.", "1", "1 ", "0 1", "01", "+1", "(0", "DE89 ", "de89-", "4111 1111 1111 1111 ", "1.1.",
    "a:", "::1", "password=", "password is ", "a_b_c_", "token ", "://", "://a:", "eyJ", "eyJaaaaaaaa.",
    "-eyJaaaaaaaa", "sk-", "Bearer ", "Bearer a", "-----BEGIN PRIVATE KEY", "-----BEGIN PRIVATE KEY-----", "'@'",
    "1-", "A1", "ABCDEF", "AB12", "123-", "-@.", "%", "\u00a0",
]  # fmt: skip


def _unbounded(parsed: Any) -> Iterator[Any]:
    """The repeats without an end that a pattern may take back, each of which can make it slower than linear."""
    for operation, argument in parsed:
        if operation in (re._constants.MAX_REPEAT, re._constants.MIN_REPEAT) and argument[1] == re._constants.MAXREPEAT:
            yield argument
        for part in argument if isinstance(argument, tuple | list) else [argument]:
            if isinstance(part, re._parser.SubPattern):
                yield from _unbounded(part)
            elif isinstance(part, list):
                for branch in part:
                    if isinstance(branch, re._parser.SubPattern):
                        yield from _unbounded(branch)


PATTERNS = {name: value for name, value in vars(privacy).items() if isinstance(value, re.Pattern)}


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_take_nothing_without_end_back(name: str) -> None:
    pattern = PATTERNS[name]
    assert not list(_unbounded(re._parser.parse(pattern.pattern, pattern.flags)))


def test_that_check_sees_a_dangerous_pattern() -> None:
    assert list(_unbounded(re._parser.parse(r"x(?:a+|b)c")))
    assert not list(_unbounded(re._parser.parse(r"x(?:a++|b{1,9})c")))


@pytest.mark.parametrize("piece", HOSTILE)
def test_eight_times_the_text_is_about_eight_times_the_work(piece: str) -> None:
    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        started = time.thread_time()
        Redactor().text(text)
        return time.thread_time() - started

    short, long = min(seconds(20_000) for _ in range(3)), min(seconds(160_000) for _ in range(2))
    assert long < 24 * max(short, 0.001)  # quadratic would be 64 times


def test_a_user_is_a_keyed_hash() -> None:
    assert user_hash(b"k", "u1") == user_hash(b"k", "u1")
    assert user_hash(b"k", "u1") != user_hash(b"other", "u1") != user_hash(b"k", "u2")
    assert len(user_hash(b"k", "ü")) == 32


def test_a_key_is_made_once_beside_the_warehouse_for_its_owner_alone(tmp_path: Path) -> None:
    warehouse = tmp_path / "new" / "w.duckdb"
    key = load_user_key(PrivacySettings(), warehouse)
    assert load_user_key(PrivacySettings(), warehouse) == key
    assert len(key) == 64
    assert stat.S_IMODE((tmp_path / "new" / "w.duckdb.key").stat().st_mode) == 0o600


def test_a_key_comes_from_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from a file\n")
    assert load_user_key(PrivacySettings(user_key_file=file), tmp_path / "w") == b"from a file"
    assert load_user_key(PrivacySettings(user_key=SecretStr("given"), user_key_file=file), tmp_path / "w") == b"given"
    assert not (tmp_path / "w.key").exists()


def test_a_key_that_is_missing_or_empty_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"user_key_file .*nowhere"):
        load_user_key(PrivacySettings(user_key_file=tmp_path / "nowhere"), tmp_path / "w")
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigurationError, match="empty"):
        load_user_key(PrivacySettings(user_key_file=tmp_path / "empty"), tmp_path / "w")
