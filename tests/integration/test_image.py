"""The images: their recipe is sound, and the gateway's holds all that a gateway needs."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
from brokers import Broker
from gateways import Gateway, model_server, published
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUP = [Requirement(line) for line in PROJECT["dependency-groups"]["gateway-image"]]


def closure(wanted: list[Requirement]) -> set[str]:
    """Names of the distributions that pip installs for these."""
    found: dict[str, set[str]] = {}
    waiting = list(wanted)
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in found and one.extras <= found[name]:
            continue
        found[name] = found.get(name, set()) | one.extras
        for line in importlib.metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": it}) for it in ("", *found[name])):
                waiting.append(needed)
    return set(found)


class SmallGateway(Gateway):
    """`retuned gateway` by a Python that finds nothing but what the image holds."""

    def launch(self) -> None:
        site = self.folder / "site-packages"
        site.mkdir()
        for name in {*closure(GROUP), "retuned"}:
            for file in importlib.metadata.files(name) or ():
                first, *below = file.parts
                if first != ".." and not (site / first).exists():
                    (site / first).symlink_to(str(file.locate()).removesuffix("/".join(["", *below])))
        command = [sys.executable, "-S", "-m", "retuned.daemon.cli.main", "gateway", "--config", str(self.config)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT / "tests" / "ns")])}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def test_a_gateway_needs_no_more_than_its_image_holds(tansu: Broker, tmp_path: Path) -> None:
    assert not closure(GROUP) & {"torch", "duckdb", "transformers", "pandas", "pyarrow", "numpy"}
    (tmp_path / "keys").write_text("a-key-that-signs-feedback\n")
    with model_server("base") as server:
        own = {"workloads": ["support"], "feedback_keys_file": str(tmp_path / "keys")}
        made = SmallGateway(tmp_path, tansu.bootstrap_servers, [server.url], gateway=own)
        made.start()
        try:
            answer = made.chat()
            token = answer.headers["X-Retuned-Feedback-Token"]
            assert made.post("/v1/feedback", {"token": token, "name": "helpful", "value": True}).status_code == 202
            id = answer.headers["X-Retuned-Interaction"]
            assert published(tansu, made.topics["interactions"], id)
            assert published(tansu, made.topics["feedback"], id, key="interaction_id")
            assert httpx.get(f"{made.url}/metrics").status_code == 200
            assert made.stop() == 0
        finally:
            made.end()


def test_what_the_gateways_image_installs_are_dependencies_of_the_project() -> None:
    project = PROJECT["project"]
    known = [*project["dependencies"], *project["optional-dependencies"]["gateway"]]
    assert {canonicalize_name(one.name) for one in GROUP} <= {canonicalize_name(Requirement(it).name) for it in known}


@pytest.mark.skipif(sys.platform != "linux", reason="its wheel has a program for Linux")
def test_the_recipe_of_the_images_has_no_known_fault() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
