"""Citations: sources that an answer names or quotes although neither passages nor conversation contain them."""

import re
from collections.abc import Sequence

CITED = re.compile(r"\[\^?(\d{1,3})\](?!\()")
_LABEL = re.compile(r"^\s*\[\^?(\d{1,3})\](?!\()", re.M)
_QUOTED = re.compile(r"(?<!\w)[“„»\"](?=\S)([^“”„«»\"\n]{1,400})[”“«\"]")
_ADDRESS = re.compile(r"(?:https?://|www\.)([^\s<>\"')\]/]+)[^\s<>\"')\]]*|[\w.+-]{1,64}@([\w-]+(?:\.[\w-]+)+)", re.I)
_WORD = re.compile(r"\w+")
_FEWEST_WORDS = 6
"""Shorter quotations are usually titles, labels or buttons."""
_RUN = 3


def missing_sources(response: str, passages: Sequence[str], conversation: Sequence[str]) -> tuple[str, ...]:
    """Returns the sources of an answer that do not exist, each with the reason.

    - a number in brackets that no passage has, where it is known how the passages are numbered;
    - a quotation that shares no three consecutive words with the passages or the conversation;
    - a web or e-mail address at a host that neither contains.

    Args:
        conversation: the texts of the conversation.
    """
    missing = []
    numbers = numbering(response, passages, conversation)
    if numbers:
        seen = numbers | {number for text in (*passages, *conversation) for number in _cited(text)}
        missing += [f"[{number}]: no passage has this number" for number in sorted(_cited(response) - seen)]
    everything = " ".join((*passages, *conversation)).casefold()
    runs = set(_runs(_WORD.findall(everything)))
    for quotation in _QUOTED.findall(response):
        quoted = _WORD.findall(quotation.casefold())
        if len(quoted) >= _FEWEST_WORDS and runs.isdisjoint(_runs(quoted)):
            missing.append(f"“{quotation}”: no passage has this quotation")
    for match in _ADDRESS.finditer(response):
        host = (match[1] or match[2]).casefold().removeprefix("www.").rstrip(".,;:!?")
        if host not in everything:
            missing.append(f"{match[0].rstrip('.,;:!?')}: no passage has this address")
    return tuple(dict.fromkeys(missing))


def numbering(response: str, passages: Sequence[str], conversation: Sequence[str]) -> set[int]:
    """Returns the numbers by which the model could cite the passages; empty: unknown.

    They begin each passage, or lines of the conversation where it holds the passages. Passages
    without numbers are numbered from 1 if the answer cites one of those; otherwise its numbers may be an app's own.
    """
    if all(own := [_LABEL.match(passage) for passage in passages]):
        return {int(label[1]) for label in own if label}
    given = {int(number) for text in conversation for number in _LABEL.findall(text)}
    if len(given) >= len(passages):
        return given
    positions = set(range(1, len(passages) + 1))
    return positions if positions & _cited(response) else set()


def cites_unknown(response: str, passages: Sequence[str], conversation: Sequence[str]) -> bool:
    """Returns whether an answer cites passages whose numbers are unknown."""
    return bool(_cited(response)) and not numbering(response, passages, conversation)


def _cited(text: str) -> set[int]:
    return {int(number) for number in CITED.findall(text)}


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + _RUN]) for at in range(len(words) - _RUN + 1)]
