"""What comes into the store beside the topics of Kafka: rows of files, and dead letters once more."""

from typing import Protocol

from retuned.consumers.file_import import Position, Taken, position, take
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.replay import replay


class Intake(Protocol):
    """Threads may share it. Every method raises a RetunedError whose text says why it cannot be done."""

    def position(self, topic: str) -> Position:
        """See `file_import.position`."""

    def take(self, batch: Batch) -> Taken:
        """See `file_import.take`."""

    def replay(self) -> dict[str, int]:
        """See `replay.replay`."""

    def resume(self) -> None:
        """See `Ingest.resume`."""


class WarehouseIntake:
    """Of one warehouse, by the thread that ingests into it."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest

    def position(self, topic: str) -> Position:
        return position(self._ingest.warehouse, topic)

    def take(self, batch: Batch) -> Taken:
        return take(self._ingest, batch)

    def replay(self) -> dict[str, int]:
        return replay(self._ingest)

    def resume(self) -> None:
        self._ingest.resume()
