"""Tone and format of an answer, as yes-or-no features. Pure functions on texts."""

import re
from collections.abc import Sequence
from statistics import fmean, stdev

_OPENING = re.compile(
    r"\W*(?:hi|hello|hey|dear|good (?:morning|afternoon|evening|day)|greetings|hallo|guten (?:tag|morgen|abend)"
    r"|liebe[rs]?|sehr geehrte[rs]?|moin|bonjour|bonsoir|salut|cher|chère|hola|buen(?:os|as) (?:días|tardes|noches)"
    r"|estimad[oa]|ciao|buongiorno|gentile|olá|bom dia|hoi|beste)\b",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"\b(?:regards|sincerely|cheers|best wishes|have a (?:nice|great|good|lovely) \w+|let (?:me|us) know"
    r"|(?:happy|glad) to help|feel free to|anything else|grüße[n]?|grüssen?|ihr \w+-?team|zögern sie nicht|cordialement"
    r"|bien à vous|bonne journée"
    r"|saludos|atentamente|un saludo|cordiali saluti|distinti saluti|atenciosamente|groet(?:en|jes)?)\b",
    re.IGNORECASE,
)
_LIST = re.compile(r"^\s*(?:[-*•–]|\d+[.)])\s+\S", re.MULTILINE)
_MARKDOWN = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__|^#{1,6} |`[^`\n]+`|\[[^\]\n]+\]\([^)\n]+\)", re.MULTILINE)
_I = re.compile(r"\b(?:I|I['’]m|I['’]ll|me|my|ich|mir|mich|je|moi|yo|io|eu|ik)\b")
_WE = re.compile(
    r"\b(?:we|our|us|wir|uns|unser\w*|nous|notre|nos|nosotros|nuestr[oa]s?|noi|nostr[oaie]|nós|wij|ons|onze)\b",
    re.IGNORECASE,
)
_EMOJI = re.compile(r"[\U0001F300-\U0001FAFF\u2600-\u27BF]")


Features = tuple[bool, ...]


def features(text: str) -> Features:
    """Returns the features of a text.

    They are: opening greeting, closing phrase, list, Markdown, first person singular, first person plural, exclamation
    mark, question mark, emoji, punctuation at the end. Greetings and pronouns of several European languages are known.
    """
    text = text.strip()
    return (
        bool(_OPENING.match(text)),
        bool(_CLOSING.search(text[-160:])),
        bool(_LIST.search(text)),
        bool(_MARKDOWN.search(text)),
        bool(_I.search(text)),
        bool(_WE.search(text)),
        "!" in text,
        "?" in text,
        bool(_EMOJI.search(text)),
        text.endswith(tuple(".!?…。！？:)")),
    )


def consistency(answer: str, approved: str) -> float:
    """Returns the share of the `features`, 0 to 1, in which an answer equals the approved one."""
    pairs = list(zip(features(answer), features(approved), strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def likeness(answers: Sequence[Features], approved: Sequence[Features]) -> tuple[float, float, float] | None:
    """Returns the likeness of answers to approved ones, relative to that of approved ones to each other.

    The likeness of two answers is the share of the `features` in which they are equal; of two groups, the mean over all
    pairs. The result is 1 if the answers are as similar to approved ones as these are to each other. It can be larger,
    if most answers are like the most common approved one.

    Args:
        answers, approved: the `features` of each answer.

    Returns:
        The likeness and its 95% interval, given the approved answers; None: fewer than two answers or approved ones.
    """
    if min(len(answers), len(approved)) < 2:
        return None
    n = len(approved)
    counts = [sum(has) for has in zip(*approved, strict=True)]
    among = sum(k * (k - 1) + (n - k) * (n - k - 1) for k in counts) / (n * (n - 1))
    if among == 0:
        return None
    alike = [sum(k if has else n - k for has, k in zip(answer, counts, strict=True)) / n / among for answer in answers]
    mean = fmean(alike)
    reach = 1.96 * stdev(alike) / len(alike) ** 0.5
    return mean, max(mean - reach, 0.0), mean + reach
