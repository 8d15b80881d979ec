"""Made-up customers of a shop and what they ask: topics, phrases, a long tail of names, other languages.

Two customers seldom write the same words: a question is an opening, a request of its topic, what it is about, a remark
and an end, each drawn anew, with things, towns and numbers from lists in which few are frequent and most are rare.
"""

import random
from collections.abc import Sequence

TOPICS: dict[str, tuple[str, ...]] = {
    "refund": (
        "I returned the {thing} on {day} and still have no refund",
        "how long does it take until I get my money back for the {thing}",
        "I want to send back the {thing} I ordered in {month}",
        "please refund order {number}, the {thing} does not fit",
        "can I return a {thing} without the original box",
        "the return label for my {thing} cannot be printed",
    ),
    "delivery": (
        "where is my parcel {number}",
        "the courier left the {thing} with a neighbour in {town} whom I do not know",
        "can you deliver the {thing} to {town} before {day}",
        "tracking has shown the same place near {town} since {day}",
        "my {thing} should have arrived on {day}",
        "is express shipping to {town} possible for a {thing}",
    ),
    "account": (
        "I cannot sign in since {day}, it says the password is wrong",
        "how do I change the e-mail address of my account",
        "please delete my account and all data that you hold",
        "the code for logging in never reaches my phone",
        "my account was locked after three attempts",
        "can my partner use the same login in {town}",
    ),
    "billing": (
        "why was I charged {amount} euros twice in {month}",
        "I need an invoice with our VAT number for order {number}",
        "can I pay for the {thing} in instalments",
        "my card was declined although there is enough money on it",
        "the invoice of {month} shows {amount} euros too much",
        "do you take bank transfers for a {thing}",
    ),
    "warranty": (
        "the {thing} stopped working after {amount} days, is that covered",
        "who repairs a broken {thing} near {town}",
        "the screen of the {thing} flickers and the warranty ends in {month}",
        "does the guarantee cover a {thing} that got wet",
        "I need a spare part for a {thing} bought in {month}",
        "the {thing} makes a loud noise and smells burnt",
    ),
    "sizes": (
        "which size of the {thing} fits somebody of {amount} centimetres",
        "is the {thing} wide enough for a small kitchen",
        "what are the exact measures and the weight of the {thing}",
        "does the {thing} come in green as well",
        "will the {thing} go through a door of {amount} centimetres",
        "is the fabric of the {thing} soft or rather stiff",
    ),
    "stock": (
        "when will the {thing} be available again",
        "do you have the {thing} in your shop in {town}",
        "can you reserve a {thing} for me until {day}",
        "the {thing} has been sold out since {month}",
        "is there something similar to the {thing} in store",
        "tell me as soon as a {thing} is back on the shelf",
    ),
    "vouchers": (
        "my voucher of {amount} euros is not accepted at checkout",
        "does the spring sale also apply to the {thing}",
        "how many points do I get for the {thing}",
        "the discount code from the newsletter has expired",
        "can two coupons be combined when I buy a {thing}",
        "is there a student discount in {town}",
    ),
    "assembly": (
        "the manual of the {thing} does not say where the long screws go",
        "how do I mount the {thing} on a concrete wall",
        "one bag of bolts for the {thing} is missing",
        "do you offer assembly of a {thing} at home in {town}",
        "which drill do I need to put together the {thing}",
        "step {amount} of the instructions for the {thing} shows a part I do not have",
    ),
    "complaints": (
        "nobody has answered my message of {day}",
        "your colleague in {town} was very rude on the phone",
        "I have been waiting in the hotline for {amount} minutes",
        "this is the third time that I write about order {number}",
        "I would like to speak to a manager about the {thing}",
        "the service has become terrible since {month}",
    ),
}
WEIGHTS = (16, 16, 10, 10, 10, 9, 9, 8, 6, 6)
FOREIGN: dict[str, tuple[str, ...]] = {
    "german": (
        "wo bleibt mein Paket {number}, es sollte am {day} kommen",
        "ich möchte den Artikel aus {town} zurückgeben und mein Geld zurück",
        "warum wurden mir {amount} Euro zweimal abgebucht",
        "das Gerät ist nach {amount} Tagen kaputt, gilt die Garantie noch",
        "wie kann ich mein Passwort ändern",
        "wann ist die Lampe wieder auf Lager",
    ),
    "spanish": (
        "dónde está mi paquete {number}, tenía que llegar a {town}",
        "quiero devolver el producto y recuperar mi dinero",
        "por qué me han cobrado {amount} euros dos veces",
        "la lámpara no funciona después de {amount} días, cubre la garantía",
        "cómo puedo cambiar mi contraseña",
        "cuándo vuelve a estar disponible la silla",
    ),
    "french": (
        "où est mon colis {number}, il devait arriver à {town}",
        "je voudrais renvoyer la chaise et être remboursé",
        "pourquoi est-ce que vous avez débité {amount} euros deux fois",
        "la lampe ne marche plus après {amount} jours, est-elle sous garantie",
        "comment changer mon mot de passe",
        "quand est-ce que le bureau sera de nouveau en stock",
    ),
}
OPENINGS = (
    "",
    "",
    "",
    "Hello, ",
    "Hi, ",
    "Good morning, ",
    "Dear team, ",
    "Hey there, ",
    "Quick question: ",
    "Sorry to bother you, ",
)
ENDINGS = ("", "", "", "", " Thanks!", " Thank you.", " Please help.", " Regards, {name}", " Best wishes, {name}")
REMARKS = (
    "I am moving to {town} next week.",
    "It was meant as a present for {name}.",
    "My neighbour {name} had the same trouble.",
    "I am a customer since {month}.",
    "We are leaving on {day}, so it is urgent.",
    "I already tried it with another browser.",
    "The app shows nothing but a white page.",
    "I could not find this on your website.",
    "Your chat told me to write here.",
    "My wife thinks we should wait a little longer.",
    "{name} from your hotline promised to call back.",
    "I only need it for the summer house near {town}.",
)
# fmt: off
KINDS = (
    "lamp", "chair", "kettle", "desk", "tent", "bicycle", "coat", "sofa", "toaster", "shelf", "mattress", "blender",
    "rug", "jacket", "mirror", "grill", "stool", "wardrobe", "fan", "heater", "backpack", "drill", "printer", "cot",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November")
SYLLABLES = (
    "ba", "den", "ford", "gar", "hol", "in", "kel", "lo", "mar", "nor", "os", "pren", "ri", "sten", "tor", "ul",
    "ver", "wick", "ya", "zel",
)
# fmt: on
NOVELTIES = ("Aeropay", "Glimmercart", "Zephyrline", "Nimbusdesk", "Quillbox", "Voltasphere", "Marlowette", "Brixton-X")


def _names(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return list(
        dict.fromkeys("".join(rng.choices(SYLLABLES, k=rng.choice((2, 2, 3)))).capitalize() for _ in range(count))
    )


TOWNS, PEOPLE, MODELS = _names(400, 1), _names(900, 2), _names(500, 3)


def _rare(names: Sequence[str], rng: random.Random) -> str:
    """A few names are frequent, most are rare."""
    return names[min(int(rng.paretovariate(0.7)) - 1, 10**9) % len(names)]


def _fill(text: str, rng: random.Random) -> str:
    thing = rng.choice(KINDS)
    return text.format(
        thing=f"{thing} {_rare(MODELS, rng)}" if rng.random() < 0.4 else thing,
        town=_rare(TOWNS, rng),
        name=_rare(PEOPLE, rng),
        day=rng.choice(DAYS),
        month=rng.choice(MONTHS),
        number=rng.randint(100_000, 999_999),
        amount=rng.randint(3, 240),
    )


def question(topic: str, rng: random.Random) -> str:
    """What one customer asks of a topic."""
    remarks = [rng.choice(REMARKS) for _ in range(rng.choice((0, 0, 1, 1, 2)))]
    asked = rng.choice(OPENINGS) + rng.choice(TOPICS[topic]) + rng.choice(("", ".", "?", "?"))
    return _fill(" ".join([asked, *remarks]) + rng.choice(ENDINGS), rng)


def foreign_question(language: str, rng: random.Random) -> str:
    """A customer's question in german, spanish or french."""
    return _fill(rng.choice(FOREIGN[language]) + rng.choice(("", "?", ".", "?")), rng)


def topics(count: int, rng: random.Random, weights: Sequence[float] = WEIGHTS) -> list[str]:
    """What so many customers ask about."""
    return rng.choices(list(TOPICS), weights, k=count)
