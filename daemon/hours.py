"""Hours of the day in a time zone, such as those in which models may be trained."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_CLOCK = r"(?:([01]\d|2[0-3]):([0-5]\d)|24:00)"
_SPAN = re.compile(rf"{_CLOCK}\s*-\s*{_CLOCK}")


@dataclass(frozen=True)
class Hours:
    """Spans of the day by the clock of a zone. A span that ends before it begins crosses midnight."""

    spans: tuple[tuple[time, time], ...]
    zone: ZoneInfo

    def hold(self, now: datetime) -> bool:
        """Whether a moment (UTC, without a zone) is within one of the spans."""
        at = self._local(now).time()
        return any(
            begin <= at < end if begin < end else at >= begin or at < end  # begin == end: the whole day
            for begin, end in self.spans
        )

    def next_begin(self, now: datetime) -> datetime:
        """When the next span begins after a moment; both are UTC, without a zone."""
        today = self._local(now).date()
        begins = (
            datetime.combine(today + timedelta(days=day), begin, self.zone).astimezone(UTC).replace(tzinfo=None)
            for day in range(3)
            for begin, _ in self.spans
        )
        return min(begin for begin in begins if begin > now)

    def _local(self, now: datetime) -> datetime:
        return now.replace(tzinfo=UTC).astimezone(self.zone)


def span(text: str) -> tuple[time, time]:
    """A span such as 22:00-06:00; 24:00 is the midnight that ends a day.

    Raises:
        ValueError: it is none.
    """
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"expected hours such as 22:00-06:00, not {text!r}")
    begin, end = (time(int(hour or 0), int(minute or 0)) for hour, minute in (found.group(1, 2), found.group(3, 4)))
    if begin == end and found[3] is not None:
        raise ValueError(f"{text!r} has no length; the whole day is 00:00-24:00")
    return begin, end


def zone(name: str) -> ZoneInfo:
    """A time zone by its name in the tz database.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"expected a time zone such as Europe/Berlin or UTC, not {name!r}") from error
