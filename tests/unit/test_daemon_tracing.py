"""Spans as a collector receives them. The collector is a double: it takes OTLP over HTTP, and keeps what it got."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fixtures.kafka.brokers import free_port
from retuned.consumers.common import spans
from retuned.consumers.common.spans import span
from retuned.consumers.errors import ConfigurationError
from retuned.daemon import tracing
from retuned.daemon.settings import Settings, TracingSettings, load


class Collector:
    """What arrived: spans by name, and the resource of the last."""

    def __init__(self) -> None:
        self.spans: dict[str, Any] = {}
        self.resource: dict[str, str] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.resource = {one.key: one.value.string_value for one in group.resource.attributes}
                    for scope in group.scope_spans:
                        collector.spans |= {one.name: one for one in scope.spans}
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def settings(self) -> TracingSettings:
        return TracingSettings(otlp_endpoint=f"http://127.0.0.1:{self.server.server_port}/v1/traces")

    def attributes(self, name: str) -> dict[str, Any]:
        return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in self.spans[name].attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    spans.record(None)
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


def test_spans_arrive_with_their_parents_and_what_they_are_about(collector: Collector) -> None:
    stop = tracing.start(collector.settings)
    with span("run", run="r1", workload="support") as run:
        with span("train", version=None):
            pass
        run.set(outcome="succeeded", version="3f2a91c0", promoted=True)
    stop()
    with span("after the end"):
        pass
    assert collector.spans.keys() == {"run", "train"}
    run_, train = collector.spans["run"], collector.spans["train"]
    assert train.parent_span_id == run_.span_id
    assert train.trace_id == run_.trace_id
    assert (
        run_.start_time_unix_nano <= train.start_time_unix_nano <= train.end_time_unix_nano <= run_.end_time_unix_nano
    )
    assert collector.attributes("run") == {
        "retuned.run": "r1",
        "retuned.workload": "support",
        "retuned.outcome": "succeeded",
        "retuned.version": "3f2a91c0",
        "retuned.promoted": True,
    }
    assert collector.attributes("train") == {}
    assert collector.resource["service.name"] == "retuned"


def test_of_an_error_its_type_alone_is_sent(collector: Collector) -> None:
    stop = tracing.start(collector.settings)
    with pytest.raises(ValueError, match="a secret"), span("job quality", job="quality"):
        raise ValueError("a secret of a customer")
    stop()
    sent = collector.spans["job quality"]
    assert sent.status.code == 2
    assert collector.attributes("job quality")["error.type"] == "ValueError"
    assert b"secret" not in sent.SerializeToString()


def test_a_collector_that_is_away_holds_nothing_up() -> None:
    stop = tracing.start(TracingSettings(otlp_endpoint=f"http://127.0.0.1:{free_port()}/v1/traces"))
    with span("run"):
        pass
    ended = threading.Thread(target=stop)
    ended.start()
    ended.join(8)
    assert not ended.is_alive(), "the daemon leaves by force after 10 s"


def test_without_the_libraries_the_error_names_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"tracing\.otlp_endpoint: .*pip install 'retuned\[otel\]'"):
        tracing.start(TracingSettings(otlp_endpoint="http://127.0.0.1:4318/v1/traces"))
    assert tracing.check(Settings().tracing) is None


def test_an_endpoint_is_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETUNED__TRACING__OTLP_ENDPOINT", "localhost:4317")
    with pytest.raises(ConfigurationError, match=r"tracing\.otlp_endpoint"):
        load(None)
