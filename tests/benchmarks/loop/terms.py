"""Makes questions from real changes of real policies: which value changed, from what to what, on which day.

    git clone --bare https://github.com/OpenTermsArchive/pga-versions /tmp/pga
    python tests/benchmarks/loop/terms.py /tmp/pga > tests/benchmarks/loop/terms.jsonl

Procedure, without any choice by hand:

1. Each commit of the archive is one recorded change of one document, with its day. Its removed and its added lines are
   split into sentences, without Markdown. A sentence that is on both sides is dropped.
2. A removed and an added sentence are a pair if each is most like the other, by their words with a blank for each
   value, and at least LIKE of these words are the same.
3. A pair is kept if exactly one value differs: one number, amount of money, percentage or duration, by the product's
   own reader of values. Dates are not kept: nearly all are the day of the document's last update.
4. A change that is undone within 30 days is dropped with what undoes it: the page was served in two variants. The same
   change of the same sentence is kept once, also in several documents.
5. Numbering, dates, counters and names of files are dropped: a blank at the beginning or the end of a sentence, after a
   number and a dot or after "Section", sentences about an update, bare numbers of MOST_DIGITS digits or more, and all
   changes of a document in which more than MOST_CHANGES are left, which lists what counts on.
6. The question is the sentence with a blank for the value. The answers are the value before and the value after.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from difflib import SequenceMatcher
from pathlib import Path

from retuned.consumers.common.values.read import read
from retuned.consumers.common.values.value import Value, same

LIKE, MOST_DIGITS, MOST_CHANGES = 0.75, 5, 15
KINDS = ("number", "money", "percent", "duration")
UNDONE = timedelta(days=30)
SHORTEST, LONGEST = 6, 60
"""Words of a sentence."""
_POINTER = re.compile(
    r"\b(?:sections?|articles?|clauses?|paragraphs?|part|tier|step|chapter|version|v|annex|no|art)\W*$", re.I
)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_MARKS = re.compile(r"^\s*(?:[*+-]|\d{1,2}[.)]|#+|>|\|)\s+|[*_`|\\]+|<[^>]*>")
_NUMBERING = re.compile(
    r"^\W*_|[\dA-Z][.(]____|\b(?:sub)?(?:sections?|articles?)\b[^.]{0,60}____|[.…]{3}\W*____|____\W*$", re.I
)
_DATED = re.compile(r"©|copyright|\b(?:updated?|effective|version|date|mise à jour|stand)\b", re.I)
_END = re.compile(r"(?<=[.!?;:])\s+(?=[A-Z\"“(])")


def changes(archive: Path) -> Iterator[tuple[date, str, list[str], list[str]]]:
    """Yields day, document, removed and added lines of each commit, oldest first."""
    command = ["git", "-C", str(archive), "log", "--reverse", "-p", "-U0", "--no-merges", "--no-renames"]
    day, document = date.min, ""
    sides: tuple[list[str], list[str]] = ([], [])
    with subprocess.Popen([*command, "--format=@@@ %cs"], stdout=subprocess.PIPE) as log:
        assert log.stdout is not None
        for raw in log.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            if line.startswith(("@@@ ", "diff --git ")):
                if document and all(sides):
                    yield day, document, *sides
                document, sides = "", ([], [])
                day = date.fromisoformat(line[4:]) if line.startswith("@@@ ") else day
            elif line.startswith("+++ b/"):
                document = line[6:].strip().strip('"').removesuffix(".md")
            elif line.startswith(("+", "-")) and not line.startswith(("+++ ", "--- ")):
                sides[line[0] == "+"].append(line[1:])
    if document and all(sides):
        yield day, document, *sides


def sentences(lines: list[str]) -> Counter[str]:
    """The sentences of lines of Markdown."""
    found: Counter[str] = Counter()
    for line in lines:
        plain = " ".join(_MARKS.sub(" ", _LINK.sub(r"\1", line)).split())
        found.update(part for part in _END.split(plain) if SHORTEST <= len(part.split()) <= LONGEST)
    return found


def frame(sentence: str) -> tuple[str, tuple[Value, ...]]:
    """The sentence's words with blanks for its values, and these values."""
    values = tuple(value for value in read(sentence, "en") if value.kind in KINDS and not value.soft)
    return re.sub(r"[^a-z_]+", " ", blanked(sentence, values).lower()).strip(), values


def blanked(sentence: str, values: tuple[Value, ...]) -> str:
    """The sentence with a blank for each of these values."""
    for value in sorted(values, key=lambda one: one.start, reverse=True):
        sentence = sentence[: value.start] + "____" + sentence[value.end :]
    return sentence


def pairs(removed: list[str], added: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yields question, kind, value before and value after of each pair of sentences that differs in one value."""
    old, new = sentences(removed), sentences(added)
    framed = [
        {sentence: frame(sentence) for sentence in mine.keys() - other.keys()}
        for mine, other in ((old, new), (new, old))
    ]
    framed = [{sentence: one for sentence, one in side.items() if one[1]} for side in framed]
    for sentence, (words, after) in framed[1].items():
        earlier = nearest(words, framed[0])
        if earlier is None or nearest(framed[0][earlier][0], framed[1]) != sentence:
            continue
        before = framed[0][earlier][1]
        if len(before) != len(after):
            continue
        differ = [(a, b) for a, b in zip(before, after, strict=True) if same(a, b) is False]
        if len(differ) == 1 and differ[0][0].kind == differ[0][1].kind and not _points(sentence, differ[0][1]):
            yield blanked(sentence, (differ[0][1],)), differ[0][1].kind, differ[0][0].text, differ[0][1].text


def nearest(words: str, framed: Mapping[str, tuple[str, tuple[Value, ...]]]) -> str | None:
    """The sentence whose words are most like these; None: none has LIKE of them."""
    matcher = SequenceMatcher(b=words.split(), autojunk=False)
    best, most = None, LIKE
    for sentence, (other, _) in framed.items():
        matcher.set_seq1(other.split())
        if matcher.real_quick_ratio() >= most and matcher.quick_ratio() >= most and (ratio := matcher.ratio()) >= most:
            best, most = sentence, ratio
    return best


def _points(sentence: str, value: Value) -> bool:
    """Whether a number points to a part of the document, or to a version of it."""
    return _POINTER.search(sentence[: value.start]) is not None


def extract(archive: Path) -> list[dict[str, str]]:
    """The changes that the procedure keeps, oldest first."""
    found: list[dict[str, str]] = []
    for day, document, removed, added in changes(archive):
        for question, kind, before, after in pairs(removed, added):
            found.append(
                {
                    "day": str(day), "document": document, "kind": kind, "question": question, "before": before,
                    "after": after,
                }
            )  # fmt: skip
    return once(found)


def once(found: list[dict[str, str]]) -> list[dict[str, str]]:
    """Drops changes that were undone soon, what undid them, and repetitions."""
    dropped: set[int] = set()
    seen: set[tuple[str, ...]] = set()
    for place, change in enumerate(found):
        place_of = change["document"], frame(change["question"])[0]
        key = (change["question"], change["before"], change["after"])
        for later in range(place + 1, len(found)):
            other = found[later]
            if date.fromisoformat(other["day"]) - date.fromisoformat(change["day"]) > UNDONE:
                break
            undone = (other["before"], other["after"]) == (change["after"], change["before"])
            if undone and (other["document"], frame(other["question"])[0]) == place_of:
                dropped |= {place, later}
        if key in seen:
            dropped.add(place)
        seen.add(key)
    return [change for place, change in enumerate(found) if place not in dropped]


def facts(found: list[dict[str, str]]) -> list[dict[str, str]]:
    """Drops numbering, counters and names of files."""
    kept = [
        change
        for change in found
        if not _NUMBERING.search(change["question"])
        and not _DATED.search(change["question"])
        and (change["kind"] != "number" or max(map(_digits, (change["before"], change["after"]))) < MOST_DIGITS)
    ]
    per_document = Counter(change["document"] for change in kept)
    return [change for change in kept if per_document[change["document"]] <= MOST_CHANGES]


def _digits(text: str) -> int:
    return sum(sign.isdigit() for sign in text)


if __name__ == "__main__":
    for archive in sys.argv[1:]:
        for change in facts(extract(Path(archive))):
            print(json.dumps(change, ensure_ascii=False))
