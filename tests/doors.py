"""The HTTP server without a daemon behind it: answers that can be set, on a real socket or called directly."""

import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import httpx
from brokers import until
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from retuned.consumers.errors import RetunedError
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.operations.openapi import document
from retuned.daemon.operations.operation import Caller, NotFound, Operation
from retuned.daemon.settings import Settings
from retuned.daemon.web.routes import application
from retuned.daemon.web.server import Server


class FakeDaemon:
    """What the server asks the service and the process for, with answers that can be set."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.found: Any = {"workloads": {}}
        self.routed: Any = {"workloads": {}, "withheld": {}, "memory": False}
        self.commands: list[dict[str, Any]] = []
        self.reports = Path("nowhere")
        self.warned: Callable[[], list[str]] = list
        self.led_by: Any = None

    def health(self) -> list[str]:
        return []

    def readiness(self) -> list[str]:
        return []

    def perform(self, operation: Operation[Any, Any], request: Any, caller: Caller) -> Any:
        """By the method of the operation's name, with the fields of the request; commands come to `command`."""
        fields = request.model_dump()
        if operation.command:
            given = request.model_dump(exclude_unset=True, exclude={"workload"})
            return self.command(operation.name, fields.get("workload"), given | {"asked_by": caller.name})
        if "user" in fields:
            fields["user"] = caller.author(request.user)
        elif operation.name == "answer_label":
            fields["user"] = caller.name
        return getattr(self, operation.name)(**fields)

    def refused(self, *_: Any) -> None:
        pass

    def status(self) -> Any:
        return self.found | {"warnings": self.warnings(), "daemons": []}

    def workload_status(self, workload: str) -> Any:  # noqa: ARG002
        return self.status()

    def runs(self, **_: Any) -> Any:
        return [self.found]

    versions = runs

    def diagnosis(self) -> Any:
        return [{"mark": "ok", "name": "events", "found": "answers arrived", "remedy": ""}]

    def overview(self) -> Any:
        empty: dict[str, Any] = {"broker_up": None, "lag_events": None, "source": "kafka"}
        return {
            "version": "0", "as_of": datetime(2026, 3, 2, 9), "currency": "EUR", "workloads": [], "problems": [],
            "ingestion": empty, "warnings": self.warnings(), "daemons": [],
        }  # fmt: skip

    def history(self, **_: Any) -> Any:
        raise NotFound("unknown")

    version = history

    def answers(self, **_: Any) -> Any:
        return {"answers": [], "more": False}

    def inbox(self, **_: Any) -> Any:
        nothing: dict[str, Any] = {"items": [], "by_status": {}, "today": {}, "agreement": (0, 0), "item": None}
        nothing |= dict.fromkeys(("own", "earlier", "later", "next", "skipped"))
        return {"expert": "expert", "waiting": 0, "opinions": None} | nothing

    def my_answers(self, item: str | None) -> Any:  # noqa: ARG002
        return []

    def datasets(self, workload: str) -> Any:  # noqa: ARG002
        return []

    def drift_examples(self, workload: str) -> Any:  # noqa: ARG002
        return []

    def compare_datasets(self, before: str, after: str, limit: int | None) -> Any:  # noqa: ARG002
        return self.found

    def lineage(self, id: str) -> Any:  # noqa: ARG002
        return self.found

    def explain(self, **_: Any) -> Any:
        return iter([b"{}\n"])

    def routes(self) -> Any:
        return self.routed

    def route(self, workload: str, conversation: str, user: str | None) -> Any:  # noqa: ARG002
        if workload not in self.found["workloads"]:
            raise RetunedError(f"workload {workload}: unknown")
        return self.found["workloads"][workload]

    def interaction(self, id: str) -> Any:
        if id == "unknown":
            raise RetunedError(f"interaction {id}: not in the warehouse")
        nothing = ("version", "grounding", "context", "attributes", "latency_seconds", "time_to_first_token_seconds")
        optional = ("input_tokens", "output_tokens", "cost", "finish_reason", "conversation_id", "user_id")
        lists = ("messages", "feedback", "label_requests", "scores")
        texts: dict[str, Any] = {"id": id, "workload": "support", "model": "base", "response": ""}
        lineage = {"rows": [], "set_aside": [], "quarantine": [], "removed": []}
        texts |= dict.fromkeys(("timestamp", "received_at"), datetime(2026, 3, 2, 9))
        return texts | dict.fromkeys((*nothing, *optional)) | {name: [] for name in lists} | {"lineage": lineage}

    def approvals(self, **_: Any) -> Any:
        return [self.found]

    def approval(self, id: str) -> Any:  # noqa: ARG002
        return {
            "workload": "support",
            "kind": "version",
            "version": "v1",
            "state": "waiting",
            "requested_at": "2026-03-02T09:00:00.000Z",
            "expires_at": "2026-03-09T09:00:00.000Z",
        }

    def decide_approval(self, **fields: Any) -> Any:
        self.commands.append(fields)
        return {"done": self.found}

    decide_rows = decide_account = answer_label = work_on_label = decide_approval
    add_memory = decide_memory = decide_approval

    def memory_feed(self, **_: Any) -> Any:
        return self.found

    memory_lookup = memory_entry = memory_feed

    def memory_entries(self, **_: Any) -> Any:
        return []

    def preview_dataset(self, **_: Any) -> Any:
        return iter([b"{}"])

    def plan(self, **_: Any) -> Any:
        return self.found

    def rows(self, **_: Any) -> Any:
        texts = dict.fromkeys(("reason", "detail", "feedback_id", "interaction_id"), "")
        return [{"state": "taught", "decision": None} | texts | self.found]

    def rows_page(self, **_: Any) -> Any:
        row = self.rows()[0]
        return {"rows": [row], "counts": [], "total": 1, "more": False, "related": {}, "saved": None}

    def accounts(self, **_: Any) -> Any:
        return [self.found]

    def labels(self, **_: Any) -> Any:
        return [self.found | {"timestamp": "", "reason": "", "messages": [], "interaction_id": ""}]

    def dead_letters(self, **_: Any) -> Any:
        return [self.found] * 3

    def replay(self) -> Any:
        return self.found

    def resume_ingestion(self) -> Any:
        return self.found

    def openapi(self) -> Any:
        return document()

    def backup(self, folder: str, keep: int, with_key: bool) -> Any:
        if not Path(folder).is_absolute():
            raise RetunedError("not absolute")
        return {"folder": folder, "keep": keep, "with_key": with_key}

    def ingestion(self) -> Any:
        return self.found

    def export(self, **_: Any) -> Any:
        return iter([b"{}\n"])

    audit_log = export

    def audit(self, **_: Any) -> Any:
        return [self.found]

    holds = erasures = audit

    def erasure(self, **_: Any) -> Any:
        return self.found

    forget = preview_erasure = erasure

    def position(self, id: str) -> Any:  # noqa: ARG002
        return {"next": None, "refused": 0}

    def warnings(self) -> list[str]:
        return self.warned()

    def leader(self) -> Any:
        return self.led_by

    def daemons(self) -> list[Any]:
        return []

    def command(self, _: str, __: str | None, arguments: dict[str, Any]) -> Any:
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
        self.command = f"{self.url}/api/v1/workloads/support/rollback"

    def listens(self) -> bool:
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
            return probe.connect_ex((self.host, self.port)) == 0

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection((self.host, self.port), timeout=20)
        connection.sendall(sent)
        return connection

    def well(self) -> bool:
        return httpx.get(f"{self.url}/healthz", timeout=10).status_code == 200
