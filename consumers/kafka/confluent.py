"""The source of events on confluent-kafka, whose client is librdkafka: an extra, for topics that need its speed."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from retuned.consumers.errors import (
    BrokerRefused,
    BrokerUnavailable,
    ConfigurationError,
    EventsLost,
    RetunedError,
    Unreadable,
)
from retuned.consumers.kafka.backlog import Backlog
from retuned.consumers.kafka.broken_batches import broken_batch
from retuned.consumers.kafka.connection import CONNECT_SECONDS, check_broker, client_config, identities, refusal
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
    check_cluster,
    from_beginning,
    is_another,
    lost_events,
    lost_text,
    remade_text,
)
from retuned.consumers.kafka.member_file import MemberFile
from retuned.consumers.kafka.membership import Membership, SharedMembership
from retuned.consumers.kafka.records import BrokenBatch, FetchedRecord
from retuned.consumers.settings import KafkaSettings

log = logging.getLogger(__name__)

# librdkafka does not report that a topic was made anew while it reads it. This asks with a new connection.
IDENTIFY_SECONDS = 30.0
# kafka-python's names for how to reach a broker, and librdkafka's.
_OPTIONS = {
    "client_id": "client.id",
    "security_protocol": "security.protocol",
    "sasl_mechanism": "sasl.mechanisms",
    "sasl_plain_username": "sasl.username",
    "sasl_plain_password": "sasl.password",
    "ssl_cafile": "ssl.ca.location",
    "ssl_certfile": "ssl.certificate.location",
    "ssl_keyfile": "ssl.key.location",
}


class ConfluentSource:
    """Both topics, as `retuned.consumers.kafka.source.KafkaSource` reads them and under the same contract."""

    def __init__(
        self,
        settings: KafkaSettings,
        stored: Callable[[], Offsets],
        known: Callable[[], Identities] = dict,
        member_file: MemberFile | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """`stored` and `known` return the next offset of each partition, and of which topic it is.

        They are asked on every assignment. `shared`: as for `open_source`.

        Raises:
            ConfigurationError: confluent-kafka is not installed, or the settings contradict each other.
        """
        try:
            import confluent_kafka
        except ImportError as error:
            raise ConfigurationError(
                "kafka.client confluent: is not installed; pip install 'retuned[confluent]'"
            ) from error
        self._kafka: Any = confluent_kafka
        self._settings, self._stored, self._stored_identities = settings, stored, known
        self._identities: dict[str, Identity] | None = None  # of the topics that are read; None: to be asked for
        self._remade: set[Partition] = set()  # their stored offsets are of other topics, and not moved yet
        self._found_remade: list[str] = []
        self._identify_at = 0.0
        self._config = _config(settings)
        codes = confluent_kafka.KafkaError
        self._broken = (codes._BAD_MSG, codes._BAD_COMPRESSION, codes._NOT_IMPLEMENTED)
        self.before_assignment: Callable[[Sequence[Partition]], None] = lambda _: None
        self._consumer: Any = None
        self._starts: Offsets = {}  # where the next batch begins; made anew with each assignment
        self._reached: Offsets = {}
        self._known: Offsets = {}
        self._ended: set[Partition] = set()
        self._backlog = Backlog()
        self._lost: Counter[str] = Counter()
        self._failure: Exception | None = None
        self._stuck: dict[Partition, Any] = {}  # an error in the place of the next message
        self._postponed: RetunedError | None = None
        self._errors: list[Any] = []
        self._away_since: float | None = None
        self.missing: frozenset[str] = frozenset()
        self._membership = SharedMembership() if shared else Membership(settings, member_file)

    def poll(self, max_records: int, timeout_seconds: float) -> Batch:
        if self._consumer is None:
            if not self._membership.may_join():
                time.sleep(timeout_seconds)
                return Batch()
            self._consumer = self._connect()
        if self._postponed is not None:
            failure, self._postponed = self._postponed, None
            raise failure
        records: list[FetchedRecord | BrokenBatch] = []
        try:
            # What asks the broker comes before anything is read: when it fails, nothing is in hand.
            self._membership.check(self._consumer.memberid() or "")
            if self._identities is None or time.monotonic() >= self._identify_at:
                self._identify()
            if self._stuck:
                records += self._free(next(iter(self._stuck)))
            assignment = self._starts
            messages = [] if records else self._consume(max_records, timeout_seconds)
            if self._starts is not assignment and messages:
                # Some may be from before the new assignment, and would come twice: all of them come again.
                self._consumer.assign(self._placed())
                messages = []
            for message in messages:
                if (error := message.error()) is not None:
                    self._postponed = self._on_error(message, error) or self._postponed
                    continue
                key = (message.topic(), message.partition())
                kind, milliseconds = message.timestamp()
                written_at = None if kind == self._kafka.TIMESTAMP_NOT_AVAILABLE else milliseconds / 1000
                headers = message.headers() or ()
                records.append(FetchedRecord(*key, message.offset(), message.value(), headers, None, written_at))
                self._backlog.read(key, written_at)
                self._reached[key] = message.offset() + 1
                self._ended.discard(key)
        except self._kafka.KafkaException as error:
            raise self._failure or self._translated(error.args[0]) from error
        if self._failure is not None:
            raise self._failure
        self._look_around(bool(records))
        nexts = {
            key: offset
            for key, offset in self._reached.items()
            if key in self._remade or self._starts.get(key) != offset
        }
        self._remade -= nexts.keys()
        remade, self._found_remade = (self._found_remade, []) if nexts else ([], self._found_remade)
        starts = {key: self._starts[key] for key in nexts if key in self._starts}
        self._starts.update(nexts)
        lost, self._lost = self._lost, Counter()
        return Batch(records, starts, nexts, dict(lost), self._identities or {}, remade)

    @property
    def waiting_for(self) -> str:
        return self._membership.waiting_for

    def rewind(self) -> None:
        if self._consumer is not None:
            self._postponed = None
            self._begin(self._consumer, self._assignment())
            self._failure = None

    def commit(self, nexts: Offsets) -> None:
        if self._consumer is not None and nexts:
            offsets = [self._kafka.TopicPartition(*key, offset) for key, offset in nexts.items()]
            try:
                self._consumer.commit(offsets=offsets, asynchronous=True)
            except self._kafka.KafkaException as error:
                log.debug("group commit: %s", error)

    def lag(self) -> int:
        return sum(max(0, end - self._reached.get(key, end)) for key, end in self._ends().items())

    def lag_seconds(self, now: float) -> dict[str, float]:
        ends = self._ends()
        return self._backlog.ages(((key, self._reached.get(key), ends.get(key)) for key in self._assignment()), now)

    def caught_up(self) -> bool:
        return bool(self._assignment()) and all(key in self._ended for key in self._assignment())

    def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    # Inside

    def _consume(self, max_records: int, timeout_seconds: float) -> list[Any]:
        """At most so many messages and, going by the size of the first, about so many bytes.

        The client waits for the whole of what it is asked for: so for one message, and then for what is there.
        """
        messages: list[Any] = self._consumer.consume(1, timeout_seconds)
        wanted = min(FIRST_RECORDS, max_records) - len(messages)
        while messages and wanted > 0 and (more := self._consumer.consume(wanted, 0)):
            messages += more
            size = sum(len(message.value() or b"") for message in messages)
            fitting = (BATCH_BYTES - size) * len(messages) // max(size, 1)
            wanted = min(max_records - len(messages), fitting)
        return messages

    def _connect(self) -> Any:
        settings = self._settings
        check_broker(settings)  # librdkafka does not say what is wrong with a certificate
        session_ms = int(settings.session_timeout_seconds * 1000)
        consumer = self._kafka.Consumer(
            self._config
            | {
                "group.id": settings.group_id,
                "session.timeout.ms": session_ms,
                "heartbeat.interval.ms": max(100, session_ms // 3),
                "auto.offset.reset": "error",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                # Of use only when it is right: librdkafka 2.16 may abort the process when a checksum is wrong.
                "check.crcs": False,
                "isolation.level": settings.isolation_level,
                "allow.auto.create.topics": False,
                "topic.metadata.refresh.interval.ms": int(LOOK_SECONDS * 1000),
                "queued.max.messages.kbytes": BATCH_BYTES // 1024,
                "fetch.message.max.bytes": 8 * 2**20,
                "error_cb": self._errors.append,
            },
            logger=log if log.isEnabledFor(logging.DEBUG) else _QUIET,
        )
        self._errors.clear()
        self._away_since = None
        try:
            consumer.list_topics(timeout=CONNECT_SECONDS)
        except self._kafka.KafkaException as error:
            consumer.poll(0)  # the reasons come as callbacks
            refusals = [said for said in self._errors if self._is_refusal(said)]
            consumer.close()
            raise self._translated((refusals or [error.args[0]])[-1]) from error
        consumer.subscribe(list(settings.topics), on_assign=self._assigned)
        return consumer

    def _assigned(self, consumer: Any, partitions: Sequence[Any]) -> None:
        try:
            self._membership.assigned()
            keys = [(partition.topic, partition.partition) for partition in partitions]
            self.missing -= {topic for topic, _ in keys}
            self._begin(consumer, keys)
        except Exception as error:
            self._failure = error
            raise

    def _begin(self, consumer: Any, keys: Sequence[Partition]) -> None:
        """Read on from the stored offsets."""
        self._stuck.clear()
        self.before_assignment(keys)
        self._known = self._stored()
        self._starts = {key: self._known[key] for key in keys if key in self._known}
        self._reached, self._ended, self._backlog = dict(self._starts), set(), Backlog()
        self._identities, self._remade = None, set()
        consumer.assign(self._placed(keys))

    def _identify(self) -> None:
        """Begin topics anew that are not those of the stored offsets, or not those any more that were read."""
        found, known = identities(self._settings), self._stored_identities()
        self._identify_at = time.monotonic() + IDENTIFY_SECONDS
        if self._identities is not None:
            if not any(is_another(before, found.get(topic, before)) for topic, before in self._identities.items()):
                return
            self._begin(self._consumer, self._assignment())
            known = self._stored_identities()
        choice = self._settings.on_lost_offset
        for identity in found.values():
            check_cluster(self._settings, known, identity.cluster_id)
        for key, offset in self._starts.items():
            identity = found.get(key[0], Identity(None, None))
            if not is_another(known.get(key), identity):
                continue
            what = remade_text(*key, offset)
            if choice == "stop":
                raise EventsLost(f"{what}; to go on, set kafka.on_lost_offset to earliest or latest")
            log.error("%s; going on with the %s event there is", what, CHOICES[choice])
            self._remade.add(key)
            del self._reached[key]
        if self._remade:
            self._consumer.assign(self._placed())
            self._stuck.clear()
        self._identities, self._found_remade = found, sorted({topic for topic, _ in self._remade})

    def _on_error(self, message: Any, error: Any) -> RetunedError | None:
        """What comes in the place of a message. Returns what `poll` has to raise, once what was read is stored."""
        key = (message.topic(), message.partition())
        codes = self._kafka.KafkaError
        if error.code() == codes._PARTITION_EOF:
            self._reached[key] = message.offset()
            self._ended.add(key)
        elif error.code() in (codes._AUTO_OFFSET_RESET, codes.OFFSET_OUT_OF_RANGE, *self._broken):
            self._stuck[key] = message
        elif error.code() in (codes.UNKNOWN_TOPIC_OR_PART, codes._UNKNOWN_TOPIC):
            if message.topic() not in self.missing:
                self.missing |= {message.topic()}
                log.warning(
                    "kafka topic %r is not on the broker: create it; reading starts when it is there", message.topic()
                )
        elif not error.retriable():
            return self._translated(error)
        return None

    def _free(self, key: Partition) -> list[BrokenBatch]:
        """Go on behind what is deleted or broken; the latter, in the place of its records."""
        message = self._stuck[key]
        if message.error().code() not in self._broken:
            self._identify()  # the offsets of a topic that was made anew are others
            if key in self._reached and key in self._stuck:
                self._restart(key)
            passed = []
        elif batch := broken_batch(self._settings, key, self._reached.get(key, message.offset())):
            self._reached[key] = batch.next_offset
            passed = [batch]
        else:
            raise Unreadable(
                f"kafka {self._settings.bootstrap_servers}: librdkafka cannot unpack what kafka-python can "
                f"({message.error().str()}); set kafka.client to kafka-python"
            )
        self._consumer.assign(self._placed())  # a partition whose offset is lost cannot be sought in
        self._ended.discard(key)
        self._stuck.pop(key, None)
        return passed

    def _restart(self, key: Partition) -> None:
        """The broker no longer has the offset (retention), or not yet (a new topic of that name)."""
        choice, offset = self._settings.on_lost_offset, self._reached[key]
        first, end = self._consumer.get_watermark_offsets(self._kafka.TopicPartition(*key), timeout=CONNECT_SECONDS)
        what = lost_text(*key, offset, first, end, choice)
        if choice == "stop":
            raise EventsLost(f"{what}; to go on, set kafka.on_lost_offset to earliest or latest")
        log.error("%s; going on with the %s event there is", what, CHOICES[choice])
        self._lost[key[0]] += lost_events(offset, first, end, choice)
        self._reached[key] = first if choice == "earliest" else end

    def _look_around(self, something_came: bool) -> None:
        """Raises what the client only reports aside.

        Raises:
            BrokerUnavailable: there has been no connection for a while.
            BrokerRefused: nor will there be one.
        """
        errors = list(self._errors)
        self._errors.clear()
        for error in errors:
            if self._is_refusal(error):
                raise refusal(self._settings) or self._translated(error)
            if error.code() == self._kafka.KafkaError._ALL_BROKERS_DOWN:
                self._away_since = self._away_since or time.monotonic()
        if something_came:
            self._away_since = None
        elif self._away_since is not None:
            try:
                self._consumer.list_topics(timeout=AWAY_SECONDS)
                self._away_since = None
            except self._kafka.KafkaException as error:
                lost = BrokerUnavailable(f"kafka {self._settings.bootstrap_servers}: the connection is lost")
                raise refusal(self._settings) or lost from error

    def _placed(self, keys: Sequence[Partition] | None = None) -> list[Any]:
        """The assignment, with where to read on in each partition."""
        placed = []
        for key in self._assignment() if keys is None else keys:
            if key in self._reached:
                offset = self._reached[key]
            elif key in self._remade:
                latest = self._settings.on_lost_offset == "latest"
                offset = self._kafka.OFFSET_END if latest else self._kafka.OFFSET_BEGINNING
            elif from_beginning(key[0], self._settings.start, self._known):
                offset = self._kafka.OFFSET_BEGINNING
            else:
                offset = self._kafka.OFFSET_END
            placed.append(self._kafka.TopicPartition(*key, offset))
        return placed

    def _assignment(self) -> list[Partition]:
        if self._consumer is None:
            return []
        return [(partition.topic, partition.partition) for partition in self._consumer.assignment()]

    def _ends(self) -> Offsets:
        """The end of each assigned partition, as the last fetch told it."""
        ends = {}
        for key in self._assignment():
            _, end = self._consumer.get_watermark_offsets(self._kafka.TopicPartition(*key), cached=True)
            if end >= 0:
                ends[key] = end
        return ends

    def _is_refusal(self, error: Any) -> bool:
        codes = self._kafka.KafkaError
        return error.code() in (
            codes._AUTHENTICATION, codes._SSL, codes.SASL_AUTHENTICATION_FAILED, codes.TOPIC_AUTHORIZATION_FAILED,
            codes.GROUP_AUTHORIZATION_FAILED, codes.CLUSTER_AUTHORIZATION_FAILED,
        )  # fmt: skip

    def _translated(self, error: Any) -> RetunedError:
        text, codes = f"kafka {self._settings.bootstrap_servers}: ", self._kafka.KafkaError
        if error.code() in (codes._AUTHENTICATION, codes.SASL_AUTHENTICATION_FAILED):
            return BrokerRefused(
                f"{text}the credentials are refused; check kafka.sasl_username, sasl_password and sasl_mechanism "
                f"({error.str()})"
            )
        if self._is_refusal(error):
            return BrokerRefused(
                f"{text}the broker is reached, but refuses; check kafka.security_protocol, the ssl files and what this "
                f"user may do ({error.str()})"
            )
        return BrokerUnavailable(
            f"{text}does not answer ({error.str()}); check kafka.bootstrap_servers, kafka.security_protocol, and that "
            "the broker runs"
        )


def _config(settings: KafkaSettings) -> dict[str, Any]:
    """librdkafka's options for reaching the broker.

    Raises:
        ConfigurationError: a credential is missing, or a file is.
    """
    ours = client_config(settings)
    config = {name: ours[key] for key, name in _OPTIONS.items() if ours.get(key) is not None}
    return config | {"bootstrap.servers": settings.bootstrap_servers, "reconnect.backoff.max.ms": 2_000}


_QUIET = logging.Logger("librdkafka", logging.CRITICAL)  # what matters of it comes as our own errors
