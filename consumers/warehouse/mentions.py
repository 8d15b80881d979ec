"""Ids that sentences of people mention: finding them, and putting something else in their place."""

import re
from collections.abc import Mapping

from retuned.consumers.privacy.pseudonyms import UserKeys, is_pseudonym
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.tombstones import QUERIES, TOKEN, tokens

_MARKS = ".:!?"
"""They end a word in a sentence, and may also be part of an id."""
_BETWEEN = r":=/<>|#&?!`"
"""An id may stand behind a name, as in `user=u-4711`, and may have such characters itself, as pseudonyms have."""
_PART = re.compile(f"[^{_BETWEEN}]+")
MOST_PARTS = 20
"""Of one word."""


def words(sentence: str) -> set[str]:
    """Returns the parts of a sentence that may be ids: each word, without a mark at its end, and the parts of it."""
    found = tokens(sentence)
    for word in tuple(found):
        parts = [part.span() for part in _PART.finditer(word)][:MOST_PARTS]
        found |= {word[start:end] for first, (start, _) in enumerate(parts) for _, end in parts[first:]}
    return {form for word in found for form in (word, word.rstrip(_MARKS)) if form}


def replaced(sentence: str, ids: Mapping[str, str]) -> str:
    """Returns a sentence with other words in place of ids."""
    if not ids:
        return sentence
    longest_first = "|".join(map(re.escape, sorted(ids, key=len, reverse=True)))
    part = re.compile(rf"(?:^|(?<=[{_BETWEEN}]))(?:{longest_first})(?=[{_MARKS}]*(?:$|[{_BETWEEN}]))")

    def in_word(word: re.Match[str]) -> str:
        return ids.get(word[0]) or part.sub(lambda id: ids[id[0]], word[0])

    return TOKEN.sub(in_word, sentence)


def without_users(warehouse: Warehouse, keys: UserKeys, sentence: str) -> str:
    """Returns a sentence with pseudonyms in place of the ids of users of whom the warehouse has events."""
    of = {name: word for word in words(sentence) if not is_pseudonym(word) for name in keys.pseudonyms(word)}
    if not of:
        return sentence
    known = warehouse.rows(QUERIES["known_users"], {"users": list(of)})
    return replaced(sentence, {of[row["user_id"]]: row["user_id"] for row in known})
