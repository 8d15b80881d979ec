"""Files into real warehouses and out again, in process: the commands over HTTP are in tests/acceptance."""

import io
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fixtures.daemon.operations import ask
from fixtures.feedback.teaching import GOODS, Teacher, questions
from fixtures.kafka.importing import EVENTS, House, logged, opened, pairs, written
from fixtures.kafka.ingestion import not_writable
from fixtures.models.datasets import build_dataset
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse import connection
from retuned.daemon.client import Client
from retuned.daemon.policy.evidence import gather
from retuned.daemon.settings import Settings
from retuned.daemon.transfer import exports
from retuned.daemon.transfer.exports import TABLES, Export, content, write
from retuned.monitors.money import ledger
from retuned.monitors.windows import windows
from retuned.retrain.data import examples
from retuned.retrain.data.export import training_sets
from retuned.retrain.data.identity import normalise


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with opened(tmp_path / "house") as made:
        yield made


def test_nothing_of_a_batch_is_stored_when_a_part_cannot_be(house: House, tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", *pairs(4), {"x": 1})
    with not_writable(house.warehouse, "offsets"), pytest.raises(RetunedError, match=r"x\.jsonl: import: "):
        house.take(path, workload="w")
    assert [house.count(table) for table in (*EVENTS, "dead_letters", "offsets")] == [0, 0, 0, 0]
    assert house.take(path, workload="w") == 1
    assert [house.count(table) for table in (*EVENTS, "dead_letters", "offsets")] == [4, 4, 1, 1]


def test_demonstrations_teach_and_are_nobodys_traffic(house: House, tmp_path: Path) -> None:
    path = written(tmp_path / "faq.jsonl", *[{"question": q, "answer": a} for q, a in questions(GOODS)])
    house.take(path, workload="support")
    taught = examples.read_statements(house.warehouse, "support", house.settings.dataset).rows
    assert {(row.kind, row.source, row.rank, row.rejected, row.completion) for row in taught} == {
        ("correction", "demonstration", 2, None, f"You have {policy} for it.") for policy in GOODS.values()
    }
    small = house.settings.model_copy(
        update={
            "models": house.settings.models.model_copy(update={"directory": tmp_path / "models"}),
            "gate": house.settings.gate.model_copy(update={"minimum_examples": 1}),
        }
    )
    built = build_dataset(house.warehouse, small, "support", datetime(2026, 4, 1))
    assert built.rows["train"] > 50
    assert built.card["sources"].keys() == {"demonstration"}
    assert windows(house.warehouse, house.settings.windows, "support", datetime(2030, 1, 1)) is None
    evidence = gather(house.warehouse, house.settings, "support", datetime(2030, 1, 1))
    assert evidence.new_corrections == evidence.corrections_to_learn == len(taught)
    house.log.append("interactions", json.dumps(logged(1)).encode())
    house.ingest.step()
    found = windows(house.warehouse, house.settings.windows, "support", datetime(2024, 1, 3))
    assert found is not None
    assert found.current.conversations + found.reference.conversations == 1


def test_history_is_not_booked_as_gain_or_cost(house: House, tmp_path: Path) -> None:
    said = {"interaction_id": "i1", "timestamp": "2024-01-02T00:00:00Z", "source": "user"}
    rows = [
        logged(1, cost=100.0),
        {**said, "id": "f1", "name": "time_saved_seconds", "value": 7_200},
        {**said, "id": "f2", "name": "escalated", "value": False},
    ]
    house.take(written(tmp_path / "log.jsonl", *rows))
    booked = ledger.book(house.warehouse, house.settings, datetime(2026, 1, 1))
    assert {entry.item for entry in booked} <= {"fixed"}
    house.log.append("interactions", json.dumps(logged(2, cost=3.0)).encode())
    house.ingest.step()
    booked = ledger.book(house.warehouse, house.settings, datetime(2026, 1, 2))
    assert [entry.amount for entry in booked if entry.item == "inference"] == [3.0]


def test_columns_of_json_are_nested_and_bounds_hold(house: House, tmp_path: Path) -> None:
    house.take(written(tmp_path / "x.jsonl", *[logged(n) for n in range(1, 5)], logged(9, workload="sales"), {"x": 1}))
    assert house.lines("interactions", since="2024-01-03", until="2024-01-05")[0] == {
        **dict.fromkeys(house.warehouse.rows("SELECT * EXCLUDE (batch) FROM interactions")[0]),
        **logged(2),
        **house.warehouse.rows("SELECT topic, partition, \"offset\" FROM interactions WHERE id = 'i2'")[0],
        "received_at": house.lines("interactions")[0]["received_at"],
    }
    ids = [row["id"] for row in house.lines("interactions", since="2024-01-03T11:30:00+02:00", until="2024-01-05")]
    assert ids == ["i2", "i3"]
    assert [row["id"] for row in house.lines("interactions", workload="sales")] == ["i9"]
    assert [row["reason"] for row in house.lines("dead_letters")] == ["not_an_event"]
    table = pq.read_table(io.BytesIO(house.export("interactions", "parquet")))
    assert str(table.schema.field("timestamp").type) == "timestamp[us]"
    assert table.num_rows == 5
    assert pq.read_table(io.BytesIO(house.export("ledger", "parquet"))).num_rows == 0


def made_up(type: str, name: str, day: int, workload: str) -> Any:
    """A value of a column; some tables name the workload by a dataset, a rollout or an interaction."""
    if name == "workload":
        return workload
    if name in ("version", "dataset_version", "experiment", "interaction_id"):
        return f"of {workload}"
    if type == "TIMESTAMP":
        return datetime(2026, 3, day)
    return {"BOOLEAN": True, "JSON": "[]", "VARCHAR": "x", "VARCHAR[]": []}.get(type, day)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_feedback_is_the_same_after_an_export_and_an_import(house: House, tmp_path: Path, format: str) -> None:
    call = {"content": "", "tool_calls": [{"function": {"name": "order", "arguments": {}}}]}
    values = {
        "correction": [{"days": 14}, [14, "x"], call, "14", '{"days": 14}', '"quoted"', "null"],
        "comment": ['{"a": 1}', "12", '"quoted"'],
        "mood": [True, 0.5, 3, "true", "12", '{"a": 1}', ""],
        "helpful": [True, False],
    }
    said = [(name, value) for name, all_of in values.items() for value in all_of]
    house.send(
        *({"id": f"f{number:02}", "timestamp": "2024-01-02T00:00:00Z", "interaction_id": "i1", "name": name,
           "value": value, "source": "expert"} for number, (name, value) in enumerate(said))
    )  # fmt: skip
    while house.ingest.step():
        pass
    assert [row["value"] for row in house.events()["feedback"]] == [value for _, value in said]
    path = tmp_path / f"feedback.{format}"
    path.write_bytes(house.export("feedback", format))
    with opened(tmp_path / "other") as other:
        assert other.take(path) == 0
        assert other.events() == house.events()


VIEWS = {"quarantine": "row_states"}
LINKED = {"shadow_answers": "interactions", "shadow_scores": "rollouts"}
OF_ALL_WORKLOADS, WITHOUT_TIME = {"dead_letters", "offsets", "archives"}, {"offsets", "dataset_rows", "evaluations"}


@pytest.mark.parametrize("table", TABLES)
def test_rows_of_one_workload_and_of_a_span_of_time_can_be_exported(house: House, table: str) -> None:
    with house.warehouse.transaction() as cursor:
        for made in {VIEWS.get(table, table), "datasets"} - {"interactions", "feedback"}:
            columns = [(row[0], row[1]) for row in cursor.execute(f"DESCRIBE {made}").fetchall()]
            for day, workload in ((1, "support"), (2, "sales"), (3, "support"), (4, "sales")):
                values = [made_up(type, name, day, workload) for name, type in columns]
                if made == "offsets":
                    values[0] = str(day)
                cursor.execute(f"INSERT INTO {made} VALUES ({', '.join('?' * len(values))})", values)
        if table in LINKED:
            columns = [(row[0], row[1]) for row in cursor.execute(f"DESCRIBE {LINKED[table]}").fetchall()]
            for workload in ("support", "sales"):
                values = [
                    f"of {workload}" if name == "id" else made_up(type, name, 1, workload) for name, type in columns
                ]
                cursor.execute(f"INSERT INTO {LINKED[table]} VALUES ({', '.join('?' * len(values))})", values)
    for workload in ("support", "sales"):
        teacher = Teacher(house.warehouse, workload)
        for day in range(4):
            teacher.acts = 1_440 * day
            teacher.say(teacher.ask("Where?", "Here."), "helpful", True)

    def rows(**asked: str) -> int:
        return b"".join(content(Export(table, **asked), house.warehouse, house.settings)).count(b"\n")

    everything = rows()
    assert everything in (4, 8)
    if table not in OF_ALL_WORKLOADS:
        assert rows(workload="support") == rows(workload="sales") == everything / 2
        assert rows(workload="unheard of") == 0
    if table not in WITHOUT_TIME:
        first, last = ("2026-03-02", "2026-03-06") if everything == 8 else ("2026-03-01", "2026-03-05")
        middle = "2026-03-04" if everything == 8 else "2026-03-03"
        assert (rows(since=first), rows(until=last)) == (everything, everything)
        assert (rows(since=middle), rows(until=middle)) == (everything / 2, everything / 2)  # until itself is not in it
        assert rows(since=last) == rows(until=first) == 0
    if table not in OF_ALL_WORKLOADS | WITHOUT_TIME:
        assert rows(since=middle, workload="sales") == everything / 4


def test_texts_of_evaluations_are_side_by_side(house: House) -> None:
    teacher = Teacher(house.warehouse, "support")
    asked = teacher.ask("Until when?", "Some day.")
    corrected = teacher.say(asked, "correction", "Within 14 days.")
    shared = {"dataset_version": "d", "row_id": "r"}
    answers = {"base": "I cannot say.", "old": "Some day.", "new": "Within 14 days.", "logged": "Some day."}
    house.warehouse.insert(
        "dataset_rows", **shared, split="holdout", prompt_hash="h", interaction_id=asked, feedback_id=corrected
    )
    at = datetime(2026, 3, 1)
    house.warehouse.insert(
        "runs", id="run", workload="support", reasons="[]", state="succeeded", started_at=at, parent_version="old"
    )
    for run in ("run", "run-evaluation-20260302T000000000000"):
        for model, output in answers.items():
            house.warehouse.insert(
                "evaluations", **shared, run_id=run, workload="support", model=model, split="holdout", score=0.5,
                token_f1=0.5, output=output,
            )  # fmt: skip
    texts = Export("evaluations", workload="support", texts=True)
    first, again = (json.loads(line) for line in b"".join(content(texts, house.warehouse, house.settings)).splitlines())
    assert (first["run_id"], first["version"]) == ("run", "new")
    assert list(first)[:5] == ["question", "approved", "base", "champion", "candidate"]
    assert list(first.values())[:5] == [
        "Until when?", "Within 14 days.", "I cannot say.", "Some day.", "Within 14 days."
    ]  # fmt: skip
    assert list(again.values())[:5] == list(first.values())[:5]
    with pytest.raises(RetunedError, match="runs has no texts to put side by side; they are of evaluations"):
        Export("runs", texts=True).check()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"what": "secrets"}, "secrets is none of interactions, feedback"),
        ({"what": "interactions", "format": "csv"}, "format csv is none of jsonl, parquet"),
        ({"what": "dead_letters", "workload": "w"}, "dead_letters have no workload"),
        ({"what": "offsets", "since": "2024-01-01"}, "offsets have no time"),
        ({"what": "routing", "format": "litellm"}, "through the gateway, or read .* from GET /api/v1/routes"),
        ({"what": "chat", "since": "monday"}, "since: expected a date or a time such as .*, got 'monday'"),
    ],
)
def test_what_cannot_be_exported_is_told(house: House, asked: dict[str, str], said: str) -> None:
    with pytest.raises(RetunedError, match=said):
        content(Export(**asked), house.warehouse, house.settings)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("before")

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise RetunedError("the daemon went away")

    with pytest.raises(RetunedError, match="went away"):
        write(broken(), path)
    assert [(file.name, file.read_text()) for file in tmp_path.glob("*x.jsonl*")] == [("x.jsonl", "before")]
    (tmp_path / "link").symlink_to(path)
    write(iter([b"whole", b" file"]), tmp_path / "link")
    assert (path.read_text(), (tmp_path / "link").is_symlink()) == ("whole file", True)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(pipe.read_bytes)
        write(iter([b"into ", b"it"]), pipe)
        assert read.result(10) == b"into it"
    assert pipe.is_fifo()  # and not a file in its place
    with pytest.raises(RetunedError, match="Is a directory"):
        write(iter([b""]), tmp_path)
    with pytest.raises(RetunedError, match=r"gone/x cannot be written \(No such file"):
        write(iter([b""]), tmp_path / "gone" / "x")


def test_a_daemon_that_goes_away_in_the_middle_leaves_no_file(tmp_path: Path) -> None:
    half = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
    with socket.create_server(("127.0.0.1", 0)) as peer:

        def answer() -> None:
            connection, _ = peer.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(half)

        thread = threading.Thread(target=answer)
        thread.start()
        settings = Settings(http={"port": peer.getsockname()[1]})
        pieces = ask(Client(settings), "export", what="interactions")
        with pytest.raises(RetunedError, match="the daemon went away in the middle"):
            write(pieces, tmp_path / "x.jsonl")
        thread.join()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a warehouse that is full of corrections and thumbs."""
    folder = tmp_path_factory.mktemp("school")
    with opened(folder) as house:
        teacher = Teacher(house.warehouse)
        for number, (question, right) in enumerate(questions(GOODS)):
            shown = teacher.ask(question, "I cannot say." if number % 3 else right, system="Be brief.")
            if number % 3:
                teacher.say(shown, "correction", right)
            teacher.say(shown, "helpful", not number % 3, "user")
    return folder


@pytest.fixture
def taught(school: Path, tmp_path: Path) -> Iterator[House]:
    shutil.copytree(school, tmp_path / "taught")
    with opened(tmp_path / "taught") as house:
        yield house


@pytest.mark.full
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", ["chat", "preference", "kto"])
def test_training_sets_have_trls_forms(taught: House, tmp_path: Path, form: str, format: str) -> None:
    """As the `datasets` library, which TRL trains from, loads them, and as TRL's own checks see them."""
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl.data_utils import apply_chat_template, is_conversational, unpair_preference_dataset

    from fixtures.models.tiny import tiny_llama

    path = tmp_path / f"set.{format}"
    write(content(Export(form, format), taught.warehouse, taught.settings), path)
    kind = "json" if format == "jsonl" else "parquet"
    loaded = load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert set(loaded.column_names) == {
        "chat": {"messages"}, "preference": {"prompt", "chosen", "rejected"}, "kto": {"prompt", "completion", "label"},
    }[form] | ({"tools"} if format == "parquet" else set())  # fmt: skip
    assert len(loaded) > 40
    assert all(is_conversational(row) for row in loaded)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama(tmp_path / "base"))
    text = apply_chat_template(loaded[0], tokenizer)
    assert set(text) == {"chat": {"text"}}.get(form, set(loaded.column_names) - {"tools"})
    if form == "preference":
        assert {row["rejected"][0]["content"] for row in loaded} == {"I cannot say."}
        assert len(unpair_preference_dataset(loaded)) == 2 * len(loaded)
    if form == "kto":
        assert {(row["completion"][0]["content"] == "I cannot say.", row["label"]) for row in loaded} == {
            (True, False), (False, True),
        }  # fmt: skip
    if form == "chat":
        assert [turn["role"] for turn in loaded[0]["messages"]] == ["system", "user", "assistant"]
        assert {row["messages"][-1]["content"] for row in loaded} == {
            f"You have {days} for it." for days in GOODS.values()
        }


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_an_exported_training_set_teaches_the_same_where_it_is_imported(tmp_path: Path, format: str) -> None:
    call = {"id": "call_0", "type": "function", "function": {"name": "order", "arguments": '{"id": 7}'}}
    said = [("user", "Where is order 7?"), ("assistant", "It is lost."), ("user", "Look again.")]
    messages = [{"role": role, "content": content} for role, content in said]
    thumb = {"id": "f1", "timestamp": "2024-01-03T00:00:00Z", "interaction_id": "i1", "name": "helpful", "value": True}
    with opened(tmp_path / "first", dataset={"holdout_share": 0.0}) as house:
        house.send(logged(1, messages=messages, response="", attributes={"tool_calls": [call]}), thumb)
        house.ingest.step()
        exported = {form: house.export(form, format) for form in ("chat", "kto")}
    for form, name, value in (("chat", "correction", {"content": "", "tool_calls": [call]}), ("kto", "helpful", True)):
        (path := tmp_path / f"{form}.{format}").write_bytes(exported[form])
        with opened(tmp_path / form) as house:
            assert house.take(path, workload="support") == 0
            events = house.events()
        assert [(one["messages"], one["attributes"]["tool_calls"]) for one in events["interactions"]] == [
            (messages, [call])
        ]
        assert [(one["name"], one["value"]) for one in events["feedback"]] == [(name, value)]


@pytest.mark.full
def test_what_models_are_judged_on_is_in_no_training_set(taught: House, tmp_path: Path) -> None:
    forms = ("chat", "kto")  # a preference is made of a row of chat

    def asked(rows: list[dict[str, Any]]) -> set[str]:
        prompts = [row.get("prompt", row.get("messages", [None])[:-1]) for row in rows]
        return {normalise(prompt[-1]["content"]) for prompt in prompts}

    settings = taught.settings.model_copy(
        update={
            "models": taught.settings.models.model_copy(update={"directory": tmp_path / "models"}),
            "gate": taught.settings.gate.model_copy(update={"minimum_examples": 1}),
        }
    )
    built = build_dataset(taught.warehouse, settings, "support", datetime(2026, 4, 1))
    judged = {row["question"] for row in built.split("holdout")}
    assert len(judged) > 10
    for form in forms:
        assert not asked(taught.lines(form)) & judged
    # Under another share the same questions would not be held out, but the champion was judged on them.
    then = datetime(2026, 4, 1)
    taught.warehouse.insert("aliases", workload="support", alias="champion", version="v", created_at=then)
    model = dict.fromkeys(("path", "base_model", "base_hash", "run_id"), "x")
    taught.warehouse.insert(
        "models", version="v", workload="support", dataset_version=built.version, manifest="{}",
        created_at=then, **model,
    )  # fmt: skip
    taught.settings = settings.model_copy(
        update={"dataset": settings.dataset.model_copy(update={"holdout_share": 0.0, "near_duplicate_similarity": 1.0})}
    )
    for form in forms:
        exported = asked(taught.lines(form))
        assert len(exported) > 40
        assert not exported & judged


@pytest.mark.full
def test_a_training_set_has_the_bounds_and_the_workload_that_were_asked_for(taught: House) -> None:
    other = Teacher(taught.warehouse, "sales")
    for question, right in questions(GOODS, slice(0, 2)):
        other.correct(question, "no", right)
    everything = taught.lines("chat")
    assert len(taught.lines("chat", workload="support")) + len(taught.lines("chat", workload="sales")) == len(
        everything
    )
    early, late = taught.lines("kto", until="2026-03-02T13:00"), taught.lines("kto", since="2026-03-02T13:00")
    assert early
    assert late
    assert early + late == taught.lines("kto")
    assert taught.lines("chat", workload="nobody") == []


def test_a_training_set_is_chosen_in_another_process_and_leaves_no_files(
    taught: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("retuned.retrain.data.export.select", None)  # of this process
    rows = training_sets(taught.warehouse, {"support": taught.settings.for_workload("support")}, "chat")
    assert next(rows)["messages"]
    assert list(tmp_path.glob("retuned-export-*"))
    del rows  # as a client does that goes away
    assert not list(tmp_path.glob("retuned-export-*"))


def test_a_reader_that_stops_in_the_middle_holds_nothing_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher(house.warehouse)
    for number in range(20):
        teacher.ask(f"Question {number}", "It takes 30 days.")
    whole = b"".join(content(Export("interactions"), house.warehouse, house.settings))
    monkeypatch.setattr(connection, "CHECKPOINT_SECONDS", 1)
    for name in ("ROWS", "MEMORY_BYTES", "PIECE_BYTES"):
        monkeypatch.setattr(exports, name, 7)
    reading = content(Export("interactions"), house.warehouse, house.settings)
    first = next(reading)
    teacher.ask("One more", "It takes 30 days.")  # else there is nothing to write
    house.warehouse.checkpoint()
    assert first + b"".join(reading) == whole, "as of the moment of the first piece"


def test_an_export_leaves_room_on_the_disk(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    Teacher(house.warehouse).ask("Question", "It takes 30 days.")
    monkeypatch.setattr(exports, "MEMORY_BYTES", 7)
    monkeypatch.setattr(exports, "FREE_BYTES", 2**60)
    with pytest.raises(RetunedError, match=r"export: less than .* MiB are free in"):
        b"".join(content(Export("interactions"), house.warehouse, house.settings))


def test_every_table_can_be_exported(house: House) -> None:
    stored = {row["table_name"] for row in house.warehouse.rows("SELECT table_name FROM duckdb_tables()")}
    ours = {
        "schema_migrations",
        "ledger_position",
        "ledger_moments",
        "ledger_outcomes",
        "feedback_totals",
        "batches",
        "ingest_resumptions",
        "judgements",
        "judgements_position",
        "answer_minutes",
        "answer_minutes_position",
        "rating_periods",
        "blindness",
        "groundings",
        "detections",
        "webhook_models",
        "followed_segments",
        "control_positions",
        "label_work",
        "artifacts",
        "archived_ids",
        "audit",  # `retuned audit export`
        "holds",  # `retuned hold list`
        "erasures",  # `retuned erasures`
        "erasure_datasets",
        "erasure_versions",
        "erasures_applied",
        "erased_kept",
        "tombstones",
        "memory_statements",
        "memory_positions",
        "memory_epoch",
        "memory_uses_position",
        "memory_totals",
    }
    assert stored - ours == set(TABLES) - VIEWS.keys()
    for table in set(TABLES) - {"offsets"}:
        assert house.export(table) == b""
        assert pq.read_table(io.BytesIO(house.export(table, "parquet"))).num_rows == 0
