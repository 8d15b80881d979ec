"""What a dataset takes for one question, and for one conversation."""

from collections import defaultdict
from pathlib import Path

import pytest

from fixtures.worlds.learned import key_of
from fixtures.worlds.shop import HOUR, Shop, answers, completions, things
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.dataset import SPLITS

OPENING = "Who signs for deliveries at the weekend?"


@pytest.fixture
def shop(warehouse: Warehouse, tmp_path: Path) -> Shop:
    return Shop(warehouse, tmp_path)


# What is one question.

DIFFERENT = {
    "languages": ["How do I start a thread in C?", "How do I start a thread in C++?", "How do I start a thread in C#?"],
    "operators": ["What is 2+3?", "What is 2-3?", "What is 2*3?", "What is 2/3?"],
    "comparisons": ["Which rows does x>=3 keep?", "Which rows does x!=3 keep?", "Which rows does x<=3 keep?"],
    "emoji": ["🙂", "😡", "🎉🎉", "👍"],
    "countries": ["What is the postage to Austria?", "What is the postage to Australia?"],
    "parties": ["Who pays when the employer ends the contract?", "Who pays when the employee ends the contract?"],
    "can": ["In which cases can it be returned?", "In which cases cannot it be returned?"],
    "can, apart": ["Why can I pay by card at the kiosk?", "Why can I not pay by card at the kiosk?"],
    "safe": ["Why is this cream safe for babies?", "Why is this cream not safe for babies?"],
    "contracted": ["Which of the plants do like shade?", "Which of the plants don't like shade?"],
    "direction": ["How do I convert EUR to USD in the app?", "How do I convert USD to EUR in the app?"],
    "roles": ["May a tenant sue the landlord over noise?", "May a landlord sue the tenant over noise?"],
    "order of time": ["What do I pay before 9:00 at the pool?", "What do I pay after 9:00 at the pool?"],
    "sign": ["Is the soup safe when kept at 18 °C?", "Is the soup safe when kept at -18 °C?"],
    "unit": ["Is 5 mg of it too much for a child?", "Is 5 mcg of it too much for a child?"],
    "model": ["Does the case fit the Nova 15?", "Does the case fit the Nova 15 Pro?"],
    "part number": ["Is part X-100A in stock at the moment?", "Is part X-100B in stock at the moment?"],
    "one letter": ["Where do I apply for a form 1040?", "Where do I apply for a form 1040-X?"],
    "Chinese": ["打开的商品可以退货吗?", "打开的商品不可以退货吗?", "打开的商品可以换货吗?"],
    "German": ["Darf ich den Hund mitbringen?", "Darf ich den Hund nicht mitbringen?", "Darf ich das Hemd mitbringen?"],
    "accent": ["Avez-vous un menu pour la pêche?", "Avez-vous un menu pour le péché?"],
    "path": [
        "What does GET /v1/orders return?",
        "What does GET /v2/orders return?",
        "What does PUT /v1/orders return?",
    ],
    "with and without": ["Which menu has dishes with nuts?", "Which menu has dishes without nuts?"],
    "increase": ["How do I increase my card limit in the app?", "How do I decrease my card limit in the app?"],
}


FRAMES = (
    "Good morning, I was told on the phone to write to this address because nobody there could help me. {} Thanks, Ada",
    "Hello everyone! Our new colleague starts on Monday, and we have to write down how things are done here. {} Bye",
    "{} I searched your pages for half an hour yesterday evening and found everything else, yet not this one thing.",
    "My grandfather does not use the internet, which is why he asked me to find out on his behalf: {} Many thanks!",
    "It is for a school project about how companies treat those who buy from them, so please be exact. {} Yours, Tom",
    "Third attempt, the form lost my message twice already and showed nothing but an empty page afterwards. {} Regards",
)
KINDS = list(DIFFERENT)


@pytest.mark.parametrize("group", range(4))
@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_each_of_different_questions_keeps_what_an_expert_answered(shop: Shop, group: int, long: bool) -> None:
    """In messages of an everyday length, one word or sign is a small part."""
    shop.others()
    expected = {}
    for place, kind in enumerate(KINDS[group::4]):
        for number, question in enumerate(DIFFERENT[kind]):
            asked = FRAMES[place].format(question) if long else question
            expected[asked] = [f"It is the {('first', 'second', 'third', 'fourth')[number]} thing about {kind}."]
            shop.expert(asked, expected[asked][0])
            shop.now += HOUR
    built = shop.dataset()
    assert [question for question, answer in expected.items() if shop.taught(question, built) != answer] == []


def test_the_same_question_in_other_case_and_spacing_has_one_vote(shop: Shop) -> None:
    shop.others()
    for number, question in enumerate([OPENING, OPENING.lower(), f" {OPENING}\n", OPENING.replace(" ", "  ")]):
        shop.correct(question, "The caretaker signs for them.", f"customer-{number}")
    shop.correct(OPENING.lower(), "Nobody ever signs anything, it is a scandal.", "customer-9")
    assert "Nobody ever signs anything, it is a scandal." not in completions(shop.dataset())


def test_the_same_words_under_another_system_prompt_or_passage_are_another_question(shop: Shop) -> None:
    shop.others()
    english, german = "You work for the shop in Leeds.", "You work for the shop in Graz."
    asked = [
        [{"role": "system", "content": system}, {"role": "user", "content": "When do you open?"}]
        for system in (english, german)
    ]
    shop.expert(asked[0], "We open at nine.")
    shop.expert(asked[1], "We open at seven.")
    shop.expert("What does it say?", "It says that dogs are welcome.", context=["Dogs are welcome here."])
    shop.expert("What does it say?", "It says that cats are welcome.", context=["Cats are welcome here."])
    built = shop.dataset()
    assert [shop.taught(one, built) for one in asked] == [["We open at nine."], ["We open at seven."]]
    assert {"It says that dogs are welcome.", "It says that cats are welcome."} <= completions(built)


# Conversations.


def _mail(number: int) -> str:
    thing, place = list(things(number + 1))[-1]
    return (
        f"Dear team, last month I ordered {thing} for our house in {place}. The parcel came late, a corner was wet, "
        "and the driver told my neighbour that he would come back on Tuesday, which he did not. I have called the "
        "hotline three times, and each time somebody promised to look into it. My patience is not endless. I would "
        f"like to know who is responsible, when I can expect new {thing}, and whether I have to pay for the wet ones. "
        f"You find the photographs attached. I am in {place} until the end of the month, and after that my sister "
        "takes in the post. She works in the mornings, so please come in the afternoon. Yours, A. Customer"
    )


TASKS = {
    "Summarise this mail in one sentence.": "Customer {0} complains about a late, wet parcel.",
    "Translate it into German.": "Sehr geehrtes Team, Kunde {0} beschwert sich, dass das Paket nass war.",
    "Draft a polite reply.": "Dear customer {0}, we are sorry and will send you a new parcel this week.",
}


def test_tasks_that_share_a_long_mail_are_different_questions(shop: Shop) -> None:
    shop.others(20)
    expected = {}
    for number in range(12):
        for task, answer in TASKS.items():
            question = f"{_mail(number)}\n\n{task}"
            expected[question] = [answer.format(f"N{number}")]
            shop.expert(question, expected[question][0])
    built = shop.dataset()
    lost = [question[-30:] for question, answer in expected.items() if shop.taught(question, built) != answer]
    assert lost == []


def _chats(shop: Shop, count: int) -> dict[str, str]:
    """Conversations of three turns, each of which an expert answers; what was answered, by its key."""
    expected = {}
    for number in range(count):
        turns: list[dict[str, str]] = []
        for task, answer in TASKS.items():
            first = f"{_mail(number)}\n\n{task}"
            turns.append({"role": "user", "content": task if turns else first})
            written = answer.format(f"N{number}")
            shop.expert(turns, written, conversation=f"chat-{number}")
            expected[key_of(turns)] = written
            turns.append({"role": "assistant", "content": written})
    return expected


def test_turns_of_a_conversation_are_different_questions(shop: Shop) -> None:
    expected = _chats(shop, 15)
    found = answers(shop.dataset())
    assert [key[-60:] for key, answer in expected.items() if found[key] != [answer]] == []


def test_a_conversation_is_either_taught_or_held_out(shop: Shop) -> None:
    _chats(shop, 40)
    built = shop.dataset()
    sides = defaultdict[str, set[bool]](set)
    for name in SPLITS:
        for row in built.split(name):
            sides[str(shop.world.conversation_of(row))].add(name == "holdout")
    assert [name for name, side in sides.items() if len(side) > 1] == []
    assert built.rows["holdout"] > 0
    prompts = [row["messages"] for row in built.split("train")]
    seen = [row["completion"] for row in built.split("holdout") if any(row["completion"] in text for text in prompts)]
    assert seen == []
