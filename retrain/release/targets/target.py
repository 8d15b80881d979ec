"""What every target keeps."""

from typing import Protocol

from retuned.consumers.errors import RetunedError
from retuned.retrain.release.deployments import Wanted
from retuned.retrain.versions import Version


class Unservable(RetunedError):
    """A target cannot take a version; the text says what to change."""


class WrongModel(RetunedError):
    """A server does not answer with the version whose name was asked for; the text says with what."""


class Target(Protocol):
    """One place that has versions: a replica of a model server, the folder of links, a webhook, a registry.

    Each method raises a RetunedError when the target refuses, or does not answer within its time; then nothing is known
    of it, and the same call may be made again.

    Attributes:
        kind: as the configuration names it.
        replica: which of its kind; an address or a folder.
        follows_aliases: what it has names aliases; else it has versions alone.
    """

    kind: str
    replica: str
    follows_aliases: bool

    def listed(self) -> dict[str, frozenset[str]]:
        """What it has: names, and the aliases of each. Of what is not retuned's it may list names too."""

    def check(self, version: Version) -> None:
        """Before a version is loaded.

        Raises:
            Unservable: it cannot take it.
        """

    def load(self, wanted: Wanted) -> None:
        """Give it a version, or other aliases of one that it has; never other weights under a name."""

    def unload(self, name: str) -> None:
        """Take a version away."""

    def verify(self, version: Version) -> bool | None:
        """Whether it answers with a version that it has; None: that cannot be told.

        Raises:
            WrongModel: it does not.
        """
