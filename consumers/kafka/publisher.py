"""The publisher on kafka-python."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from kafka import KafkaProducer

from retuned.consumers.common.text import first_line
from retuned.consumers.errors import BrokerUnavailable, Unreadable
from retuned.consumers.kafka.connection import client_config, connect, translated
from retuned.consumers.settings import KafkaSettings


class _Producer:
    """kafka-python's producer, with the number of threads that use it.

    Attributes:
        retired: no thread may start to use it, and the last user closes it.
    """

    def __init__(self, client: Any) -> None:
        self.client, self.users, self.retired = client, 0, False


class KafkaPublisher:
    """Publishes messages with acknowledgement by all replicas. Connects on the first message; thread-safe."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._config = client_config(settings)
        self._producer: _Producer | None = None
        self._lock = threading.Lock()

    def publish(self, topic: str, key: str, value: dict[str, Any]) -> None:
        self.publish_all(topic, [(key, value)])

    def publish_all(self, topic: str, messages: Sequence[tuple[str, dict[str, Any]]]) -> None:
        with self._borrowed() as producer:
            try:
                with translated(self._settings, f"topic {topic!r}, which has to exist: "):
                    futures = [
                        producer.send(topic, key=key.encode(), value=msgspec.json.encode(value))
                        for key, value in messages
                    ]
                    for future in futures:
                        future.get(timeout=10)
            except Unreadable as error:  # the client failed, for example because it was closed meanwhile
                reason = first_line(error.__cause__ or error)
                raise BrokerUnavailable(
                    f"kafka {self._settings.bootstrap_servers}: topic {topic!r}: not sent ({reason})"
                ) from error

    def close(self) -> None:
        with self._lock:
            producer, self._producer = self._producer, None
        if producer is not None:
            self._retire(producer)

    @contextmanager
    def _borrowed(self) -> Iterator[Any]:
        """Yields the producer; after a failure, later callers get a new one."""
        with self._lock:
            if self._producer is None:
                self._producer = _Producer(self._connect())
            producer = self._producer
            producer.users += 1
        failed = True
        try:
            yield producer.client
            failed = False
        finally:
            with self._lock:
                producer.users -= 1
            # An idempotent producer may repeat a failure forever.
            if failed or producer.retired:
                self._retire(producer)

    def _retire(self, producer: _Producer) -> None:
        with self._lock:
            if self._producer is producer:
                self._producer = None
            producer.retired = True
            unused = producer.users == 0
        if unused:
            producer.client.close(timeout=2)  # safe to repeat

    def _connect(self) -> Any:
        options = {
            "acks": "all",
            "max_block_ms": 5_000,
            "request_timeout_ms": 5_000,
            "delivery_timeout_ms": 8_000,
            "max_request_size": 8 * 2**20,
        }
        return connect(KafkaProducer, self._settings, self._config | options)
