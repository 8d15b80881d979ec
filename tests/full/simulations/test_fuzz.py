"""Messages as no producer should send them: each becomes something, nothing is raised, no secret is stored."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fuzzing import PEOPLE, USER, Message, Pipeline, Plan, corpus, plans
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from fixtures.daemon.operations import ask
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.replay import replay
from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.jsontext import as_json
from retuned.daemon.metrics import Metrics as DaemonMetrics
from retuned.daemon.operations.local import Local
from retuned.daemon.settings import Settings
from retuned.daemon.transfer.exports import Export, content
from retuned.monitors.metrics import Metrics
from retuned.retrain.metrics import Metrics as RetrainMetrics


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


@settings(
    max_examples=60,
    derandomize=True,  # the same messages each time: `make fuzz` looks for others
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(batch=st.lists(plans, min_size=1, max_size=60))
def test_whatever_is_sent_becomes_something_and_no_secret_is_stored(pipeline: Pipeline, batch: list[Plan]) -> None:
    pipeline.check([plan.message(pipeline.next_id()) for plan in batch])


@pytest.mark.parametrize("message", corpus())
def test_what_was_found_once(pipeline: Pipeline, message: Message) -> None:
    pipeline.check([message])


@pytest.mark.parametrize("field", ["id", "workload", "model", "conversation_id", "user_id", "finish_reason"])
def test_a_megabyte_in_a_name(pipeline: Pipeline, field: str) -> None:
    event = {
        "id": pipeline.next_id(),
        "timestamp": "2026-11-24T09:30:00Z",
        "workload": "w",
        "model": "m",
        "response": "r",
    }
    event |= {"messages": [{"role": "user", "content": "?"}], field: "x" * 2**20}
    pipeline.check([Message("interactions", json.dumps(event).encode())])


def strict(text: str | bytes) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_was_stored_can_be_read_back(pipeline: Pipeline) -> None:
    """By everything that reads: replay, status, figures, ledger, exports. JSON is strict, and has no secret."""
    warehouse, sent = pipeline.warehouse, pipeline.sent
    replay(pipeline.rig.ingest)
    whole = Settings(
        kafka=pipeline.settings.kafka, warehouse=pipeline.settings.warehouse, ingest=pipeline.settings.ingest
    )
    registry = CollectorRegistry()
    context = Context(
        warehouse, whole, MemoryPublisher(), DaemonMetrics(registry), Metrics(registry), RetrainMetrics(registry),
        threading.Event(), utc_now,
    )  # fmt: skip
    jobs = Jobs(context, lambda _: None)
    for job in ("quality", "watch", "archive"):
        jobs.run(job)
    service = Local(jobs, pipeline.rig.ingest, utc_now())
    texts = [
        as_json(ask(service, "status")),
        as_json(ask(service, "dead_letters", limit=10_000)),
        as_json(ask(service, "ingestion")),
    ]
    for text in texts:
        strict(text)
    for table in ("interactions", "feedback", "dead_letters"):
        texts += b"".join(content(Export(table, "jsonl", None, None, None), warehouse, whole)).decode().splitlines()
    assert len(texts) > sent / 2
    for text in texts:
        assert strict(text) is not None
        assert not any(secret in text for secret in (*PEOPLE, USER))
    assert generate_latest(registry)
