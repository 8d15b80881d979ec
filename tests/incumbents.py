"""A gateway with an incumbent and a model server, and the routes that a test sets."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brokers import Broker, until
from doors import FakeDaemon, Place
from gateways import Answer, Gateway, ModelServer, answered, gateway, model_server, published, route
from openai import OpenAI

from retuned.consumers.formats.events import Bounds, decode
from retuned.consumers.settings import IngestSettings
from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.http_settings import HttpSettings

MODEL, DATED, KEY = "commercial-mini", "commercial-mini-2026-04-14", "sk-the-key-of-the-app"
OWN = {"arm": "champion", "model": "support@1", "name": "support@1", "share": 1.0}
INCUMBENT = {"arm": "champion", "model": "support@base", "name": None, "share": 1.0}


class Around:
    """What a gateway has around it."""

    def __init__(
        self, made: Gateway, vendor: ModelServer, own: ModelServer, daemon: FakeDaemon, broker: Broker
    ) -> None:
        self.gateway, self.vendor, self.own, self.daemon, self.broker = made, vendor, own, daemon, broker

    def route(self, *arms: dict[str, Any], experiment: str | None = None, **more: Any) -> None:
        """Gives the workload these arms, and waits until the gateway has them."""
        given = route("support", experiment=experiment) | {"arms": list(arms)} | more
        self.daemon.routed = {"workloads": {"support": given}}
        expected = {arm["model"] for arm in arms}
        until(lambda: {self.ask(f"c-{n}").headers["X-Retuned-Model"] for n in range(6 * len(arms))} == expected)
        for server in (self.vendor, self.own):
            server.requests.clear()

    def app(self) -> OpenAI:
        """OpenAI's client as the app has it; its base URL alone is another one."""
        return OpenAI(base_url=f"{self.gateway.url}/workloads/support/v1", api_key=KEY, max_retries=0, timeout=120)

    def ask(self, conversation: str = "c-1", question: str = "How long?", **more: Any) -> Any:
        """The answer to a question, with its headers."""
        messages: Any = [{"role": "user", "content": question}]
        headers = {"X-Retuned-Conversation": conversation}
        with self.app() as app:
            return app.chat.completions.with_raw_response.create(
                model=MODEL, messages=messages, extra_headers=headers, **more
            )

    def stream(self, **more: Any) -> list[Any]:
        """All chunks of a streamed answer."""
        with self.app() as app, app.chat.completions.create(model=MODEL, messages=[], stream=True, **more) as chunks:
            return list(chunks)

    def event(self, interaction: str) -> dict[str, Any]:
        """The event that was published with this id, and that the daemon understands."""
        topic = self.gateway.topics["interactions"]
        (found,) = (one for one in published(self.broker, topic, interaction) if one["id"] == interaction)
        decode("interactions", json.dumps(found).encode(), Bounds.of(IngestSettings(), utc_now()))
        return found


def dated(handler: Any, asked: dict[str, Any]) -> None:
    """An answer under the dated name of the model, as commercial APIs give it."""
    answered(handler, asked | {"model": DATED})


def error(status: int, message: str) -> Answer:
    """Answers every request with an error."""
    return lambda handler, _: handler.json(status, {"error": {"message": message}})


@contextmanager
def around_it(
    folder: Path, broker: Broker, cascade: dict[str, Any] | None = None, **incumbent: Any
) -> Iterator[Around]:
    """A gateway with an incumbent, with these rules, and a model server."""
    daemon = FakeDaemon()
    place = Place(HttpSettings(port=0), daemon)
    try:
        with model_server(MODEL) as vendor, model_server("base", "support@1", "support@2") as own:
            vendor.answer = dated
            settings = {"url": vendor.url, "model": MODEL, "input_price": 0.4, "output_price": 1.6, **incumbent}
            sections: dict[str, Any] = {
                "http": {"port": place.port},
                "gateway": {"timeout_seconds": 1.0},
                "workloads": {"support": {"incumbent": settings, "cascade": cascade or {}}},
            }
            with gateway(folder, broker, own, **sections) as made:
                yield Around(made, vendor, own, daemon, broker)
    finally:
        place.server.stop()
