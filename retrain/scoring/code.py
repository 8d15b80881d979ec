"""The metric `code`: programs and queries, compared by their tokens."""

import re
import textwrap
from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any

from retuned.retrain.scoring.score import Metric, Score

Token = tuple[str, str]
"""Kind (name, keyword, operator, number, string, space, indent or other) and text."""

_FENCE = re.compile(r"\s*(?:```|~~~)[ \t]*+(\w*+)[^\n]*\n(.*?)(?:\n[ \t]*|(?<![ \t])[ \t]*)(?:```|~~~)\s*", re.DOTALL)
_SQL = re.compile(
    r"\s*(?:select\b.+\bfrom|insert\s+into|update\s+\S+\s+set|delete\s+from|with\s+\w+\s+as\s*\(|(?:create|alter|drop)\s+(?:or\s+replace\s+)?"
    r"(?:temp\w*\s+|unique\s+)?(?:table|view|index|database|schema|function))\b",
    re.IGNORECASE | re.DOTALL,
)
_PYTHON = re.compile(
    r"^[ \t]*(?:def \w+\(.*|class \w.*|(?>for \w.*? in ).+|while .+|if .+):[ \t]*(?:#.*)?$", re.MULTILINE
)
_LINE = re.compile(
    r"(?:[{}()\[\];]+|(?:def|class|import|from|return|for|while|if|elif|else|try|except|const|let|var|func|fn|public|private"
    r"|package|use|using|#include|export|async|await)\b.*[:;{(\])}\"']|@\w+.*|(?://|#!|/\*).*"
    r"|[\w.\[\]\"']+\s*(?:[-+*/|&%:]?=(?!=)|\+\+|--)\s*\S.*|[\w.]+\(.*\)\s*[;{:]?|.*(?:;|\{|=>|->|\|\|?|&&))"
)
_MARKDOWN = re.compile(r"(?:[-*+•>]|\d+[.)]|#{1,6})\s+\S.*|\|.*\||\*\*\S.*\*\*.*")
_PROSE = re.compile(r"(?<![^\W\d_])[^\W\d_]{2,}(?:,? [^\W\d_]{2,}){5}[.!?]$")
_MOST = 0.6
_LITERALS = frozenset({"number", "string"})
_WHITE = frozenset({"space", "indent"})
_LOOSE = {"===": "==", "!==": "!="}
"""Operators that differ in what they convert. Both may do the same."""
_QUOTES_ALIKE = frozenset({"Python", "JavaScript", "TypeScript"})
_FREE_FORM = frozenset({"C", "C++", "C#", "Java", "JSON", "Rust", "SQL", "MySQL", "PL/pgSQL", "PostgreSQL SQL dialect"})
"""Languages in which white space only separates tokens. CSS is none: `a .b` is not `a.b`."""
_BY_LINES = frozenset({"Go", "JavaScript", "Python", "TypeScript"})
"""Languages in which white space only separates tokens, except for line ends and, in Python, indentation."""
_WORD = re.compile(r"(?<!\\)(?:\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*')|\w+|[^\w\s]")
_LANGUAGES = {"py": "python", "js": "javascript", "ts": "typescript", "sh": "bash", "postgresql": "sql"}


class Code(Metric):
    """The metric: 1 for the same tokens, 0 if one token or only literals differ, else it abstains.

    It ignores comments, a code fence and the case of SQL, and white space in languages in which it means nothing. In
    Python, indentation is syntax. It abstains on programs with a different structure, with different white space in
    other languages, or with several different names or operators: they may do the same.
    """

    name = "code"
    meaning = "1 for the same code by its tokens, 0 if one token or only literals differ, else not judged"
    in_words = False
    one_right = True

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        same, reason = compared_code(answer, approved)
        return Score(None if same is None else float(same), reason)

    def compare(self, one: str, other: str) -> bool | None:
        return compared_code(one, other)[0]

    def key(self, answer: str) -> Hashable:
        return code_tokens(answer) or answer.strip()


def is_code(text: str) -> bool:
    """Returns whether a text is code, with or without a code fence."""
    if (fenced := _FENCE.fullmatch(text)) is not None:
        return fenced[1].casefold() not in ("json", "text", "txt", "markdown", "md")
    if _SQL.match(text):
        return _PROSE.search(text.strip()) is None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return bool(lines) and sum(map(_is_line, lines)) >= _MOST * len(lines)


def _is_line(line: str) -> bool:
    """Returns whether a line is code by its form. Lists, tables and headings of Markdown are none."""
    return _MARKDOWN.fullmatch(line) is None and _LINE.fullmatch(line) is not None


@lru_cache(maxsize=4_096)
def code_tokens(text: str, beside: str = "") -> tuple[Token, ...]:
    """Returns the tokens of code, by pygments if its language is known, else by their form.

    Args:
        beside: the code with which it is compared, which has the same language.
    """
    fenced = _FENCE.fullmatch(text)
    body = textwrap.dedent(fenced[2] if fenced else text).strip("\n")
    language = _language(text) or _language(beside)
    lexed = _lexed(body, language) if language else _by_form(body)
    while lexed and (lexed[-1][0] in _WHITE or lexed[-1][1] == ";"):
        lexed.pop()
    return tuple(lexed)


def _language(text: str) -> str:
    """Returns the language of a code fence, or SQL or Python by their form; empty if it is unknown."""
    fenced = _FENCE.fullmatch(text)
    language, body = (fenced[1].casefold(), fenced[2]) if fenced else ("", text)
    return language or ("sql" if _SQL.match(body) else "python" if _PYTHON.search(body) else "")


def _lexed(body: str, language: str) -> list[Token]:
    from pygments.lexers import get_lexer_by_name
    from pygments.token import Comment, Keyword, Name, Number, Operator, Other, Punctuation, String
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(_LANGUAGES.get(language, language), stripnl=False)
    except ClassNotFound:
        return _by_form(body)
    kinds = {Name: "name", Keyword: "keyword", Operator: "operator", Number: "number", Punctuation: "operator"}
    kinds[String.Doc] = "doc"
    quoted = _quoted if lexer.name in _QUOTES_ALIKE else str.strip
    sql = "SQL" in lexer.name
    lexed: list[Token] = []
    white, text = "\n", ""  # since the last token
    before = kind = Comment
    for following, part in lexer.get_tokens(body):
        if following is Other:  # it is not in the language of the fence alone: PHP in a page, for example
            return _by_form(body)
        before, kind = kind, following
        if kind in String and kind not in String.Doc:
            if not text:
                lexed += _spaced(white, lexer.name)
                white = ""
            text += part  # pygments splits strings at quotes and escapes
            continue
        if kind in String.Doc and lexer.name == "Python":  # any string at the beginning of a line: see `_by_depth`
            part, text = text + part, ""
        elif kind in String.Doc:
            kind = Comment
        if text:
            lexed.append(("string", quoted(text)))
            text = ""
        if kind in Comment and kind not in Comment.Preproc and kind not in Comment.PreprocFile:
            white += "\n" if "\n" in part else ""
            continue
        word = part.strip()
        if not word:
            white += part
            continue
        start = part.index(word)
        lexed += _spaced(white + part[:start], lexer.name)
        white = part[start + len(word) :]
        if lexer.name in _FREE_FORM:
            word = " ".join(word.split())
        named = next((name for known, name in kinds.items() if kind in known), "other")
        if kind in Operator and before in Operator:
            word = lexed.pop()[1] + word  # some lexers split !=
        if sql:
            word = "!=" if word == "<>" else word.casefold()
        lexed.append((named, word))
    if text:
        lexed.append(("string", quoted(text)))
    return _by_depth(lexed) if lexer.name == "Python" else lexed


def _by_form(body: str) -> list[Token]:
    lexed: list[Token] = []
    end = 0
    for found in _WORD.finditer(body):
        part = found[0]
        lexed += _spaced(body[end : found.start()] if lexed else "\n" + body[: found.start()])
        end = found.end()
        if part[0] in "\"'" and len(part) > 1:
            lexed.append(("string", part))
        else:
            named = "number" if part[0].isdigit() else "name" if part[0].isalpha() or part[0] == "_" else "operator"
            lexed.append((named, part))
    return lexed


def _spaced(white: str, language: str = "") -> list[Token]:
    """Returns the token of the white space before another token, if it may mean something in the language.

    It is the indentation after the last line end, or the space within a line. Trailing spaces and empty lines mean
    nothing.
    """
    if not white or language in _FREE_FORM:
        return []
    _, line, after = white.rpartition("\n")
    if language not in _BY_LINES:
        return [("space", line + after)]
    if not line:
        return []
    return [("indent", after) if language == "Python" else ("space", line)]


def _by_depth(lexed: list[Token]) -> list[Token]:
    """Replaces the widths of Python's indentation by its depths, and leaves it out inside brackets. Leaves docstrings
    out, which are the first statement of a body; any other string counts.
    """
    widths, found, opened = [0], list[Token](), 0
    for place, (kind, text) in enumerate(lexed):
        if kind == "doc":
            ends_line = place + 1 == len(lexed) or lexed[place + 1][0] == "indent"
            of_module = len(found) == 1 and place + 1 < len(lexed)
            if ends_line and (of_module or (opened <= 0 and found[-2:-1] == [("operator", ":")])):
                found.pop()  # its indentation
                continue
            kind = "string"
        if kind == "operator":
            opened += sum(text.count(bracket) for bracket in "([{") - sum(text.count(bracket) for bracket in ")]}")
        if kind != "indent":
            found.append((kind, text))
        elif opened <= 0:
            width = len(text.expandtabs())
            while widths[-1] > width:
                widths.pop()
            if widths[-1] < width:
                widths.append(width)
            found.append((kind, " " * (len(widths) - 1)))
    return found


def _quoted(text: str) -> str:
    """Writes a string with single quotes, if its content allows it."""
    inner = re.fullmatch(r"(\w*)\"([^\"'\\]*)\"", text.strip(), re.DOTALL)
    return f"{inner[1]}'{inner[2]}'" if inner else text.strip()


def compared_code(answer: str, approved: str) -> tuple[bool | None, str]:
    """Returns whether two texts are the same code, and what differs; None if that cannot be determined."""
    wanted = code_tokens(approved, answer)
    given = code_tokens(answer, approved)
    if (given and given == wanted) or answer.strip() == approved.strip():
        return True, ""
    if not (is_code(answer) and is_code(approved)):
        return None, "one of the answers is not code alone"
    if [kind for kind, _ in given] != [kind for kind, _ in wanted]:
        return None, "the code is built differently"
    pairs = [(one, other) for one, other in zip(given, wanted, strict=True) if one != other]
    if all(_alike(one, other) for one, other in pairs):
        return None, "only white space, quotes, the strictness of comparisons or the notation of numbers differs"
    if len(pairs) > 1 and any(kind not in _LITERALS for (kind, _), _ in pairs):
        return None, "several names or operators differ"
    (kind, given_text), (_, wanted_text) = pairs[0]
    return False, "another indentation" if kind == "indent" else f"{given_text} in place of {wanted_text}"


def _alike(one: Token, other: Token) -> bool:
    """Returns whether two tokens of one kind differ in nothing but a form that means something in some languages."""
    return one[0] == "space" or _by_content(one) == _by_content(other)


def _by_content(token: Token) -> str:
    kind, text = token
    if kind in _LITERALS:
        return text.replace('"', "'") if kind == "string" else text.replace("_", "")
    return " ".join(text.split()) if kind == "other" else _LOOSE.get(text, text)
