"""Reads documents with headings as questions and answers: the text under a heading answers it."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import yaml

_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_LINE_OF_LIST = re.compile(r"[ \t]*([-*+>|]|[0-9]+[.)])")
_KEY = re.compile(r"[\w-]+:(?:\s|$)")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")


def sections(lines: Iterable[str], most: int) -> Iterator[dict[str, Any] | str]:
    """Yields each section that has text as `question`, `answer` and `context`, or the reason it cannot be used.

    A heading is a line that starts with #, or one underlined with === or ---. The question is the heading alone if it
    ends with ?, else all headings down to it, joined by colons. Answer and context are the text under it. Code blocks
    hold no headings, and front matter at the top is skipped. At most `most` characters of a section are read.
    Source: https://spec.commonmark.org/0.31.2
    """
    headings: list[str] = []
    text: list[str] = []
    fence, size = "", 0
    for line in _without_metadata(lines, most):
        line = line.rstrip("\r\n")
        if mark := _FENCE.match(line):
            if not fence:
                fence = mark[1]
            elif mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = ""
        heading = None if fence else _HEADING.match(line)
        under = None if fence or heading else _UNDERLINE.match(line)
        if heading:
            level, title = len(heading[1]), _title(line[heading.end() :].strip())
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


def _title(text: str) -> str:
    """Returns the text of a heading without the # that may close it, after a blank."""
    bare = text.rstrip("#")
    return text if bare[-1:].strip() else bare.rstrip()


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


def _without_metadata(lines: Iterable[str], most: int) -> Iterator[str]:
    """Yields the lines without front matter: a mapping in YAML between --- at the top, of at most `most` characters.

    Without it, --- at the top is a thematic break, which has no text.
    """
    rest, block, size = iter(lines), list[str](), 0
    if (first := next(rest, "")).rstrip() != "---":
        yield from chain([first], rest)
        return
    for line in rest:
        block.append(line)
        size += len(line)
        if size > most or line.rstrip() in ("---", "..."):
            break
    yield from chain([] if _is_front_matter(block) else block, rest)


def _is_front_matter(block: list[str]) -> bool:
    """Whether lines after --- are front matter and its end. YAML's errors, such as `title: Returns: sofas`, are common
    there: then they are if they begin with a key and none is empty.
    """
    if not block or block[-1].rstrip() not in ("---", "..."):
        return False
    text = "".join(block[:-1])
    try:
        return not text.strip() or isinstance(yaml.compose(text, yaml.SafeLoader), yaml.MappingNode)
    except (yaml.YAMLError, RecursionError):
        return _KEY.match(text) is not None and all(line.strip() for line in block)
