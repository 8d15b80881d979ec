import json

import pytest

from retuned.retrain.scoring.facts import conflicts, facts, same_answer, score, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("You have 30 days to return it.", {"day:30"}),
        ("A 30-day window, or thirty days", {"day:30"}),
        ("two weeks", {"day:14"}),
        ("within twenty-four hours", {"day:1"}),
        ("A warranty of 2 years", {"month:24"}),
        ("3-5 business days", {"business day:3", "business day:5"}),
        ("between 3 and 5 days", {"day:3", "day:5"}),
        ("€5, 5 EUR, 5 euros, EUR 5.00", {"eur:5"}),
        ("4,99 euros and $1,500.00", {"eur:4.99", "usd:1500"}),
        ("20% off, 20 percent", {"%:20"}),
        ("From 9 am to 5:30 p.m.", {"time:9:00", "time:17:30"}),
        ("At 17:00.", {"time:17:00"}),
        ("Closed on Sundays", {"weekday:sunday"}),
        ("On 24 November 2026, on Nov 24th, 2026-11-24", {"date:11-24", "year:2026"}),
        ("Use SAVE20 or AX-42, by DHL", {"code:save20", "code:ax-42", "code:dhl"}),
        ("Write to Help@example.com.", {"address:help@example.com"}),
        ("We ship with Harbor Express from Oslo.", {"name:harbor", "name:express", "name:oslo"}),
        ("It weighs 2kg and has 16GB", {"kg:2", "gb:16"}),
        ("You get 3 free returns", {"number:3"}),
        ("Sale items are final. Please ask.", set()),
    ],
)
def test_facts_are_values_with_their_kind(text: str, expected: set[str]) -> None:
    assert facts(text) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("You can send it back within 30 days.", "Returns are accepted for 30 days.", 1.0),
        ("You can send it back within two weeks.", "14 days.", 1.0),
        ("You can send it back within 45 days.", "Returns are accepted for 30 days.", 0.0),
        ("Within 30 days, or is it 45 days?", "Returns are accepted for 30 days.", 0.0),
        ("Within 30 days, at any of 12 shops.", "Returns are accepted for 30 days.", 1.0),
        ("Soon.", "Returns are accepted for 30 days.", 0.0),
        ("Harbor Express brings it.", "It comes with Harbor Express.", 1.0),
        ("North Post brings it.", "It comes with Harbor Express.", 0.0),
        ("Yes, they are.", "No, they are not.", 0.0),
        ("sale items cannot be returned", "Sale items can not be returned.", 1.0),
        ("Sale items can be returned.", "Sale items cannot be returned.", 0.0),
        ("I like trains.", "Sale items cannot be returned.", 0.0),
    ],
)
def test_an_answer_is_right_when_it_states_the_facts_and_nothing_that_conflicts(
    answer: str, reference: str, expected: float
) -> None:
    assert score(answer, reference) == expected


def test_same_answer_looks_at_facts_and_not_at_wording() -> None:
    assert same_answer("You have 30 days.", "Returns are open for thirty days")
    assert not same_answer("You have 30 days.", "You have 45 days.")
    assert not same_answer("Yes, within 30 days.", "No, within 30 days.")


def test_a_value_of_another_kind_is_no_conflict() -> None:
    assert conflicts("45 days", "30 days")
    assert conflicts("2 months", "30 days")
    assert not conflicts("5 euros", "30 days")


def test_token_f1() -> None:
    assert token_f1("a b", "a b") == 1.0
    assert token_f1("a b c", "a") == pytest.approx(0.5)
    assert token_f1("x", "a") == 0.0


def test_the_number_of_a_placeholder_is_no_fact() -> None:
    assert facts("Write to <EMAIL_1> by May 3.") == facts("Write to <EMAIL_12> by May 3.")
    assert same_answer("Ask <NAME_1>.", "Ask <NAME_2>.")
    assert token_f1("Call <PHONE_1>", "call <PHONE_2>") == 1


BOOKING = json.dumps({"people": "4", "date": "next Friday", "time": "19:30", "last_name": "Okafor", "party": 3})
FLAGS = '{"refund": true, "urgent": false, "fraud": false}'


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (BOOKING[:-1], BOOKING),  # the closing brace is cut
        ("4 next Friday 19:30 Okafor 3", BOOKING),
        (str(json.loads(BOOKING)), BOOKING),  # Python's quotes
        (str(json.loads(FLAGS)), FLAGS),
        ("", BOOKING),
        ("{}", BOOKING),
        (f"Here you are: {BOOKING}", BOOKING),
        (f"```json\n{BOOKING}\n```", BOOKING),
        ('{"amount": NaN}', '{"amount": 1}'),
        ('{"currency": "USD"}', '{"currency": "EUR"}'),
        ('{"a": "x", "b": "y"}', '{"a": "y", "b": "x"}'),
        ('{"a": 1}', "{}"),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": 1}', '{"a": "1"}'),
        ('{"a": [1]}', '{"a": 1}'),
        ('[{"a": 1}]', '{"a": 1}'),
        ('["b", "a"]', '["a", "b"]'),
        ("[" * 100_000, "[[1]]"),
        ("[" + "9" * 5_000 + "]", "[9]"),
        ("false", "true"),
        ("true.", "true"),
        ("It is true", "true"),
    ],
)
def test_a_broken_or_another_document_is_wrong(answer: str, reference: str) -> None:
    assert score(answer, reference) == 0.0
    assert not same_answer(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (json.dumps(dict(reversed(json.loads(BOOKING).items())), indent=2), BOOKING),
        ('{"a": 1.0, "b": "e\u0301 "}', '{"b": "\u00e9", "a": 1}'),
        ("```json\n[1]\n```", "```\n[1]\n```"),
        ("{}", " { } "),
        ('{"to": "<EMAIL_2>"}', '{"to": "<EMAIL_1>"}'),
        (" true\n", "true"),
    ],
)
def test_a_document_is_right_by_its_content_and_not_by_its_spelling(answer: str, reference: str) -> None:
    assert score(answer, reference) == 1.0
    assert same_answer(answer, reference)


def test_a_document_is_scored_field_by_field() -> None:
    assert score(FLAGS.replace("true", "false"), FLAGS) == pytest.approx(2 / 3)
    assert score('{"people": "4", "first_name": "Ann"}', '{"people": "4"}') == pytest.approx(2 / 3)
    assert score('{"people": "4"}', '{"people": "4", "first_name": "Ann"}') == pytest.approx(2 / 3)
    assert score("[1]", "```json\n[1]\n```") == 1.0
    assert score('{"a": {"b": [1, 2], "c": []}}', '{"a": {"b": [1, 3], "c": []}}') == pytest.approx(2 / 3)


def test_one_wrong_field_of_many_makes_another_answer() -> None:
    assert not same_answer(
        '{"kind": "refund", "urgent": "no", "c": "EUR"}', '{"kind": "refund", "urgent": "no", "c": "USD"}'
    )


def test_a_document_conflicts_where_it_states_what_the_reference_does_not() -> None:
    assert conflicts('{"people": "5"}', '{"people": "4", "time": "7 pm"}')
    assert conflicts('{"first_name": "Ann"}', "{}")
    assert conflicts('{"people": "4"}', '{"people": "4", "time": "7 pm"}') is False
    assert conflicts("a table for four", '{"people": "4"}') is None
