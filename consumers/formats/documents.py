"""Reads documents with headings as questions and answers: the text under a heading answers it."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t#]*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_LINE_OF_LIST = re.compile(r"[ \t]*([-*+>|]|[0-9]+[.)])")
_FENCE = re.compile(r" {0,3}(```|~~~)")


def sections(lines: Iterable[str], most: int) -> Iterator[dict[str, Any] | str]:
    """Yields each section that has text as `question`, `answer` and `context`, or the reason it cannot be used.

    A heading is a line that starts with #, or one underlined with === or ---. The question is the heading alone if it
    ends with ?, else all headings down to it, joined by colons. Answer and context are the text under it. Code blocks
    hold no headings, and front matter between --- at the top is skipped. At most `most` characters of a section are
    read.
    """
    headings: list[str] = []
    text: list[str] = []
    fence, size = "", 0
    for line in _without_metadata(lines):
        line = line.rstrip("\r\n")
        opened = _FENCE.match(line)
        if opened and fence in ("", opened[1]):
            fence = "" if fence else opened[1]
        heading = None if fence else _HEADING.match(line)
        under = None if fence or heading else _UNDERLINE.match(line)
        if heading:
            level, title = len(heading[1]), heading[2].strip()
        elif under and text and _may_be_heading(text[-2:]):
            level, title = (1 if under[1].startswith("=") else 2), text.pop().strip()
        else:
            size += len(line)
            if size <= most:
                text.append(line)
            continue
        yield from _section(headings, text, size > most)
        headings = [*(headings + [""] * 6)[: level - 1], title]
        text, size = [], 0
    yield from _section(headings, text, size > most)


def _may_be_heading(lines: list[str]) -> bool:
    """Whether the last line is a paragraph of its own, which an underline makes a heading."""
    alone = len(lines) == 1 or not lines[0].strip()
    return alone and bool(lines[-1].strip()) and not _LINE_OF_LIST.match(lines[-1])


def _section(headings: list[str], text: list[str], cut: bool) -> Iterator[dict[str, Any] | str]:
    answer = "\n".join(text).strip()
    path = [heading for heading in headings if heading]
    if not answer and not cut:
        return
    if not path:
        yield f"text before the first heading (# Heading) answers no question: {answer[:60]}"
        return
    if cut:
        yield f"the text under {path[-1][:60]} is longer than an event may be (ingest.max_event_bytes)"
        return
    question = path[-1] if path[-1].endswith("?") else ": ".join(path)
    yield {"question": question, "answer": answer, "context": [answer]}


def _without_metadata(lines: Iterable[str]) -> Iterator[str]:
    metadata = False
    for number, line in enumerate(lines):
        mark = line.strip() == "---"
        if mark and (number == 0 or metadata):
            metadata = number == 0
        elif not metadata:
            yield line
