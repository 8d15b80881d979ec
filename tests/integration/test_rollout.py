"""A version goes into service step by step, on a real warehouse: aliases, rows, messages and routes at each of them."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fixtures.feedback.traffic import new_warehouse, registered
from retuned.consumers.errors import RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import RolloutSettings
from retuned.retrain import versions
from retuned.retrain.release.exclusive import lock, one_at_a_time
from retuned.retrain.release.reconciler import Reconciler
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.release.routes import Arm, Experiment, Route, routes, under_way
from retuned.retrain.settings import ModelsSettings, Settings

NOW = datetime(2026, 4, 1, 12)
HOUR = timedelta(hours=1)


class Release:
    """A workload whose champion is v1, and an hour that passes with each change."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.warehouse = new_warehouse(folder)
        self.publisher = MemoryPublisher()
        self.now = NOW
        self.folder = folder
        for version in ("v1", "v2", "v3"):
            registered(self.warehouse, version)
        self.use(**{"steps": (0.05, 0.25, 1.0), "holdback": 0.05} | settings)
        self.rollout.promote("support", "v1", "operator", "the first", self.later())

    def use(self, **settings: Any) -> None:
        models = ModelsSettings(directory=self.folder / "models")
        own = Settings(models=models, rollout=RolloutSettings(**settings))
        self.rollout = Rollout(self.warehouse, own, self.publisher, "events")

    def later(self) -> datetime:
        self.now += HOUR
        return self.now

    def begin(self, version: str = "v2") -> float:
        share = self.rollout.begin("support", version, "gate", "better", self.later())
        self.rollout.follow_up("support")
        return share

    def advance(self) -> float:
        running = self.running()
        assert running is not None
        return self.rollout.advance("support", running.id, running.share, "as good", self.later())

    def running(self) -> Experiment | None:
        return under_way(self.warehouse, "support")

    def aliases(self) -> dict[str, str | None]:
        return versions.aliases(self.warehouse, "support")

    def arms(self) -> list[tuple[str | None, float]]:
        (route,) = routes(self.warehouse)
        assert (route.experiment is None) == (len(route.arms) == 1)
        return [(arm.version, arm.share) for arm in route.arms]

    def said(self) -> list[tuple[str, str, float]]:
        return [(one["event"], one["model"], one["share"]) for _, _, one in self.publisher.messages]

    def states(self) -> list[str]:
        return [row["state"] for row in self.warehouse.rows("SELECT state FROM rollouts ORDER BY created_at")]


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Release]:
    made = Release(tmp_path)
    yield made
    made.warehouse.close()


def test_a_version_takes_each_step_and_the_one_before_keeps_the_last_buckets(release: Release) -> None:
    assert release.begin() == 0.05
    assert release.aliases() == {"champion": "v1", "previous": None, "canary": "v2"}
    assert release.arms() == [("v2", 0.05), ("v1", 0.95)]
    assert release.advance() == 0.25
    assert release.arms() == [("v2", 0.25), ("v1", 0.75)]
    assert release.advance() == 0.95
    assert release.aliases() == {"champion": "v2", "previous": "v1"}
    assert release.arms() == [("v2", 0.95), ("v1", 0.05)]
    assert release.rollout.complete("support", "the watch is over", release.later())
    assert release.arms() == [("v2", 1.0)]
    assert release.aliases() == {"champion": "v2", "previous": "v1"}
    assert release.running() is None
    assert release.said() == [
        ("promoted", "support@v1", 1.0),
        ("canary", "support@v2", 0.05),
        ("canary", "support@v2", 0.25),
        ("promoted", "support@v2", 0.95),
        ("completed", "support@v2", 1.0),
    ]
    experiments = {message["experiment"] for _, _, message in release.publisher.messages[1:]}
    assert experiments == {release.warehouse.rows("SELECT id FROM rollouts")[0]["id"]}
    assert {message["previous_version"] for _, _, message in release.publisher.messages[1:]} == {"v1"}
    assert release.states() == ["done"]
    links = {link.name: link.readlink().name for link in (release.folder / "models" / "support").iterdir()}
    assert links == {"champion": "v2", "previous": "v1"}


def test_while_the_canary_grows_the_champion_keeps_its_date(release: Release) -> None:
    """Windows of drift and the policy begin with it."""
    release.begin()
    release.advance()
    row = release.warehouse.row("SELECT created_at FROM aliases WHERE alias = 'champion'")
    assert row == {"created_at": NOW + HOUR}
    link = release.folder / "models" / "support" / "canary"
    assert link.readlink().name == "v2"


def test_by_default_a_version_serves_at_once(tmp_path: Path) -> None:
    release = Release(tmp_path, **RolloutSettings().model_dump())
    assert release.begin() == 1.0
    assert release.aliases() == {"champion": "v2", "previous": "v1"}
    assert (release.running(), release.states()) == (None, [])
    assert release.publisher.messages[-1][2]["experiment"] is None
    release.warehouse.close()


def test_a_holdback_without_a_canary(tmp_path: Path) -> None:
    release = Release(tmp_path, steps=(1.0,), holdback=0.1)
    assert release.begin() == 0.9
    assert release.arms() == [("v2", 0.9), ("v1", 0.1)]
    release.warehouse.close()


def test_without_a_holdback_the_last_step_ends_it(tmp_path: Path) -> None:
    release = Release(tmp_path, holdback=0.0)
    release.begin()
    release.advance()
    assert release.advance() == 1.0
    assert (release.running(), release.states(), release.arms()) == (None, ["done"], [("v2", 1.0)])
    assert not release.rollout.complete("support", "the watch is over", release.later())
    release.warehouse.close()


def test_the_first_version_of_all_is_a_canary_beside_the_base_model(tmp_path: Path) -> None:
    release = Release(tmp_path)
    release.rollout.rollback("support", "operator", "for the test", release.later())
    release.warehouse.execute("DELETE FROM aliases")
    release.begin()
    assert release.arms() == [("v2", 0.05), (None, 0.95)]
    release.rollout.rollback("support", "rollout", "worse", release.later())
    assert routes(release.warehouse) == []
    assert release.said()[-1] == ("canary_rolled_back", "support@base", 1.0)
    release.warehouse.close()


@pytest.mark.parametrize("actor", ["operator", "rollout"])
def test_a_canary_that_is_taken_back_leaves_the_champion_as_it_was(release: Release, actor: Any) -> None:
    release.begin()
    before = release.warehouse.rows("SELECT * FROM aliases WHERE alias = 'champion'")
    of = "v2" if actor == "rollout" else None
    assert release.rollout.rollback("support", actor, "worse", release.later(), of=of) == "v1"
    assert release.aliases() == {"champion": "v1", "previous": None}
    assert release.warehouse.rows("SELECT * FROM aliases WHERE alias = 'champion'") == before
    assert (release.arms(), release.states()) == ([("v1", 1.0)], ["rolled_back"])
    message = release.publisher.messages[-1][2]
    assert (message["event"], message["version"], message["previous_version"]) == ("canary_rolled_back", "v1", "v2")
    assert release.rollout.rollback("support", "operator", "that one too", release.later()) is None  # the champion now


def test_in_the_holdback_the_champion_is_taken_back(release: Release) -> None:
    release.begin()
    release.advance()
    release.advance()
    assert release.rollout.rollback("support", "watch", "worse", release.later(), of="v2") == "v1"
    assert (release.arms(), release.states()) == ([("v1", 1.0)], ["rolled_back"])
    assert release.said()[-1] == ("rolled_back", "support@v1", 1.0)


def test_an_operator_ends_a_canary_by_promoting(release: Release) -> None:
    release.begin()
    release.rollout.promote("support", "v3", "operator", "by hand", release.later())
    assert (release.aliases(), release.states()) == ({"champion": "v3", "previous": "v1"}, ["replaced"])
    release.begin()
    release.rollout.promote("support", "v2", "operator", "by hand", release.later())
    assert (release.aliases(), release.states()) == ({"champion": "v2", "previous": "v3"}, ["replaced", "done"])
    assert release.arms() == [("v2", 1.0)]
    assert release.publisher.messages[-1][2]["experiment"] is None


def test_promoting_the_champion_ends_its_holdback(release: Release) -> None:
    release.begin()
    release.advance()
    release.advance()
    assert release.rollout.promote("support", "v2", "operator", "sure", release.later()) == "v2"
    assert (release.arms(), release.said()[-1]) == ([("v2", 1.0)], ("completed", "support@v2", 1.0))
    with pytest.raises(RetunedError, match="support@v2 is the champion already"):
        release.rollout.promote("support", "v2", "operator", "sure", release.later())


def test_a_champion_that_the_watch_takes_back_takes_the_canary_with_it(release: Release) -> None:
    """It was compared with that champion. It was not taken back itself."""
    release.rollout.promote("support", "v3", "gate", "better", release.later())
    release.begin("v2")
    assert release.rollout.rollback("support", "watch", "worse", release.later(), of="v3") == "v1"
    assert (release.aliases(), release.states()) == ({"champion": "v1"}, ["replaced"])
    taken_back = release.warehouse.rows("SELECT previous_version FROM promotions WHERE event LIKE '%rolled_back'")
    assert taken_back == [{"previous_version": "v3"}]


def test_there_is_one_rollout_at_a_time(release: Release) -> None:
    release.begin()
    with pytest.raises(RetunedError, match=r"support@v2 is being rolled out: it answers 0\.05 of the conversations"):
        release.begin("v3")
    assert release.states() == ["canary"]


def test_a_step_that_was_decided_of_another_state_is_not_taken(release: Release) -> None:
    release.begin()
    running = release.running()
    assert running is not None
    release.advance()
    for experiment, share in ((running.id, 0.05), ("another", 0.25)):
        with pytest.raises(RetunedError, match="the rollout was changed meanwhile"):
            release.rollout.advance("support", experiment, share, "as good", release.later())
    assert release.said()[-1] == ("canary", "support@v2", 0.25)


def test_steps_that_are_changed_meanwhile_count_from_the_next_one_on(release: Release) -> None:
    release.begin()
    release.use(steps=(0.1, 0.5, 1.0), holdback=0.0)
    assert release.advance() == 0.1
    release.use(steps=(1.0,))
    assert release.advance() == 1.0


@pytest.mark.parametrize(
    "change",
    [
        lambda release: release.rollout.promote("support", "v3", "operator", "by hand", release.later()),
        lambda release: release.rollout.rollback("support", "operator", "worse", release.later()),
        lambda release: release.advance(),
        lambda release: [release.advance(), release.rollout.complete("support", "as good", release.later())],
        lambda release: release.rollout.drop_previous("support"),
    ],
    ids=["promote", "rollback", "advance", "complete", "drop_previous"],
)
def test_others_may_change_what_serves_while_a_change_is_followed_up(
    release: Release, change: Callable[[Release], Any]
) -> None:
    free = list[bool]()

    def reconcile() -> None:
        """As the job `targets`, which has a lock of its own and needs the one on what serves."""
        other = threading.Thread(target=one_at_a_time(lambda: None), daemon=True)
        other.start()
        other.join(5)
        free.append(not other.is_alive())

    release.begin()
    release.advance()
    release.rollout = replace(release.rollout, reconcile=reconcile)
    change(release)
    assert free
    assert all(free)


def test_nothing_is_followed_up_under_the_lock_on_what_serves(release: Release) -> None:
    reconciler = Reconciler(release.warehouse, release.rollout.settings, release.later)
    calls: list[Callable[[], object]] = [
        lambda: release.rollout.follow_up("support"),
        lambda: release.rollout.follow_up_or_log("support"),
        reconciler.tick,
    ]
    for call in calls:
        with lock, lock, pytest.raises(RuntimeError, match="under the lock on what serves"):
            call()
        call()


def test_routes_of_several_workloads(release: Release) -> None:
    registered(release.warehouse, "v9", "sales")
    release.rollout.promote("sales", "v9", "operator", "the first", release.later())
    release.begin()
    running = release.running()
    assert running is not None
    assert routes(release.warehouse) == [
        Route("sales", None, (Arm("v9", 1.0),)),
        Route("support", running.id, (Arm("v2", 0.05), Arm("v1", 0.95))),
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": (0.25, 0.05, 1.0)}, "rising shares that end with 1.0"),
        ({"steps": (0.05, 0.05, 1.0)}, "rising shares"),
        ({"steps": (0.05, 0.25)}, "end with 1.0"),
        ({"steps": ()}, "at least 1 item"),
        ({"steps": (0.0, 1.0)}, "greater than or equal to 0.0001"),
        ({"steps": (0.05, 1.5)}, "less than or equal to 1"),
        ({"holdback": 0.5}, "less than 0.5"),
        ({"steps": (0.96, 1.0), "holdback": 0.05}, "no conversation changes versions twice"),
        ({"minimum_seconds": 800_000}, "at most maximum_seconds"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RolloutSettings(**given)


def test_changes_have_the_order_in_which_they_were_made_though_the_clock_was_ahead(release: Release) -> None:
    ahead = timedelta(days=2)
    release.rollout.promote("support", "v2", "operator", "better", release.now + ahead)
    release.rollout.rollback("support", "operator", "worse", release.now + ahead + HOUR)
    registered(release.warehouse, "v1", "sales")
    release.rollout.promote("sales", "v1", "operator", "the first", release.now + ahead)
    release.rollout.promote("support", "v3", "operator", "better", release.later())
    rows = release.warehouse.rows("SELECT workload, version, created_at FROM promotions ORDER BY created_at")
    support = [(row["version"], row["created_at"] <= release.now) for row in rows if row["workload"] == "support"]
    assert support == [("v1", True), ("v2", True), ("v1", True), ("v3", True)]
    assert rows[-1] == {"workload": "sales", "version": "v1", "created_at": NOW + HOUR + ahead}
