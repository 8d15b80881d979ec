"""Which values, names and sources of an answer its passages contradict."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.feedback.grounding_pairs import is_alarm, labelled, together
from fixtures.work import calls
from retuned.monitors.hallucination.abstention import MOST_CHARACTERS
from retuned.monitors.hallucination.scorer import Abstention, Answer, Judgement
from retuned.monitors.hallucination.values import judged, readable
from retuned.monitors.settings import QualitySettings

CONTEXT = (
    "Returns are accepted within 30 days of delivery. The customer pays the return shipping of €4.90.",
    "Orders above 1,000 euros are insured by Aurelia Mutual. A courier costs €12 per night.",
    "Our shop in Lisbon opens at 9:30 and closes at 18:00. The sale ends on 15 March 2027.",
)
THRESHOLD = QualitySettings().grounding_threshold


def found(
    response: str, passages: Sequence[str] = CONTEXT, question: str = "", told: Sequence[str] = ()
) -> Judgement | Abstention:
    return judged(Answer("", question, tuple(passages), response, conversation=tuple(told)))


def score(response: str, passages: Sequence[str] = CONTEXT, question: str = "", told: Sequence[str] = ()) -> float:
    judgement = found(response, passages, question, told)
    assert isinstance(judgement, Judgement), judgement
    return judgement.score


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("Returns are accepted within 60 days of delivery.", "60 days: the passages have 30 days"),
        ("The customer pays return shipping of €6.90.", "€6.90: the passages have €4.90"),
        ("Orders above 2,000 euros are insured.", "2,000 euros: the passages have 1,000 euros"),
        ("The sale ends on 20 April 2027.", "20 April 2027: the passages have 15 March 2027"),
        ("Orders are insured by Meridian Mutual.", "Meridian: the passages have Aurelia"),
        # Near, but no rounding.
        ("Returns are accepted within 31 days of delivery.", "31 days: the passages have 30 days"),
        ("The customer pays return shipping of €4.70.", "€4.70: the passages have €4.90"),
        ("Orders above 1,016 euros are insured.", "1,016 euros: the passages have 1,000 euros"),
    ],
)
def test_another_value_for_the_same_subject_is_contradicted(answer: str, why: str) -> None:
    assert found(answer) == Judgement(0.0, (why,))
    # However much else is right.
    long = f"Our shop in Lisbon opens at 9:30. It is closed on Sundays. {answer} It closes at 6 pm."
    assert score(long) == 0.0


def test_a_short_number_of_a_service_is_compared_digit_by_digit() -> None:
    passages = ["Our helpline can be reached at 116 116 at any time of day."]
    assert score("Call our helpline at 116116 at any time of day.", passages) == 1.0
    assert found("Call our helpline at 118 999 at any time.", passages) == Judgement(
        0.0, ("118 999: the passages have 116 116",)
    )


@pytest.mark.parametrize(
    "answer",
    [
        "You can return it within thirty days.",
        "You have a good four weeks, or about a month: 30 days.",
        "We open at half past nine, at 9.30 am, and close at 6 p.m.",
        "You pay nearly five euros (€5) for the way back.",
        "Orders over 1000 EUR are insured by Aurelia Mutual.",
        "It runs until 15/03/2027.",
    ],
)
def test_what_the_passages_have_in_another_form_is_supported(answer: str) -> None:
    assert score(answer) >= 0.5


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        ("Three nights with the courier cost €36.", "I need it for three nights."),
        ("A courier for 4 nights costs €48, and with the return shipping of €4.90 it is €52.90.", ""),
        ("Half of the €12 is €6.", ""),
        ("The shop is open for eight and a half hours.", ""),
        ("If you order for €1,200, that is €200 above the €1,000.", ""),
    ],
)
def test_what_follows_by_arithmetic_is_supported(answer: str, question: str) -> None:
    assert score(answer, question=question) >= 0.5


@pytest.mark.parametrize(
    ("answer", "passage"),
    [
        ("You save eight euros with a pass for ten visits.", "A visit costs €4.60, a pass for 10 visits €38."),
        (
            "If you change the filter, that costs £23 a year.",
            "The filter is changed every six months and costs £11.50.",
        ),
    ],
)
def test_a_difference_of_a_multiple_and_a_cost_per_period_follow(answer: str, passage: str) -> None:
    assert score(answer, [passage]) == 1.0


def test_what_passages_do_not_mention_is_not_supported_and_no_alarm() -> None:
    judgement = found("Our gym has 14 treadmills.")
    assert judgement == Judgement(0.5, ("14: not in the passages",))
    assert judgement.score >= THRESHOLD


@pytest.mark.parametrize(
    "answer",
    [
        "Returns are accepted for about six weeks.",
        "Returns are accepted within twice that time, 60 days.",
        "Returns are accepted within 30 days, and within 45 days if you are ill.",
    ],
)
def test_what_may_be_put_in_another_way_is_no_alarm(answer: str) -> None:
    """A hedge, a quantity without a number, and a value beside that of the passages."""
    assert score(answer) == 0.5


def test_a_quantity_without_a_number_in_the_passages_may_be_meant() -> None:
    passage = "Returns take a decade. Returns by courier take two days."
    assert score("Returns take ten years.", [passage]) == 0.5
    assert score("Returns by courier take nine days.", ["Returns by courier take two days."]) == 0.0


def test_the_conversation_may_be_repeated() -> None:
    said = "As you ordered 45 days ago, returns within 30 days of delivery are not possible."
    assert score(said) < 1.0
    assert score(said, question="I ordered 45 days ago. Can I return it?") == 1.0
    assert score(said, told=["You are the assistant of Lamp House.", "I ordered it 45 days ago."]) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "I don't know, I'm sorry.",
        "Lamps are made of crystal and can be exchanged at any time.",
        "Thank you!",
    ],
)
def test_what_states_no_value_is_not_judged(answer: str) -> None:
    assert found(answer) == Abstention("no_values")


@pytest.mark.parametrize(
    ("passage", "right", "wrong"),
    [
        (
            "Rücksendungen sind innerhalb von 30 Tagen möglich.",
            "Sie haben dreißig Tage für Rücksendungen.",
            "Rücksendungen sind innerhalb von 90 Tagen möglich.",
        ),
        (
            "Le retour coûte 4,90 € par colis.",
            "Vous payez 4,90 euros pour le retour.",
            "Le retour coûte 9,90 € par colis.",
        ),
        (
            "La garantía de las lámparas dura dos años.",
            "Las lámparas tienen 24 meses de garantía.",
            "La garantía de las lámparas dura cinco años.",
        ),
    ],
)
def test_values_are_read_in_four_languages(passage: str, right: str, wrong: str) -> None:
    assert score(right, [passage]) == 1.0
    assert score(wrong, [passage]) == 0.0


def test_values_of_tables_are_known() -> None:
    table = "| delivery | euros | days |\n|---|---|---|\n| standard | 3.95 | 5 |\n| express | 8.95 | 1 |"
    assert score("Express delivery costs €8.95.", [table]) == 1.0


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("Returns are accepted [1], and so are exchanges [5].", "[5]: no passage has this number"),
        (
            "The terms read “every lamp may be exchanged at any time without a receipt”.",
            "“every lamp may be exchanged at any time without a receipt”: no passage has this quotation",
        ),
        ("See https://help.lamps.example/a for more.", "https://help.lamps.example/a: no passage has this address"),
        ("Write to returns@lamps.example.", "returns@lamps.example: no passage has this address"),
    ],
)
def test_a_source_that_does_not_exist_is_an_alarm(answer: str, why: str) -> None:
    assert found(answer) == Judgement(0.0, (why,))


@pytest.mark.parametrize(
    "answer",
    [
        "Returns are accepted within 30 days [1][3].",
        "Returns are accepted within 30 days [12].",  # numbered by another scheme
        "It says: “Returns are accepted within 30 days of delivery”.",
        'Click on "My orders", then go to the page of the parcel and choose "Return": you have 30 days.',
        "Within 30 days; see [our terms](https://lamps.example/terms).",
    ],
)
def test_a_source_that_exists_is_none(answer: str) -> None:
    assert score(answer, [*CONTEXT, "Our terms: www.lamps.example."]) == 1.0


@pytest.mark.parametrize("place", ["passages", "conversation"])
def test_passages_with_numbers_are_cited_by_these(place: str) -> None:
    numbered = [f"[{number}] {passage}" for number, passage in zip((2, 5, 7), CONTEXT, strict=True)]
    given: dict[str, list[str]] = {"passages": numbered}
    if place == "conversation":
        given = {"passages": list(CONTEXT), "told": ["Answer from these:\n" + "\n".join(numbered)]}
    for cited in ("[7]", "[2][7]", "[^5]"):
        assert score(f"Returns are accepted within 30 days {cited}.", **given) == 1.0
    for cited in ("[3]", "[2][3]", "[1][3]"):
        judgement = found(f"Returns are accepted {cited}.", **given)
        assert isinstance(judgement, Judgement)
        assert (judgement.score, judgement.why[-1]) == (0.0, "[3]: no passage has this number")


@pytest.mark.parametrize("unit", ["days", "working days", "hours", "euros", "percent", "years"])
def test_a_number_beyond_all_floats_supports_and_contradicts_nothing(unit: str) -> None:
    endless = f"Delivery takes {'9' * 400} {unit}. Order on 3 March."
    assert score("It arrives on 5 April.", [endless]) < 1
    assert score("Delivery takes 3 days.", ["Delivery takes 3 days.", endless]) == 1.0
    assert score(f"{endless} Delivery takes 3 days.", ["Order on 3 March. Delivery takes 3 days."]) == 1.0


def test_a_number_of_an_unknown_numbering_is_not_judged() -> None:
    assert found("Returns are accepted [7].") == Abstention("numbering")
    assert found("Returns are accepted.") == Abstention("no_values")
    footnote = (*CONTEXT, "Lamps are sold since 1890.[7]")
    assert score("We sell lamps since 1890 [1][7].", footnote) == 1.0  # a passage has that footnote


FILLER = "Our shop sells chairs and tables of fine wood. " * (MOST_CHARACTERS // 40)
NINE = "Express shipping of an order here costs 9 euros."
NINETEEN = "Express shipping of an order abroad costs 19 euros."


def test_a_value_that_the_unread_rest_of_the_passages_may_hold_is_not_judged() -> None:
    answer = "Express shipping of an order abroad costs 19 euros."
    assert score(answer, [NINE, NINETEEN]) == 1.0
    assert score(answer, [NINE]) == 0.0
    assert found(answer, [NINE, FILLER, NINETEEN]) == Abstention("too_long")
    assert score(answer, [NINETEEN, FILLER, NINE]) == 1.0
    quoted = 'It is in the terms: "worn shoes are never taken back by us".'
    assert found(quoted, [NINE, FILLER]) == Abstention("too_long")


def test_the_end_of_a_long_conversation_is_read() -> None:
    question = "My order 7781 was for 45 euros, and its express shipping cost 19 euros. Why?"
    answer = "Express shipping of your order cost 19 euros."
    assert score(answer, [NINE], question, told=[FILLER, question]) == 1.0
    assert found(answer, [NINE], "Why?", told=[question, FILLER, "Why?"]) == Abstention("too_long")


def test_what_is_read_of_an_answer_is_read_of_it_again() -> None:
    once = readable(Answer("", "Why?", (NINE, FILLER, NINETEEN), FILLER, conversation=("Hello.", FILLER)))
    assert readable(once) == once
    assert [sum(map(len, texts)) for texts in (once.passages, once.conversation)] == [MOST_CHARACTERS] * 2
    assert once.conversation[-1] == "Why?"
    assert len(once.response) <= MOST_CHARACTERS


@pytest.mark.full
def test_faithful_answers_do_not_alarm_however_long_they_are() -> None:
    pairs = labelled()
    for length in (1, 2, 4, 8):
        faithful = [pair for pair in together(pairs, length, seed=length) if pair.label == "grounded"]
        assert sum(map(is_alarm, faithful)) <= 0.003 * len(faithful), length


def test_wrong_values_are_found_among_labelled_pairs() -> None:
    wrong = [pair for pair in labelled() if pair.kind in ("wrong number", "wrong name", "wrong unit or period")]
    assert sum(map(is_alarm, wrong)) > 0.35 * len(wrong)


@given(st.text(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_text_is_judged(answer: str) -> None:
    judgement = found(answer)
    assert isinstance(judgement, Abstention) or judgement.score in (0.0, 0.5, 1.0)


def test_the_number_of_a_placeholder_is_no_value() -> None:
    assert found("Write to <EMAIL_7>, please.") == Abstention("no_values")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Delivery of parcels takes 7 to 10 days.", 0.0),
        ("Delivery of parcels takes 3 to 5 days.", 1.0),
        ("Parcels with delivery in 13 days: 5 days and 8 days more.", 1.0),
    ],
)
def test_a_value_supports_another_of_its_kind_only_if_it_is_supported(answer: str, expected: float) -> None:
    assert score(answer, ["Delivery of parcels takes 3 to 5 days."]) == expected


@pytest.mark.parametrize("piece", ["1 2 3 4 5 6 7 8 9 ", "costs 17 euros ", '"a b c d e f ', "[1", "Aa bB ", "12:00 "])
def test_the_work_of_hostile_texts_does_not_grow_with_their_square(piece: str) -> None:
    texts = [(piece * 5_000)[:size] for size in (2_000, 4_000)]
    short, long = (calls(found, text, [text[::-1]]) for text in texts)
    assert long < 2.5 * short + 1_000
