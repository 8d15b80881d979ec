"""Vocabulary: which English words carry meaning, which stand for each other, which are opposites, and which deny."""

STOP_WORDS = frozenset(
    """
    a about above after again against ahead all along already also although always am an and another any
    anything are as at
    be because been before being below between both but by can cannot could currently did do does doing done each
    either else even every everything few fewer for from generally get gets getting give given gives go goes going
    got had has have having he her here hers him his how however i if in instead into is it its itself just later
    least let lets like ll long made make makes making many may me might mine more most much must my nobody none
    normally nothing now of off on once one ones only onto or other our ours out over own per please provided
    providing put rather re s said same say says shall she should simply since so some someone something somewhere
    soon still such sure t take taken takes than that the their them then there therefore these they thing this
    those through to today too under until up upon us usually ve very want wants was way we well were what whatever
    when whenever where whether which while who whom whose why will with within without would yes yet you your yours
    """.split()
)
DETERMINERS = frozenset("the a an our your their each every both all another".split())
PRONOUNS = frozenset("it they this that these those he she both".split())
US = frozenset("i we you us me them him her".split())
AUXILIARIES = frozenset(
    """
    is are was were can could will would may might must shall should do does did has have had isn't aren't can't
    """.split()
)
UNIVERSAL = frozenset("both all every each any everywhere anywhere everyone anyone".split())
EXCLUSIVE = frozenset("only solely exclusively".split())

DENIALS = frozenset("not never cannot neither nor none nobody nowhere no without".split())
EXCEPTIONS = frozenset("except unless excepting barring".split())
# What has not been done is a condition: it denies what follows, not what stands before.
NOT_DONE = frozenset("haven't hasn't hadn't didn't wasn't weren't".split())
# Idioms in which "don't" denies nothing.
NOT_DENIED = frozenset("forget hesitate worry".split())
# Words that deny their clause by themselves, and what they deny of it.
DENYING = {
    word: denied
    for denied, words in {
        "allow": "ban banned decline declined disallow disallowed forbid forbidden forbids prohibit prohibited "
        "prohibits refuse refused refuses reject rejected rejects impossible unable",
        "include": "exclude excluded excludes excluding",
        "valid": "invalid void",
        "eligible": "ineligible",
    }.items()
    for word in words.split()
}
COSTS = frozenset("charge charged charges cost costs fee fees extra pay payment surcharge surcharges".split())
FREE = frozenset("gratis complimentary waive waived waives".split())

# Words of business that stand for each other; the first stands for all.
_SYNONYMS = """
cost price fee charge pay payment paid surcharge
refund reimburse reimbursement repay
deliver delivery ship shipping shipment dispatch send sent
parcel package packet
buy purchase bought order
allow permit accept welcome possible permission fine okay ok
require need necessary mandatory compulsory requirement essential
include contain comprise cover part inclusive add
available offer provide
start begin commence began
end finish expire stop
close shut
phone telephone call ring
mail email write
contact reach
change alter amend modify adjust edit
cancel terminate cancellation termination
renew extend prolong renewal extension
repair fix mend
break broken damage faulty defective defect
exchange swap replace replacement
luggage baggage bag suitcase
child children kid
bike bicycle
car vehicle automobile
photo photograph photography picture
film movie
admin administrator
register enrol enroll signup registration
delete remove erase
keep retain kept store
discount reduction reduce rebate
voucher coupon
guarantee warranty
bill invoice
late delay
medicine medication drug
item article product
shop store
document paper paperwork
home house
tablet pill
borrow lend lent loan
reserve reservation
identity identification id
use usage consume consumption
trip journey travel
ticket fare
plan tariff subscription
collect pickup collection
inform notify announce tell told notification
extra additional further
year annual
day daily
choose select pick
maximum limit max
minimum min
weigh weight
young younger
old age
teach teacher instructor
physician doctor dr
receive obtain
person people
help support assistance
immediate instant
quick fast rapid
question query enquiry inquiry
submit hand
job work
money cash
""".strip()
# Pairs of words that stand for one.
PHRASES = {
    ("send", "back"): "return", ("sent", "back"): "return", ("bring", "back"): "return", ("bringing", "back"): "return",
    ("sending", "back"): "return", ("taken", "back"): "return", ("get", "back"): "refund", ("paid", "back"): "refund",
    ("money", "back"): "refund", ("pay", "back"): "refund", ("comes", "with"): "include", ("come", "with"): "include",
    ("pick", "up"): "collect", ("picked", "up"): "collect", ("take", "away"): "collect", ("sign", "up"): "register",
    ("let", "know"): "inform", ("call", "off"): "cancel", ("called", "off"): "cancel", ("calling", "off"): "cancel",
}  # fmt: skip
# Of each line one is said where another is not.
_OPPOSITES = """
online phone mail chat fax
open close
start end
early late
increase decrease
raise lower
minimum maximum
arrive depart
enable disable
domestic international
public private
full empty
hot cold
inside outside
indoor outdoor
buy sell
winter summer
morning evening
require optional
permanent temporary
fixed variable
manual automatic
internal external
paper digital
monthly yearly weekly daily hourly
individual group
""".strip()
_ENDINGS = (
    "ations",
    "ation",
    "ments",
    "ment",
    "ings",
    "ing",
    "ied",
    "ers",
    "ed",
    "er",
    "ly",
    "able",
    "ible",
    "es",
    "s",
)


def stem(word: str) -> str:
    """What a word shares with its other forms: "ship" of "shipped" and "ships", "librar" of "libraries"."""
    word = word.removesuffix("'s").removesuffix("'")
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    # What is left may still end as the form without the ending does: "deliveri" and "delivery", "clos" and "close".
    for vowel in ("e", "y", "i"):
        if word.endswith(vowel) and len(word) - len(vowel) >= 3:
            word = word[: -len(vowel)]
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiou" else word


_CONCEPTS = {stem(word): stem(line.split()[0]) for line in _SYNONYMS.splitlines() for word in line.split()}
# Words whose stem is that of another word: books are not booked.
_BOOKED = {word: stem("reserve") for word in ("booked", "booking", "bookings")}


def concept(word: str) -> str:
    """The stem of a word, or that of the word that stands for it."""
    found = _BOOKED.get(word) or stem(word)
    return _CONCEPTS.get(found, found)


OPPOSITES: dict[str, frozenset[str]] = {}
for _line in _OPPOSITES.splitlines():
    _group = frozenset(map(concept, _line.split()))
    OPPOSITES |= {_word: _group - {_word} for _word in _group}
