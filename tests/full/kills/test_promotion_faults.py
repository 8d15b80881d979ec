"""A change of champion is all or nothing: whatever fails at whichever step, alias, links, announcements and metrics
agree in the end, and what was not committed never happened.
"""

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from fixtures.daemon.promoting import FAULTS, NEW, OLD, Case, Killed, fail_at, kill_at
from fixtures.faults.faults import no_small_disk
from retuned.retrain import versions

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
    kill_at(step, case, "change", actor)
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
