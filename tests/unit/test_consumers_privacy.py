"""Redaction: what must go, what must stay, and that no text makes it slow."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from fixtures.feedback.personal_data import HOSTILE, Labelled, labelled, redacted_columns
from fixtures.work import calls
from retuned.consumers.common import leaves
from retuned.consumers.errors import ConfigurationError
from retuned.consumers.formats import users
from retuned.consumers.privacy import finder, folding, placeholders
from retuned.consumers.privacy import redactor as privacy
from retuned.consumers.privacy.patterns import accounts, addresses, credentials, national_ids, phones
from retuned.consumers.privacy.placeholders import Conversations, unnumbered
from retuned.consumers.privacy.redactor import Redactor
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
    ("1234 4111 1111 1111 1111", "1234 <CARD>"),
    ("2235 4111 1111 1111 1111", "2235 <CARD>"),
    ("5234 5678 4111 1111 1111 1111", "5234 5678 <CARD>"),
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
    ("fe80::1 is up", "<IP> is up"),
    ("fe80:0:0:0:1ff:fe23:4567:890a", "<IP>"),
    ("sk-abcdefghijklmnopqrstuvwx", "<KEY>"),
    ("AKIAIOSFODNN7EXAMPLE", "<KEY>"),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "<KEY>"),
    ("xoxb-1234567890-abc", "<KEY>"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "<KEY>"),
    ("Authorization: Bearer abcdef0123456789abcdef", "Authorization: Bearer <KEY>"),
    ("postgres://u:p4ss@db/x", "postgres://<KEY>@db/x"),
    ("+49 30 1234567 5% off", "<PHONE> 5% off"),
    ("+0171 2345678", "<PHONE>"),
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
    "a gain of +0.824 (98.75% interval +0.556 to +0.944)",
    "a gain of +1.000 (99.375% interval +0.956 to +1.000)",
    "a slope of +0.1234 (0.0567)",
]


def strings(*texts: str | None) -> Any:
    return pa.array(texts, pa.string())


def column(redactor: Redactor, texts: list[str | None], *, json: bool = False) -> list[str | None]:
    """One column of events, each in a conversation of its own."""
    names = strings(*(str(number) for number in range(len(texts))))
    columns = redacted_columns(redactor, {"c": pa.array(texts, pa.string())}, {"c"} if json else set(), names, names)
    found: list[str | None] = columns["c"].to_pylist()
    return found


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_personal_data_and_secrets_go(text: str, expected: str) -> None:
    assert unnumbered(Redactor().text(text)) == expected
    assert unnumbered(Redactor().text(f"ä {text}\n")) == f"ä {expected}\n" or text.startswith("-----BEGIN PRIVATE")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "4111 1111 1111 1111 and 5500000000000004, not 4111-1111-1111-1111",
            "<CARD:4111111111111111> and <CARD:5500000000000004>, not <CARD:4111111111111111>",
        ),
        (
            "DE89 3704 0044 0532 0130 00, NO9386011117947 or de89370400440532013000.",
            "<IBAN:DE89370400440532013000>, <IBAN:NO9386011117947> or <IBAN:DE89370400440532013000>.",
        ),
        ("DE89 3704 - 0044 - 0532 - 0130 - 00", "<IBAN:DE89370400440532013000>"),
        ("DE89 3704  -  0044 0532 0130 00", "DE89 3704  -  0044 0532 0130 00"),  # too far apart
        ("DE89 3704.0044 0532 0130 00", "DE89 3704.0044 0532 0130 00"),
        ("DE89 3704 0044 0532 0130 0", "DE89 3704 0044 0532 0130 0"),  # too short
        ("DE89370400440532013000X", "DE89370400440532013000X"),  # too long
    ],
)
def test_numbers_of_accounts_are_told_apart_however_they_are_written(text: str, expected: str) -> None:
    def mark(kind: str, value: str, _: str) -> str:
        return f"<{kind}:{value}>"

    assert accounts.replace_ibans(accounts.replace_cards(text, mark), mark) == expected


# As authorities and encyclopaedias give them for examples: what is redacted is known by its check digits alone.
CHECKED = [
    "85.07.30-033.28",  # Belgium, born in 1985
    "17.07.30-033.84",  # in 2017: its number is divided with a 2 before it
    "131052-308T",  # Finland
    "529.982.247-25",  # Brazil
    "12345678Z",  # Spain
]
ELEVEN_DIGITS = [
    "86095742719",  # Germany: one digit twice
    "65929970489",  # one three times
    "10000000146",  # Turkey
    "12345678950",
    "44051401359",  # Poland, born in 1944
    "02070803628",  # and in 1902: it begins as a Norwegian one, with a day and a month
    "13097248022",  # Norway
    "29029600013",
    "85073003328",  # Belgium, without its points
]


def is_national_id(text: str) -> bool:
    return national_ids.replace_national_ids(text, lambda kind, *_: kind) == "NATIONAL_ID"


def with_another_digit(text: str) -> list[str]:
    places = [place for place, sign in enumerate(text) if sign.isdigit()]
    return [text[:at] + digit + text[at + 1 :] for at in places for digit in "0123456789" if digit != text[at]]


@pytest.mark.parametrize("text", CHECKED)
def test_a_national_id_is_known_by_its_check_digits(text: str) -> None:
    assert is_national_id(text)
    assert [other for other in with_another_digit(text) if is_national_id(other)] == []


@pytest.mark.parametrize("text", ELEVEN_DIGITS)
def test_of_eleven_digits_few_are_an_id_by_chance(text: str) -> None:
    """Five countries have such numbers, each with a check digit of its own."""
    assert is_national_id(text)
    others = with_another_digit(text)
    assert sum(map(is_national_id, others)) < 0.25 * len(others)


def test_eleven_digits_that_no_country_gives_out_are_no_id() -> None:
    for text in ("00000000000", "11111111111", "12345678901", "01234567890", "44131401357", "44053201354"):
        assert not is_national_id(text)


@pytest.mark.parametrize(("text", "_"), FOUND)
def test_what_is_redacted_stays_as_it_is_when_it_comes_back(text: str, _: str) -> None:
    redacted = Redactor().text(text)
    assert Redactor().text(redacted) == redacted


@pytest.mark.parametrize("text", KEPT)
def test_ordinary_business_text_stays(text: str) -> None:
    assert Redactor().text(text) == text


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_a_column_misses_nothing_that_a_text_does_not(text: str, expected: str) -> None:
    redactor = Redactor()
    redacted = Redactor().text(text)
    assert unnumbered(redacted) == expected
    assert column(redactor, [None, text, "nothing here"]) == [None, redacted, "nothing here"]
    nested = msgspec.json.encode([{"role": "user", "content": text, "arguments": {"deep": [f"\n\t{text}"]}}]).decode()
    found = msgspec.json.decode(column(Redactor(), [nested], json=True)[0] or "")
    assert found == [{"role": "user", "content": redacted, "arguments": {"deep": [f"\n\t{redacted}"]}}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"mail": "anna@example.com", "n": 1}', '{"mail": "<EMAIL_1>", "n": 1}'),
        ('{"card": 4111111111111111}', '{"card": "<CARD_1>"}'),
        ("[-4111111111111111,\n 4111111111111111]", '["<CARD_1>",\n "<CARD_1>"]'),
        ('{"phone": 2125550198.0, "also": 4.111111111111111e15}', '{"phone": "<PHONE_1>", "also": "<CARD_1>"}'),
        (r'{"mail": "anna\u0040example.com"}', '{"mail": "<EMAIL_1>"}'),
    ],
)
def test_json_in_a_text_stays_json(text: str, expected: str) -> None:
    """As the arguments of a call of a tool are, and answers in JSON."""
    assert Redactor().text(text) == expected
    assert column(Redactor(), [text]) == [expected]
    nested = msgspec.json.encode({"arguments": text}).decode()
    assert msgspec.json.decode(column(Redactor(), [nested], json=True)[0] or "") == {"arguments": expected}


def test_a_text_that_only_looks_like_json_is_redacted_as_a_text() -> None:
    assert Redactor().text("[anna@example.com" + "[" * 100_000).startswith("[<EMAIL_1>[")
    assert Redactor().text("{card 4111111111111111}") == "{card <CARD_1>}"


def test_values_are_redacted_inside_with_the_names_of_fields_and_numbers() -> None:
    redactor = Redactor()
    value = {"a@example.com": [{"x": "b@example.com"}, 4111111111111111, 7, 1.5, None, True]}
    assert redactor.value(value) == {"<EMAIL_1>": [{"x": "<EMAIL_2>"}, "<CARD_1>", 7, 1.5, None, True]}
    assert redactor.take_counts() == {"EMAIL": 2, "CARD": 1}
    assert redactor.take_counts() == {}


def test_the_pseudonym_of_a_user_stays() -> None:
    value = {"order": {"user_id": "028a:06635093765bff681967d1f886099c24"}}
    assert Redactor().value(value) == value


def test_it_can_be_turned_off() -> None:
    off = Redactor(PrivacySettings(redact=False))
    assert off.text("a@example.com") == "a@example.com"
    assert column(off, ["a@example.com"]) == ["a@example.com"]
    assert off.value(4111111111111111) == 4111111111111111
    assert off.identifiers(pa.array(["a@example.com"]), str.upper).to_pylist() == ["a@example.com"]


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


PATTERNS = {
    f"{module.__name__}.{name}": value
    for module in (
        accounts,
        addresses,
        credentials,
        finder,
        folding,
        leaves,
        national_ids,
        phones,
        placeholders,
        privacy,
        users,
    )
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
}


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_take_nothing_without_end_back(name: str) -> None:
    pattern = PATTERNS[name]
    assert not list(_unbounded(re._parser.parse(pattern.pattern, pattern.flags)))


def test_that_check_sees_a_dangerous_pattern() -> None:
    assert list(_unbounded(re._parser.parse(r"x(?:a+|b)c")))
    assert not list(_unbounded(re._parser.parse(r"x(?:a++|b{1,9})c")))


@pytest.mark.full
@pytest.mark.parametrize("piece", HOSTILE)
def test_eight_times_the_text_is_eight_times_the_calls(piece: str) -> None:
    """What each pattern does with a call of it is bounded above, and timed by the benchmark `redact`."""
    short, long = (calls(Redactor().text, piece * (size // len(piece))) for size in (2_500, 20_000))
    assert long < 9 * short + 100  # quadratic would be 64 times


def test_one_value_has_one_number_in_the_order_of_appearance() -> None:
    text = "a@x.org, key sk-abcdefghijklmnopqrstuvwx, b@x.org, A@X.org; password=hunter2; 030 1234567, +49 30 1234567"
    assert Redactor().text(text) == (
        "<EMAIL_1>, key <KEY_1>, <EMAIL_2>, <EMAIL_1>; password=<KEY_2>; <PHONE_1>, <PHONE_1>"
    )
    spelled = "anna dot lee at example dot com is anna.lee@example.com is anna.lee (at) example.com"
    assert Redactor().text(spelled) == "<EMAIL_1> is <EMAIL_1> is <EMAIL_1>"
    # Patterns run one after the other; numbers go by place all the same.
    assert Redactor().text("token: abc123x, sk-abcdefghijklmnopqrstuvwx") == "token: <KEY_1>, <KEY_2>"


def test_placeholders_that_come_back_stay_and_their_numbers_are_not_given_again() -> None:
    redactor = Redactor()
    assert redactor.text("<EMAIL_2> or a@x.org, password: <KEY_1>") == "<EMAIL_2> or <EMAIL_3>, password: <KEY_1>"
    assert redactor.value(["b@x.org", {"x": "<EMAIL_1>"}]) == ["<EMAIL_2>", {"x": "<EMAIL_1>"}]
    assert redactor.text("<EMAIL_999999999999> a@x.org <ORDER_3>") == "<EMAIL_999999999999> <EMAIL_1> <ORDER_3>"
    assert redactor.text("<\x000> <\x007> a@x.org") == "<\x000> <\x007> <EMAIL_1>"


def event(redactor: Redactor, id: str, conversation: str | None, **texts: str | None) -> dict[str, str | None]:
    arrays = {name: pa.array([text], pa.string()) for name, text in texts.items()}
    columns = redacted_columns(redactor, arrays, {"messages"}, strings(id), strings(conversation))
    return {name: values.to_pylist()[0] for name, values in columns.items()}


def test_numbers_are_those_of_the_conversation() -> None:
    redactor = Redactor()
    first = event(redactor, "i1", "c1", messages='["a@x.org"]', response="b@x.org", context="c@x.org a@x.org")
    assert first == {"messages": '["<EMAIL_1>"]', "response": "<EMAIL_2>", "context": "<EMAIL_3> <EMAIL_1>"}
    assert event(redactor, "i2", "c1", response="c@x.org, d@x.org") == {"response": "<EMAIL_3>, <EMAIL_4>"}
    assert event(redactor, "i3", "c2", response="c@x.org") == {"response": "<EMAIL_1>"}
    # A placeholder in an event in which nothing is found is known to the next one.
    assert event(redactor, "i4", "c2", response="as <EMAIL_7> said") == {"response": "as <EMAIL_7> said"}
    assert event(redactor, "i5", "c2", response="e@x.org") == {"response": "<EMAIL_8>"}
    # Without a conversation the event is the scope, and what is said on it later.
    assert event(redactor, "i6", None, response="a@x.org b@x.org") == {"response": "<EMAIL_1> <EMAIL_2>"}
    assert event(redactor, "i7", None, response="b@x.org") == {"response": "<EMAIL_1>"}
    assert event(redactor, "i6", None, value="b@x.org") == {"value": "<EMAIL_2>"}


def test_after_a_restart_an_event_that_carries_its_history_gets_the_same_numbers() -> None:
    history = '["a@x.org","b@x.org"]'
    before, after = Redactor(), Redactor()
    event(before, "i1", "c1", messages='["a@x.org"]', response="b@x.org")
    assert event(before, "i2", "c1", messages=history) == event(after, "i2", "c1", messages=history)


def test_feedback_shares_the_numbers_of_the_conversation_that_it_is_on() -> None:
    redactor = Redactor()
    assert event(redactor, "i1", "c1", response="a@x.org b@x.org") == {"response": "<EMAIL_1> <EMAIL_2>"}
    redactor.remember(strings("i0", "i2"), strings("c0", "c1"))
    redactor.remember(strings("i3"), strings(None))
    said = {"value": pa.array(["b@x.org"] * 4)}
    values = redacted_columns(redactor, said, set(), strings("i2", "i3", "i2", "unheard of"))["value"].to_pylist()
    assert values == ["<EMAIL_2>", "<EMAIL_1>", "<EMAIL_2>", "<EMAIL_1>"]


def test_the_memory_of_conversations_is_bounded() -> None:
    conversations = Conversations(most_values=10, most_events=80)
    for number in range(100):
        scope = conversations.open(str(number), f"c{number}")
        for value in range(4):
            scope.placeholder("EMAIL", f"{value}@x.org")
        conversations.close(scope)
        conversations.remember(strings(f"i{number}"), strings(f"c{number}"))
    assert len(conversations._scopes) == 2
    assert conversations.of([f"i{number}" for number in (99, 20, 19, 0)]) == ["c99", "c20", None, None]
    assert (conversations._remembered.num_rows, conversations._remembered["event"].num_chunks < 70) == (80, True)
    newest = conversations.open("i99", "c99")
    assert newest.placeholder("EMAIL", "new@x.org") == "<EMAIL_5>"
    assert b"x.org" not in repr(vars(newest)).encode()


def test_an_id_that_is_an_address_is_hashed() -> None:
    names = [
        None,
        "c-81",
        "a@x.org",
        "whatsapp:+49 171 2938475",
        "550e8400-e29b-41d4-a716-446655440000",
        "203.0.113.9#1",
    ]
    assert Redactor().identifiers(pa.array(names), lambda name: f"hash of {len(name)}").to_pylist() == [
        None, "c-81", "hash of 7", "hash of 24", "550e8400-e29b-41d4-a716-446655440000", "hash of 13",
    ]  # fmt: skip


PHONES = [
    "212-555-0198",
    "(212) 555-0198",
    "sms:212-555-0198",
    "tel:2125550198",
    "phone=030 1234567",
    "wa/00491701234567",
]
OPAQUE = [
    "4711", "1795512600", "10000000000004711", "550e8400-e29b-41d4-a716-446655440000", "2026-11-24-00017",
    "thread:1795512600",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"), [*((name, "hash") for name in PHONES), *zip(OPAQUE, OPAQUE, strict=True)]
)
def test_ids_are_hashed_in_which_a_phone_number_would_be_redacted(name: str, expected: str) -> None:
    assert Redactor().identifiers(pa.array([name]), lambda _: "hash").to_pylist() == [expected]
    assert (Redactor().text(name) == name) == (expected == name)


def test_only_random_tokens_are_taken_for_keys() -> None:
    kept = [
        "550e8400-e29b-41d4-a716-446655440000", "3f2a91c0d4b85e6f7a1b2c3d4e5f60718293a4b5",
        "call_Yz8kLmQ2pR7tVw3xB9nC4dF6", "NullPointerException2HandlerFactoryBean",
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAf", "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "documentationVersion12andAppendix34overview",
        "Donaudampfschifffahrtsgesellschaft2026", "aB3" * 60, "aB1aB1aB1aB1aB1aB1aB1aB1",
    ]  # fmt: skip
    assert [text for text in kept if Redactor().text(text) != text] == []
    assert Redactor().text("see h7Gq2PzX9vLk4TmRw8YcNb3JsDf6 there") == "see <KEY_1> there"


def test_a_long_list_of_numbers_goes_as_a_whole() -> None:
    """Looking each one up would take too long, and a list of candidates that long is no order number."""
    text = "phone " + " phone ".join(f"9999{number:08}" for number in range(300))
    redacted = Redactor().text(text)
    assert "999900000199" in redacted
    assert "999900000299" not in redacted


def test_a_placeholder_is_no_talk_of_phones() -> None:
    assert Redactor().text("<PHONE_1> or 633481205") == "<PHONE_1> or 633481205"


@pytest.mark.parametrize("item", labelled(), ids=lambda item: item.kind)
def test_a_column_finds_in_the_labelled_strings_what_a_text_does(item: Labelled) -> None:
    redacted = Redactor().text(item.text)
    assert column(Redactor(), [item.text]) == [redacted]
    nested = msgspec.json.encode([msgspec.json.encode({"x": item.text}).decode()]).decode()
    (inside,) = msgspec.json.decode(column(Redactor(), [nested], json=True)[0] or "")
    assert inside == Redactor().text(msgspec.json.encode({"x": item.text}).decode())
    assert Redactor().text(redacted) == redacted


def test_the_countries_of_phones_can_be_set() -> None:
    text = "mi móvil es 633 48 12 05"
    assert Redactor().text(text) == "mi móvil es <PHONE_1>"
    assert Redactor(PrivacySettings(phone_regions=("US",))).text(text) == text


def test_addresses_of_machines_can_stay() -> None:
    assert Redactor(machines=False).text("203.0.113.9 a@x.org") == "203.0.113.9 <EMAIL_1>"


def test_a_phone_region_that_is_no_country_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"privacy\.phone_regions: QQ, XX is not a country"):
        Redactor(PrivacySettings(phone_regions=("DE", "XX", "QQ")))
    Redactor(PrivacySettings(phone_regions=("DE",)))


def found(replace: Any, text: str, *more: Any) -> tuple[str, list[tuple[str, str]]]:
    """The text with what was found by its kind, and the identity of each."""
    marks: list[tuple[str, str]] = []

    def mark(kind: str, identity: str, _: str) -> str:
        marks.append((kind, identity))
        return f"<{kind}>"

    return replace(text, mark, *more), marks


def test_a_phone_is_known_by_its_last_eight_digits_before_an_extension() -> None:
    for text in (
        "+49 30 9123 4567 ext 12",
        "+49 30 9123 4567 EXT. 12 x 3",
        "030 91234567",
        "call 0049 30 9123 4567x99",
    ):
        assert found(phones.replace_phones, text, phones.Plans(("DE",)))[1] == [("PHONE", "91234567")], text
    assert found(phones.replace_phones, "my number is 6502530000", phones.Plans(("US",)))[1] == [("PHONE", "02530000")]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("order 0151-23456789 please", True),  # what goes before it, from the first character on
        ("isbn 0151-23456789", True),
        ("0151-23456789 order", False),
        ("phone 6502530000", False),
        ("6502530000 is my cell", False),
        ("6502530000 " + 22 * "-" + "cell", True),  # the word ends 26 characters behind it
        ("6502530000" + 20 * "-" + "cell", False),
        ("order 6502530000, call me", True),
        ("call me 650253000000", True),  # no number of that country
        ("call me 0800 1111", True),
        ("call 12.03.2026 12", True),
    ],
)
def test_what_stands_around_digits_decides_whether_they_are_a_phone(text: str, kept: bool) -> None:
    changed, _ = found(phones.replace_phones, text, phones.Plans(("US",)))
    assert (changed == text) is kept, changed


def test_the_word_before_a_number_is_looked_for_in_the_last_forty_characters() -> None:
    for gap, spoken in ((34, True), (35, False)):  # between the word and the number, with a space behind
        text = f"phone{gap * '-'} 6502530000"
        assert (found(phones.replace_phones, text, phones.Plans(("US",)))[0] != text) is spoken, gap


def test_beyond_the_most_look_ups_every_candidate_goes() -> None:
    wrong = "call 1112223334 "  # of no country
    assert found(phones.replace_phones, wrong, phones.Plans(("US",)))[0] == wrong
    text = "".join(f"call 1112{number:06} " for number in range(phones.MOST_LOOKUPS))
    assert found(phones.replace_phones, text, phones.Plans(("US",)))[0] == text
    more = found(phones.replace_phones, text + "call 1112999999 call 1112999998 ", phones.Plans(("US",)))[0]
    assert more == text + 2 * "call <PHONE> "
    # One region that cannot read a number does not keep it from the next.
    assert found(phones.replace_phones, "call 6502530000", phones.Plans(("ZZ", "US")))[0] == "call <PHONE>"


def test_the_look_ups_of_an_event_are_counted_over_all_its_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes 0.2 ms, and a message has room for 300,000 short texts."""
    wrong = [f"call 1112{number:06}" for number in range(2 * phones.MOST_LOOKUPS)]  # of no country
    asked = 0
    is_valid = phones.phonenumbers.is_valid_number

    def counted(number: Any) -> bool:
        nonlocal asked
        asked += 1
        return bool(is_valid(number))

    monkeypatch.setattr(phones.phonenumbers, "is_valid_number", counted)
    redactor = Redactor(PrivacySettings(phone_regions=("US",)))
    redacted = redactor.value({"numbers": wrong})["numbers"]
    assert asked == phones.MOST_LOOKUPS
    assert redacted == wrong[: phones.MOST_LOOKUPS] + [
        f"call <PHONE_{number}>" for number in range(1, phones.MOST_LOOKUPS + 1)
    ]
    assert redactor.value(wrong[-1]) == wrong[-1]  # another event


def test_emails_are_told_by_the_last_part_of_the_domain() -> None:
    cases = {
        "react@18.2.0": [],
        "a@b.18": [],
        "a@18.example": ["a@18.example"],
        "a@mail.example.io": ["a@mail.example.io"],
        "a@b.x1": ["a@b.x1"],
        "a@b.c.2x": [],
        "?m=Anna%40Example.com&x": ["anna@example.com"],
        "name%40host.com": ["name@host.com"],
        "WHERE mail = 'max@firma.example' AND": ["max@firma.example"],
        "name='max%40firma.example'": ["max@firma.example"],
        "to o'brien@firma.example,": ["o'brien@firma.example"],
        "anna (at) example.com": ["anna@example.com"],
        "anna{at}example[dot]com": ["anna@example.com"],
        "anna at example dot com": ["anna@example.com"],
        "anna arroba ejemplo punto es": ["anna@ejemplo.es"],
        "anna at beispiel punkt de": ["anna@beispiel.de"],
        "pkg@1.x.9": [],
    }
    for text, emails in cases.items():
        changed, marks = found(addresses.replace_emails, text)
        assert marks == [("EMAIL", email) for email in emails], text
        assert emails or changed == text
    assert found(addresses.replace_emails, "see react@18.2.0 now")[0] == "see react@18.2.0 now"
    # An escaped one in the path of a URL takes no more of it than the name.
    assert found(addresses.replace_emails, "%2Fu%2Fanna%40example.com")[0].endswith("<EMAIL>")


def test_machines_have_one_identity_in_every_spelling_and_this_one_stays() -> None:
    cases = {
        "00:1B:44:11:3A:B7": ("MAC", "001b44113ab7"),
        "00-1b-44-11-3a-b7": ("MAC", "001b44113ab7"),
        "001b.4411.3ab7": ("MAC", "001b44113ab7"),
        "2001:DB8:0:0::1": ("IP", "2001:db8::1"),
        "192.168.20.7": ("IP", "192.168.20.7"),
    }
    for text, mark in cases.items():
        assert found(addresses.replace_machines, f"at {text} now") == (f"at <{mark[0]}> now", [mark]), text
    for text in (
        "1234.5678.9012", "12:34:56:12:34:56", "127.0.0.1", "::1", "0.0.0.0", "a::b::c", "::", "version 10.2.3.4",
        "fig. 1.2.3.4", "v1 version: 10.20.30.40", "1::2::3",
    ):  # fmt: skip
        assert found(addresses.replace_machines, text) == (text, []), text
    assert found(addresses.replace_machines, "version 2001:db8::1")[0] == "version <IP>"
    assert found(addresses.replace_machines, f"version{10 * ' '}10.2.3.4")[0] == f"version{10 * ' '}<IP>"


KEEP = (
    "Support@Shop.example",
    "+49 (0)30 1234 5678",
    "https://shop.example/help?mail=returns@shop.example",
    "0800 555 0199",
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to support@shop.example.", "Write to support@shop.example."),
        ("Call 030 12345678 now", "Call 030 12345678 now"),
        ("call +49 30 / 12345678", "call +49 30 / 12345678"),
        ("ring 0800-555-0199", "ring 0800-555-0199"),
        ("see https://shop.example/help?mail=returns@shop.example", "see https://shop.example/help?mail=returns@shop.example"),
        # What only looks like it goes, and has the first number.
        ("my.support@shop.example or support@shop.example", "<EMAIL_1> or support@shop.example"),
        ("support@shop.example.org", "<EMAIL_1>"),
        ("call 030 12345679", "call <PHONE_1>"),
    ],
)  # fmt: skip
def test_the_companys_own_contacts_stay_as_they_are(text: str, expected: str) -> None:
    redactor = Redactor(PrivacySettings(keep=KEEP))
    assert redactor.text(text) == expected
    assert redactor.take_counts().total() == expected.count("_1>")
    assert "_1>" in Redactor().text(text)


def test_a_conversation_named_after_a_kept_address_is_not_hashed() -> None:
    names = pa.array(["support@shop.example", "anna@shop.example"])
    kept = Redactor(PrivacySettings(keep=KEEP)).identifiers(names, lambda _: "hashed").to_pylist()
    assert kept == ["support@shop.example", "hashed"]
