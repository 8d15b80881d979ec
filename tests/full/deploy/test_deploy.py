"""What deploy/ ships: alerts and dashboards use metrics that exist; the configuration in it is one the daemon takes."""

import importlib.util
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
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.samples import Exemplar

from retuned.consumers.cluster.metrics import DaemonMetrics as ClusterMetrics
from retuned.consumers.cluster.metrics import Metrics as SegmentMetrics
from retuned.consumers.common.series import exemplar_labels
from retuned.consumers.metrics import Metrics as ConsumerMetrics
from retuned.consumers.settings import KafkaSettings
from retuned.consumers.traffic import Traffic
from retuned.daemon.gateway.metrics import Metrics as GatewayMetrics
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.metrics import Metrics as DaemonMetrics
from retuned.daemon.private import OTHERS
from retuned.daemon.settings import load
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.monitors.metrics_table import Total
from retuned.retrain.metrics import Metrics as RetrainMetrics

DEPLOY = Path(__file__).parents[3] / "deploy"
RULES = yaml.safe_load((DEPLOY / "retuned.rules.yml").read_text())
RULE_TESTS = sorted(DEPLOY.glob("retuned.rules*.test.yml"))
EXAMPLES = [test for path in RULE_TESTS for test in yaml.safe_load(path.read_text())["tests"]]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DASHBOARDS = {path.name: json.loads(path.read_text()) for path in sorted(DEPLOY.glob("grafana/dashboards/*.json"))}
PANELS = [
    panel
    for dashboard in DASHBOARDS.values()
    for outer in dashboard["panels"]
    for panel in (outer["panels"] if outer["type"] == "row" else [outer])
]
RULES_MADE = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES_MADE if "alert" in rule]
RECORDED = [rule for rule in RULES_MADE if "record" in rule]
# What a label can be; the queries ask for these.
VALUES = {
    "workload": ["support"],
    "model_name": ["*", "support@1"],
    "source": ["user", "grounding"],
    "quantile": ["0.5", "0.95"],
    "kind": ["gain", "cost", "input", "email"],
    "outcome": ["failed", "drifted", "passed"],
    "state": ["failed", "succeeded"],
    "event": ["promoted", "rolled_back", "canary"],
    "task": ["quality", "drift", "archive"],
    "part": ["file", "used", "log"],
    "rate": ["helpful", "hallucination"],
    "name": ["helpful"],
    "monitor": ["quality", "policy"],
    "metric": ["helpful", "latency"],
    "verdict": ["go_on", "roll_back"],
}
ID = "shop/7 {é}'"
ANSWERS = pa.table(
    {
        "id": [ID],
        "workload": ["support"],
        "model": ["support@1"],
        "latency_seconds": [1.0],
        "time_to_first_token_seconds": [0.1],
        "input_tokens": [100],
        "output_tokens": [10],
    }
)
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (apt: prometheus)")
needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed (apt)")


def registry() -> tuple[CollectorRegistry, list[Callable[[], None]]]:
    """Everything that the daemon's /metrics can show, each metric with every label, and what moves each of them."""
    made = CollectorRegistry()
    movers: list[Callable[[], None]] = []
    kinds = (ConsumerMetrics, SegmentMetrics, MonitorMetrics, RetrainMetrics, DaemonMetrics, GatewayMetrics)
    of_a_cluster = ClusterMetrics(CollectorRegistry())  # which has retuned_store_up as an ingester does
    for metric in (of_a_cluster.leader, of_a_cluster.deleted):
        made.register(metric)
    for metrics in [*(kind(made) for kind in kinds), of_a_cluster]:
        for metric in parts_of(metrics):
            if isinstance(metric, Counter | Gauge | Histogram):
                names = metric._labelnames
                values = itertools.product(*(VALUES.get(name, ["some"]) for name in names))
                movers.extend(mover(metric.labels(*labels) if names else metric) for labels in values)
            elif isinstance(metric, Traffic):
                movers.append(partial(metric.add, ANSWERS, datetime(2026, 11, 24)))
    move(movers)
    return made, movers


def parts_of(metrics: Any) -> Iterator[Any]:
    """The attributes of a holder of metrics, and of the holders within it."""
    for part in vars(metrics).values():
        if isinstance(part, dict):
            yield from part.values()
        elif type(part).__module__ == type(metrics).__module__ and not isinstance(part, Traffic):
            yield from parts_of(part)
        else:
            yield part


def mover(metric: Any) -> Callable[[], None]:
    if isinstance(metric, Histogram):
        return partial(metric.observe, 1)
    if isinstance(metric, Total):
        metric.exemplar = Exemplar(exemplar_labels(ID) or {}, 1)
    return metric.inc if isinstance(metric, Counter) else partial(metric.set, 1)


def move(movers: list[Callable[[], None]]) -> None:
    for one in movers:
        one()


def labels_by_name() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"up": set()}
    found |= {rule["record"]: set(re.findall(r"\w+", rule["expr"])) for rule in RECORDED}
    for family in registry()[0].collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def filled(expression: str) -> str:
    """A dashboard's query as Grafana sends it."""
    for variable in ("$workload", "$version"):
        expression = expression.replace(variable, ".*")
    return expression.replace("$__rate_interval", "1m")


def queries() -> list[str]:
    return [filled(target["expr"]) for panel in PANELS for target in panel["targets"]]


def annotations() -> list[str]:
    found = [item["expr"] for dashboard in DASHBOARDS.values() for item in dashboard["annotations"]["list"]]
    return [filled(expression) for expression in found]


def variables(dashboard: dict[str, Any]) -> dict[str, str]:
    """The queries of a dashboard's variables."""
    return {item["name"]: item["query"]["query"] for item in dashboard["templating"]["list"] if item["type"] == "query"}


def promtool(*arguments: str, folder: Path = DEPLOY) -> None:
    environment = os.environ | {"GOGC": "800"}  # collecting garbage takes a quarter of its time otherwise
    done = subprocess.run(["promtool", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_names_and_labels_of_metrics_are_as_prometheus_asks() -> None:
    exposed = generate_latest(registry()[0])
    done = subprocess.run(["promtool", "check", "metrics"], input=exposed, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@needs_promtool
def test_rules_are_valid_and_raise_what_they_should() -> None:
    promtool("check", "rules", "retuned.rules.yml")
    promtool("test", "rules", *(path.name for path in RULE_TESTS))


@needs_promtool
def test_the_scrape_configuration_is_valid() -> None:
    promtool("check", "config", "--syntax-only", "prometheus.yml")


def test_each_alert_is_tested_firing_and_quiet() -> None:
    names = [alert["alert"] for alert in ALERTS]
    checks = [check for test in EXAMPLES for check in test.get("alert_rule_test", [])]
    assert sorted({check["alertname"] for check in checks if check["exp_alerts"]}) == sorted(names)
    assert sorted({check["alertname"] for check in checks if not check["exp_alerts"]}) == sorted(names)
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"info", "warning", "critical"}
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}


def fired(about: str) -> set[str]:
    """Alerts that fire in the tests whose name has this word."""
    tests = [test for test in EXAMPLES if about in test["name"]]
    checks = [check for test in tests for check in test.get("alert_rule_test", [])]
    samples = [
        sample["labels"]
        for test in tests
        for check in test.get("promql_expr_test", [])
        if "ALERTS" in check["expr"]
        for sample in check["exp_samples"]
    ]
    named = set(re.findall(r'alertname="(\w+)"', " ".join(samples)))
    return named | {check["alertname"] for check in checks if check["exp_alerts"]}


def test_each_alert_is_tested_across_a_restart() -> None:
    assert {alert["alert"] for alert in ALERTS} - fired("restart") == {"RetunedDown"}  # which is about restarts


def test_each_alert_on_a_workload_is_tested_with_one_that_is_retired() -> None:
    described = {alert["alert"]: " ".join(alert["annotations"].values()) for alert in ALERTS}
    on_workloads = {name for name, text in described.items() if "$labels.workload" in text}
    assert on_workloads <= fired("retired")


def test_each_recorded_series_is_tested() -> None:
    asked = " ".join(check["expr"] for test in EXAMPLES for check in test.get("promql_expr_test", []))
    assert [rule["record"] for rule in RECORDED if rule["record"] not in asked] == []


def test_the_dashboards_are_those_that_the_code_makes() -> None:
    spec = importlib.util.spec_from_file_location("build", DEPLOY / "grafana" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stored = {path.name: path.read_text() for path in DEPLOY.glob("grafana/dashboards/*")}
    assert module.files() == stored, "run python deploy/grafana/build.py"


@needs_promtool
def test_every_query_of_the_dashboards_is_promql(tmp_path: Path) -> None:
    asked = queries() + annotations()
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", "rules.yml", folder=tmp_path)


def test_rules_and_dashboards_name_metrics_and_labels_that_exist() -> None:
    known = labels_by_name()
    of_variables = [query for dashboard in DASHBOARDS.values() for query in variables(dashboard).values()]
    asked = [*queries(), *annotations(), *of_variables, *(rule["expr"] for rule in RULES_MADE)]
    for query in asked:
        for name, matchers in re.findall(r"\b((?:\w+:)?retuned_\w+(?::\w+)?|up)\b(?:\{([^}]*)\})?", query):
            assert name in known, f"{name} in: {query}"
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert used <= known[name] | {"job", "instance"}, f"labels of {name} in: {query}"
    for query, label in re.findall(r"label_values\((\w+)[^,]*, (\w+)\)", "\n".join(of_variables)):
        assert label in known[query]


def test_what_alerts_count_on_a_gateway_starts_at_zero() -> None:
    """A series that begins with the first refusals is no increase of them."""
    fresh = CollectorRegistry()
    GatewayMetrics(fresh)
    found = [sample for family in fresh.collect() for sample in family.samples]
    asked = {
        (name, frozenset(re.findall(r'(\w+)="([^"]*)"', matchers)))
        for alert in ALERTS
        for name, matchers in re.findall(r"increase\((retuned_gateway_\w+)(?:\{([^}]*)\})?\[", alert["expr"])
    }
    by_workload = {"retuned_gateway_fallbacks_total"}  # whose workloads are known when they are asked for
    assert {name for name, _ in asked} > by_workload
    for name, labels in asked:
        series = [one for one in found if one.name == name and labels <= set(one.labels.items())]
        assert (bool(series), sum(one.value for one in series)) == (name not in by_workload, 0), name


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafana_knows_every_field_of_the_dashboards(name: str) -> None:
    register_default_plugins()
    known = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARDS[name])))
    assert list(unknown(DASHBOARDS[name], known)) == []


def unknown(written: Any, known: Any, path: str = "") -> Iterator[str]:
    """Where what is written is not what Grafana's own types keep of it."""
    if isinstance(written, dict) and isinstance(known, dict):
        for name, value in written.items():
            yield from unknown(value, known.get(name), f"{path}.{name}")
    elif isinstance(written, list) and isinstance(known, list) and len(written) == len(known):
        for number, pair in enumerate(zip(written, known, strict=True)):
            yield from unknown(*pair, f"{path}[{number}]")
    elif written != known:
        yield path


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_first_row_is_open_and_the_others_hold_their_panels(name: str) -> None:
    outer = DASHBOARDS[name]["panels"]
    rows = [panel for panel in outer if panel["type"] == "row"]
    assert [row["collapsed"] for row in rows] == [place > 0 for place in range(len(rows))]
    assert [bool(row["panels"]) for row in rows] == [row["collapsed"] for row in rows]
    open_ones = outer[1 : len(outer) - len(rows) + 1]
    assert outer[0] in rows
    assert not [panel for panel in open_ones if panel["type"] == "row"]
    assert [row["gridPos"]["y"] for row in rows[1:]] == [bottom(open_ones) + place for place in range(len(rows) - 1)]
    for row, panels in [(rows[0], open_ones), *((row, row["panels"]) for row in rows[1:])]:
        assert (row["gridPos"]["x"], row["gridPos"]["w"], row["gridPos"]["h"]) == (0, 24, 1)
        assert min(panel["gridPos"]["y"] for panel in panels) == row["gridPos"]["y"] + 1
        assert area(panels) == 24 * (bottom(panels) - row["gridPos"]["y"] - 1), "a gap, or one on another"
        assert len(cells(panels)) == area(panels)


def bottom(panels: list[dict[str, Any]]) -> int:
    return int(max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels))


def area(panels: list[dict[str, Any]]) -> int:
    return sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in panels)


def cells(panels: list[dict[str, Any]]) -> set[tuple[int, int]]:
    """The cells of the 24 columns that panels stand on."""
    places = [panel["gridPos"] for panel in panels]
    taken = [
        itertools.product(range(at["x"], min(at["x"] + at["w"], 24)), range(at["y"], at["y"] + at["h"]))
        for at in places
    ]
    return set(itertools.chain(*taken))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_each_panel_explains_itself(name: str) -> None:
    outer = DASHBOARDS[name]["panels"]
    ids = [panel["id"] for panel in (*outer, *(inner for row in outer for inner in row.get("panels", ())))]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert len(panel["description"]) > 20, panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            perhaps = re.findall(r"(?:\w+:)?retuned_\w+(?::\w+)?", target["expr"])
            by_workload = any("workload" in labels_by_name()[name] for name in perhaps)
            assert ("$workload" in target["expr"]) == by_workload, target["expr"]


def test_dashboards_have_their_variables_and_tell_of_promotions_and_rollbacks() -> None:
    assert set(DASHBOARDS) == {"fleet.json", "operations.json", "quality.json", "learning.json", "business.json"}
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)
    for dashboard in DASHBOARDS.values():
        asked = json.dumps(dashboard["panels"])
        assert {"workload"} <= variables(dashboard).keys() <= {"workload", "version", "currency"}
        for name in ("version", "currency"):
            assert (f"${name}" in asked) == (name in variables(dashboard))
        assert [item["name"] for item in dashboard["annotations"]["list"]] == [
            "Promotions",
            "Canary steps",
            "Rollbacks",
        ]
    home = environment("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).name in DASHBOARDS


def figures() -> list[dict[str, Any]]:
    """The panels with one number a series."""
    return [panel for panel in PANELS if panel["type"] == "stat"]


def test_a_colour_means_good_or_bad() -> None:
    for panel in figures():
        steps = [(step["color"], step["value"]) for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert steps != [("green", None), ("red", 80)], panel["title"]  # Grafana's own, which mean nothing
        assert len(steps) > 1 or steps == [("text", None)], panel["title"]
    by_title = {panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"] for panel in figures()}
    assert [step["color"] for step in by_title["Free disk"]] == ["red", "orange", "green"]
    assert [step["value"] for step in by_title["Free disk"]] == [None, 2 * 1024**3, 10 * 1024**3]
    assert [(step["color"], step["value"]) for step in by_title["Net gain ($currency)"]] == [
        ("red", None),
        ("green", 0),
    ]


def test_a_rate_has_the_unit_of_what_it_counts_and_money_its_currency() -> None:
    for panel in PANELS:
        asked = [target["expr"] for target in panel["targets"]]
        unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit")
        if panel["type"] == "timeseries" and any(re.match(r"(sum|max)[^/]*rate\(", one) for one in asked):
            assert unit in {"eps", "mps", "cps", "reqps", "Bps", "suffix: answers/s", "suffix: tokens/s"}, panel[
                "title"
            ]
        if "amount" in " ".join(asked) and panel["type"] != "table":
            assert panel["title"].endswith("($currency)"), panel["title"]


def test_a_workload_leads_to_its_page_of_the_console_with_the_days_that_are_shown() -> None:
    for dashboard in DASHBOARDS.values():
        assert "${console}/" in [link.get("url") for link in dashboard["links"]]
        assert "console" in {item["name"] for item in dashboard["templating"]["list"]}
    for panel in PANELS:
        if panel["type"] in ("stat", "timeseries"):
            links = [link["url"] for link in panel["fieldConfig"]["defaults"].get("links", ())]
            by_workload = any("{{workload}}" in target.get("legendFormat", "") for target in panel["targets"])
            assert bool(links) == by_workload, panel["title"]
            assert all("/workloads/${__field.labels.workload}?since=${__from:date" in url for url in links)
    (each,) = (panel for panel in PANELS if panel["title"] == "Each workload")
    links = json.dumps(each["fieldConfig"]["overrides"])
    assert "/d/retuned-quality?var-workload=${__value.raw}&${__url_time_range}" in links
    assert "${console}/workloads/${__value.raw}?since=" in links


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[tuple[str, list[Callable[[], None]]]]:
    """A Prometheus that scrapes every metric once a second, with the rules of deploy/ loaded."""
    made, movers = registry()
    server, thread = start_http_server(0, addr="127.0.0.1", registry=made)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (scrape,) = configuration["scrape_configs"]
    del scrape["authorization"]
    del configuration["alerting"]
    scrape["static_configs"] = [{"targets": [f"127.0.0.1:{server.server_port}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    shutil.copy(DEPLOY / "retuned.rules.yml", tmp_path)
    here = {"--config.file": "prometheus.yml", "--storage.tsdb.path": "data"}
    shipped = dict(argument.split("=") for argument in COMPOSE["services"]["prometheus"]["command"])
    command = ["prometheus", *(f"{name}={value}" for name, value in (shipped | here).items())]
    process = subprocess.Popen([*command, f"--web.listen-address={address}", "--log.level=error"], cwd=tmp_path)
    try:
        yield f"http://{address}", movers
    finally:
        process.terminate()
        process.wait(timeout=20)
        server.shutdown()
        server.server_close()
        thread.join()


def asked(url: str, path: str, **parameters: str) -> Any:
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
        return json.load(answer)["data"]


@needs_prometheus
def test_a_live_prometheus_answers_every_query_records_and_fires(
    prometheus: tuple[str, list[Callable[[], None]]],
) -> None:
    url, movers = prometheus
    empty = {*queries(), *annotations(), *(rule["record"] for rule in RECORDED)}
    # A day has not passed: what was a day ago, and what each day added, is nowhere yet.
    empty = {query for query in empty if not re.search("offset [17]d", query)}
    # Alerts that need not last, on what the counters do here.
    silent = {"RetunedEventsLost", "RetunedRolledBack", "RetunedTrainingFailed", "RetunedJobFails"}
    problem: Exception | None = None
    deadline = time.monotonic() + 60
    while (empty or silent) and time.monotonic() < deadline:
        move(movers)
        time.sleep(1)
        try:
            empty -= {query for query in sorted(empty) if asked(url, "query", query=query)["result"]}
            alerts = asked(url, "alerts")["alerts"] if not empty else []
            silent -= {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}
        except OSError as error:
            problem = error
    assert not empty, problem
    assert not silent, problem
    firing = {alert["labels"]["alertname"] for alert in asked(url, "alerts")["alerts"] if alert["state"] == "firing"}
    assert not firing & {"RetunedDown", "RetunedBrokerAway", "RetunedDriftPersists"}


@needs_prometheus
def test_panels_with_exemplars_have_some_that_lead_to_an_interaction(
    prometheus: tuple[str, list[Callable[[], None]]],
) -> None:
    url, movers = prometheus
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    (destination,) = source["datasources"][0]["jsonData"]["exemplarTraceIdDestinations"]
    assert destination["url"] == "$RETUNED_URL/interactions/$${__value.raw}"
    assert environment("grafana")["RETUNED_URL"] == f"http://localhost:{HttpSettings().port}"
    waiting = {filled(target["expr"]) for panel in PANELS for target in panel["targets"] if target.get("exemplar")}
    assert {name for name in ("latency", "first_token", "feedback") if any(name in query for query in waiting)} == {
        "latency",
        "first_token",
        "feedback",
    }
    problem: Exception | None = None
    deadline = time.monotonic() + 60
    while waiting and time.monotonic() < deadline:
        move(movers)
        time.sleep(1)
        span = {"start": "2026-11-23T00:00:00Z", "end": str(time.time() + 60)}
        try:
            for query in sorted(waiting):
                series = asked(url, "query_exemplars", query=query, **span)
                if found := [exemplar["labels"] for one in series for exemplar in one["exemplars"]]:
                    assert found[0] == {destination["name"]: ID}
                    waiting.remove(query)
        except OSError as error:
            problem = error
    assert not waiting, problem


def environment(service: str) -> dict[str, str]:
    variables: dict[str, str] = COMPOSE["services"][service].get("environment", {})
    return variables


def test_the_daemon_takes_the_configuration_of_the_image_and_of_compose(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = (DEPLOY / "Dockerfile").read_text()
    image = dict(re.findall(r"(RETUNED__\w+)=(\S+)", recipe))
    assert image["RETUNED__WAREHOUSE__PATH"].startswith("/data/")
    (mode,) = re.findall(r"install --directory .* --mode (\d+) /data", recipe)
    assert not int(mode, 8) & OTHERS, "the daemon would warn of it at each start"
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("RETUNED__")]:
        monkeypatch.delenv(name)
    for name, value in (image | environment("retuned")).items():
        monkeypatch.setenv(name, value)
    settings = load(None)
    assert settings.http.host == "::"
    assert settings.kafka.bootstrap_servers == "kafka:19092"
    assert settings.kafka.dead_letter_topic == "retuned.dead-letters"
    assert f"127.0.0.1:{settings.http.port}:{settings.http.port}" in COMPOSE["services"]["retuned"]["ports"]
    targets = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0][
        "targets"
    ]
    assert targets == [f"retuned:{settings.http.port}"]
    secrets = {f"/run/secrets/{name}" for name in COMPOSE["services"]["retuned"]["secrets"]}
    http = settings.http
    assert {
        str(file)
        for file in (http.metrics_token_file, http.gateway_token_file, http.viewer_token_file, http.operator_token_file)
    } == secrets


def test_prometheus_has_a_token_that_reads_metrics_alone() -> None:
    for configuration in ("prometheus.yml", "prometheus.cluster.yml"):
        (scraped,) = yaml.safe_load((DEPLOY / configuration).read_text())["scrape_configs"]
        assert scraped["authorization"]["credentials_file"] == "/run/secrets/metrics_token"
    assert COMPOSE["services"]["prometheus"]["secrets"] == ["metrics_token"]


def test_the_gateway_of_compose_has_a_token_that_reads_the_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in COMPOSE["secrets"]:
        (tmp_path / name).write_text(f"{name}-of-the-test")
    for name, value in environment("retuned").items():
        monkeypatch.setenv(name, value.replace("/run/secrets", str(tmp_path)))
    sent = Path(environment("gateway")["RETUNED__GATEWAY__DAEMON_TOKEN_FILE"]).name
    assert load(None).http.tokens()[f"{sent}-of-the-test"] == "gateway"
    assert COMPOSE["services"]["gateway"]["secrets"] == [sent]


def test_the_secrets_of_compose_are_those_that_its_commands_make() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    named = {one["environment"] for one in COMPOSE["secrets"].values()} | {"GRAFANA_ADMIN_PASSWORD"}
    for page in (text, (DEPLOY.parent / "docs" / "operate.md").read_text()):
        (written,) = re.findall(r"for name in (.+); do", page)
        assert set(written.split()) == named


def test_compose_makes_the_topics_that_the_daemon_reads_and_writes() -> None:
    (script,) = COMPOSE["services"]["topics"]["command"]
    (made,) = re.findall(r"for topic in (.+); do", script)
    kafka = KafkaSettings()
    dead_letters = environment("retuned")["RETUNED__KAFKA__DEAD_LETTER_TOPIC"]
    ours = {kafka.model_events_topic, kafka.label_requests_topic, dead_letters}
    assert set(made.split()) == {kafka.interactions_topic, kafka.feedback_topic, *ours}


@pytest.mark.skipif(not shutil.which("amtool"), reason="amtool is not installed (apt: prometheus-alertmanager)")
def test_the_configuration_of_the_alertmanager_is_valid() -> None:
    done = subprocess.run(["amtool", "check-config", str(DEPLOY / "alertmanager.yml")], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_sends_to_the_alertmanager_which_knows_the_alerts() -> None:
    configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (target,) = configuration["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    name, port = target.split(":")
    assert f"127.0.0.1:{port}:{port}" in COMPOSE["services"][name]["ports"]
    alertmanager = yaml.safe_load((DEPLOY / "alertmanager.yml").read_text())
    receivers = {receiver["name"] for receiver in alertmanager["receivers"]}
    routes = [alertmanager["route"], *alertmanager["route"]["routes"]]
    assert {route["receiver"] for route in routes} == receivers
    named = set(re.findall(r"Retuned\w+", (DEPLOY / "alertmanager.yml").read_text()))
    assert named <= {alert["alert"] for alert in ALERTS}


def inhibited(source: dict[str, str], target: dict[str, str]) -> bool:
    """Whether Alertmanager holds an alert back while another one fires."""

    def fits(matchers: list[str], labels: dict[str, str]) -> bool:
        for matcher in matchers:
            name, sign, value = re.fullmatch(r'(\w+) (=~|=) "(.*)"', matcher).groups()  # type: ignore[union-attr]
            found = labels.get(name, "")
            if not (re.fullmatch(value, found) if sign == "=~" else found == value):
                return False
        return True

    rules = yaml.safe_load((DEPLOY / "alertmanager.yml").read_text())["inhibit_rules"]
    return any(
        fits(rule["source_matchers"], source)
        and fits(rule["target_matchers"], target)
        and all(source.get(name) == target.get(name) for name in rule["equal"])
        for rule in rules
    )


def test_one_process_of_several_that_is_away_holds_back_no_alert_on_workloads() -> None:
    here = {"job": "retuned", "namespace": "shop"}
    followed = [
        here | {"alertname": name, "workload": "support"} for name in ("RetunedWorkloadSilent", "RetunedNobodyRates")
    ] + [here | {"alertname": name} for name in ("RetunedTopicSilent", "RetunedIngestBudgetBurns")]
    for name in ("RetunedDown", "RetunedBrokerAway", "RetunedStoreAway", "RetunedIngestStalled"):
        away = here | {"alertname": name, "instance": "shop/retuned-ingest-5"}
        assert not any(inhibited(away, target) for target in followed), name
    for name in ("RetunedDown", "RetunedBrokerAway", "RetunedIngestStalled"):
        away = here | {"alertname": name, "instance": "shop/retuned-ingest-5"}
        assert inhibited(away, away | {"alertname": "RetunedIngestLate", "topic": "interactions"})
        assert not inhibited(away, away | {"alertname": "RetunedIngestLate", "instance": "shop/retuned-ingest-6"})
    nobody = here | {"alertname": "RetunedNoIngestion"}
    assert all(inhibited(nobody, target) for target in followed)
    assert not any(inhibited(nobody, target | {"namespace": "other"}) for target in followed)
    routes = yaml.safe_load((DEPLOY / "alertmanager.yml").read_text())["route"]["routes"]
    assert routes[0] == {"matchers": ['alertname = "RetunedNoIngestion"'], "receiver": "nobody"}


def test_compose_is_open_to_this_machine_alone_and_knows_who_is_well() -> None:
    services = COMPOSE["services"]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))
    assert (DEPLOY / "Dockerfile").read_text().count("\nHEALTHCHECK") == 2  # the daemon and ingesters have one together
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"retuned", "gateway"}
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
