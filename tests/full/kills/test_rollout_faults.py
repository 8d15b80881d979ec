"""Each step of a rollout is all or nothing: whatever ends the process at whichever write, aliases, links, routes, rows
and messages agree after the next start, and no step is taken twice."""

from contextlib import suppress
from pathlib import Path

import pytest

from fixtures.daemon.promoting import FAULTS, NEW, OLD, SHARES, STEPS, Killed, Release, fail_at, kill_at
from retuned.consumers.errors import RetunedError

TAKEN_BACK = {"begin": "canary", "grow": "canary", "promote": "champion"}
WRITES = ("row", "commit", "champion", "message", "mark", "metrics")


def expected(step: str) -> list[tuple[str | None, float]]:
    share = SHARES[step]
    return [(NEW, 1.0)] if share == 1.0 else [(NEW, share), (OLD, round(1 - share, 4))]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_is_killed_at_any_write_is_taken_once(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, write in enumerate(WRITES):
        case = Release(tmp_path / str(number))
        case.prepare()
        case.come_to(step)
        count = case.changes()
        before = case.assert_all_agree()
        with monkeypatch.context() as patch:
            reached = fail_at(write, FAULTS["killed"], case, patch)
            with pytest.raises(Killed):
                case.take(step)
            assert reached
        case.begin()
        case.rollout.follow_up("support")
        assert case.assert_all_agree() == (before if write == "row" else expected(step)), write
        with suppress(RetunedError):
            case.take(step)  # decided once more, of what was then
        assert case.assert_all_agree() == expected(step), write
        assert case.changes() == count + 1, write
        case.warehouse.close()


@pytest.mark.parametrize("step", TAKEN_BACK)
def test_a_rollback_that_is_killed_at_any_write_is_made_once(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, write in enumerate(WRITES):
        case = Release(tmp_path / str(number))
        case.prepare()
        case.come_to(step)
        case.take(step)
        count = case.changes()
        with monkeypatch.context() as patch:
            fail_at(write, FAULTS["killed"], case, patch)
            with pytest.raises(Killed):
                case.take("take back")
        case.begin()
        case.rollout.follow_up("support")
        if write == "row":
            assert case.assert_all_agree() == expected(step)
            case.take("take back")
        with pytest.raises(RetunedError, match="it no longer serves"):
            case.take("take back")
        assert case.assert_all_agree() == [(OLD, 1.0)], write
        assert case.changes() == count + 1, write
        case.warehouse.close()


@pytest.mark.parametrize(
    ("write", "step"), [("row", "promote"), ("commit", "grow"), ("champion", "promote"), ("mark", "take back")]
)
def test_a_process_that_is_killed_in_the_middle_is_made_good(write: str, step: str, tmp_path: Path) -> None:
    case = Release(tmp_path)
    case.prepare()
    reached = "grow" if step == "take back" else step
    case.come_to(reached)
    if step == "take back":
        case.take(reached)
    kill_at(write, case, "take", step)
    again = Release(tmp_path, case.publisher)  # what was published before the kill went with that process
    again.rollout.follow_up("support")
    before = expected(STEPS[STEPS.index(reached) - 1])
    after = [(OLD, 1.0)] if step == "take back" else expected(step)
    assert again.assert_all_agree() == (before if write == "row" else after)
    again.warehouse.close()
