"""Files named by rows of the warehouse: folders of versions and datasets, and reports.

On one machine they stay where they were written. The daemons of a cluster also keep them in object storage: see
`consumers.cluster.artifacts`.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import duckdb

Kind = Literal["version", "dataset", "report"]
"""A version and a dataset are all files of a folder; a report is the files that differ only in their suffix."""
Record = Callable[[duckdb.DuckDBPyConnection], None]
"""Records in a transaction that an artifact is in the storage, for the row that names it."""


class Artifacts:
    """The artifacts of a warehouse outside a cluster: there is no other storage."""

    def put(self, kind: Kind, path: Path) -> Record:  # noqa: ARG002
        """Stores an artifact. It counts once it is recorded, in the transaction of the row that names it.

        Args:
            path: the folder; for a report, the path without suffix.

        Raises:
            StoreUnavailable: the storage does not answer. Partial uploads are deleted later.
        """
        return _record_nothing

    def renew(self, kind: Kind, path: Path, but: str = "") -> None:
        """Updates a stored artifact whose files have changed; raises like `put`.

        Args:
            but: a file that is about to be deleted locally.
        """

    def stored(self, kind: Kind) -> set[Path]:  # noqa: ARG002
        """Returns the stored artifacts of a kind, by their local paths."""
        return set()

    def remove(self, cursor: duckdb.DuckDBPyConnection, kind: Kind, paths: Iterable[Path]) -> None:
        """Marks artifacts as removed, in the transaction of the rows that named them; unknown ones are ignored."""

    def delete_removed(self) -> None:
        """Deletes removed and unrecorded artifacts from the storage, and restores lost ones.

        Raises:
            StoreUnavailable: the storage does not answer, and some may be left. The next call continues.
        """

    def follow(self) -> bool:
        """Makes the local files equal to those that the rows name, and returns whether all exist; see `problems`."""
        return True

    def problems(self) -> list[str]:
        """Describes missing and lost artifacts, for a person."""
        return []


def _record_nothing(_: duckdb.DuckDBPyConnection) -> None:
    """Does nothing."""
