"""Copies dead letters to a topic."""

import logging
import time
from collections.abc import Sequence

from retuned.consumers.errors import BrokerRefused, BrokerUnavailable
from retuned.consumers.kafka.contract import Publisher
from retuned.consumers.metrics import Metrics
from retuned.consumers.warehouse.dead_letters import DeadLetter

log = logging.getLogger(__name__)

PAUSE_SECONDS = 30.0


class DeadLetterTopic:
    """Copies dead letters. The warehouse has all of them; while the broker is away, they are not copied."""

    def __init__(self, publisher: Publisher | None, topic: str | None, metrics: Metrics) -> None:
        """Creates the topic; without a publisher or a name, nothing is copied."""
        self._publisher, self._topic, self._metrics = publisher, topic, metrics
        self._paused_until = 0.0

    def copy(self, letters: Sequence[DeadLetter]) -> None:
        """Publishes letters; a failure is counted and logged."""
        if not letters or self._topic is None or self._publisher is None or time.monotonic() < self._paused_until:
            return
        try:
            self._publisher.publish_all(self._topic, [(letter.key, letter.message()) for letter in letters])
        except (BrokerUnavailable, BrokerRefused) as error:
            self._metrics.dead_letter_publish_failures.inc()
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            log.warning("dead letters are stored, but temporarily not copied to %s: %s", self._topic, error)
