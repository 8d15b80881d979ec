"""The demo's waits on a clock that a test sets."""

from collections.abc import Callable

import pytest

from retuned.consumers.errors import RetunedError
from retuned.daemon.demo.waits import Waits, setbacks


class World:
    """A machine on which steps take as long as a test says."""

    def __init__(self) -> None:
        self.now, self.dead, self.setback = 0.0, False, ""
        self.shown: list[tuple[str, float]] = []
        self.waits = Waits(
            self.check, lambda *line: self.shown.append(line), lambda: self.setback, lambda: self.now, self.sleep
        )

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def check(self) -> None:
        if self.dead:
            raise RetunedError("demo: the broker ended")

    def after(self, seconds: float) -> Callable[[], str]:
        until = self.now + seconds
        return lambda: "done" if self.now >= until else ""


@pytest.fixture
def world() -> World:
    return World()


def test_on_a_slow_machine_an_adapter_may_be_refused_and_trained_anew(world: World) -> None:
    world.waits.until(world.after(300), "corrections", name="corrections")
    world.waits.until(world.after(600), "the first adapter", name="training")
    # A refusal, and another collection and training like the first ones.
    assert world.waits.until(world.after(2 * 900), "the second adapter", like=["corrections", "training"]) == "done"


def test_what_was_never_done_has_time_on_any_machine(world: World) -> None:
    assert world.waits.until(world.after(1_500), "the first adapter") == "done"


def test_what_does_not_come_ends_in_an_error_that_says_what_and_why(world: World) -> None:
    world.waits.until(world.after(100), "corrections", name="corrections")
    world.setback = "the gate refused an adapter: Refused by: gain."
    with pytest.raises(RetunedError, match=r"the second adapter.*Refused by: gain"):
        world.waits.until(lambda: False, "the second adapter", like=["corrections"])
    # Six times what it took before.
    assert 100 + 600 <= world.now < 100 + 602


def test_a_part_that_dies_ends_a_wait_at_once(world: World) -> None:
    def happened() -> bool:
        world.dead = world.now >= 5
        return False

    with pytest.raises(RetunedError, match="broker ended"):
        world.waits.until(happened, "anything")
    assert world.now < 6


def test_each_wait_shows_what_it_waits_for_and_how_long_at_most(world: World) -> None:
    world.waits.until(world.after(0), "the broker to start", name="start")
    world.waits.until(world.after(1), "an answer", like=["start"])
    (first, longest), (second, limit) = world.shown
    assert (first, second) == ("the broker to start", "an answer")
    assert longest > limit > 60


def test_setbacks_are_refusals_and_runs_that_failed_oldest_first() -> None:
    def gate(at: str, outcome: bool, *reasons: str) -> dict[str, object]:
        return {"kind": "gate", "outcome": outcome, "created_at": at, "reasons": reasons}

    def run(id: str, at: str, state: str, error: str | None) -> dict[str, object]:
        return {"id": id, "started_at": at, "state": state, "error": error}

    workload = {
        "decisions": [
            gate("3", True, "better"),
            gate("2", False, "A gain of +0.05.", "Refused by: gain. It takes 40 more."),
            {"kind": "policy", "outcome": False, "created_at": "1", "reasons": ["cool-down"]},
        ],
        "runs": [
            run("c", "3", "succeeded", None),
            run("b", "1", "failed", "no memory"),
            run("a", "0", "refused", "few"),
        ],
    }
    found = setbacks(workload)
    assert [id for id, _ in found] == ["a", "b", "2"]
    assert "few" in found[0][1]
    assert "no memory" in found[1][1]
    assert "It takes 40 more." in found[2][1]
    assert setbacks({}) == []
