"""The labelled strings of tests/data: what must go from a text, and texts from which nothing may go. All invented.

`held_out_privacy.jsonl` is by another writer, who had not seen the patterns. What was found when it was first tried
(docs/data-and-privacy.md) is the honest figure; words of more languages were added to the patterns for it afterwards.

Of the strings, those with `written: before` were written and committed before the patterns were changed for them, those
with `after` once the patterns were done; nothing was changed for the latter, so their recall is the honest one. Of the
ordinary texts, patterns were corrected for six of the first 86; nothing was changed for the last 20.
"""

import json
import re
from collections import Counter
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retuned.consumers.formats.users import Pseudonyms
from retuned.consumers.privacy.redactor import Redactor

HOSTILE = [
    "a", "a.", "a@", "a@b.", "1", "1 ", "0 1", "01", "+1", "(0", "DE89 ", "de89-", "4111 1111 1111 1111 ", "1.1.",
    "a:", "::1", "password=", "password is ", "a_b_c_", "token ", "://", "://a:", "eyJ", "eyJaaaaaaaa.",
    "-eyJaaaaaaaa", "sk-", "Bearer ", "Bearer a", "-----BEGIN PRIVATE KEY", "-----BEGIN PRIVATE KEY-----", "'@'",
    "1-", "A1", "ABCDEF", "AB12", "123-", "-@.", "%", "\u00a0", "a dot ", "a (at) ", "a at b dot ", "a%40", "%40",
    "[dot]", "a[at]b", "curl -", "curl -u ", "Cookie: ", "Cookie: a=b; ", "cookie=a;", "?token=", "?a=1&",
    "&sig=aaaaaaa1", "aB3", "aB3-", "AKIA", "pin is ", "pin a a ", "passport ", "passport no. ", "SSN 1", "SSN: AB",
    "tel 98453207180 ", "call (11) 98231-4407 ", "+1 ", "order 1234567890 ", "12345678 ", "a1:", "a1-", "12:34:",
    "a1b2.", "IBAN", "DE 12 ", "--password ", "_session=", "<EMAIL_1>", "<\x000>", "_1>", "npm_", "SG.a.",
    "version 1.1.1.1 ", "s3 ", "ext. ", '"password": "', '"password":"aaaa', "newPassword=", "aPassword", "pw",
    "secret.a.b.", "token_count", "security_code", "ssn_no_", "passportNumber", '"nif": 1', "order_id_id_", "telTel",
    "メール@", "a@メ.", "1ー", "a\u0301", "a\u200b", "１", "–", "<\x00", "[", '{"a":', '\\"', "9999999999 call ",
    "パスワードはa1",
]  # fmt: skip
"""Pieces of texts, each of which a pattern begins to read again and again where it is repeated."""

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Labelled:
    """A text, and the part of it that must go."""

    kind: str
    text: str
    gone: str
    written: str


def labelled() -> list[Labelled]:
    return [Labelled(**json.loads(line)) for line in _lines("personal_data.jsonl")]


def ordinary() -> list[str]:
    return [json.loads(line)["text"] for line in _lines("ordinary_texts.jsonl")]


def _lines(name: str) -> list[str]:
    return (DATA / name).read_text(encoding="utf-8").splitlines()


def is_gone(item: Labelled, redacted: str) -> bool:
    """Whether no word or number of what must go, of three characters or more, is left. Any placeholder counts."""
    pieces = re.findall(r"[^\W_]{3,}", item.gone) or [item.gone]
    return all(redacted.count(piece) <= item.text.count(piece) - item.gone.count(piece) for piece in pieces)


def recall(redactor: Redactor) -> tuple[Counter[str], Counter[str]]:
    """Strings found, and strings in all: by kind, by half, and over all; names of people are in no sum."""
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for item in labelled():
        groups = [item.kind] if item.kind == "NAME" else [item.kind, item.written, "all"]
        total.update(groups)
        if is_gone(item, redactor.text(item.text)):
            found.update(groups)
    return found, total


def held_out(redactor: Redactor) -> tuple[Counter[str], Counter[str]]:
    """What is right and what there is in all, in texts and events of somebody who did not know the patterns: by kind,
    `personal` strings that are gone; and `keep`, strings that are left. Postal addresses, of which none is found, are
    in no sum."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    users = Pseudonyms(lambda user: f"0000:{abs(hash(user)):032x}")
    for line in map(json.loads, _lines("held_out_privacy.jsonl")):
        told = line["text"] if "text" in line else line["event"]
        texts = _texts(redactor.value(told, users=users))
        groups = [line["kind"]] if line["kind"] == "address" else [line["kind"], "personal"]
        for personal in line["personal"]:
            total.update(groups)
            right.update(groups if all(str(personal) not in text for text in texts) else [])
        for kept in line["keep"]:
            total["keep"] += 1
            right["keep"] += any(str(kept) in text for text in texts)
    return right, total


def _texts(value: Any) -> list[str]:
    """All that a value holds, in JSON within texts too."""
    if isinstance(value, dict):
        return [*value, *(text for item in value.values() for text in _texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    texts = [value if isinstance(value, str) else json.dumps(value)]
    if texts[0].startswith(("{", "[")):
        with suppress(ValueError):
            texts += _texts(json.loads(texts[0]))
    return texts


def redacted_columns(redactor: Redactor, texts: dict[str, Any], json: Set[str], *ids: Any) -> dict[str, Any]:
    """Columns of one batch of events, redacted; ids of the events and, unless it is feedback, of conversations."""
    found = redactor.take_out(texts, json, *ids)
    redactor.number([found])
    return found.columns()
