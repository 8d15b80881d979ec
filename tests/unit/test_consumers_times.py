"""Moments as people read them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from retuned.consumers.common.times import shown


@pytest.mark.parametrize(
    "time",
    [
        datetime(2026, 11, 24, 9, 30, 59),  # as in the warehouse
        datetime(2026, 11, 24, 9, 30, tzinfo=UTC),
        datetime(2026, 11, 24, 11, 0, tzinfo=timezone(timedelta(hours=1, minutes=30))),
        "2026-11-24T09:30:59.123Z",
        "2026-11-24T09:30:59",
        "2026-11-24T10:30:00+01:00",
    ],
)
def test_a_moment_is_shown_to_the_minute_in_utc(time: datetime | str) -> None:
    assert shown(time) == "2026-11-24 09:30 UTC"
