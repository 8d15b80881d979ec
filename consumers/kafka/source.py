"""The source of events on kafka-python, and its handling of assignments, lost events and recreated topics."""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.structs import OffsetAndMetadata

from retuned.consumers.errors import BrokerUnavailable, EventsLost
from retuned.consumers.kafka.backlog import Backlog
from retuned.consumers.kafka.connection import client_config, connect, refusal, topic_id, translated
from retuned.consumers.kafka.contract import (
    AWAY_SECONDS,
    BATCH_BYTES,
    CHOICES,
    FIRST_RECORDS,
    LOOK_SECONDS,
    Batch,
    Identities,
    Identity,
    Offsets,
    Partition,
    Record,
    check_cluster,
    from_beginning,
    is_another,
    lost_events,
    lost_text,
    remade_text,
)
from retuned.consumers.kafka.member_file import MemberFile
from retuned.consumers.kafka.membership import Membership, SharedMembership
from retuned.consumers.kafka.records import FastRecords
from retuned.consumers.settings import KafkaSettings

log = logging.getLogger(__name__)

JOIN_SECONDS = 2.0
# The bytes that the client may buffer of all partitions together, and of one. It fetches more of a partition when its
# buffer is empty, so its memory would grow with the number of partitions.
HELD_BYTES, LEAST_PARTITION_BYTES, MOST_PARTITION_BYTES = 64 * 2**20, 128 * 2**10, 4 * 2**20
# The wait for more records to fill a batch while the broker has more than the client has buffered.
FILL_MS = 100


def _nothing(_: Sequence[Partition]) -> None:
    pass


class KafkaSource:
    """Reads the topics in a consumer group, from the offsets in the warehouse. Connects on the first poll."""

    def __init__(
        self,
        settings: KafkaSettings,
        stored: Callable[[], Offsets],
        identities: Callable[[], Identities] = dict,
        member_file: MemberFile | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """Creates a source.

        Args:
            stored: returns the next offsets; called on every assignment.
            identities: returns the topics that the stored offsets belong to.
            member_file: its lock is held by this process; with it, the source does not wait for a killed predecessor.
            shared: the members of the group share its partitions; otherwise this member has to be alone.
        """
        self._settings = settings
        self._config = client_config(settings)
        self._stored, self._stored_identities = stored, identities
        self._identities: dict[str, Identity] = {}  # of the topics that are read
        self._remade: set[Partition] = set()  # of recreated topics; their stored offsets have not moved yet
        self._found_remade: list[str] = []
        self.before_assignment: Callable[[Sequence[Partition]], None] = _nothing
        self._consumer: Any = None
        self._assigning, self._assignments = threading.Lock(), 0
        self._reached: Offsets = {}
        self._backlog = Backlog()
        self._lost: Counter[str] = Counter()
        self._failure: Exception | None = None
        self._postponed: Exception | None = None
        self._away_since: float | None = None
        self._looked_at = 0.0
        self.missing: frozenset[str] = frozenset()
        self._membership = SharedMembership() if shared else Membership(settings, member_file)

    def poll(self, max_records: int, timeout_seconds: float) -> Batch:
        try:
            if self._consumer is None:
                if not self._membership.may_join():
                    time.sleep(timeout_seconds)
                    return Batch()
                self._consumer = self._connect()
            with translated(self._settings):
                return self._poll(max_records, timeout_seconds)
        except BrokerUnavailable:
            self._away_since = -math.inf  # without a connection, an empty poll does not show that the broker answers
            raise
        except Exception as error:
            if self._failure is None or self._failure is error:
                raise
            raise self._failure from error  # the client wraps it as a failure of the listener

    def _poll(self, max_records: int, timeout_seconds: float) -> Batch:
        if self._postponed is not None:
            error, self._postponed = self._postponed, None
            self._handle(error)
        # Requests to the broker come before records are read, so a failure loses none.
        self._membership.check(self._consumer.group_metadata().member_id)
        self._finish_joining()
        self._notice_new_topics()
        records = self._read(max_records, timeout_seconds)
        if self._failure is not None:
            raise self._failure
        if not records:
            self._look_around()
        else:
            self._away_since = None
        return self._batch(records)

    def _finish_joining(self) -> None:
        """Completes a rejoin that the last poll was too short for.

        kafka-python (3.0.12) may lose track of it: it then believes it has joined the group, is removed from it, and
        reads nothing forever. It also restarts the rejoin if the response arrives between two polls.
        """
        coordinator = self._consumer._coordinator
        if coordinator.rejoining:
            coordinator.request_rejoin()
            coordinator.ensure_active_group(timeout_ms=JOIN_SECONDS * 1000)

    def _read(self, max_records: int, timeout_seconds: float) -> list[Record]:
        """Reads at most `max_records` records and about BATCH_BYTES, by the size of the first records."""
        records: list[Record] = []
        size, wanted, wait_ms = 0, min(FIRST_RECORDS, max_records), int(timeout_seconds * 1000)
        assignments = self._assignments
        try:
            while wanted > 0 and (polled := self._consumer.poll(wait_ms, max_records=wanted)):
                if not records:
                    assignments = self._assignments
                for partition, part in polled.items():
                    records += part
                    self._backlog.read((partition.topic, partition.partition), part[-1].timestamp)
                    size += sum(len(record.value or b"") for record in part)
                fitting = (BATCH_BYTES - size) * len(records) // max(size, 1)
                wanted = min(max_records - len(records), fitting)
                wait_ms = FILL_MS if self._behind(polled) else 0
        except Exception as error:
            if self._failure is not None:
                raise self._failure from error
            if records:
                self._postponed = error  # store the records first; the client raises an error only once
            else:
                self._handle(error)
        if records and self._assignments != assignments:
            # A new assignment repeats all records that were read before it, and the error after them.
            records, self._postponed = [], None
            with self._assigning:
                pass  # wait until the assignment is complete
            if self._failure is None:
                self._place(self._consumer.assignment())
        return records

    def _behind(self, partitions: Iterable[Any]) -> bool:
        """Whether the broker has unread records of any of the partitions."""
        consumer = self._consumer
        return any(
            (consumer.highwater(partition) or 0) > (consumer.position(partition, timeout_ms=0) or 0)
            for partition in partitions
        )

    def _handle(self, error: Exception) -> None:
        if not isinstance(error, kafka_errors.OffsetOutOfRangeError):
            raise error
        self._restart(error.args[0])

    @property
    def waiting_for(self) -> str:
        return self._membership.waiting_for

    def rewind(self) -> None:
        if self._consumer is not None:
            self._postponed = None
            self._reassign()
            self._failure = None

    def commit(self, nexts: Offsets) -> None:
        if self._consumer is not None and nexts:
            # Asynchronous, and failures are ignored: the warehouse has the authoritative offsets.
            self._consumer.commit_async(
                {TopicPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in nexts.items()},
                callback=lambda _, response: log.debug("group commit: %s", response),
            )

    def lag(self) -> int:
        return sum(
            max(0, end - reached) for _, reached, end in self._places() if end is not None and reached is not None
        )

    def lag_seconds(self, now: float) -> dict[str, float]:
        return self._backlog.ages(self._places(), now)

    def caught_up(self) -> bool:
        places = self._places()
        return bool(places) and all(end is not None and (reached or 0) >= end for _, reached, end in places)

    def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close(autocommit=False, timeout_ms=2_000)

    def _places(self) -> list[tuple[Partition, int | None, int | None]]:
        """Returns each assigned partition with its position and its end, as far as known."""
        if self._consumer is None:
            return []
        keys = {partition: (partition.topic, partition.partition) for partition in self._consumer.assignment()}
        reached = {key: offset for key, offset in self._reached.items() if key not in self._remade}
        return [(key, reached.get(key), self._consumer.highwater(partition)) for partition, key in keys.items()]

    def _connect(self) -> Any:
        settings = self._settings
        session_ms = int(settings.session_timeout_seconds * 1000)
        options = {
            "group_id": settings.group_id,
            "session_timeout_ms": session_ms,
            "heartbeat_interval_ms": max(100, session_ms // 3),
            "auto_offset_reset": "none",
            "enable_auto_commit": False,
            "isolation_level": settings.isolation_level,
            "allow_auto_create_topics": False,
            "max_partition_fetch_bytes": MOST_PARTITION_BYTES,
            "metadata_max_age_ms": int(LOOK_SECONDS * 1000),  # how soon a new topic is noticed
        }
        consumer = connect(KafkaConsumer, settings, self._config | options)
        consumer._fetcher.PartitionRecords = FastRecords
        consumer.subscribe(list(settings.topics), listener=_Listener(self))
        self._away_since = None
        return consumer

    def _assigned(self, partitions: Sequence[Any]) -> None:
        """Handles an assignment, on the client's I/O thread.

        The client only logs a failure here, and would continue at wrong offsets. A short poll may return before the
        assignment is complete.
        """
        with self._assigning:
            self._assignments += 1
            try:
                self._membership.assigned()
                self.before_assignment(_keys(partitions))
                share = HELD_BYTES // max(len(partitions), 1)
                self._consumer._fetcher.config["max_partition_fetch_bytes"] = max(
                    LEAST_PARTITION_BYTES, min(share, MOST_PARTITION_BYTES)
                )
                self._place(partitions)
            except Exception as error:
                self._failure = error
                raise

    def _notice_new_topics(self) -> bool:
        """Restarts recreated topics, and returns whether there are any."""
        if not any(is_another(known, self._identity(topic)) for topic, known in self._identities.items()):
            return False
        self._reassign()
        return True

    def _reassign(self) -> None:
        """Restarts all partitions from their stored offsets."""
        with self._assigning:
            partitions = self._consumer.assignment()
            self.before_assignment(_keys(partitions))
            self._place(partitions)

    def _identity(self, topic: str) -> Identity:
        """Returns the ids of a topic by the client's latest metadata."""
        cluster = self._consumer._cluster
        return Identity(cluster.cluster_id or None, topic_id(cluster.topic_id(topic)))

    def _place(self, partitions: Iterable[Any]) -> None:
        """Seeks to the stored offsets, or restarts partitions of recreated topics."""
        stored, known = self._stored(), self._stored_identities()
        self._identities = {partition.topic: self._identity(partition.topic) for partition in partitions}
        for identity in self._identities.values():
            check_cluster(self._settings, known, identity.cluster_id)
        reached = {}
        self._remade = set()
        for partition in partitions:
            key = (partition.topic, partition.partition)
            offset, identity = stored.get(key), self._identities[partition.topic]
            if offset is not None and is_another(known.get(key), identity):
                if self._choose_or_stop(remade_text(*key, offset)) == "earliest":
                    self._consumer.seek_to_beginning(partition)
                else:
                    self._consumer.seek_to_end(partition)
                reached[key] = offset
                self._remade.add(key)
            elif offset is not None:
                reached[key] = offset
                self._consumer.seek(partition, offset)
            elif from_beginning(partition.topic, self._settings.start, stored):
                self._consumer.seek_to_beginning(partition)
            else:
                self._consumer.seek_to_end(partition)
        self._reached, self._backlog = reached, Backlog()
        self._found_remade = sorted({topic for topic, _ in self._remade})

    def _choose_or_stop(self, problem: str) -> str:
        """Returns and logs where to continue after a problem.

        Raises:
            EventsLost: the settings require to stop.
        """
        choice = self._settings.on_lost_offset
        if choice == "stop":
            raise EventsLost(f"{problem}; to continue, set kafka.on_lost_offset to earliest or latest")
        log.error("%s; continuing with the %s event", problem, CHOICES[choice])
        return choice

    def _batch(self, records: list[Record]) -> Batch:
        starts, nexts = {}, {}
        for partition in self._consumer.assignment():
            position = self._consumer.position(partition, timeout_ms=0)
            key = (partition.topic, partition.partition)
            reached = self._reached.get(key)
            if position is not None and (position != reached or key in self._remade):
                nexts[key] = position
                if reached is not None:
                    starts[key] = reached
        self._reached |= nexts
        self.missing -= {topic for topic, _ in nexts}
        lost, self._lost = self._lost, Counter()
        self._remade -= nexts.keys()
        remade, self._found_remade = (self._found_remade, []) if nexts else ([], self._found_remade)
        return Batch(records, starts, nexts, dict(lost), dict(self._identities), remade)

    def _restart(self, missing: dict[Any, int]) -> None:
        """Restarts partitions whose offset the broker no longer has (retention) or does not have yet (a new topic)."""
        self._consumer.topics()  # updates the topic ids as well
        if self._notice_new_topics():
            return
        choice = self._settings.on_lost_offset
        firsts = self._consumer.beginning_offsets(list(missing))
        ends = self._consumer.end_offsets(list(missing))
        for partition, offset in missing.items():
            first, end = firsts[partition], ends[partition]
            self._choose_or_stop(lost_text(partition.topic, partition.partition, offset, first, end, choice))
            self._consumer.seek(partition, first if choice == "earliest" else end)
            self._lost[partition.topic] += lost_events(offset, first, end, choice)

    def _look_around(self) -> None:
        """Checks the connection and the topics after an empty poll.

        Raises:
            BrokerUnavailable: there has been no connection for a while.
            BrokerRefused: the broker refuses connections.
        """
        now = time.monotonic()
        # The client's own count includes pending connections, which it keeps opening while the broker is away.
        if not any(connection.connected for connection in list(self._consumer._manager._conns.values())):
            self._away_since = self._away_since or now
            if now - self._away_since >= AWAY_SECONDS:
                lost = BrokerUnavailable(f"kafka {self._settings.bootstrap_servers}: the connection is lost")
                raise refusal(self._settings) or lost
            return
        self._away_since = None
        assigned = {partition.topic for partition in self._consumer.assignment()}
        self.missing -= assigned
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        for topic in set(self._settings.topics) - assigned - self.missing:
            if not self._consumer.partitions_for_topic(topic):
                self.missing |= {topic}
                log.warning("kafka topic %r is not on the broker: create it; reading starts when it exists", topic)


def _keys(partitions: Iterable[Any]) -> list[Partition]:
    return [(partition.topic, partition.partition) for partition in partitions]


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, source: KafkaSource) -> None:
        self._source = source

    def on_partitions_revoked(self, revoked: Any) -> None:
        pass  # rows and offsets are written together before the next poll, so nothing is pending

    def on_partitions_assigned(self, assigned: Any) -> None:
        self._source._assigned(assigned)
