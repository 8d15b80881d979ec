"""Decodes messages into rows, by the kind and the bounds of their topic."""

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
    """Decodes messages of Kafka, files and dead letters."""

    def __init__(self, settings: Settings, progress: Callable[[], None] = lambda: None) -> None:
        """Creates a decoder.

        Args:
            progress: called for each message in another format, which may take a second.
        """
        self._settings, self._progress = settings, progress
        self._demoted: set[str] = set()

    def rows(self, batch: Batch, distance_seconds: float, pseudonym: Callable[[str], str]) -> Rows:
        """Decodes and packs the rows of a batch; messages that are not events become dead letters.

        Args:
            distance_seconds: the deduplication distance of events with the same id.
            pseudonym: returns the pseudonym of a user named by the batch.
        """
        started = time.perf_counter()
        rows = Rows(batch, distance_seconds, utc_now(), pseudonym)
        topics = {topic: (self._kind(topic), self._bounds(topic, rows.received_at)) for topic in rows.messages}
        for record in batch.records:
            if record.topic == self._settings.kafka.erasure_topic:
                rows.ask(record)
                continue
            kind, bounds = topics[record.topic]
            try:  # nearly all messages are in our format
                event = decode(kind, record.value, bounds)
            except Exception:  # noqa: BLE001  (decoded again below, without raising)
                self._progress()
                for part in _decoded(kind, record, bounds):
                    rows.add(self._with_source(part, record.topic), record)
            else:
                rows.add(self._with_source(event, record.topic), record)
        rows.pack()
        rows.seconds += time.perf_counter() - started
        return rows

    def found(self, record: Record, received_at: datetime) -> list[Found | BadPart]:
        """Returns the parts of one message."""
        parts = _decoded(self._kind(record.topic), record, self._bounds(record.topic, received_at))
        return [self._with_source(part, record.topic) for part in parts]

    def _kind(self, topic: str) -> Kind:
        return "interactions" if topic not in self._settings.kafka.topics[1:] else "feedback"

    def _with_source(self, part: Found | BadPart, topic: str) -> Found | BadPart:
        """Changes the source of experts' feedback to user unless it is on the experts' topic or in an imported file."""
        experts = self._settings.kafka.expert_topic
        if experts is None or type(part) is not Feedback or part.source != "expert":
            return part
        if topic != experts and not topic.startswith(TOPIC):
            if topic not in self._demoted:
                log.warning("%s: experts' feedback counts as users' feedback (kafka.expert_topic: %s)", topic, experts)
                self._demoted.add(topic)
            part.source = "user"
        return part

    def _bounds(self, topic: str, received_at: datetime) -> Bounds:
        return Bounds.of(self._settings.ingest, received_at, history=topic.startswith(TOPIC))


def _decoded(kind: Kind, record: Record, bounds: Bounds) -> list[Found | BadPart]:
    if record.problem is not None:
        reason = "unreadable" if isinstance(record, BrokenBatch) else "not_an_event"
        return [BadPart(BadEvent(reason, record.problem))]
    return decode_any(kind, record.value, record.headers, bounds)
