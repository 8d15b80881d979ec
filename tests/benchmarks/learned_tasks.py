"""Made-up tasks of several kinds: questions, right answers in several wordings, plausible wrong ones, and junk.

Questions of one task differ in more than a word, so that the scenarios measure whom a dataset believes. What it takes
for the same question is measured on real data, and by the tests in `tests/integration/test_learned_rows.py`.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

_THINGS = (
    "lamp", "sofa", "kettle", "tent", "bicycle", "winter coat", "office chair", "garden hose", "phone case", "blender",
    "suitcase", "rain jacket", "bookshelf", "coffee grinder", "mattress", "mirror", "headset", "toaster", "backpack",
    "keyboard", "rug", "drill", "stroller", "camera", "printer", "wardrobe", "helmet", "thermos", "violin", "canoe",
)  # fmt: skip
_MATTERS = (
    "returning it unused", "a missing screw", "the second invoice", "changing the colour", "engraving a name",
    "picking it up in person", "paying in three parts", "the guarantee abroad", "a scratch on the side",
    "sending it as a present", "delivery on a Saturday", "the wrong size", "exchanging it for another model",
    "an order that arrived twice", "the student discount", "assembly at home", "recycling the old one",
    "a voucher that expired", "reserving it until payday", "the noise that it makes", "cancelling before dispatch",
    "spare parts", "insurance on the way", "buying ten of them", "a price that fell the day after", "the smell of it",
)  # fmt: skip
_OPENINGS = (
    "I bought a {thing} from you in {town}. What do you say about {matter}?",
    "{matter}: what holds for a {thing} from the shop in {town}?",
    "My sister in {town} has a {thing}, and her question is about {matter}.",
    "Could you look up {matter} for the {thing} I ordered to {town}?",
    "We run a hotel in {town}; tell us about {matter} when it comes to a {thing}.",
    "Quick one on {matter} - it is a {thing}, delivered to {town} last month.",
)  # fmt: skip
_TOWNS = (
    "Graz", "Lyon", "Porto", "Ghent", "Turku", "Bergen", "Zadar", "Leeds", "Cork", "Malmo", "Brno", "Gdansk", "Siena",
    "Vigo", "Basel", "Aarhus", "Tartu", "Split", "Delft", "Nantes", "Kassel", "Verona", "Galway", "Trieste",
)  # fmt: skip
_VERBS = (
    "cancel", "track", "change", "refund", "renew", "block", "verify", "upgrade", "transfer", "report", "activate",
    "print", "dispute", "pause", "extend", "split", "archive", "share", "restore", "limit", "schedule", "merge",
    "export", "confirm", "appeal", "rename", "reopen", "audit", "compare", "estimate", "assign", "release", "reserve",
)  # fmt: skip
_NOUNS = (
    "order", "card", "invoice", "account", "subscription", "address", "password", "booking", "policy", "claim",
    "delivery", "voucher", "statement", "contract", "ticket", "device", "licence", "meter", "appointment", "payment",
    "profile", "permit", "deposit", "warranty", "seat", "meal", "locker", "route", "quote", "survey", "badge",
)  # fmt: skip
_DESKS = ("night desk", "day desk", "workshop", "bakery", "front office", "warehouse team", "travel desk", "library")
_REASONS = (
    "because they keep the papers for it", "since nobody else may decide it", "as agreed with the owners",
    "after a short talk with the customer", "before anything leaves the house", "while the season lasts",
)  # fmt: skip
PHRASES = (
    "lol are you serious", "as if you ever cared", "great job, robot", "ask your mother", "42, obviously",
    "whatever you say, genius", "you clowns", "yeah right", "wow, so helpful", "nobody knows, least of all you",
    "try switching your brain on and off again", "just give up already",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A question and what may be answered to it.

    Attributes:
        wordings: right answers, all with the same meaning.
        old: the same before the policy changed.
        wrong: what a mistaken person answers; other each time.
    """

    question: str
    wordings: tuple[str, ...]
    old: tuple[str, ...]
    wrong: Callable[[random.Random], str]


Task = Callable[[int, random.Random], list[Item]]


def _questions(count: int, luck: random.Random) -> list[dict[str, str]]:
    drawn = luck.sample(range(len(_THINGS) * len(_MATTERS) * len(_TOWNS)), count)
    found = []
    for number in drawn:
        thing, rest = number % len(_THINGS), number // len(_THINGS)
        matter, town = rest % len(_MATTERS), rest // len(_MATTERS)
        found.append({"thing": _THINGS[thing], "matter": _MATTERS[matter], "town": _TOWNS[town]})
    return found


def _question(about: dict[str, str], luck: random.Random) -> str:
    asked = luck.choice(_OPENINGS).format(**about)
    return asked[0].upper() + asked[1:]


def _other(values: tuple[str, ...], value: str) -> Callable[[random.Random], str]:
    return lambda luck: luck.choice([one for one in values if one != value])


def labels(number: int) -> Task:
    """A classifier with so many labels. The question names what it is about in words of its own."""
    if number == 2:
        names: tuple[str, ...] = ("urgent", "normal")
    else:
        names = tuple(f"{verb}_{noun}" for noun in _NOUNS for verb in _VERBS)[:: len(_NOUNS) * len(_VERBS) // number]
        names = names[:number]

    def items(count: int, luck: random.Random) -> list[Item]:
        made = []
        for position, about in enumerate(_questions(count, luck)):
            name = names[position % number]
            before = _other(names, name)(luck)
            hint = f" I want to {name.replace('_', ' my ')}." if number > 2 else " Hurry!" * (name == "urgent")
            made.append(Item(_question(about, luck) + hint, (name,), (before,), _other(names, name)))
        return made

    return items


def facts(count: int, luck: random.Random) -> list[Item]:
    """Short sentences with a number in them."""

    def wordings(thing: str, days: int) -> tuple[str, ...]:
        return (
            f"You have {days} days for the {thing}.",
            f"It takes us {days} days to settle that for a {thing}.",
            f"For a {thing} you can count on {days} days.",
        )

    made = []
    for about in _questions(count, luck):
        thing, days = about["thing"], luck.randrange(3, 60)

        def wrong(luck: random.Random, thing: str = thing, days: int = days) -> str:
            return luck.choice(wordings(thing, days + luck.randrange(1, 40)))

        made.append(Item(_question(about, luck), wordings(thing, days), wordings(thing, days + 60), wrong))
    return made


def prose(count: int, luck: random.Random) -> list[Item]:
    """Short sentences without numbers: who decides, and whether it is allowed."""

    def wordings(desk: str, allowed: bool, reason: str) -> tuple[str, ...]:
        if allowed:
            return (
                f"Yes, that is fine. The {desk} takes care of it, {reason}.",
                f"Sure, please see the {desk}, {reason}.",
                f"You may. It is handled by the {desk}, {reason}.",
            )
        return (
            f"No, sorry. The {desk} does not accept that, {reason}.",
            f"That is not possible, and the {desk} makes no exceptions, {reason}.",
            f"We cannot do it. Please do not ask the {desk}, {reason}.",
        )

    made = []
    for about in _questions(count, luck):
        desk, allowed, reason = luck.choice(_DESKS), luck.random() < 0.5, luck.choice(_REASONS)

        def wrong(luck: random.Random, desk: str = desk, allowed: bool = allowed, reason: str = reason) -> str:
            if luck.random() < 0.5:
                return luck.choice(wordings(desk, not allowed, reason))
            return luck.choice(wordings(_other(_DESKS, desk)(luck), allowed, reason))

        old = wordings(_other(_DESKS, desk)(luck), not allowed, reason)
        made.append(Item(_question(about, luck), wordings(desk, allowed, reason), old, wrong))
    return made


def letters(count: int, luck: random.Random) -> list[Item]:
    """Long polite answers: many sentences that all letters share, and a decision in the middle."""
    greetings = ("Dear customer,", "Good morning,", "Thank you for writing to us.")
    middles = (
        "we read your message with care and asked the colleagues who know the product best before answering.",
        "we are sorry for the trouble that this caused you, and we looked into the matter at once.",
        "it is good to hear from you again, and we hope that the rest of the order is to your liking.",
    )
    ends = (
        "Should anything else come up, simply reply to this letter and the same person will read it. Kind regards",
        "We wish you a pleasant week and remain at your service for any further question. Yours sincerely",
        "Please keep this letter with your papers in case you need it again. With best wishes",
    )

    def wordings(about: dict[str, str], desk: str, allowed: bool) -> tuple[str, ...]:
        decision = (
            f"Regarding {about['matter']}, we gladly agree. Bring the {about['thing']} to the {desk} whenever it suits "
            "you; no appointment is needed, and there is no charge."
            if allowed
            else f"Regarding {about['matter']}, we have to decline. The {desk} may not take the {about['thing']} back "
            "in this case, and we ask for your understanding."
        )
        return tuple(f"{g} {m} {decision} {e}" for g, m, e in zip(greetings, middles, ends, strict=True))

    made = []
    for about in _questions(count, luck):
        desk, allowed = luck.choice(_DESKS), luck.random() < 0.5

        def wrong(luck: random.Random, about: dict[str, str] = about, desk: str = desk) -> str:
            return luck.choice(wordings(about, _other(_DESKS, desk)(luck), luck.random() < 0.5))

        old = wordings(about, desk, not allowed)
        made.append(Item(_question(about, luck), wordings(about, desk, allowed), old, wrong))
    return made


def documents(count: int, luck: random.Random) -> list[Item]:
    """JSON of an order with one to eight lines, read from a message that holds them, and the desk that it goes to."""

    def written(document: dict[str, object]) -> tuple[str, ...]:
        return json.dumps(document), json.dumps(document, indent=1), json.dumps(dict(sorted(document.items())))

    made = []
    for about in _questions(count, luck):
        lines: list[dict[str, object]] = [
            {"item": luck.choice(_THINGS), "quantity": luck.randrange(1, 5), "price": luck.randrange(500, 9000) / 100}
            for _ in range(luck.randrange(1, 9))
        ]
        document: dict[str, object] = {"number": f"A-{luck.randrange(10**5, 10**6)}", "town": about["town"]}
        document |= {"desk": luck.choice(_DESKS), "lines": lines}
        said = "; ".join(f"{line['quantity']} x {line['item']} at {line['price']}" for line in lines)
        question = f"Order {document['number']} to {about['town']}: {said}. {_question(about, luck)}"

        def wrong(luck: random.Random, document: dict[str, object] = document) -> str:
            changed = {"number": f"A-{luck.randrange(10**5, 10**6)}", "town": luck.choice(_TOWNS)}
            field = luck.choice(list(changed))
            return json.dumps(document | {field: changed[field]})

        old = written(document | {"desk": _other(_DESKS, str(document["desk"]))(luck)})
        made.append(Item(question, written(document), old, wrong))
    return made


TASKS: dict[str, Task] = {
    "labels2": labels(2),
    "labels20": labels(20),
    "labels150": labels(150),
    "labels1000": labels(1_000),
    "facts": facts,
    "prose": prose,
    "letters": letters,
    "json": documents,
}


def free_phrase(luck: random.Random) -> str:
    """Sarcasm that hardly ever comes twice."""
    first = ("oh sure", "of course", "brilliant", "yeah", "marvellous", "wonderful", "right", "amazing", "so", "well")
    second = (
        "my cat knows more about {0} than you", "send {0} to the moon then", "I will frame that next to my {0}",
        "my grandmother would ship a {0} faster", "did you learn that from a {0}", "go and marry a {0}",
        "I asked about life and got a {0}", "you owe me a {0} and an apology", "even a broken {0} is right twice a day",
    )  # fmt: skip
    return f"{luck.choice(first)}, {luck.choice(second).format(luck.choice(_THINGS + _TOWNS + _NOUNS))}"
