"""Tone and format of an answer, by features that can be counted. Pure functions on text."""

import re
from functools import cache
from typing import Any

from retuned.retrain.scoring import tokens

_SURE = 0.5

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

_REFUSAL = re.compile(
    r"\bI(?: am|['’]m) (?:sorry|afraid|unable|not able|not sure)\b"
    r"|\bI (?:can(?:not|['’]t| not)|won['’]t|could not|couldn['’]t) (?:help|assist|answer|provide|do|say|tell|find)\b"
    r"|\bI (?:do not|don['’]t) (?:know|have (?:that|this|any|the|enough) (?:information|data))\b|\bas an ai\b"
    r"|\bes tut mir leid\b|\b(?:das )?weiß ich (?:leider )?nicht\b|\bkann ich (?:ihnen )?(?:leider )?nicht\b"
    r"|\bje suis désolée?\b|\bje ne (?:sais|peux) pas\b|\blo siento\b|\bno (?:lo sé|puedo)\b",
    re.IGNORECASE,
)


def features(text: str) -> tuple[bool, ...]:
    """Does the text open with a greeting, close with one, hold a list, use markdown, speak as I, speak as we, exclaim,
    ask, hold an emoji, end with punctuation? Greetings and pronouns of English and of its larger neighbours."""
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
    """Share of the `features` in which an answer is like the approved one, 0 to 1."""
    pairs = list(zip(features(answer), features(approved), strict=True))
    return sum(one == other for one, other in pairs) / len(pairs)


def length_ratio(answer: str, approved: str) -> float:
    """Words of an answer over those of the approved one."""
    return len(tokens(answer)) / max(len(tokens(approved)), 1)


def refuses(text: str) -> bool:
    """Does the text say that it will not or cannot answer? In English, German, French or Spanish."""
    return bool(_REFUSAL.search(text))


def language(text: str) -> str | None:
    """ISO 639-1 code of the language that a text is most likely in; None when it is too short to tell."""
    found, confidence = _identifier().classify(text)
    return str(found) if confidence >= _SURE else None


def load_identifier() -> Any:
    """What tells languages apart (langid.py, Lui and Baldwin 2012); takes 0.4 s, and 20 MB while it is held."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


_identifier = cache(load_identifier)
