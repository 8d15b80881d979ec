"""The target `folder`: links in the workload's folder below `models.directory`, for servers that load by path."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from retuned.consumers.common import durable as files
from retuned.consumers.errors import RetunedError
from retuned.retrain.release.deployments import Wanted
from retuned.retrain.versions import CANARY, CHAMPION, PREVIOUS, Version, model_name, workload_folder

ALIASES = (PREVIOUS, CHAMPION, CANARY)
"""The aliases, in the order in which their links change."""


def link(directory: Path, workload: str, aliases: Mapping[str, str | None]) -> None:
    """Makes the links of a workload point to its aliases' versions. An alias of the base model has no link.

    Raises:
        OSError: the links cannot be created.
    """
    folder = workload_folder(directory, workload)
    folder.mkdir(parents=True, exist_ok=True)
    for alias in ALIASES:
        files.point(folder / alias, aliases.get(alias))


def links(directory: Path, workload: str) -> dict[str, str]:
    """Returns the versions that the links of a workload point to, by alias."""
    folder = workload_folder(directory, workload)
    return {alias: link.readlink().name for alias in ALIASES if (link := folder / alias).is_symlink()}


class Folder:
    """The links of workloads."""

    kind, follows_aliases = "folder", True

    def __init__(self, directory: Path, workloads: Sequence[str]) -> None:
        self.replica = str(directory)
        self._directory, self._workloads = directory, workloads

    def listed(self) -> dict[str, frozenset[str]]:
        aliases: dict[str, frozenset[str]] = {}
        for workload in self._workloads:
            for alias, version in links(self._directory, workload).items():
                name = model_name(workload, version)
                aliases[name] = aliases.get(name, frozenset()) | {alias}
        return aliases

    def check(self, version: Version) -> None:
        """Does nothing: every version can be linked."""

    def load(self, wanted: Wanted) -> None:
        workload, version = wanted.version.workload, wanted.version.version
        others = {alias: target for alias, target in links(self._directory, workload).items() if target != version}
        self._link(workload, others | dict.fromkeys(wanted.aliases.intersection(ALIASES), version))

    def unload(self, name: str) -> None:
        workload, _, version = name.rpartition("@")
        linked = links(self._directory, workload)
        self._link(workload, {alias: target for alias, target in linked.items() if target != version})

    def verify(self, version: Version) -> None:
        """Returns None: the servers that load from the folder are unknown."""

    def _link(self, workload: str, aliases: Mapping[str, str | None]) -> None:
        try:
            link(self._directory, workload, aliases)
        except OSError as error:
            raise RetunedError(
                f"{workload_folder(self._directory, workload)}: its links cannot be created ({error.strerror}); "
                "correct its permissions"
            ) from error
