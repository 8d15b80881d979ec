"""How much one message may be, whatever its format: the rest of the stream goes on, and a letter names the bound."""

import json
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from fixtures.feedback.traffic import BOUNDS
from fixtures.kafka.ingestion import Rig, feedback, interaction, settings_for
from retuned.consumers.formats.dialects import BadPart, decode_any
from retuned.consumers.formats.events import Bounds, Feedback, Interaction, PassedOver
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.memory import MemoryLog
from retuned.consumers.privacy.finder import Finder
from retuned.consumers.replay import replay
from retuned.consumers.warehouse.connection import Warehouse

AT = "2026-11-24T09:30:00Z"
NANOS = "1795512600000000000"
SMALL = msgspec.structs.replace(BOUNDS, bytes=20_000)


def found(value: Any, bounds: Bounds = BOUNDS) -> list[Any]:
    return decode_any("interactions", json.dumps(value, separators=(",", ":")).encode(), (), bounds)


def otlp(spans: list[Any], **resource: str) -> dict[str, Any]:
    about = [{"key": key, "value": {"stringValue": value}} for key, value in resource.items()]
    return {"resourceSpans": [{"resource": {"attributes": about}, "scopeSpans": [{"spans": spans}]}]}


def span(number: int, **more: Any) -> dict[str, Any]:
    said = {"gen_ai.prompt": "?", "gen_ai.completion": "!", "gen_ai.request.model": "m", "retuned.workload": "w"}
    return {"attributes": said | {"gen_ai.response.id": f"a{number}"}, "endTimeUnixNano": NANOS} | more


def judged(number: int, **more: Any) -> dict[str, Any]:
    attributes = {"gen_ai.evaluation.name": "q", "gen_ai.evaluation.score.value": number}
    return {"name": "gen_ai.evaluation.result", "timeUnixNano": NANOS, "attributes": attributes | more}


def mlflow(spans: int, trace_id: str = "t", output: Any = '"!"', **tags: str) -> dict[str, Any]:
    def call(number: int) -> dict[str, Any]:
        said = {"mlflow.spanType": '"LLM"', "mlflow.spanInputs": '{"model":"m","messages":[{"role":"user"}]}'}
        span = {"span_id": f"s{number}", "end_time_unix_nano": int(NANOS)}
        return span | {"attributes": said | {"mlflow.spanOutputs": output}}

    info = {"trace_id": trace_id, "tags": {"workload": "w", **tags}}
    return {"info": info, "data": {"spans": [call(number) for number in range(spans)]}}


def langfuse(rows: int, **metadata: str) -> dict[str, Any]:
    row = {"type": "GENERATION", "startTime": AT, "endTime": AT, "model": "m", "input": "?", "output": "!"}
    trace = {"id": "t", "timestamp": AT, "metadata": json.dumps({"workload": "w", **metadata})}
    return trace | {"observations": [row | {"id": f"o{number}"} for number in range(rows)]}


def enveloped(events: int, workload: str) -> dict[str, Any]:
    event = {key: value for key, value in interaction("").items() if key != "workload"}
    array = [event | {"id": f"i{number}"} for number in range(events)]
    return {"specversion": "1.0", "workload": workload, "data": array}


LONG = "x" * 8_000


@pytest.mark.parametrize(
    "message",
    [
        mlflow(40, note=LONG),
        langfuse(60, note=LONG),
        otlp([span(number) for number in range(40)], **{"service.name": LONG}),
        otlp([span(0, events=[judged(n) for n in range(60)], attributes={"gen_ai.response.id": LONG})]),
        enveloped(60, LONG),
    ],
    ids=["mlflow", "langfuse", "resource", "evaluations", "envelope"],
)
def test_what_all_parts_of_a_message_share_is_not_repeated_without_end(message: Any) -> None:
    """As part of each event it would make a message of any size many times as large."""
    parts = found(message, SMALL)
    made = [part for part in parts if isinstance(part, Interaction | Feedback)]
    assert sum(len(msgspec.json.encode(part)) for part in made) <= SMALL.work
    bad = [part for part in parts if isinstance(part, BadPart)]
    assert sum(len(part.part or b"") for part in bad) <= SMALL.work
    assert len(parts) < 40
    if made:
        assert (bad[-1].error.reason, bad[-1].part) == ("too_many", None)
        assert "fewer at a time" in bad[-1].error.detail


def shared(attributes: int, events: int) -> Any:
    known = {f"k{number}": 1 for number in range(attributes)}
    return otlp([span(0, attributes=known | span(0)["attributes"], events=[{"name": "x"}] * events)])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (shared(40_000, 40_000), {"Interaction": 1}),
        (otlp([span(0, attributes={"gen_ai.response.id": "x" * 600_000}, events=[{"name": "gen_ai.evaluation.result"}]
                    * 15_000)]), {"without_content": 1, "no_verdict": 15_000}),
        (otlp([{"note": "x" * 600_000, "events": [{"name": "gen_ai.evaluation.result"}] * 15_000}]),
         {"no_model_call": 1, "no_verdict": 15_000}),
        (mlflow(12_000, output=None), {"request_alone": 12_000}),
        (mlflow(6_000, trace_id="t" * 600_000, output='{"error":1}'), {"failed_call": 6_000}),
        (mlflow(6_000, output='{"error":1}', **{f"k{n}": "" for n in range(60_000)}), {"failed_call": 6_000}),
        (langfuse(6_000, **{f"k{n}": "" for n in range(40_000)}) | {"scores": []}, {"too_many": 1}),
    ],
    ids=["attached", "evaluations", "evaluations without an id", "ids", "trace id", "tags", "metadata"],
)  # fmt: skip
def test_a_large_message_of_any_shape_is_read_to_its_end(message: Any, expected: dict[str, int]) -> None:
    """About 1 MB each. What grew with the square of the size took minutes."""
    kinds = Counter(
        part.reason
        if isinstance(part, PassedOver)
        else part.error.reason
        if isinstance(part, BadPart)
        else type(part).__name__
        for part in found(message)
    )
    assert {name: kinds[name] for name in expected} == expected


def test_a_stream_of_many_pieces_is_joined() -> None:
    pieces = [{"index": 0, "function": {"arguments": "x" * 20}} for _ in range(15_000)]
    first = {"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}
    chunk = {"object": "chat.completion.chunk", "model": "m", "choices": [{"delta": {"tool_calls": [first, *pieces]}}]}
    log = {"workload": "w", "timestamp": AT, "request": {"messages": [{"role": "user"}]}, "response": [chunk]}
    (event,) = found(log)
    (call,) = json.loads(bytes(event.attributes))["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": "x" * 300_000}


@pytest.mark.parametrize(
    "message",
    [
        otlp([span(0), *[{"attributes": {"gen_ai.prompt": "?"}}] * 1_500, span(1)]),
        otlp([span(0, events=[judged(0), *[judged(1, **{"gen_ai.evaluation.name": 5})] * 1_500, judged(2)])]),
        [interaction("a"), *[{}] * 1_500, interaction("b")],
        langfuse(2) | {"scores": [{"dataType": "NUMERIC", "name": 5, "value": 1, "observationId": "o"}] * 1_500},
    ],
    ids=["spans", "evaluations", "array", "scores"],
)
def test_of_any_format_a_thousand_parts_are_letters_and_one_is_for_the_rest(message: Any) -> None:
    parts = found(message)
    good = [part for part in parts if isinstance(part, Interaction | Feedback)]
    *bad, last = [part for part in parts if isinstance(part, BadPart)]
    assert (len(good) in (2, 3), len(bad)) == (True, 1_000)
    assert all(part.part for part in bad)
    assert (last.error.reason, last.part) == ("too_many", None)
    assert last.error.detail.startswith("500 more parts of the message are not events")


@pytest.mark.parametrize("values", [[""] * 700_000, ["12345678"] * 300_000, {f"{n}": 0 for n in range(300_000)}])
def test_more_strings_and_digits_than_one_message_may_hold_are_a_letter(values: Any) -> None:
    (bad,) = found(interaction("a", attributes={"values": values}))
    assert (bad.error.reason, bad.part) == ("too_many", None)
    (bad,) = found({"schema": None, "payload": interaction("a", attributes={"values": values})})
    assert bad.error.reason == "too_many"


@pytest.mark.parametrize(
    "text",
    ["a word, and " * 400_000, "".join(f"Row {n}: 12.50 EUR; " for n in range(100_000)), '{"a": "b"}, ' * 300_000],
    ids=["prose", "numbers", "code"],
)
def test_long_texts_are_read(text: str) -> None:
    (event,) = found(interaction("a", response=text))
    assert event.response == text


def uuid(number: int) -> str:
    return str(UUID(bytes=sha256(str(number).encode()).digest()[:16]))


def test_five_megabytes_of_ordinary_events_are_read() -> None:
    votes = [feedback(uuid(n), uuid(-n), user_id=f"u-{n:06}", source="user") for n in range(23_000)]
    assert len(found(votes)) == 23_000
    texts = "I would like to return the jacket, order A-7. " * 12
    answers = [
        interaction(uuid(n), response=texts, conversation_id=uuid(-n), latency_seconds=0.8) for n in range(6_000)
    ]
    assert len(found(answers)) == 6_000


def test_the_stream_goes_on_and_a_replay_decides_the_same(tmp_path: Path, warehouse: Warehouse) -> None:
    settings = settings_for(tmp_path)
    small = settings.ingest.model_copy(update={"max_event_bytes": 4_000})
    rig = Rig(settings.model_copy(update={"ingest": small}), warehouse, MemoryLog())
    trace = mlflow(9, note="x" * 1_500)
    rig.send(interaction("before"), trace, interaction("after"))
    assert rig.drain() == 3

    def stored() -> list[Any]:
        return rig.warehouse.rows("SELECT id FROM interactions ORDER BY id")

    first = stored()
    assert {"after", "before", "t-s0"} <= {row["id"] for row in first}
    assert 3 < len(first) < 11
    (letter,) = rig.warehouse.rows("SELECT reason, payload FROM dead_letters")
    assert (letter["reason"], json.loads(letter["payload"])) == ("too_many", trace)
    assert replay(rig.ingest) == {"tried": 1, "replayed": 0, "stored": 0}
    assert stored() == first


def test_a_batch_of_messages_that_each_take_long_is_no_standstill(
    tmp_path: Path, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = [0]  # messages read and texts redacted since ingestion last noted that it makes progress

    def counted(function: Any) -> Any:
        def work(*given: Any, **more: Any) -> Any:
            since[-1] += 1
            return function(*given, **more)

        return work

    monkeypatch.setattr(Finder, "find", counted(Finder.find))
    monkeypatch.setattr("retuned.consumers.decoding.decode_any", counted(decode_any))
    monkeypatch.setattr(Ingest, "note_progress", lambda ingest: (since.append(0), setattr(ingest, "_progress_at", 0.0)))
    rig = Rig(settings_for(tmp_path), warehouse, MemoryLog())
    for number in range(100):
        rig.send(json.dumps([interaction(f"a{number}", response=f"Call 030 1234{number:04}")]).encode())
    since.clear()
    since.append(0)
    assert rig.drain() == 100
    assert sum(since) > 200
    assert max(since) < 30
