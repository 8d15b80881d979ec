import pytest

from retuned.retrain.scoring import conflicts, facts, same_answer, score, token_f1


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
