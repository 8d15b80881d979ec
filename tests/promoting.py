"""A workload whose champion is changed, and a fault at any step of that."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from traffic import new_warehouse

from retuned.consumers.common import durable
from retuned.consumers.errors import BrokerRefused, BrokerUnavailable, WarehouseError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import RolloutSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain import versions
from retuned.retrain.metrics import Metrics
from retuned.retrain.release import approve, registry, rollout
from retuned.retrain.release.approvals import Verdict
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.release.routes import routes, under_way
from retuned.retrain.settings import ModelsSettings, Settings

NOW = datetime(2026, 4, 1, 12)
OLD, NEW = "aaaaaaaa", "bbbbbbbb"


class Killed(BaseException):
    """The process ends here: nothing catches it."""


FAULTS: dict[str, Callable[[], BaseException]] = {
    "killed": Killed,
    "disk full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "read-only": lambda: OSError(errno.EROFS, "Read-only file system"),
    "no permission": lambda: PermissionError(errno.EACCES, "Permission denied"),
    "may not write": lambda: BrokerRefused("topic 'events': refused (TopicAuthorizationFailedError)"),
    "broker away": lambda: BrokerUnavailable("kafka: it does not answer"),
    "warehouse full": lambda: WarehouseError("warehouse: cannot write; free disk space and start again"),
}


def model_row(version: str, path: Path, created_at: datetime, workload: str = "support") -> dict[str, Any]:
    """A row of `models`, with a manifest that a model card can be made of."""
    row = {"base_model": "b", "base_hash": "h", "dataset_version": "d", "run_id": "r", "parent_version": None}
    own = {"version": version, "workload": workload}
    manifest = {**own, **row, "created_at": created_at.isoformat() + "Z", "code_version": "0.2.0"}
    return {**own, **row, "created_at": created_at, "path": str(path), "manifest": json.dumps(manifest)}


@dataclass
class Case:
    """A workload with a champion, whose next change fails at a step."""

    folder: Path
    publisher: MemoryPublisher = field(default_factory=MemoryPublisher)

    def __post_init__(self) -> None:
        self.warehouse = new_warehouse(self.folder)
        self.settings = Settings(models=ModelsSettings(directory=self.folder / "models"))
        self.begin()

    def begin(self) -> None:
        """As a process does that starts."""
        self.collectors = CollectorRegistry()
        self.metrics = Metrics(self.collectors)
        self.rollout = Rollout(self.warehouse, self.settings, self.publisher, "events", self._show)
        registry.reconcile(self.warehouse, self.settings)

    def _show(self, workload: str) -> None:
        self.metrics.aliases(self.warehouse, workload)

    def prepare(self) -> None:
        for version in (OLD, NEW):
            path = self.folder / "models" / "support" / version
            path.mkdir(parents=True)
            self.warehouse.insert("models", **model_row(version, path, NOW))
        self.rollout.promote("support", OLD, "operator", "the first", NOW)

    def change(self, actor: Any) -> None:
        """The gate, who approves what it passed, and an operator promote; an operator and the watch take back."""
        now = self.now()
        if actor == "approver":
            champion, run_id = versions.aliases(self.warehouse, "support")["champion"], f"run-{self.changes()}"
            request = approve.request(self.rollout, "support", NEW, champion, run_id, now)
            approve.decide(self.rollout, Verdict(request.id, "approved", "alice", "it is better"), now)
        elif actor in ("gate", "operator"):
            self.rollout.promote("support", NEW, actor, "it is better", now)
        else:
            self.rollout.rollback("support", "operator" if actor == "rollback" else actor, "it is worse", now)

    def go_back_to(self, version: str) -> str | None:
        """Before a change: this one serves, and the other one did before."""
        for one in (NEW, OLD) if version == OLD else (OLD, NEW):
            if versions.aliases(self.warehouse, "support")["champion"] != one:
                self.rollout.promote("support", one, "operator", "for the test", self.now())
        return self.assert_agreed()

    def now(self) -> datetime:
        return NOW + timedelta(minutes=self.changes())

    def changes(self) -> int:
        return len(self.warehouse.rows("SELECT * FROM promotions"))

    def assert_agreed(self) -> str | None:
        """Alias, links, the last message and metrics name the same version, which is returned; each change is told."""
        aliases = versions.aliases(self.warehouse, "support")
        folder = self.settings.models.directory / "support"
        links = {link.name: str(link.readlink()) for link in folder.iterdir() if link.is_symlink()}
        assert links == {alias: version for alias, version in aliases.items() if version}
        assert all((folder / alias).is_dir() for alias in links)
        assert not list(folder.glob(".*.tmp"))
        told = list({message["id"]: message for _, _, message in self.publisher.messages}.values())
        rows = self.warehouse.rows("SELECT * FROM promotions ORDER BY created_at")
        assert [message["id"] for message in told] == [row["id"] for row in rows]
        assert all(row["announced"] for row in rows)
        assert told[-1]["version"] == rows[-1]["version"] == aliases["champion"]
        approved = self.warehouse.rows("SELECT decided_at FROM approvals WHERE state = 'approved' ORDER BY decided_at")
        by_approval = [row["created_at"] for row in rows if row["actor"] == "approver"]
        assert [row["decided_at"] for row in approved] == by_approval
        shown = {
            sample.labels["alias"]: sample.labels["model_name"]
            for metric in self.collectors.collect()
            if metric.name == "retuned_model_info"
            for sample in metric.samples
        }
        assert shown == {alias: versions.model_name("support", version) for alias, version in aliases.items()}
        return aliases["champion"]


STEPS = ("begin", "grow", "promote", "complete")
SHARES = {"begin": 0.05, "grow": 0.25, "promote": 0.95, "complete": 1.0}


class Release(Case):
    """A workload whose new version takes the steps of a rollout."""

    def begin(self) -> None:
        self.settings = Settings(
            models=ModelsSettings(directory=self.folder / "models"),
            rollout=RolloutSettings(steps=(0.05, 0.25, 1.0), holdback=0.05),
        )
        super().begin()

    def take(self, step: str) -> None:
        """Take a step as the daemon does, unless it was taken: a canary is looked at again after each start."""
        running, now = under_way(self.warehouse, "support"), self.now()
        if step == "take back":
            self.rollout.rollback("support", "rollout", "worse", now, of=NEW)
        elif step == "begin":
            self.rollout.begin("support", NEW, "gate", "better", now)
            self.rollout.follow_up_or_log("support")
        elif step == "complete":
            self.rollout.complete("support", "the watch is over", now)
        elif running is not None:
            before = SHARES[STEPS[STEPS.index(step) - 1]]
            self.rollout.advance("support", running.id, before, "as good", now)

    def come_to(self, step: str) -> None:
        for one in STEPS[: STEPS.index(step)]:
            self.take(one)

    def assert_all_agree(self) -> list[tuple[str | None, float]]:
        """What routes, aliases, links, rows, metrics and the last message say; the routes are returned."""
        (route,) = routes(self.warehouse)
        arms = {arm.version: arm.share for arm in route.arms}
        running, aliases = under_way(self.warehouse, "support"), versions.aliases(self.warehouse, "support")
        folder = self.settings.models.directory / "support"
        links = {link.name: str(link.readlink()) for link in folder.iterdir() if link.is_symlink()}
        assert links == {alias: version for alias, version in aliases.items() if version}
        assert ("canary" in aliases) == (running is not None and running.state == "canary")
        assert arms.keys() <= set(aliases.values())
        rows = self.warehouse.rows("SELECT * FROM promotions ORDER BY created_at, rowid")
        told = list({message["id"]: message for _, _, message in self.publisher.messages}.values())
        assert [message["id"] for message in told] == [row["id"] for row in rows]
        assert all(row["announced"] for row in rows)
        assert arms[rows[-1]["version"]] == rows[-1]["share"] == told[-1]["share"]
        shown = self.collectors.get_sample_value("retuned_rollout_share_ratio", {"workload": "support"})
        assert shown == (running and running.share)
        states = [row["state"] for row in self.warehouse.rows("SELECT state FROM rollouts WHERE ended_at IS NULL")]
        assert states == ([running.state] if running else [])
        return [(arm.version, arm.share) for arm in route.arms]


def kill_at(step: str, case: Case, do: str, what: str) -> None:
    """Have another process do something to a case, `do` by the name of its method, and die at a step of it."""
    case.warehouse.close()
    script = "import promoting, sys; promoting.die_at(*sys.argv[1:])"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", script, step, type(case).__name__, str(case.folder), do, what],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def die_at(step: str, kind: str, folder: str, do: str, what: str) -> None:
    """What that other process does."""
    case: Case = {"Case": Case, "Release": Release}[kind](Path(folder))
    with pytest.MonkeyPatch.context() as patch:
        fail_at(step, lambda: os.kill(os.getpid(), signal.SIGKILL), case, patch)
        getattr(case, do)(what)


def fail_at(step: str, fault: Callable[[], Any], case: Case, patch: pytest.MonkeyPatch) -> list[str]:
    """Let the next change fail at a step; what is returned names the step once it came to it."""
    reached: list[str] = []

    def failing(real: Callable[..., Any], here: Callable[..., bool], after: bool = False) -> Callable[..., Any]:
        def fail(*given: Any, **named: Any) -> Any:
            if not here(*given, **named):
                return real(*given, **named)
            if after:
                real(*given, **named)
            reached.append(step)
            error = fault()
            raise error

        return fail

    places: dict[str, tuple[Any, str, Callable[..., bool]]] = {
        "row": (rollout, "insert", lambda _, table, **__: table == "promotions"),
        "commit": (Rollout, "_write", lambda *_: True),
        "metrics": (Metrics, "aliases", lambda *_: True),
        "previous": (durable, "point", lambda link, _: link.name == "previous"),
        "champion": (durable, "point", lambda link, _: link.name == "champion"),
        "message": (case.publisher, "publish", lambda *_: True),
        "mark": (Warehouse, "execute", lambda _, sql, *__: "announced" in sql),
    }
    place, name, here = places[step]
    # What follows the commit is killed behind it, as nothing else can come between.
    patch.setattr(place, name, failing(getattr(place, name), here, after=step == "commit"))
    return reached
