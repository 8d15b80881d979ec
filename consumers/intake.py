"""Input besides Kafka's topics: rows of files, and replayed dead letters."""

from typing import Protocol

from retuned.consumers.file_import import Position, Taken, position, take
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.replay import replay


class Intake(Protocol):
    """Imports files and replays dead letters; thread-safe. Methods raise a RetunedError that names the problem."""

    def position(self, topic: str) -> Position:
        """See `file_import.position`."""

    def take(self, batch: Batch) -> Taken:
        """See `file_import.take`."""

    def replay(self) -> dict[str, int]:
        """See `replay.replay`."""

    def resume(self) -> None:
        """See `Ingest.resume`."""


class WarehouseIntake:
    """The intake of one warehouse, run by its ingesting thread."""

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
