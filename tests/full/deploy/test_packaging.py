"""What is in the tree is in the wheel: a sub-folder or data file that pyproject.toml does not name would be missing."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parents[3]
PACKAGES = ("consumers", "daemon", "monitors", "retrain")


def test_the_wheel_holds_the_tree(tmp_path: Path) -> None:
    copy = tmp_path / "copy"  # setuptools would add what an earlier build left in build/lib
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(copy)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = {name.removeprefix("retuned/") for name in zipfile.ZipFile(wheel).namelist() if name.startswith("retuned/")}
    tree = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert held == tree
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.split("/")[0] in PACKAGES]


def test_importing_a_package_brings_in_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "peft", "evidently", "sklearn"]
    code = f"import sys, retuned.daemon.app, retuned.daemon.cli.main; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_command_that_asks_the_daemon_and_the_gateway_bring_in_no_database() -> None:
    """Each takes seconds and tens of megabytes."""
    heavy = ["duckdb", "numpy", "pandas", "pyarrow"]
    code = (
        "import logging, sys, retuned.daemon.cli.main, retuned.daemon.gateway.app\n"
        "from retuned.consumers import logs\n"
        "logs.configure('text', 'info')\n"
        "logging.getLogger('retuned').info('a line')\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_constraints_name_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    names = {name.split("[")[0].split(">")[0].split("=")[0].lower().replace("_", "-") for name in needed}
    assert names - {"retuned"} <= pinned
