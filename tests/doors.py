"""The HTTP server without a daemon behind it: answers that can be set, on a real socket or called directly."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx
from brokers import until
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from retuned.consumers.errors import RetunedError
from retuned.consumers.file_import import Position
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.settings import Settings
from retuned.daemon.web.routes import application
from retuned.daemon.web.server import Server


class FakeDaemon:
    """What the server asks the service and the process for, with answers that can be set."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.found: Any = {"workloads": {}}
        self.routed: Any = {"workloads": {}, "withheld": {}}
        self.commands: list[dict[str, Any]] = []
        self.reports = Path("nowhere")
        self.warned: Callable[[], list[str]] = list
        self.led_by: Any = None

    def health(self) -> list[str]:
        return []

    def readiness(self) -> list[str]:
        return []

    def status(self) -> Any:
        return self.found

    def lineage(self, _: str) -> Any:
        return self.found

    def routes(self) -> Any:
        return self.routed

    def route(self, workload: str, _: str) -> Any:
        if workload not in self.found["workloads"]:
            raise RetunedError(f"workload {workload}: unknown")
        return self.found["workloads"][workload]

    def interaction(self, id: str) -> Any:
        if id == "unknown":
            raise RetunedError(f"interaction {id}: not in the warehouse")
        nothing = ("version", "grounding", "context", "attributes", "latency_seconds", "time_to_first_token_seconds")
        optional = ("input_tokens", "output_tokens", "cost", "finish_reason", "conversation_id", "user_id")
        lists = ("messages", "feedback", "label_requests", "scores")
        texts = {"id": id, "workload": "support", "model": "base", "response": "", "timestamp": "", "received_at": ""}
        lineage = {"rows": [], "set_aside": [], "quarantine": [], "removed": []}
        return texts | dict.fromkeys((*nothing, *optional)) | {name: [] for name in lists} | {"lineage": lineage}

    def approvals(self, _: str | None) -> Any:
        return [self.found]

    def approval(self, _: str) -> Any:
        return {"workload": "support", "version": "v1", "state": "waiting", "requested_at": "", "expires_at": ""}

    def decide_approval(self, id: str, decision: str, reason: str, user: str | None) -> Any:
        self.commands.append({"id": id, "decision": decision, "reason": reason, "user": user})
        return {"done": self.found}

    def labels(self, _: str | None) -> Any:
        return [self.found]

    def dead_letters(self, *_: Any) -> Any:
        return [self.found] * 3

    def replay(self) -> Any:
        return self.found

    def resume_ingestion(self) -> Any:
        return self.found

    def backup(self, folder: Path, keep: int, *, with_key: bool) -> Any:
        if not folder.is_absolute():
            raise RetunedError("not absolute")
        return {"folder": str(folder), "keep": keep, "with_key": with_key}

    def ingestion(self) -> Any:
        return self.found

    def export(self, _: Any) -> Any:
        return iter([b"{}\n"])

    def position(self, _: str) -> Position:
        return Position(None, 0)

    def warnings(self) -> list[str]:
        return self.warned()

    def leader(self) -> Any:
        return self.led_by

    def daemons(self) -> list[Any]:
        return []

    def command(self, _: str, __: str, arguments: dict[str, Any]) -> Any:
        self.commands.append(arguments)
        return {"done": self.found}


def doors(daemon: FakeDaemon, **http: Any) -> Starlette:
    """The application, with these keys of `http`."""
    return application(cast(Any, daemon), daemon, Settings(http=http))  # type: ignore[arg-type]


class Place:
    """A server on a free port."""

    def __init__(self, settings: HttpSettings, daemon: FakeDaemon | None = None) -> None:
        self.daemon = daemon or FakeDaemon()
        self.server = Server(application(cast(Any, self.daemon), self.daemon, Settings(http=settings)), settings)
        self.daemon.warned = self.server.warnings
        self.server.start()
        self.host = settings.host
        self.url, self.port = self.server.url, int(self.server.url.rsplit(":", 1)[1])
        until(self.listens)
        self.command = f"{self.url}/api/v1/workloads/support/promote"

    def listens(self) -> bool:
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
            return probe.connect_ex((self.host, self.port)) == 0

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection((self.host, self.port), timeout=20)
        connection.sendall(sent)
        return connection

    def well(self) -> bool:
        return httpx.get(f"{self.url}/healthz", timeout=10).status_code == 200
