"""Length, refusals and language of an answer. Pure functions on text."""

import re

from retuned.consumers.common.languages import identifier
from retuned.retrain.scoring.facts import tokens

_SURE = 0.5

_REFUSAL = re.compile(
    r"\bI(?: am|['’]m) (?:sorry|afraid|unable|not able|not sure)\b"
    r"|\bI (?:can(?:not|['’]t| not)|won['’]t|could not|couldn['’]t) (?:help|assist|answer|provide|do|say|tell|find)\b"
    r"|\bI (?:do not|don['’]t) (?:know|have (?:that|this|any|the|enough) (?:information|data))\b|\bas an ai\b"
    r"|\bes tut mir leid\b|\b(?:das )?weiß ich (?:leider )?nicht\b|\bkann ich (?:ihnen )?(?:leider )?nicht\b"
    r"|\bje suis désolée?\b|\bje ne (?:sais|peux) pas\b|\blo siento\b|\bno (?:lo sé|puedo)\b",
    re.IGNORECASE,
)


def length_ratio(answer: str, approved: str) -> float:
    """Words of an answer over those of the approved one; 1 where neither has any, as of two empty JSON objects."""
    said, meant = len(tokens(answer)), len(tokens(approved))
    return said / max(meant, 1) if said or meant else 1.0


def refuses(text: str) -> bool:
    """Does the text say that it will not or cannot answer? In English, German, French or Spanish."""
    return bool(_REFUSAL.search(text))


def language(text: str) -> str | None:
    """ISO 639-1 code of the language that a text is most likely in; None when it is too short to tell."""
    found, confidence = identifier().classify(text)
    return str(found) if confidence >= _SURE else None
