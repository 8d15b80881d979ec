"""Conversations that are longer than a model is to read: what is left out, what never is, and what is counted."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fixtures.models.trainings import SETTINGS, rows, trained
from retuned.retrain.training.base_model import load_tokenizer
from retuned.retrain.training.batches import TooLong, encode, encode_all

SYSTEM = {"role": "system", "content": "answer for the free store"}
OLD = [
    {"role": role, "content": f"{role} said {place} " + "please " * 20}
    for place in (1, 2)
    for role in ("user", "assistant")
]
ASKED = {"role": "user", "content": "how long do i have to return the lamp"}
PASSAGES = ["a lamp can be returned within 14 days", "delivery " * 30, "a gift card is 5 euro " * 9]


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return load_tokenizer(base)


def row(
    messages: list[dict[str, str]], passages: list[str] | None = None, answer: str = "you have 14 days"
) -> dict[str, Any]:
    context = json.dumps(passages) if passages else None
    return {"row_id": "r", "messages": json.dumps(messages), "completion": answer, "context": context}


LONG = row([SYSTEM, *OLD, ASKED], PASSAGES)


@pytest.mark.parametrize(
    "left",
    [
        row([SYSTEM, *OLD[2:], ASKED], PASSAGES),
        row([SYSTEM, ASKED], PASSAGES),
        row([SYSTEM, ASKED], PASSAGES[:2]),
        row([SYSTEM, ASKED], PASSAGES[:1]),
    ],
)
def test_the_oldest_turns_go_first_and_then_whole_passages_from_the_end(tokenizer: Any, left: dict[str, Any]) -> None:
    expected = encode(tokenizer, left, 10_000)
    cut = encode(tokenizer, LONG, len(expected))
    assert (cut.prompt, cut.completion) == (expected.prompt, expected.completion)
    assert (cut.cut, expected.cut) == (True, False)
    assert len(encode(tokenizer, LONG, len(expected) + 5)) <= len(expected) + 5


def test_what_instructs_the_question_one_passage_and_the_answer_are_never_cut(tokenizer: Any) -> None:
    least = len(encode(tokenizer, row([SYSTEM, ASKED], PASSAGES[:1]), 10_000))
    prompt = tokenizer.decode(encode(tokenizer, LONG, least).prompt)
    assert prompt.startswith("<|im_start|>system\nanswer for the free store<|im_end|>")
    assert prompt.endswith("return the lamp<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(TooLong, match=f"at least {least} tokens, {least - 1} fit"):
        encode(tokenizer, LONG, least - 1)
    short = row([ASKED])
    assert encode_all(tokenizer, [LONG, short], least - 1) == [encode(tokenizer, short, 1_024)]


def test_passages_of_turns_that_are_left_out_go_with_the_question(tokenizer: Any) -> None:
    shown = [{"role": "user", "content": f"use this: {PASSAGES[0]} and this: {PASSAGES[1]}"}, OLD[1]]
    for passages in (PASSAGES[:2], PASSAGES[:1]):
        expected = encode(tokenizer, row([SYSTEM, ASKED], passages), 10_000)
        cut = encode(tokenizer, row([SYSTEM, *shown, ASKED], PASSAGES[:2]), len(expected))
        assert (cut.prompt, cut.cut) == (expected.prompt, True)


def test_calls_and_results_after_the_question_stay_with_it(tokenizer: Any) -> None:
    called = [{"role": "assistant", "content": "let me see"}, {"role": "tool", "content": "14 days"}]
    whole = encode(tokenizer, row([ASKED, *called]), 10_000)
    assert encode(tokenizer, row([*OLD, ASKED, *called]), len(whole)).prompt == whole.prompt


def lengthy(folder: Path, long: int) -> Path:
    """Twenty rows to train on, some of which are too long; of the others one must be cut."""
    folder.mkdir()
    table = rows(20)
    for one in table[:long]:
        one["messages"] = json.dumps([{"role": "user", "content": "how long " * 200}])
    table[-1]["messages"] = json.dumps(
        [{"role": "user", "content": "please " * 200}, {"role": "assistant", "content": "x"}, ASKED]
    )
    pq.write_table(pa.Table.from_pylist(table), folder / "train.parquet")
    return folder


def test_rows_that_do_not_fit_are_counted_and_too_many_are_refused(base: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"max_length": 100, "epochs": 1})
    lines = list[dict[str, Any]]()
    found = trained(base, lengthy(tmp_path / "few", 4), tmp_path / "one", settings, emit=lines.append)
    assert (found["rows_cut"], found["rows_too_long"]) == (1, 4)
    assert (lines[0]["rows_cut"], lines[0]["rows_too_long"]) == (1, 4)
    refused = trained(base, lengthy(tmp_path / "many", 5), tmp_path / "other", settings)
    assert refused.keys() == {"too_long"}
    assert refused["too_long"].startswith("5 of 20 rows do not fit train.max_length (100 tokens)")
    assert "raise train.max_length" in refused["too_long"]
