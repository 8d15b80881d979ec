"""What no model should learn to write, whoever approved of it: placeholders, and answers that are cut off, loop,
refuse, or invent.

What people wrote themselves is meant so; where a rule is about the habits of models, it is for accepted answers alone.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence

from retuned.consumers.common.languages import load_identifier
from retuned.consumers.privacy.placeholders import PLACEHOLDER
from retuned.retrain.data.examples import Example
from retuned.retrain.scoring.facts import facts, tokens
from retuned.retrain.settings import Filter

_END = re.compile(r"[.!?…。！？)\]}>\"'”’»`*:|]\s*$")
_LINKS = "and|or|but|the|a|an|of|to|in|with|for|that|which|because|und|oder|der|die|das|et|ou|de|le|la"
_HANGING = re.compile(rf"(?:[,;(\-–]|(?<=\s)(?:{_LINKS}))\s*$")
_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|^\W*(?:(?:i['’]m |i am )?sorry,? (?:but )?|unfortunately,? )?"
    r"i (?:can(?:not|['’]t| not)|am (?:not able|unable) to|won['’]t|will not) (?:help|assist|answer|discuss|comply)\b",
    re.IGNORECASE,
)
_SENTENCE_WORDS = 5
_USUAL = 0.9
_LOOP_WORDS = 4
_LOOP_SHARE = 0.4
_LOOP_LENGTH = 16
_LANGUAGE_WORDS = 6
_LANGUAGE_SURE = 0.9
_LANGUAGE_SHARE = 0.05
_LANGUAGE_SAMPLE = 200
_LANGUAGE_ROWS = 3
_KNOWN_WORDS = 0.25


def filtered(rows: Sequence[Example], cut: Collection[str], wanted: Collection[Filter]) -> dict[str, Filter]:
    """The rows that are not to be learned from: by feedback id, the first filter that says so.

    - `placeholder`: it holds a placeholder of redaction (`<EMAIL_1>`) that stands neither in the conversation nor in
      the passages: what was redacted cannot be learned, and the placeholder would be the answer.
    - `incomplete`: an accepted answer that ended at its limit of tokens; that breaks off after a word or a mark that
      ends no sentence; or that has no end where nine in ten have one. A label ("opt-in", "Team A") is no sentence.
    - `repetitive`: four words in a row come again and again (as in Rae et al. 2021, "Scaling language models", A1.1).
    - `refusing`: an accepted answer that only says that it cannot. An expert may teach to refuse.
    - `off_language`: a language that hardly any other row is in (langid.py, Lui and Baldwin 2012).
    - `ungrounded`: there are passages, and it states a number, a date or a name that stands neither in them nor in what
      was asked. Experts may know better than the passages.

    Args:
        cut: interactions whose answer ended at its limit.
    """
    ends = Counter(bool(_END.search(row.completion)) for row in rows if row.kind == "accepted")
    strict = ends[True] >= _USUAL * ends.total() and ends.total() >= 10
    found: dict[str, Filter] = {}
    for row in rows:
        accepted, text = row.kind == "accepted", row.completion
        hanging = len(text.split()) >= _SENTENCE_WORDS and bool(_HANGING.search(text))
        broken = row.interaction_id in cut or hanging or (strict and not _END.search(text))
        if "placeholder" in wanted and unknown_placeholders(row):
            found[row.feedback_id] = "placeholder"
        elif "incomplete" in wanted and accepted and broken:
            found[row.feedback_id] = "incomplete"
        elif "repetitive" in wanted and repetitive(text):
            found[row.feedback_id] = "repetitive"
        elif "refusing" in wanted and accepted and _REFUSAL.search(text):
            found[row.feedback_id] = "refusing"
        elif "ungrounded" in wanted and row.rank < 2 and row.context and ungrounded(row):
            found[row.feedback_id] = "ungrounded"
    if "off_language" in wanted:
        found |= dict.fromkeys(_off_language([row for row in rows if row.feedback_id not in found]), "off_language")
    return found


def unknown_placeholders(row: Example) -> set[str]:
    """The placeholders of an answer that its prompt does not hold, numbers included: `<EMAIL_2>` is another address."""
    written = {match[0] for match in PLACEHOLDER.finditer(row.completion)}
    return {one for one in written if one not in row.messages and one not in (row.context or "")}


def repetitive(text: str) -> bool:
    """Whether a large share of the runs of four words, or one word, comes again and again."""
    words = tokens(text)
    if len(words) < _LOOP_LENGTH:
        return False
    runs = [tuple(words[place : place + _LOOP_WORDS]) for place in range(len(words) - _LOOP_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) > _LOOP_SHARE


def ungrounded(row: Example) -> bool:
    """Whether an answer states a fact that neither its passages nor the conversation hold."""
    asked = [turn["content"] for turn in json.loads(row.messages)]
    source = "\n".join([*(str(passage) for passage in json.loads(row.context or "[]")), *asked])
    missing = facts(row.completion) - facts(source)
    if not missing:
        return False
    words = set(tokens(source))  # a name may open a sentence, where `facts` does not see it
    return any(not (fact.startswith(("name:", "code:")) and fact[5:] in words) for fact in missing)


def _off_language(rows: Sequence[Example]) -> list[str]:
    """Only texts with many words that other rows do not use have their language identified: most need no model."""
    words = {row.feedback_id: [word for word in tokens(row.completion) if word.isalpha()] for row in rows}
    used = Counter(word for said in words.values() for word in set(said))
    strange = [
        row
        for row in rows
        if len(said := words[row.feedback_id]) >= _LANGUAGE_WORDS
        and sum(used[word] > max(2, _LANGUAGE_SHARE * len(rows)) for word in said) < _KNOWN_WORDS * len(said)
    ]
    if not strange:
        return []
    identifier = load_identifier()
    sample = sorted(rows, key=lambda row: row.row_id)[:_LANGUAGE_SAMPLE]
    spoken = Counter(
        identifier.classify(row.completion)[0] for row in sample if len(words[row.feedback_id]) >= _LANGUAGE_WORDS
    )
    usual = {name for name, times in spoken.items() if times >= max(_LANGUAGE_ROWS, _LANGUAGE_SHARE * spoken.total())}
    found = []
    for row in strange:
        language, sure = identifier.classify(row.completion)
        if usual and language not in usual and sure >= _LANGUAGE_SURE:
            found.append(row.feedback_id)
    return found
