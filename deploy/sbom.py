"""Writes the software bill of materials of a release: CycloneDX 1.6, checked against its schema. `make sbom` runs it.

It lists retuned and each package that it needs, at the version that is installed here, which is that of
constraints.txt. Packages that only extras need have the scope `optional`.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_RELEASED = {"dev", "docs", "test"}
"""Extras for work on retuned itself."""


class Packages:
    """The installed packages that others need.

    Attributes:
        needs: the packages that each package needs, by name.
    """

    def __init__(self) -> None:
        self.needs: dict[str, set[str]] = {}
        self._seen = set[tuple[str, frozenset[str]]]()

    def add(self, requirements: Iterable[str], extras: frozenset[str] = frozenset()) -> set[str]:
        """Adds what requirements select, with all that those packages need. Returns the names of the former."""
        names = set[str]()
        for requirement in map(Requirement, requirements):
            name, marker = canonical(requirement.name), requirement.marker
            applies = marker is None or any(marker.evaluate({"extra": one}) for one in ("", *extras))
            if name == PROJECT["name"] or not applies:
                continue
            names.add(name)
            own = frozenset(requirement.extras)
            if (name, own) not in self._seen:
                self._seen.add((name, own))
                self.needs.setdefault(name, set())
                if found := installed(name):
                    self.needs[name] |= self.add(found.requires or (), own)
        return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="to write")
    file = parser.parse_args().file
    text = JsonV1Dot6(bom()).output_as_string(indent=2)
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"{file}: not valid by the schema of CycloneDX 1.6: {problem}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n", encoding="utf-8")


def bom() -> Bom:
    """Returns the bill of materials of the release in this folder."""
    extras = [own for name, own in PROJECT["optional-dependencies"].items() if name not in NOT_RELEASED]
    packages = Packages()
    direct = packages.add(PROJECT["dependencies"])
    required = set(packages.needs)
    direct |= packages.add(requirement for own in extras for requirement in own)
    release = component(PROJECT["name"], PROJECT["version"], [PROJECT["license"]], ComponentType.APPLICATION)
    made, parts = Bom(), dict[str, Component]()
    for name in sorted(packages.needs):
        found = installed(name)
        if found is None and name in required:
            sys.exit(f"{name} is not installed; install .[dev] by constraints.txt")
        if found is None:
            print(f"{name} is not installed; it is listed without its version and what it needs", file=sys.stderr)
        parts[name] = component(name, found and found.version, licences(found), ComponentType.LIBRARY)
        parts[name].scope = ComponentScope.REQUIRED if name in required else ComponentScope.OPTIONAL
    made.metadata.component = release
    made.components.update(parts.values())
    made.register_dependency(release, [parts[name] for name in sorted(direct)])
    for name, needed in packages.needs.items():
        made.register_dependency(parts[name], [parts[other] for other in sorted(needed)])
    return made


def component(name: str, version: str | None, stated: list[str], kind: ComponentType) -> Component:
    """Returns a package as a component.

    Args:
        stated: its licences: one SPDX expression, or names.
    """
    url = PackageURL("pypi", None, name, version)
    known = [LicenseFactory().make_from_string(one) for one in stated]
    return Component(type=kind, name=name, version=version, purl=url, bom_ref=str(url), licenses=known)


def licences(found: Distribution | None) -> list[str]:
    """Returns what the metadata of a package states: its expression, or else its classifiers."""
    if found is None:
        return []
    if expression := found.metadata.get("License-Expression"):
        return [expression]
    classifiers = found.metadata.get_all("Classifier") or []
    named = [one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License :: ")]
    named = named or [line for line in (found.metadata.get("License") or "").splitlines()[:1] if line.strip()]
    return sorted(set(named))


def installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def canonical(name: str) -> str:
    """Returns the name of a package as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
