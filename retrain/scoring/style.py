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
    """Returns the ratio of word counts of an answer and the approved one; 1 if both have no words, such as `{}`."""
    given, wanted = len(tokens(answer)), len(tokens(approved))
    return given / max(wanted, 1) if given or wanted else 1.0


def refuses(text: str) -> bool:
    """Returns whether a text refuses to answer, in English, German, French or Spanish."""
    return bool(_REFUSAL.search(text))


def language(text: str) -> str | None:
    """Returns the ISO 639-1 code of a text's likely language; None if the text is too short to detect it."""
    code, confidence = identifier().classify(text)
    return str(code) if confidence >= _SURE else None
