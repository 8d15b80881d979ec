"""Which answers refuse: an exam of labelled answers in nine languages."""

import json
import time
from pathlib import Path

import duckdb
import pytest

from retuned.consumers.common.refusals import QUOTED, only_refuses, pattern, refuses

EXAM = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "refusals.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize(
    ("held_out", "missed", "refusals"), [(False, 1, 96), (True, 28, 97)], ids=["tuned on", "held out"]
)
def test_refusals_are_found_and_polite_or_negative_answers_are_none(held_out: bool, missed: int, refusals: int) -> None:
    """By authors who did not know the list. It was written for one half, and never changed for the other."""
    half = [row for row in EXAM if row["held_out"] == held_out]
    found = [row["text"] for row in half if refuses(row["text"])]
    wanted = [row["text"] for row in half if row["refuses"]]
    assert [text for text in found if text not in wanted] == []
    assert (len(wanted) - len(found), len(wanted)) == (missed, refusals)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry for the delay. Your parcel arrives on Monday.",
        "I am afraid the fee is 5 euros.",
        "Sale items cannot be returned.",
        "You do not have to pay.",
        "I can tell you: 30 days.",
        "If you do not know your PIN, ask for a new one.",
        "Lo siento por la espera. Su pedido llega mañana.",
    ],
)
def test_an_apology_and_a_negative_answer_are_no_refusal(text: str) -> None:
    assert not refuses(text)


def test_the_warehouse_finds_what_python_finds() -> None:
    query = """
        SELECT text, regexp_matches(
            regexp_replace(replace(replace(strip_accents(lower(text)), 'ß', 'ss'), '’', ''''), $quoted, '', 'g'),
            $refusal
        )
        FROM (SELECT unnest($texts) AS text)
    """
    texts = [text for row in EXAM for text in (row["text"], row["text"].upper())]
    with duckdb.connect() as connection:
        found = connection.execute(query, {"texts": texts, "quoted": QUOTED, "refusal": pattern()}).fetchall()
    assert found == [(text, refuses(text)) for text in texts]


def test_an_answer_only_refuses_if_nothing_but_questions_and_courtesies_stands_beside() -> None:
    assert only_refuses("Hello! I'm sorry, I can't help with that. Is there anything else?")
    assert not only_refuses("I can't help with that. Our shop opens at 9.")
    assert not only_refuses("How are you?")


@pytest.mark.parametrize("text", ["I cannot " * 20_000, "ich kann " * 20_000, '"' * 20_000, "无法" * 20_000])
def test_a_long_answer_is_read_in_time_that_grows_with_its_length(text: str) -> None:
    began = time.process_time()
    refuses(text)
    short = time.process_time() - began
    began = time.process_time()
    refuses(text * 2)
    assert time.process_time() - began < 20 * short + 1
