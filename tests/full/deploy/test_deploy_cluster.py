"""compose.cluster.yaml, on top of compose.yaml: who is there, what each process takes, and that it works."""

import os
import re
import subprocess
import sys
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from kafka import KafkaProducer

from fixtures.kafka.brokers import Broker, Json, free_port, until

pytest.importorskip("obstore", reason="the extra cluster is not installed")
pytest.importorskip("moto", reason="the extra test is not installed")

from fixtures.cluster.servers import run_postgres, run_s3
from retuned.consumers.cluster.database import Database
from retuned.consumers.cluster.objects import Objects
from retuned.daemon.app import STOP_SECONDS
from retuned.daemon.settings import Settings, load

DEPLOY = Path(__file__).parents[3] / "deploy"
ALONE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OVERLAY = yaml.safe_load((DEPLOY / "compose.cluster.yaml").read_text())
PROMETHEUS = yaml.safe_load((DEPLOY / "prometheus.cluster.yml").read_text())
IMAGE = dict(re.findall(r"(RETUNED__\w+)=(\S+)", (DEPLOY / "Dockerfile").read_text()))
DAEMONS = ("retuned", "standby")
SECRETS = {
    "RETUNED_POSTGRES_PASSWORD": "a-password",
    "RETUNED_OBJECTS_KEY": "a secret key",
    "GRAFANA_ADMIN_PASSWORD": "another",
}


def over(below: Any, above: Any) -> Any:
    """As Compose lays one file on another: maps together, lists behind each other, everything else replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: over(below[key], one) if key in below else one for key, one in above.items()}
    if isinstance(below, list) and isinstance(above, list):
        return [*below, *(one for one in above if one not in below)]
    return above


COMPOSE = over(ALONE, OVERLAY)


def environment(service: str) -> dict[str, str]:
    """What the container has, image and file together, with the secrets of .env."""

    def filled(value: str) -> str:
        return re.sub(r"\$\{(\w+)(?::[?-][^}]*)?\}", lambda found: SECRETS[found[1]], value)

    return IMAGE | {name: filled(value) for name, value in COMPOSE["services"][service]["environment"].items()}


def settings(service: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Settings:
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("RETUNED__")]:
        monkeypatch.delenv(name)
    for name, value in environment(service).items():
        monkeypatch.setenv(name, value)
    return load(None)


@pytest.mark.parametrize("service", [*DAEMONS, "ingest"])
def test_each_process_takes_its_configuration(service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken = settings(service, monkeypatch, tmp_path)
    assert (taken.store.kind, taken.http.host, taken.http.port) == ("cluster", "::", 8321)
    assert taken.kafka.bootstrap_servers == "kafka:19092"
    assert taken.store.postgres() == "postgresql://retuned:a-password@postgres/retuned"
    Database(taken.store).close()
    assert Objects(taken.store).url == "s3://retuned/store"
    own = COMPOSE["services"][service]
    http = taken.http
    files = (
        *(http.metrics_token_file, http.gateway_token_file, http.viewer_token_file, http.operator_token_file),
        *(http.session_key_file, taken.privacy.user_key_file),
    )
    assert {str(file) for file in files if file} == {f"/run/secrets/{name}" for name in own["secrets"]}
    assert set(own["secrets"]) <= COMPOSE["secrets"].keys()
    assert int(own["stop_grace_period"].removesuffix("s")) > STOP_SECONDS


def test_all_have_one_store_and_each_daemon_a_volume_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = [settings(service, monkeypatch, tmp_path) for service in (*DAEMONS, "ingest")]
    assert len({one.store.model_dump_json() for one in taken}) == 1
    assert len({str(one.privacy.user_key_file) for one in taken}) == 1
    assert [str(one.http.session_key_file) for one in taken] == ["/run/secrets/session_key"] * 2 + ["None"]
    kept = [volume for service in DAEMONS for volume in COMPOSE["services"][service]["volumes"]]
    assert sorted(kept) == ["data:/data", "standby:/data"]
    assert "volumes" not in COMPOSE["services"]["ingest"]
    assert COMPOSE["services"]["retuned"]["build"]["args"] == {"EXTRAS": "[cluster]"}
    assert {COMPOSE["services"][service]["image"] for service in DAEMONS} == {"retuned"}
    assert COMPOSE["services"]["ingest"]["build"]["target"] == "ingest"
    assert COMPOSE["services"]["ingest"]["image"] == "retuned:ingest"
    for service in (*DAEMONS, "ingest"):
        assert COMPOSE["services"][service]["depends_on"].keys() == {"topics", "postgres", "bucket"}
    partitions = int(re.findall(r"--partitions (\d+)", COMPOSE["services"]["topics"]["command"][0])[0])
    assert COMPOSE["services"]["ingest"]["deploy"]["replicas"] == 2 <= partitions


def test_the_servers_are_those_that_the_processes_ask() -> None:
    asked = environment("ingest")
    services = COMPOSE["services"]
    postgres, objects = services["postgres"]["environment"], services["objects"]["environment"]
    url = f"postgresql://{postgres['POSTGRES_USER']}:{SECRETS['RETUNED_POSTGRES_PASSWORD']}@postgres/{postgres['POSTGRES_DB']}"
    assert asked["RETUNED__STORE__POSTGRES_URL"] == url
    assert asked["AWS_ENDPOINT_URL"].startswith("http://objects:")
    assert asked["AWS_ACCESS_KEY_ID"] == objects["ROOT_ACCESS_KEY"]
    for one in (postgres["POSTGRES_PASSWORD"], objects["ROOT_SECRET_KEY"]):
        assert re.fullmatch(r"\$\{RETUNED_\w+\}", one)
    made = services["bucket"]["entrypoint"][-1]
    assert asked["RETUNED__STORE__OBJECTS_URL"].startswith(f"s3://{Path(made).name}/")
    assert str(Path(made).parent) == services["objects"]["command"][-1]
    assert services["bucket"]["volumes"] == services["objects"]["volumes"]


def test_prometheus_scrapes_daemons_and_ingesters_as_one_job() -> None:
    (job,) = PROMETHEUS["scrape_configs"]
    alone = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert {key: value for key, value in PROMETHEUS.items() if key != "scrape_configs"} == {
        key: value for key, value in alone.items() if key != "scrape_configs"
    }
    assert job["job_name"] == "retuned"
    assert job["static_configs"][0]["targets"] == [f"{daemon}:8321" for daemon in DAEMONS]
    (found,) = job["dns_sd_configs"]
    assert (found["names"], found["port"]) == (["ingest"], 8321)
    assert OVERLAY["services"]["prometheus"]["volumes"] == [
        "./prometheus.cluster.yml:/etc/prometheus/prometheus.yml:ro"
    ]
    url = COMPOSE["services"]["gateway"]["environment"]["RETUNED__GATEWAY__DAEMON_URL"]
    for daemon in DAEMONS:
        (alias,) = COMPOSE["services"][daemon]["networks"]["default"]["aliases"]
        assert url == f"http://{alias}:8321"


def test_the_overlay_is_open_to_this_machine_alone_and_knows_who_is_well() -> None:
    for name, service in OVERLAY["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        image = COMPOSE["services"][name]["image"]
        assert "healthcheck" in COMPOSE["services"][name] or image.partition(":")[0] == "retuned"
        assert image.partition(":")[0] == "retuned" or re.search(r":v?\d+\.\d+", image), f"{image} is not pinned"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    taken = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(taken) == len(set(taken))
    named = set(re.findall(r"\$\{(RETUNED_\w+|GRAFANA_\w+)", (DEPLOY / "compose.cluster.yaml").read_text()))
    named |= {one["environment"] for one in OVERLAY["secrets"].values()}
    (written,) = re.findall(r"for name in (.+); do", (DEPLOY / "compose.cluster.yaml").read_text())
    assert set(written.split()) == named


class Process:
    """A service, started with the environment that Compose gives it but for these; it ends with the stack."""

    def __init__(self, stack: ExitStack, service: str, folder: Path, given: dict[str, str]) -> None:
        port = free_port()
        self.url, self.log = f"http://127.0.0.1:{port}", folder / f"{port}.log"
        self.token = {"Authorization": f"Bearer {Path(given['RETUNED__HTTP__VIEWER_TOKEN_FILE']).read_text()}"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "retuned.daemon.cli.main"),
                    "ingest" if service == "ingest" else "run",
                ],
                env=os.environ | environment(service) | given | {"RETUNED__HTTP__PORT": str(port)},
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        stack.callback(self.end)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=self.token, timeout=20)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
        try:
            return self.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def test_an_event_goes_through_two_ingesters_into_the_daemon_and_its_standby(tansu: Broker, tmp_path: Path) -> None:
    """As Compose starts them, beside servers that speak as those of the file do."""
    topics = {name: f"{tmp_path.name}.{name}" for name in ("interactions", "feedback")}
    tansu.create_topics(*topics.values(), partitions=3)
    for name in ("metrics_token", "gateway_token", "viewer_token", "operator_token", "session_key", "user_key"):
        (tmp_path / name).write_text(f"{name}-of-sixteen-characters-or-more")
    with ExitStack() as stack:
        postgres, s3 = stack.enter_context(run_postgres()), stack.enter_context(run_s3(tmp_path))
        bucket = environment("ingest")["RETUNED__STORE__OBJECTS_URL"].split("/")[2]
        httpx.put(f"http://127.0.0.1:{s3.port}/{bucket}").raise_for_status()
        given = {
            "RETUNED__KAFKA__BOOTSTRAP_SERVERS": tansu.bootstrap_servers,
            "RETUNED__KAFKA__GROUP_ID": tmp_path.name,
            "RETUNED__KAFKA__INTERACTIONS_TOPIC": topics["interactions"],
            "RETUNED__KAFKA__FEEDBACK_TOPIC": topics["feedback"],
            "RETUNED__KAFKA__SESSION_TIMEOUT_SECONDS": "2",
            "RETUNED__STORE__POSTGRES_URL": postgres.create("retuned"),
            "RETUNED__STORE__SEGMENT_SECONDS": "0.2",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.port}",
            "RETUNED__HTTP__HOST": "127.0.0.1",
            "RETUNED__HTTP__METRICS_TOKEN_FILE": str(tmp_path / "metrics_token"),
            "RETUNED__HTTP__GATEWAY_TOKEN_FILE": str(tmp_path / "gateway_token"),
            "RETUNED__HTTP__VIEWER_TOKEN_FILE": str(tmp_path / "viewer_token"),
            "RETUNED__HTTP__OPERATOR_TOKEN_FILE": str(tmp_path / "operator_token"),
            "RETUNED__PRIVACY__USER_KEY_FILE": str(tmp_path / "user_key"),
        }
        disks = {
            one: {
                "RETUNED__WAREHOUSE__PATH": str(tmp_path / one / "retuned.duckdb"),
                "RETUNED__MODELS__DIRECTORY": str(tmp_path / one / "models"),
                "RETUNED__HTTP__SESSION_KEY_FILE": str(tmp_path / "session_key"),
            }
            for one in DAEMONS
        }
        ingesters = [Process(stack, "ingest", tmp_path, given) for _ in range(2)]
        daemons = [Process(stack, one, tmp_path, given | disks[one]) for one in DAEMONS]
        for process in (*ingesters, *daemons):
            until(process.is_ready)
        producer = KafkaProducer(bootstrap_servers=tansu.bootstrap_servers, acks="all", value_serializer=Json())
        event = {
            "id": str(uuid.uuid4()),
            "timestamp": datetime.now(UTC).isoformat(),
            "workload": "support",
            "model": "base",
            "messages": [{"role": "user", "content": "Where is my parcel?"}],
            "response": "On its way.",
        }
        producer.send(topics["interactions"], event)
        producer.flush(20)
        producer.close(5)
        until(lambda: [one for one in ingesters if "\nretuned_segments_total 1.0" in one.get("/metrics").text])
        for daemon in daemons:
            until(lambda daemon=daemon: "support" in daemon.get("/api/v1/status").json()["workloads"])  # type: ignore[misc]
        assert sorted("\nretuned_leader 1.0" in daemon.get("/metrics").text for daemon in daemons) == [False, True]
