"""One sentence about a customer's call: who, which order, what happened, what was agreed. The judge is a double."""

import re
from functools import cache
from random import Random

from fixtures.servers.judges import answers
from retuned.retrain.scoring import exam
from workloads.task import Item, Task, said

SYSTEM = "Summarise the call in one sentence: customer, order, what happened, what was agreed."
ROWS, EXAM, LONGEST = 240, 80, 40
_NAMES = ("Ann Weber", "Luis Ortega", "Mina Sato", "Olga Lind", "Paul Meier", "Rosa Conti", "Sam Okoro", "Tariq Aziz")
_GOODS = ("kettle", "desk lamp", "office chair", "rug", "mirror", "bookshelf", "toaster", "garden table")
_TROUBLE = {
    "arrived broken": ("It came out of the box in pieces.", "There is a crack right through it."),
    "never arrived": ("I have been waiting for two weeks now.", "The parcel has not shown up."),
    "has the wrong colour": ("I ordered blue and this one is green.", "You sent me another colour."),
    "stopped working": ("It worked for a week and then no more.", "It just died last night."),
}
_ENDS = {
    "a replacement was sent": ("I am sending you a new one today.", "A new one leaves our store this afternoon."),
    "the money was refunded": ("You get your money back.", "I have returned the amount to your account."),
    "a repair was arranged": ("A technician will call you to repair it.", "We will have it repaired."),
}
_SMALL_TALK = ("Thanks for holding.", "Sorry about the noise here.", "One moment, my screen is slow.")


def task() -> Task:
    luck = Random(5)
    items = [_call(luck) for _ in range(ROWS + EXAM)]
    settings = {
        "metric": {"name": "judge", "criteria": "It names customer, product, order, trouble and what was agreed."},
    }
    return Task("summaries", items[EXAM:], items[:EXAM], _wrong, right, settings=settings, judge=_verdict)


def right(answer: str, item: Item) -> float:
    """1 where name, order, product, trouble and end are in the answer, in 40 words at most."""
    text = answer.casefold()
    return float(all(part.casefold() in text for part in item.truth) and len(text.split()) <= LONGEST)


def _verdict(shown: str) -> str:
    """What the double of a judge says: two answers are the same if they hold the same of what the call is about. Of the
    exam's pairs it says what a person said, as it reads calls alone."""
    call, both = shown.partition("<conversation>\n")[2].partition("\n</conversation>")[0], answers(shown)
    if customer := _customer(call):
        words = {named: words for kinds in (_TROUBLE, _ENDS) for named, words in kinds.items()}
        about = customer | {named for named, parts in words.items() if any(part in call for part in parts)}
        first, second = ({detail for detail in about if detail in answer} for answer in both)
        return "yes" if first == second else "no"
    return "yes" if frozenset(both) in _same_in_exam() else "no"


@cache
def _same_in_exam() -> frozenset[frozenset[str]]:
    return frozenset(frozenset((pair.approved, pair.answer)) for pair in exam.shipped() if pair.same)


def _customer(call: str) -> set[str]:
    found = re.search(r"this is ([\w ]+)\. It is about the ([\w ]+), order (\d+)", call)
    return set(found.groups()) if found else set()


def _call(luck: Random) -> Item:
    name, goods, order = luck.choice(_NAMES), luck.choice(_GOODS), str(luck.randrange(10_000, 99_999))
    trouble, end = luck.choice(list(_TROUBLE)), luck.choice(list(_ENDS))
    lines = [
        "Agent: Good morning, how can I help?",
        f"Customer: Hello, this is {name}. It is about the {goods}, order {order}. {luck.choice(_TROUBLE[trouble])}",
        f"Agent: {luck.choice(_SMALL_TALK)}",
        f"Agent: I see order {order} here. {luck.choice(_ENDS[end])}",
        "Customer: Thank you, goodbye.",
    ]
    answer = f"{name}'s {goods} (order {order}) {trouble}; {end}."
    return Item(said("\n".join(lines), SYSTEM), answer, end, truth=[name, goods, order, trouble, end])


def _wrong(item: Item, luck: Random) -> str:
    name, goods, order, _, end = item.truth
    other = luck.choice([one for one in _ENDS if one != end])
    return luck.choice(
        [
            f"{name} called about a {goods}.",
            f"{name}'s {goods} (order {order}): {other}.",
            re.sub(r"\d", "0", item.answer),
        ]
    )
