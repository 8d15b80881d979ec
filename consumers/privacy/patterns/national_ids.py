"""National identity, tax and insurance numbers, by form and check digits, or by the word before them."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from retuned.consumers.privacy.patterns import FIRST, GAP, Mark

# Without a word before it, a number must have a form or check digits that other numbers rarely have.
_FORM = re.compile(
    r"""(?<![A-Za-z0-9_.\-/+])(?=[A-Za-z]{0,9}[ ]?[0-9])(?:  # most words end here
      (?P<us>(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4})
    | (?P<uk>(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][ ]?[0-9]{2}[ ]?[0-9]{2}[ ]?[0-9]{2}[ ]?[A-D])
    | (?P<uk_driver>[A-Z]{2,5}9{0,3}[0-9][0156][0-9][0-3][0-9]{2}[A-Z9]{2}[0-9][A-Z]{2})
    | (?P<es>(?:[0-9]{8}|[XYZ][0-9]{7})-?[A-HJ-NP-TV-Z])
    | (?P<it>(?i:[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z]))
    | (?P<mx>[A-Z]{4}[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[HMX][A-Z]{5}[0-9A-Z][0-9])
    | (?P<fr>[12][ ]?[0-9]{2}[ ]?[0-9]{2}[ ]?(?:[0-9]{2}|2[AB])[ ]?[0-9]{3}[ ]?[0-9]{3}[ ]?[0-9]{2})
    | (?P<br>[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2})
    | (?P<cn>[1-9][0-9]{5}(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}[0-9Xx])
    | (?P<se>(?:19|20)?[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[-+][0-9]{4})
    | (?P<dk>(?:0[1-9]|[12][0-9]|3[01])(?:0[1-9]|1[0-2])[0-9]{2}-[0-9]{4})
    | (?P<fi>(?:0[1-9]|[12][0-9]|3[01])(?:0[1-9]|1[0-2])[0-9]{2}[-+A-FU-Y][0-9]{3}[0-9A-FHJ-NPR-Y])
    | (?P<be>[0-9]{2}[.][0-9]{2}[.][0-9]{2}-[0-9]{3}[.][0-9]{2})
    | (?P<ch>756[. ]?[0-9]{4}[. ]?[0-9]{4}[. ]?[0-9]{2})
    | (?P<no>(?:0[1-9]|[12][0-9]|3[01])(?:0[1-9]|1[0-2])[0-9]{2}[ ]?[0-9]{5})
    | (?P<cz>[0-9]{2}(?:[05][1-9]|[16][0-2])(?:0[1-9]|[12][0-9]|3[01])/[0-9]{4})
    | (?P<kr>[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])-[1-8][0-9]{6})
    | (?P<de_or_pl>[0-9]{2}[ ]?[0-9]{3}[ ]?[0-9]{3}[ ]?[0-9]{3})
    )(?![A-Za-z0-9_\-])""",
    re.VERBOSE,
)
# Short names are matched in capitals only: "sin" is a Spanish word.
_SHORT = (
    "(?:SSN|SIN|TFN|BSN|NIF|NIE|DNI|CPF|CNP|EGN|PPSN?|AHV|AVS|NINO|NHS|CPR|PESEL|NIR|RRN|CURP|OIB|JMBG|PAN|NRIC|RUT"
    "|CUI[LT])"
)
_WORD = (
    rf"(?:FIRST{_SHORT}(?![A-Za-z0-9])|[\"'._](?i:{_SHORT})(?=[\"'_])"
    r"|FIRST(?i:(?:ssn|bsn|cpf|dni|cpr|pesel|aadhaa?r|hetu|social (?:security|insurance)|my social|national insurance"
    r"|national id(?:entity)?|identity card|id card|passport|passeport|pasaporte|passaporto|reisepass(?:nummer)?"
    r"|personalausweis(?:nummer)?|ausweisnummer|paspoort(?:nummer)?|burgerservicenummer|rijksregisternummer"
    r"|registre national|num[eé]ro de s[eé]cu(?:rit[eé] sociale)?|codice fiscale|steuer-?id(?:entifikationsnummer)?"
    r"|sozialversicherungsnummer|personnummer|f[øo]dselsnummer|driv(?:ing|er'?s?) licen[cs]e|tax file|tax id"
    r"|taxpayer id|contribuinte|kimlik|rodn[eé] [cč][ií]slo|f[üu]hrerschein(?:nummer)?|permis de conduire))"
    r"|身份证号?码?|身[分份][證証]|护照号?码?|आधार|マイナンバー|주민등록번호|บัตรประชาชน|(?i:снилс|паспорт|егн|амка|αμκα|іпн|рнокпп))"
).replace(" ", "[ _.-]?")
# Searched before a number, with a few words and signs in between: "passport number is", "SIN: ", "(NIF)".
_NAMED = re.compile(
    rf"{_WORD.replace('FIRST', FIRST)}(?:{GAP}(?i:number|numbers|card|no|nr|num|nummer|número|numero|numéro|n|of|is|was"
    r"|ist|lautet|es|est|e|é|è|er|file|code|for|the|id)(?![a-z])|{GAP}[^\W\dA-Za-z_\u00c0-\u024f]{1,12}){0,4}"
    r"[^\w\n]{0,4}$"
)
_ID = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:[A-Z]{1,2}[ -]?)?[0-9](?:[ ./\-]?[0-9]){7,14}(?:[ -]?[A-Z]{1,2})?"
    r"|(?=[A-Z]{0,11}[0-9][A-Z0-9]{0,10}[0-9])[A-Z0-9]{7,14})(?![A-Za-z0-9])"
)
_DATE = re.compile(r"[0-9]{4}[./-][0-9]{1,2}[./-][0-9]{1,2}|[0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{2,4}")

SUSPECT = (
    r"[A-Z]{2} ?[0-9]{2} ?[0-9]{2} ?[0-9]{2}|[XYZ][0-9]{7}|(?i:[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z])",
    r"[A-Z]{2}[0-9]{6}|[0-9]{6}[-+A-FU-Y][0-9]{3}",
    # A passport's letters and digits, after such a word.
    re.sub(r"FIRST|\(\?[!=][^)]*\)", "", _WORD) + "[^0-9]*[0-9]",
)


def replace_national_ids(text: str, mark: Mark) -> str:
    """Replaces both kinds by `<NATIONAL_ID>`."""

    def named(match: re.Match[str]) -> str:
        if _DATE.fullmatch(match[0]) or not _NAMED.search(text[max(0, match.start() - 64) : match.start()]):
            return match[0]
        return mark("NATIONAL_ID", _plain(match[0]), match[0])

    def formed(match: re.Match[str]) -> str:
        plain = _plain(match[0])
        check = _CHECKS.get(match.lastgroup or "")
        return match[0] if check is not None and not check(plain) else mark("NATIONAL_ID", plain, match[0])

    return _FORM.sub(formed, _ID.sub(named, text))


def _plain(text: str) -> str:
    return re.sub(r"[ .+/\-]", "", text).upper()


def luhn(digits: str) -> bool:
    """Whether the check digit of a card or another id is valid (ISO/IEC 7812)."""
    doubled = [int(digit) * (1 + position % 2) for position, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def _sum(digits: str, weights: Sequence[int]) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def _spain(text: str) -> bool:
    number = text[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[-1]


_ITALY_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def _italy(text: str) -> bool:
    values = [int(c) if c.isdigit() else ord(c) - ord("A") for c in text[:-1]]
    total = sum(value if position % 2 else _ITALY_ODD[value] for position, value in enumerate(values))
    return total % 26 == ord(text[-1]) - ord("A")


def _france(text: str) -> bool:
    number = text[:-2].replace("2A", "19").replace("2B", "18")
    return number.isdigit() and 97 - int(number) % 97 == int(text[-2:])


def _brazil(text: str) -> bool:
    return all(_sum(text[:n], range(n + 1, 1, -1)) * 10 % 11 % 10 == int(text[n]) for n in (9, 10))


def _china(text: str) -> bool:
    return "10X98765432"[sum(int(digit) * pow(2, 17 - at, 11) for at, digit in enumerate(text[:17])) % 11] == text[17]


def _germany(text: str) -> bool:
    repeats = sorted(Counter(text[:10]).values(), reverse=True)
    if text[0] == "0" or repeats[0] not in (2, 3) or repeats[1] > 1:  # one digit occurs twice or thrice, no other does
        return False
    product = 10
    for digit in text[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(text[10])


def _poland(text: str) -> bool:
    if not 1 <= int(text[2:4]) % 20 <= 12 or not 1 <= int(text[4:6]) <= 31:  # the century is coded in the month
        return False
    return _sum(text, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0


def _belgium(text: str) -> bool:
    if not 1 <= int(text[2:4]) % 20 <= 12 or not 1 <= int(text[4:6]) <= 31:
        return False
    # For people born in 2000 or later, a 2 is prefixed before the division.
    return any(97 - int(century + text[:9]) % 97 == int(text[9:]) for century in ("", "2"))


def _norway(text: str) -> bool:
    first = -_sum(text[:9], (3, 7, 6, 1, 8, 9, 4, 5, 2)) % 11
    return first == int(text[9]) and -_sum(text[:10], (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11 == int(text[10])


def _turkey(text: str) -> bool:
    odd, even = sum(map(int, text[0:9:2])), sum(map(int, text[1:8:2]))
    return text[0] != "0" and (odd * 7 - even) % 10 == int(text[9]) and sum(map(int, text[:10])) % 10 == int(text[10])


def _finland(text: str) -> bool:
    return "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(text[:6] + text[-4:-1]) % 31] == text[-1]


def _eleven_digits(text: str) -> bool:
    return _germany(text) or _poland(text) or _belgium(text) or _turkey(text)


_CHECKS: dict[str, Callable[[str], bool]] = {
    "es": _spain, "it": _italy, "fr": _france, "br": _brazil, "cn": _china, "be": _belgium, "fi": _finland,
    "se": lambda text: luhn(text[-10:]),
    # Since 2007, Danish numbers are issued without a check digit; these are found only by the word before them.
    "dk": lambda text: _sum(text, (4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0,
    "ch": lambda text: _sum(text, (1, 3) * 6 + (1,)) % 10 == 0,
    "cz": lambda text: int(text) % 11 == 0,
    "kr": lambda text: (11 - _sum(text[:12], (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)) % 11) % 10 == int(text[12]),
    # Eleven digits that start like a date may belong to another country.
    "no": lambda text: _norway(text) or _eleven_digits(text),
    "de_or_pl": lambda text: _eleven_digits(text),
}  # fmt: skip
