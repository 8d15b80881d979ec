"""The publisher of what the leader of a cluster announces."""

from collections.abc import Sequence
from typing import Any

from retuned.consumers.common.lead import Lead
from retuned.consumers.kafka.contract import Publisher


class LedPublisher:
    """Publishes while this daemon leads. Each message has the `epoch`, where there is a cluster."""

    def __init__(self, publisher: Publisher, lead: Lead) -> None:
        self._publisher, self._lead = publisher, lead

    def publish(self, topic: str, key: str, value: dict[str, Any]) -> None:
        """As `Publisher.publish`; raises StandsBy where another daemon leads, or may."""
        self._publisher.publish(topic, key, self._with_epoch(value))

    def publish_all(self, topic: str, messages: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """As `Publisher.publish_all`; raises StandsBy where another daemon leads, or may."""
        self._publisher.publish_all(topic, [(key, self._with_epoch(value)) for key, value in messages])

    def close(self) -> None:
        """The publisher is closed by who made it."""

    def _with_epoch(self, value: dict[str, Any]) -> dict[str, Any]:
        epoch = self._lead()
        return value if epoch is None else value | {"epoch": epoch}
