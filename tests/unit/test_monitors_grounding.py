"""What counts as said by the context."""

import random
import time
from collections.abc import Sequence

import pytest
from grounding_pairs import halves, is_alarm, labelled, outcomes, score, together

from retuned.monitors.hallucination.rules import ground
from retuned.monitors.settings import QualitySettings

THRESHOLD = QualitySettings().grounding_threshold

CONTEXT = (
    "Returns are accepted within 30 days of delivery. The customer pays the return shipping.",
    "Gift cards cannot be refunded. Orders above 1,000 euros are insured by Aurelia Mutual.",
    "Our shop in Lisbon opens at 9:30 and closes at 18:00. It is closed on Sundays.",
    "Dogs are allowed on the terrace, but not inside.",
)
SUPPORTED = (
    "You can return it within 30 days of delivery.",
    "The return shipping is paid by the customer.",
    "Gift cards can't be refunded.",
    "Orders above 1000 euros are insured.",
    "The shop in Lisbon opens at 9:30.",
    "It closes at 18:00 and is closed on Sundays.",
    "Dogs are allowed on the terrace.",
    "Dogs are not allowed inside.",
    "It is closed on a Sunday.",
    "Happy to help! Gift cards cannot be refunded. Have a nice day!",
)
INVENTED = (
    "You can return it within 60 days of delivery.",
    "Gift cards can be refunded.",
    "Returns are not accepted.",
    "Dogs are allowed inside.",
    "Orders are insured by Meridian Mutual.",
    "The shop in Porto opens at 9:30.",
    "The shop closes at 19:00.",
    "Returns are accepted within 30 days of delivery. We also offer a lifetime warranty on batteries.",
    "Premium members enjoy complimentary overnight upgrades.",
)


def grounding(answer: str, context: str | Sequence[str], question: str = "") -> float:
    return ground(answer, (context,) if isinstance(context, str) else tuple(context), question).score


@pytest.mark.parametrize("answer", SUPPORTED)
def test_what_the_context_says_is_grounded(answer: str) -> None:
    assert grounding(answer, CONTEXT) >= THRESHOLD


@pytest.mark.parametrize("answer", INVENTED)
def test_what_it_does_not_say_is_not(answer: str) -> None:
    assert grounding(answer, CONTEXT) < THRESHOLD


def test_one_invented_sentence_is_not_hidden_by_true_ones() -> None:
    true = "Returns are accepted within 30 days of delivery. Gift cards cannot be refunded. "
    assert ground(true, CONTEXT).score == 1.0
    found = ground(true + "Zebras graze upon purple moons.", CONTEXT)
    assert found.score < THRESHOLD
    assert found.spans == ("Zebras graze upon purple moons.",)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I don't know.",
        "I’m sorry, I cannot find that.",
        "Thank you!",
        "May I ask why?",
        "The articles I have don't cover that. I'd rather not guess.",
        "I'm really sorry about the wait.",
        "Have fun celebrating! We can't wait to see you.",
    ],
)
def test_what_claims_nothing_invents_nothing(answer: str) -> None:
    assert grounding(answer, CONTEXT) == 1.0


@pytest.mark.parametrize(
    ("said", "source"),
    [
        ("1000 euros", "1,000 euros"),
        ("3.5 euros", "3.50 euros"),
        ("3,5 euros", "3.50 euros"),
        ("2 visits", "two visits"),
        ("4 visits", "four visits"),
    ],
)
def test_one_number_has_many_spellings(said: str, source: str) -> None:
    assert grounding(f"It costs {said}.", f"It costs {source}.") == 1.0


def test_what_is_forbidden_is_not_allowed() -> None:
    source = "Smoking is prohibited in the rooms of the hotel."
    assert grounding("Smoking is not allowed in the hotel rooms.", source) >= THRESHOLD
    assert grounding("Smoking is allowed in the hotel rooms.", source) < THRESHOLD


def test_numbers_are_told_apart() -> None:
    assert grounding("It costs 100 euros.", "It costs 1,000 euros.") < THRESHOLD
    assert grounding("It costs 10 euros.", "It costs 1 euro, or 0 on Sundays.") < THRESHOLD


@pytest.mark.parametrize("answer", ["a" * 100_000, "1." * 20_000, "\u0000\n\n", "。！？", "… ' ’ -", "Straße ist 5€"])
def test_any_text_has_a_score(answer: str) -> None:
    assert 0.0 <= grounding(answer, CONTEXT) <= 1.0
    assert 0.0 <= grounding("The shop opens.", answer) <= 1.0


def test_the_number_of_a_placeholder_claims_nothing() -> None:
    assert grounding("We wrote to <EMAIL_7>.", ["They wrote to <EMAIL_2>."]) == 1.0


def test_an_answer_may_announce_alone() -> None:
    assert 0.0 <= grounding("These are two things:", CONTEXT) <= 1.0


def test_inventions_are_found_among_labelled_pairs() -> None:
    found, _ = outcomes(halves(labelled()))
    assert found["all"].precision >= 0.92
    assert found["all"].recall >= 0.78


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_faithful_answers_seldom_alarm_however_long_they_are(length: int) -> None:
    """Of answers to one and to several questions at once, some one in twenty, as the threshold says; a sample."""
    grounded = [pair for pair in labelled() if pair.label == "grounded"][::5]
    made = together(grounded, length, seed=length)
    assert sum(map(is_alarm, made)) <= 0.07 * len(made)


@pytest.mark.parametrize("length", [1, 4, 8])
def test_what_the_passages_say_word_for_word_never_alarms(length: int) -> None:
    passages = sorted({passage for pair in labelled() for passage in pair.context})
    rng = random.Random(length)
    for _ in range(40):
        given = rng.sample(passages, 2 * length)
        assert ground("\n".join(given[:length]), tuple(given)).score >= THRESHOLD


def test_the_threshold_trades_false_alarms_for_recall() -> None:
    pairs = labelled()[::3]
    scores = [(pair.label == "invented", score(pair)) for pair in pairs]
    alarms = [
        [sum(found < at for label, found in scores if label is kind) for at in (0.01, 0.03, 0.05)]
        for kind in (True, False)
    ]
    for found in alarms:
        assert found[0] < found[1] < found[2]


@pytest.mark.parametrize(
    ("source", "true", "other"),
    [
        ("A bag costs 35 euros each way.", "That is 70 euros in total.", "That is 80 euros in total."),
        ("Breakfast is from 7:30 to 10:00.", "Breakfast lasts two and a half hours.", "Breakfast lasts four hours."),
        (
            "Statements come once per quarter.",
            "Statements come four times a year.",
            "Statements come five times a year.",
        ),
        ("We do not ship outside France.", "We ship within France only.", "We ship to Spain."),
    ],
)
def test_what_follows_from_the_passages_is_grounded(source: str, true: str, other: str) -> None:
    assert grounding(true, source) >= THRESHOLD
    assert grounding(other, source) < THRESHOLD


@pytest.mark.parametrize(
    ("source", "true", "swapped"),
    [
        (
            "Standard delivery costs 4 euros. Express delivery costs 9 euros.",
            "Express delivery costs 9 euros.",
            "Express delivery costs 4 euros.",
        ),
        (
            "Doors open at 19:00, the show begins at 20:30.",
            "The show begins at half past eight and doors open at 7 pm.",
            "Doors open at 20:30.",
        ),
        (
            "The Basic plan has chat. The Plus plan has phone support.",
            "Plus has phone support.",
            "Basic has phone support.",
        ),
        (
            "Children are seen by Dr. Okafor, adults by Dr. Petersen.",
            "Dr. Petersen sees adults.",
            "Children are seen by Dr. Petersen.",
        ),
        (
            "Flex 10 costs 5 euros, Flex 30 costs 8 euros.",
            "You pay 8 euros for Flex 30.",
            "You pay 8 euros for Flex 10.",
        ),
    ],
)
def test_facts_belong_to_their_subject(source: str, true: str, swapped: str) -> None:
    assert grounding(true, source) >= THRESHOLD
    assert grounding(swapped, source) < THRESHOLD


@pytest.mark.parametrize(
    ("source", "true", "other"),
    [
        ("The fee is 5 euros a month.", "You pay 5 euros monthly.", "You pay 5 euros a year."),
        ("Bags of up to 8 kg are fine.", "Bags may weigh no more than 8 kg.", "Bags must weigh at least 8 kg."),
        ("Pay 3 days before arrival.", "Payment is due three days before you arrive.", "Pay 3 days after arrival."),
        ("Noise cancelling is in the X2 only.", "The X2 has noise cancelling.", "Both models have noise cancelling."),
        ("Colours: grey and green.", "It comes in grey and green.", "It comes in grey, green and violet."),
        ("Printing up to 100 pages is included.", "You can print 100 pages.", "Printing is unlimited."),
    ],
)
def test_bounds_periods_and_lists_are_compared(source: str, true: str, other: str) -> None:
    assert grounding(true, source) >= THRESHOLD
    assert grounding(other, source) < THRESHOLD


@pytest.mark.parametrize(
    ("source", "true", "other"),
    [
        ("The offer ends on 31 May 2027.", "It ends at the end of May 2027.", "It ends at the end of May 2028."),
        ("We are open on weekdays.", "We are open on Tuesdays.", "We are open on Sundays."),
        ("The pool is open daily from 7 to 21:00.", "On Sundays it opens at 7.", "On Sundays it opens at 8."),
        ("The shop closes at 8 pm.", "The shop is open until 8 pm.", "The shop is open until 9 pm."),
        ("Rooms cost €90 per night.", "A room is €90 a night.", "A room is €90 per stay."),
        ("Lockers are free.", "You pay nothing for lockers.", "There is a charge for lockers."),
        (
            "Bikes not collected within 14 days are charged storage.",
            "After two weeks you pay for storage.",
            "After three weeks you pay for storage.",
        ),
        (
            "Please bring your passport, a photo and the form.",
            "You need three things:\n1. your passport\n2. a photo\n3. the form",
            "You need three things:\n1. your passport\n2. a photo\n3. a stamp",
        ),
        (
            "Results are sent to your doctor within 3 days.",
            "Your doctor gets the results within three days.",
            "Results are sent to your health insurer within 3 days.",
        ),
        (
            "We ship parcels.",
            "Our terms don't mention letters. It's best to ask the branch.",
            "Our terms don't mention letters, but stamps cost 80 cents.",
        ),
        (
            "Dogs are welcome on pitches (4 euros a night) but not in the cabins.",
            "Dogs are welcome on pitches.",
            "Dogs are welcome in the cabins.",
        ),
        (
            "The Elm Park branch has no drive-through. The Main Street branch has a drive-through.",
            "The Main Street branch has a drive-through.",
            "The Elm Park branch has a drive-through.",
        ),
        (
            "Perfume and batteries may not be sent.",
            "Please don't send any of these: perfume, batteries.",
            "Please send any of these: perfume, batteries.",
        ),
        ("Paper forms are no longer accepted.", "We don't take paper forms any more.", "Paper forms are accepted."),
        ("Pausing costs 5 euros a month.", "Pausing isn't free: it costs 5 euros a month.", "Pausing is free."),
        (
            "Open Friday 8:30 to 13:00. We are closed at weekends.",
            "On Fridays we close at 13:00.",
            "On Fridays we close at 14:00.",
        ),
        (
            "The price does not include the lift pass or equipment hire.",
            "The lift pass and equipment hire are not included.",
            "The lift pass and equipment hire are included.",
        ),
        ("Only owners and accountants can export.", "Accountants can export.", "Everyone can export."),
        (
            "Screens 3 and 5 have a ramp.",
            "These have a ramp:\n- Screen 3\n- Screen 5",
            "These have a ramp:\n- Screen 4",
        ),
    ],
)
def test_what_is_said_in_another_form_is_grounded(source: str, true: str, other: str) -> None:
    assert grounding(true, source) >= THRESHOLD
    assert grounding(other, source) < THRESHOLD


def test_the_customers_own_case_may_be_repeated() -> None:
    source, question = "Readings can be sent until 15 January.", "Is 10 January too late?"
    answer = "10 January is in time: readings can be sent until 15 January."
    assert grounding(answer, source, question) >= THRESHOLD
    assert grounding(answer, source) < THRESHOLD


@pytest.mark.parametrize(
    "answer",
    [
        "Hello, all rooms have a sauna.",
        "No need to worry: zebras graze upon moons.",
        "Happy to confirm that zebras may swim.",
        "The information pack does not include zebras.",
    ],
)
def test_a_claim_behind_a_pleasantry_is_judged(answer: str) -> None:
    assert grounding(answer, CONTEXT) < THRESHOLD


def test_names_are_the_customers_own_where_they_tell_of_themselves() -> None:
    source, answer = (
        "Joining is free for anyone who works in Leeds.",
        "You can join free of charge, and York is no problem.",
    )
    assert grounding(answer, source, "I live in York. May I join?") >= THRESHOLD
    assert grounding(answer, source, "May I join in York?") < THRESHOLD


def test_the_time_of_hostile_texts_is_bounded() -> None:
    rng = random.Random(5)
    numbers = " ".join(f"{rng.randrange(100)} items{rng.choice([',', '.', ';', ' and'])}" for _ in range(20_000))
    lists = "Bring:\n" + "- a photo to the office, 5 euros fifty\n" * 5_000
    halves = " ".join(f"€{n} or half of it." for n in range(5_000))
    for text in (
        numbers,
        lists,
        halves,
        "it doesn't " * 10_000,
        "Anna Bert, " * 10_000,
        "monday to sunday " * 10_000,
        "a.a.a@" * 20_000,
    ):
        began = time.process_time()
        assert 0.0 <= grounding(text, text, text) <= 1.0
        assert time.process_time() - began < 5
