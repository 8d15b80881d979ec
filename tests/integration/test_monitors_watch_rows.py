"""Which changes, votes, answers and latencies a watch counts, and which of its checks are kept."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fixtures.daemon.promoting import model_row
from fixtures.feedback.traffic import MINUTE, feedback, promoted
from fixtures.feedback.watched import HOUR, NEW, NOW, OLD, SETTINGS, SINCE, compared, promote, rated, seen, timed, voted
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch.check import check, in_force, thin
from retuned.monitors.watch.comparison import Baseline
from retuned.monitors.watch.counts import Watched, answers, count, slow_beside

DAY = timedelta(days=1)


def champion(warehouse: Warehouse, version: str, workload: str = "support", alias: str = "champion") -> None:
    warehouse.insert("aliases", workload=workload, alias=alias, version=version, created_at=SINCE)


def baselines(warehouse: Warehouse, previous: str | None = "v1") -> list[Baseline]:
    """What users' votes are compared with."""
    counts = count(warehouse, WatchSettings(), Watched("p", "support", "v2", previous, SINCE, NOW))["helpful", "user"]
    return [one.baseline for one in counts if one.against != "same_time"]


@pytest.mark.parametrize(("workload", "alias"), [("sales", "champion"), ("support", "previous")])
def test_the_champion_is_that_of_the_workload(warehouse: Warehouse, workload: str, alias: str) -> None:
    """A change that was stored while the clock was ahead does not stand for it."""
    promoted(warehouse, "by hand", "v3", "v2", SINCE - HOUR, actor="operator")
    promoted(warehouse, "ahead", "v2", "v1", SINCE)
    champion(warehouse, "v3")
    champion(warehouse, "v2", workload, alias)
    assert check(warehouse, SETTINGS, "support", NOW) is None


def test_a_canary_that_was_taken_back_leaves_its_champion_watched(warehouse: Warehouse) -> None:
    promote(warehouse)
    promoted(warehouse, "canary", "v3", "v2", SINCE + HOUR, event="canary")
    promoted(warehouse, "end", "v2", "v3", SINCE + 2 * HOUR, event="canary_rolled_back", actor="watch")
    assert (seen(warehouse).version, seen(warehouse).since) == ("v2", SINCE)


def test_erased_rows_of_another_workload_leave_a_promotion_watched(warehouse: Warehouse) -> None:
    warehouse.insert("models", **model_row("v1", Path("v1"), SINCE) | {"workload": "sales"})
    warehouse.insert("erasures", id="e", requested_at=SINCE, state="done")
    warehouse.insert("erasure_versions", erasure_id="e", workload="sales", version="v1", dataset_version="d", rows=3)
    promote(warehouse)
    assert check(warehouse, SETTINGS, "support", NOW) is not None


def test_only_after_a_canary_half_of_the_error_is_left(warehouse: Warehouse) -> None:
    promote(warehouse, actor="watch", experiment="e")  # the last step of a rollout without one
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 130, 70)

    def worse() -> float:
        warehouse.execute("DELETE FROM watch_checks")
        return compared(seen(warehouse)).worse

    whole = worse()
    promoted(warehouse, "another", "v5", "v4", SINCE - DAY, event="canary", experiment="another")
    assert worse() == whole
    promoted(warehouse, "began", "v2", "v1", SINCE - HOUR, event="canary", experiment="e")
    assert worse() < whole


def test_days_differ_by_their_shares_of_bad_votes(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, NEW, 30, 3)
    for day in range(1, 15):
        rated(warehouse, OLD, *((80, 20) if day % 2 else (20, 80)), start=SINCE - day * DAY)
    assert min(one.between_days for one in baselines(warehouse)) > 0.01


@pytest.mark.parametrize(("workload", "model"), [("sales", "gpt"), ("support", "demonstration")])
def test_the_base_model_served_since_its_own_first_answer(warehouse: Warehouse, workload: str, model: str) -> None:
    promote(warehouse, previous=None)
    rated(warehouse, "gpt", 20, 5, start=SINCE - 5 * HOUR)
    rated(warehouse, NEW, 30, 3)
    known = [(one.period, one.votes) for one in baselines(warehouse, None)]
    rated(warehouse, model, 20, 5, start=SINCE - 14 * DAY, workload=workload)
    assert [(one.period, one.votes) for one in baselines(warehouse, None)] == known


def test_how_far_back_is_compared_goes_by_votes_alone(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, NEW, 30, 3)
    for day in range(1, 15):
        rated(warehouse, OLD, 16, 4, start=SINCE - day * DAY)
    known = sorted(one.votes for one in baselines(warehouse))
    corrected = rated(warehouse, OLD, 300, 0, name="comment", start=SINCE - 6 * DAY)
    said = {"when": SINCE - 6 * DAY, "source": "expert", "user_id": "ann"}
    feedback(warehouse, corrected, "helpful", False, offset=40_000, **said)
    for offset in (50_000, 60_000):
        feedback(warehouse, corrected, "correction", "Here.", offset=offset, **said)
    assert sorted(one.votes for one in baselines(warehouse)) == known


def test_answers_of_other_workloads_are_not_those_of_the_base_model(warehouse: Warehouse) -> None:
    rated(warehouse, NEW, 30, 3)
    rated(warehouse, "gpt", 4, 1, start=SINCE)
    rated(warehouse, "gpt", 20, 5, start=SINCE, workload="sales")
    rated(warehouse, "sales@v2", 20, 5, start=SINCE, workload="sales")
    with warehouse.cursor() as cursor:
        assert answers(cursor, Watched("p", "support", "v2", None, SINCE, NOW), SINCE) == (5, 33)


def slow(warehouse: Warehouse, against: str = "all") -> tuple[float, int, float, int] | None:
    """The hours of answers before and since the promotion, and how many of them were slow."""
    found = count(warehouse, WatchSettings(), Watched("p", "support", "v2", None, SINCE, SINCE + 10 * HOUR))
    counts = {one.against: one for one in found.get(("latency", "app"), [])}.get(against)  # type: ignore[call-overload]
    return counts and (counts.bad_before, counts.n_before, counts.bad_after, counts.n_after)


def test_slowness_is_that_of_the_workloads_answers_of_the_day_before(warehouse: Warehouse) -> None:
    timed(warehouse, "gpt", range(-24, 0), 0.5)
    timed(warehouse, NEW, range(1, 10), 0.5)
    known = slow(warehouse)
    assert known == (24, 24, 0, 9)
    timed(warehouse, "gpt", range(-72, -48), 0.1)
    assert slow(warehouse) == known
    rated(warehouse, "gpt", 40, 0, workload="sales", start=SINCE - 3 * HOUR, latency_seconds=9.0)
    assert slow(warehouse) == known


def test_each_answer_has_the_latency_that_its_app_reports(warehouse: Warehouse) -> None:
    for model, when, seconds, offset in (("gpt", SINCE - HOUR, 1.0, 10_000), (NEW, SINCE + HOUR, 30.0, 20_000)):
        ids = rated(warehouse, model, 100, 0, start=when)
        for name, value, source in (
            ("rating", 5, "app"),
            ("latency_seconds", 500.0, "user"),
            ("latency_seconds", seconds, "app"),
        ):
            feedback(warehouse, ids, name, value, source=source, when=when, offset=offset)
            offset += 1_000
    assert slow(warehouse) == (1, 1, 1, 1)


def test_latencies_that_were_reported_long_before_are_not_looked_for(warehouse: Warehouse) -> None:
    timed(warehouse, "gpt", range(-24, 0), 0.5)
    ids = rated(warehouse, NEW, 100, 0, start=SINCE + HOUR)
    feedback(warehouse, ids, "latency_seconds", 9.0, source="app", when=SINCE - 3 * DAY, offset=10_000)
    assert slow(warehouse) == (24, 24, 0, 0)


def test_before_and_beside_are_counted_apart(warehouse: Warehouse) -> None:
    timed(warehouse, NEW, range(1, 10), 0.5)
    timed(warehouse, "gpt", range(1, 10), 5.0)
    assert slow(warehouse, "same_time") is None, "what is slow is not known"
    timed(warehouse, "gpt", range(-24, 0), 0.5)
    assert slow(warehouse) == (24, 24, 0, 9)
    assert slow(warehouse, "same_time") == (9, 9, 0, 9)


def test_the_first_minutes_of_the_former_champion_are_not_compared_either(warehouse: Warehouse) -> None:
    timed(warehouse, "gpt", range(-24, 0), 0.5)
    timed(warehouse, NEW, range(1, 10), 0.5)
    timed(warehouse, "gpt", range(1), 0.5, n=3)
    assert slow(warehouse, "same_time") is None
    timed(warehouse, "gpt", range(1, 10), 0.5)
    assert slow(warehouse, "same_time") == (0, 9, 0, 9)


def test_slowness_in_a_canary_is_compared_for_three_days_without_the_first_minutes(warehouse: Warehouse) -> None:
    began = SINCE - 2 * HOUR
    timed(warehouse, "gpt", range(-26, -2), 0.5)
    timed(warehouse, "gpt", range(-2, 80), 0.5)
    timed(warehouse, NEW, range(80), 5.0)

    def beside(elapsed: timedelta) -> list[tuple[str, float, int, float, int]]:
        step = Watched("p", "support", "v2", None, SINCE, SINCE + elapsed)
        with warehouse.cursor() as cursor:
            found = slow_beside(cursor, step, began, WatchSettings())
        return [(one.against, one.bad_before, one.n_before, one.bad_after, one.n_after) for one in found]

    assert beside(15 * MINUTE) == []
    assert beside(10 * HOUR) == [("same_time", 0, 10, 10, 10)]
    assert beside(80 * HOUR) == [("same_time", 0, 73, 73, 73)]  # until a quarter past the 72nd hour
    timed(warehouse, "gpt", range(-72, -26), 50.0)
    assert beside(10 * HOUR) == [("same_time", 0, 10, 10, 10)]  # usual is what was so on the day before the canary


def test_beside_a_former_champion_its_share_and_the_votes_on_all_traffic_count(warehouse: Warehouse) -> None:
    """Days differ much, which does not matter at the same time."""

    def baseline(hours: int) -> tuple[str, float, float, timedelta, float]:
        watched = Watched("p", "support", "v2", "v1", SINCE, SINCE + hours * HOUR)
        (one,) = count(warehouse, WatchSettings(), watched)["helpful", "user"]
        found = one.baseline
        return one.against, found.share, found.per_day, found.period, found.between_days

    for hour in range(24):
        when = SINCE + hour * HOUR
        voted(warehouse, (OLD, False, when, MINUTE, 1), (NEW, False, when, MINUTE, 3))
    assert baseline(23) == ("same_time", 0.25, 0.0, timedelta(0), 0.0)  # it had no votes before
    for day in range(1, 29):
        for bad, n in ((True, 10 + 40 * (day % 2)), (False, 50 - 40 * (day % 2))):
            voted(warehouse, (OLD, bad, SINCE - day * DAY, MINUTE, n))
    assert baseline(23) == ("same_time", 0.25, pytest.approx(60), timedelta(0), 0.0)


def test_of_old_checks_the_last_of_each_hour_and_of_each_watch_is_kept(warehouse: Warehouse) -> None:
    minute = timedelta(minutes=1)
    recent, old = NOW - 10 * DAY + 30 * minute, NOW - 30 * DAY  # within an hour

    def stored(id: str, when: datetime, workload: str = "support", verdict: str = "go_on") -> None:
        row = {"promotion_id": id.partition("/")[0], "version": "v2", "since": when, "until": when}
        more = {"verdict": verdict, "comparisons": "[]", "reasons": "[]"}
        warehouse.insert("watch_checks", id=id, created_at=when, workload=workload, **row, **more)

    stored("first/decided", old - 5 * DAY - minute, verdict="keep")
    stored("first/old", old - 5 * DAY)
    stored("first/last", old - 4 * DAY)
    stored("second/00", recent - DAY - 30 * minute)
    stored("second/30", recent - DAY)
    stored("second/59", recent - DAY + 29 * minute)
    stored("third/before", recent - minute)
    stored("third/one", recent + minute)
    stored("third/two", recent + 2 * minute)
    stored("sales/one", old - 5 * DAY, "sales")
    stored("sales/two", old - 4 * DAY, "sales")
    thin(warehouse, ["support"], recent, old)
    kept = [row["id"] for row in warehouse.rows("SELECT id FROM watch_checks ORDER BY id")]
    assert kept == [
        "first/decided", "first/last", "sales/one", "sales/two", "second/59", "third/before", "third/one", "third/two",
    ]  # fmt: skip
    stored("third/one later", recent + 3 * minute)
    thin(warehouse, ["support", "sales"], NOW, NOW)
    kept = [row["id"] for row in warehouse.rows("SELECT id FROM watch_checks ORDER BY id")]
    assert kept == ["first/decided", "first/last", "sales/two", "second/59", "third/one later"]


def test_a_check_is_in_force_while_its_champion_is_watched_and_for_good_once_it_decided(warehouse: Warehouse) -> None:
    off = SETTINGS.model_copy(update={"watch": WatchSettings(enabled=False)})
    promote(warehouse)
    promote(warehouse, workload="sales")
    watched = {"support": seen(warehouse), "sales": check(warehouse, SETTINGS, "sales", NOW)}
    assert {one.verdict for one in watched.values() if one is not None} == {"go_on"}
    assert in_force(warehouse, {"support": SETTINGS, "sales": SETTINGS}) == watched
    assert in_force(warehouse, {"support": off, "sales": SETTINGS}) == {"sales": watched["sales"]}
    promote(warehouse, "v3", "v2", created_at=NOW)
    assert in_force(warehouse, {"support": SETTINGS}) == {}
    rated(warehouse, NEW, 425, 75, start=NOW - HOUR)
    rated(warehouse, "support@v3", 60, 140, start=NOW)
    decided = {"support": seen(warehouse, NOW + HOUR)}
    assert decided["support"].verdict == "roll_back"
    promote(warehouse, "v2", "v3", event="rolled_back", actor="watch", created_at=NOW + HOUR)
    assert in_force(warehouse, {"support": off}) == decided
