from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from fixtures.daemon.promoting import model_row
from fixtures.worlds.candidates import Row
from retuned.consumers.errors import RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import RolloutSettings
from retuned.consumers.warehouse import holds
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.policy.decision import Evidence
from retuned.daemon.policy.decision import decide as decide_to_retrain
from retuned.daemon.settings import PolicySettings
from retuned.monitors.settings import Settings as MonitorSettings
from retuned.monitors.watch import check as watch
from retuned.retrain import versions
from retuned.retrain.decision.gate import decide
from retuned.retrain.release import approvals, approve, erased
from retuned.retrain.release.approvals import Verdict
from retuned.retrain.release.deployments import deployments, drain
from retuned.retrain.release.erased import Standing, steps
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.release.routes import under_way
from retuned.retrain.settings import ForgetSettings, GateSettings, ModelsSettings, Settings

NOW = datetime(2026, 5, 4, 12)
CLEAN, FIRST, SECOND, ANEW = "00000000", "11111111", "22222222", "33333333"


def rows(right: int, of: int = 60) -> list[Row]:
    return [Row(f"r{number}", float(number < right)) for number in range(of)]


@pytest.mark.parametrize(
    ("standing", "expected"),
    [
        (Standing({"a"}), []),
        (Standing({"a"}, champion="a"), []),
        (Standing({"a"}, champion="a", at_once=True), ["replace_champion", "drop_previous"]),
        (
            Standing({"a"}, champion="a", canary="b", at_once=True),
            ["replace_champion", "drop_previous", "restart_canary"],
        ),
        (
            Standing({"a", "b"}, champion="a", canary="b", at_once=True),
            ["take_back_canary", "replace_champion", "drop_previous"],
        ),
        (Standing({"a"}, champion="b", previous="a"), ["drop_previous"]),
        (Standing({"a"}, champion="b", previous="a", holdback=True), ["end_holdback", "drop_previous"]),
        (Standing({"a", "b"}, champion="b", previous="a", holdback=True), ["drop_previous"]),
        (Standing({"a"}, champion="b", previous=None, canary="a"), ["take_back_canary"]),
        (Standing({"a"}, champion="b", waiting="a"), ["supersede_approval"]),
    ],
)
def test_no_erased_version_but_the_champion_may_serve(standing: Standing, expected: list[str]) -> None:
    assert steps(standing) == expected


@pytest.mark.parametrize(("candidate", "passes"), [(50, True), (45, True), (20, False)])
def test_a_candidate_without_the_erased_rows_only_has_to_be_no_worse(candidate: int, passes: bool) -> None:
    champion = rows(50)
    first = decide(champion, rows(candidate), [], [], GateSettings())
    assert not first.outcome
    decision = decide(champion, rows(candidate), [], [], GateSettings(), forgets=True)
    assert decision.outcome is passes
    for tries in (0, 3):  # a wider interval would make a later try easier to pass
        tried = decide(champion, rows(candidate), [], [], GateSettings(), tries, forgets=True)
        assert tried.figures["gain_high"] == first.figures["gain_high"]
    assert "learned rows that were erased" in decision.reasons[not passes]
    if not passes:
        assert decision.reasons[0].startswith("Refused by gain, because it is worse beyond chance")


def test_erased_rows_are_a_reason_to_retrain_whatever_it_costs() -> None:
    quiet = Evidence(erased_at=NOW - timedelta(hours=1), last_run_finished_at=NOW - timedelta(hours=2))
    for settings in (PolicySettings(), PolicySettings(enabled=False)):
        assert decide_to_retrain(quiet, settings, NOW).retrain
    reasons = decide_to_retrain(quiet, PolicySettings(), NOW).reasons
    assert reasons == ("the champion learned rows that were erased on 2026-05-04",)
    for change in ({"paused": "paused by anna"}, {"running": True}):
        assert not decide_to_retrain(replace(quiet, **change), PolicySettings(), NOW).retrain
    tried = replace(quiet, last_run_finished_at=NOW - timedelta(minutes=1), refused_runs=1)
    assert not decide_to_retrain(tried, PolicySettings(cooldown_seconds=3600), NOW).retrain


@pytest.fixture
def rollout(warehouse: Warehouse, tmp_path) -> Rollout:  # type: ignore[no-untyped-def]
    """The second version continues from the first, which learned an erased row, and that from a clean one."""
    settings = Settings(models=ModelsSettings(directory=tmp_path / "models"))
    for number, (version, parent) in enumerate(((CLEAN, None), (FIRST, CLEAN), (SECOND, FIRST), (ANEW, CLEAN))):
        path = tmp_path / "models" / "support" / version
        path.mkdir(parents=True)
        row = model_row(version, path, NOW + timedelta(minutes=number)) | {"parent_version": parent}
        warehouse.insert("models", **row | {"dataset_version": f"d-{version}"})
    rollout = Rollout(warehouse, settings, MemoryPublisher(), "events")
    rollout.promote("support", FIRST, "operator", "by hand", NOW)
    rollout.promote("support", SECOND, "operator", "by hand", NOW + timedelta(minutes=5))
    return rollout


def erase(warehouse: Warehouse, version: str = FIRST) -> None:
    warehouse.insert("erasures", id="e1", requested_at=NOW + timedelta(hours=1))
    warehouse.insert(
        "erasure_versions",
        erasure_id="e1",
        workload="support",
        version=version,
        dataset_version=f"d-{version}",
        rows=1,
    )


def settled(rollout: Rollout, hours: float = 2) -> list[str]:
    """Settle, have servers unload what is drained, and settle again, as the daemon does each minute."""
    now = NOW + timedelta(hours=hours)
    removed = erased.settle(rollout, "support", now)
    rollout.warehouse.execute("UPDATE deployments SET served_at = since WHERE share > 0")
    drain(rollout.warehouse, rollout.settings, deployments(rollout.warehouse), now + timedelta(minutes=11))
    return removed + erased.settle(rollout, "support", now)


def aliases(rollout: Rollout) -> dict[str, str | None]:
    return versions.aliases(rollout.warehouse, "support")


def test_versions_that_continue_from_an_erased_one_are_erased_too(rollout: Rollout) -> None:
    assert versions.erased_since(rollout.warehouse, "support") == {}
    assert settled(rollout) == []
    erase(rollout.warehouse)
    assert versions.erased_since(rollout.warehouse, "support").keys() == {FIRST, SECOND}
    start = versions.clean_start(rollout.warehouse, "support", versions.champion(rollout.warehouse, "support"))
    assert start is not None
    assert start.version == CLEAN


def test_the_champion_serves_until_it_is_replaced_and_is_then_removed(rollout: Rollout) -> None:
    warehouse = rollout.warehouse
    erase(warehouse)
    assert settled(rollout) == [FIRST]  # the previous one, to which nothing may go back
    assert aliases(rollout) == {"champion": SECOND}
    assert erased.due(warehouse, "support", NOW + timedelta(hours=2)) == NOW + timedelta(hours=1)
    rollout.promote("support", ANEW, "gate", "no worse", NOW + timedelta(hours=3))
    assert settled(rollout, 4) == [SECOND]
    assert aliases(rollout) == {"champion": ANEW}
    assert erased.due(warehouse, "support", NOW + timedelta(hours=4)) is None
    assert {path.name for path in (rollout.settings.models.directory / "support").glob("[0-9]*")} == {CLEAN, ANEW}
    assert erased.standing(warehouse, rollout.settings, NOW + timedelta(days=99)) == {}


def test_the_watch_does_not_go_back_to_an_erased_version(rollout: Rollout) -> None:
    rollout.promote("support", ANEW, "gate", "better", NOW + timedelta(hours=3))
    assert watch.check(rollout.warehouse, MonitorSettings(), "support", NOW + timedelta(hours=4)) is not None
    erase(rollout.warehouse)
    assert watch.check(rollout.warehouse, MonitorSettings(), "support", NOW + timedelta(hours=4)) is None


def test_the_base_or_a_version_before_serves_at_once_where_that_is_configured(rollout: Rollout) -> None:
    erase(rollout.warehouse)
    at_once = rollout.settings.model_copy(update={"forget": ForgetSettings(weights="base_until_retrained")})
    strict = replace(rollout, settings=at_once)
    assert settled(strict) == [FIRST, SECOND]
    assert aliases(rollout) == {"champion": CLEAN}


def test_a_person_may_keep_the_champion_for_a_time(rollout: Rollout) -> None:
    warehouse, settings = rollout.warehouse, rollout.settings
    erase(warehouse)
    late = NOW + timedelta(days=40)
    assert erased.standing(warehouse, settings, late) == {"support": (2, 2)}
    erased.keep(warehouse, "support", NOW + timedelta(days=60), "anna", "the season ends first", NOW)
    assert erased.due(warehouse, "support", late) is None
    assert erased.standing(warehouse, settings, late) == {"support": (2, 0)}
    assert erased.due(warehouse, "support", NOW + timedelta(days=61)) is not None


@pytest.fixture
def kept(rollout: Rollout) -> Rollout:
    """A person keeps the erased champion for three days, after which it has to leave at once."""
    erase(rollout.warehouse)
    strict = {"forget": ForgetSettings(weights="base_until_retrained"), "rollout": RolloutSettings(steps=(0.25, 1.0))}
    made = replace(rollout, settings=rollout.settings.model_copy(update=strict))
    erased.keep(rollout.warehouse, "support", NOW + timedelta(days=3), "anna", "the season ends first", NOW)
    settled(made)
    assert aliases(made) == {"champion": SECOND}
    return made


def test_the_successor_in_a_rollout_outlives_the_champion_that_leaves_at_once(kept: Rollout) -> None:
    warehouse, late = kept.warehouse, NOW + timedelta(days=3, minutes=1)
    kept.begin("support", ANEW, "gate", "no worse", NOW + timedelta(days=1))
    begun = under_way(warehouse, "support")
    settled(kept, hours=72.1)
    assert aliases(kept) == {"champion": CLEAN, "canary": ANEW}
    running = under_way(warehouse, "support")
    assert begun is not None
    assert running is not None
    assert (running.version, running.previous_version, running.share) == (ANEW, CLEAN, 0.25)
    assert running.id != begun.id  # what was found beside the version that has left does not count
    assert "is being rolled out" in (erased.answer(warehouse, "support") or "")
    settled(kept, hours=73)
    assert under_way(warehouse, "support") == running
    kept.advance("support", running.id, running.share, "as good", late + timedelta(days=1))
    assert aliases(kept)["champion"] == ANEW
    assert erased.due(warehouse, "support", late + timedelta(days=1)) is None


def test_the_successor_that_waits_for_approval_outlives_the_champion_that_leaves_at_once(kept: Rollout) -> None:
    warehouse = kept.warehouse
    request = approve.request(kept, "support", ANEW, SECOND, "run", NOW + timedelta(days=1))
    settled(kept, hours=72.1)
    assert aliases(kept) == {"champion": CLEAN}
    assert [one.id for one in approvals.waiting(warehouse, "support")] == [request.id]
    approve.decide(kept, Verdict(request.id, "approved", "anna", "fine"), NOW + timedelta(days=4))
    assert aliases(kept) == {"champion": CLEAN, "canary": ANEW}


def test_a_legal_hold_keeps_the_files_of_erased_versions_and_not_their_service(rollout: Rollout) -> None:
    warehouse, late = rollout.warehouse, NOW + timedelta(days=40)
    erase(warehouse)
    (hold,) = holds.place(warehouse, "support", [None], "case 17", "legal", NOW)
    assert settled(rollout) == []
    assert aliases(rollout) == {"champion": SECOND}
    assert (rollout.settings.models.directory / "support" / FIRST).is_dir()
    assert erased.standing(warehouse, rollout.settings, late) == {"support": (2, 0)}
    holds.release(warehouse, hold.id, "closed", "legal", NOW)
    assert settled(rollout) == [FIRST]


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_canary_that_learned_erased_rows_is_taken_back(rollout: Rollout, share: float) -> None:
    steps = [0.25, 1.0]
    own = rollout.settings.model_copy(update={"rollout": RolloutSettings(steps=steps, shadow=share == 0)})
    careful = replace(rollout, settings=own)
    careful.promote("support", CLEAN, "operator", "by hand", NOW + timedelta(minutes=7))
    careful.begin("support", SECOND, "gate", "better", NOW + timedelta(minutes=8))
    erase(rollout.warehouse)
    assert set(settled(careful)) == {FIRST, SECOND}
    assert aliases(rollout) == {"champion": CLEAN}


def test_nobody_promotes_an_erased_version_by_hand(rollout: Rollout) -> None:
    erase(rollout.warehouse)
    with pytest.raises(RetunedError, match="learned rows that were erased"):
        rollout.promote("support", FIRST, "operator", "by hand", NOW)
    settled(rollout)
    with pytest.raises(RetunedError, match="no previous champion"):
        rollout.rollback("support", "operator", "worse", NOW)
