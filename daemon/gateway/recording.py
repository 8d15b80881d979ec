"""Records one exchange: collects the answer while the app receives it, then buffers request and answer once."""

import logging
import time
import uuid
from datetime import UTC, datetime

from retuned.daemon.gateway.conversations import Call
from retuned.daemon.gateway.events import record
from retuned.daemon.gateway.events.buffer import Buffer, Full
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.servers.incumbents import Incumbent
from retuned.daemon.gateway.target import Target
from retuned.retrain.release.assignment import Served

log = logging.getLogger(__name__)


class Recording:
    """The record of one exchange.

    Attributes:
        id: the interaction's id.
        is_on: whether the exchange is recorded.
        first_token_seconds: time from the request to the first bytes of a stream; None: no stream has begun.
        confidence: the mean log-probability of a token; None: not known.
    """

    def __init__(
        self,
        buffer: Buffer,
        metrics: Metrics,
        most_bytes: int,
        target: Target,
        served: Served,
        name: str,
        began: float,
        incumbent: Incumbent | None,
    ) -> None:
        """
        Args:
            most_bytes: the longest answer that is recorded.
            name: the server's name of the model.
            began: when the request arrived, by `time.perf_counter`.
            incumbent: the server, if it is the workload's incumbent.
        """
        self._buffer, self._metrics, self._most_bytes = buffer, metrics, most_bytes
        self._target, self._served, self._name, self._began = target, served, name, began
        self._incumbent = None if incumbent is None else record.Incumbent(incumbent.prices)
        self.id = uuid.uuid4().hex
        self._timestamp = datetime.now(UTC).isoformat()
        self.is_on = bool(target.workload)
        self.first_token_seconds: float | None = None
        self.confidence: float | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._is_saved = False

    def note_first_token(self) -> None:
        """Notes the arrival of a stream's bytes; only the first call has an effect."""
        if self.first_token_seconds is None:
            self.first_token_seconds = time.perf_counter() - self._began

    def add(self, piece: bytes) -> None:
        """Collects a piece of the answer; an answer beyond the limit is discarded."""
        self._size += len(piece)
        if self._size <= self._most_bytes:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def save(self, call: Call, cut: str | None = None) -> bool:
        """Buffers the exchange, once, unless the answer is empty. Returns whether this call buffered it.

        Args:
            cut: the side that broke the answer off, `client` or `upstream`; None: it is complete.
        """
        if self._is_saved or not self.is_on or not self._size:
            return False
        self._is_saved = True
        if self._size > self._most_bytes:
            self._metrics.dropped.labels("interactions", "too_large").inc()
            log.warning("an answer of %d bytes is not recorded (gateway.max_body_bytes)", self._size)
            return False
        exchange = record.Exchange(
            id=self.id,
            timestamp=self._timestamp,
            workload=self._target.workload,
            model=self._served.model,
            name=self._name,
            conversation_id=self._target.conversation,
            assignment=self._target.assignment,
            request=call.body,
            response=b"".join(self._pieces),
            streamed=self.first_token_seconds is not None,
            cut=cut,
            latency_seconds=time.perf_counter() - self._began,
            first_token_seconds=self.first_token_seconds,
            incumbent=self._incumbent,
            rule=self._target.rule if self._incumbent else None,
            confidence=self.confidence,
            memory=call.help.as_attribute() if call.help else None,
        )
        try:
            self._buffer.append(record.encode(exchange))
        except Full as error:
            self._metrics.dropped.labels("interactions", error.reason).inc()
            return False
        return True
