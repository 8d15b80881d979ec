"""The thread that publishes the buffer to Kafka."""

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
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
from retuned.daemon.gateway.events.record import Exchange, Record, Shadow, Vote, decode, interaction, shadow_answer
from retuned.daemon.gateway.metrics import Metrics

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.2
RETRY_SECONDS = 2.0
REFUSED_SECONDS = 30.0
"""The pause for a topic that goes on refusing events while Kafka accepts others: a missing one blocks for seconds."""
MOST_AT_ONCE = 200
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)

Message = tuple[str, dict[str, Any]]


class Publishing:
    """Publishes one file after the other, oldest first, and deletes each once Kafka has acknowledged all of it.

    A topic that refuses events holds up no other one: what it refuses is all that is left of a file, and comes first
    once the topic accepts events. After a crash a file may be published again as a whole: events keep their ids, and
    the daemon stores each once.
    """

    def __init__(self, buffer: Buffer, publisher: Publisher, kafka: KafkaSettings, metrics: Metrics) -> None:
        self._buffer, self._publisher, self._metrics = buffer, publisher, metrics
        self._interactions, self._feedback = kafka.interactions_topic, kafka.feedback_topic
        self._experts = kafka.expert_topic or kafka.feedback_topic
        self._topics = frozenset({self._interactions, self._feedback, self._experts})
        self._waiting: dict[Path, frozenset[str]] = {}  # the topics of what is left of a file; absent: not known
        self._refusals: dict[str, RetunedError] = {}  # topics that get nothing until the next retry
        self._problems: Mapping[str, str] = {}
        self._acknowledged = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)

    @property
    def problem(self) -> str | None:
        """The reason why Kafka does not accept events, of a topic at least; None: it does."""
        return next(iter(self._problems.values()), None)

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
            RetunedError: a topic does not accept its records; they stay in the buffer.
        """
        self._refusals.clear()
        self._publish_files()
        for refusal in self._refusals.values():
            raise refusal

    def _run(self) -> None:
        retry_at, acknowledged = 0.0, 0
        is_one_topic = False
        while True:
            last, before = self._stop.is_set(), frozenset(self._refusals)
            is_retry = last or time.monotonic() >= retry_at
            if is_retry:
                self._refusals.clear()
            problems: dict[str, str] = {}
            try:
                self._publish_files()
            except Exception as error:  # otherwise the thread would end, and no event would be published any more
                log.exception("publishing")
                problems["all topics"] = f"{type(error).__name__}: {error}"
            self._note(problems | {f"topic {topic}": str(refusal) for topic, refusal in self._refusals.items()})
            if last:
                return
            if is_retry or self._refusals.keys() - before:
                is_one_topic = self._refusals.keys() <= before and self._acknowledged > acknowledged
                acknowledged = self._acknowledged
                retry_at = time.monotonic() + (REFUSED_SECONDS if is_one_topic else RETRY_SECONDS)
            self._stop.wait(RETRY_SECONDS if problems or (self._refusals and not is_one_topic) else PAUSE_SECONDS)

    def _publish_files(self) -> None:
        """Publishes what waits for topics that have not refused events since the last retry."""
        before: Path | None = None
        for file in self._buffer.sealed():
            if self._waiting.get(file, self._topics) <= self._refusals.keys() or not self._publish(file, before):
                before = file

    def _publish(self, file: Path, before: Path | None) -> bool:
        """Publishes a file and deletes it; or shortens it to what topics refuse, and joins it with the file before it.

        Returns:
            Whether it was deleted.
        """
        topics = self._waiting.get(file, self._topics)
        left: list[bytes] = []
        refused: set[str] = set()
        read, contents = 0, records(file)
        while batch := list(islice(contents, MOST_AT_ONCE)):
            read += len(batch)
            for topic, found in self._by_topic(batch).items():
                if topic in topics and (rest := self._refused_by(topic, found)):
                    left += rest
                    refused.add(topic)
            if len(left) == read and topics <= self._refusals.keys():
                return False
        if not left:
            self._buffer.remove(file)
            self._waiting.pop(file, None)
            return True
        self._waiting[file] = frozenset(refused)
        joined = before if before and before in self._waiting and self._buffer.is_small(before) else None
        if joined or len(left) < read:
            try:
                self._buffer.keep(file, left, joined)
            except OSError as error:
                log.warning("%s: what Kafka has cannot be removed from it (%s)", file, error.strerror)
            else:
                self._waiting[file] |= self._waiting.pop(joined) if joined else frozenset()
        return False

    def _by_topic(self, contents: Iterable[bytes]) -> dict[str, list[tuple[bytes, Record]]]:
        """Returns records by topic, interactions first."""
        found: dict[str, list[tuple[bytes, Record]]] = {self._interactions: [], self._feedback: [], self._experts: []}
        for content in contents:
            try:
                record = decode(content)
            except Exception as error:  # noqa: BLE001  (an unreadable record must not block those after it)
                self._drop("interactions", "unreadable", type(error).__name__)
            else:
                found[self._topic(record)].append((content, record))
        return found

    def _topic(self, record: Record) -> str:
        if isinstance(record, Exchange):
            return self._interactions
        is_expert = isinstance(record, Vote) and record.event.get("source") == "expert"
        return self._experts if is_expert else self._feedback

    def _refused_by(self, topic: str, found: Sequence[tuple[bytes, Record]]) -> list[bytes]:
        """Publishes records. Returns all that are readable if the topic refuses one of them, or did so before."""
        if topic in self._refusals:
            return [content for content, _ in found]
        readable = [(content, message) for content, record in found if (message := self._message(record))]
        try:
            self._send(topic, [message for _, message in readable])
        except RetunedError as refusal:
            self._refusals[topic] = refusal
            return [content for content, _ in readable]
        return []

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
        self._acknowledged += len(messages)
        self._metrics.published.labels(kind).inc(len(messages))

    def _message(self, record: Record) -> Message | None:
        try:
            return _message(record)
        except Exception as error:  # noqa: BLE001  (an unreadable record must not block those after it)
            if isinstance(record, Shadow):
                self._metrics.shadow.labels("unreadable").inc()
                return None
            reason = error.reason if isinstance(error, BadEvent) else type(error).__name__
            self._drop("interactions", "unreadable", reason)  # the error's detail may quote the answer
            return None

    def _drop(self, kind: Kind, reason: str, why: str) -> None:
        self._metrics.dropped.labels(kind, reason).inc()
        log.warning("an event of %s is dropped: %s: %s", kind, reason, why)

    def _note(self, problems: Mapping[str, str]) -> None:
        for name, problem in problems.items():
            if problem != self._problems.get(name):
                log.warning(
                    "%s: events wait in the buffer; if Kafka accepts those of another topic, create this one, or let "
                    "the gateway's user write to it: %s",
                    name,
                    problem,
                )
        for name in self._problems.keys() - problems.keys():
            log.info("%s: Kafka accepts events again", name)
        self._problems = problems


def _message(record: Record) -> Message:
    """Returns the message of a record's event.

    Raises:
        BadEvent: the record holds no readable answer.
    """
    if isinstance(record, Vote):
        return record.interaction_id, record.event
    event = shadow_answer(record) if isinstance(record, Shadow) else interaction(record)
    msgspec.json.encode(event)  # raises for a number that is valid in JSON but not in an event
    if isinstance(record, Shadow):
        return record.interaction_id, event
    return str(event.get("conversation_id") or event.get("user_id") or event["id"]), event
