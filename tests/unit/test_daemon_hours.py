"""Hours of the day: which moments are within them, by whose clock, and when the next ones begin."""

from datetime import datetime, timedelta

import pytest

from retuned.consumers.errors import ConfigurationError
from retuned.daemon.settings import ScheduleSettings, Settings, load

DAY = datetime(2026, 11, 24)


def at(clock: str, day: datetime = DAY) -> datetime:
    hour, minute = map(int, clock.split(":"))
    return day + timedelta(hours=hour, minutes=minute)


def within(*spans: str, zone: str = "UTC") -> ScheduleSettings:
    return ScheduleSettings(training_hours=spans, time_zone=zone)


@pytest.mark.parametrize(
    ("spans", "inside", "outside"),
    [
        (("09:00-17:00",), ["09:00", "16:59"], ["08:59", "17:00", "00:00"]),
        (("22:00-06:00",), ["22:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "21:59"]),
        (("20:00-24:00",), ["20:00", "23:59"], ["00:00", "19:59"]),
        (("00:00-24:00",), ["00:00", "12:00", "23:59"], []),
        (("01:00-02:00", "13:30-14:00"), ["01:30", "13:30"], ["02:00", "13:00", "14:00"]),
    ],
)
def test_hours_hold_their_begin_and_not_their_end(
    spans: tuple[str, ...], inside: list[str], outside: list[str]
) -> None:
    hours = within(*spans).hours
    assert hours is not None
    assert [clock for clock in inside + outside if hours.hold(at(clock))] == inside


def test_no_hours_are_all_hours() -> None:
    assert ScheduleSettings().hours is None


def test_hours_go_by_the_clock_of_their_zone_summer_and_winter() -> None:
    hours = within("22:00-06:00", zone="Europe/Berlin").hours
    assert hours is not None
    winter, summer = datetime(2026, 1, 15), datetime(2026, 7, 15)
    assert [hours.hold(at(clock, winter)) for clock in ("20:30", "21:00", "04:59", "05:00")] == [
        False,
        True,
        True,
        False,
    ]
    assert [hours.hold(at(clock, summer)) for clock in ("19:30", "20:00", "03:59", "04:00")] == [
        False,
        True,
        True,
        False,
    ]
    assert hours.next_begin(at("12:00", winter)) == at("21:00", winter)
    assert hours.next_begin(at("12:00", summer)) == at("20:00", summer)


def test_the_next_begin_is_the_nearest_one_that_has_not_passed() -> None:
    hours = within("22:00-06:00", "12:00-13:00").hours
    assert hours is not None
    assert hours.next_begin(at("07:00")) == at("12:00")
    assert hours.next_begin(at("12:00")) == at("22:00")
    assert hours.next_begin(at("23:00")) == at("12:00", DAY + timedelta(days=1))


@pytest.mark.parametrize("span", ["22-06", "25:00-06:00", "22:00", "22:60-23:00", "24:30-06:00", "06:00-24:01"])
def test_what_is_no_span_of_hours_is_named(span: str) -> None:
    with pytest.raises(ValueError, match="expected hours such as 22:00-06:00"):
        within(span)


def test_a_span_without_length_and_a_zone_that_is_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no length; the whole day is 00:00-24:00"):
        within("06:00-06:00")
    monkeypatch.setenv("RETUNED__SCHEDULE__TIME_ZONE", "Europe/Atlantis")
    with pytest.raises(ConfigurationError, match="expected a time zone such as Europe/Berlin"):
        load(None)
    monkeypatch.setenv("RETUNED__SCHEDULE__TIME_ZONE", "Asia/Tokyo")
    monkeypatch.setenv("RETUNED__SCHEDULE__TRAINING_HOURS", '["22:00-06:00"]')
    schedule: Settings = load(None)
    assert schedule.schedule.hours is not None
    assert schedule.schedule.hours.hold(at("13:00"))
