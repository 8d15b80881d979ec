"""What deploy/ ships: alerts and dashboard use metrics that exist; the configuration in it is one the daemon takes."""

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from retuned.consumers.metrics import Metrics as ConsumerMetrics
from retuned.consumers.settings import KafkaSettings
from retuned.daemon.metrics import Metrics as DaemonMetrics
from retuned.daemon.settings import load
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain.metrics import Metrics as RetrainMetrics

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = yaml.safe_load((DEPLOY / "retuned.rules.yml").read_text())
RULE_TESTS = yaml.safe_load((DEPLOY / "retuned.rules.test.yml").read_text())
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/retuned.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
# What a label can be; the queries ask for these.
VALUES = {
    "workload": ["support"],
    "model_name": ["*", "support@1"],
    "source": ["user", "grounding"],
    "kind": ["gain", "cost", "input", "email"],
    "outcome": ["failed", "drifted", "passed"],
    "state": ["failed", "succeeded"],
    "event": ["promoted", "rolled_back"],
    "task": ["quality", "drift", "archive"],
    "part": ["file", "used", "log"],
    "rate": ["helpful", "hallucination"],
    "metric": ["helpful", "latency"],
    "verdict": ["go_on", "roll_back"],
}
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (apt: prometheus)")
needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed (apt)")


def registry() -> tuple[CollectorRegistry, list[Any]]:
    """Everything that the daemon's /metrics can show, each metric with every label, at 1."""
    made = CollectorRegistry()
    children = []
    for metrics in (ConsumerMetrics(made), MonitorMetrics(made), RetrainMetrics(made), DaemonMetrics(made)):
        for metric in vars(metrics).values():
            if isinstance(metric, Counter | Gauge | Histogram):
                names = metric._labelnames
                values = itertools.product(*(VALUES.get(name, ["some"]) for name in names))
                children.extend(metric.labels(*labels) if names else metric for labels in values)
    move(children)
    return made, children


def move(children: list[Any]) -> None:
    for child in children:
        if isinstance(child, Histogram):
            child.observe(1)
        elif isinstance(child, Counter):
            child.inc()
        else:
            child.set(1)


def labels_by_name() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"up": set()}
    for family in registry()[0].collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def filled(expression: str) -> str:
    """A dashboard's query as Grafana sends it."""
    return expression.replace("$workload", ".*").replace("$__rate_interval", "1m")


def queries() -> list[str]:
    annotations = [item["expr"] for item in DASHBOARD["annotations"]["list"]]
    return [filled(target["expr"]) for panel in PANELS for target in panel["targets"]] + annotations


def promtool(*arguments: str, folder: Path = DEPLOY) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_rules_are_valid_and_raise_what_they_should() -> None:
    promtool("check", "rules", "retuned.rules.yml")
    promtool("test", "rules", "retuned.rules.test.yml")


@needs_promtool
def test_the_scrape_configuration_is_valid() -> None:
    promtool("check", "config", "--syntax-only", "prometheus.yml")


def test_each_alert_is_tested_firing_and_quiet() -> None:
    names = [alert["alert"] for alert in ALERTS]
    checks = [check for test in RULE_TESTS["tests"] for check in test["alert_rule_test"]]
    assert sorted({check["alertname"] for check in checks if check["exp_alerts"]}) == sorted(names)
    assert sorted({check["alertname"] for check in checks if not check["exp_alerts"]}) == sorted(names)
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"info", "warning", "critical"}
        assert set(alert["annotations"]) == {"summary", "description"}


@needs_promtool
def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": filled(query)} for number, query in enumerate(queries())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", "rules.yml", folder=tmp_path)


def test_rules_and_dashboard_name_metrics_and_labels_that_exist() -> None:
    known = labels_by_name()
    variable = next(item for item in DASHBOARD["templating"]["list"] if item["name"] == "workload")
    asked = [*queries(), variable["definition"], *(alert["expr"] for alert in ALERTS)]
    for query in asked:
        for name, matchers in re.findall(r"\b(retuned_\w+|up)\b(?:\{([^}]*)\})?", query):
            assert name in known, f"{name} in: {query}"
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert used <= known[name] | {"job", "instance"}, f"labels of {name} in: {query}"
    assert variable["definition"] == "label_values(retuned_drift_check_timestamp_seconds, workload)"


def test_every_metric_is_on_the_dashboard() -> None:
    asked = " ".join(queries())
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\b(?:retuned_\w+|up)\b", asked)}
    names = {name for name in labels_by_name() if not name.endswith("_created")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    # Both are for alerts and for looking up, not for watching.
    assert families - shown == {"retuned_drift_check_timestamp_seconds", "retuned_dead_letter_publish_failures_total"}


def test_each_panel_explains_itself_and_stands_on_its_own_place() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Operations", "Quality", "Learning", "Return on investment"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in PANELS:
        assert len(panel["description"]) > 20, panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            perhaps = re.findall(r"retuned_\w+", target["expr"])
            by_workload = any("workload" in labels_by_name()[name] for name in perhaps)
            assert ("$workload" in target["expr"]) == by_workload, target["expr"]


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[tuple[str, list[Any]]]:
    """A Prometheus that scrapes every metric once a second, with the rules of deploy/ loaded."""
    made, children = registry()
    server, thread = start_http_server(0, addr="127.0.0.1", registry=made)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (scrape,) = configuration["scrape_configs"]
    del scrape["authorization"]
    scrape["static_configs"] = [{"targets": [f"127.0.0.1:{server.server_port}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    shutil.copy(DEPLOY / "retuned.rules.yml", tmp_path)
    command = ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address={address}", "--log.level=error"]
    process = subprocess.Popen([*command, "--storage.tsdb.path=data"], cwd=tmp_path)
    try:
        yield f"http://{address}", children
    finally:
        process.terminate()
        process.wait(timeout=20)
        server.shutdown()
        server.server_close()
        thread.join()


@needs_prometheus
def test_every_query_of_the_dashboard_finds_something_in_a_live_prometheus(
    prometheus: tuple[str, list[Any]],
) -> None:
    url, children = prometheus
    empty = set(queries()[:-1])  # the last is the annotation of a promotion: there is none
    problem: Exception | None = None
    deadline = time.monotonic() + 60
    while empty and time.monotonic() < deadline:
        move(children)
        time.sleep(1)
        for query in sorted(empty):
            question = urllib.parse.urlencode({"query": query})
            try:
                with urllib.request.urlopen(f"{url}/api/v1/query?{question}", timeout=10) as answer:
                    if json.load(answer)["data"]["result"]:
                        empty.remove(query)
            except OSError as error:
                problem = error
    assert not empty, problem


def environment(service: str) -> dict[str, str]:
    variables: dict[str, str] = COMPOSE["services"][service].get("environment", {})
    return variables


def test_the_daemon_takes_the_configuration_of_the_image_and_of_compose(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = dict(re.findall(r"(RETUNED__\w+)=(\S+)", (DEPLOY / "Dockerfile").read_text()))
    assert image["RETUNED__WAREHOUSE__PATH"].startswith("/data/")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("RETUNED__")]:
        monkeypatch.delenv(name)
    for name, value in (image | environment("retuned")).items():
        monkeypatch.setenv(name, value)
    settings = load(None)
    assert settings.http.host == "0.0.0.0"
    assert settings.kafka.bootstrap_servers == "kafka:19092"
    assert settings.kafka.dead_letter_topic == "retuned.dead-letters"
    assert f"127.0.0.1:{settings.http.port}:{settings.http.port}" in COMPOSE["services"]["retuned"]["ports"]
    targets = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0][
        "targets"
    ]
    assert targets == [f"retuned:{settings.http.port}"]
    secrets = {f"/run/secrets/{name}" for name in COMPOSE["services"]["retuned"]["secrets"]}
    assert {str(settings.http.viewer_token_file), str(settings.http.operator_token_file)} == secrets


def test_compose_makes_the_topics_that_the_daemon_reads_and_writes() -> None:
    (script,) = COMPOSE["services"]["topics"]["command"]
    (made,) = re.findall(r"for topic in (.+); do", script)
    kafka = KafkaSettings()
    dead_letters = environment("retuned")["RETUNED__KAFKA__DEAD_LETTER_TOPIC"]
    ours = {kafka.model_events_topic, kafka.label_requests_topic, dead_letters}
    assert set(made.split()) == {kafka.interactions_topic, kafka.feedback_topic, *ours}


def test_compose_is_open_to_this_machine_alone_and_knows_who_is_well() -> None:
    services = COMPOSE["services"]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))
    assert "HEALTHCHECK" in (DEPLOY / "Dockerfile").read_text()
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"retuned"}
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
