"""E-mail addresses, also spelled-out ones, and IP and MAC addresses."""

import re
from ipaddress import ip_address

from retuned.consumers.privacy.patterns import Mark

# Without spaces between words, as in Japanese, an address ends where another script begins.
_LATIN = r"A-Za-z0-9_\u00c0-\u024f\u1e00-\u1eff"
# It holds apostrophes, and begins behind a quotation mark.
_LOCAL = r"(?<![\w.+-])(?<![\w.+-]')[\w.+-][\w.+'-]*+"
_LABEL = rf"(?:[{_LATIN}-]++|[\w-]++)"
_EMAIL = re.compile(
    rf"(?:(?<![{_LATIN}.+%-])(?<![{_LATIN}.+%-]')[{_LATIN}.+%-][{_LATIN}.+%'-]*+"
    rf"|(?<![^\W{_LATIN}])(?:[^\W{_LATIN}]|[.+%'-])++)(?:@|%40)"
    rf"({_LABEL}(?:\.{_LABEL})++)"
)
# In a URL the sign is escaped, and the pattern above would include it in the name.
_ESCAPED_EMAIL = re.compile(rf"{_LOCAL}%40([\w-]++(?:\.[\w-]++)++)")
_DOT = r"(?:[ ]{0,2}[(\[{][ ]?(?:dot|punkt|punto|point)[ ]?[)\]}][ ]{0,2}|[ ](?:dot|punkt|punto)[ ])"
_AT = r"[(\[{][ ]?(?:at|@|ät|æt|arroba|chez)[ ]?[)\]}]"
# anna (at) example.com, anna[at]example[dot]com
_BRACKETED = re.compile(
    rf"{_LOCAL}(?:{_DOT}[\w-]++){{0,3}}+[ ]{{0,2}}{_AT}[ ]{{0,2}}"
    rf"[\w-]++(?:(?:\.|{_DOT})[\w-]++){{1,4}}+",
    re.I,
)
# anna dot smith at example dot com: the last word must be one that seldom follows "dot" in a sentence.
_SPELLED = re.compile(
    rf"{_LOCAL}(?:{_DOT}[\w-]++){{0,3}}+[ ](?:at|arroba|chez)[ ]"
    rf"[\w.-]{{1,64}}(?:{_DOT}[\w-]{{1,64}}){{0,2}}?{_DOT}"
    r"(?:com|net|org|edu|gov|info|biz|co|io|dev|app|ai|eu|de|fr|es|nl|pl|se|dk|ch|uk|ie|cz|br|pt|jp|au|ca|nz|ru|cn|mx)\b",
    re.I,
)

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![A-Za-z0-9_.])(?:{_OCTET}\.){{3}}{_OCTET}(?!\.?[A-Za-z0-9_])")
# Versions and sections of four parts look the same.
_VERSION = re.compile(
    r"(?:version|release|firmware|\bfw|build|driver|update|patch|\bver\.?|\bv\.?|figure|\bfig\.?|section|sect?\.|chapter|clause"
    r"|table|article|paragraph|§)[\s:=\"']{0,4}$",
    re.I,
)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?:(?:\.[0-9]{1,3}){3})?(?![\w:])")
_MAC = re.compile(
    r"(?<![A-Za-z0-9_:.-])(?:[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}"
    r"|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4})(?![A-Za-z0-9_:-])"
)

SUSPECT = (
    r"@|%40",
    rf"(?i:{_AT})",
    r"(?i: (?:dot|punkt|punto) |[(\[{][ ]?(?:dot|punkt|punto|point)[ ]?[)\]}])",
    r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|::|[0-9A-Fa-f]:[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]",
    r"[0-9A-Fa-f]{2}-[0-9A-Fa-f]{2}-[0-9A-Fa-f]{2}-[0-9A-Fa-f]{2}|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}",
)


def replace_emails(text: str, mark: Mark) -> str:
    """Replaces e-mail addresses by `<EMAIL>`: plain, escaped in a URL, and spelled out."""

    def plain(match: re.Match[str]) -> str:
        # react@18.2.0 is a version
        return mark("EMAIL", _email(match[0]), match[0]) if match[1].rsplit(".", 1)[1][:1].isalpha() else match[0]

    def spelled(match: re.Match[str]) -> str:
        return mark("EMAIL", _email(match[0]), match[0])

    if "%40" in text:
        text = _ESCAPED_EMAIL.sub(plain, text)
    if "@" in text:
        text = _EMAIL.sub(plain, text)
    lowered = text.casefold()
    if any(bracket in text for bracket in "([{"):
        text = _BRACKETED.sub(spelled, text)
    if "dot" in lowered or "punkt" in lowered or "punto" in lowered:
        text = _SPELLED.sub(spelled, text)
    return text


def _email(text: str) -> str:
    plain = re.sub(_DOT, ".", text.casefold().replace("%40", "@"))
    return re.sub(
        r"[ ]{0,2}[(\[{][ ]?(?:at|@|ät|æt|arroba|chez)[ ]?[)\]}][ ]{0,2}|[ ](?:at|arroba|chez)[ ]", "@", plain
    )


def replace_machines(text: str, mark: Mark) -> str:
    """Replaces IP addresses by `<IP>` and MAC addresses by `<MAC>`, except those that mean "this machine"."""

    def mac(match: re.Match[str]) -> str:
        plain = re.sub("[:.-]", "", match[0]).casefold()
        return match[0] if plain.isdigit() else mark("MAC", plain, match[0])

    def ip(match: re.Match[str]) -> str:
        if not any(character.isdigit() for character in match[0]):
            return match[0]
        try:
            address = ip_address(match[0])
        except ValueError:
            return match[0]
        if address.is_loopback or address.is_unspecified:
            return match[0]
        if address.version == 4 and _VERSION.search(text[max(0, match.start() - 16) : match.start()]):
            return match[0]
        return mark("IP", str(address), match[0])

    # Each pattern searches the text that the previous one has left.
    text = _MAC.sub(mac, text)
    if ":" in text:
        text = _IPV6.sub(ip, text)
    return _IPV4.sub(ip, text)
