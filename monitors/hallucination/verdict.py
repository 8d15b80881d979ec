"""Verdict: what a judge's reply says, however it puts it: denied, in other languages, as JSON, behind its thoughts."""

import json
import re
from typing import Any

_THOUGHTS = re.compile(
    r"<(think|thinking|reasoning|thought)>.*?</\1>|\[THINK\].*?\[/THINK\]", re.DOTALL | re.IGNORECASE
)
_OPEN_THOUGHT = re.compile(r"<(?:think|thinking|reasoning|thought)>|\[THINK\]", re.IGNORECASE)
_END_OF_THOUGHT = re.compile(
    r"</(?:think|thinking|reasoning|thought)>|\[/THINK\]|<\|channel\|>final<\|message\|>", re.I
)
_OBJECT = re.compile(r"\{[^{}]*\}")
_MARKS = re.compile(r"[*_`#>\"“”«»|\\]+")
_HEADING = re.compile(
    r"\b(?:verdict|judge?ment|conclusion|label|urteil|fazit|ergebnis|bewertung|jugement|avis|veredicto|conclusi[oó]n"
    r"|juicio|verdetto|giudizio|conclusie|oordeel|veredito)\b\s*[:：=–—-]*\s*",
    re.IGNORECASE,
)
_SUPPORTED = (
    r"supported|grounded|faithful|entailed|(?:ab)?gest[uü]tzt|unterst[uü]tzt|belegt|gedeckt|soutenue?s?|[eé]tay[eé]e?s?"
    r"|appuy[eé]e?s?|fond[eé]e?s?|respaldad[oa]s?|sustentad[oa]s?|apoyad[oa]s?|fundamentad[oa]s?|supportat[oa]"
    r"|fondat[oa]|ondersteund|gegrond|suportad[oa]"
)
_INVENTED = (
    r"invented|unsupported|hallucinated?|hallucinations?|ungrounded|unfaithful|fabricated|fabrications?|made[ -]up"
    r"|erfunden|halluziniert|unbelegt|nicht-belegt|invent[eé]e?s?|hallucin[eé]e?s?|infond[eé]e?s?|inventad[oa]s?"
    r"|alucinad[oa]s?|infundad[oa]s?|inventat[oa]|verzonnen|gehallucineerd"
)
_TERM = re.compile(
    rf"\b(?:(?P<supported>{_SUPPORTED})|(?P<invented>{_INVENTED}))\b"
    r"(?:\s*[:=]\s*(?P<said>yes|no|true|false|ja|nein|oui|non|s[ií]|nee)\b)?",
    re.IGNORECASE,
)
# Before a term, in its sentence: what turns it round, and what says that it holds of a part alone.
_DENIAL = re.compile(
    r"\b(?:not|no|never|none|nothing|nowhere|neither|without|cannot|\w+n['’]?t|fails?|lacks?|nicht|kein\w*|nichts|nie|ne"
    r"|pas|non|jamais|sans|n['’]\w+|nunca|ning[uú]n\w*|sin|niet|geen|n[aã]o|sem)\b",
    re.IGNORECASE,
)
_PARTLY = re.compile(
    r"\b(?:part(?:ly|ial(?:ly)?)|half|somewhat|teilweise|teils|partiellement|en partie|parcialmente|en parte"
    r"|parzialmente|in parte|gedeeltelijk|deels|only some)\b",
    re.IGNORECASE,
)
_BREAK = re.compile(r"[.;:!?,\n。，；]")
_REACH = 60
"""Characters before a term within which a denial is of it."""
_YES = frozenset({"yes", "true", "ja", "oui", "si", "sí"})
_INVENTED_KEYS = frozenset({"invented", "hallucinated", "hallucination", "is_hallucination", "unsupported"})
_SUPPORTED_KEYS = frozenset({"supported", "is_supported", "grounded", "faithful"})
_VERDICT_KEYS = frozenset({"verdict", "label", "judgement", "judgment", "result", "answer", "conclusion", "urteil"})


def is_invented(reply: str) -> bool | None:
    """Whether a judge's reply says that an answer is invented; None: it says neither, or both.

    What counts is, in this order: a JSON object with a key for it; what stands behind the last "Verdict:" (or its like
    in some languages); the last line. Supported in part is invented: something is not.
    """
    text = _THOUGHTS.sub("\n", reply)
    *_, text = _END_OF_THOUGHT.split(text)
    if _OPEN_THOUGHT.search(text):
        return None  # it was cut off within its thoughts
    for found in reversed(_OBJECT.findall(text)):
        said = _of_object(found)
        if said is not None:
            return said
    text = _MARKS.sub("", text).strip()
    headings = list(_HEADING.finditer(text))
    if headings:
        behind = text[headings[-1].end() :].strip()
        return _of_phrase(behind.partition("\n")[0])
    return _of_phrase(text.rpartition("\n")[2])


def _of_object(text: str) -> bool | None:
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    for key, value in found.items():
        name = key.casefold().replace(" ", "_")
        if isinstance(value, str) and value.casefold() in {"true", "false", "yes", "no"}:
            value = value.casefold() in _YES
        if isinstance(value, bool) and name in _INVENTED_KEYS | _SUPPORTED_KEYS:
            return value is (name in _INVENTED_KEYS)
        if isinstance(value, str) and name in _VERDICT_KEYS and (said := _of_phrase(value)) is not None:
            return said
    return None


def _of_phrase(phrase: str) -> bool | None:
    said = set[bool]()
    for term in _TERM.finditer(phrase):
        invented = term["invented"] is not None
        before = _BREAK.split(phrase[max(term.start() - _REACH, 0) : term.start()])[-1]
        if _PARTLY.search(before):
            invented = True
        elif _DENIAL.search(before):
            invented = not invented
        if term["said"] and term["said"].casefold() not in _YES:
            invented = not invented
        said.add(invented)
    return said.pop() if len(said) == 1 else None
