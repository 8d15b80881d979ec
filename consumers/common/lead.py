"""Permission to change something outside the warehouse, which one daemon of a cluster has at a time.

It is checked before each request that changes something: in the HTTP client, in the publisher, and before deletions in
the object storage.
"""

from collections.abc import Callable

Lead = Callable[[], int | None]
"""Returns the epoch under which this daemon leads its cluster; None: there is no cluster. Requests carry the epoch if
the receiver can read it; a receiver that has seen a higher epoch should refuse the request.

Raises:
    StandsBy: another daemon leads, or may lead.
"""


def alone() -> None:
    """The `Lead` of a process outside any cluster: always permitted."""
