"""Files that rows of the warehouse name: folders of versions and of datasets, and reports.

On one machine they are where they were written. The daemons of a cluster also keep them in its object storage: see
`consumers.cluster.artifacts`.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import duckdb

Kind = Literal["version", "dataset", "report"]
"""A version and a dataset are the files of a folder; a report is those that differ in their suffix alone."""
Record = Callable[[duckdb.DuckDBPyConnection], None]
"""Records within a transaction what was put into the storage, for the row that names it."""


class Artifacts:
    """Those of a warehouse that is no cluster's: nothing is kept anywhere else, and nothing comes from there."""

    def put(self, kind: Kind, path: Path) -> Record:  # noqa: ARG002
        """Put an artifact into the storage. It counts once it is recorded, in the transaction of the row that names it.

        Args:
            path: its folder; of a report, without a suffix.

        Raises:
            StoreUnavailable: the storage does not answer. What was put there is left over, and swept up later.
        """
        return _nothing

    def renew(self, kind: Kind, path: Path, but: str = "") -> None:
        """Have the storage follow an artifact that it has, whose files have changed; raises as `put`.

        Args:
            but: a file that is about to be deleted here.
        """

    def stored(self, kind: Kind) -> set[Path]:  # noqa: ARG002
        """What the storage has of a kind, by the place that it has here."""
        return set()

    def remove(self, cursor: duckdb.DuckDBPyConnection, kind: Kind, paths: Iterable[Path]) -> None:
        """Mark artifacts as removed, in the transaction of the rows that named them. Those of no row are none."""

    def delete_removed(self) -> None:
        """Delete from the storage what was removed, and what no row ever named; put back what it has lost.

        Raises:
            StoreUnavailable: the storage does not answer, and may have some of it still. The next call does the rest.
        """

    def follow(self) -> bool:
        """Make the files on this machine those that the rows name. Returns whether all are here; see `problems`."""
        return True

    def problems(self) -> list[str]:
        """What is not here or was lost, and why, for a person."""
        return []


def _nothing(_: duckdb.DuckDBPyConnection) -> None:
    """Nothing was put anywhere."""
