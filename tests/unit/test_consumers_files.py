"""Files to rows: formats, what is wrong with them, where reading goes on."""

import gzip
import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fixtures.feedback.traffic import BOUNDS
from retuned.consumers.errors import BadFile
from retuned.consumers.formats.dialects import decode_any
from retuned.consumers.formats.documents import sections
from retuned.consumers.formats.events import Event, Feedback, Interaction, PassedOver
from retuned.consumers.formats.files import EventFile
from retuned.consumers.kafka.records import FetchedRecord

CLIENTS = Path(__file__).parents[1] / "data" / "clients"
MOST = 100_000
INTERACTION = {
    "id": "i",
    "timestamp": "2026-11-24T09:30:00Z",
    "workload": "shop",
    "model": "m",
    "messages": [{"role": "user", "content": "q"}],
    "response": "a",
}
FEEDBACK = {"id": "f", "timestamp": "2026-11-24T09:31:00Z", "interaction_id": "i", "name": "helpful", "value": True}
PAIRS = [{"question": f"question {n}", "answer": f"answer {n}"} for n in range(7)]


def opened(path: Path, workload: str | None = None, format: str | None = None) -> EventFile:
    return EventFile(path, format, workload, MOST)


def records(path: Path, workload: str | None = None, start: int | None = None, most: int = 100) -> list[FetchedRecord]:
    return [record for batch in opened(path, workload).batches(start, most) for record in batch.records]  # type: ignore[misc]


def events(path: Path, workload: str | None = None) -> list[Event]:
    """The events of a file, all of whose rows are."""
    found = []
    for record in records(path, workload):
        assert record.problem is None
        found += decode_any("interactions", record.value, (), BOUNDS)
    assert all(isinstance(event, Interaction | Feedback) for event in found), found
    return found  # type: ignore[return-value]


def written(path: Path, *rows: Any) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def answers(found: list[Event]) -> list[str]:
    return [event.response for event in found if isinstance(event, Interaction)]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.csv", "x.csv.gz", "x.parquet"])
def test_the_same_rows_in_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if ".csv" in name:
        written(path, "question;answer", *(f"{row['question']};{row['answer']}" for row in PAIRS))
    elif name == "x.json":
        path.write_text(json.dumps(PAIRS, indent=1))
    elif name == "x.parquet":
        pq.write_table(pa.Table.from_pylist(PAIRS), path, row_group_size=2)
    else:
        written(path, *PAIRS)
    assert answers(events(path, "support")) == [row["answer"] for row in PAIRS]
    for start in range(8):  # wherever it was stopped
        rest = records(path, "support", start)
        assert [record.offset for record in rest[::2]] == list(range(start, 7))
    (first, *_, last) = opened(path, "support").batches(None, 3)
    assert (len(first.starts), [*first.nexts.values()]) == (0, [3])
    assert ([*last.starts.values()], [*last.nexts.values()]) == ([6], [7])


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.jsonl"])
def test_a_table_of_texts_with_their_class(tmp_path: Path, name: str) -> None:
    rows = [{"Text": "Where is it?", "category": "shipping"}, {"Text": "I want it back.", "category": "refund"}]
    path = tmp_path / name
    if name == "x.csv":
        written(path, "Text,category", *(",".join(row.values()) for row in rows))
    elif name == "x.jsonl":
        written(path, *rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = events(path, "tickets")
    assert answers(found) == ["shipping", "refund"]
    assert [event.value for event in found if isinstance(event, Feedback)] == ["shipping", "refund"]


def test_a_class_is_no_answer_where_the_table_has_a_column_of_answers(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", "question,answer,label", "q,a,one", "q,,two")
    file = opened(path, "tickets")
    first, second, problem = [record for batch in file.batches(None, 10) for record in batch.records]
    assert (first.problem, second.problem) == (None, None)
    assert "no answer" in str(problem.problem)
    assert file.attributes == {"label"}


def test_events_and_other_formats_are_told_apart_row_by_row(tmp_path: Path) -> None:
    openai = {
        "timestamp": 1795512600,
        "workload_id": "logs",
        "request": {"model": "m", "messages": [{"role": "user", "content": "q"}]},
        "response": {"id": "r", "choices": [{"message": {"content": "from a log"}}]},
    }
    cloud = {"specversion": "1.0", "id": "c", "time": "2026-11-24T09:30:00Z", "data": {**INTERACTION, "response": "c"}}
    span = {
        "gen_ai.request.model": "m",
        "gen_ai.response.id": "s",
        "gen_ai.prompt": "q",
        "gen_ai.completion": "from a span",
    }
    path = written(tmp_path / "x.jsonl", INTERACTION, FEEDBACK, openai, cloud, span, "", *PAIRS[:1])
    found = events(path, "support")
    assert answers(found) == ["a", "from a log", "c", "from a span", "answer 0"]
    assert [event.workload for event in found if isinstance(event, Interaction)] == [
        "shop", "logs", "shop", "support", "support",
    ]  # fmt: skip
    assert [event.name for event in found if isinstance(event, Feedback)] == ["helpful", "correction"]


@pytest.mark.parametrize(
    ("name", "rows"),
    [("openai_chat", 1), ("openai_stream", 1), ("anthropic_tools", 1), ("litellm", 3), ("langsmith", 2),
     ("langchain", 2), ("mlflow", 4), ("openinference_openai_spans", 4), ("langfuse_sdk_spans", 1)],
)  # fmt: skip
@pytest.mark.parametrize("form", ["array", "lines"])
def test_what_clients_log_and_tools_export(tmp_path: Path, name: str, rows: int, form: str) -> None:
    value = json.loads((CLIENTS / f"{name}.json").read_text(encoding="utf-8"))
    found = value if isinstance(value, list) else [value]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(found, indent=1) if form == "array" else "\n".join(map(json.dumps, found)))
    made = [item for record in records(path, "mine") for item in decode_any("interactions", record.value, (), BOUNDS)]
    stored = [event for event in made if isinstance(event, Interaction | Feedback)]
    assert len(stored) == rows
    assert all(isinstance(item, Interaction | Feedback | PassedOver) for item in made)
    is_named = name.startswith(("lang", "lite", "mlflow", "openinf"))
    assert {event.workload for event in stored if isinstance(event, Interaction)} == {
        "support.refunds" if is_named else "mine"
    }


def test_a_table_that_looks_like_another_product_by_one_column(tmp_path: Path) -> None:
    rows = ["custom_id,question,response", "r1,Until when?,Within 30 days."]
    found = events(written(tmp_path / "x.csv", *rows), "refunds")
    assert answers(found) == ["Within 30 days."]


def test_a_table_of_another_product(tmp_path: Path) -> None:
    """TensorZero's table, whose rows name their workload in a column of another name."""
    said = json.dumps([{"type": "text", "text": "Within 30 days."}])
    asked = json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]})
    row = {"id": "t1", "function_name": "refunds", "variant_name": "v", "episode_id": "e", "input": asked,
           "output": said, "timestamp": datetime(2026, 11, 24, 9, 30, tzinfo=UTC)}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    (event,) = events(tmp_path / "x.parquet")
    assert isinstance(event, Interaction)
    assert (event.id, event.workload, event.response) == ("t1", "refunds", "Within 30 days.")


def test_what_a_row_of_ours_leaves_out_is_filled_in_the_same_way_each_time(tmp_path: Path) -> None:
    short = {key: INTERACTION[key] for key in ("messages", "response", "model")}
    path = written(tmp_path / "x.jsonl", short, {key: FEEDBACK[key] for key in ("interaction_id", "name", "value")})
    copy = written(tmp_path / "copy.jsonl", *path.read_text().splitlines(), "")
    one, other = events(path, "support"), events(copy, "support")
    assert [event.id for event in one] == [event.id for event in other]
    assert len({event.id for event in one}) == 2
    assert one[0].timestamp.timestamp() == int(path.stat().st_mtime)


def test_tables_hold_nested_values_and_numbers_as_text(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.csv",
        "id,timestamp,workload,model,messages,response,context,latency_seconds,input_tokens",
        'i,2026-11-24T09:30:00Z,w,m,"[{""role"": ""user"", ""content"": ""q""}]",a,"[""c""]",0.5,',
        'j,2026-11-24T09:30:00Z,w,m,"[{""role"": ""user"", ""content"": ""q""}]",,14,,3',
    )
    interaction, other = events(path)
    assert isinstance(other, Interaction)
    assert (other.response, bytes(other.context), other.input_tokens) == ("", b'["14"]', 3)  # type: ignore[arg-type]
    assert isinstance(interaction, Interaction)
    assert bytes(interaction.context) == b'["c"]'  # type: ignore[arg-type]
    assert (interaction.latency_seconds, interaction.input_tokens) == (0.5, None)
    said = written(
        tmp_path / "f.csv",
        "id,timestamp,interaction_id,name,value",
        "1,2026-11-24T09:30:00Z,i,correction,14",
        "2,2026-11-24T09:30:00Z,i,helpful,true",
        '3,2026-11-24T09:30:00Z,i,comment,"""quoted"""',
    )
    assert [event.value for event in events(said)] == ["14", True, "quoted"]  # type: ignore[union-attr]


def test_a_table_that_pandas_wrote(tmp_path: Path) -> None:
    """A column with gaps holds its whole numbers with a point; booleans are capitalised, as in spreadsheets."""
    path = written(
        tmp_path / "x.csv",
        "id,timestamp,workload,model,messages,response,input_tokens,output_tokens,context,attributes",
        'i,2026-11-24T09:30:00Z,w,m,"[{""role"": ""user"", ""content"": ""q""}]",a,12.0,,[],{}',
    )
    (interaction,) = events(path)
    assert isinstance(interaction, Interaction)
    assert (interaction.input_tokens, interaction.output_tokens) == (12, None)
    assert (bytes(interaction.context), bytes(interaction.attributes)) == (b"[]", b"{}")  # type: ignore[arg-type]
    shown, said = events(written(tmp_path / "y.csv", "question,answer,helpful,input_tokens", "q,a,True,12.0"), "w")
    assert (shown.input_tokens, said.value) == (12, True)  # type: ignore[union-attr]
    feedback = written(
        tmp_path / "f.csv",
        "id,timestamp,interaction_id,name,value",
        "1,2026-11-24T09:30:00Z,i,helpful,True",
        "2,2026-11-24T09:30:00Z,i,escalated,FALSE",
        "3,2026-11-24T09:30:00Z,i,comment,True",
        "4,2026-11-24T09:30:00Z,i,mood,True",
    )
    assert [event.value for event in events(feedback)] == [True, False, "True", "True"]  # type: ignore[union-attr]


def test_corrections_in_json_of_a_table(tmp_path: Path) -> None:
    """An object or a list is nested, a text may be quoted, and what is no JSON is a text."""
    values = ['{"days": 14}', '["a"]', '"{}"', "[1] 14 days", "[]", "14", "null"]
    rows = [FEEDBACK | {"id": str(n), "name": "correction", "value": value} for n, value in enumerate(values)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    found = [event.value for event in events(tmp_path / "x.parquet")]  # type: ignore[union-attr]
    assert found == [{"days": 14}, ["a"], "{}", "[1] 14 days", "[]", "14", "null"]


def test_nested_columns_of_parquet_hold_what_each_row_has(tmp_path: Path) -> None:
    """A struct has the fields of all rows; those that a row lacks are null."""
    weather, order = {"city": {"type": "string"}}, {"order": {"type": "integer", "enum": [7, None]}}
    rows = [
        {"question": "q", "answer": "a", "tools": [{"name": name, "parameters": {"properties": properties}}]}
        for name, properties in (("weather", weather), ("order", order))
    ]
    took = pa.array([timedelta(seconds=1.5)] * 2, pa.duration("ns"))
    metadata = pa.array([{"team": "north"}] * 2, pa.map_(pa.string(), pa.string()))
    table = pa.Table.from_pylist(rows).append_column("latency_seconds", took).append_column("metadata", metadata)
    pq.write_table(table, tmp_path / "x.parquet")
    found = [event for event in events(tmp_path / "x.parquet", "w") if isinstance(event, Interaction)]
    expected = [{"team": "north", "tools": row["tools"]} for row in rows]
    assert [json.loads(bytes(event.attributes)) for event in found] == expected  # type: ignore[arg-type]
    assert [event.latency_seconds for event in found] == [1.5, 1.5]


@pytest.mark.parametrize(
    ("type", "expected"),
    [
        (pa.timestamp("ns"), "2024-05-06T07:08:09+00:00"),
        (pa.timestamp("ns", "Europe/Oslo"), "2024-05-06T07:08:09+00:00"),
        (pa.date32(), "2024-05-06T00:00:00+00:00"),
        (pa.date64(), "2024-05-06T00:00:00+00:00"),
    ],
    ids=str,
)
def test_times_of_parquet(tmp_path: Path, type: pa.DataType, expected: str) -> None:
    when = pa.array([datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)]).cast(pa.timestamp("us")).cast(type, safe=False)
    for row in (INTERACTION, FEEDBACK, {"question": "q", "answer": "a", "created": 1, "workload": "shop"}):
        name = "timestamp" if "timestamp" in row else "created"
        table = pa.Table.from_pylist([{key: value for key, value in row.items() if key != name}])
        kept = {"seen": when, "at": pa.array([{"seen": when[0].as_py()}], pa.struct({"seen": type}))}
        for column, values in {name: when, **kept}.items():
            table = table.append_column(column, values)
        pq.write_table(table, tmp_path / "x.parquet")
        assert {event.timestamp for event in events(tmp_path / "x.parquet")} == {datetime.fromisoformat(expected)}


def test_one_content_is_one_topic_and_other_ways_to_read_it_are_others(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", *PAIRS)
    topics = [
        opened(path, "a").topic,
        opened(written(tmp_path / "copy.json", *PAIRS), "a").topic,
        opened(path, "b").topic,
        opened(written(tmp_path / "more.jsonl", *PAIRS, *PAIRS), "a").topic,
    ]
    assert topics[0] == topics[1]
    assert len(set(topics)) == 3


def test_bad_rows_are_named_and_the_good_ones_come_through(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", PAIRS[0], "{broken", {"x": 1}, PAIRS[1])
    found = list(records(path, "w"))
    assert [record.offset for record in found] == [0, 0, 1, 2, 3, 3]
    assert found[2].value == b"{broken"
    assert "nor a question with an answer" in str(found[3].problem)
    array = written(
        tmp_path / "x.json", '[{"question": "q", "answer": "\\ud83d"}, 5, {"question": "q", "answer": "a"}]'
    )
    problems = [record.problem for record in records(array, "w")]
    assert problems == ["invalid JSON: it has half a character (a lone surrogate)", None, None, None]
    table = written(tmp_path / "x.csv", "question,answer", "q,a", "q,a,more", 'q,"a" b', "q2,a2")
    problems = [record.problem for record in records(table, "w")]
    assert problems[2] == "3 fields, but the header has 2"
    assert str(problems[3]).startswith("invalid CSV: ")
    assert problems[4:] == [None, None]


@pytest.mark.parametrize(
    ("name", "content", "workload", "said"),
    [
        ("x.xls", b"", "w", r"unknown format \.xls; known are \.jsonl"),
        ("x.csv", b"name,age\nq,a\n", "w", r"columns name, age mean nothing here\. Expected a question \(question"),
        ("x.csv", b"What is it?,A shop.\n", "w", "is the first row a header"),
        ("x.csv", b"question,answer\nq,a\n", None, "no column workload; name one for the file with --workload"),
        ("x.csv", b"question,question,answer\n", "w", "two columns have one name"),
        ("x.csv", b"question,answer\nq,a\nq,caf\xe9\n", "w", "row 2 is not UTF-8; convert.*: iconv"),
        ("x.jsonl", b'{"question": "q", "answer": "a"}\n', None, "row 1 names no workload.*--workload"),
        ("x.jsonl", b'{\n"question": 1\n}', "w", "expected an object on each line.*jq -c"),
        ("x.jsonl", "{}".encode("utf-16"), "w", "is UTF-16"),
        ("x.json", b'[{"question": "q", "answer": "a"}, {"que', "w", r"element 2 of the array is not valid JSON"),
        ("x.json", b' [{"question": "q", "answer": "a"}]\n[]', "w", "has content after the end of its array"),
        ("x.json", b"[" * 200_000, "w", "element 1 of the array is not valid JSON .too deep"),
        ("x.jsonl.gz", b"no gzip", "w", "is not a gzip file"),
        ("x.parquet", b"PAR1 no parquet", "w", "is not a complete Parquet file"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    tmp_path: Path, name: str, content: bytes, workload: str | None, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadFile, match=said) as caught:
        records(path, workload)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"gone\.csv: cannot be read \(No such file"):
        opened(tmp_path / "gone.csv")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(BadFile, match="is a folder"):
        opened(tmp_path / "d.csv")


def test_a_half_written_gz_gives_what_it_holds_and_then_says_so(tmp_path: Path) -> None:
    packed = gzip.compress("".join(f'{{"question": "{n}", "answer": "{n * n}"}}\n' for n in range(50_000)).encode())
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    taken: list[int] = []
    with pytest.raises(BadFile, match=r"is truncated or damaged after row \d{5}; import a whole copy"):
        taken.extend(len(batch.records) for batch in opened(path, "w").batches(None, 100_000))
    assert sum(taken) > 20_000  # of the last batch too


@pytest.mark.full
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """20 MB in one line, in an array on one line, and under one heading; an event may have 100 kB."""
    row = json.dumps({"question": "q " * 400, "answer": "a"})
    written(tmp_path / "long.jsonl", PAIRS[0], "x" * 20_000_000, PAIRS[1])
    (tmp_path / "x.json").write_text("[" + ",".join([row] * 25_000) + "]")
    written(tmp_path / "x.md", "# One?", *["word " * 100] * 40_000, "# Two?", "yes")
    tracemalloc.start()
    try:
        sizes = {}
        for name in ("long.jsonl", "x.json", "x.md"):
            tracemalloc.reset_peak()
            found = [len(batch.records) for batch in opened(tmp_path / name, "w").batches(None, 100)]
            sizes[name] = tracemalloc.get_traced_memory()[1]
            assert sum(found) == {"long.jsonl": 5, "x.json": 50_000, "x.md": 3}[name]
    finally:
        tracemalloc.stop()
    assert max(sizes.values()) < 10_000_000, sizes
    table = written(tmp_path / "x.csv", "question,answer", "q,a", "q," + ",".join(["é" * 30_000] * 4), "q2,a2")
    assert [record.problem for record in records(table, "w")] == [
        None, None, "longer than an event may be (ingest.max_event_bytes)", None, None,
    ]  # fmt: skip
    with pytest.raises(BadFile, match="one of its lines is longer"):
        records(written(tmp_path / "long.md", "# Heading", "é" * MOST), "w")
    long = records(tmp_path / "long.jsonl", "w")[2]
    assert len(long.value or b"") > MOST  # so that the decoder refuses it


def test_sections_of_a_document() -> None:
    text = """---
title: metadata
---
# Handbook
## Returns
### How long?
14 days.

```
# no heading
```
### Sofas ###
30 days.
Shipping
--------
We ship.

- to Oslo
---
"""
    found = [section for section in sections(text.splitlines(True), 1_000) if isinstance(section, dict)]
    assert [(section["question"], section["answer"]) for section in found] == [
        ("How long?", "14 days.\n\n```\n# no heading\n```"),
        ("Handbook: Returns: Sofas", "30 days.\nShipping\n--------\nWe ship.\n\n- to Oslo\n---"),
    ]
    assert found[0]["context"] == [found[0]["answer"]]
    assert list(sections(["hello\n"], 100)) == ["text before the first heading (# Heading) answers no question: hello"]
    assert "longer than an event" in str(next(iter(sections(["# x\n", "y" * 101], 100))))
    underlined = list(sections(["Shop\n", "====\n", "Open?\n", "-----\n", "Yes.\n"], 100))
    assert underlined == [{"question": "Open?", "answer": "Yes.", "context": ["Yes."]}]


def headed(text: str) -> list[tuple[str, str] | str]:
    found = sections(text.splitlines(True), 1_000)
    return [section if isinstance(section, str) else (section["question"], section["answer"]) for section in found]


@pytest.mark.parametrize(
    "code",
    [
        "````\n```\n# no heading\n```\n````",
        "```\n# no heading\n~~~\n# no heading\n``` x\n# no heading\n`````",
        "```retuned status``` prints a table.",
    ],
    ids=["longer", "other", "inline"],
)
def test_code_in_a_document_ends_where_markdown_ends_it(code: str) -> None:
    assert headed(f"# One?\n{code}\n# Two?\nYes.\n") == [("One?", code), ("Two?", "Yes.")]


@pytest.mark.parametrize(
    "top",
    [
        "---\n",  # no end
        "---\n\nAll prices are in kroner.\n\n---\n",
        "---\nNote: all prices are in kroner.\n\n# One?\n1\n\n---\n",
    ],
    ids=["alone", "text", "sections"],
)
def test_a_break_at_the_top_of_a_document_is_no_front_matter(top: str) -> None:
    *_, last = found = headed(f"{top}# Two?\nYes.\n")
    assert last == ("Two?", "Yes.")
    assert ("kroner" in top) == ("kroner" in str(found[0]))
    assert ("# One?" in top) == (("One?", "1\n\n---") in found)


def test_headings_of_a_document_end_with_their_text() -> None:
    assert headed("# C#\nA language.\n# Sofas ##\nSoft.\n") == [("C#", "A language."), ("Sofas", "Soft.")]
    assert headed("---\ntitle: Shop\n...\n# Two?\nYes.\n") == [("Two?", "Yes.")]
    assert headed("---\ntitle: Returns: sofas\ntags: [\n---\n# Two?\nYes.\n") == [("Two?", "Yes.")]
