"""Words for units, months, weekdays and numbers in four languages, from CLDR (babel), num2words and `words.yaml`."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

LANGUAGES = ("en", "de", "fr", "es")

_QUANTITIES = frozenset(
    {"area", "digital", "duration", "electric", "energy", "frequency", "length", "mass", "power", "pressure", "speed"}
    | {"temperature", "volume"}
)
LONE_LETTERS = frozenset("hgmlLsWVA")
"""One-letter symbols that are read as units; CLDR has more, such as "a" for years."""
_WORDS = frozenset({"in"})
"""Symbols of CLDR that are usually words: "at six in the evening"."""
_SYMBOLS = {
    "oz": "mass-ounce", "mcg": "mass-microgram", "µg": "mass-microgram", "ml": "volume-milliliter",
    "cl": "volume-centiliter", "mb": "digital-megabyte", "MW": "power-megawatt",
    "h": "duration-hour", "min": "duration-minute", "s": "duration-second",
}  # fmt: skip
"""Symbols that CLDR writes differently, or that differ from others in case alone (ML, Mb, mW)."""
_TURKISH = str.maketrans("İı", "ii")
_CURRENCIES = {
    "EUR": ("€", "euro", "euros"), "USD": ("$", "us$"), "GBP": ("£",), "JPY": ("¥", "yen"), "INR": ("₹", "rupees"),
    "CHF": ("chf", "sfr", "franken"), "PLN": ("zł", "zloty"), "TRY": ("₺",), "BRL": ("r$",), "KRW": ("₩",),
    "SEK": (), "NOK": (), "DKK": (), "CZK": (), "CAD": (), "AUD": (), "NZD": (), "MXN": (), "CNY": (), "HUF": (),
}  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """A unit with its quantity and its conversion to the base unit (amount × factor + offset)."""

    kind: str
    factor: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Tables:
    """The words of one language. Keys are as `plain` returns them; `units` has case-sensitive symbols, too.

    Attributes:
        words: the language's section of `words.yaml`.
        numbers: number words up to 999; scales may follow them.
        vague: words that state a quantity without a number.
        bounds, behind: the bounds by the words before and after a value.
    """

    language: str
    words: Mapping[str, Any]
    units: Mapping[str, Unit]
    months: Mapping[str, int]
    weekdays: Mapping[str, int]
    short_weekdays: Mapping[str, int]
    numbers: Mapping[str, int]
    scales: Mapping[str, float]
    currencies: Mapping[str, str]
    bounds: Mapping[str, str]
    behind: Mapping[str, str]
    denials: frozenset[str]
    vague: frozenset[str]
    fillers: frozenset[str]

    def list_of(self, name: str) -> list[str]:
        """Returns the phrases under a name in `words.yaml`."""
        return phrases(self.words[name])


@cache
def tables(language: str) -> Tables:
    """Returns the tables of one of LANGUAGES; the first call takes 0.1 s."""
    import yaml
    from babel import Locale

    text = (files("retuned.consumers.common.values") / "words.yaml").read_text(encoding="utf-8")
    words = yaml.safe_load(text)[language]
    words |= {name: _plain_keys(words[name]) for name in ("scales", "halves", "periods", "times")}
    locale = Locale(language)
    days = locale.days["format"]
    symbols = {"≥": ">=", ">=": ">=", "≤": "<=", "<=": "<=", ">": ">", "<": "<"}
    return Tables(
        language,
        words,
        _units(locale._data["unit_patterns"], words["units"]),
        {
            plain(name): number
            for width in ("wide", "abbreviated")
            for number, name in locale.months["format"][width].items()
        },
        {plain(name): number for number, name in days["wide"].items()},
        {name.rstrip("."): number for number, name in days["abbreviated"].items()},
        _numbers(language),
        {word: float(value) for word, value in words["scales"].items()},
        _plain_keys(
            {code: code for code in _CURRENCIES}
            | {word: code for code, known in _CURRENCIES.items() for word in known}
            | {word: code for code, known in words["currencies"].items() for word in phrases(known)}
        ),
        _plain_keys({phrase: bound for bound, listed in words["before"].items() for phrase in phrases(listed)})
        | symbols,
        _plain_keys({phrase: bound for bound, listed in words["behind"].items() for phrase in phrases(listed)}),
        frozenset(phrases(words["denials"])),
        frozenset(phrases(words["vague"])) | words["periods"].keys(),
        frozenset(phrases(words["fillers"])),
    )


def phrases(text: str) -> list[str]:
    """Splits a comma-separated list of phrases."""
    return [phrase.strip() for phrase in text.split(",")]


def one_of(alternatives: Iterable[str]) -> str:
    """Returns a regular expression for any of some phrases, the longest first, with any white space or hyphens."""
    longest_first = sorted(set(alternatives), key=lambda phrase: (-len(phrase), phrase))
    return "|".join(re.escape(phrase).replace(r"\ ", r"[\s\u00a0-]+") for phrase in longest_first)


def _plain_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    return {plain(phrase): value for phrase, value in given.items()}


def _units(patterns: Mapping[str, Any], more: Mapping[str, str]) -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    for name, widths in patterns.items():
        kind, _, unit = name.partition("-")
        if kind not in _QUANTITIES or (converted := _converted(kind, unit)) is None:
            continue
        for width in ("long", "short"):
            for pattern in widths.get(width, {}).values():
                if not isinstance(pattern, str) or "{0}" not in pattern:
                    continue
                word = pattern.replace("{0}", "").strip("\u00a0\u202f .")
                if (len(word) > 1 or word in LONE_LETTERS) and word not in _WORDS:
                    units.setdefault(word, converted)
    for name, known in [*((unit, word) for word, unit in _SYMBOLS.items()), *more.items()]:
        kind, _, unit = name.partition("-")
        if (added := _converted(kind, unit) if unit else Unit(kind)) is not None:
            units |= dict.fromkeys(phrases(known), added)
    # Symbols such as Mb and MB differ in case; words do not.
    return _plain_keys(dict(reversed(units.items()))) | units


def _converted(kind: str, unit: str) -> Unit | None:
    """Converts a unit of CLDR (kilometer-per-hour, square-meter) by pint; None: pint does not know it."""
    over = unit.split("-per-")
    named = "/".join(
        re.sub(r"^(square|cubic)-(.*)", lambda match: f"{match[2]}**{2 if match[1] == 'square' else 3}", part)
        for part in over
    ).replace("-", "_")
    named = {"celsius": "degC", "fahrenheit": "degF"}.get(named, named)
    registry = _registry()
    try:
        amounts = [registry.Quantity(float(amount), named) for amount in (0, 1)]
        if kind == "duration" and not amounts[0].check("[time]"):
            return None  # for pint, a decade is a ratio and a quarter a mass
        at_zero, at_one = (amount.to_base_units().magnitude for amount in amounts)
    except Exception:  # noqa: BLE001  pint raises various errors for unknown names
        return None
    return Unit(kind, float(at_one - at_zero), float(at_zero))


@cache
def _registry() -> Any:
    from pint import UnitRegistry

    return UnitRegistry(cache_folder=None)


def _numbers(language: str) -> dict[str, int]:
    """Returns number words up to 999, with forms that num2words lacks: without "and", and of both genders."""
    from num2words import num2words

    found: dict[str, int] = {}
    for number in range(1000):
        word = str(num2words(number, lang=language)).replace("-", " ").replace(",", "")
        forms = {word, word.replace(" and ", " ")}
        if language == "de":
            forms |= {word.removeprefix("ein") if number // 100 == 1 else word, word.replace("ß", "ss")}
        if language == "es":
            forms |= {word.removesuffix("o") if word.endswith("uno") else word, word.replace("cientos", "cientas")}
            forms |= {word.replace("veintiuno", "veintiún"), re.sub("uno$", "una", word)}
        for form in forms:
            found.setdefault(form, number)
    if language == "fr":
        found |= {"une": 1}
    if language == "de":
        found |= {"zwo": 2}
    return found


def plain(text: str) -> str:
    """Normalizes a phrase to the form of the tables' keys: all that a pattern of `one_of` matches has one form. Without
    regard to case, an i also matches the Turkish letters with and without a dot."""
    text = text.translate(_TURKISH).casefold()
    return re.sub(r"[\s\u00a0\u202f-]+", " ", text).strip(" .'’")
