"""Filters answers that no model should learn: placeholders, and answers that are cut off, loop, refuse or invent.

Rules about the habits of models apply to accepted answers only, because people mean what they write themselves.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence

from retuned.consumers.common.languages import identifier
from retuned.consumers.common.refusals import only_refuses
from retuned.consumers.privacy.placeholders import stand_ins
from retuned.retrain.data.examples import Example
from retuned.retrain.scoring.facts import exclude_each_other, tokens, unsupported
from retuned.retrain.scoring.score import Metric
from retuned.retrain.settings import Filter

_HANGING = re.compile(r"(?<=\s)(?:and|or|but|the|und|oder|et|ou)\s*\Z")
"""The end of a text that breaks off: what can end no sentence, and stands at the end of no code, smiley or grade."""
_SENTENCE_END = re.compile(r"\n|[.!?…:;]\s")
_PART = re.compile(r"\n(?:\s*\n|\s*(?:[-*+•|>]|\d+[.)]))")
"""What begins a paragraph, an item of a list or a row of a table."""
_SENTENCE_WORDS = 5
_LOOP_WORDS = 4
_LOOP_SHARE = 0.4
_LOOP_LENGTH = 16
_LANGUAGE_WORDS = 6
_LANGUAGE_SURE = 0.9
_LANGUAGE_SHARE = 0.05
_LANGUAGE_SAMPLE = 200
_LANGUAGE_ROWS = 3
_KNOWN_WORDS = 0.25

IN_WORDS = {
    "placeholder": "it has a placeholder or a pseudonym that is neither in the conversation nor in the passages",
    "unreadable": "the metric of the workload cannot read it",
    "incomplete": "it breaks off",
    "repetitive": "it repeats the same words",
    "refusing": "it only states that it cannot answer",
    "ungrounded": "it states a fact that is neither in the passages nor in the conversation",
    "off_language": "it is in another language than its question, which hardly any other answer uses",
}
"""The detail of each reason."""


def filtered(
    rows: Sequence[Example], cut: Collection[str], wanted: Collection[Filter], metric: Metric
) -> dict[str, str]:
    """Returns the rows that must not be learned: by feedback id, the first filter that applies, or `unreadable`.

    Of these, only `placeholder` and `unreadable` apply to answers that an expert wrote.

    - `placeholder`: it has a placeholder of redaction (`<EMAIL_1>`), or a pseudonym of a user, such as an argument of a
      tool call, that is neither in the conversation nor in the passages. The value that it stands for cannot be
      learned, and the model would answer with the placeholder.
    - `unreadable`: programs cannot read it, by the workload's metric, such as an unknown label. No setting disables it.
      Labels and a schema that were inferred from approved answers reject no statement of an expert.
    - `incomplete`: an accepted answer that reached its token limit, or a text for people that breaks off after a word
      or a mark that ends no sentence.
    - `repetitive`: a text for people that repeats runs of four words (as in Rae et al. 2021, "Scaling language models",
      A1.1).
    - `refusing`: an accepted answer that only refuses, with no more than questions and courtesies after it.
    - `ungrounded`: there are passages, and it states a number, a date or a name that is neither in them nor in the
      question.
    - `off_language`: its language is not the question's, and hardly any other row has it (langid.py, Lui and Baldwin
      2012).

    Args:
        cut: the interactions whose answer broke off.
    """
    unfit: dict[str, str] = {}
    for row in rows:
        if "placeholder" in wanted and unknown_placeholders(row):
            unfit[row.feedback_id] = "placeholder"
        elif metric.unreadable(row.completion, {"tools": row.tools}, inferred=not row.is_expert):
            unfit[row.feedback_id] = "unreadable"
        elif not _is_written(row) and (reason := _bad_habit(row, cut, wanted, metric.in_words)) is not None:
            unfit[row.feedback_id] = reason
    if "off_language" in wanted:
        fit = [row for row in rows if row.feedback_id not in unfit]
        unwritten = {row.feedback_id for row in fit if not (row.is_expert and row.kind == "correction")}
        unfit |= {id: "off_language" for id in _off_language(fit) if id in unwritten}
    return unfit


def _is_written(row: Example) -> bool:
    """Returns whether an expert wrote the answer."""
    return row.is_expert and row.kind != "accepted"


def _bad_habit(row: Example, cut: Collection[str], wanted: Collection[Filter], in_words: bool) -> Filter | None:
    """Returns the first filter about the habits of models that applies to an answer."""
    accepted, text = row.kind == "accepted", row.completion
    last = _SENTENCE_END.split(text.strip())[-1]  # a greeting ends with a comma, too
    comma = last.endswith(",") and len(last.split()) >= _SENTENCE_WORDS
    hanging = in_words and (comma or (len(text.split()) >= _SENTENCE_WORDS and bool(_HANGING.search(text))))
    if "incomplete" in wanted and accepted and (row.interaction_id in cut or hanging):
        return "incomplete"
    if "repetitive" in wanted and in_words and repetitive(text):
        return "repetitive"
    if "refusing" in wanted and accepted and only_refuses(text):
        return "refusing"
    if "ungrounded" in wanted and row.context and ungrounded(row):
        return "ungrounded"
    return None


def unknown_placeholders(row: Example) -> set[str]:
    """Returns the placeholders and pseudonyms of an answer that its prompt lacks. `<EMAIL_1>` and `<EMAIL_2>` are
    different."""
    return {name for name in stand_ins(row.completion) if name not in row.messages and name not in (row.context or "")}


def repetitive(text: str) -> bool:
    """Returns whether a large share of the runs of four words are repetitions, within a part of the text or with the
    whole part: a paragraph, an item of a list or a row of a table. These repeat words in parts that differ.
    """
    lines = [tuple(words) for line in _PART.split(f"\n{text}") if (words := tokens(line))]
    if sum(map(len, lines)) < _LOOP_LENGTH:
        return False
    numbers = {line: number for number, line in enumerate(lines)}
    runs = [
        (number, line[at : at + _LOOP_WORDS])
        for number, line in zip(map(numbers.__getitem__, lines), lines, strict=True)
        for at in range(max(len(line) - _LOOP_WORDS + 1, 1))
    ]
    return 1 - len(set(runs)) / len(runs) > _LOOP_SHARE


def ungrounded(row: Example) -> bool:
    """Returns whether an answer states a fact that is neither in its passages nor in the conversation."""
    asked = [turn["content"] for turn in json.loads(row.messages)]
    source = "\n".join([*(str(passage) for passage in json.loads(row.context or "[]")), *asked])
    _, missing = unsupported(row.completion, source)
    words = set(tokens(source)) if missing else set()
    return any(exclude_each_other(value) or value.text.casefold() not in words for value in missing)


def _off_language(rows: Sequence[Example]) -> list[str]:
    """Returns the rows of `off_language`. Only texts with many words that other rows lack need language detection."""
    words = {row.feedback_id: _words(row.completion) for row in rows}
    used = Counter(word for own in words.values() for word in set(own))
    strange = [
        row
        for row in rows
        if len(own := words[row.feedback_id]) >= _LANGUAGE_WORDS
        and sum(used[word] > max(2, _LANGUAGE_SHARE * len(rows)) for word in own) < _KNOWN_WORDS * len(own)
    ]
    if not strange:
        return []
    sample = sorted(rows, key=lambda row: row.row_id)[:_LANGUAGE_SAMPLE]
    counts = Counter(
        identifier().classify(row.completion)[0] for row in sample if len(words[row.feedback_id]) >= _LANGUAGE_WORDS
    )
    usual = {name for name, times in counts.items() if times >= max(_LANGUAGE_ROWS, _LANGUAGE_SHARE * counts.total())}
    ids = []
    for row in strange:
        language, sure = identifier().classify(row.completion)
        asked, _ = identifier().classify(row.question)
        if usual and language not in {*usual, asked} and sure >= _LANGUAGE_SURE:
            ids.append(row.feedback_id)
    return ids


def _words(text: str) -> list[str]:
    """Returns the words of a text without those with a capital letter, which may be names, of no language."""
    small = " ".join(word for word in re.split(r"\W+", text) if not word[:1].isupper())
    return [word for word in tokens(small) if word.isalpha()]
