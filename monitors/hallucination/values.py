"""Compares the numbers, amounts, dates and names of an answer with those of its passages.

Only the values are judged, not what the answer states about them. A value that occurs anywhere in the passages or the
conversation, or follows from them by arithmetic, is supported. Any other value is contradicted if a sentence of the
passages on the same subject has another value of its kind, and otherwise not supported. Where passages or conversation
are too long to be read, only support can be found: what has none may be in the rest.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache, lru_cache

from retuned.consumers.common.languages import language_among
from retuned.consumers.common.values.read import read
from retuned.consumers.common.values.tables import LANGUAGES, one_of, tables
from retuned.consumers.common.values.value import Value, same
from retuned.consumers.privacy.placeholders import unnumbered
from retuned.monitors.hallucination.abstention import MOST_CHARACTERS, abstention
from retuned.monitors.hallucination.arithmetic import follows
from retuned.monitors.hallucination.citations import CITED, cites_unknown, missing_sources
from retuned.monitors.hallucination.scorer import Abstention, Answer, Judgement

CONTRADICTED, NOT_SUPPORTED, SUPPORTED = 0.0, 0.5, 1.0
MOST_VALUES = 200
"""The most values of an answer that are compared."""
_SHARED_WORDS = 2
"""Sentences that share this many words are about the same subject."""
_FEW_WORDS = 3
"""A sentence with fewer words takes its subject from the question."""
_ABOUT = 0.1
"""Amounts that differ by a larger share are not the same, in any rounding or unit."""
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’»)\]]*\s+(?=[^\sa-zäöüßéèàçñ])|[;\n]+")
_WORD = re.compile(r"[^\W\d_]{4,}")
_ANY_WORD = re.compile(r"[^\W\d_]+")
_STEM = 5
_DIGITS = re.compile(r"\d+(?:[.,:]\d+)*")
_NAME = re.compile(r"(?<=[\w,’')] )[A-ZÀ-Ý][\w’-]*[a-zà-ÿ][\w-]*")
"""A capitalized word within a sentence. German capitalizes all nouns, so its names are not recognized."""
_NO_NAMES = frozenset({"de"})
_RANGED = frozenset({"weekday", "calendar_month", "time", "ordinal"})
"""Kinds that passages usually state as ranges, such as open from Monday to Friday, from 9 to 5."""
_ALWAYS = {"day": 86_400.0, "week": 604_800.0}


@dataclass(frozen=True)
class Sentence:
    """A sentence with its values, the stems of its other words, and its names.

    Attributes:
        is_vague: it has a quantity without a number, such as "half", "twice" or "a decade".
    """

    text: str
    values: tuple[Value, ...]
    stems: frozenset[str]
    names: frozenset[str]
    is_vague: bool
    language: str


def judged(answer: Answer) -> Judgement | Abstention:
    """Judges an answer by its values.

    Returns:
        The lowest score of its values: 0 for a contradicted value or a source that does not exist, 0.5 for one that is
        not supported, 1 for a supported one. Abstains on answers without values, and on those whose evidence is too
        long to be read, unless what is read supports all of them.
    """
    answer = readable(answer)
    reason = abstention(answer.response, answer.passages)
    if reason:
        return Abstention(reason)
    sources = missing_sources(answer.response, answer.passages, answer.conversation)
    if sources:
        return Abstention("too_long") if answer.truncated else Judgement(CONTRADICTED, sources)
    evidence, stated = _Evidence.of(answer), sentences(CITED.sub("", answer.response))
    own = [value for sentence in stated for value in sentence.values if not _is_phrase(value)][:MOST_VALUES]
    supported = _supported(own, evidence)
    verdicts = [verdict for sentence in stated for verdict in _verdicts(sentence, own, supported, evidence)]
    if not verdicts:
        cites = cites_unknown(answer.response, answer.passages, answer.conversation)
        return Abstention("numbering" if cites else "no_values")
    lowest = min(score for score, _ in verdicts)
    if lowest < SUPPORTED and answer.truncated:
        return Abstention("too_long")
    return Judgement(lowest, tuple(why for score, why in verdicts if score == lowest < SUPPORTED))


@dataclass(frozen=True)
class _Evidence:
    """The content of the passages and the conversation.

    Attributes:
        sentences, known: the sentences of the passages and their values.
        asked: the stems of the question.
        mentioned: the values of the conversation.
        text, digits, stems: the text of both in lower case, and the numbers and stems in it.
    """

    sentences: list[Sentence]
    known: list[Value]
    asked: frozenset[str]
    mentioned: list[Value]
    text: str
    digits: set[str]
    stems: frozenset[str]

    @classmethod
    def of(cls, answer: Answer) -> "_Evidence":
        given = [sentence for passage in answer.passages for sentence in sentences(passage)]
        text = "\n".join((*answer.passages, *answer.conversation)).casefold()
        return cls(
            sentences=given,
            known=_distinct(value for sentence in given for value in sentence.values),
            asked=frozenset(stem for sentence in sentences(answer.question) for stem in sentence.stems),
            mentioned=_distinct(
                value for turn in answer.conversation for sentence in sentences(turn) for value in sentence.values
            ),
            text=text,
            digits=set(_DIGITS.findall(text)),
            stems=_stems(text),
        )


def _distinct(values: Iterable[Value]) -> list[Value]:
    """Returns the first of the values that differ in their place or wording alone."""
    found: dict[tuple[object, ...], Value] = {}
    for value in values:
        found.setdefault(
            (value.kind, value.readings, value.unit, value.bound, value.per, value.number, value.soft), value
        )
    return list(found.values())


def _supported(own: Sequence[Value], evidence: _Evidence) -> dict[Value, None]:
    """Returns the values of an answer that occur in the evidence, or follow from it by arithmetic, in a fixed order.

    A value of the answer supports another one of its kind only if it is itself supported: of "7 to 10 days", neither
    number follows from "3 to 5 days" because of the other.
    """
    given = [*evidence.known, *evidence.mentioned]
    supported: dict[Value, None] = {}
    for _ in range(2):  # a sum may come before its parts
        for value in own:
            others = [*evidence.mentioned, *(other for other in own if other.kind != value.kind), *supported]
            if value not in supported and (
                _occurs(value, given, evidence.digits) or follows(value, evidence.known, others)
            ):
                supported[value] = None
    return supported


def _verdicts(
    sentence: Sentence, own: Sequence[Value], supported: Collection[Value], evidence: _Evidence
) -> Iterator[tuple[float, str]]:
    """Yields the score of each value and name of a sentence, with the reason.

    Args:
        own: the values of the whole answer that are compared; `supported`: those that the evidence supports.
    """
    stems = sentence.stems if len(sentence.stems) >= _FEW_WORDS else sentence.stems | evidence.asked
    about = [given for given in evidence.sentences if len(given.stems & stems) >= _SHARED_WORDS]
    is_vague = sentence.is_vague or any(given.is_vague for given in about)
    compared, distinct = set(own), _distinct(own)
    for value in sentence.values:
        if value not in compared:
            continue
        rivals = (
            rival
            for given in about
            for rival in _rivals(value, sentence, given)
            if all(same(rival, other) is False for other in distinct)
        )
        if value in supported:
            yield SUPPORTED, ""
        elif not (is_vague or _is_hedged(value, sentence)) and (rival := next(rivals, None)):
            yield CONTRADICTED, f"{value.text}: the passages have {rival.text}"
        else:
            yield NOT_SUPPORTED, f"{value.text}: not in the passages"
    for name in sorted(sentence.names):
        if name.casefold() in evidence.text or not evidence.stems.isdisjoint(_stems(name)):
            yield SUPPORTED, ""
        elif instead := next((other for given in about for other in _in_place_of(name, sentence, given)), None):
            yield CONTRADICTED, f"{name}: the passages have {instead}"
        else:
            yield NOT_SUPPORTED, f"{name}: not in the passages"


def _is_phrase(value: Value) -> bool:
    """Whether a value is not compared: a phrase ("a day", "first", "24 hours a day") or an address (a source)."""
    always = value.kind == "duration" and _ALWAYS.get(value.per) in value.readings
    return always or value.soft or value.kind in ("ordinal", "address")


def _is_hedged(value: Value, sentence: Sentence) -> bool:
    """Whether a value is stated as approximate."""
    return bool(_hedge(sentence.language).search(sentence.text.partition(value.text)[0]))


@cache
def _hedge(language: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{one_of(tables(language).list_of('about'))})\s*$", re.IGNORECASE)


def _occurs(value: Value, others: Iterable[Value], digits: set[str]) -> bool:
    """Whether a value occurs among others, or may: a bare number or code by its digits, a month or year in a date."""
    if value.kind in ("number", "code") and (own := set(_DIGITS.findall(value.text))) and own <= digits:
        return True
    for other in others:
        if same(value, other) is not False or _is_rounded(value, other):
            return True
        if value.kind != other.kind and value.number is not None and value.number == other.number:
            return True  # 30 pounds may be money
        if other.kind in ("date", "calendar_month"):
            if value.kind == "number" and other.unit == value.text:
                return True
            if value.kind == "calendar_month" and value.readings[0] in {str(on).split("-")[0] for on in other.readings}:
                return True
    return False


def _is_rounded(value: Value, other: Value) -> bool:
    """Whether a value may be another one rounded, or by a convention in another unit: £20 for £19.95, 15 days for two
    weeks. Rounding changes less than one unit of the last digit that is not zero: 118,999 is not 116,116 rounded."""
    if value.kind != other.kind or (value.unit and other.unit and value.unit != other.unit) or value.per != other.per:
        return False
    a, b = value.readings[0], other.readings[0]
    if not isinstance(a, float) or not isinstance(b, float) or abs(a - b) >= _ABOUT * max(abs(a), abs(b)):
        return False
    if value.number is None or value.factor != other.factor:
        return True
    last_digit = int(Decimal(repr(value.number)).normalize().as_tuple().exponent)
    return abs(a - b) < value.factor * 10.0**last_digit


def _rivals(value: Value, sentence: Sentence, other: Sentence) -> Iterator[Value]:
    """Yields the values of another sentence that contradict a value: of its kind and, for bare numbers, of its noun."""
    for rival in other.values:
        same_kind = rival.kind == value.kind and rival.kind not in _RANGED and not _is_phrase(rival)
        has_unit = value.kind not in ("number", "code")
        if same_kind and (has_unit or _counted(value, sentence) & _counted(rival, other)):
            yield rival


def _counted(value: Value, sentence: Sentence) -> frozenset[str]:
    """Returns the stem of the word after a bare number, which is what it counts."""
    return _stems(" ".join(_WORD.findall(sentence.text.partition(value.text)[2][:30])[:1]))


def _in_place_of(name: str, sentence: Sentence, other: Sentence) -> list[str]:
    """Returns the names that follow the same word in another sentence: insured by Aurelia, insured by Meridian."""
    before = _word_before(name, sentence)
    return [rival for rival in sorted(other.names - sentence.names) if before and _word_before(rival, other) == before]


def _word_before(name: str, sentence: Sentence) -> str:
    return sentence.text.partition(name)[0].rstrip().rpartition(" ")[2].casefold()


def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:_STEM] for word in _WORD.findall(text.casefold()))


def readable(answer: Answer) -> Answer:
    """Returns an answer with as much of its texts as is read: the first passages, and the end of the conversation,
    which includes the question."""
    whole = answer.conversation
    if answer.question not in whole:
        whole = (*whole, answer.question)
    passages, conversation = _first(answer.passages), _last(whole)
    return replace(
        answer,
        question=answer.question[-MOST_CHARACTERS:],
        passages=passages,
        response=answer.response[:MOST_CHARACTERS],
        conversation=conversation,
        truncated=answer.truncated or passages != answer.passages or conversation != whole,
    )


def _first(texts: Sequence[str]) -> tuple[str, ...]:
    """Returns the first MOST_CHARACTERS of texts, the last of which may be truncated."""
    found, left = [], MOST_CHARACTERS
    for text in texts:
        if left <= 0:
            break
        found.append(text[:left])
        left -= len(text)
    return tuple(found)


def _last(texts: Sequence[str]) -> tuple[str, ...]:
    """Returns the last MOST_CHARACTERS of texts, the first of which may be truncated."""
    return tuple(text[::-1] for text in _first([text[::-1] for text in reversed(texts)]))[::-1]


@lru_cache(maxsize=2_048)
def sentences(text: str) -> tuple[Sentence, ...]:
    """Splits a text into sentences with their values; each line ends a sentence."""
    text = unnumbered(text)
    language = language_among(text, LANGUAGES) or "en"
    values, known = read(text, language), tables(language)
    ends = [end.end() for end in _SENTENCE_END.finditer(text)]
    ends = [end for end in ends if not any(value.start < end < value.end for value in values)]
    parts, start = [], 0
    for end in (*ends, len(text)):
        own = tuple(value for value in values if start <= value.start < end)
        part, rest, at = text[start:end], "", start
        for value in own:
            rest += f"{text[at : value.start]} "
            at = max(value.end, at)
        rest += text[at:end]
        if part.strip():
            names = frozenset[str]() if language in _NO_NAMES else frozenset(_NAME.findall(rest))
            is_vague = not known.vague.isdisjoint(_ANY_WORD.findall(rest.casefold()))
            parts.append(Sentence(part, own, _stems(rest), names, is_vague, language))
        start = end
    return tuple(parts)
