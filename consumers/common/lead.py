"""Leave to act outside of the warehouse: of the daemons of a cluster, one has it at a time.

What talks to the outside asks before each request that changes something there: the client of HTTP, the publisher of
messages, the object storage where it deletes.
"""

from collections.abc import Callable

Lead = Callable[[], int | None]
"""Returns the epoch under which this daemon leads its cluster, which goes with the act where the receiver can take it:
of a lower epoch than one that it has seen, it should do nothing. None: there is no cluster. Raises StandsBy where
another daemon leads, or may."""


def alone() -> None:
    """The leave of a process that is in no cluster."""
