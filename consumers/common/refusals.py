"""Refusals: answers that decline to answer, in nine languages.

By one list (`refusals.yaml`) the gate counts refusals, drift compares windows, and datasets leave out answers that only
refuse. A refusal states that the answerer cannot or may not help, or does not know. An apology is none, nor is a
polite or negative answer: "I am afraid the fee is 5 euros", "Sale items cannot be returned".
"""

import re
import unicodedata
from functools import cache
from importlib.resources import files

QUOTED = r"[\"“„«][^\"“”„«»]{0,300}[\"”“»]"
"""Words of somebody else."""
_SENTENCE = re.compile(r"[^.!?…。！？؟\n]+[.!?…。！？؟]*")
_STATES_MORE = re.compile(r"[\d:;\"“”„«»>]|\b(?:but|however|aber|mais|pero)\b")
_COURTESY = re.compile(
    r"\W*(?:please|if you|feel free|let me know|i'm (?:very |so )?sorry|i am sorry|sorry|is there|can i|how (?:can|may)"
    r"|thank|i (?:recommend|suggest)|hello|hi|hey|unfortunately)\b"
)


@cache
def pattern() -> str:
    """Returns a regular expression that matches a refusal in a text as `comparable` returns it, also in DuckDB."""
    import yaml

    groups = yaml.safe_load((files("retuned.consumers.common") / "refusals.yaml").read_text(encoding="utf-8"))
    parts = groups.pop("parts")
    found = "|".join(f"(?:{one})" for statements in groups.values() for one in statements)
    for _ in parts:  # a part may name others
        for name, part in parts.items():
            found = found.replace(f"{{{name}}}", part)
    return _folded(found)


def comparable(text: str) -> str:
    """Returns a text in lower case, with straight apostrophes, without accents and quotations."""
    return re.sub(QUOTED, "", _folded(text.lower()))


def _folded(text: str) -> str:
    """Returns a text without accents: RE2 takes a letter with an accent for the end of a word."""
    found = "".join(char for char in unicodedata.normalize("NFD", text) if unicodedata.category(char) != "Mn")
    return unicodedata.normalize("NFC", found).replace("ß", "ss").replace("’", "'")


def refuses(text: str) -> bool:
    """Returns whether an answer refuses, perhaps with an apology before and a redirect after it."""
    return bool(_refusal().search(comparable(text)))


def only_refuses(text: str) -> bool:
    """Returns whether an answer holds nothing but a refusal, questions and courtesies."""
    plain = re.sub(r"\bsorry,? but\b", "sorry", comparable(text))
    sentences = [one.strip() for one in _SENTENCE.findall(plain) if re.search(r"\w", one)]
    kinds = [_kind(one) for one in sentences]
    return "refusal" in kinds and None not in kinds


def _kind(sentence: str) -> str | None:
    if sentence.endswith(("?", "？", "؟")):
        return "question"
    if _STATES_MORE.search(sentence):
        return None
    if _refusal().search(sentence):
        return "refusal"
    return "courtesy" if _COURTESY.match(sentence) else None


@cache
def _refusal() -> re.Pattern[str]:
    return re.compile(pattern())
