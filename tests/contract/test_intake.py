"""What every place that files and replayed dead letters go to keeps: a warehouse by itself, and a cluster's daemon."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from fixtures.daemon.operations import ask
from fixtures.kafka.brokers import until
from fixtures.kafka.importing import EVENTS, House, following, logged, opened, pairs, written
from retuned.consumers.errors import OutOfStep, TooManyDeadLetters
from retuned.consumers.formats.files import EventFile
from retuned.daemon.transfer.exports import Export, content, write
from retuned.daemon.transfer.imports import from_bytes, to_bytes

Open = Callable[..., AbstractContextManager[House]]


@pytest.fixture(params=["warehouse", "segments"])
def open_house(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens it, again after it was closed."""
    if request.param == "warehouse":
        return lambda **sections: opened(tmp_path / "house", **sections)
    pytest.importorskip("obstore", reason="the extra cluster is not installed")
    url = request.getfixturevalue("database")
    return lambda **sections: following(tmp_path / "house", url, **sections)


@pytest.fixture
def house(open_house: Open) -> Any:
    with open_house() as made:
        yield made


def test_a_file_again_or_a_copy_of_it_or_of_its_rows_stores_nothing_twice(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "faq.jsonl", *pairs(30), {"x": 1})
    assert house.take(path, workload="support") == 1  # a row was refused
    before = house.events()
    assert (len(before["interactions"]), len(before["feedback"]), house.count("dead_letters")) == (30, 30, 1)
    copy = tmp_path / "renamed.json"
    copy.write_bytes(path.read_bytes())
    capsys.readouterr()
    assert house.take(path, copy, workload="support") == 1  # the row is refused still
    said = "nothing is left to import; of the 31 earlier rows 1 were refused"
    assert capsys.readouterr().out.count(said) == 2
    assert house.count("dead_letters") == 1
    other = written(tmp_path / "other.jsonl", *reversed(pairs(40)))
    os.utime(other, (0, 1_000_000_000))  # years apart
    assert house.take(other, workload="support") == 0
    out = capsys.readouterr().out
    assert "stored      10 interactions, 10 feedback" in out
    assert "duplicates  60" in out
    assert house.take(path, workload="sales") == 1
    assert house.count("interactions") == 70


def test_a_row_of_several_events_is_refused_once(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [{"question": f"How long {number}?", "answer": "Two days.", "timestamp": "24.11.2026"} for number in range(3)]
    path = written(tmp_path / "faq.jsonl", *pairs(4), *bad)
    assert house.take(path, workload="support") == 1
    out = capsys.readouterr().out
    assert "refused     3, kept as dead letters" in out
    assert [out.count(f"row {number}: ") for number in (5, 6, 7)] == [1, 1, 1]
    assert house.take(path, workload="support") == 1
    assert "of the 7 earlier rows 3 were refused" in capsys.readouterr().out


def test_rows_are_redacted_and_refused_as_on_their_way_from_kafka(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(
        tmp_path / "log.jsonl",
        logged(1, response="Write to jo@example.org", user_id="anna"),
        {"mail": "jo@example.org"},
        "broken jo@example.org",
        logged(2, latency_seconds="jo@example.org"),
    )
    assert house.take(path) == 1
    out = capsys.readouterr().out
    assert "refused     3, kept as dead letters of import:" in out
    assert "row 2: not_an_event: neither an event nor a question with an answer" in out
    assert "row 3: not_json" in out
    assert "row 4: not_an_event: Expected `float | null`, got `str`" in out
    row = house.warehouse.row("FROM interactions")
    assert row is not None
    assert row["response"] == "Write to <EMAIL_1>"
    assert row["user_id"] not in (None, "anna")
    assert row["topic"].startswith("import:")
    assert row["offset"] == 0
    letters = house.warehouse.rows('FROM dead_letters ORDER BY "offset"')
    assert [(letter["offset"], letter["reason"]) for letter in letters] == [
        (1, "not_an_event"), (2, "not_json"), (3, "not_an_event"),
    ]  # fmt: skip
    assert "jo@example" not in str(letters) + out
    assert house.registry.get_sample_value("retuned_events_total", {"topic": "import"}) == 4
    # What took long last year is no traffic of now.
    assert not any(
        family.samples for family in house.registry.collect() if family.name.startswith("retuned_interaction_")
    )


@pytest.mark.full
def test_a_row_that_comes_twice_is_reported_once(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one batch, and beside one that came from Kafka."""
    house.send(logged(3))
    with house.running():
        until(lambda: house.count("interactions") == 1)
        assert house.take(written(tmp_path / "log.jsonl", *(logged(n) for n in (1, 2, 1, 3, 1)))) == 0
    out = capsys.readouterr().out
    assert "stored      2 interactions, 0 feedback" in out
    assert "duplicates  3" in out
    assert house.count("interactions") == 3


def test_a_dead_letter_of_a_file_can_be_replayed(house: House, tmp_path: Path) -> None:
    log = {"request": {"model": "m", "messages": [{"role": "user", "content": "q"}]}, "response": "?"}
    house.take(written(tmp_path / "log.jsonl", log), workload="support")
    house.warehouse.execute(
        'UPDATE dead_letters SET payload = replace(payload, \'"response":"?"\', '
        '\'"response":{"id":"r","choices":[{"message":{"content":"now"}}]}\')'
    )
    assert ask(house.service, "replay") == {"tried": 1, "replayed": 1, "stored": 1}
    row = house.warehouse.row("SELECT workload, response FROM interactions")
    assert row == {"workload": "support", "response": "now"}


def test_a_replayed_letter_shares_no_placeholder_with_others(house: House, tmp_path: Path) -> None:
    """What stands in a letter has numbers of the letter alone; whose they are in its conversation nobody knows."""
    said = ("anna@example.org, bert@example.org", "only bert@example.org", "carl@example.org, carl@example.org, bert")
    bad = [logged(n, conversation_id="c", response=text, latency_seconds="?") for n, text in enumerate(said)]
    house.take(written(tmp_path / "log.jsonl", bad[0] | {"latency_seconds": 1.0}, *bad[1:]))
    house.warehouse.execute(
        """UPDATE dead_letters SET payload = replace(payload, '"latency_seconds":"?"', '"latency_seconds":1')"""
    )
    assert ask(house.service, "replay") == {"tried": 2, "replayed": 2, "stored": 2}
    found = [row["response"] for row in house.warehouse.rows("SELECT response FROM interactions ORDER BY id")]
    assert found == ["<EMAIL_1>, <EMAIL_2>", "only <EMAIL_3>", "<EMAIL_4>, <EMAIL_4>, bert"]


class Killed(BaseException):
    """The process ends here."""


def killed_after(take: Callable[[Any], Any], batches: int) -> Callable[[Any], Any]:
    left = iter(range(batches))

    def taken(batch: Any) -> Any:
        if next(left, None) is None:
            raise Killed
        return take(batch)

    return taken


def test_what_was_stopped_goes_on_where_it_was(
    open_house: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "faq.jsonl", *pairs(100))
    batches = {"batch_events": 30}
    with open_house(ingest=batches) as house:
        monkeypatch.setattr(house.files, "take", killed_after(house.files.take, 2))
        with pytest.raises(Killed):
            house.take(path, workload="support")
        assert house.count("interactions") == 60
    capsys.readouterr()
    with open_house(ingest=batches) as house:
        assert house.take(path, workload="support") == 0
        said = capsys.readouterr()
        assert "continues after row 60" in said.err
        assert "40 rows read" in said.out
        assert (house.count("interactions"), house.count("feedback")) == (100, 100)


def test_what_an_interrupted_import_had_refused_is_said_by_the_next_ones(
    open_house: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends when the second batch is stored, and before it knows that."""
    rows = [{"x": number} if number < 45 and number % 3 == 0 else pair for number, pair in enumerate(pairs(100))]
    path = written(tmp_path / "faq.jsonl", *rows)
    batches = {"batch_events": 30}
    with open_house(ingest=batches) as house:
        taken, left = house.files.take, [1]

        def killed(batch: Any) -> Any:
            found = taken(batch)
            if not left:
                raise Killed
            left.pop()
            return found

        monkeypatch.setattr(house.files, "take", killed)
        with pytest.raises(Killed):
            house.take(path, workload="support")
        out = capsys.readouterr().out
        assert "60 rows read" in out
        assert "refused     10, kept" in out
        assert "not known   30 rows were sent last, and may or may not be stored" in out
        assert house.count("dead_letters") == 15
    with open_house(ingest=batches) as house:
        assert house.take(path, workload="support") == 1
        said = capsys.readouterr()
        assert "continues after row 60; of the 60 earlier rows 15 were refused" in said.err
        assert "40 rows read" in said.out
        assert "refused     0\n" in said.out
        assert "not known" not in said.out
        assert "in all      the file up to row 100, 15 of its rows refused" in said.out
        assert house.take(path, workload="support") == 1
        assert "nothing is left to import; of the 100 earlier rows 15 were refused" in capsys.readouterr().out
        # Of another file, and of one whose letters were replayed, nothing is said.
        assert house.take(written(tmp_path / "other.jsonl", *pairs(3)), workload="support") == 0
        house.warehouse.execute(
            """UPDATE dead_letters SET payload = '{"id": "l' || "offset" || '", "timestamp": "2024-01-01T00:00:00Z", """
            """"interaction_id": "i", "name": "helpful", "value": true}'"""
        )
        assert ask(house.service, "replay")["replayed"] == 15
        capsys.readouterr()
        assert house.take(path, workload="support") == 0
        assert "nothing is left to import; the 100 earlier rows are stored" in capsys.readouterr().out


def test_of_two_imports_of_a_file_the_one_that_ends_names_it_and_what_to_do(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "faq.jsonl", *pairs(10))
    taken = house.files.take

    def overtaken(batch: Any) -> Any:
        """When the other one has stored the same rows."""
        taken(batch)
        return taken(batch)

    monkeypatch.setattr(house.files, "take", overtaken)
    with pytest.raises(OutOfStep) as refused:
        house.take(path, workload="support")
    assert str(refused.value) == (
        f"{path}: another import of the same file has stored its first 10 rows meanwhile; this one stops, and has "
        "stored nothing twice: wait for the other one, then run the command again to continue"
    )
    monkeypatch.undo()
    assert house.take(path, workload="support") == 0
    assert (house.count("interactions"), house.count("feedback")) == (10, 10)


@pytest.mark.full
def test_a_batch_out_of_step_stores_nothing_and_ends_nobody(house: House, tmp_path: Path) -> None:
    first, second = EventFile(written(tmp_path / "x.jsonl", *pairs(4)), None, "w", 10_000).batches(None, 2)
    with house.running():
        house.send(*map(logged, range(20)))  # while events flow
        with pytest.raises(OutOfStep, match="another import of the same file has stored its first 0 rows"):
            house.files.take(second)
        sent = [from_bytes(next(iter(one.nexts))[0], to_bytes(one)) for one in (first, second)]
        assert house.files.take(sent[0]).stored == {"interactions": 2, "feedback": 2}
        with pytest.raises(OutOfStep):
            house.files.take(sent[0])
        assert house.files.take(sent[1]).stored == {"interactions": 2, "feedback": 2}
        until(lambda: house.count("interactions") == 24)


def test_a_row_that_is_none_is_refused_by_a_running_daemon_too(house: House, tmp_path: Path) -> None:
    path = tmp_path / "handbook.md"
    path.write_text("Nothing is above this.\n\n# How long may I return it?\n\n30 days.\n")
    (batch,) = EventFile(path, None, "w", 10_000).batches(None, 10)
    taken = house.files.take(from_bytes("import:0123456789abcdef", to_bytes(batch)))
    assert taken.stored["interactions"] == 1
    assert sum(taken.refused.values()) == 1


def test_a_file_of_which_most_rows_are_refused_is_given_up(house: House, tmp_path: Path) -> None:
    house.settings = house.settings.model_copy(
        update={"ingest": house.settings.ingest.model_copy(update={"batch_events": 500})}
    )
    path = written(tmp_path / "x.jsonl", *[{"x": n} for n in range(5_000)])
    with pytest.raises(TooManyDeadLetters, match="stopped: 1,000 of 1,000 rows are not events"):
        house.take(path, workload="w")
    assert house.count("dead_letters") == 1_000
    with pytest.raises(TooManyDeadLetters, match="stopped: 1,000 of 1,000 rows are not events"):
        house.take(path, workload="w")  # to repeat it is no way past the limit
    assert house.count("dead_letters") == 1_000
    lenient = house.settings.ingest.model_copy(update={"dead_letter_share_limit": 1.0})
    house.settings = house.settings.model_copy(update={"ingest": lenient})
    assert house.take(path, workload="w") == 1
    assert house.count("dead_letters") == 5_000


def test_rows_that_earlier_imports_refused_count_towards_the_limit(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three are refused in the first thousand, then all: neither part is above the limit by itself."""
    house.settings = house.settings.model_copy(
        update={
            "ingest": house.settings.ingest.model_copy(
                update={"batch_events": 300, "dead_letter_window": 1_000, "dead_letter_share_limit": 0.7}
            )
        }
    )
    rows = [{"x": n} if n % 3 or n >= 900 else pair for n, pair in enumerate(pairs(2_400))]
    path = written(tmp_path / "x.jsonl", *rows)
    monkeypatch.setattr(house.files, "take", killed_after(house.files.take, 3))
    with pytest.raises(Killed):
        house.take(path, workload="w")
    monkeypatch.undo()
    with pytest.raises(TooManyDeadLetters, match="stopped: 900 of 1,200 rows are not events"):
        house.take(path, workload="w")
    assert house.count("dead_letters") == 900


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_what_is_exported_and_imported_is_the_same(house: House, tmp_path: Path, format: str) -> None:
    """From a warehouse with another key of pseudonyms."""
    more = {
        "context": ["a passage"],
        "conversation_id": "anna@example.org",
        "user_id": "anna",
        "latency_seconds": 0.25,
        "input_tokens": 3,
        "cost": 0.001,
        "finish_reason": "stop",
        "attributes": {"channel": "web", "deep": {"er": [1, None, 2.5]}},
    }
    rows = [
        logged(1, response="Ask jo@example.org, “Zoë”\nor call", **more),
        logged(2, messages=[{"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}], response=""),
        *[logged(n) for n in range(3, 12_000)],
    ]
    for number, value in enumerate((True, 0.5, "fine, <EMAIL_1>", 7)):
        name = ("helpful", "rating", "correction", "stars")[number]
        said = {"id": f"f{number}", "timestamp": "2024-02-01T00:00:00Z", "interaction_id": "i1", "source": "expert"}
        rows.append({**said, "name": name, "value": value, "user_id": "bob"})
    paths = [tmp_path / f"{table}.{format}" for table in EVENTS]
    with opened(tmp_path / "other") as other:
        other.take(written(tmp_path / "all.jsonl", *rows))
        for table, path in zip(EVENTS, paths, strict=True):
            write(content(Export(table, format), other.warehouse, other.settings), path)
        assert house.take(*paths) == 0
        assert house.events() == other.events()
    assert house.count("interactions") == 11_999
    assert sorted(tmp_path.glob("*.tmp")) == []
