"""Spans of jobs and runs, sent to a collector of OpenTelemetry by OTLP over HTTP."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from retuned.consumers.common import spans
from retuned.consumers.common.spans import Span, Value
from retuned.consumers.errors import ConfigurationError
from retuned.daemon.settings import TracingSettings

EXPORT_SECONDS = 2.0
"""The daemon has 10 s to stop, and may have to send its last spans to a collector that is away."""


def check(settings: TracingSettings) -> str | None:
    """Where spans go; None: nowhere.

    Raises:
        ConfigurationError: the libraries that send them are not there.
    """
    if settings.otlp_endpoint is None:
        return None
    for name in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"):
        if not _is_installed(name):
            raise ConfigurationError(
                f"tracing.otlp_endpoint: {name} is not installed; run pip install 'retuned[otel]', or leave the key out"
            )
    return f"spans of jobs and runs go to {settings.otlp_endpoint}"


def start(settings: TracingSettings) -> Callable[[], None]:
    """Send spans from now on. Returns what sends the last ones and ends it, within some seconds.

    Raises:
        ConfigurationError: see `check`.
    """
    check(settings)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "retuned", "service.version": version("retuned")})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint, timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("retuned", version("retuned"))
    spans.record(lambda name: _recorded(tracer, name))

    def stop() -> None:
        spans.record(None)
        provider.shutdown()

    return stop


class _Recorded:
    def __init__(self, span: Any) -> None:
        self._span = span

    def set(self, **attributes: Value | None) -> None:
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(f"retuned.{name}", value)


@contextmanager
def _recorded(tracer: Any, name: str) -> Iterator[Span]:
    from opentelemetry.trace import StatusCode

    # Errors quote what they failed on, and that may be what somebody wrote: their type alone is sent.
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
        try:
            yield _Recorded(span)
        except BaseException as error:
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", type(error).__name__)
            raise


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
