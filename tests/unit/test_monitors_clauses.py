"""How sentences are read: values whatever their spelling, and what is denied."""

import pytest

from retuned.monitors.hallucination.clauses import read, sentences
from retuned.monitors.hallucination.values import Value, same, tokens


def values(text: str) -> list[Value]:
    return [value for token in tokens(text) for value in token.values]


def equal(one: str, other: str) -> bool:
    left, right = values(one), values(other)
    return len(left) == len(right) > 0 and all(map(same, left, right))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("24 months", "two years"),
        ("14 days", "two weeks"),
        ("60 days", "two months"),
        ("within a week", "within 7 days"),
        ("48 hours", "two days"),
        ("45 minutes", "three quarters of an hour"),
        ("90 minutes", "one and a half hours"),
        ("half an hour", "30 minutes"),
        ("€3.95", "3,95 euros"),
        ("20 cents", "€0.20"),
        ("$1,500", "1500 dollars"),
        ("CHF 18", "18 francs"),
        ("2 thousand euros", "2,000 euros"),
        ("210 cm", "2.10 m"),
        ("half the fare", "50%"),
        ("a fifth of the price", "20 percent"),
        ("6 pm", "18:00"),
        ("half past six", "18:30"),
        ("noon", "12:00"),
        ("11 at night", "23:00"),
        ("half past six in the evening", "18:30"),
        ("every other week", "every two weeks"),
        ("an hour and a half", "90 minutes"),
        ("24/7", "24 hours a day"),
        ("from 7 to 10:30", "7:00 to 10:30"),
        ("15 July 2027", "July 15th, 2027"),
        ("ten past six in the evening", "18:10"),
        ("Christmas Eve", "24 December"),
        ("at weekends", "Saturday and Sunday"),
        ("three euros fifty", "€3.50"),
        ("one hundred and four dollars and ninety cents", "$104.90"),
        ("six hundred and thirty pounds", "£630"),
        ("a quarter of an hour", "15 minutes"),
        ("within the last half year", "within six months"),
        ("11 o'clock in the morning", "11:00"),
        ("the last day of May", "31 May"),
        ("April to the end of June", "April, May and June"),
        ("between April and June", "April, May and June"),
        ("Thursday's", "on Thursday"),
        ("four fifths of the price", "80%"),
        ("right away", "at once"),
        ("3 to 17 March", "3 March to 17 March"),
        ("Monday to Wednesday", "Monday, Tuesday and Wednesday"),
        ("November to January", "November, December, January"),
        ("three to five days", "3-5 days"),
        ("twice a year", "two times a year"),
        ("a dozen", "12"),
        ("twenty-five items", "25 items"),
    ],
)
def test_one_value_has_many_spellings(one: str, other: str) -> None:
    assert equal(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("20 cents", "20 euros"),
        ("20 euros", "20 dollars"),
        ("3 days", "3 working days"),
        ("6 pm", "6 am"),
        ("15 July", "15 January"),
        ("10 GB", "10 MB"),
        ("4 weeks", "4 months"),
        ("Flex 10", "Flex 30"),
        ("1,234,567 items", "1,234,568 items"),
    ],
)
def test_other_values_are_told_apart(one: str, other: str) -> None:
    assert not equal(one, other)


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("at least 10 days", "least"),
        ("10 days or more", "least"),
        ("no fewer than 10 days", "least"),
        ("up to 10 days", "most"),
        ("no longer than 10 days", "most"),
        ("not longer than 10 days", "most"),
        ("must not be heavier than 10 kg", "most"),
        ("more than 10 days", "more"),
        ("under 10 euros", "less"),
        ("10 days before departure", "before"),
        ("10 days after departure", "after"),
        ("10 days", ""),
    ],
)
def test_bounds_stand_before_or_behind(text: str, bound: str) -> None:
    assert [value.bound for value in values(text)] == [bound]


@pytest.mark.parametrize(
    ("text", "period"),
    [
        ("5 euros a month", "month"),
        ("5 euros per hour", "hour"),
        ("5 euros yearly", "year"),
        ("a one-time fee of 5 euros", "once"),
    ],
)
def test_rates_have_a_period(text: str, period: str) -> None:
    assert [value.per for value in values(text)] == [period]


@pytest.mark.parametrize(
    "text", ["free of charge", "at no extra cost", "without a fee", "You don't have to pay.", "is waived"]
)
def test_nothing_to_pay_is_an_amount(text: str) -> None:
    (clause,) = read(f"Parking {text}.")
    assert ("money", 0.0) in [(value.kind, value.number) for value in clause.values]
    assert all(clause.words.values())


def test_what_is_denied() -> None:
    def words(text: str) -> list[dict[str, bool]]:
        return [clause.words for clause in read(text)]

    assert words("Dogs are not allowed.") == [{"dog": False, "allow": False}]
    assert words("Dogs are prohibited.") == [{"dog": False, "allow": False}]
    assert words("Dogs are allowed, except in the spa.") == [{"dog": True, "allow": True}, {"spa": False}]
    assert words("Unworn shoes are accepted.") == [{"worn": False, "sho": True, "allow": True}]
    assert words("Photos without flash are fine.") == [{"photo": True, "flash": False, "allow": True}]
    assert words("Don't forget your passport.") == [{"passport": True}]
    assert words("Barbecues are allowed, open fires are not.")[1] == {"open": False, "fir": False, "allow": False}


def test_sentences_end_where_they_should() -> None:
    text = "Ask Dr. Okafor from 7 a.m. to 11 p.m. today. See us!\n1. Sit down\n- Wait"
    assert list(sentences(text)) == ["Ask Dr. Okafor from 7 a.m. to 11 p.m. today.", "See us!", "Sit down", "Wait"]


def test_a_clause_takes_over_the_subject_unless_it_has_its_own() -> None:
    _, taken = read("The Plus card is blue and costs 6 euros.")
    _, own = read("The Plus card is blue; the Basic card is red.")
    assert taken.scope["plu"] > 0.5
    assert own.scope["plu"] <= 0.5
