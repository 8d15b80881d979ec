"""What an event may hold, at any time from 1990 to 2100: dates in tests do not grow old."""

from datetime import datetime

from retuned.consumers.formats.events import Bounds
from retuned.consumers.settings import IngestSettings

BOUNDS = Bounds.of(IngestSettings(max_age_days=73_000), datetime(2100, 1, 1))
