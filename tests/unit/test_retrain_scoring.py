"""The metric `facts`: values settle whether an answer is right, wording does not; and JSON among such answers."""

import json
from time import process_time
from typing import Any

import pytest

from retuned.retrain.data.identity import normalise
from retuned.retrain.scoring.code import Code
from retuned.retrain.scoring.facts import Facts, conflicts, facts, token_f1
from retuned.retrain.scoring.json_fields import keys_of

ROW: dict[str, Any] = {"messages": "[]"}


def score(answer: str, reference: str) -> float | None:
    return Facts().score(answer, reference, ROW).value


WRONG = [
    ("You can send it back within 45 days.", "Returns are accepted for 30 days."),
    ("Soon.", "Returns are accepted for 30 days."),
    ("Take 5 mg a day.", "Take 5 mcg a day."),
    ("Take 5 ml.", "Take 5 l."),
    ("Store it at 18 °F.", "Store it at 18 °C."),
    ("Store it at −18 °C.", "Store it at 18 °C."),
    ("It costs $5 million.", "It costs $5 billion."),
    ("You must be at most 18.", "You must be at least 18."),
    ("Call us after 5 May.", "Call us before 5 May."),
    ("The buyer pays 10 EUR and the seller pays 5 EUR.", "The buyer pays 5 EUR and the seller pays 10 EUR."),
    ("It cannot be returned within 30 days.", "It can be returned within 30 days."),
    ("It can be returned within 30 days.", "It can't be returned within 30 days."),
    ("Sale items can be returned.", "Sale items cannot be returned."),
    ("No, they are not.", "Yes, they are."),
    ("SELECT a FROM t WHERE x > 5", "SELECT a FROM t WHERE x < 5"),
    ("Sie haben 14 Tage Zeit.", "Sie haben 30 Tage Zeit."),
    ("Der Artikel kann zurück.", "Der Artikel kann nicht zurück."),
    ("Vous avez 14 jours.", "Vous avez 30 jours."),
    ("Tiene 14 días.", "Tiene 30 días."),
    ("The engine has 5 mW.", "The engine has 5 MW."),
    ("Refunds after 14 days.", "No refunds after 14 days."),
    ("No pets over 10 kg.", "Pets over 10 kg."),
    ("Non remboursable après 14 jours.", "Remboursable après 14 jours."),
    ("", "Returns are accepted."),
]
RIGHT = [
    ("Returns are accepted for thirty days", "Returns are accepted for 30 days."),
    ("It weighs 0.500 kg", "It weighs 0.5 kg."),
    ("It takes 120 minutes.", "It takes 2 hours."),
    ("1. Open it. 2. Wait 3 minutes.", "- Open it\n- Wait 3 minutes"),
    ("Mon-Fri, 9 am to 5 pm", "Monday to Friday, 9:00-17:00"),
    ("You have 30 days to return it.", "30 days"),
    ("Up to 30 days.", "At most 30 days."),
    ("SALE ITEMS CAN NOT BE RETURNED", "Sale items cannot be returned."),
    ("Sie haben dreißig Tage Zeit.", "Sie haben 30 Tage Zeit."),
    ("Vous avez trente jours.", "Vous avez 30 jours."),
    ("Tiene treinta días.", "Tiene 30 días."),
    # short texts, whose language nobody knows
    ("one hour", "60 minutes"),
    ("60 minutes", "1 hour"),
    ("five euros", "5 €"),
    ("twelve", "12"),
    # an answer to the question before the sentence
    ("No, within 14 days.", "Within 14 days."),
    # punctuation of sentences
    ("“Yes” - open daily (9:30)!", "Yes, open daily, 9:30."),
    ("Oui : 5 jours !", "Oui: 5 jours!"),
]
UNSETTLED = [
    # a zero that adds nothing to an amount, but may be part of a name
    ("You need Python 3.1 or later.", "You need Python 3.10 or later."),
    ("Your PIN is 42.", "Your PIN is 0042."),
    # signs that structure nothing where they stand
    ("The blood group is O.", "The blood group is O-."),
    ("AA", "AA-"),
    ('The separator is ",".', 'The separator is ";".'),
    ("Use [ and ].", "Use ( and )."),
    ("Pass v to see more.", "Pass -v to see more."),
    # who, what and when belongs to which value
    ("Express takes 3 days, standard 1 day.", "Standard delivery takes 3 days, express takes 1 day."),
    ("You cannot return it after 30 days.", "You can return it within 30 days."),
    ("You can send it back within 30 days.", "Returns are accepted for 30 days."),
    ("It is not 30 days.", "30 days"),
    ("Within 30 days, or perhaps 45 days.", "Returns are accepted for 30 days."),
    ("You have 30 days; refunds take 5 days.", "Returns are accepted for 30 days."),
    ("It comes free of charge.", "It costs 0 EUR."),
    ("You must be over 17.", "You must be at least 18."),
    ("Under 18 you need a parent with you.", "You may come alone at 18 or over."),
    ("Call at 4 pm GMT.", "Call at 5 pm CET."),
    ("✗ Breakfast", "✓ Breakfast"),
    ("It takes 5 business days.", "It takes 7 days."),
    ("There is no charge.", "It costs 0 EUR."),
    ("See page 12.", "Section 4 has it."),
    ("Adults may enter.", "You must be 18 years old."),
    ("It costs 1500 EUR.", "It costs 1.500 EUR."),
    ("North Post brings it.", "Harbor Express brings it."),
    ("I like trains.", "Sale items cannot be returned."),
    ("Je hebt er 14 dagen de tijd voor.", "Je hebt 30 dagen de tijd om het terug te sturen."),
    ("SELECT name FROM users JOIN orders USING (id)", "SELECT u.name FROM users u JOIN orders o ON u.id = o.id"),
]


@pytest.mark.parametrize(("answer", "reference"), WRONG)
def test_another_value_or_the_same_words_denied_is_wrong(answer: str, reference: str) -> None:
    found = Facts().score(answer, reference, ROW)
    assert found.value == 0.0
    assert found.detail


@pytest.mark.parametrize(("answer", "reference"), RIGHT)
def test_the_same_values_in_the_same_words_are_right(answer: str, reference: str) -> None:
    assert score(answer, reference) == 1.0


@pytest.mark.parametrize(("answer", "reference"), UNSETTLED)
def test_what_values_do_not_settle_is_not_judged(answer: str, reference: str) -> None:
    found = Facts().score(answer, reference, ROW)
    assert found.value is None
    assert found.detail


def test_a_value_of_the_question_need_not_be_repeated() -> None:
    example = {"messages": json.dumps([{"role": "user", "content": "Can I return it within 30 days?"}])}
    assert Facts().score("Yes, you can.", "Yes, within 30 days.", example).value is None
    assert score("Yes, you can.", "Yes, within 30 days.") == 0.0
    assert Facts().score("Yes, 30 days are fine.", "Returns are accepted for 90 days.", example).value is None


def test_two_answers_are_compared_both_ways() -> None:
    assert Facts().compare("You have 30 days.", "You have thirty days") is True
    assert Facts().compare("You have 30 days.", "You have 45 days.") is False
    assert Facts().compare("You have 30 days.", "Returns are open for 30 days.") is None
    assert Facts().compare("You have 30 days, refunds take 5 days.", "You have 30 days.") is None


def test_answers_with_one_key_mean_the_same() -> None:
    metric = Facts()
    assert metric.key("You have 30 days.") == metric.key("you have thirty days")
    assert metric.key("You have 30 days.") != metric.key("You do not have 30 days.")
    assert metric.key("Certainly.") != metric.key("Please.")


def test_facts_are_values_with_their_kind() -> None:
    assert facts("Within 30 days, for €4.99, on 24 November 2026 at 17:00") == {
        "day:30",
        "money:4.99 EUR",
        "date:11-24 2026",
        "time:1020",
    }
    assert facts("Sale items are final. Please ask.") == set()


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
    assert Facts().same("Ask <NAME_1>.", "Ask <NAME_2>.")
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
    assert not Facts().same(answer, reference)


@pytest.mark.parametrize(
    "text",
    [
        " " * 50_000 + "x",
        "```\n" + " " * 50_000 + "x",
        "```" + "a" * 50_000,
        "select " + "from select " * 5_000 + "x",
        "\n" * 50_000 + "x",
        "for a" + " in " * 20_000 + "x",
        '"' + '\\"' * 100_000 + "x",
    ],
)
def test_time_grows_with_the_length_of_an_answer_and_not_with_its_square(text: str) -> None:
    Facts().compare("It takes three days.", "SELECT a FROM t")  # imports what it needs
    began = process_time()
    normalise(text)
    keys_of(text)
    Code().compare(text, "x")
    Facts().compare(text, "x")
    assert process_time() - began < 4


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
    assert Facts().same(answer, reference)


def test_a_document_is_scored_field_by_field() -> None:
    assert score(FLAGS.replace("true", "false"), FLAGS) == pytest.approx(2 / 3)
    assert score('{"people": "4", "first_name": "Ann"}', '{"people": "4"}') == pytest.approx(2 / 3)
    assert score('{"people": "4"}', '{"people": "4", "first_name": "Ann"}') == pytest.approx(2 / 3)
    assert score("[1]", "```json\n[1]\n```") == 1.0
    assert score('{"a": {"b": [1, 2], "c": []}}', '{"a": {"b": [1, 3], "c": []}}') == pytest.approx(2 / 3)


def test_one_wrong_field_of_many_makes_another_answer() -> None:
    assert not Facts().same(
        '{"kind": "refund", "urgent": "no", "c": "EUR"}', '{"kind": "refund", "urgent": "no", "c": "USD"}'
    )


def test_a_document_conflicts_where_it_states_what_the_reference_does_not() -> None:
    assert conflicts('{"people": "5"}', '{"people": "4", "time": "7 pm"}')
    assert conflicts('{"first_name": "Ann"}', "{}")
    assert conflicts('{"people": "4"}', '{"people": "4", "time": "7 pm"}') is False
    assert conflicts("a table for four", '{"people": "4"}') is None
