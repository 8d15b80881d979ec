"""Links in the workload's folder below `models.directory`, for whatever serves from there by path."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from retuned.consumers.common import durable as files
from retuned.consumers.errors import RetunedError
from retuned.retrain.release.deployments import Wanted
from retuned.retrain.versions import CANARY, CHAMPION, PREVIOUS, Version, model_name, workload_folder

ALIASES = (PREVIOUS, CHAMPION, CANARY)
"""In the order in which their links change."""


def link(directory: Path, workload: str, aliases: Mapping[str, str | None]) -> None:
    """Point the links of a workload where its aliases say; an alias of the base model has no link.

    Raises:
        OSError: they cannot be made.
    """
    folder = workload_folder(directory, workload)
    folder.mkdir(parents=True, exist_ok=True)
    for alias in ALIASES:
        files.point(folder / alias, aliases.get(alias))


class Folder:
    """The links of some workloads."""

    kind, follows_aliases = "folder", True

    def __init__(self, directory: Path, workloads: Sequence[str]) -> None:
        self.replica = str(directory)
        self._directory, self._workloads = directory, workloads

    def listed(self) -> dict[str, frozenset[str]]:
        found: dict[str, frozenset[str]] = {}
        for workload in self._workloads:
            for alias, version in self._links(workload).items():
                name = model_name(workload, version)
                found[name] = found.get(name, frozenset()) | {alias}
        return found

    def check(self, version: Version) -> None:
        """Whatever is in a folder can be linked."""

    def load(self, wanted: Wanted) -> None:
        workload, version = wanted.version.workload, wanted.version.version
        links = {alias: target for alias, target in self._links(workload).items() if target != version}
        self._link(workload, links | dict.fromkeys(wanted.aliases.intersection(ALIASES), version))

    def unload(self, name: str) -> None:
        workload, _, version = name.rpartition("@")
        self._link(workload, {alias: target for alias, target in self._links(workload).items() if target != version})

    def verify(self, version: Version) -> None:
        """Who serves from the folder is not known."""

    def _links(self, workload: str) -> dict[str, str]:
        folder = workload_folder(self._directory, workload)
        return {alias: link.readlink().name for alias in ALIASES if (link := folder / alias).is_symlink()}

    def _link(self, workload: str, links: Mapping[str, str | None]) -> None:
        try:
            link(self._directory, workload, links)
        except OSError as error:
            raise RetunedError(
                f"{workload_folder(self._directory, workload)}: its links cannot be made ({error.strerror}); correct "
                "its permissions"
            ) from error
