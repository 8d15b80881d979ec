"""`retuned check` beside a daemon, and names of workloads that nothing knows."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from fixtures.cluster.ray import ray_double
from fixtures.daemon.doors import FakeDaemon, Place
from fixtures.daemon.operations import ask
from fixtures.feedback.traffic import MINUTE, insert_event
from fixtures.kafka.brokers import free_port
from fixtures.models.tiny import tiny_llama
from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.app import App
from retuned.daemon.cli import check as checks
from retuned.daemon.cli.main import main
from retuned.daemon.client import Client
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.settings import Settings, load
from retuned.daemon.web.routes import process_application
from retuned.daemon.web.server import Server
from retuned.retrain.memory import embed

WORKLOADS = {"support.refunds": {"train": {"rank": 8}}}
SIGN_IN = {"issuer": "https://login.example.com", "client_id": "retuned", "roles": {"staff": "viewer"}}


class Deployment:
    """A configuration with a warehouse, and at will something that answers on its port as a daemon does."""

    def __init__(self, folder: Path) -> None:
        self.warehouse, self.file = folder / "retuned.duckdb", folder / "retuned.yaml"
        self.daemon, self.port = FakeDaemon(), free_port()

    def write(self, workloads: dict[str, Any] | None = None, **more: Any) -> None:
        content = {
            "warehouse": {"path": str(self.warehouse)},
            "http": {"port": self.port},
            "workloads": workloads or {},
        }
        self.file.write_text(yaml.safe_dump({**content, **more}))

    def fill(self, *workloads: str) -> None:
        opened = open_warehouse(WarehouseSettings(path=self.warehouse))
        for name in workloads:
            opened.execute("INSERT INTO aliases VALUES (?, 'champion', 'x', now())", [name])
        opened.close()

    def found(self) -> dict[str, tuple[str, str]]:
        return {name: (mark, text) for mark, name, text in checks.check(load(self.file))}


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "check_broker", lambda _: "not asked")  # it would be waited for
    deployment = Deployment(tmp_path)
    deployment.write()
    return deployment


@pytest.fixture
def served(deployed: Deployment) -> Iterator[Deployment]:
    """The daemon of this very configuration answers."""
    place = Place(HttpSettings(port=0), deployed.daemon)
    deployed.port = place.port
    deployed.daemon.found = {
        "version": "0.2.0",
        "started_at": "2026-04-01T06:00:00Z",
        "storage": {"path": str(deployed.warehouse.resolve())},
        "workloads": {"support.refunds": {}},
    }
    deployed.write()
    yield deployed
    place.server.stop()


def test_its_own_daemon_is_recognised(served: Deployment) -> None:
    found = served.found()
    assert found["warehouse"] == ("ok", f"{served.warehouse} is open in the daemon that runs")
    assert found["http"][0] == "ok"
    assert "is the daemon's that runs (version 0.2.0, since 2026-04-01 06:00 UTC)" in found["http"][1]
    assert not served.warehouse.exists()


def test_an_ingester_is_recognised(deployed: Deployment) -> None:
    server = Server(process_application(deployed.daemon, Settings()), HttpSettings(port=0))
    server.start()
    try:
        deployed.port = int(server.url.rpartition(":")[2])
        deployed.write()
        mark, text = deployed.found()["http"]
        assert (mark, "is the ingester's that runs" in text) == ("ok", True)
        with pytest.raises(RetunedError, match=r"an ingester answers here: .* ask a daemon"):
            ask(Client(load(deployed.file)), "labels")
    finally:
        server.stop()


def test_a_cluster_needs_one_key_for_the_sessions_of_browsers(deployed: Deployment) -> None:
    cluster = {
        "store": {"kind": "cluster", "postgres_url": "postgresql://127.0.0.1:9/x", "objects_url": "file:///tmp/x"},
        "privacy": {"user_key": "a key of at least sixteen characters"},
    }
    http = {"port": deployed.port, "viewer_token": "a-viewer-of-some-length"}
    for given, mark in (
        ({}, "warn"),
        ({"session_key": "a-key-of-some-length"}, "ok"),
        ({"viewer_token": None}, "ok"),  # nobody signs in
    ):
        deployed.write(**cluster, http=http | given)
        found = deployed.found()["http"]
        assert (found[0], "Set http.session_key_file" in found[1]) == (mark, mark == "warn")
    deployed.write(http=http)
    assert deployed.found()["http"][0] == "ok"


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("audit", {"audit": {"key_file": "away"}}, "key away: cannot be read"),
        ("http", {"http": {"port": 0, "session_key_file": "away"}}, "http.session_key_file away: cannot be read"),
        (
            "http",
            {"http": {"port": 0, "oidc": SIGN_IN | {"client_secret_file": "away"}}},
            "http.oidc.client_secret_file: away",
        ),
        ("warehouse", {"warehouse": {"path": "w.duckdb", "memory_limit": "1 gigs"}}, "warehouse.memory_limit: "),
    ],
)
def test_what_a_start_refuses_a_check_refuses(deployed: Deployment, name: str, more: dict[str, Any], said: str) -> None:
    deployed.write(**more, models={"directory": "models"}, kafka={"bootstrap_servers": "127.0.0.1:9"})
    with pytest.raises(ConfigurationError, match=f"^{said}") as refused:
        App(load(deployed.file))
    assert deployed.found()[name] == ("FAIL", str(refused.value))
    assert not deployed.warehouse.exists()


def test_a_daemon_of_another_warehouse_is_a_problem(served: Deployment) -> None:
    served.daemon.found["storage"] = {"path": "/elsewhere/retuned.duckdb"}
    mark, text = served.found()["http"]
    assert mark == "FAIL"
    assert "has the warehouse /elsewhere/retuned.duckdb open" in text
    assert "give one of them another port" in text


def test_names_of_workloads_are_compared_with_those_that_the_daemon_knows(served: Deployment) -> None:
    served.write({"support.refnds": {"train": {"rank": 8}}})
    mark, text = served.found()["workloads"]
    assert mark == "warn"
    assert "workloads.support.refnds: no workload that is known has this name; did you mean support.refunds?" in text
    served.write(WORKLOADS)
    assert served.found()["workloads"][0] == "ok"


def test_names_of_workloads_are_compared_with_those_in_the_warehouse(deployed: Deployment) -> None:
    deployed.write({"support.refnds": {"train": {"rank": 8}}})
    assert deployed.found()["workloads"] == ("ok", "no event has told yet which workloads there are")
    deployed.fill("support.refunds")
    assert deployed.found()["workloads"][0] == "warn"


@pytest.mark.processes
def test_what_is_not_configured_is_not_listed(
    deployed: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_llama(tmp_path / "base")
    deployed.write(models={"base": str(base), "directory": str(tmp_path / "models")})
    assert main(["--config", str(deployed.file), "check"]) == 0
    *lines, empty, result = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "none" in line]
    assert {line[6:].split(":")[0].split(" /")[0] for line in lines} == {
        *("configuration", "broker", "warehouse", "privacy", "base model", "adapter", "memory", "target folder"),
        *("metric", "models", "disk", "http"),
    }
    assert (empty, result) == ("", f"{len(lines)} checks, 1 with a warning, none failed")

    deployed.write(models={"base": str(tmp_path / "away")}, drift={"embedding_model": str(tmp_path / "nowhere")})
    assert main(["--config", str(deployed.file), "check"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith(" 2 failed: base model, drift")


def test_embedding_models_of_drift_are_tried(deployed: Deployment, tmp_path: Path) -> None:
    assert "drift" not in deployed.found()
    deployed.write({"sales": {"drift": {"embedding_model": str(tmp_path / "nowhere")}}})
    mark, text = deployed.found()["drift of sales"]
    assert (mark, "nowhere is not the folder of a model2vec model" in text) == ("FAIL", True)


def test_the_memory_of_corrections_names_the_questions_that_it_helps(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "corrections" not in deployed.found()
    deployed.write({"sales": {"memory": {"mode": "context"}}, "hr": {"memory": {"mode": "answer", "similar": False}}})
    assert deployed.found()["corrections of hr"] == ("ok", "answer; the same question")
    monkeypatch.setattr(embed, "load", lambda: None)
    mark, text = deployed.found()["corrections of sales"]
    assert (mark, "the same question only" in text, "pip install 'retuned[memory]'" in text) == ("warn", True, True)
    monkeypatch.setattr(embed, "load", object)
    assert deployed.found()["corrections of sales"][0] == "ok"


@pytest.mark.processes
def test_a_check_with_a_warning_is_sound(
    deployed: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.write({"sales": {"train": {"rank": 8}}}, models={"base": str(tiny_llama(tmp_path / "base"))})
    deployed.fill("support")
    assert main(["check"]) == 0
    said = capsys.readouterr().out
    assert "warn  workloads: workloads.sales: no workload that is known has this name; known are support;" in said


def test_no_plan_for_a_name_that_nothing_knows(
    deployed: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(tiny_llama(tmp_path / "base"))
    deployed.write(WORKLOADS, models={"base": base})
    assert main(["check", "--plan", "anything"]) == 0  # nothing is known yet
    deployed.fill("sales.de")
    capsys.readouterr()
    assert main(["check", "--plan", "sales.d"]) == 1
    said = capsys.readouterr().err
    assert "workload sales.d: no event and no entry of workloads has this name; did you mean sales.de?" in said
    assert main(["check", "--plan", "sales.de"]) == 0
    assert main(["check", "--plan", "support.refunds"]) == 0  # it is configured before its first event


def test_what_is_in_force_for_a_name_that_nothing_knows(
    deployed: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.fill("sales.de")
    assert main(["config", "--workload", "sales.d"]) == 0
    assert "no event and no entry of workloads has this name; did you mean sales.de?" in capsys.readouterr().err
    assert main(["config", "--workload", "sales.de"]) == 0
    assert capsys.readouterr().err == ""


def test_a_ray_cluster_is_asked_that_of_a_workload_too(deployed: Deployment) -> None:
    with ray_double() as ray:
        runner = {"kind": "ray", "url": ray.url, "resources": {"GPU": 1}}
        deployed.write({"large": {"runner": runner | {"resources": {"GPU": 4}}}}, runner=runner)
        found = deployed.found()
        assert found["runner"] == ("ok", f"Ray 2.60.0 at {ray.url}, of which a job takes GPU 1")
        assert found["runner of large"] == ("ok", f"Ray 2.60.0 at {ray.url}, of which a job takes GPU 4")
        ray.token = "a secret of many characters"
        mark, text = deployed.found()["runner"]
        assert mark == "FAIL"
        assert "set runner.token or runner.token_file" in text
    deployed.write()
    assert "runner" not in deployed.found()


def test_a_cluster_without_an_address_is_refused(deployed: Deployment) -> None:
    deployed.write(runner={"kind": "ray", "url": "http://127.0.0.1:9", "resources": {}})
    with pytest.raises(ConfigurationError, match=r"resources: Ray runs jobs without resources on its head node"):
        load(deployed.file)
    deployed.write(runner={"kind": "ray"})
    with pytest.raises(ConfigurationError, match="runner: kind is ray: name the cluster with url"):
        load(deployed.file)


@pytest.mark.processes
def test_a_training_on_a_cluster_needs_no_memory_here(deployed: Deployment, tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    deployed.write(models={"base": str(base)}, train={"memory_bytes": 2**50})
    assert deployed.found()["memory"][0] == "FAIL"
    runner = {"kind": "ray", "url": "http://127.0.0.1:9"}
    deployed.write(models={"base": str(base)}, train={"memory_bytes": 2**50}, runner=runner)
    assert deployed.found()["memory"][0] == "ok"


def doctor(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    """What the doctor finds, by what was looked at."""
    main(["doctor", "--json", "--config", str(deployment.file)])
    return {one["name"]: one for one in json.loads(capsys.readouterr().out)}


def test_a_folder_of_another_user_is_named_and_ends_no_command(
    deployed: Deployment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def refused(path: Any, **more: Any) -> os.stat_result:
        if str(path).startswith(str(deployed.warehouse)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", refused)
    denied = f"Permission denied: '{deployed.warehouse}"
    mark, text = deployed.found()["warehouse"]
    assert (mark, denied in text) == ("FAIL", True)
    assert doctor(deployed, capsys)["warehouse"]["mark"] == "FAIL"
    for command in ("status", "run"):
        assert main(["--config", str(deployed.file), command]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if denied in line]
        assert "retuned: " in line


NOW = datetime.now(UTC).replace(tzinfo=None, microsecond=0)


def arrived(
    deployment: Deployment, count: int = 60, *, ahead: timedelta = timedelta(), ago: timedelta = MINUTE
) -> None:
    """Store answers that arrived some time ago, dated ahead of that by so much."""
    with closing(open_warehouse(WarehouseSettings(path=deployment.warehouse))) as warehouse:
        at = NOW - ago
        for number in range(count):
            insert_event(
                warehouse, "interactions", id=f"i{number}", timestamp=at + ahead, workload="support", model="m",
                messages="[]", response="So.", received_at=at, topic="interactions", partition=0, offset=number,
            )  # fmt: skip


def test_arguments_that_were_replaced_are_named_with_the_way_to_keep_them(
    deployed: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    arrived(deployed)
    assert "arguments" not in deployed.found()
    assert "arguments" not in doctor(deployed, capsys)
    pseudonym = "ace1:04c083018a0b4f0e9d1c2b3a49586776"
    arguments = json.dumps({"account_id": pseudonym, "name": "x"})
    call = {"id": "c", "type": "function", "function": {"name": "update_ticket", "arguments": arguments}}
    more = {"timestamp": NOW, "received_at": NOW - MINUTE, "topic": "interactions", "partition": 0}
    with closing(open_warehouse(WarehouseSettings(path=deployed.warehouse))) as warehouse:
        for number, (response, attributes) in enumerate(
            (("", {"tool_calls": [call]}), (json.dumps({"customer": {"id": pseudonym}}), {"user": pseudonym})), 100
        ):
            insert_event(
                warehouse, "interactions", id=f"i{number}", workload="support", model="m", messages="[]",
                response=response, attributes=json.dumps(attributes), offset=number, **more,
            )  # fmt: skip
        insert_event(
            warehouse, "feedback", id="f", interaction_id="i1", name="correction",
            value=json.dumps({"arguments": arguments}), source="expert", offset=1, **more,
        )  # fmt: skip
    mark, text = deployed.found()["arguments"]
    assert (mark, "account_id (support); id (support)" in text, "privacy.keep_keys" in text) == ("warn", True, True), (
        text
    )
    one = doctor(deployed, capsys)["arguments"]
    assert (one["mark"], one["remedy"]) == (
        "warn", "if a key holds no user and no personal data, name it in privacy.keep_keys"
    )  # fmt: skip


def rated(deployment: Deployment, prefix: str) -> None:
    with closing(open_warehouse(WarehouseSettings(path=deployment.warehouse))) as warehouse:
        for number in range(60):
            insert_event(
                warehouse, "feedback", id=f"f{number}", timestamp=NOW, interaction_id=f"{prefix}{number}",
                name="helpful", value="true", source="user", received_at=NOW - timedelta(hours=1), topic="feedback",
                partition=0, offset=number,
            )  # fmt: skip


def dated(deployment: Deployment) -> None:
    with closing(open_warehouse(WarehouseSettings(path=deployment.warehouse))) as warehouse:
        prompt = """[{"role": "system", "content": "Be brief.\\nToday is 2026-11-' || (10 + "offset" % 9) || '."},"""
        user = """{"role": "user", "content": "Hi"}]"""
        warehouse.execute(f"UPDATE interactions SET messages = '{prompt} {user}'")


def test_the_doctor_finds_nothing_wrong_with_events_that_are_rated(
    deployed: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    arrived(deployed)
    rated(deployed, "i")
    found = doctor(deployed, capsys)
    assert {found[name]["mark"] for name in ("events", "clock", "ids of feedback")} == {"ok"}
    assert "feedback" not in found
    assert all(not one["remedy"] for one in found.values() if one["mark"] == "ok")


@pytest.mark.parametrize(
    ("name", "mistake", "found", "remedy"),
    [
        ("events", lambda _: None, "no answer is stored", "publish interactions to the topic interactions"),
        (
            "events",
            lambda one: arrived(one, 3, ago=timedelta(days=9)),
            "the last answer came on ",
            "check that the apps run and publish to the topic interactions",
        ),
        (
            "feedback",
            arrived,
            "support: answers in the last seven days, and no feedback on any of them",
            "publish votes or corrections to the topic feedback",
        ),
        (
            "ids of feedback",
            lambda one: (arrived(one), rated(one, "order-")),
            "60 of 60 pieces of feedback are about answers that are not stored, such as order-",
            "send the id of the interaction event, or of the gateway's answer, as interaction_id",
        ),
        (
            "system prompt of support",
            lambda one: (arrived(one), dated(one)),
            "it holds a date or a time that changes, such as 'Today is 2026-11-",
            "workloads.support.dataset.harmless_instructions",
        ),
        (
            "clock",
            lambda one: arrived(one, ahead=timedelta(minutes=5)),
            "60 of 60 answers, and 0 dead letters, are dated after they arrived; the farthest by 0:05:00",
            "synchronise the clocks",
        ),
    ],
)
def test_the_doctor_names_a_mistake_and_what_mends_it(
    deployed: Deployment,
    capsys: pytest.CaptureFixture[str],
    name: str,
    mistake: Callable[[Deployment], Any],
    found: str,
    remedy: str,
) -> None:
    deployed.fill()
    mistake(deployed)
    seen = doctor(deployed, capsys)[name]
    assert (found in seen["found"], remedy in seen["remedy"]) == (True, True), seen
    assert seen["mark"] in ("warn", "FAIL")


def test_the_doctor_shows_a_wrong_configuration_and_a_server_that_is_away(
    deployed: Deployment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    deployed.write(evaluat={})
    assert main(["doctor", "--config", str(deployed.file)]) == 1
    shown = capsys.readouterr().out
    assert "FAIL  configuration: " in shown
    assert "evaluat" in shown
    assert "      → `retuned config` prints every key" in shown
    deployed.write(serving={"targets": [{"kind": "vllm", "urls": [f"http://127.0.0.1:{free_port()}/v1"]}]})
    deployed.fill()
    assert main(["doctor", "--config", str(deployed.file)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "FAIL target vllm" in shown
    assert "→ start the model server, or correct its address in serving.targets" in shown
    assert "as they should be (--verbose shows them)" in shown
    assert "ok privacy" not in shown
    main(["doctor", "--verbose", "--config", str(deployed.file)])
    assert "ok    privacy" in capsys.readouterr().out


@pytest.mark.processes
def test_the_doctor_names_a_warehouse_that_another_process_has_open_once(
    deployed: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.fill()
    hold = f"import duckdb; held = duckdb.connect({str(deployed.warehouse)!r}); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        found = doctor(deployed, capsys)
        other.communicate(b"\n")
    assert (found["warehouse"]["mark"], found["events"]["found"]) == ("FAIL", "were not looked at")
    assert f"in use by process {other.pid}" in found["warehouse"]["found"]
    assert "stop what else has the file open" in found["warehouse"]["remedy"]


def test_the_doctor_names_a_topic_that_is_missing(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "check_broker", lambda _: "kafka: answers, topics feedback (does not exist yet)")
    found = doctor(deployed, capsys)["broker"]
    assert (found["mark"], "create the topics that are missing" in found["remedy"]) == ("warn", True)
