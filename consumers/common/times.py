"""Times as text: what people write and read, and what events and answers have."""

from datetime import UTC, datetime

from retuned.consumers.errors import RetunedError


def utc(name: str, text: str | None) -> datetime | None:
    """Returns a time as naive UTC, as in the warehouse. Raises a RetunedError that begins with `name`."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
    except (ValueError, OverflowError) as error:
        raise RetunedError(f"{name}: expected a date or a time such as 2026-11-24T09:30, got {text!r}") from error


def iso(time: datetime) -> str:
    """Returns a time in UTC as in events and answers: 2026-11-24T09:30:00.000Z."""
    return time.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def shown(time: datetime | str) -> str:
    """Returns a moment as people read it on a terminal and in messages: 2026-11-24 09:30 UTC.

    Args:
        time: or its ISO 8601; in UTC if it names no zone.
    """
    moment = datetime.fromisoformat(time) if isinstance(time, str) else time
    return f"{moment.astimezone(UTC) if moment.tzinfo else moment:%Y-%m-%d %H:%M} UTC"
