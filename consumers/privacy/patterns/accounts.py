"""Card numbers and IBANs, by their form and check digits."""

import re

from retuned.consumers.privacy.patterns import Mark
from retuned.consumers.privacy.patterns.national_ids import luhn

_CARD = re.compile(
    r"(?<![0-9+])(?:(?:[2-6][0-9]|97)[0-9]{2}([ .-])[0-9]{4}\1[0-9]{4}\1[0-9]{1,4}(?:\1[0-9]{3})?"
    r"|3[0-9]{3}([ .-])[0-9]{6}\2[0-9]{4,5}|(?:[2-6][0-9]|97)[0-9]{12,17})(?![0-9])"
)
# Issuers and lengths: Visa, Mastercard, American Express, Diners, JCB, Discover, UnionPay, Maestro, Troy.
_ISSUED = re.compile(
    r"4(?:[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"
    r"|3[47][0-9]{13}|3(?:0[0-5]|[689][0-9])[0-9]{11}|35[0-9]{14}"
    r"|6(?:011|4[4-9][0-9]|5[0-9]{2})[0-9]{12}|62[0-9]{14,17}|9792[0-9]{12}|(?:50|5[6-8]|6[0-9])[0-9]{11,17}"
)
_IBAN_START = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=IBAN))(?:(?P<country>[A-Za-z]{2})|(?P<apart>[A-Z]{2})[ -])[0-9]{2}"
    r"(?=[ -]?[A-Za-z0-9])"
)
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH CR HR LI LV",
        22: "BG BH DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BI BR DJ EG PS QA UA", 30: "JO KW MU", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip

SUSPECT = (r"(?:[A-Za-z]{2}|[A-Z]{2}[ \-])[0-9]{2}(?:[ \-]{0,3}[A-Za-z0-9]){11}",)


def replace_cards(text: str, mark: Mark) -> str:
    """Replaces card numbers of known issuers with a valid check digit by `<CARD>`."""
    parts, position, search = [], 0, 0
    while match := _CARD.search(text, search):
        digits = re.sub(r"[^0-9]", "", match[0])
        if _ISSUED.fullmatch(digits) and luhn(digits):
            parts += [text[position : match.start()], mark("CARD", digits, match[0])]
            position = search = match.end()
        else:  # groups of another number may precede those of a card
            search = match.start() + 4
    return "".join([*parts, text[position:]]) if parts else text


def replace_ibans(text: str, mark: Mark) -> str:
    """Replaces IBANs with the right length and valid check digits by `<IBAN>`."""
    parts, position, search = [], 0, 0
    while start := _IBAN_START.search(text, search):
        found = _iban(text, start.start(), start["country"] or start["apart"])
        search = start.end()
        if found is not None:
            search, iban = found
            parts += [text[position : start.start()], mark("IBAN", iban, text[start.start() : search])]
            position = search
    return "".join([*parts, text[position:]]) if parts else text


def _iban(text: str, start: int, country: str) -> tuple[int, str] | None:
    """Returns the end of an IBAN that starts here, and the IBAN without spaces; None: there is none."""
    length = _IBAN_LENGTHS.get(country.upper())
    if length is None:
        return None
    letters: list[str] = []
    position, gap = start, 0
    while position < len(text) and len(letters) < length:
        character = text[position]
        if character.isascii() and character.isalnum():
            letters.append(character.upper())
            gap = 0
        elif character not in " -" or gap == 3:
            return None
        else:
            gap += 1
        position += 1
    if len(letters) < length or (position < len(text) and text[position].isascii() and text[position].isalnum()):
        return None
    number = "".join(str(int(letter, 36)) for letter in letters[4:] + letters[:4])
    return (position, "".join(letters)) if int(number) % 97 == 1 else None
