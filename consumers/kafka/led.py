"""The publisher of a cluster's leader."""

from collections.abc import Sequence
from typing import Any

from retuned.consumers.common.lead import Lead
from retuned.consumers.kafka.contract import Publisher


class LedPublisher:
    """Publishes while this daemon leads; in a cluster, each message has the leader's `epoch`."""

    def __init__(self, publisher: Publisher, lead: Lead) -> None:
        self._publisher, self._lead = publisher, lead

    def publish(self, topic: str, key: str, value: dict[str, Any]) -> None:
        """Like `Publisher.publish`; raises StandsBy if another daemon leads or may lead."""
        self._publisher.publish(topic, key, self._with_epoch(value))

    def publish_all(self, topic: str, messages: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Like `Publisher.publish_all`; raises StandsBy if another daemon leads or may lead."""
        self._publisher.publish_all(topic, [(key, self._with_epoch(value)) for key, value in messages])

    def close(self) -> None:
        """Does nothing: the owner of the publisher closes it."""

    def _with_epoch(self, value: dict[str, Any]) -> dict[str, Any]:
        epoch = self._lead()
        return value if epoch is None else value | {"epoch": epoch}
