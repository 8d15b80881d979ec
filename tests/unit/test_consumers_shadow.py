"""What a candidate answered in shadow comes as feedback, and is stored where nothing else looks."""

from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.traffic import new_warehouse
from fixtures.kafka.ingestion import Rig, feedback, interaction, settings_for
from retuned.consumers.kafka.memory import MemoryLog
from retuned.consumers.warehouse.connection import Warehouse


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(settings_for(tmp_path), new_warehouse(tmp_path), MemoryLog())


def shadow_answer(id: str, interaction_id: str, response: str, **changes: Any) -> dict[str, Any]:
    value = {"model": "support.refunds@2", "response": response, "input_tokens": 9}
    return feedback(id, interaction_id, name="shadow_answer", source="app", value=value) | changes


def rows(warehouse: Warehouse, table: str) -> list[dict[str, Any]]:
    return warehouse.rows(f"SELECT id, interaction_id, name, value FROM {table} ORDER BY id")


def test_it_is_redacted_with_its_conversation_and_stored_apart_once(rig: Rig) -> None:
    asked = [{"role": "user", "content": "I am ann@example.org, where is it? Or ask bob@example.org."}]
    rig.send(interaction("i-1", messages=asked), feedback("f-1", "i-1"))
    rig.send(shadow_answer("s-1", "i-1", "Ask bob@example.org."))
    rig.drain()
    rig.send(shadow_answer("s-1", "i-1", "Ask bob@example.org."), shadow_answer("s-2", "i-1", "Ask carl@example.org."))
    rig.drain()
    assert [row["id"] for row in rows(rig.warehouse, "feedback")] == ["f-1"]
    first, second = rows(rig.warehouse, "shadow_answers")
    assert (first["id"], first["interaction_id"], first["name"]) == ("s-1", "i-1", "shadow_answer")
    expected = '{"model":"support.refunds@2","response":"Ask <EMAIL_2>.","input_tokens":9}'
    assert first["value"].replace(": ", ":").replace(", ", ",") == expected
    assert "carl" not in second["value"]
    assert rig.ingest.warehouse.rows("SELECT count(*) AS n FROM interactions") == [{"n": 1}]
    assert rig.count("retuned_event_duplicates_total") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": "user"},
        {"source": "expert"},
        {"value": "an answer"},
        {"value": {"model": "m@1"}},
        {"value": {"model": "m@1", "response": None}},
        {"value": ["m@1", "text"]},
    ],
)
def test_what_is_none_is_a_dead_letter(rig: Rig, wrong: dict[str, Any]) -> None:
    rig.send(interaction("i-1"), shadow_answer("s-1", "i-1", "Yes.", **wrong), shadow_answer("s-2", "i-1", "Yes."))
    rig.drain()
    assert [row["id"] for row in rows(rig.warehouse, "shadow_answers")] == ["s-2"]
    (letter,) = rig.warehouse.rows("SELECT reason, detail FROM dead_letters")
    assert letter["reason"] == "bad_value"
    assert "shadow_answer" in letter["detail"]
