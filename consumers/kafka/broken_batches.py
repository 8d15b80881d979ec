"""What kafka-python makes of a batch that another client cannot read."""

from kafka import KafkaConsumer, TopicPartition

from retuned.consumers.errors import BrokerUnavailable
from retuned.consumers.kafka.connection import CONNECT_SECONDS, client_config, connect, translated
from retuned.consumers.kafka.contract import Partition
from retuned.consumers.kafka.records import BrokenBatch, FastRecords
from retuned.consumers.settings import KafkaSettings


def broken_batch(settings: KafkaSettings, key: Partition, offset: int) -> BrokenBatch | None:
    """What kafka-python makes of the batch at an offset; None if it can unpack it.

    Raises:
        BrokerUnavailable, BrokerRefused, Unreadable: as `Source.poll` does.
    """
    options = {
        "auto_offset_reset": "none",
        "enable_auto_commit": False,
        "isolation_level": settings.isolation_level,
        "allow_auto_create_topics": False,
    }
    consumer = connect(KafkaConsumer, settings, client_config(settings) | options)
    consumer._fetcher.PartitionRecords = FastRecords
    partition = TopicPartition(*key)
    try:
        with translated(settings):
            consumer.assign([partition])
            consumer.seek(partition, offset)
            found = consumer.poll(int(CONNECT_SECONDS * 1000), max_records=1).get(partition)
            if not found:
                raise BrokerUnavailable(f"kafka {settings.bootstrap_servers}: no answer on what is at {key}, {offset}")
            if not isinstance(found[0], BrokenBatch):
                return None
            return found[0]
    finally:
        consumer.close(autocommit=False, timeout_ms=2_000)
