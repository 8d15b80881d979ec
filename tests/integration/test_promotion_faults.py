"""A change of champion is all or nothing: whatever fails at whichever step, alias, links, announcements and metrics
agree in the end, and what was not committed never happened.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from faults import no_small_disk
from prometheus_client import CollectorRegistry
from traffic import new_warehouse

from retuned.consumers.common import durable
from retuned.consumers.errors import BrokerRefused, BrokerUnavailable, WarehouseError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain import versions
from retuned.retrain.metrics import Metrics
from retuned.retrain.release import approve, registry, rollout
from retuned.retrain.release.approvals import Verdict
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.settings import ModelsSettings, Settings

NOW = datetime(2026, 4, 1, 12)
OLD, NEW = "aaaaaaaa", "bbbbbbbb"
DISK, BROKER = ("killed", "disk full", "read-only", "no permission"), ("killed", "broker away", "may not write")
STEPS = {
    "row": ("killed", "warehouse full"),
    "commit": ("killed",),  # between two statements of Python nothing else can happen
    "previous": DISK,
    "champion": DISK,
    "message": BROKER,
    "mark": ("killed", "warehouse full"),
    "metrics": ("killed", "warehouse full"),
}


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
        row = {"base_model": "b", "base_hash": "h", "dataset_version": "d", "run_id": "r", "manifest": "{}"}
        for version in (OLD, NEW):
            path = self.folder / "models" / "support" / version
            path.mkdir(parents=True)
            self.warehouse.insert("models", version=version, workload="support", created_at=NOW, path=str(path), **row)
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
        assert [row["decided_at"] for row in approved] == [
            row["created_at"] for row in rows if row["actor"] == "approver"
        ]
        shown = {
            sample.labels["alias"]: sample.labels["model_name"]
            for metric in self.collectors.collect()
            if metric.name == "retuned_model_info"
            for sample in metric.samples
        }
        assert shown == {alias: versions.model_name("support", version) for alias, version in aliases.items()}
        return aliases["champion"]


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


@pytest.mark.parametrize(
    ("goal", "actors"),
    [(NEW, ["gate", "operator"]), (NEW, ["approver", "approver"]), (OLD, ["watch", "rollback"])],
    ids=["promotion", "approval", "rollback"],
)
def test_whatever_fails_at_whichever_step_all_agree_in_the_end(
    goal: str, actors: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path)
    case.prepare()
    for number, (step, name) in enumerate((step, name) for step, names in STEPS.items() for name in names):
        actor = actors[number % 2]
        before = case.go_back_to(NEW if goal == OLD else OLD)
        count = case.changes()
        failed = None
        with monkeypatch.context() as patch:
            reached = fail_at(step, FAULTS[name], case, patch)
            try:
                case.change(actor)
            except (Killed, Exception) as error:  # noqa: BLE001
                failed = error
            assert reached, (step, name)
            if step != "row" and name != "killed":
                assert failed is None, (step, name, "the change is a fact, and is reported as none")
                assert versions.aliases(case.warehouse, "support")["champion"] == goal
        if step == "row":
            assert failed is not None
            assert (case.changes(), case.assert_agreed()) == (count, before), name
            case.change(actor)  # and nothing stands in the way of another try
        if name == "killed":
            case.begin()
        for workload in case.rollout.changed():
            case.rollout.follow_up(workload)
        assert case.assert_agreed() == goal, (step, name)
        assert case.changes() == count + 1
    case.warehouse.close()


_KILL = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import pytest
from test_promotion_faults import Case, fail_at
case = Case(Path(sys.argv[2]))
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
with pytest.MonkeyPatch.context() as patch:
    fail_at(sys.argv[3], kill, case, patch)
    case.change(sys.argv[4])
"""


@pytest.mark.parametrize(
    ("step", "actor"),
    [("commit", "watch"), ("champion", "gate"), ("mark", "rollback"), ("row", "approver"), ("commit", "approver")],
)
def test_a_process_that_is_killed_in_the_middle_is_made_good(step: str, actor: str, tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.prepare()
    if actor in ("rollback", "watch"):
        case.change("operator")
    goal = OLD if actor in ("rollback", "watch") else NEW
    case.warehouse.close()
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", _KILL, str(here), str(tmp_path), step, actor],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    again = Case(tmp_path, case.publisher)  # what was published before the kill went with that process
    if step == "row":  # nothing is written: who approved asks again
        again.change(actor)
    for workload in again.rollout.changed():
        again.rollout.follow_up(workload)
    assert again.assert_agreed() == goal
    again.warehouse.close()


@pytest.mark.skipif(no_small_disk() is not None, reason=str(no_small_disk()))
@pytest.mark.parametrize("what", ["full", "read-only"])
def test_links_on_a_disk_that_is_full_or_read_only_follow_once_they_can(what: str, tmp_path: Path) -> None:
    """A real file system: no inode is left, or nothing may be written."""
    case = Case(tmp_path)
    disk = tmp_path / "models"

    def mount(*options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(disk)], check=True)

    disk.mkdir(exist_ok=True)
    mount("size=1m", "nr_inodes=64")
    try:
        case.prepare()
        taken = []
        if what == "full":
            with suppress(OSError):
                for number in range(64):
                    (disk / f"taken-{number}").touch()
                    taken.append(disk / f"taken-{number}")
            assert len(taken) < 64
        else:
            mount("remount", "ro")
        for actor in ("gate", "watch", "operator"):
            case.change(actor)
        with pytest.raises(OSError, match=r"No space|Read-only"):
            case.rollout.follow_up("support")
        assert [message["version"] for _, _, message in case.publisher.messages] == [OLD, NEW, OLD, NEW]
        case.begin()
        if what == "full":
            for file in taken:
                file.unlink()
        else:
            mount("remount", "rw")
        case.rollout.follow_up("support")
        assert case.assert_agreed() == NEW
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        case.warehouse.close()
