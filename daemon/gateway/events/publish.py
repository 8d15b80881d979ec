"""The thread that publishes the buffer to Kafka."""

import logging
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from retuned.consumers.errors import BrokerRefused, RetunedError
from retuned.consumers.formats.events import BadEvent, Kind
from retuned.consumers.kafka.contract import Publisher
from retuned.consumers.settings import KafkaSettings
from retuned.daemon.gateway.events.buffer import Buffer, records
from retuned.daemon.gateway.events.record import Record, Shadow, Vote, decode, interaction, shadow_answer
from retuned.daemon.gateway.metrics import Metrics

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.2
RETRY_SECONDS = 2.0
MOST_AT_ONCE = 200
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)

Message = tuple[str, dict[str, Any]]


class Publishing:
    """Publishes one file after the other, oldest first, and deletes each once Kafka has acknowledged all of it.

    A file that was acknowledged in part is published again as a whole: events keep their ids, and the daemon stores
    each once.

    Attributes:
        problem: the reason why Kafka does not accept events; None: it does.
    """

    def __init__(self, buffer: Buffer, publisher: Publisher, kafka: KafkaSettings, metrics: Metrics) -> None:
        self._buffer, self._publisher, self._metrics = buffer, publisher, metrics
        self._interactions, self._feedback = kafka.interactions_topic, kafka.feedback_topic
        self._experts = kafka.expert_topic or kafka.feedback_topic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)
        self.problem: str | None = None

    def start(self) -> None:
        """Starts the thread, which begins with the records of an earlier process."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Publishes the buffer once more, for at most `seconds`; the rest stays in the buffer."""
        self._stop.set()
        self._thread.join(seconds)

    def publish(self) -> None:
        """Publishes the records that are buffered now.

        Raises:
            RetunedError: Kafka does not accept them; they stay in the buffer.
        """
        for file in self._buffer.sealed():
            self._publish(file)
            self._buffer.remove(file)

    def _run(self) -> None:
        while True:
            last = self._stop.is_set()
            try:
                self.publish()
                self._solved()
            except RetunedError as error:
                self._failed(str(error))
            except Exception as error:  # otherwise the thread would end, and no event would be published any more
                log.exception("publishing")
                self._failed(f"{type(error).__name__}: {error}")
            if last:
                return
            self._stop.wait(RETRY_SECONDS if self.problem else PAUSE_SECONDS)

    def _publish(self, file: Path) -> None:
        waiting = self._messages(file)
        while batch := list(islice(waiting, MOST_AT_ONCE)):
            for topic in dict.fromkeys((self._interactions, self._feedback, self._experts)):
                self._send(topic, [message for kind, message in batch if self._topic(kind, message) == topic])

    def _topic(self, kind: Kind, message: Message) -> str:
        if kind == "interactions":
            return self._interactions
        return self._experts if message[1].get("source") == "expert" else self._feedback

    def _send(self, topic: str, messages: list[Message]) -> None:
        if not messages:
            return
        kind: Kind = "interactions" if topic == self._interactions else "feedback"
        try:
            self._publisher.publish_all(topic, messages)
        except BrokerRefused as error:
            if not isinstance(error.__cause__, _TOO_LARGE):
                raise
            if len(messages) == 1:
                self._drop(kind, "too_large", str(error))
                return
            for message in messages:
                self._send(topic, [message])
            return
        self._metrics.published.labels(kind).inc(len(messages))

    def _messages(self, file: Path) -> Iterator[tuple[Kind, Message]]:
        for content in records(file):
            record: Record | None = None
            try:
                record = decode(content)
                message = _message(record)
            except Exception as error:  # noqa: BLE001  (an unreadable record must not block those after it)
                if isinstance(record, Shadow):
                    self._metrics.shadow.labels("unreadable").inc()
                    continue
                reason = error.reason if isinstance(error, BadEvent) else type(error).__name__
                self._drop("interactions", "unreadable", reason)  # the error's detail may quote the answer
            else:
                yield message

    def _drop(self, kind: Kind, reason: str, why: str) -> None:
        self._metrics.dropped.labels(kind, reason).inc()
        log.warning("an event of %s is dropped: %s: %s", kind, reason, why)

    def _failed(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("events wait in the buffer: %s", problem)
        self.problem = problem

    def _solved(self) -> None:
        if self.problem:
            log.info("Kafka accepts events again")
        self.problem = None


def _message(record: Record) -> tuple[Kind, Message]:
    """Returns the kind of a record's event, and the message.

    Raises:
        BadEvent: the record holds no readable answer.
    """
    if isinstance(record, Vote):
        return "feedback", (record.interaction_id, record.event)
    event = shadow_answer(record) if isinstance(record, Shadow) else interaction(record)
    msgspec.json.encode(event)  # raises for a number that is valid in JSON but not in an event
    if isinstance(record, Shadow):
        return "feedback", (record.interaction_id, event)
    return "interactions", (str(event.get("conversation_id") or event.get("user_id") or event["id"]), event)
