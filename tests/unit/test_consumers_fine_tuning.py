"""Files of fine-tuning services: conversations with weights, preferences, and what becomes of them.

The rows are written by hand in the shapes of files that others published: OpenAI's cookbook (tools, older functions,
conversations of several turns), Fireworks' cookbook (sides with messages), the documentation of Azure and Together.
"""

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.traffic import BOUNDS
from fixtures.kafka.importing import House
from retuned.consumers.formats.dialects import decode_any
from retuned.consumers.formats.events import Feedback, Interaction
from retuned.consumers.formats.files import EventFile
from retuned.daemon.cli.main import main

SYSTEM = {"role": "system", "content": "You answer for a shop."}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def calls(name: str, arguments: str = "{}") -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


def read(tmp_path: Path, *rows: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """The events of rows in a file, and why its other rows are refused."""
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    records = [
        record for batch in EventFile(path, None, "support", 5_000_000).batches(None, 1_000) for record in batch.records
    ]
    refused = [str(record.problem) for record in records if record.problem is not None]
    parts = [
        part
        for record in records
        if record.problem is None
        for part in decode_any("interactions", record.value, (), BOUNDS)
    ]
    return parts, refused


def taught(parts: list[Any]) -> list[tuple[list[str], Any]]:
    """What is asked before each correction of an expert, and the correction."""
    asked = {
        part.id: [turn.get("content") for turn in json.loads(bytes(part.messages))]
        for part in parts
        if isinstance(part, Interaction)
    }
    return [
        (asked[part.interaction_id], json.loads(bytes(part.value)) if isinstance(part.value, bytes) else part.value)
        for part in parts
        if isinstance(part, Feedback) and (part.name, part.source) == ("correction", "expert")
    ]


def test_each_answer_of_a_conversation_is_a_demonstration_after_all_that_came_before(tmp_path: Path) -> None:
    parts, refused = read(tmp_path, {"messages": [SYSTEM, user("one"), says("1"), user("two"), says("2")]})
    assert refused == []
    system = SYSTEM["content"]
    assert taught(parts) == [([system, "one"], "1"), ([system, "one", "1", "two"], "2")]
    conversations = {part.conversation_id for part in parts if isinstance(part, Interaction)}
    assert len(conversations) == 1  # so both stand on one side of a split
    assert None not in conversations


def test_an_answer_of_weight_0_is_asked_about_and_not_taught(tmp_path: Path) -> None:
    turns = [user("one"), says("1", weight=0), user("two"), says("2", weight=1)]
    parts, refused = read(
        tmp_path,
        {"messages": turns},
        {"messages": [user("q"), says("a", weight=0)]},
        {"messages": [user("q"), says("a")], "weight": 0},
        {"messages": [user("q"), says("a", weight="much")]},
    )
    assert taught(parts) == [(["one", "1", "two"], "2")]
    assert b"weight" not in bytes(parts[0].messages)
    assert [reason.partition(":")[0] for reason in refused] == [
        "no answer is taught",
        "no answer is taught",
        "messages",
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "a", "weight": "0"},
        {"question": "q", "answer": "a", "helpful": True, "weight": 0.0},
        {"prompt": "q", "chosen": "good", "rejected": "bad", "weight": 0},
        {"prompt": "q", "chosen": says("good", weight=0), "rejected": says("bad")},
        {"messages": [user("q"), says("a")], "weight": "0.0"},
        {"messages": [user("q"), says("a", weight="0")]},
        {"messages": [user("q"), says("a", weight=0)], "label": True},
    ],
)
def test_a_row_of_weight_0_teaches_nothing_in_any_form(tmp_path: Path, row: dict[str, Any]) -> None:
    parts, refused = read(tmp_path, row)
    assert parts == []
    assert [reason.partition(":")[0] for reason in refused] == ["no answer is taught"]


def test_what_comes_before_the_first_question_is_a_greeting_and_no_answer(tmp_path: Path) -> None:
    parts, refused = read(
        tmp_path, {"messages": [says("Hello"), user("q"), says("a")]}, {"messages": [SYSTEM, says("a")]}
    )
    assert taught(parts) == [(["Hello", "q"], "a")]
    assert refused == ["no question: expected a message of the user before the answer"]


def test_tools_that_are_called_and_what_is_made_of_their_results_are_taught(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "order", "parameters": {}}}]
    turns = [user("q"), calls("order"), {"role": "tool", "tool_call_id": "c1", "content": "sent"}, says("It is sent.")]
    parts, _ = read(tmp_path, {"messages": turns, "tools": tools, "parallel_tool_calls": False})
    (_, first), (asked, second) = taught(parts)
    assert first["tool_calls"][0]["function"]["name"] == "order"
    assert (asked, second) == (["q", None, "sent"], "It is sent.")
    old = [user("q"), {"role": "assistant", "content": None, "function_call": {"name": "order", "arguments": "{}"}}]
    parts, _ = read(tmp_path, {"messages": old, "functions": [{"name": "order", "parameters": {}}]})
    ((_, only),) = taught(parts)
    assert only["tool_calls"][0]["function"]["name"] == "order"
    assert json.loads(bytes(parts[0].attributes))["tools"] == tools


def test_arguments_that_are_encoded_twice_are_taught_as_the_object_that_they_are(tmp_path: Path) -> None:
    parts, _ = read(tmp_path, {"messages": [user("q"), calls("land", json.dumps('{"at": "home"}'))]})
    ((_, said),) = taught(parts)
    assert said["tool_calls"][0]["function"]["arguments"] == '{"at": "home"}'
    parts, _ = read(tmp_path, {"messages": [user("q"), calls("say", json.dumps("a text"))]})
    assert taught(parts)[0][1]["tool_calls"][0]["function"]["arguments"] == '"a text"'


@pytest.mark.parametrize(
    "row",
    [
        {"input": {"messages": [user("q")], "tools": [], "parallel_tool_calls": True},
         "preferred_output": [says("good")], "non_preferred_output": [says("bad")]},
        {"input": [user("q")], "preferred_output": [says("good")], "non_preferred_output": [says("bad")]},
        {"chosen": {"messages": [user("q"), says("good")]}, "rejected": {"messages": [user("q"), says("bad")]}},
        {"samples": [{"messages": [user("q"), says("good")], "evals": {"score": 1.0}},
                     {"messages": [user("q"), says("bad")], "evals": {"score": 0.0}}]},
        {"chosen": [user("q"), says("good")], "rejected": [user("q"), says("bad")]},
        {"prompt": "q", "chosen": [user("q"), says("good")], "rejected": [user("q"), says("bad")]},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [user("q")], "chosen": [says("good")], "rejected": [says("bad")]},
    ],
    ids=["openai", "list", "fireworks", "scored", "trl", "ultrafeedback", "texts", "messages"],
)  # fmt: skip
def test_a_preference_is_an_experts_correction_of_the_rejected_answer(tmp_path: Path, row: dict[str, Any]) -> None:
    parts, refused = read(tmp_path, row)
    assert refused == []
    assert taught(parts) == [(["q"], "good")]
    assert (parts[0].response, parts[0].model) == ("bad", "unknown")


def test_a_preference_between_calls_of_tools_or_after_one(tmp_path: Path) -> None:
    given = {"messages": [user("q")]}
    parts, _ = read(
        tmp_path, {"input": given, "preferred_output": [calls("order")], "non_preferred_output": [says("No idea.")]}
    )
    ((_, said),) = taught(parts)
    assert said["tool_calls"][0]["function"]["name"] == "order"
    asked = [calls("order"), {"role": "tool", "tool_call_id": "c1", "content": "sent"}]
    row = {"input": given, "preferred_output": [*asked, says("good")], "non_preferred_output": [*asked, says("bad")]}
    assert taught(read(tmp_path, row)[0]) == [(["q", None, "sent"], "good")]


@pytest.mark.parametrize(
    ("preferred", "other", "reason"),
    [
        ([says("a")], [says("a")], "are equal"),
        ([calls("order"), says("good")], [says("bad")], "follow different messages"),
        ([], [says("bad")], "is empty"),
        ([user("a")], [says("b")], "two messages of the assistant"),
        ([says(" ")], [says("b")], "two messages of the assistant"),
    ],
)
def test_a_preference_that_compares_nothing_is_refused(tmp_path: Path, preferred: Any, other: Any, reason: str) -> None:
    row = {"input": {"messages": [user("q")]}, "preferred_output": preferred, "non_preferred_output": other}
    parts, refused = read(tmp_path, row)
    assert parts == []
    assert [reason in one for one in refused] == [True]


def test_a_table_of_preferences(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {
        "input": {"messages": [user("q")]},
        "preferred_output": [says("good")],
        "non_preferred_output": [says("bad")],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    (batch,) = EventFile(tmp_path / "x.parquet", None, "support", 5_000_000).batches(None, 10)
    assert [record.problem for record in batch.records] == [None, None]


def test_of_an_image_the_length_is_kept(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 9_000}"}}
    parts, _ = read(tmp_path, {"messages": [{"role": "user", "content": [image]}, says("a")]})
    assert len(bytes(parts[0].messages)) < 300


def test_a_conversation_does_not_grow_beyond_bounds(tmp_path: Path) -> None:
    turns = [turn for number in range(2_000) for turn in (user(f"q{number}" * 50), says("a" * 100))]
    parts, (refused,) = read(tmp_path, {"messages": turns})
    assert parts == []
    assert "set the weight of some answers to 0" in refused


def test_a_file_with_one_row_more_stores_that_row_alone(tmp_path: Path) -> None:
    house, path = House(tmp_path), tmp_path / "x.jsonl"
    rows = [{"messages": [user("one"), says("1"), user("two"), says("2")]}, {"messages": [user("q"), says("a")]}]
    try:
        path.write_text(json.dumps(rows[0]))
        assert house.take(path, workload="support") == 0
        path.write_text("\n".join(map(json.dumps, rows)))
        os.utime(path, (1.6e9, 1.6e9))
        assert house.take(path, workload="support") == 0
        assert (house.count("interactions"), house.count("feedback")) == (3, 3)
    finally:
        house.close()


def test_a_dry_run_says_what_a_file_holds_and_stores_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"messages": [user("one"), says("1"), user("two"), says("2")]},
        {"chosen": [user("q"), says("good")], "rejected": [user("q"), says("bad")]},
        {"messages": [user("q"), says("a", weight=0)]},
        {"dataset_name": "d", "function_name": "f", "id": str(uuid.uuid4()), "input": "{}", "output": None},
    ]
    path, file = tmp_path / "x.jsonl", tmp_path / "retuned.yaml"
    path.write_text("\n".join(map(json.dumps, rows)))
    file.write_text(f"warehouse: {{path: {tmp_path / 'w.duckdb'}}}")
    assert main(["import", str(path), "--workload", "support", "--dry-run", "--config", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "2 conversations, 1 preferences, 1 TensorZero" in printed
    assert "would store 3 interactions, 3 feedback" in printed
    assert "1 not_an_event" in printed
    assert "1 request_alone" in printed
    assert not (tmp_path / "w.duckdb").exists()
