"""The page of an interaction: what came of one answer."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fixtures.daemon.doors import FakeDaemon, doors
from fixtures.kafka.ingestion import Rig, feedback, interaction, settings_for
from retuned.consumers.errors import RetunedError
from retuned.consumers.kafka.memory import MemoryLog
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.interaction import interaction as found_of

CALL = {"type": "function", "function": {"name": "refund", "arguments": '{"order": 7}'}}


@pytest.fixture
def rig(tmp_path: Path, warehouse: Warehouse) -> Rig:
    return Rig(settings_for(tmp_path), warehouse, MemoryLog())


@pytest.fixture
def site(warehouse: Warehouse) -> TestClient:
    daemon = FakeDaemon()
    daemon.interaction = partial(found_of, warehouse)  # type: ignore[method-assign]
    return TestClient(doors(daemon), "http://localhost:8321")


def test_an_interaction_is_shown_with_all_that_came_of_it(rig: Rig, site: TestClient) -> None:
    asked = [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": [{"type": "text", "text": "<script>alert(1)</script> I am a@b.example"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ]
    rig.send(
        interaction("shop/7 é", messages=asked, latency_seconds=3.21, context=["Refunds take a week."]),
        interaction("other", response="Of another."),
        feedback("f1", "shop/7 é", value=False),
        feedback("f2", "shop/7 é", name="correction", value="A week, to c@d.example.", source="expert"),
        feedback("f3", "other", name="correction", value="Of another.", source="expert"),
    )
    rig.drain()
    id = {"id": "shop/7 é"}
    rig.warehouse.execute(
        "INSERT INTO groundings VALUES ($id, 'support.refunds', TIMESTAMP '2026-11-24', 0.01, true, NULL, 'values')", id
    )
    rig.warehouse.execute(
        "INSERT INTO label_requests BY NAME SELECT 'r' AS id, TIMESTAMP '2026-11-24' AS created_at, "
        "'w' AS workload, $id AS interaction_id, 'ungrounded' AS reason, 'passages say nothing' AS detail, "
        "0.5 AS score, true AS announced",
        id,
    )
    page = site.get("/interactions/shop/7%20%C3%A9")
    assert page.status_code == 200
    for text in (
        "shop/7 é",
        "You are kind.",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "&#34;refund&#34;",
        "On its way.",
        "Refunds take a week.",
        "3.21 s",
        "A week, to &lt;EMAIL",
        "Passages say nothing. Not answered yet.",
        "in no dataset",
        "alarm",
    ):
        assert text in page.text, text
    for text in ("<script>alert", "b.example", "d.example", "Of another."):
        assert text not in page.text, text
    assert "script-src 'self';" in page.headers["content-security-policy"]


def test_of_an_interaction_that_nothing_came_of(rig: Rig, site: TestClient) -> None:
    rig.send(interaction("plain", attributes={"channel": "app", "tool_calls": [CALL]}, response=""))
    rig.drain()
    found = found_of(rig.warehouse, "plain")
    assert json.loads(found["attributes"]) == {"channel": "app"}
    assert "refund" in found["response"]
    assert (found["feedback"], found["scores"], found["grounding"], found["version"]) == ([], [], None, None)
    assert site.get("/interactions/plain").status_code == 200


def test_feedback_of_a_user_who_is_not_named_is_of_who_asked(rig: Rig) -> None:
    rig.send(
        interaction("i", user_id="asker"),
        feedback("f1", "i"),
        feedback("f2", "i", user_id="other"),
        feedback("f3", "i", name="correction", value="A week.", source="expert"),
        feedback("f4", "i", name="correction", value="A week.", source="expert", user_id="ada"),
    )
    rig.drain()
    found = found_of(rig.warehouse, "i")
    by = {one["id"]: one["user_id"] for one in found["feedback"]}
    assert by["f1"] == found["user_id"]
    assert by["f3"] is None
    assert len({by["f1"], by["f2"], by["f3"], by["f4"]}) == 4


def test_an_interaction_that_is_not_there(rig: Rig, site: TestClient) -> None:
    with pytest.raises(RetunedError, match=r"interaction x: not in the warehouse.*retention.keep_days"):
        found_of(rig.warehouse, "x")
    answer: Any = site.get("/interactions/x")
    assert answer.status_code == 404
    assert answer.json()["error"].startswith("interaction x: not in the warehouse")


def test_exemplars_are_for_who_asks_for_openmetrics(rig: Rig) -> None:
    rig.send(interaction("slow", latency_seconds=50))
    rig.drain()
    daemon = FakeDaemon()
    daemon.registry = rig.registry
    site = TestClient(doors(daemon), "http://localhost:8321")
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
    plain, rich = site.get("/metrics"), site.get("/metrics", headers={"Accept": accept})
    assert plain.headers["content-type"].startswith("text/plain")
    assert "interaction_id" not in plain.text
    assert rich.headers["content-type"].startswith("application/openmetrics-text")
    (line,) = (line for line in rich.text.splitlines() if "interaction_id" in line)
    assert 'le="+Inf"' in line
    assert '# {interaction_id="slow"} 50.0 ' in line
    assert rich.text.endswith("# EOF\n")
