"""Made-up requests against a running application: what it answers is what its OpenAPI document says."""

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_args

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from prometheus_client import CollectorRegistry
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from fixtures.daemon.operations import ask
from fixtures.kafka.brokers import until
from fixtures.kafka.ingestion import feedback, interaction
from retuned.consumers.errors import RetunedError
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.memory import MemoryLog, MemoryPublisher, MemorySource
from retuned.consumers.metrics import Metrics as ConsumerMetrics
from retuned.consumers.warehouse.connection import utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.consumers.warehouse.writer import stored_offsets
from retuned.daemon.client import Client
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.metrics import Metrics
from retuned.daemon.operations.catalog import OPERATIONS
from retuned.daemon.operations.local import Local
from retuned.daemon.operations.operation import Service
from retuned.daemon.roles import Role
from retuned.daemon.settings import Settings
from retuned.daemon.web import attempts
from retuned.daemon.web.principals import add
from retuned.daemon.web.routes import application
from retuned.daemon.web.server import Server
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain.metrics import Metrics as RetrainMetrics

NOBODY = "nobody"
# Names of workloads, tables and versions that exist, and which table has times, cannot be said in a schema.
EXCLUDED = [checks.positive_data_acceptance]
EXIST = {"workload": "support.refunds", "what": "interactions", "id": "i1"}
"""Of the names that paths hold, those with something behind them."""
SPARED = {"backup"}
"""Operations that would write wherever a made-up request names."""
EXAMPLES = 4
"""Of each operation, who asks it, and whether the request is one that the document allows."""


@dataclass(frozen=True)
class Running:
    """Where it listens, a token of each role, and what answers."""

    url: str
    tokens: dict[str, str]
    local: Local

    def headers(self, who: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[who]}"} if who != NOBODY else {}


class Sound:
    """The process around the server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

    def health(self) -> list[str]:
        return []

    readiness = warnings = daemons = health

    def leader(self) -> None:
        return None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("api")
    file = folder / "principals.yaml"
    tokens = {role: add(file, f"the-{role}", role, None, datetime.now(UTC)) for role in get_args(Role)}
    configured = Settings(
        warehouse={"path": folder / "w.duckdb"},  # type: ignore[arg-type]
        models={"directory": folder / "models"},  # type: ignore[arg-type]
        ingest={"batch_seconds": 0.1, "max_age_days": 73_000},  # type: ignore[arg-type]
        http={"port": 0, "principals_file": file},  # type: ignore[arg-type]
    )
    registry, log, stop = CollectorRegistry(), MemoryLog(), threading.Event()
    with closing(open_warehouse(configured.warehouse)) as warehouse, pytest.MonkeyPatch.context() as patched:
        patched.setattr(attempts, "MOST_FAILURES", 10**6)  # wrong tokens are among what is made up
        publisher = MemoryPublisher()
        topics = configured.kafka.interactions_topic, configured.kafka.feedback_topic
        source = MemorySource(log, topics, lambda: stored_offsets(warehouse))
        ingest = Ingest(source, warehouse, configured, ConsumerMetrics(registry), publisher)
        for number in range(20):
            log.append(topics[0], encoded(interaction(f"i{number}")))
            log.append(topics[1], encoded(feedback(f"f{number}", f"i{number}")))
        log.append(topics[0], b"[")
        ingesting = threading.Thread(target=ingest.run, args=(stop,))
        ingesting.start()
        context = Context(
            warehouse,
            configured,
            publisher,
            Metrics(registry),
            MonitorMetrics(registry),
            RetrainMetrics(registry),
            stop,
            utc_now,
        )
        service = Local(Jobs(context, lambda _: None), ingest, utc_now())
        server = Server(application(service, Sound(registry), configured), configured.http)
        try:
            until(lambda: len(warehouse.rows("SELECT id FROM feedback")) == 20)
            server.start()
            yield Running(server.url, tokens, service)
        finally:
            server.stop()
            stop.set()
            ingesting.join()


def encoded(event: dict[str, Any]) -> bytes:
    import json

    return json.dumps(event).encode()


@pytest.mark.full
@pytest.mark.processes
@pytest.mark.parametrize("who", [NOBODY, *get_args(Role)])
def test_what_is_answered_is_documented(running: Running, who: str) -> None:
    document = httpx.get(f"{running.url}/api/v1/openapi.json", headers=running.headers("admin"), timeout=20).json()
    api = schemathesis.openapi.from_dict(document)
    api.config.update(base_url=running.url)
    statuses: set[int] = set()
    for found in api.get_all_operations():
        operation = found.ok()
        described = document["paths"][operation.path][operation.method]
        if described["operationId"] in SPARED:
            continue
        bounded = "requestBody" in described or any(one["in"] == "query" for one in described.get("parameters", ()))
        for mode in GenerationMode if bounded else (GenerationMode.POSITIVE,):  # any text is an id

            @settings(
                max_examples=EXAMPLES,
                database=None,
                deadline=None,
                derandomize=True,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case) -> None:
                case.path_parameters.update({name: EXIST[name] for name in case.path_parameters.keys() & EXIST})
                answer = case.call(headers=running.headers(who), timeout=20)
                case.validate_response(answer, excluded_checks=EXCLUDED)
                statuses.add(answer.status_code)

            check()
    assert statuses & {200} == (set() if who == NOBODY else {200})


ASKED: dict[str, dict[str, Any]] = {
    "status": {},
    "workload_status": {"workload": "support.refunds"},
    "plan": {"workload": "support.refunds", "machine_price": 1.5, "base": "Qwen/Qwen3-8B"},
    "runs": {},
    "versions": {"workload": "support.refunds"},
    "ingestion": {},
    "diagnosis": {},
    "openapi": {},
    "dead_letters": {"limit": 5},
    "routes": {},
    "route": {"workload": "support.refunds", "conversation": "c-1"},
    "approvals": {},
    "labels": {"workload": "support.refunds"},
    "rows": {"workload": "support.refunds", "state": "waiting"},
    "rows_page": {"workload": "support.refunds"},
    "preview_dataset": {"workload": "support.refunds", "limit": 2},
    "accounts": {},
    "memory_feed": {},
    "memory_entries": {"workload": "support.refunds"},
    "memory_entry": {"id": "none"},
    "interaction": {"id": "i1"},
    "export": {"what": "feedback", "since": "2020-01-01"},
    "position": {"id": "0123456789abcdef"},
    "approval": {"id": "none"},
    "lineage": {"id": "none"},
    "datasets": {"workload": "support.refunds"},
    "drift_examples": {"workload": "support.refunds"},
    "compare_datasets": {"before": "none", "after": "none"},
    "explain": {"id": "i1"},
    "overview": {},
    "history": {"workload": "support.refunds", "since": "2026-11-20", "until": "2026-11-28"},
    "answers": {"since": "2026-11-20"},
    "version": {"workload": "support.refunds", "version": "none"},
    "inbox": {},
    "my_answers": {},
    "audit": {"outcome": "done"},
    "audit_log": {},
    "holds": {},
    "erasures": {},
    "erasure": {"id": "none"},
}
EMPTY = (
    "approvals", "labels", "accounts", "my_answers", "datasets", "runs", "versions", "audit", "audit_log", "holds",
    "erasures", "memory_entries", "drift_examples",
)  # fmt: skip
"""Operations that may have nothing to answer here."""
CHANGING = {"as_of": None, "expert": None}
"""Of an answer, the moment and who asks."""


@pytest.mark.processes
@pytest.mark.parametrize("name", [one.name for one in OPERATIONS if one.method == "GET"])
def test_a_client_gets_what_the_process_of_the_warehouse_gets(running: Running, name: str) -> None:
    port, token = int(running.url.rpartition(":")[2]), running.tokens["admin"]
    client = Client(Settings(http={"port": port, "client_token": token}))  # type: ignore[arg-type]

    def answer(service: Service) -> Any:
        try:
            found = ask(service, name, **ASKED[name])
        except RetunedError as error:
            return str(error)
        found = b"".join(found) if isinstance(found, Iterator) else found
        return found | {key: CHANGING[key] for key in CHANGING.keys() & found} if isinstance(found, dict) else found

    remote = answer(client)
    assert remote == answer(running.local)
    assert remote or name in EMPTY


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_beyond_the_calendar_is_the_clients_error(running: Running, time: str) -> None:
    for name in ("since", "until"):
        answer = httpx.get(
            f"{running.url}/api/v1/exports/interactions",
            params={name: time},
            headers=running.headers("operator"),
            timeout=20,
        )
        assert (answer.status_code, name in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize("path", ["/" + "x" * 5_000, "/x\0"])
def test_what_can_be_no_path_is_refused(running: Running, path: str) -> None:
    for route, field in (("workloads/support.refunds/rebase", "base"), ("backup", "folder")):
        headers = running.headers("admin")
        answer = httpx.post(f"{running.url}/api/v1/{route}", json={field: path}, headers=headers, timeout=20)
        assert (answer.status_code, "no path" in answer.json()["error"]) == (409, True), answer.text
    for name in ("x" * 300 + ".css", "x%00.css", "..%2Fteach.py"):
        assert httpx.get(f"{running.url}/static/{name}", timeout=20).status_code == 404


def test_a_decision_names_who_asked_for_it(running: Running) -> None:
    path = f"{running.url}/api/v1/workloads/support.refunds/retrain"
    answer = httpx.post(path, json={}, headers=running.headers("operator"), timeout=20)
    assert "asked for by the-operator" in answer.json()["error"]


@pytest.mark.parametrize("body", [b'{"reason": "half \\ud83d"}', b'{"\\ud83d": [{}]}', b'{"reason": "\xed\xa0\xbd"}'])
def test_text_that_is_not_utf_8_is_the_clients_error(running: Running, body: bytes) -> None:
    """It could be stored nowhere. Some of these would have taken effect before that."""
    headers = running.headers("admin") | {"Content-Type": "application/json"}
    for one in (one for one in OPERATIONS if one.method == "POST" and not one.packed):
        path = one.paths[0].format(**dict.fromkeys(one.path_fields, "x"))
        answer = httpx.post(f"{running.url}/api/v1{path}", content=body, headers=headers, timeout=20)
        assert (answer.status_code, "not UTF-8" in answer.text) == (400, True), one.name


@pytest.mark.parametrize(
    "body", [b"[]", b"null", b"1", b'{"version": 1}', b'{"reason": {}}', b'{"version": ["v1"]}', b'{"base": 1}']
)
def test_arguments_are_texts(running: Running, body: bytes) -> None:
    headers = running.headers("operator") | {"Content-Type": "application/json"}
    for path in ("dead-letters/replay", "workloads/support.refunds/promote"):
        answer = httpx.post(f"{running.url}/api/v1/{path}", content=body, headers=headers, timeout=20)
        assert answer.status_code == 400
