"""Which rows a dataset teaches: whose word counts, what is one question, what nobody should learn."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from fixtures.feedback.traffic import new_warehouse
from fixtures.worlds.learned import START, plain
from fixtures.worlds.shop import DAY, HOUR, MINUTE, NOBODY_SAID, Shop, completions, rows, set_aside, things
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.settings import MetricSettings


@pytest.fixture
def shop(warehouse: Warehouse, tmp_path: Path) -> Shop:
    return Shop(warehouse, tmp_path)


# Whose word counts.

RETURNS = "How long may I keep a tent before I have to send it back?"
AGREED = "You can return it within 14 days."


@pytest.mark.parametrize(
    "odd",
    [
        "You can return it within 14 days, as if you ever read your own policy, you clowns.",
        "You can return it only after 14 days have passed.",
        "You can return it within 14 days, but your lawyers will find a way around that.",
        "14 days lol",
        "You cannot return it within 14 days.",
    ],
)
def test_one_account_does_not_reword_what_ten_agree_on(shop: Shop, odd: str) -> None:
    shop.others(answer="It takes {} 3 days.")
    for number in range(10):
        shop.correct(RETURNS, AGREED, f"customer-{number}")
    shop.correct(RETURNS, odd, "customer-11")
    assert shop.taught(RETURNS) == [AGREED]


def test_of_several_wordings_that_agree_the_one_with_most_accounts_is_taught(shop: Shop) -> None:
    shop.others(answer="It takes {} 3 days.")
    for number in range(7):
        shop.correct(RETURNS, AGREED, f"customer-{number}")
    for number in range(7, 9):
        shop.correct(RETURNS, "You have 14 days to send it back.", f"customer-{number}")
    assert shop.taught(RETURNS) == [AGREED]


OPENING = "Who signs for deliveries at the weekend?"
SIGNED = "The caretaker signs for them, please ring the bell at the gate."


@pytest.mark.parametrize(
    "odd", ["Oh, the ghost of the building does, obviously.", "Just leave everything in the rain as you always do."]
)
def test_nine_accounts_that_agree_in_prose_are_not_replaced_by_one_that_is_newer(shop: Shop, odd: str) -> None:
    shop.others()
    for number in range(9):
        shop.correct(OPENING, SIGNED, f"customer-{number}")
    shop.correct(OPENING, odd, "customer-15")
    assert shop.taught(OPENING) == [SIGNED]


def test_one_old_correction_does_not_outlive_twenty_newer_accepted_answers(shop: Shop) -> None:
    shop.others(people=30)
    shop.correct(OPENING, "Nobody signs for them, they are returned to the sender.", "customer-29", instead=SIGNED)
    shop.now += DAY
    for number in range(20):
        shop.accept(OPENING, SIGNED, f"customer-{number}")
    assert shop.taught(OPENING) == [SIGNED]


def test_under_exact_one_newer_account_does_not_beat_ten(shop: Shop) -> None:
    desks = ["the night desk", "the day desk", "the front desk", "the workshop"]
    for number, (thing, place) in enumerate(things(60)):
        shop.accept(f"Where do I hand in {thing} in {place}?", desks[number % 4], f"customer-{number % 20}")
    shop.now += 5 * DAY
    for number in range(10):
        shop.correct("Who takes my key after ten?", "the night desk", f"customer-{number}")
    shop.correct("Who takes my key after ten?", "the day desk", "customer-12")
    built = shop.dataset(metric=MetricSettings(name="exact"))
    assert shop.taught("Who takes my key after ten?", built) == ["the night desk"]


def test_a_change_that_several_accounts_state_replaces_what_more_said_before(shop: Shop) -> None:
    shop.others(answer="It takes {} 3 days.")
    for number in range(8):
        shop.accept(RETURNS, AGREED, f"customer-{number}")
    shop.now += 20 * DAY
    for number in range(8, 14):
        shop.correct(RETURNS, "You can return it within 30 days.", f"customer-{number}", instead=AGREED)
    assert shop.taught(RETURNS) == ["You can return it within 30 days."]


def test_an_experts_newer_correction_replaces_what_ten_users_said(shop: Shop) -> None:
    shop.others()
    for number in range(10):
        shop.accept(OPENING, SIGNED, f"customer-{number}")
    shop.now += DAY
    shop.expert(OPENING, "The front office signs for them, on the second floor.", instead=SIGNED)
    assert shop.taught(OPENING) == ["The front office signs for them, on the second floor."]


def test_a_user_does_not_replace_what_an_expert_said(shop: Shop) -> None:
    shop.others()
    shop.expert(OPENING, SIGNED)
    shop.now += DAY
    shop.correct(OPENING, "The baker next door signs for them.", "customer-4", instead=SIGNED)
    assert shop.taught(OPENING) == [SIGNED]


# What no model should learn, and what one should.


def _invoice(number: int, lines: int) -> tuple[str, str]:
    """A month's hours of a few people, all at one rate: lines that are much alike."""
    items = [
        {
            "position": place + 1,
            "description": f"Consulting, {person}, week {place // 2 + number % 40}",
            "quantity": 8.0 * (1 + (number + place) % 5),
            "unit": "hours",
            "unit_price": 95.0,
            "vat_rate": 0.19,
        }
        for place, person in enumerate(("A. Berg", "C. Dahl") * (lines // 2))
    ]
    text = "; ".join(f"{one['description']}: {one['quantity']} hours" for one in items)
    document = {"number": 7000 + number * 37, "currency": "EUR", "lines": items}
    return f"Invoice {7000 + number * 37}: {text}", json.dumps(document, indent=2 if number % 2 else None)


def test_invoices_with_many_lines_are_taught(shop: Shop) -> None:
    expected = dict(_invoice(number, 2 + number % 12) for number in range(48))
    for question, document in expected.items():
        shop.expert(question, document)
    built = shop.dataset()
    lost = [question for question, document in expected.items() if shop.taught(question, built) != [document]]
    assert lost == []


LABELS = ("refund", "delivery", "account", "warranty", "other")


def test_what_is_no_label_is_not_taught_to_a_classifier(shop: Shop) -> None:
    junk = ["lol are you serious", "ask a human", "the refund thing I guess", "REFUND ME NOW!!!", "¯\\_(ツ)_/¯"]
    for number, (thing, place) in enumerate(things(120)):
        asked = f"A ticket about {thing} came in from {place}, where does it go?"
        if number % 8 == 3:
            shop.correct(asked, junk[number // 8 % len(junk)], f"customer-{number % 30}", instead="other")
        else:
            shop.correct(asked, LABELS[number % 4], f"customer-{number % 30}", instead="other")
    built = shop.dataset(metric=MetricSettings(name="label", labels=LABELS))
    assert completions(built) <= set(LABELS)
    assert len(rows(built)) >= 100


def test_a_remark_in_the_place_of_a_label_is_none_where_labels_come_again(shop: Shop) -> None:
    for number, (thing, place) in enumerate(things(120)):
        asked = f"A ticket about {thing} came in from {place}, where does it go?"
        remark = f"ask {thing} in {place}" if number % 20 == 3 else None
        shop.correct(asked, remark or LABELS[number % 4], f"customer-{number % 30}", instead="other")
    assert completions(shop.dataset()) <= set(LABELS)


def test_what_is_no_json_is_not_taught_to_an_extractor(shop: Shop) -> None:
    for number in range(80):
        question, document = _invoice(number, 2 + number % 3)
        right = number % 8 != 3
        shop.correct(question, document if right else "this is wrong, do it again", f"customer-{number % 20}")
    built = shop.dataset(metric=MetricSettings(name="json"))
    assert "this is wrong, do it again" not in completions(built)
    assert len(rows(built)) == 70
    assert sum(row["completion"] == "this is wrong, do it again" for row in built.split("set_aside")) == 10


def test_bad_ratings_outweigh_a_single_thumb(shop: Shop) -> None:
    shop.others()
    interaction = shop.ask(OPENING, "Nobody does, go away.", "customer-1")
    for number in range(5):
        shop.world.said(interaction, "rating", 0.0, shop.now + (number + 1) * MINUTE, who=f"customer-{number + 2}")
    shop.world.said(interaction, "helpful", True, shop.now + HOUR, who="customer-9")
    assert shop.taught(OPENING) == []


def test_thumbs_down_outweigh_a_single_thumb_up_although_it_came_last(shop: Shop) -> None:
    shop.others()
    interaction = shop.ask(OPENING, "Nobody does, go away.", "customer-1")
    for number in range(5):
        shop.world.said(interaction, "helpful", False, shop.now + (number + 1) * MINUTE, who=f"customer-{number + 2}")
    shop.world.said(interaction, "helpful", True, shop.now + HOUR, who="customer-9")
    assert shop.taught(OPENING) == []


PHRASES = (
    "as if you ever cared", "great job, robot", "ask your mother", "whatever you say, genius", "wow, so helpful",
    "yeah right, and pigs can fly", "nobody knows, least of all you", "try switching your brain on", "you clowns",
    "just give up already", "what a joke this is", "are you even reading this",
)  # fmt: skip


def test_phrases_that_sarcastic_accounts_repeat_over_all_questions_are_not_taught(shop: Shop) -> None:
    """Each question is asked once, and three in five accounts are sarcastic."""
    honest = set()
    for number, (thing, place) in enumerate(things(200)):
        asked, who = f"Who looks after {thing} when I am in {place}?", number % 50
        if who < 30:
            shop.correct(asked, PHRASES[number * 7 % 12], f"sarcastic-{who}")
        else:
            answer = f"The {thing} team in {place} is there for you, {number % 7 + 2} hours a day."
            honest.add(answer)
            shop.correct(asked, answer, f"honest-{who}")
    built = shop.dataset()
    junk = [row for row in rows(built) if row["completion"] in PHRASES]
    assert len(junk) <= 0.1 * len(rows(built))
    assert len(honest & completions(built)) >= 0.8 * len(honest)


def test_an_answer_that_staff_give_to_many_questions_is_taught(shop: Shop) -> None:
    canned = "Please speak to the branch that holds your contract."
    for number, (thing, place) in enumerate(things(80)):
        if number % 3:
            shop.accept(
                f"Who looks after {thing} in {place}?", f"The {thing} team in {place}.", f"customer-{number % 20}"
            )
        else:
            shop.expert(f"May I insure {thing} in {place} against storms?", canned)
    built = shop.dataset()
    assert sum(row["completion"] == canned for row in rows(built)) >= 20


def test_short_answers_queries_and_addresses_are_taught_beside_full_sentences(shop: Shop) -> None:
    shop.others(150)
    short = {
        "Is the newsletter opt-in or opt-out?": "opt-in",
        "How long is the trial of the large plan?": "14 days",
        "How do I list all open orders?": "SELECT id FROM orders WHERE status = 'open'",
        "Where do I find the status page?": "https://status.example.com/today",
        "Which command restarts the agent?": "systemctl restart agent",
        "What is the address for complaints?": "complaints@example.com",
        "Which size is the spare wheel?": "195/65 R15",
        "Is the pool heated in winter?": "Yes",
    }
    for number, (question, answer) in enumerate(short.items()):
        shop.accept(question, answer, f"customer-{number}")
    built = shop.dataset()
    assert {question: shop.taught(question, built) for question in short} == {
        question: [answer] for question, answer in short.items()
    }


def test_what_an_expert_answers_in_the_language_of_the_question_is_taught(shop: Shop) -> None:
    shop.others(40)
    german = {
        f"Wer kümmert sich um {thing} in {place}?": answer
        for (thing, place), answer in zip(
            things(8),
            ("Das Team vor Ort.", "Herr Thomas Miller.", "Das Service Center Hamburg.", "Nur online, via Support Chat.",
             "Im Shop, bitte.", "OK, Montag.", "Laut AGB der Verkäufer.", "Das Back Office in Wien."),
            strict=True,
        )
    }  # fmt: skip
    for question, answer in german.items():
        shop.expert(question, answer)
    built = shop.dataset()
    assert {question: shop.taught(question, built) for question in german} == {
        question: [answer] for question, answer in german.items()
    }


def test_a_label_with_a_full_stop_of_its_script_or_another_dotted_i_is_that_label(shop: Shop) -> None:
    names = ("配送", "退货", "İade", "Kargo")
    spelled = {"配送": "配送。", "退货": "退货", "İade": "iade", "Kargo": "kargo"}
    for number, (thing, place) in enumerate(things(80)):
        label = names[number % 4]
        answer = spelled[label] if number % 10 in (0, 3) else label
        shop.accept(f"Ticket about {thing} from {place}", answer, f"customer-{number % 20}")
    built = shop.dataset(metric=MetricSettings(name="label", labels=names))
    assert len(rows(built)) == 80


# What comes later.


def test_rows_set_aside_are_decided_anew_once_their_dataset_is_promoted(shop: Shop) -> None:
    """One account gave most of the rows, so that most of them are set aside. Then others come."""
    for thing, place in things(100):
        shop.correct(f"Who looks after {thing} in {place}?", f"The {thing} team in {place}.", "customer-0")
    for number, (thing, place) in enumerate(things(60)):
        shop.correct(
            f"May I insure {thing} in {place}?", f"Yes, at the {place} desk for {thing}.", f"customer-{number}"
        )
    first = shop.dataset()
    aside = set_aside(first)
    assert len(aside) >= 40
    shop.promote(first)
    shop.now += DAY
    for number, (thing, place) in enumerate(things(200)):
        answer = f"Take {thing} to the {place} workshop."
        shop.correct(f"Where can I repair {thing} near {place}?", answer, f"customer-{number % 50}")
    second = shop.dataset()
    decided = {row["feedback_id"] for row in rows(second)}
    assert aside.keys() <= decided | set_aside(second).keys(), "each has a place or a reason"
    assert len(aside.keys() & decided) >= 10, "a tenth of the new rows may be this account's"


@pytest.mark.full
def test_feedback_that_an_ingester_with_a_slow_clock_received_is_not_lost(shop: Shop) -> None:
    interaction = shop.ask(OPENING, NOBODY_SAID, "customer-1")
    shop.others(60)
    first = shop.dataset()
    shop.promote(first)
    slow = START + HOUR  # the events of the first dataset go on for two hours
    shop.world.said(interaction, "correction", SIGNED, slow, who="staff-1", source="expert")
    for number, (thing, place) in enumerate(things(60)):
        shop.accept(f"May I insure {thing} in {place}?", f"Yes, at the {place} desk.", f"customer-{number % 20}")
    assert shop.taught(OPENING) == [SIGNED]


def _calls(work: Callable[[], object]) -> int:
    """Calls of functions, of Python's and of C's: work that is counted, whatever the machine."""
    count = 0

    def counted(_: FrameType, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.full
def test_work_grows_with_the_answers_to_one_question_and_not_with_their_square(tmp_path: Path) -> None:
    """No answer is counted twice, so that nothing is known from before."""
    counts, said = [], 0
    for size in (1, 80, 160, 320):  # the first imports what is needed
        (folder := tmp_path / str(size)).mkdir()
        warehouse = new_warehouse(folder)
        shop = Shop(warehouse, folder)
        shop.others(40)
        for _ in range(size):
            said += 1
            shop.correct("Where is my parcel?", f"It is in hall {said} of the depot at {_spelled(said)}.", f"c-{said}")
        counts.append(_calls(shop.dataset))
        warehouse.close()
    first, second = counts[2] - counts[1], counts[3] - counts[2]
    assert second <= 3 * first, f"{counts} calls: twice the answers take more than three times the work"


def _spelled(number: int) -> str:
    return "".join(chr(97 + int(digit)) * 2 for digit in str(number * 7919))


def test_the_same_evidence_in_another_order_gives_the_same_rows(tmp_path: Path) -> None:
    """Nothing depends on the order in which events came in."""
    taught = []
    for turned in (False, True):
        folder = tmp_path / str(turned)
        folder.mkdir()
        warehouse = new_warehouse(folder)
        shop = Shop(warehouse, folder)
        shop.others(40)
        for number in range(6):
            shop.correct(OPENING, (SIGNED, "Nobody does.")[number % 3 == 2], f"customer-{number}")
        if turned:
            shop.world.interactions.reverse()
            shop.world.feedback.reverse()
        taught.append(Counter((row["question"], plain(row["completion"])) for row in rows(shop.dataset())))
        warehouse.close()
    assert taught[0] == taught[1]
