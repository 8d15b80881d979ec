"""Answers that call tools: from events to what a model learns, writes and is judged by."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from fixtures.feedback.teaching import Teacher, question, questions
from fixtures.kafka.brokers import Broker, Json
from fixtures.kafka.ingestion import Rig, feedback, interaction, settings_for
from fixtures.models.datasets import build_dataset, with_dataset
from fixtures.models.tiny import tiny_llama
from fixtures.models.trainings import trained
from retuned.consumers.common.tool_calls import names, read, written
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.retrain.data import dataset
from retuned.retrain.data.dataset import Dataset, logged_answers
from retuned.retrain.data.export import training_sets
from retuned.retrain.data.label_requests import open_requests
from retuned.retrain.decision.evaluate import evaluate
from retuned.retrain.decision.evaluation import BASE, CANDIDATE
from retuned.retrain.settings import (
    DatasetSettings,
    EvaluateSettings,
    ModelsSettings,
    Settings,
    TrainSettings,
)

NOW = datetime(2026, 4, 1)
TOOL = {
    "type": "function",
    "function": {"name": "policy", "description": "Days.", "parameters": {"type": "object", "properties": {}}},
}


def call(**arguments: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "policy", "arguments": json.dumps(arguments)}}


def learned(built: Dataset) -> dict[str, dict[str, Any]]:
    """The rows by their interaction."""
    return {row["interaction_id"]: row for split in dataset.SPLITS for row in built.split(split)}


def test_half_a_character_stops_no_dataset(warehouse: Warehouse, teacher: Teacher, settings: Settings) -> None:
    """Arguments are JSON in JSON, which can hold half of a surrogate pair; UTF-8 and Parquet files cannot."""
    for number in range(20):
        teacher.correct(question(number), "No idea.", f"It takes {number} days.")
    half, whole = call(thing="\ud83d"), call(thing="\ufffd")
    called = teacher.ask("How long may I keep a lamp?", "", attributes={"tool_calls": [half]})
    teacher.say(called, "helpful", True)
    corrected = teacher.ask("How long may I keep a desk?", "For ever.")
    teacher.say(corrected, "correction", {"content": None, "tool_calls": [half]})
    typed = teacher.ask("How long may I keep a stool?", "For ever.", attributes={"tools": [TOOL]})
    teacher.say(typed, "correction", r'[TOOL_CALLS]policy[ARGS]{"thing": "\ud83d"}')
    later = teacher.correct("How long may I keep a chair?", "For ever.", "Ten days.")
    before = [
        {"role": "user", "content": "How long may I keep it?"},
        {"role": "assistant", "content": "", "tool_calls": [half]},
        {"role": "user", "content": "How long may I keep a chair?"},
    ]
    found = warehouse.rows("SELECT interaction_id AS id FROM feedback WHERE id = ?", [later])
    warehouse.execute("UPDATE interactions SET messages = ? WHERE id = ?", [json.dumps(before), found[0]["id"]])
    rows = learned(build_dataset(warehouse, settings, "support", NOW))
    assert {rows[id]["completion"] for id in (called, corrected, typed)} == {written("", [whole])}
    assert '["policy", {"thing": "\ufffd"}]' in rows[found[0]["id"]]["prompt"]


def test_calls_json_and_reasoning_are_learned_for_what_they_are(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    for number in range(20):
        teacher.correct(question(number), "No idea.", f"It takes {number} days.")
    offered = {"tools": [TOOL], "tool_calls": [call(thing="lamp", since="2026-01-02")]}
    called = teacher.ask("How long may I keep a lamp?", "", attributes=offered, finish_reason="tool_calls")
    teacher.say(called, "helpful", True)
    spoken = teacher.ask(
        "How long may I keep a tent?", "I look it up.", attributes={"tool_calls": [call(thing="tent")]}
    )
    teacher.say(spoken, "helpful", True)
    as_calls = teacher.ask("How long may I keep a desk?", "For ever.", attributes={"tools": [TOOL]})
    teacher.say(as_calls, "correction", {"content": None, "tool_calls": [call(thing="desk")]})
    bare, typed, untold = (
        teacher.ask(f"How long may I keep a {thing}?", "For ever.", attributes={"tools": offered} if offered else {})
        for thing, offered in (("chair", [TOOL]), ("stool", [TOOL]), ("bench", None))
    )
    teacher.say(bare, "correction", {"name": "policy", "arguments": {"thing": "chair"}})
    teacher.say(typed, "correction", '[TOOL_CALLS]policy[ARGS]{"thing": "stool"}')
    teacher.say(untold, "correction", {"name": "policy", "arguments": {"thing": "bench"}})
    as_json = teacher.ask("Which fields has my order of a sofa?", "None.")
    teacher.say(as_json, "correction", {"thing": "sofa", "days": [14, None]})
    thought = teacher.ask("How long may I keep a kettle?", "<think>\nKettles: ten.\n</think>\n\nTen days.")
    teacher.say(thought, "helpful", True)
    shown = teacher.ask(
        "How long may I keep a mug?", "", attributes={"tool_calls": [call(thing="mug")]}, model="demonstration"
    )
    teacher.say(shown, "correction", {"content": "", "tool_calls": [call(thing="mug")]})
    apart = teacher.ask("How long may I keep a clock?", "9 days.", attributes={"reasoning_content": "Clocks: nine.\n"})
    teacher.say(apart, "helpful", True)
    before = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello.", "reasoning_content": "A greeting."},
        {"role": "user", "content": "How long may I keep a clock?"},
    ]
    warehouse.execute("UPDATE interactions SET messages = ? WHERE id = ?", [json.dumps(before), apart])
    cut = teacher.ask("How long may I keep a radio?", "<think>\nRadios, hm")
    teacher.say(cut, "helpful", True)
    other = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=1, date_format="%d.%m.%Y")})
    built = build_dataset(warehouse, other, "support", NOW)
    rows = learned(built)
    assert rows[called]["completion"] == written("", offered["tool_calls"])  # dates are for the tool
    assert json.loads(rows[called]["tools"]) == [TOOL]
    assert rows[spoken]["completion"] == written("I look it up.", [call(thing="tent")])
    assert rows[as_calls]["completion"] == written("", [call(thing="desk")])
    assert rows[bare]["completion"] == written("", [call(thing="chair")])
    assert rows[typed]["completion"] == written("", [call(thing="stool")])
    assert rows[untold]["completion"] == '{"name": "policy", "arguments": {"thing": "bench"}}'  # no tools were offered
    assert rows[as_json]["completion"] == '{"thing": "sofa", "days": [14, null]}'
    assert (rows[thought]["completion"], rows[thought]["reasoning"]) == ("Ten days.", "Kettles: ten.")
    assert (rows[apart]["completion"], rows[apart]["reasoning"]) == ("9 days.", "Clocks: nine.")
    assert "A greeting." not in rows[apart]["messages"]  # models are not shown what they thought before
    assert (rows[shown]["completion"], rows[shown]["source"]) == (written("", [call(thing="mug")]), "demonstration")
    assert cut not in rows

    held = {row["row_id"]: row for row in built.split("holdout")}
    logged = logged_answers(warehouse, built)
    assert logged.keys() == held.keys()
    assert {logged[row["row_id"]] for row in held.values() if row["interaction_id"] in (called, spoken, thought)} <= {
        row["completion"] for row in held.values()
    }


def test_experts_and_training_sets_see_calls_tools_and_passages(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    for number in range(20):
        teacher.correct(question(number), "No idea.", f"It takes {number} days.", context=[f"Passage {number}."])
    called = teacher.ask("How long may I keep a lamp?", "", attributes={"tools": [TOOL], "tool_calls": [call(a=1)]})
    before = [
        {"role": "user", "content": "How long may I keep a lamp?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c0", "function": {"name": "policy", "arguments": {}}}],
        },
        {"role": "tool", "tool_call_id": "c0", "content": "Which one?"},
    ]
    warehouse.execute("UPDATE interactions SET messages = ? WHERE id = ?", [json.dumps(before), called])
    teacher.say(called, "helpful", True)
    warehouse.insert(
        "label_requests", id="l1", created_at=NOW, workload="support", interaction_id=called, reason="uncertain",
        detail="", score=0.5, announced=False,
    )  # fmt: skip
    (request,) = open_requests(warehouse)
    assert (request["answer"], request["tools"]) == (written("", [call(a=1)]), [TOOL])

    rows = list(training_sets(warehouse, {"support": with_dataset(settings, holdout_share=0.0)}, "chat"))
    (row,) = (row for row in rows if "tools" in row)
    assert all("Passage" in row["messages"][0]["content"] for row in rows if "tools" not in row)
    assert row["tools"] == [TOOL]
    assert row["messages"][1]["tool_calls"][0]["function"] == {"name": "policy", "arguments": "{}"}
    assert row["messages"][2] == {"role": "tool", "tool_call_id": "c0", "content": "Which one?"}
    assert row["messages"][3]["tool_calls"] == [call(a=1) | {"id": "call_0"}]


# As Qwen's, in fewer words: what is offered stands before the conversation, calls are JSON in tags.
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }}: {{ tool.function.description }}\n{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GOODS = {"lamp": "14", "sofa": "30"}


@pytest.fixture
def rig(tansu: Broker, tmp_path: Path) -> Iterator[Rig]:
    settings = settings_for(tmp_path, tansu.bootstrap_servers)
    tansu.create_topics(settings.kafka.interactions_topic, settings.kafka.feedback_topic)
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse)
    yield rig
    rig.source.close()
    warehouse.close()


def test_calls_in_events_from_kafka_are_what_a_model_learns_to_write(
    rig: Rig, tansu: Broker, tmp_path: Path, settings: Settings
) -> None:
    topics = rig.settings.kafka
    asked = list(questions(GOODS))
    with KafkaProducer(bootstrap_servers=tansu.bootstrap_servers, value_serializer=Json()) as producer:
        for number, (text, _) in enumerate(asked):
            thing = next(thing for thing in GOODS if thing in text)
            event = interaction(
                f"i{number}",
                messages=[{"role": "user", "content": text}],
                tools=[TOOL],
                response={"role": "assistant", "content": None, "tool_calls": [call(thing=thing)]},
                finish_reason="tool_calls",
            )
            producer.send(topics.interactions_topic, event)
            producer.send(topics.feedback_topic, feedback(f"f{number}", f"i{number}", user_id=f"u{number}"))
        producer.flush()
    taken = 0
    while taken < 2 * len(asked):
        taken += rig.ingest.step()
    built = build_dataset(rig.warehouse, settings, "support.refunds", NOW)
    assert sum(built.rows.values()) >= 0.85 * len(asked)  # some say the same

    base = tiny_llama(tmp_path / "base")
    (base / "chat_template.jinja").write_text(TEMPLATE)
    training = TrainSettings(dtype="float32", threads=1, epochs=12, learning_rate=1e-2)
    adapter = Path(trained(base, built.path, tmp_path / "training", training)["adapter"])
    asked_of = Settings(
        models=ModelsSettings(base=base, directory=tmp_path / "models"),
        train=training,
        evaluate=EvaluateSettings(general_examples=0),
    )
    logged = logged_answers(rig.warehouse, built)
    found, _ = evaluate(built, None, adapter, asked_of, "float32", tmp_path / "evaluation", logged=logged)
    held = {row["row_id"]: row["completion"] for row in built.split("holdout")}
    rows = [one for one in found if one.split == "holdout"]
    right = [read(row.output) == read(held[row.row_id]) for row in rows if row.model == CANDIDATE]
    assert len(right) >= 10
    assert sum(right) >= 0.8 * len(right)
    assert all(names(row.output) == () for row in rows if row.model == BASE)
    assert {tuple(row.groups) for row in rows} == {("tool:policy",)}
