"""Values: what texts state, however they write it, in four languages."""

import tracemalloc
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from retuned.consumers.common.values.read import read
from retuned.consumers.common.values.tables import LANGUAGES, LONE_LETTERS, phrases, tables
from retuned.consumers.common.values.value import Value, neighbours, opposed, same


def only(text: str, language: str = "en") -> Value:
    (found,) = read(text, language)
    return found


def both(one: str, other: str, language: str = "en") -> bool | None:
    return same(only(one, language), only(other, language))


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("en", "thirty days", "a 30-day window"),
        ("en", "120 minutes", "2 hours"),
        ("en", "an hour and a half", "90 min"),
        ("en", "a fortnight", "two weeks"),
        ("en", "a six-month warranty", "half a year"),
        ("en", "four dollars and ninety cents", "$4.90"),
        ("en", "0.5 kg", "0.500 kg"),
        ("en", "1 1/2 hours", "90 minutes"),
        ("en", "½ l", "500 ml"),
        ("en", "1 hour 30 minutes", "1.5 h"),
        ("en", "5 feet 3 inches", "63 inches"),
        ("en", "500 g", "0.5 kg"),
        ("en", "5 mcg", "5 µg"),
        ("en", "$1,500", "1500 dollars"),
        ("en", "$5 million", "5,000,000 USD"),
        ("en", "$5m", "$0.005bn"),
        ("en", "one thousand five hundred euros", "€1,500.00"),
        ("en", "20 percent", "20%"),
        ("en", "5:30 p.m.", "17:30"),
        ("en", "24 November 2026", "2026-11-24"),
        ("en", "Nov 24th", "24 November"),
        ("en", "−18 °C", "-18 °C"),
        ("en", "$5 a month", "5 USD per month"),
        ("en", "$120 a night", "120 USD per night"),
        ("de", "drei Nächte", "3 Nächten"),
        ("de", "1.500 €", "1500 Euro"),
        ("de", "1,5 Mio. Euro", "1.500.000 EUR"),
        ("de", "einundzwanzig Tage", "21 Tagen"),
        ("de", "eine zweijährige Garantie", "24 Monate"),
        ("de", "ein 30-tägiges Rückgaberecht", "dreißig Tage"),
        ("de", "dreihundert Euro", "300 €"),
        ("de", "24.12.2026", "24. Dezember 2026"),
        ("de", "5 Milliarden Euro", "5 Mrd. €"),
        ("fr", "1 500 €", "1500 euros"),
        ("fr", "soixante-dix jours", "70 jours"),
        ("fr", "9h30", "9:30"),
        ("fr", "à 9 h", "9:00"),
        ("fr", "de 9,50 euros", "9,50 €"),
        ("fr", "un délai de 14 jours", "14 jours"),
        ("es", "a la 9,50 euros", "9,50 €"),
        ("fr", "2,5 millions d'euros", "2 500 000 €"),
        ("es", "dos mil euros", "2.000 €"),
        ("es", "3 mil millones de dólares", "3.000.000.000 USD"),
        ("es", "treinta y un días", "31 días"),
        ("es", "media hora", "30 minutos"),
    ],
)
def test_one_value_in_two_notations(language: str, one: str, other: str) -> None:
    assert both(one, other, language) is True


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("en", "5 mg", "5 mcg"),
        ("en", "5 ml", "5 l"),
        ("en", "18 °C", "18 °F"),
        ("en", "18 °C", "-18 °C"),
        ("en", "$5 million", "$5 billion"),
        ("en", "5 EUR", "5 USD"),
        ("en", "5 EUR a month", "5 EUR a year"),
        ("en", "2 months", "30 days"),
        ("en", "16 MB", "16 GB"),
        ("en", "3 business days", "4 business days"),
        ("en", "3 nights", "3 days"),
        ("de", "3 Nächte", "3 Tage"),
        ("fr", "3 nuits", "3 jours"),
        ("es", "3 noches", "3 días"),
        ("en", "1,500 kg", "1.5 kg"),
        ("en", "code AX-42", "code AX-43"),
        ("de", "5 Milliarden Euro", "5 Millionen Euro"),
        ("es", "2.000 €", "2,5 €"),
    ],
)
def test_other_values(language: str, one: str, other: str) -> None:
    assert both(one, other, language) is False


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.500 kg", "1500 kg"),  # or one and a half
        ("03/04/2026", "4 March 2026"),  # or the third of April
        ("at 5:30", "at 17:30"),
        ("$120 a night", "$120 a day"),
        ("5", "5 EUR"),
        ("24 May", "24 May 2026"),
        ("+49 30 1234567", "030 1234567"),
        ("1 month", "30 days"),
        ("10 miles", "16 km"),
        ("5 EUR a month", "60 EUR a year"),
    ],
)
def test_a_notation_with_two_meanings_is_open(one: str, other: str) -> None:
    assert both(one, other) is None


@pytest.mark.parametrize(
    ("language", "text", "bound"),
    [
        ("en", "at least 18 years", ">="),
        ("en", "no more than 3 days", "<="),
        ("en", "30 days or more", ">="),
        ("en", "over 18 years", ">"),
        ("en", "before 5 May", "<"),
        ("en", "2 hours before the flight", "before"),
        ("de", "mindestens 3 Werktage", ">="),
        ("de", "bis zu 30 Tagen", "<="),
        ("fr", "au moins 3 jours", ">="),
        ("fr", "moins de 3 jours", "<"),
        ("es", "como máximo 3 días", "<="),
        ("es", "más de 3 días", ">"),
    ],
)
def test_bounds(language: str, text: str, bound: str) -> None:
    assert only(text, language).bound == bound


def test_bounds_that_exclude_each_other_and_those_that_meet() -> None:
    assert opposed(only("at least 18 years"), only("at most 18 years"))
    assert not opposed(only("at least 18 years"), only("18 years"))
    assert neighbours(only("over 17 years"), only("at least 18 years"))
    assert neighbours(only("before 1 May"), only("by 30 April"))
    assert not neighbours(only("at least 17 years"), only("at least 18 years"))


def test_both_ends_of_a_range_have_its_unit() -> None:
    assert [value.key for value in read("3-5 days", "en")] == ["day:3", "day:5"]
    assert [value.key for value in read("$5-10", "en")] == ["money:5 USD", "money:10 USD"]
    assert same(read("2-8 °C", "en")[0], only("2 °C"))
    assert [value.key for value in read("9 bis 17 Uhr", "de")] == ["time:540", "time:1020"]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("unit", sorted(LONE_LETTERS))
def test_a_number_before_any_letter_is_read(language: str, unit: str) -> None:
    assert only(f"At 9 {unit}.", language).number == 9


def test_a_preposition_is_no_unit() -> None:
    assert only("We open at six in the evening.").kind == "number"
    assert only("Wir sind um 6 in der Halle.", "de").kind == "number"


def test_what_is_no_duration_to_the_library_of_units_is_none() -> None:
    assert read("It takes a decade, or three quarters.", "en")[-1].kind == "number"


@pytest.mark.parametrize("text", ["{} euros", "{} days", "{} working days", "3 to {} days", "{} percent", "{}"])
def test_a_number_beyond_all_floats_is_no_value(text: str) -> None:
    shown = f"It was {text.format('9' * 400)} then. It is 5 kg now."
    assert all(value.is_finite for value in read(shown, "en"))
    assert [value.key for value in read(shown, "en")][-1] == "mass:5"


def test_numbers_of_list_items_are_no_values() -> None:
    assert [value.key for value in read("1. Open it.\n2. Wait 3 minutes.\n3. Close it.", "en")] == ["minute:3"]
    assert [value.key for value in read("Step 1: open. Step 2: wait.", "en")] == []
    assert [value.key for value in read("2. Mai ist Feiertag", "de")] == ["date:5-2"]


def test_a_quantity_that_may_be_a_phrase_is_soft() -> None:
    assert [value.soft for value in read("within a day", "en")] == [True]
    assert [value.soft for value in read("within one and a half days", "en")] == [False]


def test_time_grows_with_the_text_and_not_faster() -> None:
    assert len(read("It takes 3 days or 5 hours, costs 4,99 EUR. " * 2_000, "en")) == 6_000


@pytest.mark.full
def test_long_texts_do_not_stay_in_memory() -> None:
    read("3 days", "en")
    tracemalloc.start()
    try:
        for number in range(20):
            read(f"It takes {number} days. " + "Please wait a little. " * 2_000, "en")
        assert tracemalloc.get_traced_memory()[0] < 400_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("language", LANGUAGES)
@given(text=st.text(alphabet=st.sampled_from("09 1.,:-/()€$%aAhkm°'’\n é\u202f七٣²"), max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_is_read_and_values_stand_where_they_were_found(language: str, text: str) -> None:
    end = 0
    for value in read(text, language):
        assert end <= value.start < value.end <= len(text)
        assert value.text in text[value.start : value.end]
        end = value.end


@pytest.mark.full
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("written", "instead"),
    [(" ", "-"), ("-", " "), (" ", "\u202f"), ("i", "İ"), ("i", "ı"), ("s", "ſ"), ("ss", "ẞ"), ("k", "K")],
)
def test_every_word_of_the_tables_is_read_however_it_is_spelled(language: str, written: str, instead: str) -> None:
    text = (files("retuned.consumers.common.values") / "words.yaml").read_text(encoding="utf-8")
    words = {word for word in phrases_in(yaml.safe_load(text)[language]) if written in word}
    for word in {*words, *tables(language).units}:
        spelled = word.replace(written, instead)
        read(f"10 {spelled} 10 {spelled} 10. 10{spelled}/{spelled} {spelled} 10 {spelled.upper()}", language)


def phrases_in(section: Any) -> Iterator[str]:
    """All keys and all phrases of a section of `words.yaml`."""
    for key, value in section.items():
        yield str(key)
        if isinstance(value, dict):
            yield from phrases_in(value)
        elif isinstance(value, str):
            yield from phrases(value)


@pytest.mark.parametrize("dash", [" ", "-", "\u00a0"])
def test_a_bound_is_one_with_and_without_a_hyphen(dash: str) -> None:
    assert only(f"au{dash}delà de 30 jours", "fr").bound == ">"
