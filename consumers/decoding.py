"""Messages into rows: which kind a topic holds, what its events may hold, and each message decoded by itself."""

import logging
import time
from collections.abc import Callable
from datetime import datetime

from retuned.consumers.formats.dialects import BadPart, Found, decode_any
from retuned.consumers.formats.events import BadEvent, Bounds, Feedback, Kind, decode
from retuned.consumers.formats.files import TOPIC
from retuned.consumers.kafka.contract import Batch, Record
from retuned.consumers.kafka.records import BrokenBatch
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse.connection import utc_now
from retuned.consumers.warehouse.rows import Rows

log = logging.getLogger(__name__)


class Decoder:
    """Decodes the messages of Kafka, of files and of dead letters alike."""

    def __init__(self, settings: Settings, progress: Callable[[], None] = lambda: None) -> None:
        """`progress` is called with each message that is no event of ours: one may take a second."""
        self._settings, self._progress = settings, progress
        self._unvouched: set[str] = set()

    def rows(self, batch: Batch, distance_seconds: float, pseudonym: Callable[[str], str]) -> Rows:
        """The rows of a batch, decoded and packed; what is no event is among them as a dead letter.

        Args:
            distance_seconds: how far apart two events with one id may be and still be one.
            pseudonym: of a user as the batch names one.
        """
        started = time.perf_counter()
        rows = Rows(batch, distance_seconds, utc_now(), pseudonym)
        topics = {topic: (self._kind(topic), self._bounds(topic, rows.received_at)) for topic in rows.messages}
        for record in batch.records:
            kind, bounds = topics[record.topic]
            try:  # nearly all are events of ours
                event = decode(kind, record.value, bounds)
            except Exception:  # noqa: BLE001  (looked into below, where nothing is raised)
                self._progress()
                for found in _decoded(kind, record, bounds):
                    rows.add(self._vouched(found, record.topic), record)
            else:
                rows.add(self._vouched(event, record.topic), record)
        rows.pack()
        rows.seconds += time.perf_counter() - started
        return rows

    def found(self, record: Record, received_at: datetime) -> list[Found | BadPart]:
        """What one message holds."""
        found = _decoded(self._kind(record.topic), record, self._bounds(record.topic, received_at))
        return [self._vouched(part, record.topic) for part in found]

    def _kind(self, topic: str) -> Kind:
        return "interactions" if topic not in self._settings.kafka.topics[1:] else "feedback"

    def _vouched(self, found: Found | BadPart, topic: str) -> Found | BadPart:
        """Feedback of experts as of users, on another topic than theirs; files are imported by the operator."""
        experts = self._settings.kafka.expert_topic
        if experts is None or type(found) is not Feedback or found.source != "expert":
            return found
        if topic != experts and not topic.startswith(TOPIC):
            if topic not in self._unvouched:
                log.warning("%s: feedback of experts counts as of users (kafka.expert_topic: %s)", topic, experts)
                self._unvouched.add(topic)
            found.source = "user"
        return found

    def _bounds(self, topic: str, received_at: datetime) -> Bounds:
        return Bounds.of(self._settings.ingest, received_at, history=topic.startswith(TOPIC))


def _decoded(kind: Kind, record: Record, bounds: Bounds) -> list[Found | BadPart]:
    if record.problem is not None:
        reason = "unreadable" if isinstance(record, BrokenBatch) else "not_an_event"
        return [BadPart(BadEvent(reason, record.problem))]
    return decode_any(kind, record.value, record.headers, bounds)
