"""Phone numbers. Cheap patterns find candidates, and `phonenumbers` checks ambiguous ones by numbering plans."""

import re
from collections.abc import Iterable, Sequence

import phonenumbers

from retuned.consumers.errors import ConfigurationError
from retuned.consumers.privacy.patterns import FIRST, GAP, Mark

_SEPARATOR = r"[ ().\-/ー]"
_BEFORE = r"(?<![A-Za-z0-9_.,/+\-])(?<![0-9]:)"
_AFTER = r"(?![0-9]|[.,:][0-9])"
_EXTENSION = r"(?:[ ,;]{0,3}\(?(?:(?:ext|extension|durchwahl|dw|poste|anexo|interno)\b\.?:?|x) ?[0-9]{1,6}\)?)?"

# Unambiguous forms.
_CERTAIN = re.compile(
    # +49 (0)30 123456, 0033 6 12 34 56 78; not +0.824 (98.75% …)
    rf"(?<![A-Za-z0-9_+.,])(?:\+(?!0\.)|00(?=[1-9]))(?:{_SEPARATOR}{{0,3}}[0-9]){{8,15}}(?![0-9%]){_EXTENSION}"
    # 030 1234567, 0151-23456789, 06 12 34 56 78, (020) 7946 0958
    rf"|{_BEFORE}\(?0[1-9](?:{_SEPARATOR}{{0,3}}[0-9]){{7,10}}{_AFTER}{_EXTENSION}"
    # (555) 123-4567, 555-123-4567, 1.555.123.4567, 212 555 0198
    rf"|{_BEFORE}(?:1[ .-])?(?:\([2-9][0-9]{{2}}\)[ .-]?[0-9]{{3}}[ .-][0-9]{{4}}"
    r"|[2-9][0-9]{2}([.-])[0-9]{3}\1[0-9]{4}|[2-9][0-9]{2} [2-9][0-9]{2}[ -][0-9]{4})(?![A-Za-z0-9_-]|[.,:][0-9])"
    rf"{_EXTENSION}",
    re.I,
)
# Ambiguous forms.
_CANDIDATE = re.compile(
    rf"{_BEFORE}\(?[0-9](?:{_SEPARATOR}{{0,3}}[0-9]){{7,12}}(?![A-Za-z0-9_]|[.,:-][0-9]){_EXTENSION}", re.I
)
_AREA = re.compile(r"\([0-9]{2,5}\) ?[0-9]{3,5}[ -]?[0-9]{3,4}")
_SPOKEN_OF = re.compile(
    rf"phone|{FIRST}(?:tel(?:no|nr)?(?![a-z])|cell|call|(?:ring|text|sms|fax|mob)(?![a-z]))"
    r"|mobil|msisdn|whats ?app|viber|telegram|handy"
    r"|ruf(?:nummer|en)|anruf|erreich|m[oó]vil|celular|tel[eé]f|ll[aá]m|ligue|telem[oó]v|portable"
    r"|appel|joindre|num[eé]ro est|cellulare|\bbel\b|bellen|dzwoni|kom[oó]rk|puhelin|ringa?\b"
    r"|contact[ _]?(?:me|us|him|her|no(?![a-z])|num)|reach (?:me|us|him|her|out)"
    r"|(?:my|new|his|her|our) (?:number|no\b|num\b)|number is"
    r"|[тТ]лф|tlf|\bph\b|моб|联系|致电|請打|请打|телефон|номер|звон|携帯|電話|电话|手机|전화|هاتف|جوال|फ़ोन|फोन|मोबाइल",
    re.I,
)
_SOMETHING_ELSE = re.compile(
    rf"{FIRST}(?:order|invoice|ticket|case|customer|client|account|ref(?:erence)?|article|item|tracking|serial|contract|booking"
    r"|policy|model|part|parcel|shipment|bestell\w{0,10}|rechnung\w{0,8}|auftrag\w{0,8}|kunden\w{0,8}|artikel\w{0,8}|commande"
    r"|facture|pedido|factura|ordine|fattura|zam[oó]wieni\w{0,3}|sipari[sş]|заказ\w{0,3}|isbn|ean|upc|gtin|mpn|sku|iban|vat|id|lot|version|build|注文|订单|訂單|주문)"
    rf"(?:{GAP}(?:number|no|nr|num|n°|nummer|numer|número|numéro|numero|番号は?|号码?|번호|id|code|is|was|ist|lautet|es|est|é|è|to)"
    r"(?![a-z])){0,3}"
    r"[^\w\n]{0,4}$",
    re.I,
)
_DATE = re.compile(
    r"\(?(?:[0-3]?[0-9]([./-])[0-3]?[0-9]\1(?:[0-9]{4}|[0-9]{2})|(?:19|20)[0-9]{2}([./-])[01]?[0-9]\2[0-3]?[0-9])(?![0-9.])"
)

MOST_LOOKUPS = 200
"""An event with more candidates is a list of numbers, or hostile: all further candidates are replaced."""


def check_regions(regions: Iterable[str]) -> None:
    """Checks that the regions have numbering plans.

    Raises:
        ConfigurationError: a region has none.
    """
    if unknown := sorted(set(regions) - phonenumbers.SUPPORTED_REGIONS):
        raise ConfigurationError(
            f"privacy.phone_regions: {', '.join(unknown)} is not a country with known phone numbers; expected ISO 3166 "
            "codes such as DE, GB, US"
        )


class Plans:
    """The numbering plans of countries. A look-up in all of them takes 0.2 ms, so look-ups are limited per event.

    Args:
        regions: ISO 3166, two letters.
    """

    def __init__(self, regions: Sequence[str]) -> None:
        self._regions = regions
        self._invalid = set[str]()  # of this event: a text is searched more than once
        self._lookups = 0

    def begin(self) -> None:
        """Starts another event."""
        self._lookups = 0
        self._invalid.clear()

    def may_have(self, number: str) -> bool:
        """Whether a number is valid in one of the regions, or the limit of look-ups is reached."""
        if number in self._invalid:
            return False
        self._lookups += 1
        if self._lookups > MOST_LOOKUPS or any(_is_valid(number, region) for region in self._regions):
            return True
        self._invalid.add(number)
        return False


def replace_phones(text: str, mark: Mark, plans: Plans) -> str:
    """Replaces phone numbers by `<PHONE>`.

    A number in an ambiguous form has to be valid in one of the regions, and to have a word for phones nearby or an area
    code in brackets.
    """

    def certain(match: re.Match[str]) -> str:
        if not match[0].startswith("+"):
            before = text[max(0, match.start() - 40) : match.start()]
            if _DATE.match(match[0]) or _SOMETHING_ELSE.search(before):
                return match[0]
        return mark("PHONE", _identity(match[0]), match[0])

    def uncertain(match: re.Match[str]) -> str:
        if _DATE.match(match[0]):
            return match[0]
        before = text[max(0, match.start() - 40) : match.start()]
        spoken_of = _SPOKEN_OF.search(before) or _SPOKEN_OF.search(text[match.end() : match.end() + 24])
        if not (spoken_of or _AREA.fullmatch(match[0])) or _SOMETHING_ELSE.search(before):
            return match[0]
        if not plans.may_have(match[0]):
            return match[0]
        return mark("PHONE", _identity(match[0]), match[0])

    text = _CERTAIN.sub(certain, text)
    return _CANDIDATE.sub(uncertain, text)


def _is_valid(number: str, region: str) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False


def _identity(number: str) -> str:
    """Returns the last eight digits, which are the same with and without a country code."""
    return re.sub(r"[^0-9]", "", re.split("[a-z]", number, maxsplit=1, flags=re.I)[0])[-8:]
