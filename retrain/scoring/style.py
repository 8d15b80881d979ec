"""Length and language of an answer. Pure functions on text."""

from retuned.consumers.common.languages import identifier
from retuned.retrain.scoring.facts import tokens

_SURE = 0.5


def length_ratio(answer: str, approved: str) -> float:
    """Returns the ratio of word counts of an answer and the approved one; 1 if both have no words, such as `{}`."""
    given, wanted = len(tokens(answer)), len(tokens(approved))
    return given / max(wanted, 1) if given or wanted else 1.0


def language(text: str) -> str | None:
    """Returns the ISO 639-1 code of a text's likely language; None if the text is too short to detect it."""
    code, confidence = identifier().classify(text)
    return str(code) if confidence >= _SURE else None
