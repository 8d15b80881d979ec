"""Which events are compared with which."""

import random
from datetime import datetime, timedelta
from typing import Any

import pytest

from fixtures.feedback.traffic import MINUTE, START, interactions, prompts
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.settings import WindowsSettings
from retuned.monitors.statistics import two_sample_chi_square
from retuned.monitors.windows import ALL, DAY, FEW, WEEK, Season, Window, bounds, current, sample, windows

HOUR = timedelta(hours=1)


def stored(
    warehouse: Warehouse,
    count: int,
    start: datetime = START,
    offset: int = 0,
    workload: str = "support",
    **columns: Any,
) -> None:
    rng = random.Random(5)
    interactions(warehouse, prompts(count, rng), rng, start=start, offset=offset, workload=workload, **columns)


def hours(reference: float, current: float, events: int | None = None) -> WindowsSettings:
    return WindowsSettings(reference_seconds=3_600 * reference, current_seconds=3_600 * current, current_events=events)


def test_a_workload_without_events_has_no_windows(warehouse: Warehouse) -> None:
    assert windows(warehouse, hours(2, 1), "support", START) is None
    stored(warehouse, 10, workload="other")
    assert windows(warehouse, hours(2, 1), "support", START + HOUR) is None


def test_without_a_champion_the_reference_begins_with_the_first_event(warehouse: Warehouse) -> None:
    stored(warehouse, 300)
    found = windows(warehouse, hours(2, 1), "support", START + 5 * HOUR)
    assert found is not None
    assert found.reference == Window(START, START + 2 * HOUR, 120)
    assert found.current == Window(START + 4 * HOUR, START + 5 * HOUR, 60)


@pytest.mark.parametrize("wrong", [datetime(1970, 1, 1), START - 3 * DAY, START - HOUR])
def test_a_few_events_with_wrong_times_do_not_move_the_reference(warehouse: Warehouse, wrong: datetime) -> None:
    stored(warehouse, 500)
    stored(warehouse, 9, start=wrong, offset=1_000)
    found = windows(warehouse, hours(2, 1), "support", START + 5 * HOUR)
    assert found is not None
    assert START - HOUR <= found.reference.start <= START + 2 * MINUTE
    assert found.missing(60) == 0
    assert found.current.start == START + 4 * HOUR


def test_a_reference_begins_where_traffic_does_after_a_trial(warehouse: Warehouse) -> None:
    for day in range(30):
        stored(warehouse, 3, start=START + day * DAY, offset=10 * day)
    began = START + 30 * DAY
    stored(warehouse, 600, start=began, offset=1_000)
    found = windows(warehouse, hours(4, 1), "support", began + 9 * HOUR)
    assert found is not None
    assert found.reference.start == began


def test_too_little_traffic_begins_with_its_first_event(warehouse: Warehouse) -> None:
    stored(warehouse, 20)
    found = windows(warehouse, hours(2, 1), "support", START + HOUR)
    assert found is not None
    assert found.current == Window(START, START + HOUR, 20)


def test_with_a_champion_it_begins_with_the_promotion(warehouse: Warehouse) -> None:
    stored(warehouse, 300)
    warehouse.insert("aliases", workload="support", alias="champion", version="v1", created_at=START + HOUR)
    warehouse.insert("aliases", workload="other", alias="champion", version="v1", created_at=START + 3 * HOUR)
    found = windows(warehouse, hours(2, 1), "support", START + 5 * HOUR)
    assert found is not None
    assert (found.reference.start, found.reference.end) == (START + HOUR, START + 3 * HOUR)


def test_the_current_window_can_be_a_count(warehouse: Warehouse) -> None:
    stored(warehouse, 300)
    found = windows(warehouse, hours(2, 24, events=25), "support", START + 5 * HOUR)
    assert found is not None
    assert found.current == Window(START + 275 * MINUTE, START + 5 * HOUR, 25)


def test_the_future_is_not_read(warehouse: Warehouse) -> None:
    stored(warehouse, 300)
    found = windows(warehouse, hours(2, 1), "support", START + 3 * HOUR)
    assert found is not None
    assert (found.reference.conversations, found.current.conversations) == (120, 60)


@pytest.mark.parametrize("reference", [1, 3, 24])
@pytest.mark.parametrize("current", [0.5, 2, 24])
def test_windows_never_overlap_and_never_reach_before_the_anchor(reference: float, current: float) -> None:
    for minutes in range(-120, 1_800, 7):
        now = START + minutes * MINUTE
        start, end, current_start = bounds(START, now - current * HOUR, now, 3_600 * reference)
        assert start <= end <= current_start <= now
        assert end - start <= reference * HOUR
        if minutes >= 0:
            assert start >= START


def test_before_the_reference_span_has_passed_its_older_part_is_the_reference(warehouse: Warehouse) -> None:
    stored(warehouse, 180)
    found = windows(warehouse, hours(24, 1), "support", START + 3 * HOUR)
    assert found is not None
    assert (found.reference.conversations, found.current.conversations) == (120, 60)
    assert found.missing(60) == 0


def test_what_windows_lack_is_counted(warehouse: Warehouse) -> None:
    stored(warehouse, 90)
    found = windows(warehouse, hours(24, 1), "support", START + 90 * MINUTE)
    assert found is not None
    assert found.missing(30) == 0
    assert found.missing(31) == 1
    assert found.missing(70) == 50


def test_a_sample_is_repeatable_by_its_seed_and_comes_from_its_window_alone(warehouse: Warehouse) -> None:
    stored(warehouse, 300)
    stored(warehouse, 300, workload="other")
    window = Window(START + HOUR, START + 3 * HOUR, 120)

    def drawn(seed: str, rows: int = 40) -> list[tuple[str, datetime]]:
        with warehouse.cursor() as cursor:
            sample(cursor, "drawn", "support", window, rows, seed)
            return cursor.execute("SELECT id, timestamp FROM drawn ORDER BY id").fetchall()

    assert len(drawn("a")) == 40
    assert drawn("a") == drawn("a")
    assert drawn("a") != drawn("b")
    assert all(window.start <= when < window.end for _, when in drawn("a"))
    assert all(name.startswith("support-") for name, _ in drawn("a"))
    assert len(drawn("a", rows=1_000)) == 120


def test_a_sample_favours_no_part_of_its_window(warehouse: Warehouse) -> None:
    stored(warehouse, 2_000)
    window = Window(START, START + 2_000 * MINUTE, 2_000)
    with warehouse.cursor() as cursor:
        sample(cursor, "drawn", "support", window, 500, "a")
        early = cursor.execute("SELECT count(*) FROM drawn WHERE timestamp < ?", [START + 1_000 * MINUTE]).fetchone()
    assert early is not None
    assert 200 <= early[0] <= 300


@pytest.mark.full
def test_windows_count_conversations_and_a_sample_has_one_event_of_each(warehouse: Warehouse) -> None:
    for turn in range(6):
        for conversation in range(30):
            number = 30 * turn + conversation
            stored(warehouse, 1, START + number * MINUTE, number, conversation_id=f"c{conversation}")
    stored(warehouse, 20, offset=500)  # of no conversation
    found = windows(warehouse, hours(24, 2), "support", START + 4 * HOUR)
    assert found is not None
    assert (found.reference.conversations, found.current.conversations) == (30 + 20, 30)

    def drawn(rows: int, seed: str = "a") -> list[tuple[str, str | None]]:
        with warehouse.cursor() as cursor:
            sample(cursor, "drawn", "support", Window(START, START + 4 * HOUR, 50), rows, seed)
            return cursor.execute("SELECT id, conversation_id FROM drawn ORDER BY id").fetchall()

    conversations = [conversation for _, conversation in drawn(1_000)]
    assert len(conversations) == 50
    assert len(set(conversations)) == 31
    assert drawn(25) == drawn(25)
    assert set(drawn(25)) < set(drawn(1_000))
    # Of a conversation any turn may be drawn, and long ones are drawn no more often than short ones.
    assert len({int(id.removeprefix("support-")) // 30 for id, conversation in drawn(1_000) if conversation}) == 6
    short = [sum(conversation is None for _, conversation in drawn(25, str(seed))) for seed in range(40)]
    assert 8 <= sum(short) / len(short) <= 12


@pytest.mark.full
@pytest.mark.parametrize("turns", [3, 6, 10])
def test_quiet_conversations_flag_topics_no_more_often_than_promised(warehouse: Warehouse, turns: int) -> None:
    """Each conversation is about one of five topics; a look compares two windows of 80 conversations each."""
    looks, conversations, topics = 200, 80, 5
    rng = random.Random(turns)
    with warehouse.transaction() as cursor:
        cursor.execute(
            """
            INSERT INTO interactions BY NAME
            SELECT n || '-' || turn AS id, $start + to_seconds(n) AS timestamp, 'support' AS workload, 'base' AS model,
                   '[]' AS messages, ($topics[n % len($topics) + 1])::VARCHAR AS response, 'c' || n AS conversation_id,
                   'interactions' AS topic, 0 AS partition, n * $turns + turn AS "offset", $start AS received_at
            FROM range(len($topics)) conversations(n), range($turns) turns(turn)
            """,
            {
                "start": START,
                "turns": turns,
                "topics": rng.choices(range(topics), (3, 3, 2, 2, 1), k=2 * looks * conversations),
            },
        )
    flagged = 0
    with warehouse.cursor() as cursor:
        for look in range(looks):
            seen = []
            for half in range(2):
                start = START + (2 * look + half) * timedelta(seconds=conversations)
                window = Window(start, start + timedelta(seconds=conversations), conversations)
                sample(cursor, "drawn", "support", window, 500, "a")
                seen.append([topic for (topic,) in cursor.execute("SELECT response FROM drawn").fetchall()])
            assert len(seen[0]) == len(seen[1]) == conversations
            flagged += two_sample_chi_square(*seen) <= 0.05
    assert flagged <= 0.05 * looks + 3 * (looks * 0.05 * 0.95) ** 0.5


def seasonal(rows: int | None, reference: float, current: float) -> WindowsSettings:
    return hours(reference, current).model_copy(update={"seasonal_rows": rows})


@pytest.mark.parametrize("weeks", [3, 4])
def test_with_four_weeks_of_history_the_reference_is_of_the_same_hours_of_the_week(
    warehouse: Warehouse, weeks: int
) -> None:
    """In fewer weeks it cannot be seen how much they differ: it is of the same hours of the day."""
    for week in range(weeks + 1):
        stored(warehouse, 240, start=START + week * WEEK, offset=1_000 * week)
    stored(warehouse, 240, start=START + DAY, offset=9_000)
    now = START + weeks * WEEK + 2 * HOUR
    found = windows(warehouse, seasonal(60, weeks * 7 * 24, 2), "support", now)
    assert found is not None
    of_the_week = weeks == 4
    season = Season(WEEK if of_the_week else DAY, now - 2 * HOUR, 2 * HOUR)
    assert found.reference == Window(START, START + weeks * WEEK, 120 * (weeks if of_the_week else weeks + 1), season)
    assert found.current == Window(now - 2 * HOUR, now, 120)
    assert not found.standing
    with warehouse.cursor() as cursor:
        sample(cursor, "drawn", "support", found.reference, 1_000, "a")
        span = cursor.execute("SELECT min(timestamp), max(timestamp), count(*) FROM drawn").fetchone()
    assert span == (START, START + (weeks - 1) * WEEK + 119 * MINUTE, found.reference.conversations)


def test_hours_that_reach_over_an_end_of_the_reference_come_from_both_ends(warehouse: Warehouse) -> None:
    stored(warehouse, 240)
    stored(warehouse, 240, start=START + 4 * WEEK - 4 * HOUR, offset=1_000)
    found = windows(warehouse, seasonal(60, 4 * 7 * 24, 2), "support", START + 5 * WEEK + HOUR)
    assert found is not None
    with warehouse.cursor() as cursor:
        sample(cursor, "drawn", "support", found.reference, 1_000, "a")
        early = cursor.execute("SELECT count(*) FROM drawn WHERE timestamp < ?", [START + DAY]).fetchone()
    assert found.reference.conversations == 120
    assert early == (60,)


def test_with_less_history_it_is_of_the_same_hours_of_the_day_or_of_all(warehouse: Warehouse) -> None:
    stored(warehouse, 4 * 24 * 60)
    now = START + 3 * DAY + 12 * HOUR

    def season(rows: int | None, current: float = 2, reference: float = 7 * 24) -> timedelta | None:
        found = windows(warehouse, seasonal(rows, reference, current), "support", now)
        assert found is not None
        return found.reference.season and found.reference.season.period

    assert season(360) == DAY
    assert season(361) is None  # too few events of these hours
    assert season(None) is None  # switched off
    assert season(60, current=24) is None  # a whole day has all hours
    assert season(60, reference=23) is None  # and the reference is none


def test_a_reference_stands_when_it_has_its_length_and_all_hours(warehouse: Warehouse) -> None:
    stored(warehouse, 600)
    for reference, standing in ((2, True), (24, False)):
        found = windows(warehouse, hours(reference, 1), "support", START + 8 * HOUR)
        assert found is not None
        assert found.standing is standing


def test_a_sample_from_few_conversations_is_that_from_all(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        stored(warehouse, 100, start=START + number * MINUTE, offset=100 * number, conversation_id=f"c{number // 3}")
    stored(warehouse, 4_000, offset=10_000)  # each a conversation by itself
    window = Window(START, START + 200 * HOUR, 4_014)
    drawn = []
    for rows in (5, 20, 500, 9_000):
        found = []
        for parts in (FEW, ALL):
            with warehouse.cursor() as cursor, monkeypatch.context() as patched:
                patched.setattr("retuned.monitors.windows.FEW", parts)
                sample(cursor, "drawn", "support", window, rows, "seed")
                found.append(cursor.execute("SELECT id FROM drawn ORDER BY id").fetchall())
        assert found[0] == found[1]
        drawn.append(len(found[0]))
    assert drawn == [5, 20, 500, 4_014]


def test_the_current_window_alone_is_that_of_both_windows(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retuned.monitors.windows.EVENTS_LOOKED_AT", 2)
    settings = WindowsSettings(reference_seconds=7_200, current_seconds=3_600, minimum_rows=30)
    assert current(warehouse, settings, "support", START) is None
    stored(warehouse, 300, offset=1_000, conversation_id="c")
    stored(warehouse, 300)
    for minutes in (0, 10, 29, 30, 31, 200, 320, 331, 700):
        now = START + minutes * MINUTE
        found, whole = current(warehouse, settings, "support", now), windows(warehouse, settings, "support", now)
        assert (found is None) == (whole is None)
        if found and whole:
            assert (found.start, found.end) == (whole.current.start, whole.current.end)
            assert min(found.conversations, 30) == min(whole.current.conversations, 30)
            assert found.conversations <= whole.current.conversations
