"""The metric `code`: programs and queries, compared by their tokens."""

import re
import textwrap
from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any

from retuned.retrain.scoring.score import Metric, Score

Token = tuple[str, str]
"""Kind (name, keyword, operator, number, string, indent or other) and text."""

_FENCE = re.compile(r"\s*(?:```|~~~)[ \t]*(\w*)[^\n]*\n(.*?)\n?[ \t]*(?:```|~~~)\s*", re.DOTALL)
_SQL = re.compile(
    r"\s*(?:select\b.+\bfrom|insert\s+into|update\s+\S+\s+set|delete\s+from|with\s+\w+\s+as\s*\(|(?:create|alter|drop)\s+(?:or\s+replace\s+)?"
    r"(?:temp\w*\s+|unique\s+)?(?:table|view|index|database|schema|function))\b",
    re.IGNORECASE | re.DOTALL,
)
_LINE = re.compile(
    r"^\s*(?:[{}()\[\];]+|(?:def|class|import|from|return|for|while|if|elif|else|try|except|const|let|var|func|fn|public|private"
    r"|package|use|using|#include|export|async|await)\b.*[:;{(\])}\"']|@\w+.*|(?://|#!|/\*).*"
    r"|[\w.\[\]\"']+\s*(?:[-+*/|&%:]?=(?!=)|\+\+|--)\s*\S.*|[\w.]+\(.*\)\s*[;{:]?|.*(?:;|\{|=>|->|\|\|?|&&)\s*)$"
)
_PROSE = re.compile(r"[^\W\d_]{2,}(?:,? [^\W\d_]{2,}){5,}[.!?]$")
_MOST = 0.6
_LITERALS = frozenset({"number", "string"})
_SAME_OPERATORS = {"<>": "!=", "===": "=="}
_QUOTES_ALIKE = frozenset({"Python", "JavaScript", "TypeScript"})
_WORD = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|\w+|[^\w\s]+?|\n[ \t]*")
_LANGUAGES = {"py": "python", "js": "javascript", "ts": "typescript", "sh": "bash", "postgresql": "sql"}


class Code(Metric):
    """The metric: 1 for the same tokens, 0 if one token or only literals differ, else it abstains.

    It ignores white space, comments, a code fence and the case of SQL. Indentation counts if it is syntax. It abstains
    on programs with a different structure or with several different names or operators: they may do the same.
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
        return code_tokens(answer)


def is_code(text: str) -> bool:
    """Returns whether a text is code, with or without a code fence."""
    if (fenced := _FENCE.fullmatch(text)) is not None:
        return fenced[1].casefold() not in ("json", "text", "txt", "markdown", "md")
    if _SQL.match(text):
        return _PROSE.search(text.strip()) is None
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and sum(bool(_LINE.match(line)) for line in lines) >= _MOST * len(lines)


@lru_cache(maxsize=4_096)
def code_tokens(text: str) -> tuple[Token, ...]:
    """Returns the tokens of code, by pygments if its language is known, else by their form."""
    fenced = _FENCE.fullmatch(text)
    language, body = (fenced[1].casefold(), fenced[2]) if fenced else ("", text)
    body = textwrap.dedent(body).strip("\n")
    language = "sql" if not language and _SQL.match(body) else language
    lexed = _lexed(body, language) if language else _by_form(body)
    while lexed and (lexed[-1][0] == "indent" or lexed[-1][1] == ";"):
        lexed.pop()
    return tuple(lexed)


def _lexed(body: str, language: str) -> list[Token]:
    from pygments.lexers import get_lexer_by_name
    from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(_LANGUAGES.get(language, language), stripnl=False)
    except ClassNotFound:
        return _by_form(body)
    kinds = {Name: "name", Keyword: "keyword", Operator: "operator", Number: "number", Punctuation: "operator"}
    quoted = _quoted if lexer.name in _QUOTES_ALIKE else str.strip
    indented, sql = lexer.name == "Python", "SQL" in lexer.name
    lexed: list[Token] = []
    text = ""
    before = kind = Comment
    for following, part in lexer.get_tokens(body):
        before, kind = kind, following
        if kind in String and kind not in String.Doc:
            text += part  # pygments splits strings at quotes and escapes
            continue
        if text:
            lexed.append(("string", quoted(text)))
            text = ""
        if kind in Comment or kind in String.Doc or not part.strip():
            if indented and "\n" in part:
                lexed = [*(lexed[:-1] if lexed and lexed[-1][0] == "indent" else lexed), ("indent", "")]
            elif indented and lexed and lexed[-1][0] == "indent":
                lexed[-1] = ("indent", part)
            continue
        named = next((name for known, name in kinds.items() if kind in known), "other")
        word = part.strip().casefold() if sql else part.strip()
        if kind in Operator and before in Operator:
            word = lexed.pop()[1] + word  # some lexers split !=
        lexed.append((named, _SAME_OPERATORS.get(word, word)))
    if text:
        lexed.append(("string", quoted(text)))
    return lexed


def _by_form(body: str) -> list[Token]:
    lexed: list[Token] = []
    braces = "{" in body or ";" in body
    for part in _WORD.findall(body):
        if part[0] == "\n":
            if not braces:
                lexed = [*(lexed[:-1] if lexed and lexed[-1][0] == "indent" else lexed), ("indent", part[1:])]
        elif part[0] in "\"'" and len(part) > 1:
            lexed.append(("string", part))
        else:
            named = "number" if part[0].isdigit() else "name" if part[0].isalpha() or part[0] == "_" else "operator"
            lexed.append((named, part))
    return lexed


def _quoted(text: str) -> str:
    """Writes a string with single quotes, if its content allows it."""
    inner = re.fullmatch(r"(\w*)\"([^\"'\\]*)\"", text.strip(), re.DOTALL)
    return f"{inner[1]}'{inner[2]}'" if inner else text.strip()


def compared_code(answer: str, approved: str) -> tuple[bool | None, str]:
    """Returns whether two texts are the same code, and what differs; None if that cannot be determined."""
    wanted = code_tokens(approved)
    given = code_tokens(answer)
    if given == wanted or answer.strip() == approved.strip():
        return True, ""
    if not (is_code(answer) and is_code(approved)):
        return None, "one of the answers is not code alone"
    if [kind for kind, _ in given] != [kind for kind, _ in wanted]:
        return None, "the code is built differently"
    pairs = [(one, other) for one, other in zip(given, wanted, strict=True) if one != other]
    if len(pairs) > 1 and any(kind not in _LITERALS for (kind, _), _ in pairs):
        return None, "several names or operators differ"
    return False, f"{pairs[0][0][1]} in place of {pairs[0][1][1]}"
