"""The interface of targets."""

from typing import Protocol

from retuned.consumers.errors import RetunedError
from retuned.retrain.release.deployments import Wanted
from retuned.retrain.versions import Version


class Unservable(RetunedError):
    """A target does not support a version. The message states what to change."""


class WrongModel(RetunedError):
    """A server does not answer with the requested version. The message states with what it answers."""


class Target(Protocol):
    """A replica of a model server, the folder of links, a webhook, or a registry.

    Each method raises a RetunedError if the target refuses, or does not answer in time. Then its state is unknown, and
    the same call may be repeated.

    Attributes:
        kind: the kind in the configuration.
        replica: its address or folder.
        follows_aliases: the target stores aliases, not only versions.
    """

    kind: str
    replica: str
    follows_aliases: bool

    def listed(self) -> dict[str, frozenset[str]]:
        """Returns the names of its versions, with their aliases. It may include models that are not retuned's."""

    def check(self, version: Version) -> None:
        """Checks a version before it is loaded.

        Raises:
            Unservable: the target does not support it.
        """

    def load(self, wanted: Wanted) -> None:
        """Loads a version, or changes the aliases of a loaded one. A name never gets other weights."""

    def unload(self, name: str) -> None:
        """Unloads a version."""

    def verify(self, version: Version) -> bool | None:
        """Returns whether the target answers with a loaded version; None if that cannot be determined.

        Raises:
            WrongModel: it answers with another model.
        """
