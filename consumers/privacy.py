"""What is taken out of an event before it is stored: personal data, keys and tokens; and the pseudonyms of users.

Every pattern runs in time linear in the text: quantifiers are bounded or possessive, and what a pattern cannot tell
(a checksum, a date) is settled in Python on one short match. Cheap looks at the whole text come first, because most
texts hold nothing to find.
"""

import hmac
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from retuned.consumers.errors import ConfigurationError
from retuned.consumers.settings import PrivacySettings

Check = Callable[[str], bool]

_NOT_DIGITS = bytes(set(range(256)) - set(b"0123456789"))
_SEPARATOR = r"[ \u00a0\u202f().\-/]"

# --- keys and tokens -------------------------------------------------------------------------------------------------

_KEY_HINTS = (
    "sk-", "akia", "asia", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "xox", "eyj",
    "aiza", "hf_", "glpat-", "_live_", "_test_", "bearer", "basic", "private key", "passw", "pwd", "secret", "token",
    "api", "://",
)  # fmt: skip
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----")
_PRIVATE_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----")
_URL_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#@:\"'<>]{0,256}:[^\s/?#@\"'<>]{1,256}@")
_KEY = re.compile(
    r"""(?<![A-Za-z0-9])(?:
      sk-[A-Za-z0-9_\-]{16,}+                                      # OpenAI and those who took over its form
    | (?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])                     # AWS
    | gh[pousr]_[A-Za-z0-9]{20,}+ | github_pat_[A-Za-z0-9_]{20,}+  # GitHub
    | xox[abeoprs]-[A-Za-z0-9\-]{10,}+                             # Slack
    | AIza[0-9A-Za-z_\-]{30,}+                                     # Google
    | hf_[A-Za-z0-9]{20,}+ | glpat-[A-Za-z0-9_\-]{16,}+            # Hugging Face, GitLab
    | [srp]k_(?:live|test)_[A-Za-z0-9]{10,}+                       # Stripe
    | (?<![_\-])eyJ[A-Za-z0-9_\-]{8,}+\.[A-Za-z0-9_\-]{8,}+(?:\.[A-Za-z0-9_\-]*+)?  # JSON web tokens
    )""",
    re.VERBOSE,
)
_AUTHORIZATION = re.compile(
    r"\b(?P<kept>(?:bearer|basic)[ \t]{1,4})(?=[^\s\"']{0,64}[0-9=])[A-Za-z0-9._~+/=\-]{12,}+", re.I
)
# What follows "password:" is only taken for one when it holds a digit: "password: please reset it" is no secret.
_NAMED_SECRET = re.compile(
    r"(?P<kept>(?<![A-Za-z])(?:[a-z]{1,12}[_-]){0,3}"
    r"(?:password|passwd|passwort|pwd|secret|token|(?:api|access|secret)[_\- ]?key)"
    r"[\"']?[ \t]{0,3}(?:[:=]|\bis\b)[ \t]{0,3}[\"']?)(?=[^\s\"',;]{0,64}[0-9])[^\s\"',;]{6,}+",
    re.I,
)

# --- addresses -------------------------------------------------------------------------------------------------------

_EMAIL = re.compile(r"(?<![\w.+%'-])[\w.+%'-]++@([\w-]++(?:\.[\w-]++)++)")
_IPV4 = re.compile(
    r"(?<![\w.])(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?!\.?[\w])"
)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?:(?:\.[0-9]{1,3}){3})?(?![\w:])")

# --- numbers ---------------------------------------------------------------------------------------------------------

# Eight digits that stand close together: without them there is no phone, card, account or id in a text.
_LONG_NUMBER = re.compile(rf"[0-9](?:{_SEPARATOR}{{0,3}}[0-9]){{7}}")
_CARD = re.compile(
    r"(?<![0-9])(?:[2-6][0-9]{3}([ \u00a0-])[0-9]{4}\1[0-9]{4}\1[0-9]{1,7}|3[47][0-9]{2}([ \u00a0-])[0-9]{6}\2[0-9]{5}"
    r"|[2-6][0-9]{13,18})(?![0-9])"
)
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?=[ \u00a0]?[A-Za-z0-9])")
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
_PHONE = re.compile(
    # +49 (0)30 123456, 0033 6 12 34 56 78
    rf"(?<![\w+.,])(?:\+|00(?=[1-9]))(?:{_SEPARATOR}{{0,3}}[0-9]){{8,15}}(?![0-9])"
    # 030 1234567, 0151-23456789, 06 12 34 56 78, (020) 7946 0958
    rf"|(?<![\w.,:/+\-])\(?0[1-9](?:{_SEPARATOR}{{0,3}}[0-9]){{7,10}}(?![0-9]|[.,:][0-9])"
    # (555) 123-4567, 555-123-4567, 1.555.123.4567, 212 555 0198
    r"|(?<![\w.,:/+\-])(?:1[ .-])?(?:\([2-9][0-9]{2}\)[ .-]?[0-9]{3}[ .-][0-9]{4}|[2-9][0-9]{2}([.-])[0-9]{3}\1[0-9]{4}"
    r"|[2-9][0-9]{2} [2-9][0-9]{2}[ -][0-9]{4})(?![\w-]|[.,:][0-9])"
)
_DATE = re.compile(r"\(?[0-9]{1,2}([./-])[0-9]{1,2}\1(?:[0-9]{4}|[0-9]{2})(?![0-9.])")
_NATIONAL_ID = re.compile(
    r"""(?<![\w.-])(?:
      (?P<us>(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4})
    | (?P<uk>(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][ ]?[0-9]{2}[ ]?[0-9]{2}[ ]?[0-9]{2}[ ]?[A-D])
    | (?P<es>(?:[0-9]{8}|[XYZ][0-9]{7})-?[A-HJ-NP-TV-Z])
    | (?P<it>[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z])
    | (?P<fr>[12][ ]?[0-9]{2}[ ]?[0-9]{2}[ ]?(?:[0-9]{2}|2[AB])[ ]?[0-9]{3}[ ]?[0-9]{3}[ ]?[0-9]{2})
    | (?P<br>[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2})
    | (?P<cn>[1-9][0-9]{5}(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}[0-9X])
    | (?P<se>[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[-+][0-9]{4})
    | (?P<de_or_pl>[0-9]{2}[ ]?[0-9]{3}[ ]?[0-9]{3}[ ]?[0-9]{3})
    )(?![\w-])""",
    re.VERBOSE,
)


# What a text holds whenever a pattern above matches in it, and seldom else, also where JSON has escaped the text.
# In the dialect of RE2, which Arrow runs over a whole column.
_SUSPECT = "|".join(
    (
        "@",
        r"[0-9](?:[ \x{a0}\x{202f}().\-/]{0,3}[0-9]){7}",
        r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|::|[0-9A-Fa-f]:[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]",
        r"[A-Za-z]{2}[0-9]{2}(?:[ \x{a0}\-]{0,3}[A-Za-z0-9]){11}",
        r"[A-Z]{2} ?[0-9]{2} ?[0-9]{2} ?[0-9]{2}|[XYZ][0-9]{7}|[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z]",
        r"sk-[A-Za-z0-9_\-]{16}|A[KS]IA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20}|github_pat_|xox[abeoprs]-|AIza|glpat-",
        r"hf_[A-Za-z0-9]{20}|k_(?:live|test)_|eyJ[A-Za-z0-9_\-]{8}|PRIVATE KEY",
        r"(?i:bearer|basic)(?:\\t|[ \t])",
        r"(?i:password|passwd|passwort|pwd|secret|token|(?:api|access|secret)[_\- ]?key)"
        r"(?:\\.|[^A-Za-z0-9]){0,8}(?:[:=]|(?i:is))",
    )
)


class Redactor:
    """Replaces what must not be stored by its kind in angle brackets. `counts` says how often, until cleared."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.counts: Counter[str] = Counter()

    def column(self, texts: Any, *, of_json: bool = False) -> Any:
        """An Arrow array of strings, redacted. With `of_json` each is JSON, and the texts inside are redacted.

        One look at the whole column, without Python in between, finds the few texts that need a closer one.
        """
        array = texts if isinstance(texts, pa.Array) else pa.array(texts, type=pa.string())
        if not self.enabled:
            return array
        suspects = pc.indices_nonzero(pc.fill_null(pc.match_substring_regex(array, _SUSPECT), False)).to_pylist()
        if not suspects:
            return array
        cleaned = array.to_pylist()
        for index in suspects:
            text = cleaned[index]
            cleaned[index] = self.json(text) if of_json else self.text(text)
        return pa.array(cleaned, type=pa.string())

    def json(self, text: str) -> str:
        """JSON text with the texts inside redacted."""
        return msgspec.json.encode(self.value(msgspec.json.decode(text))).decode()

    def take_counts(self) -> Counter[str]:
        """How often something was replaced, by kind, since the last call."""
        counts, self.counts = self.counts, Counter()
        return counts

    def value(self, value: Any) -> Any:
        """A JSON value with every text in it redacted, names of fields too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, int) and abs(value) >= 10**13 and self.enabled:
            text = self.text(str(value))
            return value if text == str(value) else text
        return value

    def text(self, text: str) -> str:
        """A text with placeholders: <EMAIL> <PHONE> <CARD> <IBAN> <NATIONAL_ID> <IP> <KEY>."""
        if not self.enabled:
            return text
        lowered = text.lower()
        if any(hint in lowered for hint in _KEY_HINTS):
            text = self._keys(text)
        if "@" in text:
            text = _EMAIL.sub(self._if(_is_domain, "EMAIL", 1), text)
        digits = len(text.encode("utf-8", "replace").translate(None, _NOT_DIGITS))
        if digits >= 8 and _LONG_NUMBER.search(text):
            text = self._ibans(text)
            text = _CARD.sub(self._if(_is_card, "CARD"), text)
            text = _NATIONAL_ID.sub(self._national_id, text)
            text = _PHONE.sub(self._if(_is_phone, "PHONE"), text)
        elif digits >= 6:  # an account number may hold letters between its digits
            text = self._ibans(text)
            text = _NATIONAL_ID.sub(self._national_id, text)
        if "::" in text or (digits >= 4 and ":" in text):
            text = _IPV6.sub(self._if(_is_ipv6, "IP"), text)
        if digits >= 4 and "." in text:
            text = _IPV4.sub(self._if(None, "IP"), text)
        return text

    def _if(self, check: Check | None, kind: str, group: int = 0) -> Callable[[re.Match[str]], str]:
        def replace(match: re.Match[str]) -> str:
            if check is not None and not check(match[group]):
                return match[0]
            self.counts[kind] += 1
            return f"<{kind}>"

        return replace

    def _keys(self, text: str) -> str:
        text = self._private_keys(text)
        text = _URL_CREDENTIALS.sub(self._kept("KEY", after="@"), text)
        text = _KEY.sub(self._kept("KEY"), text)
        text = _AUTHORIZATION.sub(self._kept("KEY"), text)
        return _NAMED_SECRET.sub(self._kept("KEY"), text)

    def _kept(self, kind: str, after: str = "") -> Callable[[re.Match[str]], str]:
        def replace(match: re.Match[str]) -> str:
            self.counts[kind] += 1
            return f"{match.groupdict().get('kept') or ''}<{kind}>{after}"

        return replace

    def _private_keys(self, text: str) -> str:
        parts, position = [], 0
        while begin := _PRIVATE_KEY.search(text, position):
            end = _PRIVATE_KEY_END.search(text, begin.end())
            parts += [text[position : begin.start()], "<KEY>"]
            self.counts["KEY"] += 1
            position = end.end() if end else len(text)  # a key that was cut off reaches to the end
        return "".join([*parts, text[position:]]) if parts else text

    def _ibans(self, text: str) -> str:
        parts, position, search = [], 0, 0
        while start := _IBAN_START.search(text, search):
            end = _iban_end(text, start.start())
            search = start.end() if end is None else end
            if end is not None:
                parts += [text[position : start.start()], "<IBAN>"]
                self.counts["IBAN"] += 1
                position = end
        return "".join([*parts, text[position:]]) if parts else text

    def _national_id(self, match: re.Match[str]) -> str:
        country = match.lastgroup or ""
        plain = re.sub(r"[ .+-]", "", match[0])
        if not _ID_CHECKS.get(country, _always)(plain):
            return match[0]
        self.counts["NATIONAL_ID"] += 1
        return "<NATIONAL_ID>"


def _always(_: str) -> bool:
    return True


def _is_domain(domain: str) -> bool:
    return domain.rsplit(".", 1)[1][:1].isalpha()  # react@18.2.0 is a version


def _is_ipv6(text: str) -> bool:
    if not any(c.isdigit() for c in text):
        return False
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _luhn(digits: str) -> bool:
    doubled = [int(digit) * (1 + position % 2) for position, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def _is_card(text: str) -> bool:
    digits = re.sub(r"[^0-9]", "", text)
    return 14 <= len(digits) <= 19 and _luhn(digits) and len(set(digits)) > 1


def _is_phone(text: str) -> bool:
    return not (text.lstrip("(").startswith("0") and _DATE.match(text))


def _iban_end(text: str, start: int) -> int | None:
    """Where an IBAN that starts here ends, or None when there is none."""
    length = _IBAN_LENGTHS.get(text[start : start + 2].upper())
    if length is None:
        return None
    letters: list[str] = []
    position = start
    while position < len(text) and len(letters) < length:
        character = text[position]
        if character.isascii() and character.isalnum():
            letters.append(character.upper())
        elif character not in " \u00a0-":
            return None
        position += 1
    if len(letters) < length or (position < len(text) and text[position].isalnum()):
        return None
    number = "".join(str(int(letter, 36)) for letter in letters[4:] + letters[:4])
    return position if int(number) % 97 == 1 else None


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
    for length in (9, 10):
        total = sum(int(digit) * (length + 1 - position) for position, digit in enumerate(text[:length]))
        if total * 10 % 11 % 10 != int(text[length]):
            return False
    return True


def _china(text: str) -> bool:
    total = sum(int(digit) * pow(2, 17 - position, 11) for position, digit in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17]


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
    return (
        sum(int(digit) * weight for digit, weight in zip(text, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), strict=True)) % 10
        == 0
    )


_ID_CHECKS: dict[str, Check] = {
    "es": _spain, "it": _italy, "fr": _france, "br": _brazil, "cn": _china, "se": _luhn,
    "de_or_pl": lambda text: _germany(text) or _poland(text),
}  # fmt: skip


def user_hash(key: bytes, user_id: str) -> str:
    """The pseudonym of a user: HMAC-SHA256 under a key, 32 hexadecimal characters."""
    return hmac.digest(key, user_id.encode(), "sha256").hex()[:32]


def load_user_key(settings: PrivacySettings, warehouse: Path) -> bytes:
    """The key of `user_hash`: from the settings, else from `<warehouse>.key`, which is made when it is not there.

    Raises:
        ConfigurationError: the file cannot be read or made, or the key is empty.
    """
    if settings.user_key is not None:
        return _not_empty(settings.user_key.get_secret_value().encode(), "privacy.user_key")
    path = settings.user_key_file or warehouse.with_name(warehouse.name + ".key")
    try:
        if settings.user_key_file is None and not path.exists():
            _make_key(path)
        return _not_empty(path.read_bytes().strip(), f"privacy.user_key_file {path}")
    except OSError as error:
        raise ConfigurationError(
            f"privacy.user_key_file {path}: {error.strerror}; check the path and its permissions"
        ) from error


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)  # never half a key: every pseudonym hangs on it


def _not_empty(key: bytes, name: str) -> bytes:
    if not key:
        raise ConfigurationError(f"{name}: is empty; give it a secret of at least 16 characters")
    return key
