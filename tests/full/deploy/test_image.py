"""The images: their recipe is sound, and those of gateways and ingesters hold all that they need."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from kafka import KafkaProducer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fixtures.cluster.servers import S3_ENVIRONMENT, run_postgres, run_s3
from fixtures.daemon.gateways import Gateway, model_server, published
from fixtures.faults.cluster import Ingesters
from fixtures.kafka.brokers import Broker, Json, until
from fixtures.servers.memory_feeds import memory_double

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUP = [Requirement(line) for line in PROJECT["dependency-groups"]["gateway-image"]]
INGEST = [Requirement(line) for line in PROJECT["dependency-groups"]["ingest-image"]]


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


def launched(folder: Path, group: list[Requirement], command: str, config: Path, log: Path) -> subprocess.Popen[bytes]:
    """A command of retuned, by a Python that finds nothing but what an image holds."""
    site = folder / "site-packages"
    site.mkdir()
    for name in {*closure(group), "retuned"}:
        for file in importlib.metadata.files(name) or ():
            first, *below = file.parts
            if first != ".." and not (site / first).exists():
                (site / first).symlink_to(str(file.locate()).removesuffix("/".join(["", *below])))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT / "tests" / "ns")])}
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-S", "-m", "retuned.daemon.cli.main", command, "--config", str(config)],
            stdout=out,
            stderr=out,
            env=environment,
        )


class SmallGateway(Gateway):
    """`retuned gateway` with what its image holds."""

    def launch(self) -> None:
        self.process = launched(self.folder, GROUP, "gateway", self.config, self.log)


def test_a_gateway_needs_no_more_than_its_image_holds(tansu: Broker, tmp_path: Path) -> None:
    assert not closure(GROUP) & {"torch", "duckdb", "transformers", "pandas", "pyarrow", "numpy"}
    (tmp_path / "keys").write_text("a-key-that-signs-feedback\n")
    with model_server("base", "support@1") as server, memory_double() as daemon:
        daemon.use("context")
        daemon.add("How long?", "60 days.")
        own = {"workloads": ["support"], "feedback_keys_file": str(tmp_path / "keys"), "daemon_url": daemon.url}
        made = SmallGateway(tmp_path, tansu.bootstrap_servers, [server.url], gateway=own)
        made.start()
        try:
            answer = made.chat()
            until(lambda: "X-Retuned-Memory" in made.chat().headers)
            token = answer.headers["X-Retuned-Feedback-Token"]
            assert made.post("/v1/feedback", {"token": token, "name": "helpful", "value": True}).status_code == 202
            id = answer.headers["X-Retuned-Interaction"]
            assert published(tansu, made.topics["interactions"], id)
            assert published(tansu, made.topics["feedback"], id, key="interaction_id")
            assert httpx.get(f"{made.url}/metrics").status_code == 200
            assert made.stop() == 0
        finally:
            made.end()


def test_a_command_that_an_image_has_not_the_packages_for_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "retuned.yaml").touch()
    done = launched(tmp_path, GROUP, "check", tmp_path / "retuned.yaml", tmp_path / "log")
    assert done.wait(60) == 1
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith("retuned: duckdb is not installed; the images of gateways and ingesters hold what their own")


class SmallIngesters(Ingesters):
    """`retuned ingest` with what its image holds."""

    def start(self, number: int) -> None:
        self.processes[number] = launched(self.folder, INGEST, "ingest", self.config, self.log)


def test_an_ingester_needs_no_more_than_its_image_holds(
    tansu: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not closure(INGEST) & {"torch", "transformers", "pandas", "scikit-learn", "evidently", "plotly"}
    with run_postgres() as postgres, run_s3(tmp_path) as s3:
        for name, value in (S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.port}"}).items():
            monkeypatch.setenv(name, value)
        made = SmallIngesters(tmp_path, tansu, postgres, s3, count=1)
        made.start(0)
        try:
            producer = KafkaProducer(bootstrap_servers=tansu.bootstrap_servers, acks="all", value_serializer=Json())
            said = {"messages": [{"role": "user", "content": "Call me: +49 30 901820"}], "response": "I will."}
            own = {"id": "1", "timestamp": datetime.now(UTC).isoformat(), "workload": "support", "model": "base"}
            producer.send(made.topic, own | said)
            producer.flush(20)
            producer.close(5)
            until(lambda: made.recorded() == 1, seconds=120)
            assert [id for id, *_ in made.rows()] == ["1"]
            made.stop()
        finally:
            made.end()


@pytest.mark.parametrize(("group", "extra"), [(GROUP, "gateway"), (INGEST, "cluster")])
def test_what_the_small_images_install_are_dependencies_of_the_project(group: list[Requirement], extra: str) -> None:
    project = PROJECT["project"]
    known = [*project["dependencies"], *project["optional-dependencies"][extra]]
    assert {canonicalize_name(one.name) for one in group} <= {canonicalize_name(Requirement(it).name) for it in known}


@pytest.mark.skipif(sys.platform != "linux", reason="its wheel has a program for Linux")
def test_the_recipe_of_the_images_has_no_known_fault() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
